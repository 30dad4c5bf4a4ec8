"""How Services of type LoadBalancer are doing, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
