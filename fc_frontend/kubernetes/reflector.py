"""A copy of all objects of one resource, kept up to date by a watch.

Follows KEP-3157 (streaming lists), KEP-956 (bookmarks) and the rules of
kubernetes.io/docs/reference/using-api/api-concepts.  While the server is unavailable or fails, the
copy is kept unchanged: absence is not evidence.  Objects are removed only by an event, or by a
complete list.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from fc_frontend.kubernetes.backoff import Backoff
from fc_frontend.kubernetes.client import ApiClient, ApiConnection, object_failure
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.plan.cluster_objects import ObjectKey, parse_key

PAGE_OBJECTS = 500
"""Objects in a page of a list: client-go's default."""
MIN_WATCH_SECONDS = 300
MAX_WATCH_SECONDS = 600
"""The range of the random watch timeout, as in client-go."""
SILENT_SECONDS = 150.0
"""API servers send a bookmark about every minute.  One that is silent for longer is gone, or waits
for a resourceVersion from the future (a restored etcd), which it never reports.
"""
SYNC_SILENT_SECONDS = 30.0
"""The same while the initial objects are sent, before the bookmark that ends them."""
_INITIAL_END = "k8s.io/initial-events-end"

T = TypeVar("T")


class ObjectChange(NamedTuple, Generic[T]):
    """A changed object.  `before` is None for a new one, `after` for a deleted one."""

    key: ObjectKey
    before: T | None
    after: T | None


@dataclass(frozen=True, slots=True)
class ApiResource(Generic[T]):
    """A resource: its path, and how an object is reduced.

    `parse` returns None for objects that are not needed, which then count as absent.
    """

    path: str
    parse: Callable[[Any], T | None]
    query: Mapping[str, str] = field(default_factory=dict)
    """Further query parameters, such as a `labelSelector`."""


@dataclass(slots=True)
class ReflectorStatus:
    """The status of a reflector.  Times are on the monotonic clock.

    `is_synced` is set after the first complete list.  `is_watching` is set while a watch is open
    and working.  `current_at` is when the server last sent data: while it is silent or unavailable,
    the copy is at least as old as that.  `lists` counts complete lists by the kind of failure that
    made them necessary, `failures` counts failures by kind.  `failure` is the last failure that
    caused a delay, until a watch is open again: a complete list alone does not clear it.
    """

    is_synced: bool = False
    is_watching: bool = False
    current_at: float | None = None
    events: int = 0
    lists: Counter[FailureKind | None] = field(default_factory=Counter)
    failures: Counter[FailureKind] = field(default_factory=Counter)
    failure: ApiFailure | None = None


