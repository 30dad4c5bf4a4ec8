"""The state of Services of type LoadBalancer, for metrics and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerState:
    """A snapshot of the state.

    `services` counts them by the reason of their condition, actual or desired.  `pool_sizes` and
    `pool_used` are the number of addresses of each pool, and of those in use by Services.  The
    counters are about statuses since the start.
    """

    services: Mapping[str, int] = field(default_factory=dict)
    pool_sizes: Mapping[str, int] = field(default_factory=dict)
    pool_used: Mapping[str, int] = field(default_factory=dict)
    is_leader: bool = False
    writes: int = 0
    overwritten: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancedService:
    """A Service whose address is assigned here.

    `addresses` are those assigned to it, `published` those in its status; `problems` are the
    problems with its address, and the remedies.  `overwritten` counts how often others have changed
    the status written by this frontend.
    """

    namespace: str
    name: str
    addresses: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    condition: str = ""
    """The reason of its condition, such as `Served`; empty without one."""
    problems: tuple[tuple[str, str], ...] = ()
    overwritten: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the Service in the format of all JSON output."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "addresses": list(self.addresses),
            "published": list(self.published),
            "condition": self.condition,
            "problems": [{"message": m, "remedy": remedy} for m, remedy in self.problems],
            "overwritten": self.overwritten,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerView:
    """All Services whose address is assigned here, and the frontend that writes their status.

    `holder` is the holder of the Lease, if known; `is_leader` if that is this frontend.
    """

    is_leader: bool = False
    holder: str = ""
    services: tuple[BalancedService, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the view in the format of all JSON output."""
        return {
            "leader": self.is_leader,
            "holder": self.holder,
            "services": [each.as_json() for each in self.services],
        }
