"""Find conflicts between the listeners of a rendered configuration, and the unit to blame for each.

All listeners count, whatever declares them: binds, raw lines, fragments, templates, and the sockets
of fc-frontend and of HAProxy's master, which are not in the text.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping

from fc_frontend.balancer.declare import is_of_cluster
from fc_frontend.errors import Problem, Severity
from fc_frontend.haproxy.holders import place
from fc_frontend.haproxy.listener_places import ListenerPlaces
from fc_frontend.model.units import ENVIRONMENT, SETTINGS, UnitId, UnitKind
from fc_frontend.plan.conflicts import Conflict, Overlap, conflicts, overlaps
from fc_frontend.plan.model import Bind, Plan, Settings
from fc_frontend.render.config import Config
from fc_frontend.render.listeners import listeners_of
from fc_frontend.syntax.binds import BindFlaw, Listener, Owned
from fc_frontend.syntax.endpoints import Family, ListenEndpoint, ListenOptions, read_endpoints

_MAX_NAMED = 3
"""Maximum number of units that one warning names."""


def endpoint_of(bind: Bind) -> ListenEndpoint:
    """Return the endpoint that HAProxy creates for a declared bind without options."""
    (endpoint,) = read_endpoints(str(bind), ListenOptions())
    assert endpoint is not None
    return endpoint


def listener_problems(
    plan: Plan,
    config: Config,
    newcomers: Collection[UnitId],
    untrusted: Collection[str] = (),
) -> tuple[Problem, ...]:
    """Return problems of listeners that share connections or paths, or that cannot be determined.

    If two listeners claim the same endpoint, the one to blame belongs to `newcomers`, the units
    that HAProxy does not have in this form.  Among newcomers, files take precedence over Services
    of the cluster, and declared binds over raw text.  The services in `untrusted` are to blame in
    any case; they must not even overlap with listeners from another file.  Each problem names its
    unit.
    """
    found, flaws = listeners_of(config, socket.gethostname())
    ordered = _ordered([*_outside(plan.settings), *found], plan, newcomers)
    if untrusted:
        ordered.sort(key=lambda claim: _is_of(claim, untrusted))
    between = conflicts(ordered, place)
    lost = {id(conflict.claim) for conflict in between}
    if lost:
        covering = overlaps([claim for claim in ordered if id(claim) not in lost])
    else:
        covering = overlaps(ordered)
    if not (flaws or between or covering):
        return ()
    wording = _Wording(plan, config, untrusted)
    problems: list[Problem | None] = [wording.flawed(flaw) for flaw in flaws]
    problems += map(wording.conflicting, between)
    rank = {id(claim): number for number, claim in enumerate(ordered)}
    for overlap in covering:
        problems += wording.overlapping(overlap, rank)
    return tuple(dict.fromkeys(problem for problem in problems if problem is not None))


def _ordered(claims: list[Owned], plan: Plan, newcomers: Collection[UnitId]) -> list[Owned]:
    """Return the claims in order of precedence: of two that conflict, the later one is to blame."""
    fresh_units = set(newcomers)
    if not ENVIRONMENT.isdisjoint(fresh_units):
        fresh_units.add(SETTINGS)
    if not fresh_units:
        return claims
    names = {unit.name for unit in fresh_units}
    declared = {
        (service.spec.name, str(bind))
        for service in plan.services
        if service.spec.name in names
        for bind in service.spec.binds
    }
    declared |= {
        (frontend.name, str(bind))
        for frontend in plan.frontends
        if frontend.name in names
        for bind in frontend.all_binds
    }
    of_cluster = {
        service.spec.name
        for service in plan.services
        if service.spec.origin is not None and is_of_cluster(service.spec.origin.file)
    }
    fresh = [claim for claim in claims if claim.owner in fresh_units]
    fresh.sort(
        key=lambda claim: (
            _is_of(claim, of_cluster),
            claim.owner != SETTINGS
            and (claim.owner.name, str(claim.listener.endpoint)) not in declared,
        )
    )
    return [claim for claim in claims if claim.owner not in fresh_units] + fresh


def _is_of(claim: Owned, services: Collection[str]) -> bool:
    return claim.owner.kind is UnitKind.SERVICE and claim.owner.name in services


def _outside(settings: Settings) -> Iterator[Owned]:
    """Yield the listeners that are not in haproxy.cfg."""
    yield Owned(SETTINGS, Listener(ListenEndpoint(Family.UNIX, settings.haproxy.master_socket), 0))
    if settings.listen:
        yield Owned(SETTINGS, Listener(endpoint_of(settings.listen), 0))


class _Wording:
    """Turn conflicts and overlaps into problems."""

    def __init__(self, plan: Plan, config: Config, untrusted: Collection[str]) -> None:
        self._untrusted = untrusted
        self._places = ListenerPlaces(plan, config)
        settings = plan.settings
        self._compared_as_settings = {str(settings.haproxy.stats), str(settings.listen)}

    def flawed(self, flaw: BindFlaw) -> Problem:
        """Return the problem that the listeners of a line cannot be determined."""
        return self._places.problem(flaw.owner, flaw.line, None, flaw.message, flaw.remedy)

    def conflicting(self, conflict: Conflict) -> Problem | None:
        """Return the problem that a unit claims another's endpoint; None if reported elsewhere."""
        claim, holder = conflict.claim, conflict.holder
        endpoint = claim.listener.endpoint
        what = str(endpoint)
        if endpoint.last_port > endpoint.port:
            what = f"port {conflict.port} of {endpoint}"
        is_path = endpoint.family is Family.UNIX
        if holder.owner == SETTINGS:
            if claim.owner == SETTINGS and str(endpoint) in self._compared_as_settings:
                return None
            return self._places.about(claim, *self._taken_by_us(what, holder, is_path))
        effect = "would replace its socket" if is_path else "would share its connections"
        if claim.owner == holder.owner:
            return self._places.about(
                claim, f"{what} is bound twice: HAProxy {effect}", "keep one of the two"
            )
        where = f" ({file})" if (file := self._places.file(holder.owner)) else ""
        return self._places.about(
            claim,
            f"{what} is taken by {holder.owner}{where}: HAProxy {effect}",
            "give one of the two another path" if is_path else "give one of the two another port",
        )

    def overlapping(self, overlap: Overlap, rank: Mapping[int, int]) -> Iterator[Problem]:
        """Yield problems of a listener that covers others: errors where one is fc-frontend's."""
        wide, others = overlap.wide, []
        for other in overlap.covered:
            ours = (wide.owner == SETTINGS, other.owner == SETTINGS)
            if not any(ours) and not self._is_theft(wide, other):
                others.append(other)
            elif not all(ours):
                first, last = sorted((wide, other), key=lambda claim: rank[id(claim)])
                what = str(last.listener.endpoint)
                if first.owner == SETTINGS:
                    yield self._places.about(last, *self._taken_by_us(what, first, is_path=False))
                else:
                    where = f" ({file})" if (file := self._places.file(first.owner)) else ""
                    yield self._places.about(
                        last,
                        f"{what} overlaps with {first.listener.endpoint} of {first.owner}{where}",
                        "choose another address or port",
                    )
        if others:
            named = [f"{other.listener.endpoint} of {other.owner}" for other in others[:_MAX_NAMED]]
            if len(others) > _MAX_NAMED:
                named.append(f"{len(others) - _MAX_NAMED} more")
            yield self._places.about(
                wide,
                f"{wide.listener.endpoint} also covers {' and '.join(named)}, which keeps the "
                "connections to that address",
                "give addresses instead of the wildcard if that is not meant",
                Severity.WARNING,
            )

    def _is_theft(self, one: Owned, other: Owned) -> bool:
        """Return whether an overlap lets an untrusted file take connections from another file."""
        is_untrusted = any(_is_of(claim, self._untrusted) for claim in (one, other))
        return is_untrusted and self._places.file(one.owner) != self._places.file(other.owner)

    def _taken_by_us(self, what: str, holder: Owned, is_path: bool) -> tuple[str, str]:
        endpoint = holder.listener.endpoint
        setting = self._places.setting(endpoint)
        if is_path:
            return f"{what} is a socket that controls HAProxy ({setting})", "choose another path"
        return (
            f"{what} is used by fc-frontend itself ({setting} is {endpoint})",
            f"choose another port, or change {setting}",
        )
