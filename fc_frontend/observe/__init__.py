"""What can be seen from outside: log, metrics and the HTTP listener."""
