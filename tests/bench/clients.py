"""A load generator in a process of its own: `python -m tests.bench.clients HOST PORT TCP_PORT N S`.

For S seconds N clients ask for `/`, half of them over connections that they keep, and 20 clients
exchange bytes over long TCP connections.  Prints what came of it as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

PAUSE = 0.05
LONG = 20


class Result:
    """Counts, and the longest time in which nobody got an answer."""

    def __init__(self) -> None:
        self.requests = 0
        self.failures: Counter[str] = Counter()
        self.last = time.monotonic()
        self.gap = 0.0

    def answered(self) -> None:
        now = time.monotonic()
        self.gap = max(self.gap, now - self.last)
        self.last = now
        self.requests += 1

    def failed(self, why: str) -> None:
        self.requests += 1
        self.failures[why] += 1


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: bool
) -> tuple[bytes, bool]:
    """The status line of an answer to GET /, and whether the connection may be used again."""
    connection = b"keep-alive" if keep else b"close"
    writer.write(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: " + connection + b"\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    lines = head.lower().split(b"\r\n")
    for line in lines:
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))
    return head.split(b"\r\n", 1)[0], keep and b"connection: close" not in lines


async def web(host: str, port: int, keep: bool, until: float, result: Result) -> None:
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while time.monotonic() < until:
        await asyncio.sleep(PAUSE)
        try:
            if streams is None:
                streams = await asyncio.wait_for(asyncio.open_connection(host, port), 10)
            status, reusable = await exchange(streams[0], streams[1], keep)
        except (OSError, EOFError, TimeoutError) as exc:
            result.failed(type(exc).__name__)
        else:
            if b" 200 " in status:
                result.answered()
                if reusable:
                    continue
            else:
                result.failed(status.decode("latin-1"))
        if streams:
            streams[1].close()
            streams = None


async def tunnel(host: str, port: int, until: float, result: Result) -> None:
    """One connection for the whole time; it is asked again and again."""
    try:
        streams = await asyncio.open_connection(host, port)
        while time.monotonic() < until:
            await asyncio.sleep(0.1)
            status, _ = await exchange(*streams, True)
            if b" 200 " not in status:
                raise OSError("not answered")
            result.requests += 1
        streams[1].close()
    except (OSError, EOFError, TimeoutError) as exc:
        result.failed(f"tunnel {type(exc).__name__}")


async def main() -> None:
    host, port, tcp_port, clients, seconds = sys.argv[1], *map(int, sys.argv[2:])
    until = time.monotonic() + seconds
    result = Result()
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(web(host, port, number % 2 == 0, until, result))
        for _ in range(LONG):
            group.create_task(tunnel(host, tcp_port, until, result))
    print(
        json.dumps(
            {
                "requests": result.requests,
                "failed": sum(result.failures.values()),
                "why": result.failures,
                "gap": result.gap,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
