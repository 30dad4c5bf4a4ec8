"""The daemon's decision in each state, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fc_frontend.decide import (
    Action,
    FileState,
    Idle,
    Install,
    Nothing,
    Observed,
    Policy,
    Refusal,
    Refuse,
    Reload,
    Restore,
    Runtime,
    Start,
    StartInstalled,
    State,
    decide,
)
from fc_frontend.errors import Problem
from fc_frontend.plan.reasons import Reason, ReloadCause
from fc_frontend.render.config import Config

OLD = Config("old text", "old")
NEW = Config("new text", "new")
FORMER = Config("former text", "former")
WHY = (Reason(ReloadCause.SERVICE_ADDED, "shop"),)
BROKEN = (Problem(message="certificate missing"),)

RUNS_OLD = Observed(is_running=True, running="old", installed="old")
RUNS_NEW = Observed(is_running=True, running="new", installed="new")
RUNS_FOREIGN = Observed(is_running=True, file=FileState.FOREIGN)
STOPPED = Observed(is_running=False, installed="old")
EDITED = replace(RUNS_NEW, file=FileState.EDITED, installed=None)
SUPERVISED = Policy(supervises=True)
ADOPTING = Policy(restores_drift=False)

CHANGED = State(observed=RUNS_OLD, desired=NEW, reasons=WHY)
IN_SYNC = State(observed=RUNS_NEW, desired=NEW)

CASES: dict[str, tuple[State, Action]] = {
    "in sync": (IN_SYNC, Nothing(Idle.IN_SYNC)),
    "in sync, pods moved": (replace(IN_SYNC, commands=("set server",)), Runtime(("set server",))),
    "changed": (CHANGED, Reload(NEW, WHY)),
    "changed, reload failed before": (
        replace(CHANGED, failed="new"),
        Nothing(Idle.ALREADY_FAILED),
    ),
    "changed, another text failed before": (replace(CHANGED, failed="older"), Reload(NEW, WHY)),
    "base refused": (
        replace(CHANGED, refused=BROKEN),
        Refuse(Refusal.BASE_REFUSED, BROKEN),
    ),
    "base refused, HAProxy gone": (
        replace(CHANGED, observed=STOPPED, refused=BROKEN, policy=SUPERVISED),
        StartInstalled("old"),
    ),
    "base refused, HAProxy gone, others start it": (
        replace(CHANGED, observed=STOPPED, refused=BROKEN),
        Refuse(Refusal.BASE_REFUSED, BROKEN),
    ),
    "base refused, HAProxy gone, nothing of ours installed": (
        State(
            observed=Observed(is_running=False, file=FileState.MISSING),
            refused=BROKEN,
            policy=SUPERVISED,
        ),
        Refuse(Refusal.BASE_REFUSED, BROKEN),
    ),
    "nothing could be composed": (State(observed=RUNS_OLD), Refuse(Refusal.NOTHING_DECLARED)),
    "HAProxy gone, supervised": (
        State(observed=STOPPED, desired=NEW, policy=SUPERVISED),
        Start(NEW),
    ),
    "HAProxy gone, supervised, a reload of this text failed": (
        State(observed=STOPPED, desired=NEW, policy=SUPERVISED, failed="new"),
        Start(NEW),
    ),
    "HAProxy gone, others start it": (State(observed=STOPPED, desired=NEW), Install(NEW)),
    "HAProxy gone, installed already": (
        State(observed=STOPPED, desired=OLD),
        Nothing(Idle.INSTALLED),
    ),
    "HAProxy gone, file edited": (
        State(observed=Observed(is_running=False, file=FileState.EDITED), desired=OLD),
        Install(OLD),
    ),
    "held, running": (
        State(observed=RUNS_OLD, desired=NEW, held=OLD),
        Nothing(Idle.IN_SYNC),
    ),
    "held, another one runs": (
        State(observed=RUNS_NEW, desired=NEW, held=FORMER),
        Reload(FORMER, ()),
    ),
    "held, HAProxy gone": (
        State(observed=STOPPED, desired=NEW, held=OLD, policy=SUPERVISED),
        Start(OLD),
    ),
    "held, declaration refused": (
        State(observed=RUNS_OLD, refused=BROKEN, held=OLD),
        Nothing(Idle.IN_SYNC),
    ),
    "held, file edited": (
        State(observed=replace(RUNS_OLD, file=FileState.EDITED, installed=None), held=OLD),
        Restore(OLD),
    ),
    "drift restored": (replace(IN_SYNC, observed=EDITED), Restore(NEW)),
    "drift left": (
        replace(IN_SYNC, observed=EDITED, policy=ADOPTING),
        Nothing(Idle.DRIFT_LEFT),
    ),
    "drift left, pods moved": (
        replace(IN_SYNC, observed=EDITED, policy=ADOPTING, commands=("set server",)),
        Runtime(("set server",)),
    ),
    "file removed, drift left": (
        replace(
            IN_SYNC,
            observed=replace(RUNS_NEW, file=FileState.MISSING, installed=None),
            policy=ADOPTING,
        ),
        Restore(NEW),
    ),
    "an older text of ours installed by others": (
        replace(IN_SYNC, observed=replace(RUNS_NEW, installed="old")),
        Restore(NEW),
    ),
    "foreign file, no consent": (
        State(observed=RUNS_FOREIGN, desired=NEW, has_consent=False),
        Refuse(Refusal.FOREIGN_FILE),
    ),
    "foreign file, HAProxy gone, no consent": (
        State(
            observed=Observed(is_running=False, file=FileState.FOREIGN),
            desired=NEW,
            has_consent=False,
            policy=SUPERVISED,
        ),
        Refuse(Refusal.FOREIGN_FILE),
    ),
    "foreign file, consent": (
        State(observed=RUNS_FOREIGN, desired=NEW, reasons=WHY),
        Reload(NEW, WHY),
    ),
}


@pytest.mark.parametrize(("state", "action"), CASES.values(), ids=CASES)
def test_the_action_in_each_state(state: State, action: Action) -> None:
    assert decide(state) == action
