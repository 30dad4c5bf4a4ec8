"""What every way to find pods offers, whatever it asks.  Cluster DNS is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fc_frontend.plan.model import Answer, Resolution, ServiceSpec, Settings


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

    def close(self) -> None:
        """Release what is open; the next call opens it again, with the settings of then."""
