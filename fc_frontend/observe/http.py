"""A small HTTP listener for metrics, health and status.

h11 speaks the protocol; everything a client can do is bounded: connections, header sizes, times.
Only GET and HEAD are answered, and only under names that this host has: a page in somebody's
browser must not reach the listener by DNS rebinding.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import unquote

import h11

from fc_frontend.errors import Problem, Unavailable
from fc_frontend.observe.listening import handed_over, stop_listening

TEXT = "text/plain; charset=utf-8"
_LONGEST_HEAD = 16 * 1024
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[^\[\]]*:[^\[\]]*)\]|(?P<name>[^\[\]:]+))(?::[0-9]*)?")
_REASONS = {
    400: "bad request",
    404: "not found",
    405: "only GET and HEAD are answered",
    408: "too slow",
    413: "no request body is expected",
    421: "this is not a name of this host",
    431: "the request's head is too large",
    500: "an error of fc-frontend: see its log",
    503: "too many connections",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD: the decoded path, the query as it came, and headers in lower case."""

    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)
    """What is sent beside the headers that each answer has."""


Handler = Callable[[Request], Response | Awaitable[Response]]


class HttpServer:
    """Answers `routes`; handlers run in the event loop and must not block.

    A route that ends with `/` also answers for each name right below it, but for `/` itself.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[str, Handler],
        *,
        allowed_hosts: Iterable[str] = (),
        max_connections: int = 64,
        header_timeout: float = 5.0,
        idle_timeout: float = 60.0,
        on_error: Callable[[Exception], None] = lambda _exc: None,
    ) -> None:
        """Times are in seconds; `allowed_hosts` are names beside addresses and `localhost`."""
        self._host = host
        self._port = port
        self._routes = dict(routes)
        self._allowed = {"localhost", *(name.lower() for name in allowed_hosts)}
        self._most = max_connections
        self._header_timeout = header_timeout
        self._idle_timeout = idle_timeout
        self._on_error = on_error
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens.  Only after `start`."""
        if self._server is None:
            raise RuntimeError("not started")
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def start(self) -> None:
        """Listen.  Raises `Unavailable` if the address cannot be taken."""
        try:
            self._server = await asyncio.start_server(self._accept, self._host, self._port)
        except OSError as exc:
            remedies = {
                errno.EADDRINUSE: "stop what holds it, or set listen to another port",
                errno.EADDRNOTAVAIL: "set listen to an address of this host",
                errno.EACCES: "set listen to a port above 1023",
            }
            number = exc.errno or 0
            # asyncio's own text would name the address again.
            said = os.strerror(number) if number > 0 else exc.strerror
            host = f"[{self._host}]" if ":" in self._host else self._host
            raise Unavailable(
                Problem(
                    message=f"{host}:{self._port} cannot be listened on: {said}",
                    remedy=remedies.get(number, "set listen to another address"),
                    field="listen",
                )
            ) from None

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        server, self._server = self._server, None
        if server is None:
            return
        stop_listening(server)
        await handed_over()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        # Transports that were broken off are gone with the loop's next turn.
        await asyncio.sleep(0)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        # A task that is cancelled before its first turn closes nothing.
        task.add_done_callback(lambda _task: writer.transport.abort())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(reader, writer)
        try:
            if len(self._clients) > self._most:
                await client.refuse(503)
            else:
                timeout = self._header_timeout
                while await self._exchange(client, timeout):
                    timeout = self._idle_timeout
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), self._header_timeout)
        except (OSError, TimeoutError):
            return

    async def _exchange(self, client: _Client, timeout: float) -> bool:  # noqa: ASYNC109
        """One request and its answer; True if another one may follow."""
        try:
            request = await client.request(timeout, self._header_timeout)
        except TimeoutError:
            if client.has_begun:
                await client.refuse(408)
            return False
        except h11.RemoteProtocolError as exc:
            await client.refuse(exc.error_status_hint)
            return False
        if request is None:
            return False
        status, response = await self._answer(request)
        if response is None:
            await client.refuse(status)
            return False
        return await client.answer(response)

    async def _answer(self, request: h11.Request) -> tuple[int, Response | None]:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers
        }
        if request.method not in (b"GET", b"HEAD"):
            return 405, None
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return 413, None
        if not self._is_ours(headers.get("host", "")):
            return 421, None
        target = request.target.decode("latin-1")
        path, _, query = target.partition("?")
        path = unquote(path)
        handler = self._routes.get(path) or self._routes.get(_above(path))
        if handler is None:
            return 404, Response(404, b"not found\n")
        try:
            response = handler(Request(path, query, headers))
            return 200, response if isinstance(response, Response) else await response
        except Exception as exc:
            # Whatever a handler does wrong must not end the listener, nor be shown outside.
            self._on_error(exc)
            return 500, Response(500, _REASONS[500].encode() + b"\n")

    def _is_ours(self, host: str) -> bool:
        found = _AUTHORITY.fullmatch(host.strip().lower())
        if found is None:
            return False
        name = found["name"] or ""
        if name in self._allowed:
            return True
        try:
            ip_address(found["v6"] or name)
        except ValueError:
            return False
        return True


def _above(path: str) -> str:
    """The route that a path stands right below, empty if that is `/`."""
    above = path[: path.rfind("/") + 1]
    return above if above != "/" else ""


class _Client:
    """One connection: HTTP/1.1 on a pair of streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_LONGEST_HEAD)
        self._is_head = False
        self.has_begun = False

    async def request(self, idle_timeout: float, head_timeout: float) -> h11.Request | None:
        """The next request without its body; None if the client has gone."""
        now = asyncio.get_running_loop().time
        self.has_begun = bool(self._http.trailing_data[0])
        deadline = now() + (head_timeout if self.has_begun else idle_timeout)
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._is_head = event.method == b"HEAD"
                return event
            if event is not h11.NEED_DATA:
                return None
            async with asyncio.timeout_at(deadline):
                # One byte more than a head may have, so that h11 sees one that is too large.
                data = await self._reader.read(_LONGEST_HEAD + 1)
            if data and not self.has_begun:
                # From its first byte on, a head has its own, shorter time, however it drips.
                self.has_begun = True
                deadline = now() + head_timeout
            self._http.receive_data(data)

    async def answer(self, response: Response) -> bool:
        """Send `response`; True if the connection may be used again."""
        self._send(
            response.status, response.body, response.content_type, response.headers, last=False
        )
        await asyncio.wait_for(self._writer.drain(), 30.0)
        while self._http.their_state is h11.SEND_BODY:
            if self._http.next_event() is h11.NEED_DATA:
                return False
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def refuse(self, status: int) -> None:
        """Send an error, after which the connection ends."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = _REASONS.get(status, "refused").encode() + b"\n"
        self._send(status, body, TEXT, {}, last=True)
        await asyncio.wait_for(self._writer.drain(), 5.0)

    def _send(
        self, status: int, body: bytes, content_type: str, more: Mapping[str, str], *, last: bool
    ) -> None:
        headers = [
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
            *more.items(),
        ]
        if status == 405:
            headers.append(("Allow", "GET, HEAD"))
        if last:
            headers.append(("Connection", "close"))
        out = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        if not self._is_head:
            out += self._http.send(h11.Data(data=body)) or b""
        out += self._http.send(h11.EndOfMessage()) or b""
        self._writer.write(out)
