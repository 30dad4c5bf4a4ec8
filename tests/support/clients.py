"""A load generator in a process of its own, so that other work does not delay its clients.

`python -m tests.support.clients HOST`, with the arguments that argparse defines below.  It prints
`ready` once each client has received a response (`--now`: immediately), counts from then on until
standard input ends, and prints the results as JSON.  Rules for counting:

- Each request is sent once and never retried.  Failures are: a connection that is refused, reset or
  not established within 10 s; a status other than 200; a reset, an end of the connection or 10 s
  of silence before the response is complete, on new and reused connections alike.
- A response with `Connection: close` is not a failure, nor is an idle connection that the server
  had closed before the client used it again: any client detects that and reconnects.  These are
  counted as `closed`.  A request that crosses with such a close is a failure.
- Long connections exchange data at the same rate; half of them last 2 to 20 s, half until the end.
  A close that neither side announced is a failure, also between two exchanges.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

TIMEOUT = 10.0
LOOK = 0.02
MOST = 10_000
"""The maximum number of failures whose time is kept."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FailedError(Exception):
    """A request or connection failed; the message describes how."""


@dataclass(slots=True)
class Count:
    """The results of the requests.  Times are of the monotonic clock, which processes share."""

    requests: int = 0
    closed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    failed_at: list[tuple[float, str]] = field(default_factory=list)
    gap: float = 0.0
    """The longest time without any response."""
    slowest: float = 0.0
    lag: float = 0.0
    """The longest delay of this process itself."""
    ended: bool = False
    _last: float = field(default_factory=time.monotonic)

    def answered(self, asked: float) -> None:
        now = time.monotonic()
        if not self.ended:
            self.gap = max(self.gap, now - self._last)
        self.slowest = max(self.slowest, now - asked)
        self._last = now
        self.requests += 1

    def ends(self) -> None:
        """Note that no requests follow."""
        self.ended = True
        self.gap = max(self.gap, time.monotonic() - self._last)

    def failed(self, why: str) -> None:
        self.requests += 1
        self.failures[why] += 1
        if len(self.failed_at) < MOST:
            self.failed_at.append((time.monotonic(), why))

    def as_json(self) -> dict[str, object]:
        return {
            "requests": self.requests,
            "failed": sum(self.failures.values()),
            "failures": self.failures,
            "failed_at": self.failed_at,
            "closed": self.closed,
            "gap": self.gap,
            "slowest": self.slowest,
            "lag": self.lag,
        }


class Crowd:
    """The clients of one run."""

    def __init__(self, host: str, pause: float) -> None:
        self.host = host
        self.pause = pause
        self.count = Count()
        self.stop = asyncio.Event()
        self.waiting = 0
        self.all_answered = asyncio.Event()

    async def web(self, port: int, keep: bool) -> None:
        """Send requests repeatedly, over one connection or over a new one each time."""
        streams: Streams | None = None
        first = True
        await asyncio.sleep(random.random() * self.pause)
        while not self.stop.is_set():
            asked = time.monotonic()
            used = streams is not None
            if streams and streams[0].at_eof():
                self.count.closed += 1
                streams[1].close()
                streams, used = None, False
            try:
                if streams is None:
                    streams = await connect(self.host, port)
                reusable = await exchange(streams, keep)
                self.count.answered(asked)
                if keep and not reusable:
                    self.count.closed += 1
            except FailedError as exc:
                self.count.failed(f"{exc} on a {'used' if used else 'new'} connection")
                reusable = False
            if streams and not reusable:
                streams[1].close()
                streams = None
            if first:
                self._answered_once()
                first = False
            await asyncio.sleep(self.pause * random.uniform(0.8, 1.2))
        if streams:
            streams[1].close()

    async def long(self, port: int, forever: bool) -> None:
        """Exchange data over one connection, for some seconds or until the end."""
        first = True
        while not self.stop.is_set():
            until = time.monotonic() + (float("inf") if forever else random.uniform(2, 20))
            streams: Streams | None = None
            try:
                streams = await connect(self.host, port)
                while not self.stop.is_set() and time.monotonic() < until:
                    asked = time.monotonic()
                    reusable = await exchange(streams, True)
                    self.count.answered(asked)
                    if not reusable:
                        self.count.closed += 1
                        break
                    if first:
                        self._answered_once()
                        first = False
                    await asyncio.sleep(self.pause * random.uniform(0.8, 1.2))
            except FailedError as exc:
                self.count.failed(f"{exc} on a long connection")
                await asyncio.sleep(self.pause)
            if streams:
                streams[1].close()

    async def watch(self) -> None:
        """Measure the delay of this process itself."""
        while not self.stop.is_set():
            before = time.monotonic()
            await asyncio.sleep(LOOK)
            self.count.lag = max(self.count.lag, time.monotonic() - before - LOOK)

    def _answered_once(self) -> None:
        self.waiting -= 1
        if self.waiting == 0:
            self.all_answered.set()


async def connect(host: str, port: int) -> Streams:
    """Open a new connection."""
    try:
        async with asyncio.timeout(TIMEOUT):
            return await asyncio.open_connection(host, port)
    except TimeoutError:
        raise FailedError("no connection in time") from None
    except OSError as exc:
        raise FailedError(type(exc).__name__) from None


async def exchange(streams: Streams, keep: bool) -> bool:
    """Request `/`; return whether the connection is reusable.  Raises for any status but 200."""
    reader, writer = streams
    connection = b"keep-alive" if keep else b"close"
    try:
        async with asyncio.timeout(TIMEOUT):
            writer.write(
                b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: " + connection + b"\r\n\r\n"
            )
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            status = lines[0].split()[1].decode("latin-1")
            if status != "200":
                raise FailedError(f"status {status}")
            length = next(line for line in lines if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
    except TimeoutError:
        raise FailedError("no answer in time") from None
    except asyncio.IncompleteReadError as exc:
        raise FailedError("half an answer" if exc.partial else "end without answer") from None
    except OSError as exc:
        raise FailedError(type(exc).__name__) from None
    return keep and b"connection: close" not in lines


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.clients")
    parser.add_argument("host")
    parser.add_argument("--http", type=int, help="port of the HTTP service")
    parser.add_argument("--tcp", type=int, help="port of the TCP service")
    parser.add_argument("--keep", type=int, default=0, help="HTTP clients that keep a connection")
    parser.add_argument("--new", type=int, default=0, help="HTTP clients with new connections")
    parser.add_argument("--long", type=int, default=0, help="long connections over TCP")
    parser.add_argument("--pause", type=float, default=0.35, help="seconds between two requests")
    parser.add_argument("--now", action="store_true", help="count from the first request on")
    given = parser.parse_args()
    crowd = Crowd(given.host, given.pause)
    crowd.waiting = given.keep + given.new + given.long
    tasks = [asyncio.create_task(crowd.web(given.http, True)) for _ in range(given.keep)]
    tasks += [asyncio.create_task(crowd.web(given.http, False)) for _ in range(given.new)]
    tasks += [asyncio.create_task(crowd.long(given.tcp, n % 2 == 0)) for n in range(given.long)]
    if not given.now:
        async with asyncio.timeout(60):
            await crowd.all_answered.wait()
    crowd.count.gap = crowd.count.slowest = 0.0
    tasks.append(asyncio.create_task(crowd.watch()))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    crowd.count.ends()
    crowd.stop.set()
    await asyncio.gather(*tasks)
    print(json.dumps(crowd.count.as_json()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
