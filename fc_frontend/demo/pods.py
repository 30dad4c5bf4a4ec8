"""Pods on loopback: small HTTP servers that report their name, and can end in every way.

The demo and the tests need backends that start, drain and crash on command, at addresses of
their own as pods have, so that HAProxy's reaction can be counted in requests. They must never
hold a request without bound: bodies, delays and idle connections all have limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
import ssl
import struct
import urllib.parse
from types import TracebackType
from typing import Final, Self

import h11

from fc_frontend.demo import handed_over, stop_listening

_MAX_BODY: Final = 1 << 20
MAX_SECONDS: Final = 10.0
IDLE_TIMEOUT: Final = 300.0
_CLOSE_TIMEOUT: Final = 1.0
_CHUNK: Final = 65536
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class _RefusedError(Exception):
    """A request to be answered with an error status, after which the connection ends."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Connection:
    """One client's connection: HTTP/1.1 on a pair of streams."""

    def __init__(
        self, pod: Pod, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._pod = pod
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        """Answer requests until either side ends the connection."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except _RefusedError as refused:
            await self._refuse(refused.status, str(refused))
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint, str(error))

    def reset(self) -> None:
        """Drop the connection now; the client sees a reset."""
        sock = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.abort()

    def abort(self) -> None:
        """Drop the connection, with all unsent data."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Send the remaining data, and close."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()

    async def _exchange(self) -> bool:
        """Read one request and answer it; return whether another one may follow."""
        request = await self._event()
        if not isinstance(request, h11.Request):
            return False
        self._pod.requests += 1
        if request.method == b"CONNECT":
            raise _RefusedError(405, "a pod is no proxy")
        path, _, query = request.target.decode("ascii").partition("?")
        seconds = _seconds(query) if path == "/slow" else 0.0
        received = await self._body()
        if seconds:
            await asyncio.sleep(seconds)
        text = f"pod {self._pod.name}\n"
        if received or request.method in (b"POST", b"PUT", b"PATCH"):
            text += f"received {received} bytes\n"
        await self._send(200, text.encode(), with_body=request.method != b"HEAD")
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _body(self) -> int:
        """Read the request's body; return its length in bytes."""
        received = 0
        while isinstance(event := await self._event(), h11.Data):
            received += len(event.data)
            if received > _MAX_BODY:
                raise _RefusedError(413, f"a body may have {_MAX_BODY} bytes")
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError("the client left in the middle of a request")
        return received

    async def _event(self) -> h11.Event | None:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            async with asyncio.timeout(IDLE_TIMEOUT):
                self._http.receive_data(await self._reader.read(_CHUNK))
        return event if isinstance(event, h11.Event) else None

    async def _send(self, status: int, body: bytes, *, with_body: bool = True) -> None:
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("X-Pod", self._pod.name),
        ]
        if self._pod.stopping or status != 200:
            headers.append(("Connection", "close"))
        await self._write(
            h11.Response(status_code=status, headers=headers),
            *([h11.Data(data=body)] if with_body else []),
            h11.EndOfMessage(),
        )

    async def _write(self, *events: h11.Event) -> None:
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        await self._writer.drain()

    async def _refuse(self, status: int, reason: str) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._send(status, f"pod {self._pod.name}: {reason}\n".encode())
        if self._writer.can_write_eof():
            self._writer.write_eof()
        # Closing with unread bytes resets the connection, and the client may lose the answer.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                while await self._reader.read(_CHUNK):
                    pass


def _seconds(query: str) -> float:
    """Return the `seconds` of a query string, bounded; raise _RefusedError if invalid."""
    try:
        seconds = float(urllib.parse.parse_qs(query)["seconds"][-1])
    except (KeyError, ValueError):
        seconds = math.nan
    if not seconds >= 0:
        raise _RefusedError(400, "/slow needs ?seconds=N, a number that is not negative")
    return min(seconds, MAX_SECONDS)


