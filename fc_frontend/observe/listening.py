"""Ending a listener without losing connections.

When its server is closed, asyncio leaks connections that are accepted but not yet handed over.
"""

from __future__ import annotations

import asyncio
import socket


def stop_listening(server: asyncio.Server) -> None:
    """Refuse new connections from now on; the port is free at the next iteration of the loop.

    `Server.close` alone would leak connections that asyncio has accepted but not yet handed over:
    their transports cannot attach to a closed server any more. So they are handled first, and
    reach their protocol within two iterations of the loop.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
        listening.shutdown(socket.SHUT_RDWR)
    loop.call_soon(server.close)


async def handed_over() -> None:
    """Wait until the connections accepted before `stop_listening` have reached their protocol."""
    for _ in range(2):
        await asyncio.sleep(0)
