"""Reads from the Kubernetes API: access, HTTP, and a reflector that follows one kind of objects.

Over asyncio, ssl and h11 instead of a client library: lightkube 1.0 watches on after 410 without a
new list, hangs on half-open connections and knows neither bookmarks nor `proxy-url`; the others
cost 386 to 1,800 ms of CPU at import.
"""
