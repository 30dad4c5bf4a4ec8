"""TLS certificates as bytes: where their files are, what is in them, and whether they are usable.

Pure: nothing here reads a file or asks HAProxy.
"""
