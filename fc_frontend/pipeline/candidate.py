"""A configuration that may be deployed, the checks that can refuse it, and the final result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from fc_frontend.config.declare import Declaration
from fc_frontend.desired.isolate import Withheld
from fc_frontend.errors import Cause, Problem, Unavailable, errors_in
from fc_frontend.haproxy import kept_files, runtime
from fc_frontend.haproxy.conflicts import listener_problems
from fc_frontend.haproxy.judge import judge
from fc_frontend.haproxy.patience import Patience
from fc_frontend.model.units import UnitId, UnitKind
from fc_frontend.pipeline.base import Base
from fc_frontend.plan.model import Answer, Kind, Plan, Resolution
from fc_frontend.render.config import Config
from fc_frontend.render.names import name_problems
from fc_frontend.render.routes import route_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A configuration to deploy, and how it follows from the declarations.

    `declaration` matches the configuration: withheld services in their running form, and the errors
    of the declared ones.  `config` is None if even the running configuration is refused; `problems`
    then has errors.
    """

    declaration: Declaration
    resolution: Resolution
    plan: Plan
    config: Config | None
    problems: tuple[Problem, ...]
    withheld: tuple[Withheld, ...] = ()
    waiting: tuple[UnitId, ...] = ()
    """The removals that are only delayed."""
    base: Base = field(default_factory=Base)
    is_complete: bool = True
    """False if the search for changes to withhold continues in the next step."""
    is_checked: bool = False
    """True if HAProxy's check has just accepted the text."""

    @property
    def ok(self) -> bool:
        """Whether it can be deployed."""
        return self.config is not None and not errors_in(self.problems)

    @property
    def changed_files(self) -> tuple[str, ...]:
        """The files whose units differ from HAProxy's former ones, if fc-frontend wrote those."""
        assert self.config is not None
        if self.base.config is None:
            return ()
        before, after = self.base.sections, {each.unit: each for each in self.config.sections}
        changed = {
            section.file
            for unit in before.keys() | after.keys()
            if (before[unit].text if unit in before else None)
            != (after[unit].text if unit in after else None)
            for section in (after.get(unit), before.get(unit))
            if section is not None and section.file
        }
        return tuple(sorted(changed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A composition that may be deployed."""

    declaration: Declaration
    resolution: Resolution
    plan: Plan
    config: Config
    newcomers: frozenset[UnitId]
    """The units that HAProxy does not have in this form."""
    moved: frozenset[str] = frozenset()
    """The services whose pods are looked up by another question or in another cluster."""

    def left_without_server(self, serving: AbstractSet[str]) -> tuple[Problem, ...]:
        """Return the services that have a server now, and would have none by the answers of DNS.

        `serving` are the serving proxies, and the serving binds of a foreign haproxy.cfg.
        """
        if not serving:
            return ()
        found = []
        for planned in self.plan.services:
            name = planned.spec.name
            unit = UnitId(UnitKind.SERVICE, name)
            answer = self.resolution.get(name)
            has_server = name in serving or not serving.isdisjoint(map(str, planned.spec.binds))
            if (
                has_server
                and name in self.moved
                and unit not in self.declaration.forced
                and planned.kind is not Kind.NODES
                and (answer is None or not answer.endpoints)
            ):
                found.append(_no_server_left(unit, answer))
        return tuple(self.declaration.located(problem) for problem in found)

    def problems(self) -> tuple[Problem, ...]:
        """Return the problems between its units that are found before HAProxy checks it."""
        found = [*errors_in(self.plan.problems), *name_problems(self.config, self.newcomers)]
        untrusted = self.declaration.untrusted
        found += route_problems(self.config, self.newcomers, untrusted)
        found += listener_problems(self.plan, self.config, self.newcomers, untrusted)
        return tuple(self.declaration.located(problem) for problem in found)


def _no_server_left(unit: UnitId, answer: Answer | None) -> Problem:
    said = "would lose all its servers: "
    if answer is None:
        said += "cluster DNS gives no answer"
        remedy = "correct cluster.nameservers"
    elif answer.rejected:
        shown = ", ".join(answer.rejected[:3])
        said += f"cluster DNS names only addresses outside of the networks: {shown}"
        remedy = "correct cluster.pod_network and cluster.service_network"
    else:
        said += answer.error or "cluster DNS names no pod"
        remedy = "correct service, namespace, port or cluster.domain"
    return Problem(
        said,
        f"{remedy}, or deploy it anyway: `fc-frontend apply --force {unit.name}`",
        service=unit.name,
        unit=unit,
        cause=Cause.NO_SERVER_LEFT,
    )


Check = Callable[[Candidate, bool], tuple[Problem, ...]]
"""HAProxy's verdict, and everything else that can refuse a text without known problems.

The second argument is False for the first candidate, True for trials without some changes.
"""


def no_check(_candidate: Candidate, _is_trial: bool) -> tuple[Problem, ...]:
    """Run no check: only changes with problems of their own or between units are withheld."""
    return ()


def haproxy_check(patience: Patience | None = None) -> Check:
    """Return a check that runs `haproxy -c` as an unprivileged user.  It raises `Unavailable`."""
    limits = patience or Patience()
    serving: frozenset[str] | None = None

    def check(candidate: Candidate, is_trial: bool) -> tuple[Problem, ...]:
        nonlocal serving
        settings = candidate.plan.settings
        if serving is None:
            serving = frozenset()
            with contextlib.suppress(Unavailable):
                serving = runtime.serving(
                    runtime.servers_with_address(settings.haproxy.runtime_socket)
                )
        if left := candidate.left_without_server(serving):
            return left
        kept = kept_files.directory(settings.state_directory)
        return judge(
            settings.haproxy,
            candidate.config,
            candidate.plan,
            kept=kept,
            patience=limits,
            is_trial=is_trial,
        ).problems

    return check
