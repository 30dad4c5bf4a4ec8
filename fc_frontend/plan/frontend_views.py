"""Frontends with the routes of their services, for display."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fc_frontend.plan.model import FrontendSpec, ServicePlan

MOST_ROUTES = 20
"""The maximum number of routes listed for a service; it may have 10,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRoutes:
    """The first routes of a service, such as `shop.example.org/api`, and their total number."""

    service: str
    routes: tuple[str, ...]
    count: int

    @property
    def more(self) -> int:
        """The number of routes that are not listed."""
        return self.count - len(self.routes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendView:
    """A frontend with its services; `redirect_binds` redirect to https."""

    name: str
    binds: tuple[str, ...]
    redirect_binds: tuple[str, ...] = ()
    has_tls: bool = False
    services: tuple[ServiceRoutes, ...] = ()

    @property
    def route_count(self) -> int:
        """The total number of routes of its services."""
        return sum(each.count for each in self.services)

    def as_json(self) -> dict[str, Any]:
        """Return the frontend in the format of all JSON output."""
        return {
            "name": self.name,
            "binds": list(self.binds),
            "redirect_binds": list(self.redirect_binds),
            "tls": self.has_tls,
            "services": [
                {"service": each.service, "routes": list(each.routes), "route_count": each.count}
                for each in self.services
            ],
        }


def frontend_views(
    frontends: Iterable[FrontendSpec], services: Iterable[ServicePlan]
) -> tuple[FrontendView, ...]:
    """Return the frontends and the services of each, both in the given order."""
    routed: dict[str, list[ServiceRoutes]] = {}
    for service in services:
        spec = service.spec
        if spec.frontend is None:
            continue
        routes = tuple(route.shown for route in spec.routes[:MOST_ROUTES])
        found = ServiceRoutes(service=spec.name, routes=routes, count=len(spec.routes))
        routed.setdefault(spec.frontend, []).append(found)
    return tuple(
        FrontendView(
            name=frontend.name,
            binds=tuple(map(str, frontend.binds)),
            redirect_binds=tuple(map(str, frontend.redirect_binds)),
            has_tls=frontend.tls is not None,
            services=tuple(routed.get(frontend.name, ())),
        )
        for frontend in frontends
    )
