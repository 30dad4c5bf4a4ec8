"""The operator's page: the status of the frontend as HTML.

Rendering is pure: values in, bytes out.  The page shows the same verdicts as `status` and
`explain`.
"""
