"""Kubernetes API client: access, HTTP, and a reflector that watches one resource.

Uses asyncio, ssl and h11 instead of a client library: lightkube 1.0 continues a watch after 410
without a new list, hangs on half-open connections and supports neither bookmarks nor `proxy-url`;
the others cost 386 to 1,800 ms of CPU at import.
"""
