"""The desired state: the values that lead from declarations to configuration, and the planner.

Pure: nothing here opens a socket, starts a process, reads a clock or logs.
"""
