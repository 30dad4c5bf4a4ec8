"""Send requests to a frontend continuously; a process of its own.

python -m tests.bench.endpoint_load HOST PORT CLIENTS FILE

Writes a line for each request into FILE: the time of the response, on the monotonic clock, and the
pod that responded or `failed`.  Ends when standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TextIO

PAUSE = 0.004
"""Seconds between two requests of a client."""


def main() -> None:
    host, port, clients = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with Path(sys.argv[4]).open("w", buffering=1) as file:
        asyncio.run(ask_all(host, port, clients, file))


async def ask_all(host: str, port: int, clients: int, file: TextIO) -> None:
    tasks = [asyncio.create_task(client(host, port, file)) for _ in range(clients)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def client(host: str, port: int, file: TextIO) -> None:
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while True:
        try:
            if connection is None:
                connection = await asyncio.open_connection(host, port)
            said = await request(*connection, host)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            said = "failed"
            connection = None
        print(f"{time.monotonic():.6f} {said}", file=file)
        await asyncio.sleep(PAUSE)


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> str:
    """Return the pod that responded; `failed` for any status but 200."""
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
    await reader.readexactly(int(headers["content-length"]))
    if headers.get("connection", "").lower() == "close":
        raise ValueError
    return headers["x-pod"] if " 200 " in head[0] else "failed"


if __name__ == "__main__":
    main()