class Pod:
    """An HTTP/1.1 server on one loopback address which answers with its name.

    Every answer has the header `X-Pod` and keeps the connection open. `/slow?seconds=N` answers
    after N seconds, at most 10. Bodies are read up to 1 MiB and their length is returned.
    `requests` counts received requests; if `stopping` is True, each answer closes its connection.

    Raises ValueError for an address that is not loopback.
    """

    def __init__(
        self,
        name: str,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        loopback_only: bool = True,
    ) -> None:
        """Create a pod; port 0 selects a free port at the first start, which is kept."""
        if loopback_only and not ipaddress.ip_address(address).is_loopback:
            raise ValueError(f"{address} is not a loopback address")
        self.name = name
        self.requests = 0
        self.stopping = False
        self._address = address
        self._port = port
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], _Connection] = {}
        self._stopped = False

    @property
    def address(self) -> tuple[str, int]:
        """The address of the listener. Raises RuntimeError before a free port has been selected."""
        if self._port == 0:
            raise RuntimeError("not started: the port is not known yet")
        return self._address, self._port

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._serving)

    async def start(self) -> None:
        """Listen. Raises OSError if the port is in use, RuntimeError if the pod is running."""
        if self._listener is not None:
            raise RuntimeError(f"pod {self.name} is already started")
        self.stopping = self._stopped = False
        self._listener = await asyncio.start_server(
            self._accept, self._address, self._port, ssl=self._tls
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self, grace: float = 0.0) -> None:
        """Stop listening at once, and return when all connections are closed.

        For up to `grace` seconds, requests on open connections are still answered, and each answer
        closes its connection; the remaining ones are then closed as they are.
        """
        self._stop_listening()
        try:
            await handed_over()
            loop = asyncio.get_running_loop()
            deadline = loop.time() + grace
            while self._serving and (remaining := deadline - loop.time()) > 0:
                await asyncio.wait(list(self._serving), timeout=remaining)
        finally:
            self._stopped = True
            left = list(self._serving)
            for task in left:
                task.cancel()
        if left:
            await asyncio.wait(left)

    def kill(self) -> None:
        """End as a crashed host does: without a listener, and with every connection reset.

        The sockets are closed at the next iteration of the event loop.
        """
        self._stop_listening()
        self._stopped = True
        for task, connection in self._serving.items():
            connection.reset()
            task.cancel()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _stop_listening(self) -> None:
        self.stopping = True
        if self._listener is not None:
            stop_listening(self._listener)
            self._listener = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        if self._stopped:
            connection.reset()
            return
        task = asyncio.ensure_future(self._serve(connection))
        self._serving[task] = connection
        task.add_done_callback(self._ended)

    async def _serve(self, connection: _Connection) -> None:
        try:
            # A client that leaves, or is silent for long, is not an error of the pod.
            with contextlib.suppress(OSError, TimeoutError):
                await connection.serve()
        finally:
            await connection.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        # A task cancelled before its first step has not closed its connection.
        self._serving.pop(task).abort()


class PodSet:
    """A group of pods that listen on one port, each on a loopback address of its own.

    A new pod gets the next address of the network that was never used: as in a cluster, a
    reused address may belong to any other pod. Two groups need two networks or ports.
    """

    def __init__(
        self,
        name: str,
        network: str = "127.101.0.0/16",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Create an empty group; with port 0, all pods use the free port of the first one.

        Raises ValueError for a network that is not loopback.
        """
        parsed = ipaddress.ip_network(network)
        if not parsed.is_loopback:
            raise ValueError(f"{network} is not a loopback network")
        self.name = name
        self._port = port
        self._tls = tls
        self._unused = iter(parsed.hosts())
        self._started = 0
        self._pods: list[Pod] = []
        self._growing = asyncio.Lock()

    @property
    def pods(self) -> tuple[Pod, ...]:
        """The pods that belong to the group, oldest first; a killed one is kept until removed."""
        return tuple(self._pods)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Their addresses, in the same order, without those of pods that are being stopped."""
        return tuple(pod.address[0] for pod in self._pods)

    @property
    def port(self) -> int:
        """The common port. Raises RuntimeError before a free port has been selected."""
        if self._port == 0:
            raise RuntimeError("no pod was started: the port is not known yet")
        return self._port

    async def scale(self, count: int, grace: float = 0.0) -> None:
        """Start pods, or stop the youngest ones, until there are `count`.

        `grace` is that of `Pod.stop`, in seconds. Raises OSError if an address cannot be bound
        and RuntimeError if the network has no address left; pods started so far are kept.
        """
        async with self._growing:
            while len(self._pods) < count:
                await self._add()
            leaving = self._pods[count:]
            del self._pods[count:]
        await asyncio.gather(*(pod.stop(grace) for pod in leaving))

    async def remove(self, pod: Pod, grace: float = 0.0) -> None:
        """Remove one pod from the group and stop it. Raises ValueError if it is not a member."""
        self._pods.remove(pod)
        await pod.stop(grace)

    async def stop(self) -> None:
        """Stop all pods at once."""
        await self.scale(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _add(self) -> None:
        address = next(self._unused, None)
        if address is None:
            raise RuntimeError(f"pod set {self.name}: the network has no address left")
        self._started += 1
        pod = Pod(f"{self.name}-{self._started}", str(address), self._port, tls=self._tls)
        await pod.start()
        self._port = pod.address[1]
        self._pods.append(pod)
