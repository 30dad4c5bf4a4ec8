"""Everything that touches HAProxy: its binary, configuration file, sockets and processes.

All calls block, within time limits set by the caller; nothing here logs or prints.  Functions
return what happened, or raise `Refused` or `Unavailable` with a remedy.
"""
