"""What can go wrong between this host and an API server."""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """The kinds of failures, for code that decides on them and for metrics."""

    CONNECT = "connect"
    """The connection is refused, reset or not answered."""
    TLS = "tls"
    """The certificates do not fit: expired, another name, another authority, a wrong clock."""
    TIMEOUT = "timeout"
    """An answer did not come in time."""
    SILENT = "silent"
    """A watch had neither event nor bookmark for longer than a server is silent."""
    CLOSED = "closed"
    """The connection ended in the middle of an answer."""
    PROTOCOL = "protocol"
    """What came is not HTTP, not JSON or not of the Kubernetes API."""
    UNAUTHORIZED = "unauthorized"
    """The credentials are not accepted (401)."""
    FORBIDDEN = "forbidden"
    """The credentials are accepted, and the right is missing (403)."""
    EXPIRED = "expired"
    """The resourceVersion is too old (410): everything has to be listed again."""
    FUTURE = "future"
    """The resourceVersion is not known yet (504): the server's data is an older copy."""
    MISSING = "missing"
    """The object, or the kind of objects, is not there (404)."""
    CONFLICT = "conflict"
    """The object is there already, or was changed in the meantime (409)."""
    THROTTLED = "throttled"
    """The server has too many requests (429)."""
    UNSUPPORTED = "unsupported"
    """The server does not accept the request (400, 405, 422)."""
    SERVER = "server"
    """The server failed (any other status)."""
    CREDENTIALS = "credentials"
    """There are no credentials: a file or a program does not give them."""


class ApiFailure(Exception):
    """A request to the API server failed.

    `retry_after` are the seconds that the server asks to wait.  The message is for people, in one
    line, and has nothing of what was sent.
    """

    def __init__(self, kind: FailureKind, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
