"""The log events of a change of the daemon's state.  Pure: computed from the two states.

Nothing is logged twice.  If many units have the same event, only some of them are logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fc_frontend.daemon.state import DaemonState
from fc_frontend.desired.isolate import Withheld
from fc_frontend.errors import errors_in
from fc_frontend.haproxy.deploy import Outcome
from fc_frontend.haproxy.drain_record import DrainOutcome
from fc_frontend.haproxy.take_over import Replaced
from fc_frontend.plan.model import Answer, Freshness

_MOST_LOGGED = 20
"""The most units logged individually for one event."""
_EACH_MINUTE = 20
"""The most events logged in a minute under one limit."""

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log."""

    level: Level
    name: str
    fields: Mapping[str, object] = field(default_factory=dict)
    limit: str | None = None
    """The key of its rate limit, so that the owner of a unit cannot flood the log."""
    burst: int = _EACH_MINUTE


def transitions(before: DaemonState, after: DaemonState) -> tuple[Event, ...]:
    """Return the events to log when `after` replaces `before`."""
    return (
        *_held(before, after),
        *_waiting(before, after),
        *_withheld(before, after),
        *_refused(before, after),
        *_problems(before, after),
        *_running(before, after),
        *_taken(before, after),
    )


def _held(before: DaemonState, after: DaemonState) -> Iterator[Event]:
    held = after.held
    if held == before.held:
        return
    if held is None:
        yield Event("info", "resumed", {"effect": "normal deployments resume"})
        return
    yield Event(
        "warning",
        "held",
        {
            "entry": held.id,
            "hash": held.hash or "unknown",
            "by": held.by or None,
            "effect": "changes are not deployed",
            "remedy": "fc-frontend resume",
        },
    )


def _running(before: DaemonState, after: DaemonState) -> Iterator[Event]:
    if after.running != before.running:
        fields = {"hash": after.running or "none", "wanted": after.wanted or "none"}
        yield Event("info", "running-config-changed", fields)


def _waiting(before: DaemonState, after: DaemonState) -> Iterator[Event]:
    known = frozenset(before.waiting)
    fresh = [unit for unit in after.waiting if unit not in known]
    for unit in fresh[:_MOST_LOGGED]:
        yield Event("info", "removal-waits", {"unit": str(unit)}, f"removal-waits {unit}")
    if len(fresh) > _MOST_LOGGED:
        yield Event("info", "removal-waits-more", {"units": len(fresh) - _MOST_LOGGED})


def _withheld(before: DaemonState, after: DaemonState) -> Iterator[Event]:
    """Yield an event for each newly withheld change, and for each one no longer withheld."""
    if after.withheld is before.withheld:
        return
    known = {held.unit: _without_places(held) for held in before.withheld}
    fresh = [held for held in after.withheld if known.get(held.unit) != _without_places(held)]
    for held in fresh[:_MOST_LOGGED]:
        problem = held.problems[0] if held.problems else None
        fields = {
            "unit": str(held.unit),
            "at": (problem.location or None) if problem else None,
            "field": problem.field if problem else None,
            "error": problem.message if problem else None,
            "remedy": (problem.remedy or None) if problem else None,
            "effect": held.effect,
        }
        yield Event("error", "withheld", fields, f"withheld {held.unit}")
    if len(fresh) > _MOST_LOGGED:
        yield Event("error", "withheld-more", {"units": len(fresh) - _MOST_LOGGED})
    ended = known.keys() - {held.unit for held in after.withheld}
    for unit in sorted(ended, key=lambda unit: unit.position)[:_MOST_LOGGED]:
        yield Event("info", "withheld-ended", {"unit": str(unit)}, f"withheld-ended {unit}")


def _refused(before: DaemonState, after: DaemonState) -> Iterator[Event]:
    refusal = after.refusal
    if refusal is None or refusal is before.refusal or after.problems == before.problems:
        return
    errors = errors_in(after.problems)
    # Missing consent has an event of its own.
    if errors and refusal.outcome is not Outcome.NEEDS_CONSENT:
        has_failed = refusal.outcome is Outcome.FAILED
        fields = {
            "errors": len(errors),
            "first": str(errors[0]),
            "effect": "HAProxy keeps its configuration",
            "refused_file": refusal.refused_file or None,
        }
        yield Event("error", "reload-failed" if has_failed else "config-refused", fields)


def _problems(before: DaemonState, after: DaemonState) -> Iterator[Event]:
    """Yield events for problems of the declarations that have not been logged yet."""
    if after.problems == before.problems:
        return
    known = set(before.problems)
    fresh = [problem for problem in after.problems if problem not in known]
    for problem in fresh[:_MOST_LOGGED]:
        fields = {
            "service": problem.service,
            "at": problem.location or None,
            "field": problem.field,
            "error": problem.message,
            "remedy": problem.remedy or None,
        }
        level: Level = "error" if errors_in((problem,)) else "warning"
        yield Event(level, "problem", fields, f"problem {problem.service or problem.file}")
    if not after.problems:
        yield Event("info", "problems-gone")


