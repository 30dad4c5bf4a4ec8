"""Results that are computed once for all callers that ask meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from fc_frontend.observe.shared import EVERY, Shared


def test_answers_are_computed_once_a_second_and_never_older_than_the_request() -> None:
    now = 1000.0
    begun: list[float] = []

    def make() -> bytes:
        begun.append(now)
        return str(len(begun)).encode()

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    async def scenario() -> None:
        nonlocal now
        shared = Shared(make, clock=lambda: now, sleep=sleep)
        assert await shared.get() == b"1"
        now += 0.25
        assert await asyncio.gather(*(shared.get() for _ in range(100))) == [b"2"] * 100
        now += 10
        assert await shared.get() == b"3"
        await shared.close()
        assert begun == [1000.0, 1000.0 + EVERY, 1010.0 + EVERY]

    asyncio.run(scenario())


def test_a_request_while_one_is_computed_gets_the_next_one() -> None:
    has_begun, may_end = threading.Event(), threading.Event()
    numbers = itertools.count(1)

    def make() -> bytes:
        has_begun.set()
        may_end.wait(10)
        return str(next(numbers)).encode()

    async def scenario() -> None:
        shared = Shared(make)
        first = asyncio.create_task(shared.get())
        await asyncio.to_thread(has_begun.wait, 10)
        second = asyncio.create_task(shared.get())
        await asyncio.sleep(0)
        may_end.set()
        assert (await first, await second) == (b"1", b"2")
        await shared.close()

    asyncio.run(scenario())


def test_a_failure_is_for_those_who_asked_and_the_next_may_succeed() -> None:
    outcomes: list[ValueError | bytes] = [ValueError("once"), b"good"]

    def make() -> bytes:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def scenario() -> None:
        shared = Shared(make)
        with pytest.raises(ValueError, match="once"):
            await shared.get()
        assert await shared.get() == b"good"
        await shared.close()

    asyncio.run(scenario())


def test_clients_that_go_away_leave_the_others_theirs() -> None:
    async def scenario() -> None:
        shared = Shared(lambda: b"x")
        await shared.get()
        waiting = [asyncio.create_task(shared.get()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [b"x", b"x"]
        shared_again = asyncio.create_task(shared.get())
        await asyncio.sleep(0)
        await shared.close()
        await asyncio.gather(shared_again, return_exceptions=True)
        assert shared_again.cancelled()

    asyncio.run(scenario())
