"""The copy of the API's objects is complete and current, and a failure never empties it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from fc_frontend.kubernetes.access import ApiAccess, Credential, FixedCredentials
from fc_frontend.kubernetes.backoff import MAX_SECONDS, Backoff
from fc_frontend.kubernetes.client import ApiClient
from fc_frontend.kubernetes.failures import FailureKind
from fc_frontend.kubernetes.reflector import ApiResource, ObjectChange, Reflector
from fc_frontend.plan.cluster_objects import ObjectKey, Slice, parse_slice
from tests.conftest import until_in_loop
from tests.support.api_objects import ApiError, Json, Objects
from tests.support.api_server import ApiServer, Fault
from tests.support.certificates import Certificates

SLICES = ApiResource("/apis/discovery.k8s.io/v1/endpointslices", parse_slice)


class NoWait(Backoff):
    """A backoff that records the waits, and waits for a hundredth of them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def failed(self, lasted: float, retry_after: float = 0.0) -> float:
        self.waits.append(super().failed(lasted, retry_after))
        return self.waits[-1] / 100


@dataclass
class Scene:
    """An API server, and a reflector that follows its slices."""

    server: ApiServer
    reflector: Reflector[Slice]
    backoff: NoWait
    changes: list[ObjectChange[Slice]] = field(default_factory=list)
    changes_seen: Callable[[], object] = lambda: None

    def changed(self, changes: Sequence[ObjectChange[Slice]]) -> None:
        """Record the changes that the reflector reports."""
        self.changes.extend(changes)
        self.changes_seen()

    @property
    def objects(self) -> Objects:
        return self.server.objects

    def addresses(self) -> dict[str, list[str]]:
        return {
            key.name: [endpoint.address for endpoint in item.endpoints]
            for key, item in sorted(self.reflector.store.items())
        }

    def put(self, name: str, *addresses: str) -> None:
        """Create or update a slice."""
        key = ("endpointslices", "shop", name)
        if key in self.objects.now:
            self.objects.update(key, item(name, *addresses))
        else:
            self.objects.create("endpointslices", item(name, *addresses))

    def remove(self, name: str) -> None:
        self.objects.delete(("endpointslices", "shop", name))

    async def until(self, found: Callable[[], object]) -> None:
        """Wait until `found` is true."""
        await until_in_loop(found)

    async def synced(self, **wanted: list[str]) -> None:
        """Wait until the copy equals `wanted`."""
        await self.until(lambda: self.addresses() == wanted)


def item(name: str, *addresses: str) -> Json:
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses] or None,
        "ports": [{"name": "http", "port": 8080}],
    }


@asynccontextmanager
async def scene(
    certificates: Certificates, *, silence: float = 60.0, sync_silence: float = 60.0, **more: Any
) -> AsyncIterator[Scene]:
    server = ApiServer(**more)
    async with server.serving(certificates.server_context()):
        access = ApiAccess(
            host="127.0.0.1",
            port=server.port,
            ca=certificates.path("ca.crt").read_bytes(),
            credentials=FixedCredentials(Credential(token="secret")),
        )
        backoff = NoWait()

        def changed(changes: Sequence[ObjectChange[Slice]]) -> None:
            stage.changed(changes)

        reflector = Reflector(
            ApiClient(lambda: access),
            SLICES,
            changed,
            backoff=backoff,
            silence=silence,
            sync_silence=sync_silence,
        )
        stage = Scene(server, reflector, backoff)
        task = asyncio.create_task(reflector.run())
        try:
            yield stage
        finally:
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(result, asyncio.CancelledError), result


@pytest.mark.parametrize("streams_lists", [True, False])
def test_the_copy_has_all_objects_and_follows_each_change(
    certificates: Certificates, streams_lists: bool
) -> None:
    async def played() -> None:
        async with scene(certificates, streams_lists=streams_lists) as stage:
            await stage.until(lambda: stage.reflector.status.is_synced)
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])
            stage.put("a", "10.1.0.1", "10.1.0.2")
            stage.put("b", "10.1.0.3")
            await stage.synced(a=["10.1.0.1", "10.1.0.2"], b=["10.1.0.3"])
            stage.remove("a")
            await stage.synced(b=["10.1.0.3"])
            key = ObjectKey("shop", "a")
            seen = [
                (change.before is None, change.after is None)
                for change in stage.changes
                if change.key == key
            ]
            assert seen == [(True, False), (False, False), (False, True)]
            assert stage.reflector.status.lists == {None: 1}
            assert not stage.backoff.waits

    asyncio.run(played())


@pytest.mark.parametrize("streams_lists", [True, False])
def test_a_first_list_is_reported_once_when_it_is_complete(
    certificates: Certificates, streams_lists: bool
) -> None:
    async def played() -> None:
        objects = Objects()
        for number in range(1203):
            objects.create("endpointslices", item(f"s{number:04}", "10.1.0.1"))
        async with scene(certificates, objects=objects, streams_lists=streams_lists) as stage:
            await stage.until(lambda: stage.reflector.status.is_synced)
            assert len(stage.reflector.store) == len(stage.changes) == 1203
            pages = [line for line in stage.server.requests if "watch=" not in line]
            assert len(pages) == (0 if streams_lists else 3)

    asyncio.run(played())


