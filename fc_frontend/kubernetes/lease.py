"""One writer among several frontends: a Lease (coordination.k8s.io/v1).

The holder renews it; others take it over once it has not changed for its duration, by their own
monotonic clock.  Wall clocks are written for people and never compared (KEP-589; client-go's
leaderelection does the same).
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
"""Between two renewals."""
HELD_SECONDS = 10.0
"""For which a renewal counts for the holder: less than `LEASE_SECONDS`, so that it has stopped to
write before another one begins."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A state of the Lease, and when it was first seen, on the monotonic clock."""

    version: str
    at: float


class LeaseHolder:
    """Takes the Lease `name` in `namespace` as `identity`, and keeps it."""

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
        """Who has it, as it was last seen."""

    @property
    def is_held(self) -> bool:
        """True while nobody else can have it: ask again before each write."""
        return self._clock() - self._renewed_at < HELD_SECONDS

    @property
    def is_due(self) -> bool:
        """True if it should be renewed, or looked at, now."""
        return self._clock() - self._renewed_at >= RENEW_SECONDS

    async def renew(self, connection: ApiConnection) -> bool:
        """Take or renew the Lease if it is free or ours; True if it is held.

        Raises `ApiFailure`, except for a conflict: somebody else was first.
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
        # From before the request was sent: others may count from then.
        self._renewed_at = now
        self.holder = self._identity
        return True

    async def release(self, connection: ApiConnection) -> None:
        """Let others take it at once, if it is held.  Raises `ApiFailure`."""
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
        """`found`, with its resourceVersion, as it is when this holder has it."""
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
    """The time now as a MicroTime of the API, which takes nothing without microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
