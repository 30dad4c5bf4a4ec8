"""Certificates of frontends, from the operator's files to the running worker.

    originals ─► store: copies and a crt-list for each frontend ─► swap: the running worker

HAProxy loads the copies, which are complete and checked, so an ACME client may replace the
originals one by one.  Each copy is written first and swapped at runtime afterwards, so that a
worker that starts in between loads it too.
"""
