"""The interface of every source of pods, such as cluster DNS."""

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
    """Changed answers, by service, and when the first change arrived, on the monotonic clock."""

    answers: Mapping[str, Answer]
    since: float | None


class PodDiscovery(Protocol):
    """Finds the pods of services.  Failures are part of the answers: nothing is raised."""

    async def ask(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer]:
        """Return the first answers for new services, by service; sweeps return the others."""

    async def sweep(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer] | None:
        """Return the answers that arrived in time; None if none differs from `before`."""

    async def changed(self) -> None:
        """Return once there are changes without a sweep; never if the source reports none."""

    def news(self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution) -> News:
        """Return the changes since the last call, without waiting.  `specs` are sorted by name."""

    @property
    def load_balancers(self) -> LoadBalancers | None:
        """The cluster's Services of type LoadBalancer; None while they are unknown."""

    @property
    def state(self) -> ApiState | None:
        """The state of the watch of the Kubernetes API; None if there is none."""

    @property
    def may_fill(self) -> bool:
        """Whether slots with a standby are filled from the current state."""

    async def disagreements(
        self, specs: Sequence[ServiceSpec], settings: Settings
    ) -> dict[str, Problem]:
        """Return warnings for services whose equivalent sources disagree, by name."""

    def close(self) -> None:
        """Release all resources; the next call opens them again, with the settings at that time."""
