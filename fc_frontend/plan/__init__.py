"""What should be: the values that flow from declaration to configuration, and the planner.

Pure: nothing here opens a socket, starts a process, reads a clock or logs.
"""
