"""Declarations from Services of type LoadBalancer, in addition to the files.

The daemon passes them to `declare` in `Sources.cluster`.  Without them, as in commands and until
the list of Services is complete, the running declarations of Services are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from fc_frontend.balancer.declare import BalancedDeclaration, is_of_cluster, origin_of
from fc_frontend.config.raw import NO_DOCUMENT, Raw
from fc_frontend.config.running import RawDeclaration, RunningDeclarations
from fc_frontend.config.trust import Level
from fc_frontend.errors import Problem
from fc_frontend.model.units import UnitId, UnitKind


def cluster_raws(
    declared: Mapping[str, BalancedDeclaration], before: Mapping[str, Raw] | None
) -> dict[str, Raw]:
    """Return the declarations of Services, reusing the objects of `before` that are equal."""
    found: dict[str, Raw] = {}
    for name, (key, fields) in declared.items():
        raw = Raw(name, fields, origin_of(key), NO_DOCUMENT, Level.UNTRUSTED)
        known = before.get(name) if before else None
        found[name] = known if known == raw and known is not None else raw
    return found


def running_raws(running: RunningDeclarations) -> dict[str, Raw]:
    """Return the declarations of the Services in the running configuration."""
    return {
        name: as_raw(name, form)
        for name, form in running.services.items()
        if is_of_cluster(form.file)
    }


def as_raw(name: str, form: RawDeclaration) -> Raw:
    """Return a running declaration in the form of one that was just read."""
    return Raw(name, form.value, form.file, NO_DOCUMENT, form.level)


def merged(
    files: Mapping[str, Raw], cluster: Mapping[str, Raw], running: RunningDeclarations
) -> tuple[dict[str, Raw], dict[UnitId, Problem]]:
    """Return all services, and the problems of those whose name is taken, by unit.

    If two services have the same name, the running one takes precedence; if both are new, the one
    in a file does.
    """
    found = {**cluster, **files}
    faults: dict[UnitId, Problem] = {}
    for name in files.keys() & cluster.keys():
        form = running.services.get(name)
        is_served = form is not None and is_of_cluster(form.file)
        first, other = files[name], cluster[name]
        if is_served:
            found[name] = cluster[name]
            first, other = other, first
        unit = UnitId(UnitKind.DUPLICATE, f"{name} in {other.file}")
        remedy = "rename the service in the file"
        faults[unit] = other.problem("", f"is also defined in {first.file}", remedy)
    return found, faults
