"""A small HTTP listener for metrics, health and status.

h11 implements the protocol.  Everything that a client can do is bounded: connections, header sizes,
times, and connections and requests per second.  When the limit of connections is reached, a new
connection replaces an idle one, so that idle clients cannot block others.  Only GET and HEAD are
answered, and only under names of this host, which prevents DNS rebinding from a browser.

Not uvicorn (59 ms to import, h11 20): it has no timeout for a request's head, and answers 503 to
all clients once idle connections fill `limit_concurrency`.  Not aiohttp (147 ms): it cannot replace
idle connections either.  Most of this module implements the limits, not the protocol.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from ipaddress import ip_address
from urllib.parse import unquote

import h11

from fc_frontend.errors import Unavailable

TEXT = "text/plain; charset=utf-8"
_LONGEST_HEAD = 16 * 1024
_CHUNK = 64 * 1024
"""Bytes of a body that are passed to the system at once."""
_BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted."""
_CONNECTIONS_PER_SECOND = 250
_REQUESTS_PER_SECOND = 500
"""More than connections, so that every accepted one is served before it must make room."""
_BURST = 0.5
"""The burst of connections or requests allowed at once, in seconds of their rate."""
_MOST_REFUSED = 32
"""Connections beyond the limit that get an error; further ones are closed silently."""
_STALLED = 1.0
"""Seconds without progress after which a slowly reading client may be cut off."""
_LONGEST_SEND = 30.0
"""Seconds that a client may take to read a response."""
_WITHOUT_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_ROOM_AGAIN = 0.2
"""Seconds until the next attempt to accept when the system is out of resources."""
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
    503: "too many requests at once",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD: the decoded path, the query as received, and headers in lower case."""

    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """The response of a handler."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers in addition to those of every response."""


Handler = Callable[[Request], Response | Awaitable[Response]]


