"""What HAProxy should run: changes to what it runs now, and which are withheld.  Pure."""
