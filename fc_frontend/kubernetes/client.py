"""HTTP/1.1 to an API server, with limits for time and size.

A connection carries one request after another; a watch is its last request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import h11

from fc_frontend.errors import Unavailable
from fc_frontend.kubernetes.access import ApiAccess, Credential
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.text import one_line

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 30.0
"""The timeout for the head of a response, and between two parts of its body."""
MAX_BODY_BYTES = 256 * 1024 * 1024
"""A page of 500 slices with 100 endpoints each has some 20 MB."""
MAX_LINE_BYTES = 16 * 1024 * 1024
"""The maximum size of a watch event; etcd accepts objects of 1.5 MB by default."""
MERGE_PATCH = "application/merge-patch+json"
_MAX_HEAD_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024
_MAX_RETRY_AFTER = 300.0
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 15),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 30_000),
)
"""A dead peer is detected after 30 s, whether data is being sent or not (tcp(7))."""
USER_AGENT = "fc-frontend"
"""Also the field manager of written objects (metadata.managedFields)."""


@dataclass(frozen=True, slots=True)
class ApiReply:
    """A response with its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ApiClient:
    """Connections to one API server.

    `read_access` returns the access to use.  It is called again for new credentials, since tools
    write a new kubeconfig when its certificates rotate.
    """

    def __init__(self, read_access: Callable[[], ApiAccess]) -> None:
        self.access = read_access()
        self._read_access = read_access
        self._context: tuple[Credential, ssl.SSLContext] | None = None
        self.expires: float | None = None
        """When the credential of the last connection expires, in Unix time, if known."""

    @contextlib.asynccontextmanager
    async def connect(self, *, renew: bool = False) -> AsyncIterator[ApiConnection]:
        """Open a connection; with `renew`, with new credentials.  Raises `ApiFailure`."""
        try:
            if renew:
                self.access = self._read_access()
            credential = await self.access.credentials.get(renew=renew)
            self.expires = credential.until
            context = self._tls(credential)
        except Unavailable as exc:
            raise ApiFailure(FailureKind.CREDENTIALS, exc.problem.message) from None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await self._open(context)
        except (OSError, ssl.CertificateError) as exc:
            raise _connection_failure(exc) from None
        try:
            yield ApiConnection(self.access, credential.token, reader, writer)
        finally:
            # Not `wait_closed`: a peer that does not respond would block here.
            writer.transport.abort()

    def _tls(self, credential: Credential) -> ssl.SSLContext:
        """Return the cached TLS context unless the certificates may have changed."""
        if self._context is None or self._context[0] != credential or self.access.ca_file:
            self._context = credential, self.access.tls(credential)
        return self._context[1]

    async def _open(
        self, context: ssl.SSLContext
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        access = self.access
        name = access.server_name or access.host
        if access.proxy is None:
            host, port = access.host, access.port
        else:
            parts = urlsplit(access.proxy)
            host, port = parts.hostname or "", parts.port or 80
        reader, writer = await asyncio.open_connection(host, port, limit=_READ_BYTES)
        try:
            _keep_alive(writer)
            if access.proxy is not None:
                await _tunnel(reader, writer, access)
            await writer.start_tls(context, server_hostname=name)
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer


class ApiConnection:
    """One connection.  All methods raise `ApiFailure`."""

    def __init__(
        self,
        access: ApiAccess,
        token: str | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._access = access
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        host = f"[{access.host}]" if ":" in access.host else access.host
        self._headers = [
            ("Host", f"{host}:{access.port}"),
            ("Accept", "application/json"),
            ("User-Agent", USER_AGENT),
        ]
        if token is not None:
            self._headers.append(("Authorization", f"Bearer {token}"))

    @property
    def expires(self) -> str | None:
        """`notAfter` of the server's certificate; None if it was not verified."""
        tls = self._writer.get_extra_info("peercert")
        return tls.get("notAfter") if tls else None

    @property
    def names(self) -> tuple[str, ...]:
        """The DNS names and addresses in the server's certificate; empty if it was not verified."""
        tls = self._writer.get_extra_info("peercert") or {}
        return tuple(name for _, name in tls.get("subjectAltName", ()))

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> ApiReply:
        """Return the response, whatever its status.

        `path` begins with a slash; `body` is sent as JSON.
        """
        response = await self._send(method, path, query, body, content_type)
        parts, size = [], 0
        async for part in self._body():
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise ApiFailure(FailureKind.PROTOCOL, "the answer is too large")
            parts.append(part)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return ApiReply(response.status_code, _headers(response), b"".join(parts))

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the object in a response with status 200 or 201; any other status is a failure."""
        return _object(await self.request("GET", path, query))

    async def post(self, path: str, body: Any) -> dict[str, Any]:
        """Return the object in a response with status 200 or 201; any other status is a failure."""
        return _object(await self.request("POST", path, None, body))

    async def put(self, path: str, body: Any) -> dict[str, Any]:
        """Return the object in a response with status 200 or 201; any other status is a failure."""
        return _object(await self.request("PUT", path, None, body))

    async def patch(self, path: str, change: Any) -> dict[str, Any]:
        """Return the object after a merge patch (RFC 7396).

        Any status but 200 or 201 is a failure.
        """
        return _object(await self.request("PATCH", path, None, change, MERGE_PATCH))

    async def delete(self, path: str) -> dict[str, Any]:
        """Return the object or Status in a response with status 200 or 201.

        Any other status is a failure.
        """
        return _object(await self.request("DELETE", path))

    async def watch(
        self, path: str, query: Mapping[str, str], silence: Callable[[], float]
    ) -> AsyncGenerator[list[bytes], None]:
        """Yield the lines of a stream until the server ends it, grouped as they arrive.

        The first list is empty and follows once the server has accepted the request.  `silence`
        returns the seconds without data after which the watch fails with kind SILENT.
        """
        response = await self._send("GET", path, query, None)
        if response.status_code != 200:
            parts = [part async for part in self._body()]
            raise status_failure(
                ApiReply(response.status_code, _headers(response), b"".join(parts))
            )
        yield []
        kept = b""
        async for part in self._body(silence):
            *lines, kept = (kept + part).split(b"\n")
            if len(kept) > MAX_LINE_BYTES:
                raise ApiFailure(FailureKind.PROTOCOL, "an event is too large")
            if lines:
                yield lines
        if kept.strip():
            raise ApiFailure(FailureKind.CLOSED, "the stream ended in the middle of an event")

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str = "application/json",
    ) -> h11.Response:
        if self._http.our_state is not h11.IDLE:
            raise ApiFailure(FailureKind.CLOSED, "the server closed the connection")
        target = self._access.prefix + path + (f"?{urlencode(query)}" if query else "")
        data = b"" if body is None else json.dumps(body).encode()
        headers = list(self._headers)
        if data:
            headers += [("Content-Type", content_type), ("Content-Length", str(len(data)))]
        out = self._http.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if data:
            out += self._http.send(h11.Data(data)) or b""
        out += self._http.send(h11.EndOfMessage()) or b""
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                self._writer.write(out)
                await self._writer.drain()
        except OSError as exc:
            raise _connection_failure(exc) from None
        while True:
            event = await self._event(REPLY_SECONDS)
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise ApiFailure(FailureKind.CLOSED, "the connection ended before an answer")

    async def _body(self, silence: Callable[[], float] | None = None) -> AsyncIterator[bytes]:
        """Yield parts of the body; data that has arrived together is one part."""
        while True:
            try:
                event = await self._event(silence() if silence else REPLY_SECONDS)
            except ApiFailure as exc:
                if silence and exc.kind is FailureKind.TIMEOUT:
                    raise ApiFailure(FailureKind.SILENT, "the server sends nothing") from None
                raise
            parts = []
            while isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                event = self._parsed()
            if parts:
                yield b"".join(parts)
            if isinstance(event, h11.EndOfMessage):
                return
            if event is not h11.NEED_DATA:
                raise ApiFailure(FailureKind.CLOSED, "the connection ended within an answer")

    async def _event(self, silence: float) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event, after at most `silence` seconds without data."""
        while (event := self._parsed()) is h11.NEED_DATA:
            try:
                async with asyncio.timeout(silence):
                    data = await self._reader.read(_READ_BYTES)
            except OSError as exc:
                raise _connection_failure(exc) from None
            try:
                self._http.receive_data(data)
            except h11.RemoteProtocolError:
                raise ApiFailure(FailureKind.CLOSED, "the connection was closed") from None
        return event

    def _parsed(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as exc:
            if self._http.trailing_data[1]:
                message = "the connection ended within an answer"
                raise ApiFailure(FailureKind.CLOSED, message) from None
            message = f"not a proper HTTP answer: {one_line(str(exc))[:100]}"
            raise ApiFailure(FailureKind.PROTOCOL, message) from None


def status_failure(reply: ApiReply) -> ApiFailure:
    """Return the failure that corresponds to the status of `reply`."""
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        document = None
    return object_failure(
        document if isinstance(document, dict) else {},
        reply.status,
        _retry_after(reply.headers.get("retry-after")),
    )


def object_failure(status: Mapping[str, Any], code: int, retry_after: float = 0.0) -> ApiFailure:
    """Return the failure for a `Status` object that was received with `code`."""
    kind = _KINDS.get(code, FailureKind.SERVER)
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    for cause in causes if isinstance(causes, list) else ():
        if isinstance(cause, dict) and cause.get("reason") == "ResourceVersionTooLarge":
            kind = FailureKind.FUTURE
    message = status.get("message")
    shown = one_line(message)[:300] if isinstance(message, str) and message else "no reason given"
    return ApiFailure(kind, f"{code}: {shown}", retry_after=retry_after)


_KINDS = {
    400: FailureKind.UNSUPPORTED,
    401: FailureKind.UNAUTHORIZED,
    403: FailureKind.FORBIDDEN,
    404: FailureKind.MISSING,
    405: FailureKind.UNSUPPORTED,
    409: FailureKind.CONFLICT,
    410: FailureKind.EXPIRED,
    422: FailureKind.UNSUPPORTED,
    429: FailureKind.THROTTLED,
}


def _object(reply: ApiReply) -> dict[str, Any]:
    if reply.status not in (200, 201):
        raise status_failure(reply)
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ApiFailure(FailureKind.PROTOCOL, "the answer is not a JSON object")
    return document


def _headers(response: h11.Response) -> dict[str, str]:
    return {name.decode("ascii"): value.decode("latin-1") for name, value in response.headers}


def _retry_after(text: str | None) -> float:
    """Return the seconds of a Retry-After header; API servers send a number (RFC 9110, 10.2.3)."""
    return min(float(text), _MAX_RETRY_AFTER) if text and text.isdecimal() else 0.0


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    tcp = writer.get_extra_info("socket")
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        tcp.setsockopt(socket.IPPROTO_TCP, option, value)


async def _tunnel(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, access: ApiAccess
) -> None:
    """Request a tunnel to the API server from an HTTP proxy (RFC 9110, 9.3.6)."""
    host = f"[{access.host}]" if ":" in access.host else access.host
    target = f"{host}:{access.port}"
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii"))
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise ApiFailure(FailureKind.CONNECT, "the proxy closed the connection") from None
    status = head.split(b" ", 2)[1:2]
    if not head.startswith(b"HTTP/1.") or status != [b"200"]:
        raise ApiFailure(FailureKind.CONNECT, "the proxy refuses the connection")


def _connection_failure(exc: OSError | ssl.CertificateError) -> ApiFailure:
    """Return the failure for an exception, without any data that was sent."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return ApiFailure(
            FailureKind.TLS, f"the server's certificate is not good: {exc.verify_message}"
        )
    if isinstance(exc, ssl.SSLError):
        return ApiFailure(FailureKind.TLS, f"TLS failed: {exc.reason or 'no reason given'}")
    if isinstance(exc, TimeoutError):
        return ApiFailure(FailureKind.TIMEOUT, "no answer in time")
    # asyncio adds the address to `strerror`.
    said = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror
    return ApiFailure(FailureKind.CONNECT, said or "the connection failed")
