"""Conflicts between routes and frontends of a rendered configuration, by the unit at fault."""

from __future__ import annotations

from collections.abc import Collection

from fc_frontend.errors import Problem
from fc_frontend.model.units import Resource, UnitId, UnitKind
from fc_frontend.render.config import Config
from fc_frontend.syntax.routes import Match, map_path, routes_in


def route_problems(
    config: Config, newcomers: Collection[UnitId], untrusted: Collection[str] = ()
) -> tuple[Problem, ...]:
    """Return problems for duplicate routes, missing frontends and frontends in the wrong mode.

    If two services have the same route, the one in `newcomers`, the units that HAProxy does not run
    in this form, is at fault; among newcomers, the last by name.  Services in `untrusted` are
    always at fault.  Each problem contains its unit.
    """
    frontends = {
        section.unit.name: section
        for section in config.sections
        if section.unit.kind is UnitKind.FRONTEND
    }
    services = [
        section
        for section in config.sections
        if section.unit.kind is UnitKind.SERVICE and routes_in(section.text)
    ]
    services.sort(
        key=lambda section: (
            section.unit.name in untrusted,
            section.unit in newcomers,
            section.unit.name,
        )
    )
    holders: dict[Resource, UnitId] = {}
    found: dict[tuple[UnitId, str], Problem] = {}
    for section in services:
        unit = section.unit
        for route in routes_in(section.text):
            frontend = frontends.get(route.frontend)
            field = "sni" if route.match is Match.SNI else "hosts"
            if frontend is None:
                known = ", ".join(sorted(frontends)) or "none"
                problem = Problem(
                    f"there is no frontend {route.frontend}",
                    f"declare it below `frontends:`, or use another one ({known})",
                    service=unit.name,
                    unit=unit,
                    field="frontend",
                )
                found.setdefault((unit, "frontend"), problem)
                break
            # With passthrough, a frontend has the maps of both modes.
            wanted = Match.SNI if route.match is Match.SNI else Match.PREFIX
            if _MAPS[wanted] not in frontend.text:
                problem = _wrong_mode(unit, frontend.unit, newcomers, field)
                found.setdefault((problem.unit or unit, "mode"), problem)
                break
            holder = holders.setdefault(route.resource, unit)
            if holder != unit:
                problem = Problem(
                    f"the route {route} belongs to {holder} already",
                    "use another host or path, or remove it there",
                    service=unit.name,
                    unit=unit,
                    field=field,
                )
                found.setdefault((unit, str(holder)), problem)
    return tuple(found.values())


_MAPS = {match: map_path("", "", match).rpartition("/")[2] for match in Match}


def _wrong_mode(
    service: UnitId, frontend: UnitId, newcomers: Collection[UnitId], field: str
) -> Problem:
    """Return the problem for SNI routes on a frontend in HTTP mode, or the reverse."""
    mode = "tcp, or tls with passthrough: true" if field == "sni" else "http"
    if frontend in newcomers and service not in newcomers:
        return Problem(
            f"{service} has routes by {field}, which need mode: {mode}",
            f"keep mode: {mode}, or change {service} in the same step",
            service=frontend.name,
            unit=frontend,
            field="mode",
        )
    return Problem(
        f"{field} needs a frontend with mode: {mode}",
        f"use such a frontend, or change the mode of {frontend}",
        service=service.name,
        unit=service,
        field=field,
    )
