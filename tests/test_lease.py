"""One writer among several frontends, regardless of their clocks and of how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fc_frontend.kubernetes.access import ApiAccess
from fc_frontend.kubernetes.client import ApiClient, ApiConnection
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.kubernetes.lease import HELD_SECONDS, LEASE_SECONDS, RENEW_SECONDS, LeaseHolder
from tests.support.api_server import ApiServer
from tests.support.certificates import Certificates

KEY = ("leases", "fc-frontend", "class")


class Clock:
    """A monotonic clock that advances only when it is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Frontends:
    """Two frontends with unrelated monotonic clocks, and their API server."""

    def __init__(self, server: ApiServer, connection: ApiConnection) -> None:
        self.server = server
        self.connection = connection
        self.clocks = {"a": Clock(5.0), "b": Clock(90_000.0)}
        self.leases = {
            name: LeaseHolder("fc-frontend", "class", name, clock)
            for name, clock in self.clocks.items()
        }

    def pass_time(self, seconds: float) -> None:
        for clock in self.clocks.values():
            clock.now += seconds

    async def renew(self, name: str) -> bool:
        return await self.leases[name].renew(self.connection)

    @property
    def held(self) -> list[str]:
        return [name for name, lease in self.leases.items() if lease.is_held]

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.server.objects.now[KEY]["spec"]
        return spec


def play(certificates: Certificates, scene: Callable[[Frontends], Awaitable[None]]) -> None:
    async def played() -> None:
        async with ApiServer().serving(certificates.server_context()) as server:
            ca = certificates.path("ca.crt").read_bytes()
            access = ApiAccess(host="127.0.0.1", port=server.port, ca=ca)
            async with ApiClient(lambda: access).connect() as connection:
                await scene(Frontends(server, connection))

    asyncio.run(played())


def test_the_first_takes_it_and_keeps_it_by_renewing(certificates: Certificates) -> None:
    async def scene(frontends: Frontends) -> None:
        assert frontends.held == []
        assert await frontends.renew("a")
        assert not await frontends.renew("b")
        assert frontends.leases["b"].holder == "a"
        for _ in range(10):
            frontends.pass_time(RENEW_SECONDS)
            assert frontends.leases["a"].is_due
            assert await frontends.renew("a")
            assert not await frontends.renew("b")
            assert frontends.held == ["a"]
        assert frontends.spec["leaseTransitions"] == 0

    play(certificates, scene)


def test_a_holder_that_is_killed_is_followed_once_the_lease_is_over(
    certificates: Certificates,
) -> None:
    async def scene(frontends: Frontends) -> None:
        assert await frontends.renew("a")
        assert not await frontends.renew("b")
        frontends.pass_time(LEASE_SECONDS)
        assert not await frontends.renew("b")
        frontends.pass_time(0.5)
        assert await frontends.renew("b")
        assert frontends.spec["holderIdentity"] == "b"
        assert frontends.spec["leaseTransitions"] == 1

    play(certificates, scene)


def test_a_holder_that_was_stopped_does_not_write_when_it_continues(
    certificates: Certificates,
) -> None:
    """The monotonic clock advances while SIGSTOP is in effect."""

    async def scene(frontends: Frontends) -> None:
        assert await frontends.renew("a")
        assert not await frontends.renew("b")
        frontends.pass_time(HELD_SECONDS)
        assert frontends.held == [], "it stops before anybody may take over"
        frontends.pass_time(LEASE_SECONDS)
        assert await frontends.renew("b")
        assert frontends.held == ["b"]
        assert not await frontends.renew("a")
        assert frontends.held == ["b"]

    play(certificates, scene)


@pytest.mark.parametrize("year", ["1999", "2199"])
def test_wall_clocks_do_not_matter(certificates: Certificates, year: str) -> None:
    async def scene(frontends: Frontends) -> None:
        assert await frontends.renew("a")
        frontends.spec["renewTime"] = f"{year}-01-01T00:00:00.000000Z"
        assert not await frontends.renew("b")
        frontends.pass_time(LEASE_SECONDS - 1)
        assert not await frontends.renew("b")
        frontends.pass_time(2)
        assert await frontends.renew("b")

    play(certificates, scene)


def test_of_two_that_are_too_late_one_is_first(certificates: Certificates) -> None:
    async def scene(frontends: Frontends) -> None:
        server = frontends.server
        expired = {"metadata": {"name": "class", "namespace": "fc-frontend"}, "spec": {}}
        server.objects.create("leases", expired)
        found = server.objects.get(KEY)
        assert await frontends.renew("a")
        # `b` has read an outdated version.
        frontends.leases["b"] = Late("fc-frontend", "class", "b", frontends.clocks["b"], found)
        assert not await frontends.renew("b")
        assert frontends.held == ["a"]

    class Late(LeaseHolder):
        def __init__(self, *arguments: Any) -> None:
            *known, self.found = arguments
            super().__init__(*known)

        async def renew(self, connection: ApiConnection) -> bool:
            class Stale:
                async def get(self, _path: str) -> Any:
                    return self_found

                async def put(self, path: str, body: Any) -> Any:
                    return await connection.put(path, body)

            self_found = self.found
            return await super().renew(Stale())  # type: ignore[arg-type]

    play(certificates, scene)


def test_a_lease_that_is_released_is_taken_at_once(certificates: Certificates) -> None:
    async def scene(frontends: Frontends) -> None:
        assert await frontends.renew("a")
        await frontends.leases["a"].release(frontends.connection)
        assert frontends.held == []
        assert await frontends.renew("b")
        # A frontend that does not hold the lease has nothing to release.
        await frontends.leases["a"].release(frontends.connection)
        assert frontends.spec["holderIdentity"] == "b"

    play(certificates, scene)


def test_without_the_right_it_is_not_held(certificates: Certificates) -> None:
    async def scene(frontends: Frontends) -> None:
        frontends.server.denied = {("create", "leases")}
        with pytest.raises(ApiFailure) as caught:
            await frontends.renew("a")
        assert caught.value.kind is FailureKind.FORBIDDEN
        assert frontends.held == []

    play(certificates, scene)
