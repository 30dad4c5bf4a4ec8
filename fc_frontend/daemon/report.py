"""What the daemon says of what it does: log events and metrics, once for the same reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fc_frontend.desired.isolate import Withheld
from fc_frontend.errors import Problem, errors_in, warnings_in
from fc_frontend.haproxy.deploy import Deployment, Outcome
from fc_frontend.haproxy.drain_record import DrainOutcome
from fc_frontend.haproxy.take_over import Replaced
from fc_frontend.model.units import UnitId
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import Answer, Freshness, Plan
from fc_frontend.plan.reasons import Reason

_MOST_LOGGED = 20
"""Of one event, what is logged one by one."""
_EACH_MINUTE = 20
"""Of one event and unit, what is logged in a minute: whoever owns the unit decides how often."""


class Report:
    """Remembers what was said last, so that nothing is said twice."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self.problems: tuple[Problem, ...] = ()
        self.withheld: tuple[Withheld, ...] = ()
        self._hash = ""
        self._waiting: tuple[UnitId, ...] = ()

    def _limited(self, event: str, of: object) -> Log:
        return self._log.limited(f"{event} {of}", burst=_EACH_MINUTE)

    def withhold(self, withheld: tuple[Withheld, ...]) -> None:
        """The changes that are not deployed; those that are again are logged as well."""
        before = {held.unit: _without_places(held) for held in self.withheld}
        fresh = [held for held in withheld if before.get(held.unit) != _without_places(held)]
        for held in fresh[:_MOST_LOGGED]:
            problem = held.problems[0] if held.problems else None
            self._limited("withheld", held.unit).error(
                "withheld",
                unit=str(held.unit),
                at=(problem.location or None) if problem else None,
                field=problem.field if problem else None,
                error=problem.message if problem else None,
                remedy=(problem.remedy or None) if problem else None,
                effect=held.effect,
            )
        if len(fresh) > _MOST_LOGGED:
            self._log.error("withheld-more", units=len(fresh) - _MOST_LOGGED)
        now = {held.unit for held in withheld}
        for unit in sorted(before.keys() - now, key=lambda unit: unit.position)[:_MOST_LOGGED]:
            self._limited("withheld-ended", unit).info("withheld-ended", unit=str(unit))
        self.withheld = withheld
        self._metrics.withheld([(held.unit.kind, held.unit.name) for held in withheld])

    def waiting(self, units: tuple[UnitId, ...]) -> None:
        """The units that are gone from the files, and that are removed unless they come back."""
        fresh = [unit for unit in units if unit not in self._waiting]
        for unit in fresh[:_MOST_LOGGED]:
            self._limited("removal-waits", unit).info("removal-waits", unit=str(unit))
        if len(fresh) > _MOST_LOGGED:
            self._log.info("removal-waits-more", units=len(fresh) - _MOST_LOGGED)
        self._waiting = units

    def refusal(self, problems: Iterable[Problem], deployment: Deployment | None = None) -> None:
        """Why nothing changes."""
        found = tuple(problems)
        errors = errors_in(found)
        if deployment is not None and deployment.outcome is Outcome.NEEDS_CONSENT:
            errors = ()  # reported as such
        if found != self.problems and errors:
            fields = {}
            if deployment is not None and deployment.refused_file:
                fields["refused_file"] = deployment.refused_file
            self._log.error(
                "reload-failed"
                if deployment is not None and deployment.outcome is Outcome.FAILED
                else "config-refused",
                errors=len(errors),
                first=str(errors[0]),
                effect="HAProxy keeps its configuration",
                **fields,
            )
        self.note(found)

    def note(self, problems: tuple[Problem, ...]) -> None:
        """What is wrong with what is declared, as far as it was not said yet."""
        if problems != self.problems:
            known = set(self.problems)
            fresh = [problem for problem in problems if problem not in known]
            for problem in fresh[:_MOST_LOGGED]:
                limited = self._limited("problem", problem.service or problem.file)
                log = limited.error if errors_in((problem,)) else limited.warning
                log(
                    "problem",
                    service=problem.service,
                    at=problem.location or None,
                    field=problem.field,
                    error=problem.message,
                    remedy=problem.remedy or None,
                )
            if self.problems and not problems:
                self._log.info("problems-gone")
        self.problems = problems
        held = sum(len(change.problems) for change in self.withheld)
        self._metrics.problems(len(errors_in(problems)) + held, len(warnings_in(problems)))

    def deployed(self, deployment: Deployment, why: tuple[Reason, ...], plan: Plan) -> None:
        """What HAProxy was given, and why; that it has it still is said once."""
        is_old = deployment.outcome is Outcome.IN_SYNC and deployment.hash == self._hash
        self._hash = deployment.hash
        if is_old:
            return
        shown = "; ".join(str(reason) for reason in why[:_MOST_LOGGED])
        more = f"; and {len(why) - _MOST_LOGGED} more" if len(why) > _MOST_LOGGED else ""
        self._log.info(
            f"config-{deployment.outcome}",
            reasons=shown + more if deployment.outcome is not Outcome.IN_SYNC else None,
            services=len(plan.services),
            slots=plan.slot_count,
            hash=deployment.hash,
            seconds=round(deployment.duration, 3),
        )

    def replaced(self, replaced: Replaced | None) -> None:
        """A haproxy.cfg that was not ours, or not any more, was replaced."""
        if replaced is not None and replaced.entry is not None:
            self._log.warning(
                "config-replaced",
                was=replaced.found.origin.value,
                proxies=len(replaced.found.proxies),
                kept_as_entry=replaced.entry.id,
                undo=f"fc-frontend rollback {replaced.entry.id}",
            )

    def answers(self, before: Mapping[str, Answer], after: Mapping[str, Answer]) -> None:
        """What cluster DNS says otherwise than before."""
        changed = [
            name
            for name, answer in after.items()
            if (old := before.get(name)) is not answer and old != answer
        ]
        for name in changed[:_MOST_LOGGED]:
            old, new = before.get(name), after[name]
            pods = {endpoint.address for endpoint in new.endpoints}
            had = {endpoint.address for endpoint in old.endpoints} if old else set()
            log = self._limited("dns", name)
            if new.freshness is not Freshness.FRESH and old and old.freshness is Freshness.FRESH:
                log.warning(
                    "dns-stale",
                    service=name,
                    error=new.error,
                    effect="the last answer stays in use",
                )
            elif old and old.freshness is not Freshness.FRESH and new.freshness is Freshness.FRESH:
                log.info("dns-fresh", service=name, pods=len(pods))
            elif new.lost_at is not None and (old is None or old.lost_at is None):
                log.warning(
                    "dns-empty",
                    service=name,
                    error=new.error,
                    effect="its pods stay for intervals.hold",
                )
            elif pods != had or (old and old.kind is not new.kind):
                log.info(
                    "dns-changed",
                    service=name,
                    discovery=new.kind,
                    pods=len(pods),
                    came=len(pods - had),
                    went=len(had - pods),
                    error=new.error,
                )
        if len(changed) > _MOST_LOGGED:
            self._log.info("dns-changed-more", services=len(changed) - _MOST_LOGGED)

    def drains(self, held: DrainOutcome) -> None:
        """What the worker was told about drained pods."""
        for problem in held.problems:
            self._log.limited("drains-unknown").warning(
                "drains-unknown", error=problem.message, remedy=problem.remedy
            )
        gone = sorted(held.before.pods - held.record.pods)
        for name, address in gone[:_MOST_LOGGED]:
            self._log.info("drain-ended", service=name, pod=address, reason="the pod is gone")
        for name in sorted(held.before.services - held.record.services)[:_MOST_LOGGED]:
            self._log.info("drain-ended", service=name, reason="the service is gone")
        if held.sent:
            self._log.info(
                "drain-kept",
                services=",".join(sorted(held.before.names)),
                drained=sum(command.endswith(" drain") for command in held.sent),
                freed=sum(command.endswith(" ready") for command in held.sent),
            )


def _without_places(held: Withheld) -> Withheld:
    """The change without what may differ between two looks at it, such as line numbers."""
    problems = {replace(problem, line=None, column=None) for problem in held.problems}
    return replace(
        held, problems=tuple(sorted(problems, key=str)), text=None, is_known=False, fingerprint=""
    )
