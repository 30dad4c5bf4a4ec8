"""How Services of type LoadBalancer are doing, for metrics and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerState:
    """One look at it.

    `services` counts them by what their condition says, or should say.  `pool_sizes` and
    `pool_used` have the addresses of each pool, and those that Services have.  The counters are
    about statuses since the start.
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
    """A Service that gets its address here.

    `addresses` are those that it is assigned, `published` those in its status; `problems` have what
    is wrong with its address, and the fix.  `overwritten` counts how often others have changed the
    status that this frontend had written.
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
        """The Service in the shape of all JSON output."""
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
    """All Services that get their address here, and which frontend writes their status.

    `holder` has the Lease, as far as it is known; `is_leader` if that is this frontend.
    """

    is_leader: bool = False
    holder: str = ""
    services: tuple[BalancedService, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The view in the shape of all JSON output."""
        return {
            "leader": self.is_leader,
            "holder": self.holder,
            "services": [each.as_json() for each in self.services],
        }