class Reflector(Generic[T]):
    """Watches one resource until its task is cancelled.

    `changed` is called with the changes, synchronously and within the event loop: after each read
    of the stream with all its events, and once after a complete list.
    """

    def __init__(
        self,
        client: ApiClient,
        resource: ApiResource[T],
        changed: Callable[[Sequence[ObjectChange[T]]], None],
        *,
        backoff: Backoff | None = None,
        silence: float = SILENT_SECONDS,
        sync_silence: float = SYNC_SILENT_SECONDS,
    ) -> None:
        self.status = ReflectorStatus()
        self._store: dict[ObjectKey, T] = {}
        self._filling: dict[ObjectKey, T] | None = None
        self._client = client
        self._resource = resource
        self._changed = changed
        self._backoff = backoff or Backoff()
        self._silence = silence
        self._sync_silence = sync_silence
        self._version: str | None = None
        self._can_stream = True
        self._is_paged = True
        self._reason: FailureKind | None = None

    @property
    def store(self) -> Mapping[ObjectKey, T]:
        """All objects.  Events change the mapping in place; a list replaces it."""
        return self._store

    async def run(self) -> NoReturn:
        """List and watch, and start over whenever a watch ends or fails."""
        has_failed = renew = False
        while True:
            began = time.monotonic()
            try:
                async with self._client.connect(renew=renew) as connection:
                    renew = False
                    await self._follow(connection, is_checked=not has_failed)
                has_failed = False
            except ApiFailure as failure:
                # Before the delay, during which there is no watch.
                self._end_watch()
                has_failed = True
                renew = failure.kind in _RENEW
                self.status.failures[failure.kind] += 1
                if not self._has_other_way(failure.kind):
                    self.status.failure = failure
                    lasted = time.monotonic() - began
                    await asyncio.sleep(self._backoff.failed(lasted, failure.retry_after))
            finally:
                self._end_watch()

    def _end_watch(self) -> None:
        self._filling = None
        self.status.is_watching = False

    def _has_other_way(self, kind: FailureKind) -> bool:
        """Choose how to continue after a failure; return whether that needs no delay."""
        if self._version is not None:
            if kind in _LISTS_AGAIN:
                self._version, self._reason = None, kind
                return True
        elif self._can_stream and kind in _REFUSES_STREAM:
            # Servers before 1.32 reject a streaming list, or ignore it and never mark its end.
            self._can_stream = False
            return True
        elif self._is_paged and kind is FailureKind.EXPIRED:
            # The list took longer than the server keeps the version of its first page.
            self._is_paged = False
            return True
        return False

    async def _follow(self, connection: ApiConnection, *, is_checked: bool) -> None:
        """Watch until the server ends it, after a list if there is no version to start from."""
        if self._version is None and self._can_stream:
            self._filling = {}
        elif self._version is None:
            await self._list(connection)
        elif not is_checked:
            await self._check_version(connection)
        began = time.monotonic()
        events = self.status.events
        await self._watch(connection)
        if self._filling is not None:
            raise ApiFailure(FailureKind.CLOSED, "the stream ended before all objects were sent")
        if time.monotonic() - began < 1.0 and events == self.status.events:
            raise ApiFailure(FailureKind.CLOSED, "the watch ended at once")

    async def _check_version(self, connection: ApiConnection) -> None:
        """Raise a failure of kind FUTURE if the server has older data than this copy.

        A watch from such a version stays open without events.
        """
        assert self._version is not None
        await connection.get(
            self._resource.path,
            {
                **self._resource.query,
                "limit": "1",
                "resourceVersion": self._version,
                "resourceVersionMatch": "NotOlderThan",
            },
        )

    async def _list(self, connection: ApiConnection) -> None:
        """Fetch all objects in pages, which replace the copy once the last one has arrived."""
        store: dict[ObjectKey, T] = {}
        query = dict(self._resource.query)
        if self._is_paged:
            query["limit"] = str(PAGE_OBJECTS)
        while True:
            page = await connection.get(self._resource.path, query)
            items = page.get("items")
            if not isinstance(items, list | None):
                raise ApiFailure(FailureKind.PROTOCOL, "the answer is not a list of objects")
            for item in items or ():
                key, parsed = self._parsed(item)
                if parsed is not None:
                    store[key] = parsed
            self.status.current_at = time.monotonic()
            version = _version(page)
            if not (more := page["metadata"].get("continue")):
                break
            query["continue"] = str(more)
        self._is_paged = True
        self._swap(store, version)

    async def _watch(self, connection: ApiConnection) -> None:
        query = {
            **self._resource.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(MIN_WATCH_SECONDS, MAX_WATCH_SECONDS)),
        }
        if self._version is not None:
            query["resourceVersion"] = self._version
        else:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        stream = connection.watch(self._resource.path, query, self._allowed_silence)
        async with contextlib.aclosing(stream) as batches:
            async for lines in batches:
                self.status.current_at = time.monotonic()
                self._take(lines)
                if self._filling is None:
                    self.status.failure = None
                    self.status.is_watching = True

    def _allowed_silence(self) -> float:
        return self._silence if self._filling is None else self._sync_silence

    def _take(self, lines: Sequence[bytes]) -> None:
        """Apply the events in `lines` up to the first invalid one, and report their changes."""
        changes: list[ObjectChange[T]] = []
        try:
            for line in lines:
                if line.strip():
                    self._apply(*_event(line), changes)
        finally:
            if changes:
                self._changed(changes)

    def _apply(self, kind: str, item: Any, changes: list[ObjectChange[T]]) -> None:
        version = _version(item)
        if kind == "BOOKMARK":
            if self._filling is not None and _is_initial_end(item):
                self._swap(self._filling, version)
            elif self._filling is None:
                self._version = version
            return
        self.status.events += 1
        key, parsed = self._parsed(item)
        store = self._store if self._filling is None else self._filling
        before = store.get(key)
        if kind == "DELETED" or parsed is None:
            parsed = None
            store.pop(key, None)
        elif parsed != before:
            store[key] = parsed
        if self._filling is None:
            self._version = version
            if parsed != before:
                changes.append(ObjectChange(key, before, parsed))

    def _parsed(self, item: Any) -> tuple[ObjectKey, T | None]:
        key = parse_key(item)
        if key is None:
            raise ApiFailure(FailureKind.PROTOCOL, "an object has no name")
        return key, self._resource.parse(item)

    def _swap(self, store: dict[ObjectKey, T], version: str) -> None:
        """Replace the copy by a complete list.  Objects that are equal keep their identity."""
        before = self._store
        changes = [ObjectChange(key, old, None) for key, old in before.items() if key not in store]
        for key, new in store.items():
            old = before.get(key)
            if old == new and old is not None:
                store[key] = old
            else:
                changes.append(ObjectChange(key, old, new))
        self._store, self._version, self._filling = store, version, None
        self.status.is_synced = True
        self.status.lists[self._reason] += 1
        self._reason = None
        if changes:
            self._changed(changes)


_LISTS_AGAIN = (FailureKind.EXPIRED, FailureKind.FUTURE, FailureKind.SILENT)
"""Failures after which a watch from the version of the copy would miss changes."""
_REFUSES_STREAM = (FailureKind.UNSUPPORTED, FailureKind.MISSING, FailureKind.SILENT)
"""Failures caused by a server that does not support `sendInitialEvents`."""
_RENEW = (FailureKind.UNAUTHORIZED, FailureKind.TLS, FailureKind.CREDENTIALS)
"""Failures that new credentials may resolve."""


def _event(line: bytes) -> tuple[str, Any]:
    """Return the type and object of an event.  Raises the failure in an ERROR event."""
    try:
        event = json.loads(line)
        kind, item = event["type"], event["object"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ApiFailure(FailureKind.PROTOCOL, "an event is not of the Kubernetes API") from None
    if kind == "ERROR":
        status = item if isinstance(item, dict) else {}
        code = status.get("code")
        raise object_failure(status, code if isinstance(code, int) else 500)
    if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
        raise ApiFailure(FailureKind.PROTOCOL, "an event has an unknown type")
    return kind, item


def _version(item: Any) -> str:
    """Return the resourceVersion of an object.

    It is opaque: never compare it or compute with it.
    """
    metadata = item.get("metadata") if isinstance(item, dict) else None
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not version:
        raise ApiFailure(FailureKind.PROTOCOL, "an object has no resourceVersion")
    return version


def _is_initial_end(item: Any) -> bool:
    annotations = item["metadata"].get("annotations")
    return isinstance(annotations, dict) and annotations.get(_INITIAL_END) == "true"
