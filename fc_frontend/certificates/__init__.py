"""TLS certificates as bytes: the layout of their files, their content, and validation.

Pure: nothing here reads a file or accesses HAProxy.
"""
