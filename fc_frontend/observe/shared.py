"""Expensive answers, computed once for all concurrent requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

EVERY = 1.0
"""Minimum seconds between the starts of two computations."""
_REST = 4
"""The pause after a computation, in multiples of its duration; at most `EVERY` seconds."""


class Shared:
    """An answer that `make` computes in a thread, at most once a second.

    Requests that arrive during a computation wait for the next one, so no request gets an answer
    older than itself, and a client that repeats its request at once gets one answer a second.
    """

    def __init__(
        self,
        make: Callable[[], bytes],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._make = make
        self._clock = clock
        self._sleep = sleep
        self._next: asyncio.Task[bytes] | None = None
        self._turn = asyncio.Lock()
        self._not_before = float("-inf")
        # It has its own thread: the daemon's other threads may be waiting for HAProxy.
        self._thread = ThreadPoolExecutor(1, "answers")

    async def get(self) -> bytes:
        """Return the answer.  Raises whatever `make` raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._made())
        # A client that disconnects does not cancel the answer for others.
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        """Cancel a pending computation."""
        if self._next is not None:
            self._next.cancel()
        async with self._turn:
            pass
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _made(self) -> bytes:
        async with self._turn:
            await self._sleep(max(0.0, self._not_before - self._clock()))
            self._next = None
            began = self._clock()
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._make)
            finally:
                ended = self._clock()
                rest = min(_REST * (ended - began), EVERY)
                self._not_before = max(began + EVERY, ended + rest)
