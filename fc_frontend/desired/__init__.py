"""The desired configuration: changes to the running one, and those withheld.  Pure."""