def test_a_refused_stream_is_no_failure_while_pages_are_listed(certificates: Certificates) -> None:
    async def played() -> None:
        async with scene(certificates, streams_lists=False) as stage:
            status = stage.reflector.status
            await stage.until(lambda: status.failures[FailureKind.UNSUPPORTED])
            assert status.failure is None
            await stage.until(lambda: status.is_watching)

    asyncio.run(played())


def test_a_failure_ends_when_a_watch_is_open_and_not_with_a_list(
    certificates: Certificates,
) -> None:
    async def played() -> None:
        async with scene(certificates, streams_lists=False) as stage:
            status = stage.reflector.status
            await stage.until(lambda: status.is_watching)
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])
            stage.server.fault = Fault.KILL
            stage.server.kill()
            await stage.until(lambda: status.failure is not None)
            stage.put("a", "10.1.0.2")
            stage.server.errors.append(ApiError(410, "Expired", "too old"))
            seen: list[bool] = []
            stage.changes_seen = lambda: seen.append(status.failure is not None)
            stage.server.fault = None
            await stage.synced(a=["10.1.0.2"])
            assert seen == [True]
            assert status.lists == {None: 1, FailureKind.EXPIRED: 1}
            await stage.until(lambda: status.is_watching)
            assert status.failure is None

    asyncio.run(played())


def test_a_server_that_never_marks_the_end_of_its_objects_is_listed(
    certificates: Certificates,
) -> None:
    async def played() -> None:
        async with scene(certificates, marks_initial_end=False, sync_silence=0.1) as stage:
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])
            stage.put("a", "10.1.0.2")
            await stage.synced(a=["10.1.0.2"])
            assert stage.reflector.status.failures == {FailureKind.SILENT: 1}

    asyncio.run(played())


def test_a_broken_connection_is_continued_from_the_last_version(
    certificates: Certificates,
) -> None:
    async def played() -> None:
        async with scene(certificates) as stage:
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])
            stage.server.fault = Fault.KILL
            stage.server.kill()
            await stage.until(lambda: len(stage.backoff.waits) > 2)
            assert not stage.reflector.status.is_watching
            assert stage.reflector.status.failure is not None
            assert stage.addresses() == {"a": ["10.1.0.1"]}
            stage.remove("a")
            stage.put("b", "10.1.0.2")
            stage.server.fault = None
            await stage.synced(b=["10.1.0.2"])
            await stage.until(lambda: stage.reflector.status.failure is None)
            assert stage.reflector.status.lists == {None: 1}

    asyncio.run(played())


def test_an_expired_version_is_listed_again_and_deletions_are_found(
    certificates: Certificates,
) -> None:
    async def played() -> None:
        async with scene(certificates) as stage:
            stage.put("a", "10.1.0.1")
            stage.put("b", "10.1.0.2")
            await stage.synced(a=["10.1.0.1"], b=["10.1.0.2"])
            kept = stage.reflector.store[ObjectKey("shop", "b")]
            stage.server.fault = Fault.KILL
            stage.server.kill()
            await stage.until(lambda: stage.backoff.waits)
            stage.remove("a")
            stage.put("c", "10.1.0.3")
            stage.objects.forget()
            stage.changes.clear()
            stage.server.fault = None
            await stage.synced(b=["10.1.0.2"], c=["10.1.0.3"])
            assert stage.reflector.status.lists == {None: 1, FailureKind.EXPIRED: 1}
            assert {change.key.name for change in stage.changes} == {"a", "c"}
            assert stage.reflector.store[ObjectKey("shop", "b")] is kept

    asyncio.run(played())


def test_410_as_a_status_is_listed_again_too(certificates: Certificates) -> None:
    async def played() -> None:
        async with scene(certificates) as stage:
            await stage.until(lambda: stage.reflector.status.is_watching)
            stage.server.errors = [ApiError(410, "Expired", "too old")]
            stage.server.kill()
            await stage.until(lambda: stage.reflector.status.lists[FailureKind.EXPIRED] == 1)

    asyncio.run(played())


def test_pages_that_expire_are_followed_by_a_list_in_one_piece(certificates: Certificates) -> None:
    async def played() -> None:
        objects = Objects()
        for number in range(600):
            objects.create("endpointslices", item(f"s{number:04}", "10.1.0.1"))
        async with scene(certificates, objects=objects, streams_lists=False) as stage:
            # The first request is for the stream and is refused; the first page follows.
            await stage.until(lambda: len(stage.server.requests) >= 2)
            stage.objects.create("endpointslices", item("new", "10.1.0.2"))
            stage.objects.forget()
            await stage.until(lambda: stage.reflector.status.is_synced)
            assert len(stage.reflector.store) == 601

    asyncio.run(played())