def _taken(before: DaemonState, after: DaemonState) -> Iterator[Event]:
    """Yield an event for an accepted deployment; that HAProxy is in sync is logged once."""
    taken, known = after.taken, before.taken
    if taken is None or taken is known or after.deployed is None:
        return
    deployment, why = taken.deployment, taken.reasons
    is_in_sync = deployment.outcome is Outcome.IN_SYNC
    if is_in_sync and known is not None and deployment.hash == known.deployment.hash:
        return
    shown = "; ".join(str(reason) for reason in why[:_MOST_LOGGED])
    more = f"; and {len(why) - _MOST_LOGGED} more" if len(why) > _MOST_LOGGED else ""
    fields = {
        "reasons": None if is_in_sync else shown + more,
        "services": len(after.deployed.services),
        "slots": after.deployed.slot_count,
        "hash": deployment.hash,
        "seconds": round(deployment.duration, 3),
    }
    yield Event("info", f"config-{deployment.outcome}", fields)


def replaced(found: Replaced | None) -> Iterator[Event]:
    """Yield an event if a haproxy.cfg was replaced that was not fc-frontend's own, or no longer."""
    if found is not None and found.entry is not None:
        fields = {
            "was": found.found.origin.value,
            "proxies": len(found.found.proxies),
            "kept_as_entry": found.entry.id,
            "undo": f"fc-frontend rollback {found.entry.id}",
        }
        yield Event("warning", "config-replaced", fields)


def answers(before: Mapping[str, Answer], after: Mapping[str, Answer]) -> Iterator[Event]:
    """Yield events for changed answers of discovery."""
    changed = [
        name
        for name, answer in after.items()
        if (old := before.get(name)) is not answer and old != answer
    ]
    for name in changed[:_MOST_LOGGED]:
        yield from _answer(name, before.get(name), after[name])
    if len(changed) > _MOST_LOGGED:
        yield Event("info", "dns-changed-more", {"services": len(changed) - _MOST_LOGGED})


def _answer(name: str, old: Answer | None, new: Answer) -> Iterator[Event]:
    limit = f"dns {name}"
    pods = {endpoint.address for endpoint in new.endpoints}
    had = {endpoint.address for endpoint in old.endpoints} if old else set()
    is_fresh = new.freshness is Freshness.FRESH
    was_fresh = old is not None and old.freshness is Freshness.FRESH
    fields: dict[str, object] = {"service": name, "error": new.error}
    if not is_fresh and was_fresh:
        yield Event(
            "warning", "dns-stale", {**fields, "effect": "the last answer stays in use"}, limit
        )
    elif old and not was_fresh and is_fresh:
        yield Event("info", "dns-fresh", {"service": name, "pods": len(pods)}, limit)
    elif new.lost_at is not None and (old is None or old.lost_at is None):
        effect = "its pods stay for intervals.hold"
        yield Event("warning", "dns-empty", {**fields, "effect": effect}, limit)
    elif pods != had or (old and old.kind is not new.kind):
        fields = {
            "service": name,
            "discovery": new.kind,
            "pods": len(pods),
            "came": len(pods - had),
            "went": len(had - pods),
            "error": new.error,
        }
        yield Event("info", "dns-changed", fields, limit)


def drains(held: DrainOutcome) -> Iterator[Event]:
    """Yield events for drains that ended, and for drains that were sent to a new worker."""
    for problem in held.problems:
        fields = {"error": problem.message, "remedy": problem.remedy}
        yield Event("warning", "drains-unknown", fields, "drains-unknown", burst=1)
    for name, address in sorted(held.before.pods - held.record.pods)[:_MOST_LOGGED]:
        gone = {"service": name, "pod": address, "reason": "the pod is gone"}
        yield Event("info", "drain-ended", gone)
    for name in sorted(held.before.services - held.record.services)[:_MOST_LOGGED]:
        yield Event("info", "drain-ended", {"service": name, "reason": "the service is gone"})
    if held.sent:
        kept = {
            "services": ",".join(sorted(held.before.names)),
            "drained": sum(command.endswith(" drain") for command in held.sent),
            "freed": sum(command.endswith(" ready") for command in held.sent),
        }
        yield Event("info", "drain-kept", kept)


def _without_places(held: Withheld) -> Withheld:
    """Return the change without details that vary between looks, such as line numbers."""
    problems = {replace(problem, line=None, column=None) for problem in held.problems}
    return replace(
        held, problems=tuple(sorted(problems, key=str)), text=None, is_known=False, fingerprint=""
    )
