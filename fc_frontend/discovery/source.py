"""What every way to find pods offers, whatever it asks.  Cluster DNS is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fc_frontend.balancer.assign import LoadBalancers
from fc_frontend.errors import Problem
from fc_frontend.model.api_state import ApiState
from fc_frontend.plan.model import Answer, Resolution, ServiceSpec, Settings


@dataclass(frozen=True, slots=True)
class News:
    """Answers that changed, by service, and when the first change came, on the monotonic clock."""

    answers: Mapping[str, Answer]
    since: float | None


class PodDiscovery(Protocol):
    """Finds the pods of services.  Failures are in the answers: nothing is raised."""

    async def ask(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer]:
        """The answers about new services that come soon, by service; sweeps bring the others."""

    async def sweep(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer] | None:
        """The answers about all services that came in time; None if none differs from `before`."""

    async def changed(self) -> None:
        """Return once there is news that no sweep has to look for; never where there is none."""

    def news(self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution) -> News:
        """What changed since the last call, without a wait.  `specs` are sorted by name."""

    @property
    def load_balancers(self) -> LoadBalancers | None:
        """The cluster's Services of type LoadBalancer; None while they are not known."""

    @property
    def state(self) -> ApiState | None:
        """How the watch of the Kubernetes API is doing; None where there is none."""

    @property
    def may_fill(self) -> bool:
        """True if slots with a standby are filled by what is known now."""

    async def disagreements(
        self, specs: Sequence[ServiceSpec], settings: Settings
    ) -> dict[str, Problem]:
        """Warnings about services of which sources of equal rank say different things, by name."""

    def close(self) -> None:
        """Release what is open; the next call opens it again, with the settings of then."""
