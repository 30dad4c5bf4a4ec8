"""The Services and EndpointSlices of a cluster, kept current by watches of the Kubernetes API."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fc_frontend.balancer.assign import LoadBalancers
from fc_frontend.errors import Unavailable
from fc_frontend.kubernetes.access import ApiAccess
from fc_frontend.kubernetes.client import ApiClient
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.kubernetes.kubeconfig import access_from_files, read_kubeconfig
from fc_frontend.kubernetes.reflector import (
    ApiResource,
    ObjectChange,
    Reflector,
    ReflectorStatus,
)
from fc_frontend.model.load_balancers import LoadBalancerRequest
from fc_frontend.plan.cluster_objects import (
    SERVICE_LABEL,
    KubeNode,
    KubeService,
    ObjectKey,
    Slice,
    parse_node,
    parse_service,
    parse_slice,
)
from fc_frontend.plan.model import ApiSettings

SERVICES: ApiResource[KubeService] = ApiResource("/api/v1/services", parse_service)
SLICES: ApiResource[Slice] = ApiResource(
    "/apis/discovery.k8s.io/v1/endpointslices", parse_slice, {"labelSelector": SERVICE_LABEL}
)
NODES: ApiResource[KubeNode] = ApiResource("/api/v1/nodes", parse_node)
ANY_NODE = ObjectKey("", "")
"""The key that `take` returns when nodes changed; no Service has this name."""
RETRY_SECONDS = 5.0
"""The delay before another attempt to read credentials that could not be read at all."""
SETTLED_SECONDS = 1.0
"""How long watches have to be open after a failure to count as current again."""
STALE_SECONDS = 10.0
"""After this time without an open watch, other sources may add pods."""


def read_access(api: ApiSettings) -> ApiAccess:
    """Return the access to the API server.  Raises `Unavailable`."""
    if api.kubeconfig is not None:
        return read_kubeconfig(api.kubeconfig, api.context)
    assert api.server is not None
    return access_from_files(
        api.server,
        ca_file=api.ca_file,
        token_file=api.token_file,
        client_certificate=api.client_certificate,
        client_key=api.client_key,
        proxy_url=api.proxy_url,
        tls_server_name=api.tls_server_name,
    )


class ClusterWatch:
    """A copy of all Services and EndpointSlices.  The last known state is kept during failures."""

    def __init__(
        self,
        api: ApiSettings,
        clock: Callable[[], float] = time.monotonic,
        event: asyncio.Event | None = None,
    ) -> None:
        """`event` is set whenever `take` has changes to return."""
        self._api = api
        self._clock = clock
        self._services: Reflector[KubeService] | None = None
        self._slices: Reflector[Slice] | None = None
        self._nodes: Reflector[KubeNode] | None = None
        self._wants_nodes = asyncio.Event()
        self._by_service: dict[ObjectKey, dict[ObjectKey, Slice]] = {}
        self._changed: set[ObjectKey] = set()
        self._balanced: dict[ObjectKey, LoadBalancerRequest] = {}
        self._balanced_version = 0
        self._since: float | None = None
        self._event = event or asyncio.Event()
        self._synced = asyncio.Event()
        self._refused: ApiFailure | None = None
        self._broken_at: float | None = None
        self._open_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._client: ApiClient | None = None

    def start(self) -> None:
        """Start watching; call within a running event loop."""
        self._task = asyncio.create_task(self._run(), name="cluster-api")

    def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def ended(self) -> None:
        """Stop watching, and wait until all connections are closed."""
        task = self._task
        self.close()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                client = ApiClient(lambda: read_access(self._api))
            except Unavailable as exc:
                self._refused = ApiFailure(FailureKind.CREDENTIALS, exc.problem.message)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._refused = None
            self._client = client
            self._services = Reflector(client, SERVICES, self._services_changed)
            self._slices = Reflector(client, SLICES, self._slices_changed)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._services.run())
                group.create_task(self._slices.run())
                group.create_task(self._run_nodes(client))

    async def _run_nodes(self, client: ApiClient) -> None:
        await self._wants_nodes.wait()
        self._nodes = Reflector(client, NODES, lambda _: self._note([ANY_NODE]))
        await self._nodes.run()

    def follow_nodes(self) -> None:
        """Watch nodes as well, which needs a permission of its own."""
        self._wants_nodes.set()

    @property
    def nodes(self) -> tuple[KubeNode, ...] | None:
        """All nodes that load balancers may use; None until the first complete list."""
        if self._nodes is None or not self._nodes.status.is_synced:
            return None
        return tuple(self._nodes.store.values())

    def _services_changed(self, changes: Sequence[ObjectChange[KubeService]]) -> None:
        for key, _, service in changes:
            request = service.load_balancer if service is not None else None
            if request == self._balanced.get(key):
                continue
            self._balanced_version += 1
            if request is None:
                del self._balanced[key]
            else:
                self._balanced[key] = request
        self._note(change.key for change in changes)

    @property
    def load_balancers(self) -> LoadBalancers | None:
        """The Services of type LoadBalancer; None until the first complete list of Services."""
        if not self.is_synced:
            return None
        return LoadBalancers(self._balanced_version, self._balanced)

    def _slices_changed(self, changes: Sequence[ObjectChange[Slice]]) -> None:
        keys: list[ObjectKey] = []
        for key, before, after in changes:
            if before is not None:
                owner = ObjectKey(key.namespace, before.service)
                slices = self._by_service.get(owner, {})
                slices.pop(key, None)
                if not slices:
                    self._by_service.pop(owner, None)
                keys.append(owner)
            if after is not None:
                owner = ObjectKey(key.namespace, after.service)
                self._by_service.setdefault(owner, {})[key] = after
                keys.append(owner)
        self._note(keys)

    def _note(self, keys: Iterator[ObjectKey] | list[ObjectKey]) -> None:
        self._changed.update(keys)
        if self._since is None:
            self._since = self._clock()
        self._event.set()
        if self.is_synced:
            self._synced.set()

    @property
    def statuses(self) -> dict[str, ReflectorStatus]:
        """The status of each reflector, by resource; empty until credentials were read."""
        reflectors: dict[str, Reflector[Any] | None] = {
            "services": self._services,
            "endpointslices": self._slices,
            "nodes": self._nodes,
        }
        return {name: each.status for name, each in reflectors.items() if each is not None}

    @property
    def is_synced(self) -> bool:
        """Whether a complete list of every watched resource has been received."""
        statuses = self.statuses
        wanted = 3 if self._wants_nodes.is_set() else 2
        return len(statuses) == wanted and all(each.is_synced for each in statuses.values())

    @property
    def is_current(self) -> bool:
        """Whether all watches are open, or were within `STALE_SECONDS`.

        A watch that ends as soon as it is open does not count.
        """
        if not self.is_synced:
            return False
        now = self._clock()
        if not all(status.is_watching for status in self.statuses.values()):
            self._open_since = None
            if self._broken_at is None:
                self._broken_at = now
        elif self._open_since is None:
            self._open_since = now
        if self._open_since is not None and now - self._open_since >= SETTLED_SECONDS:
            self._broken_at = None
        return self._broken_at is None or now - self._broken_at < STALE_SECONDS

    @property
    def age(self) -> float | None:
        """Seconds since the API server last sent data; None if a resource never received any."""
        said = [status.current_at for status in self.statuses.values()]
        times = [at for at in said if at is not None]
        return time.monotonic() - min(times) if times and len(times) == len(said) else None

    @property
    def failure(self) -> ApiFailure | None:
        """The current failure; None if there is none."""
        if self._refused is not None:
            return self._refused
        return next((s.failure for s in self.statuses.values() if s.failure is not None), None)

    @property
    def expires(self) -> float | None:
        """When the credentials in use expire, in Unix time; None if unknown."""
        return self._client.expires if self._client else None

    def service(self, key: ObjectKey) -> KubeService | None:
        """Return the Service with this key; None if there is none."""
        return self._services.store.get(key) if self._services else None

    def slices(self, key: ObjectKey) -> tuple[Slice, ...]:
        """Return the EndpointSlices of the Service with this key."""
        return tuple(self._by_service.get(key, {}).values())

    def take(self) -> tuple[frozenset[ObjectKey], float | None]:
        """Return the Services changed since the last call, and the time of the first change."""
        keys, since = frozenset(self._changed), self._since
        self._changed.clear()
        self._since = None
        self._event.clear()
        return keys, since

    async def synced(self, seconds: float) -> bool:
        """Wait at most `seconds` for the first complete lists; return whether they have arrived.

        Returns early if the API server refuses the requests.
        """
        deadline = self._clock() + seconds
        while not self.is_synced and (rest := deadline - self._clock()) > 0:
            if self.failure is not None and self.failure.kind in _FINAL:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._synced.wait(), min(rest, 0.1))
        return self.is_synced


_FINAL = (FailureKind.CREDENTIALS, FailureKind.UNAUTHORIZED, FailureKind.FORBIDDEN, FailureKind.TLS)
"""Failures that waiting does not resolve."""