class HttpServer:
    """Serves `routes`; handlers run in the event loop and must not block.

    A route that ends with `/` also answers for each name directly below it, except `/` itself.
    Coroutine handlers take up at most three quarters of the connections.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[str, Handler],
        *,
        allowed_hosts: Iterable[str] = (),
        max_connections: int = 256,
        header_timeout: float = 5.0,
        idle_timeout: float = 60.0,
        on_error: Callable[[Exception], None] = lambda _exc: None,
    ) -> None:
        """Create a server; times are in seconds.

        `allowed_hosts` are accepted names, in addition to addresses and `localhost`.
        """
        self._host = host
        self._port = port
        self._routes = dict(routes)
        self._allowed = {"localhost", *(name.lower() for name in allowed_hosts)}
        self._max_connections = max_connections
        self._header_timeout = header_timeout
        self._idle_timeout = idle_timeout
        self._on_error = on_error
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: set[_Client] = set()
        self._waiting_handlers = 0
        self._requests = _Pace(_REQUESTS_PER_SECOND)

    @property
    def address(self) -> tuple[str, int]:
        """The address of the listener.  Requires `start`."""
        if self._socket is None:
            raise RuntimeError("not started")
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    async def start(self) -> None:
        """Listen.  Raises `Unavailable` if the address cannot be bound."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listening = socket.create_server(
                (self._host, self._port), family=family, backlog=_BACKLOG
            )
        except OSError as exc:
            remedies = {
                errno.EADDRINUSE: "stop what holds it, or set listen to another port",
                errno.EADDRNOTAVAIL: "set listen to an address of this host",
                errno.EACCES: "set listen to a port above 1023",
            }
            number = exc.errno or 0
            # Python's own message would repeat the address.
            said = os.strerror(number) if number > 0 else exc.strerror
            host = f"[{self._host}]" if ":" in self._host else self._host
            raise Unavailable.of(
                f"{host}:{self._port} cannot be listened on: {said}",
                remedies.get(number, "set listen to another address"),
                field="listen",
            ) from None
        listening.setblocking(False)
        self._socket = listening
        self._accepting = asyncio.create_task(self._accept(listening))

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        listening, self._socket = self._socket, None
        if listening is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Aborted transports are gone after the loop's next iteration.
        await asyncio.sleep(0)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        pace = _Pace(_CONNECTIONS_PER_SECOND)
        while True:
            await pace.turn()
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as exc:
                if exc.errno in _WITHOUT_ROOM:
                    self._make_room()
                    await asyncio.sleep(_ROOM_AGAIN)
                continue
            is_full = len(self._clients) >= self._max_connections and not self._make_room()
            if is_full and len(self._tasks) >= self._max_connections + _MOST_REFUSED:
                connection.close()
                continue
            task = asyncio.create_task(self._serve(connection, str(address[0]), is_full=is_full))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # A task that is cancelled before its first step does not close its connection.
            task.add_done_callback(partial(_close, connection))

    def _make_room(self) -> bool:
        """Cut off an idle client, or else a stalled one; return False if there is none.

        Of the address with the most connections, it is the one without progress for longest.
        """
        now = time.monotonic()
        able = [client for client in self._clients if client.is_idle]
        able = able or [client for client in self._clients if client.has_stalled(now)]
        if not able:
            return False
        counts = Counter(client.address for client in self._clients)
        client = min(able, key=lambda client: (-counts[client.address], client.since))
        self._clients.discard(client)
        client.cut_off()
        return True

    async def _serve(self, connection: socket.socket, address: str, *, is_full: bool) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        client = _Client(reader, writer, address, asyncio.current_task())
        try:
            if is_full:
                await client.refuse(503)
            else:
                self._clients.add(client)
                timeout = self._header_timeout
                while await self._exchange(client, timeout):
                    timeout = self._idle_timeout
            writer.close()
            async with asyncio.timeout(self._header_timeout):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            return
        finally:
            self._clients.discard(client)
            transport.abort()

    async def _exchange(self, client: _Client, timeout: float) -> bool:  # noqa: ASYNC109
        """Handle one request; return whether another one may follow."""
        client.enter(_State.IDLE)
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
        client.enter(_State.QUEUED)
        await self._requests.turn()
        client.enter(_State.ANSWERED)
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
            if isinstance(response, Response):
                return 200, response
            return await self._awaited(response)
        except Exception as exc:
            # An error of a handler must not end the listener, nor be shown to clients.
            self._on_error(exc)
            return 500, Response(500, _REASONS[500].encode() + b"\n")

    async def _awaited(self, response: Awaitable[Response]) -> tuple[int, Response | None]:
        """Return the response of a coroutine, or 503 if too many requests wait for responses."""
        if self._waiting_handlers >= max(1, self._max_connections * 3 // 4):
            if asyncio.iscoroutine(response):
                response.close()
            return 503, Response(503, _REASONS[503].encode() + b"\n", headers={"Retry-After": "1"})
        self._waiting_handlers += 1
        try:
            return 200, await response
        finally:
            self._waiting_handlers -= 1

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


def _close(connection: socket.socket, _task: asyncio.Task[None]) -> None:
    connection.close()


def _above(path: str) -> str:
    """Return the route directly above a path, or an empty string if that is `/`."""
    above = path[: path.rfind("/") + 1]
    return above if above != "/" else ""


class _Pace:
    """Lets callers pass in order of arrival, limited to a number per second."""

    def __init__(self, per_second: int) -> None:
        self._interval = 1 / per_second
        self._next = float("-inf")
        self._queue = asyncio.Lock()

    async def turn(self) -> None:
        """Return when it is the caller's turn, after earlier callers."""
        async with self._queue:
            now = time.monotonic()
            self._next = max(self._next, now - _BURST)
            await asyncio.sleep(max(0.0, self._next - now))
            self._next += self._interval


class _State(Enum):
    """The activity of a connection."""

    IDLE = "waits for a request"
    QUEUED = "has sent one, and waits for its turn"
    ANSWERED = "its answer is being made"
    SENT = "its answer is being sent"


class _Client:
    """One connection: HTTP/1.1 on a pair of streams."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        address: str,
        task: asyncio.Task[None] | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._task = task
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_LONGEST_HEAD)
        self._is_head = False
        self._state = _State.IDLE
        self.address = address
        self.since = time.monotonic()
        """The time at which it entered its state or made progress in it, on the monotonic clock."""
        self.has_begun = False

    def enter(self, state: _State) -> None:
        """Enter `state` now."""
        self._state, self.since = state, time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether it has not sent a whole request since its last response."""
        return self._state is _State.IDLE

    def has_stalled(self, now: float) -> bool:
        """Return whether it waits in the queue, or has not read any of its response for a while."""
        if self._state is _State.SENT:
            return now - self.since >= _STALLED
        return self._state is _State.QUEUED

    def cut_off(self) -> None:
        """End the connection at once."""
        if self._task is not None:
            self._task.cancel()

    async def request(self, idle_timeout: float, head_timeout: float) -> h11.Request | None:
        """Return the next request without its body; None if the client has left."""
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
                # One byte more than the limit of a head, so that h11 detects one that is too large.
                data = await self._reader.read(_LONGEST_HEAD + 1)
            if data and not self.has_begun:
                # Once begun, a head has its own, shorter timeout, however slowly it arrives.
                self.has_begun = True
                deadline = now() + head_timeout
            self._http.receive_data(data)

    async def answer(self, response: Response) -> bool:
        """Send `response`; return whether the connection may be used again."""
        self.enter(_State.SENT)
        head = self._head(response.status, len(response.body), response.content_type)
        head += response.headers.items()
        async with asyncio.timeout(_LONGEST_SEND):
            self._send(h11.Response(status_code=response.status, headers=head))
            if not self._is_head:
                for at in range(0, len(response.body), _CHUNK):
                    self._send(h11.Data(data=response.body[at : at + _CHUNK]))
                    await self._writer.drain()
                    self.since = time.monotonic()
            self._send(h11.EndOfMessage())
            await self._writer.drain()
        while self._http.their_state is h11.SEND_BODY:
            if self._http.next_event() is h11.NEED_DATA:
                return False
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def refuse(self, status: int) -> None:
        """Send an error and end the connection."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = _REASONS.get(status, "refused").encode() + b"\n"
        self.enter(_State.SENT)
        head = [*self._head(status, len(body), TEXT), ("Connection", "close")]
        self._send(h11.Response(status_code=status, headers=head))
        if not self._is_head:
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        async with asyncio.timeout(5.0):
            await self._writer.drain()

    def _head(self, status: int, size: int, content_type: str) -> list[tuple[str, str]]:
        headers = [
            ("Content-Type", content_type),
            ("Content-Length", str(size)),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ]
        return [*headers, ("Allow", "GET, HEAD")] if status == 405 else headers

    def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
