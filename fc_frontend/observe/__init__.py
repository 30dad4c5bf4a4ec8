"""The daemon's output to the outside: log, metrics and the HTTP listener."""
