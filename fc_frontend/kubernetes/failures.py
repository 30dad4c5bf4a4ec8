"""Failures of requests to an API server."""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """The kind of a failure, used for decisions in code and as a metric label."""

    CONNECT = "connect"
    """The connection is refused or reset, or times out."""
    TLS = "tls"
    """Certificate verification fails: expired, wrong name, wrong authority, or a wrong clock."""
    TIMEOUT = "timeout"
    """No response arrived in time."""
    SILENT = "silent"
    """A watch received neither an event nor a bookmark for longer than a working server takes."""
    CLOSED = "closed"
    """The connection ended in the middle of a response."""
    PROTOCOL = "protocol"
    """The response is not HTTP, not JSON or not of the Kubernetes API."""
    UNAUTHORIZED = "unauthorized"
    """The credentials are rejected (401)."""
    FORBIDDEN = "forbidden"
    """The credentials are accepted, but the permission is missing (403)."""
    EXPIRED = "expired"
    """The resourceVersion is too old (410): a new list is necessary."""
    FUTURE = "future"
    """The resourceVersion is not known yet (504): the server's data is older."""
    MISSING = "missing"
    """The object, or the resource, does not exist (404)."""
    CONFLICT = "conflict"
    """The object already exists, or was changed in the meantime (409)."""
    THROTTLED = "throttled"
    """The server has too many requests (429)."""
    UNSUPPORTED = "unsupported"
    """The server does not support the request (400, 405, 422)."""
    SERVER = "server"
    """The server failed (any other status)."""
    CREDENTIALS = "credentials"
    """No credentials are available: a file or a program does not supply them."""


class ApiFailure(Exception):
    """A request to the API server failed.

    `retry_after` is the delay in seconds that the server requests.  The message is for display, in
    one line, and contains no data that was sent.
    """

    def __init__(self, kind: FailureKind, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
