"""Sources and discovery without files and without DNS."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fc_frontend.balancer.assign import LoadBalancers
from fc_frontend.config.document import Document
from fc_frontend.config.loader import Sources
from fc_frontend.config.raw import NO_DOCUMENT, Raw
from fc_frontend.config.trust import Level
from fc_frontend.discovery.source import News
from fc_frontend.errors import Problem
from fc_frontend.model.api_state import ApiState
from fc_frontend.plan.model import (
    Answer,
    Endpoint,
    Freshness,
    Kind,
    Resolution,
    ServiceSpec,
    Settings,
)

DOCUMENT: Document = NO_DOCUMENT
SETTINGS_FILE = "memory"


def sources(settings: dict[str, Any], services: Mapping[str, Any]) -> Sources:
    """Return these settings and services as sources, all of them trusted."""
    return Sources(
        settings_file=SETTINGS_FILE,
        directory="",
        settings=settings,
        document=DOCUMENT,
        services={
            name: Raw(name, value, SETTINGS_FILE, DOCUMENT, Level.TRUSTED)
            for name, value in services.items()
        },
        fragments=(),
        templates={},
        broken=frozenset(),
        has_directory=True,
        problems=(),
        host=(),
    )


class KnownPods:
    """A `PodDiscovery` with fixed addresses of pods, by Kubernetes Service."""

    def __init__(self, **pods: Sequence[str]) -> None:
        self.pods = dict(pods)
        self.asked: list[str] = []
        self.balanced: LoadBalancers | None = None

    def answers(self, specs: Sequence[ServiceSpec], before: Resolution) -> dict[str, Answer]:
        """Return an answer for each service that has pods."""
        return {
            spec.name: Answer(
                kind=Kind.HEADLESS,
                reason="known",
                endpoints=tuple(
                    Endpoint(address, int(spec.port)) for address in self.pods[spec.service]
                ),
                freshness=Freshness.FRESH,
                slots=before[spec.name].slots if spec.name in before else 0,
            )
            for spec in specs
            if spec.service in self.pods
        }

    async def ask(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer]:
        self.asked += [spec.name for spec in specs]
        return self.answers(specs, before)

    async def sweep(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer] | None:
        found = self.answers(specs, before)
        return None if found == before else found

    async def changed(self) -> None:
        await asyncio.Event().wait()

    def news(self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution) -> News:
        return News({}, None)

    @property
    def state(self) -> ApiState | None:
        return None

    @property
    def load_balancers(self) -> LoadBalancers | None:
        return self.balanced

    @property
    def may_fill(self) -> bool:
        return False

    async def disagreements(
        self, specs: Sequence[ServiceSpec], settings: Settings
    ) -> dict[str, Problem]:
        return {}

    def close(self) -> None:
        self.asked.clear()
