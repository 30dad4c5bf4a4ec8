"""Write the status of Services of type LoadBalancer, by the one frontend that holds the Lease.

An address is written after the running HAProxy has confirmed that it is bound.  A status that
others overwrite is written again, with increasing delays.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from fc_frontend.balancer.assign import PROXY_MODE, Assignment
from fc_frontend.balancer.declare import key_of_origin, place_of, unit_name
from fc_frontend.balancer.requests import AddressGap
from fc_frontend.balancer.status import (
    NO_LOAD_BALANCER,
    ServedReason,
    ServiceStatus,
    desired_status,
)
from fc_frontend.balancer.wording import words_of
from fc_frontend.daemon.load_balancers import LoadBalancerSource
from fc_frontend.daemon.state import DaemonState
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.errors import Unavailable
from fc_frontend.kubernetes.client import ApiClient, ApiConnection
from fc_frontend.kubernetes.cluster_watch import read_access
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.kubernetes.lease import LEASE_NAMESPACE, LEASE_SECONDS, LeaseHolder
from fc_frontend.kubernetes.service_status import (
    EventReason,
    Written,
    write_event,
    write_status,
)
from fc_frontend.model.load_balancer_state import (
    BalancedService,
    LoadBalancerState,
    LoadBalancerView,
)
from fc_frontend.model.load_balancers import (
    IpAddress,
    LoadBalancerRequest,
    LoadBalancerSettings,
)
from fc_frontend.model.units import UnitKind
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.pipeline import Base, served_binds
from fc_frontend.plan.addresses import NotAnAddress, parse_address
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.model import ApiSettings, Settings
from fc_frontend.text import one_line, printable

_PENDING = "Pending"
"""Counted for a Service that has no condition yet."""
_RELEASE_SECONDS = 2.0
_ENDS_THE_PASS = (
    FailureKind.CONNECT,
    FailureKind.TLS,
    FailureKind.TIMEOUT,
    FailureKind.CLOSED,
    FailureKind.PROTOCOL,
    FailureKind.UNAUTHORIZED,
    FailureKind.CREDENTIALS,
    FailureKind.THROTTLED,
)
"""Failures that do not concern a single Service."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
"""Maximum seconds before an overwritten or refused status is written again."""
_WATCH_SECONDS = 10.0
"""Seconds during which the watch may not have shown a written status yet."""


@dataclass(slots=True)
class _Record:
    """A status written for a Service, the state before it, and the time of the next write."""

    status: ServiceStatus
    before: LoadBalancerRequest | None
    at: float
    is_seen: bool = False
    pause: float = _FIRST_PAUSE
    not_before: float = 0.0
    overwritten: int = 0