def test_a_restored_server_with_older_data_is_listed_again(certificates: Certificates) -> None:
    async def played() -> None:
        async with scene(certificates) as stage:
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])
            stage.put("a", "10.1.0.2")
            await stage.synced(a=["10.1.0.2"])
            stage.server.fault = Fault.KILL
            stage.server.kill()
            await stage.until(lambda: stage.backoff.waits)
            stage.objects.restore(50)
            stage.server.fault = None
            await stage.until(lambda: stage.reflector.status.lists[FailureKind.FUTURE] == 1)
            stage.put("a", "10.1.0.3")
            await stage.synced(a=["10.1.0.3"])

    asyncio.run(played())


def test_a_silent_watch_is_given_up_and_listed_again(certificates: Certificates) -> None:
    async def played() -> None:
        async with scene(certificates, silence=0.2) as stage:
            await stage.until(lambda: stage.reflector.status.lists[FailureKind.SILENT] >= 2)
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])

    asyncio.run(played())


def test_bookmarks_keep_a_quiet_watch_open_and_the_version_current(
    certificates: Certificates,
) -> None:
    async def played() -> None:
        async with scene(certificates, silence=5.0, bookmark_seconds=0.02) as stage:
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])
            for _ in range(5):
                stage.objects.create("services", {"metadata": {"name": f"{random.random()}"}})
            version = stage.objects.version
            first = stage.reflector.status.current_at
            assert first is not None
            await stage.until(lambda: (stage.reflector.status.current_at or 0) > first + 0.1)
            stage.objects.forget()
            stage.server.kill()
            await stage.until(lambda: any(f"resourceVersion={version}" in line
                                          for line in stage.server.requests))  # fmt: skip
            await stage.until(lambda: stage.reflector.status.is_watching)
            assert stage.reflector.status.lists == {None: 1}

    asyncio.run(played())


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.KILL, FailureKind.CLOSED),
        (Fault.GARBAGE, FailureKind.PROTOCOL),
        (Fault.BAD_EVENT, FailureKind.PROTOCOL),
    ],
)
def test_a_fault_keeps_the_copy_and_is_reported(
    certificates: Certificates, fault: Fault, kind: FailureKind
) -> None:
    async def played() -> None:
        async with scene(certificates) as stage:
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])
            stage.changes.clear()
            stage.server.fault = fault
            stage.server.kill()
            await stage.until(lambda: stage.reflector.status.failures[kind] >= 2)
            assert stage.addresses() == {"a": ["10.1.0.1"]}
            assert not stage.changes
            stage.server.fault = None
            stage.put("a", "10.1.0.2")
            await stage.synced(a=["10.1.0.2"])

    asyncio.run(played())


def test_a_list_that_is_cut_off_changes_nothing(certificates: Certificates) -> None:
    async def played() -> None:
        async with scene(certificates, streams_lists=False) as stage:
            stage.put("a", "10.1.0.1")
            await stage.synced(a=["10.1.0.1"])
            stage.server.fault = Fault.CUT
            stage.objects.forget()
            stage.server.kill()
            await stage.until(lambda: stage.reflector.status.failures[FailureKind.CLOSED] >= 2)
            assert stage.addresses() == {"a": ["10.1.0.1"]}

    asyncio.run(played())


@pytest.mark.parametrize(
    ("error", "kind", "least"),
    [
        (ApiError(500, "InternalError", "etcd"), FailureKind.SERVER, 0.0),
        (ApiError(503, "ServiceUnavailable", "off"), FailureKind.SERVER, 0.0),
        (ApiError(403, "Forbidden", "no"), FailureKind.FORBIDDEN, 0.0),
        (ApiError(429, "TooManyRequests", "slow", retry_after=7), FailureKind.THROTTLED, 7.0),
    ],
)
def test_refusals_are_tried_again_no_sooner_than_asked_for(
    certificates: Certificates, error: ApiError, kind: FailureKind, least: float
) -> None:
    async def played() -> None:
        async with scene(certificates, errors=[error]) as stage:
            await stage.until(lambda: stage.reflector.status.is_synced)
            assert stage.reflector.status.failures == {kind: 1}
            assert stage.reflector.status.failure is None
            assert stage.backoff.waits[0] >= least

    asyncio.run(played())


def test_waits_double_up_to_a_limit_with_jitter_and_begin_anew_after_good_minutes() -> None:
    backoff = Backoff(random.Random(1))
    waits: Sequence[float] = [backoff.failed(0.0) for _ in range(40)]
    assert 0.1 <= waits[0] <= 0.2
    assert all(0 < wait <= MAX_SECONDS for wait in waits)
    assert min(waits[10:]) >= MAX_SECONDS / 2
    assert len(set(waits[10:])) > 10
    assert backoff.failed(119.0) >= MAX_SECONDS / 2
    assert backoff.failed(120.0) <= 0.2
    assert 60.0 <= backoff.failed(0.0, retry_after=60.0) <= 72.0
