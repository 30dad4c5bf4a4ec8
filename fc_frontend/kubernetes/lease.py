"""Leader election among several frontends, with a Lease (coordination.k8s.io/v1).

The holder renews it; another frontend takes it over once it has not changed for its duration, by
its own monotonic clock.  Wall-clock times are written for information only and never compared
(KEP-589; client-go's leaderelection does the same).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fc_frontend.kubernetes.client import ApiConnection
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.plan.untyped import as_mapping, as_text

LEASE_NAMESPACE = "fc-frontend"
"""As in contrib/kubernetes/rbac.yaml."""
LEASE_SECONDS = 15
RENEW_SECONDS = 5.0
"""The interval between two renewals."""
HELD_SECONDS = 10.0
"""How long a renewal is valid for the holder: less than `LEASE_SECONDS`, so that it stops writing
before another one begins.
"""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A version of the Lease, and when it was first seen, on the monotonic clock."""

    version: str
    at: float


class LeaseHolder:
    """Acquires the Lease `name` in `namespace` as `identity`, and keeps it."""

    def __init__(
        self, namespace: str, name: str, identity: str, clock: Callable[[], float]
    ) -> None:
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._clock = clock
        self._renewed_at = float("-inf")
        self._seen: _Seen | None = None
        self.holder = ""
        """The holder as last seen."""

    @property
    def is_held(self) -> bool:
        """Whether this holder has the Lease exclusively; check again before each write."""
        return self._clock() - self._renewed_at < HELD_SECONDS

    @property
    def is_due(self) -> bool:
        """Whether the Lease should be renewed, or read, now."""
        return self._clock() - self._renewed_at >= RENEW_SECONDS

    async def renew(self, connection: ApiConnection) -> bool:
        """Take or renew the Lease if it is free or held by this holder; return whether it is held.

        Raises `ApiFailure`, except for a conflict, which means that another frontend was first.
        """
        now = self._clock()
        try:
            found = await self._find(connection)
            if found is None:
                await connection.post(self._path, self._new())
            elif not self._may_take(found, now):
                self._renewed_at = float("-inf")
                return False
            else:
                await connection.put(f"{self._path}/{self._name}", self._renewed(found))
        except ApiFailure as exc:
            if exc.kind is FailureKind.CONFLICT:
                self._renewed_at = float("-inf")
                return False
            raise
        # The time before the request was sent: others may count from then on.
        self._renewed_at = now
        self.holder = self._identity
        return True

    async def release(self, connection: ApiConnection) -> None:
        """Release the Lease if it is held, so that others can take it at once.

        Raises `ApiFailure`.
        """
        if not self.is_held:
            return
        self._renewed_at = float("-inf")
        found = await self._find(connection)
        if found is not None and _spec(found).get("holderIdentity") == self._identity:
            released = self._renewed(found)
            released["spec"]["holderIdentity"] = ""
            await connection.put(f"{self._path}/{self._name}", released)

    async def _find(self, connection: ApiConnection) -> dict[str, Any] | None:
        try:
            return await connection.get(f"{self._path}/{self._name}")
        except ApiFailure as exc:
            if exc.kind is FailureKind.MISSING:
                return None
            raise

    def _may_take(self, found: dict[str, Any], now: float) -> bool:
        spec = _spec(found)
        self.holder = as_text(spec.get("holderIdentity"))
        version = as_text(as_mapping(found.get("metadata")).get("resourceVersion"))
        if self._seen is None or self._seen.version != version:
            self._seen = _Seen(version, now)
        if self.holder in ("", self._identity):
            return True
        seconds = spec.get("leaseDurationSeconds")
        lasts = seconds if isinstance(seconds, int) and seconds > 0 else LEASE_SECONDS
        return now - self._seen.at > lasts

    def _new(self) -> dict[str, Any]:
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": micro_time(),
            "renewTime": micro_time(),
            "leaseTransitions": 0,
        }
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": spec,
        }

    def _renewed(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return `found`, with its resourceVersion, as held by this holder."""
        spec = dict(_spec(found))
        if spec.get("holderIdentity") != self._identity:
            transitions = spec.get("leaseTransitions")
            spec["leaseTransitions"] = 1 + (transitions if isinstance(transitions, int) else 0)
            spec["acquireTime"] = micro_time()
        spec["holderIdentity"] = self._identity
        spec["leaseDurationSeconds"] = LEASE_SECONDS
        spec["renewTime"] = micro_time()
        return {**found, "spec": spec}


def _spec(lease: dict[str, Any]) -> dict[str, Any]:
    return as_mapping(lease.get("spec"))


def micro_time() -> str:
    """Return the current time as a MicroTime of the API, which requires microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