class StatusWriter:
    """Keeps the statuses of Services as `desired_status` defines, while it holds the Lease."""

    def __init__(
        self,
        source: LoadBalancerSource,
        discovery: PodDiscovery,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._discovery = discovery
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._host = printable(socket.gethostname())
        self._identity = f"{self._host}_{secrets.token_hex(8)}"
        self._made_for: tuple[ApiSettings, str] | None = None
        self._client: ApiClient | None = None
        self._lease: LeaseHolder | None = None
        self._was_leader = False
        self._records: dict[ObjectKey, _Record] = {}
        self._keeps_mode = True
        self._postponed: dict[ObjectKey, tuple[float, float]] = {}
        """Until when a Service is left alone, and the length of that pause."""
        self._settled: tuple[object, ...] | None = None
        """The inputs for which nothing was left to write."""
        self._waits = False
        self._former: LoadBalancerSettings | None = None
        """The last settings of the load balancer."""
        self._left_at: float | None = None
        """When the Lease was left because `load_balancer` was removed."""
        self._owned: set[ObjectKey] = set()
        """The Services that got their address here since the start."""
        self._bound: tuple[str, Mapping[str, frozenset[tuple[IpAddress, int]]]] | None = None
        self._state = LoadBalancerState()

    @property
    def is_leader(self) -> bool:
        """Whether this frontend writes statuses."""
        return self._lease is not None and self._lease.is_held

    @property
    def view(self) -> LoadBalancerView | None:
        """All Services that get their address here; None if `load_balancer` is not set."""
        if not self._source.is_on:
            return None
        holder = self._lease.holder if self._lease is not None else ""
        services = tuple(map(self._viewed, self._source.services.items()))
        return LoadBalancerView(is_leader=self.is_leader, holder=holder, services=services)

    def _viewed(self, item: tuple[ObjectKey, LoadBalancerRequest]) -> BalancedService:
        key, request = item
        assignment = self._source.assignments.get(key, Assignment())
        record = self._records.get(key)
        return BalancedService(
            namespace=key.namespace,
            name=key.name,
            addresses=tuple(str(each.address) for each in assignment.addresses),
            published=tuple(one_line(each.address) for each in request.ingress),
            condition=one_line(request.condition.cause) if request.condition is not None else "",
            problems=tuple(map(words_of, assignment.problems)),
            overwritten=record.overwritten if record is not None else 0,
        )

    async def look(self, settings: Settings, state: DaemonState, base: Base) -> None:
        """Write the statuses that are due.  Failures are logged, and the next call tries again."""
        balancer, api = settings.load_balancer, settings.cluster.api
        known = self._discovery.load_balancers
        if balancer is None:
            self._metrics.load_balancers(None)
        elif self._former is not None and self._former.class_name != balancer.class_name:
            # The Lease of the former class is not held any more.
            self._owned.clear()
        former = balancer or self._former
        self._former = former
        if former is None or api is None or known is None or not await self._may_write(balancer):
            await self.release()
            return
        try:
            client, lease = self._opened(api, former)
            assignments = self._source.assignments
            looked_at = (
                known.version, base.hash, state.running, state.withheld, assignments, balancer
            )  # fmt: skip
            due = {}
            if looked_at != self._settled:
                self._waits = False
                due = dict(self._due(former, known.services, state, base))
                if balancer is not None:
                    self._count(balancer)
                self._settled = None if due or self._waits else looked_at
            if not lease.is_due and not (due and lease.is_held):
                return
            async with client.connect() as connection:
                await self._write_all(connection, lease, due)
            if balancer is None and not lease.is_held:
                # Another frontend has taken over, and writes what it serves.
                self._owned.clear()
        except ApiFailure as exc:
            self._note_failure(exc.message)
        except Unavailable as exc:
            self._note_failure(exc.problem.message)
        self._report()

    async def _may_write(self, balancer: LoadBalancerSettings | None) -> bool:
        """Return whether statuses are written: with `load_balancer`, or to withdraw the last ones.

        After `load_balancer` is removed, the writer leaves the Lease to other frontends first.
        """
        if balancer is not None:
            self._left_at = None
            return True
        if self._left_at is None:
            if not self.is_leader:
                self._owned.clear()
            await self.release()
            self._left_at = self._clock()
        return bool(self._owned) and self._clock() >= self._left_at + 2 * LEASE_SECONDS

    async def _write_all(
        self,
        connection: ApiConnection,
        lease: LeaseHolder,
        due: Mapping[ObjectKey, tuple[LoadBalancerRequest, ServiceStatus]],
    ) -> None:
        """Write the statuses in `due` while the Lease is held.

        Raises `ApiFailure` if requests to the API server fail.
        """
        if lease.is_due:
            await lease.renew(connection)
        for key, (expected, status) in due.items():
            if lease.is_due:
                await lease.renew(connection)
            if not lease.is_held:
                return
            try:
                await self._write(connection, key, expected, status)
            except ApiFailure as exc:
                if exc.kind in _ENDS_THE_PASS:
                    raise
                # One Service must not prevent the status of others from being written.
                self._postpone(key)
                self._note_failure(exc.message)

    def _postpone(self, key: ObjectKey) -> None:
        """Leave a Service alone for a while, longer each time."""
        _, pause = self._postponed.get(key, (0.0, _FIRST_PAUSE / 2))
        pause = min(pause * 2, _LONGEST_PAUSE)
        self._postponed[key] = self._clock() + pause, pause

    def _note_failure(self, reason: str) -> None:
        self._state = replace(self._state, failures=self._state.failures + 1)
        self._log.limited("service-status").warning(
            "service-status-not-written",
            reason=reason,
            remedy="apply contrib/kubernetes/rbac-load-balancer.yaml if a right is missing",
            effect="Services are served; their status is out of date",
        )

    async def release(self) -> None:
        """Release the Lease, so that another frontend can write at once."""
        if self._client is None or self._lease is None or not self._lease.is_held:
            return
        try:
            async with asyncio.timeout(_RELEASE_SECONDS), self._client.connect() as connection:
                await self._lease.release(connection)
        except (ApiFailure, TimeoutError):
            # The Lease expires on its own.
            self._log.info("lease-not-released", effect="others wait until it expires")

    def _opened(
        self, api: ApiSettings, balancer: LoadBalancerSettings
    ) -> tuple[ApiClient, LeaseHolder]:
        """Return the client and the Lease for these settings.

        Raises `Unavailable`.
        """
        if self._made_for != (api, balancer.class_name) or not (self._client and self._lease):
            self._client = ApiClient(lambda: read_access(api))
            name = balancer.class_name.replace("/", ".").lower()
            self._lease = LeaseHolder(LEASE_NAMESPACE, name, self._identity, self._clock)
            self._made_for = api, balancer.class_name
        return self._client, self._lease

    def _report(self) -> None:
        lease = self._lease
        if lease is not None and lease.is_held != self._was_leader:
            self._was_leader = lease.is_held
            event = "service-status-leader" if lease.is_held else "service-status-follower"
            self._log.info(event, holder=lease.holder)
        self._state = replace(self._state, is_leader=self.is_leader)
        if self._source.is_on:
            self._metrics.load_balancers(self._state)

    def _count(self, balancer: LoadBalancerSettings) -> None:
        """Count Services by their condition, and the used addresses of pools."""
        # For alerts, these series must exist before the first case.
        services = Counter({ServedReason.SERVED.value: 0, AddressGap.OUT_OF_ADDRESSES.value: 0})
        used: set[IpAddress] = set()
        for key, assignment in self._source.assignments.items():
            condition = self._source.services[key].condition
            if assignment.problems and not assignment.addresses:
                services[assignment.problems[0].gap.value] += 1
            else:
                services[condition.cause if condition is not None else _PENDING] += 1
            used.update(each.address for each in assignment.addresses)
        self._state = replace(
            self._state,
            services=dict(services),
            pool_sizes={p.name: sum(each.size for each in p.ranges) for p in balancer.pools},
            pool_used={p.name: sum(p.has(address) for address in used) for p in balancer.pools},
        )

    def _due(
        self,
        balancer: LoadBalancerSettings,
        services: Mapping[ObjectKey, LoadBalancerRequest],
        state: DaemonState,
        base: Base,
    ) -> Iterator[tuple[ObjectKey, tuple[LoadBalancerRequest, ServiceStatus]]]:
        """Yield the Services whose status must be written: their request and desired status."""
        is_known = base.hash == state.running
        bound = self._bound_by(base) if is_known else {}
        withheld = _withheld(state)
        now = self._clock()
        self._forget_all_but(services)
        for key, request in services.items():
            status = self._desired(balancer, key, request, bound, withheld, is_known=is_known)
            if status is None:
                continue
            record = self._records.get(key)
            if not status.differs_from(request, with_mode=self._keeps_mode):
                self._postponed.pop(key, None)
                if status is NO_LOAD_BALANCER:
                    self._owned.discard(key)
                if record is not None and record.status == status:
                    record.is_seen = True
                continue
            self._waits = True
            if now < self._postponed.get(key, (0.0, 0.0))[0]:
                continue
            if record is not None and record.status == status:
                if record.is_seen or request != record.before:
                    self._note_overwritten(key, record, request, now)
                elif now - record.at < _WATCH_SECONDS:
                    continue
            if record is None or now >= record.not_before:
                yield key, (request, status)

    def _forget_all_but(self, services: Mapping[ObjectKey, LoadBalancerRequest]) -> None:
        for key in self._records.keys() - services.keys():
            del self._records[key]
        for key in self._postponed.keys() - services.keys():
            del self._postponed[key]
        self._owned &= services.keys()

    def _bound_by(self, base: Base) -> Mapping[str, frozenset[tuple[IpAddress, int]]]:
        """Return what `base` binds, by service; parsed once for each text."""
        if base.hash is None:
            return {}
        if self._bound is None or self._bound[0] != base.hash:
            self._bound = base.hash, _bound(base)
        return self._bound[1]

    def _desired(
        self,
        balancer: LoadBalancerSettings,
        key: ObjectKey,
        request: LoadBalancerRequest,
        bound: Mapping[str, frozenset[tuple[IpAddress, int]]],
        withheld: Mapping[ObjectKey, Mapping[str, str]],
        *,
        is_known: bool,
    ) -> ServiceStatus | None:
        """Return the desired status of a Service; None if it is unknown or belongs to others."""
        if request.has_left:
            return NO_LOAD_BALANCER if _was_ours(balancer, request) else None
        if not (self._source.is_on and balancer.owns(request)):
            # It belongs to others; or it did not, until the settings were changed.
            if key not in self._owned:
                return None
            if not _was_ours(balancer, request):
                self._owned.discard(key)
                return None
            is_served = any(unit_name(key, port) in bound for port in request.served_ports)
            return None if is_served or not is_known else NO_LOAD_BALANCER
        self._owned.add(key)
        assignment = self._source.assignments.get(key)
        if assignment is None:
            # It is new; the next step assigns its addresses.
            return None
        names = {unit_name(key, port): port for port in request.served_ports}
        places = frozenset(place for name in names for place in bound.get(name, ()))
        refused = {names[name]: why for name, why in withheld.get(key, {}).items() if name in names}
        return desired_status(request, assignment, places, refused)

    def _note_overwritten(
        self, key: ObjectKey, record: _Record, request: LoadBalancerRequest, now: float
    ) -> None:
        record.is_seen, record.before, record.at = False, request, float("-inf")
        record.not_before = now + record.pause
        record.pause = min(record.pause * 2, _LONGEST_PAUSE)
        record.overwritten += 1
        self._state = replace(self._state, overwritten=self._state.overwritten + 1)
        self._log.limited(f"service-status {key}").warning(
            "service-status-overwritten",
            service=f"{key.namespace}/{key.name}",
            effect="it is written again",
            remedy="stop the other controller, such as ServiceLB: `k3s server --disable servicelb`",
        )

    async def _write(
        self,
        connection: ApiConnection,
        key: ObjectKey,
        expected: LoadBalancerRequest,
        status: ServiceStatus,
    ) -> None:
        """Write one status and its events.

        Raises `ApiFailure`.
        """
        written = await write_status(connection, key, status, expected)
        if written is None:
            # It has changed meanwhile; the watch will report the change.
            self._postpone(key)
            return
        self._state = replace(self._state, writes=self._state.writes + 1)
        record = self._records.get(key)
        made = _Record(status, written.before, self._clock())
        if record is not None:
            made.overwritten = record.overwritten
            made.pause = record.pause if record.status == status else _FIRST_PAUSE
        self._records[key] = made
        after = written.after
        if after is not None and after.ingress and not any(each.mode for each in after.ingress):
            self._note_dropped_mode()
        for reason, note in _events(written, status):
            await write_event(connection, key, reason, note, self._host)

    def _note_dropped_mode(self) -> None:
        if self._keeps_mode:
            self._keeps_mode = False
            self._log.warning(
                "ip-mode-dropped",
                effect="pods reach the address past HAProxy: without TLS and PROXY protocol",
                remedy="Kubernetes 1.29 and later keep `ipMode: Proxy`",
            )


def _bound(base: Base) -> dict[str, frozenset[tuple[IpAddress, int]]]:
    """Return address and port of each bind in the text that HAProxy runs, by service."""
    return {
        name: frozenset(place for text in binds if (place := place_of(text)) is not None)
        for name, binds in served_binds(base).items()
    }


def _withheld(state: DaemonState) -> dict[ObjectKey, dict[str, str]]:
    """Return the reasons of undeployed changes of Services, by Service and by unit."""
    found: dict[ObjectKey, dict[str, str]] = {}
    for each in state.withheld:
        if each.unit.kind is not UnitKind.SERVICE or not each.problems:
            continue
        problem = each.problems[0]
        key = key_of_origin(problem.file or "")
        if key is not None:
            field = f"{problem.field}: " if problem.field else ""
            found.setdefault(key, {})[each.unit.name] = f"{field}{problem.message}"
    return found


def _was_ours(balancer: LoadBalancerSettings, request: LoadBalancerRequest) -> bool:
    """Return whether all addresses are of fc-frontend's own pools, and in the mode written here."""
    for entry in request.ingress:
        try:
            address = parse_address(entry.address)
        except NotAnAddress:
            return False
        if entry.mode != PROXY_MODE or not any(pool.has(address) for pool in balancer.pools):
            return False
    return True


def _events(written: Written, status: ServiceStatus) -> Iterator[tuple[EventReason, str]]:
    """Yield the events of a transition."""
    before = written.before
    known = {entry.address for entry in before.ingress} if before else set()
    new = [entry.address for entry in status.ingress if entry.address not in known]
    if new:
        yield EventReason.ALLOCATED, ", ".join(new)
    was, now = before.condition if before else None, status.condition
    if now is None or (was is not None and was[:2] == now[:2]):
        return
    if now.is_served:
        yield EventReason.ENSURED, now.message
    elif now.cause == ServedReason.WITHHELD:
        yield EventReason.FAILED, now.message
    elif was is not None and was.is_served:
        yield EventReason.UNAVAILABLE, now.message
    else:
        yield EventReason.NO_ADDRESS, now.message
