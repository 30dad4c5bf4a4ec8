"""Certificates of frontends, from the operator's files to the running worker.

    originals ─► store: copies and a crt-list for each frontend ─► swap: the running worker

What HAProxy loads are the copies, which are complete and checked: whoever renews certificates may
replace the originals one by one.  A copy is written first and swapped at runtime then, so that a
worker which starts in between has it as well.
"""
