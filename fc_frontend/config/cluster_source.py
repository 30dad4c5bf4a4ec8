"""What Services of type LoadBalancer declare, beside the files.

The daemon gives it to `declare` in `Sources.cluster`.  Without it, as in commands and until the
list of Services is complete, Services stay as they run.
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
    """The declarations of Services; those that are equal `before` stay the same objects."""
    found: dict[str, Raw] = {}
    for name, (key, fields) in declared.items():
        raw = Raw(name, fields, origin_of(key), NO_DOCUMENT, Level.UNTRUSTED)
        known = before.get(name) if before else None
        found[name] = known if known == raw and known is not None else raw
    return found


def running_raws(running: RunningDeclarations) -> dict[str, Raw]:
    """The declarations of the Services that HAProxy serves."""
    return {
        name: as_raw(name, form)
        for name, form in running.services.items()
        if is_of_cluster(form.file)
    }


def as_raw(name: str, form: RawDeclaration) -> Raw:
    """A declaration that HAProxy runs, to be judged as one that was just read."""
    return Raw(name, form.value, form.file, NO_DOCUMENT, form.level)


def merged(
    files: Mapping[str, Raw], cluster: Mapping[str, Raw], running: RunningDeclarations
) -> tuple[dict[str, Raw], dict[UnitId, Problem]]:
    """All services, and what is wrong with those whose name another one has, by unit.

    Of two, the one that runs counts, and between two additions the one in a file.
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
