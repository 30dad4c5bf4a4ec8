"""The operator's page: how the frontend is, as HTML.

Pure: values in, bytes out.  Says what `status` and `explain` say, from the very same verdicts.
"""
