"""All that touches HAProxy: its binary, its file, its sockets, its processes.

Everything here blocks, within time limits that the caller gives; nothing here logs or prints.
What happened is a returned value, or `Refused` and `Unavailable` with what to do about it.
"""
