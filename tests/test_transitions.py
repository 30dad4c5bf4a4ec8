"""The daemon's conclusions from its observations, and the log of each change of its state."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from fc_frontend.config.running import RawDeclaration
from fc_frontend.daemon.decide import Drift, after_hold, drift, is_amiss, leaves_drift
from fc_frontend.daemon.guard import Revert, reverts
from fc_frontend.daemon.state import Attempted, DaemonState
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.daemon.transitions import transitions
from fc_frontend.desired.isolate import Withheld
from fc_frontend.errors import Problem, Severity
from fc_frontend.haproxy.deploy import Deployment, Outcome
from fc_frontend.haproxy.hold import Hold
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.model.units import ChangeKind, UnitId, UnitKind
from fc_frontend.observe.log import configure
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import Haproxy, Plan, Settings
from fc_frontend.plan.reasons import Reason, ReloadCause
from fc_frontend.render.config import Config

TEXT = Config("text", "new")
RESTORING = Plan(settings=Settings(), services=())
ADOPTING = Plan(settings=Settings(haproxy=Haproxy(drift="adopt")), services=())
NEW = DaemonState(deployed=RESTORING, config=TEXT, wanted="new", running="new")
LEFT = replace(NEW, deployed=ADOPTING, is_drift_left=True)
HELD = Hold(id=3, hash="old", by="root")
UNKNOWN = Hold()
SHOP = UnitId(UnitKind.SERVICE, "shop")
FAULT = Problem("no such keyword", "correct it", service="shop")
WARNING = replace(FAULT, severity=Severity.WARNING)
FAULTY = (Withheld(SHOP, ChangeKind.EDITED, (FAULT,), is_kept=True),)


@pytest.mark.parametrize(
    ("before", "found", "after"),
    [
        (NEW, None, NEW),
        (NEW, HELD, replace(NEW, held=HELD, wanted="old", config=None)),
        (NEW, UNKNOWN, replace(NEW, held=UNKNOWN, config=None)),
        (LEFT, HELD, replace(LEFT, held=HELD, wanted="old", config=None, is_drift_left=False)),
        (replace(NEW, held=HELD, wanted="old"), HELD, replace(NEW, held=HELD, wanted="old")),
        (
            replace(NEW, held=UNKNOWN, running="other"),
            UNKNOWN,
            replace(NEW, held=UNKNOWN, running="other", wanted="other"),
        ),
        (replace(NEW, held=HELD, wanted="old"), None, replace(NEW, wanted=None)),
    ],
    ids=["none", "begins", "begins unread", "begins on drift", "goes on", "unread", "ends"],
)
def test_a_hold(before: DaemonState, found: Hold | None, after: DaemonState) -> None:
    assert after_hold(before, found) == after


@pytest.mark.parametrize(
    ("state", "file", "found"),
    [
        (NEW, b"text", Drift.NONE),
        (NEW, b"edited", Drift.RESTORE),
        (NEW, None, Drift.RESTORE),
        (LEFT, b"edited", Drift.LEAVE),
        (LEFT, None, Drift.RESTORE),
        (replace(NEW, held=HELD), b"edited", Drift.NONE),
        (replace(NEW, config=None), b"edited", Drift.NONE),
    ],
    ids=["as written", "edited", "gone", "left", "gone, not left", "held", "not known"],
)
def test_drift(state: DaemonState, file: bytes | None, found: Drift) -> None:
    assert drift(state, file) is found


def test_drift_is_left_until_the_configuration_changes() -> None:
    assert leaves_drift(LEFT, "new")
    assert not leaves_drift(LEFT, "old"), "something else is wanted than what HAProxy had"
    assert not leaves_drift(replace(LEFT, deployed=RESTORING), "new")
    assert not leaves_drift(replace(LEFT, is_drift_left=False), "new")


@pytest.mark.parametrize(
    ("running", "wanted", "supervises", "amiss"),
    [
        ("new", "new", True, False),
        ("old", "new", False, True),
        ("old", None, True, False),
        (None, "new", False, False),
        (None, "new", True, True),
        (None, None, True, True),
        (None, None, False, False),
    ],
)
def test_what_is_amiss(
    running: str | None, wanted: str | None, supervises: bool, amiss: bool
) -> None:
    state = DaemonState(running=running, wanted=wanted)
    assert is_amiss(state, supervises=supervises) is amiss


def server(address: str | None) -> ServerState:
    """Return a server of shop with nothing known but its address."""
    return ServerState(
        "shop",
        "pod1",
        address,
        port=None,
        operational=None,
        admin=None,
        weight=None,
        initial_weight=None,
        changed_ago=None,
        check_status=None,
        check_result=None,
        check_health=None,
        check_state=None,
        agent_state=None,
        fqdn=None,
        srv_record=None,
    )


def test_the_guard_gives_the_evidence_for_what_still_runs() -> None:
    shop, gone = RawDeclaration("a.yaml", {"pod_port": 80}), RawDeclaration("b.yaml", {})
    servers = [server(address) for address in ("10.0.0.1", "10.0.0.2", None)]
    evidence = "all of its 2 servers failed their checks after the reload"
    found = reverts({"shop": shop, "gone": gone}, {"shop"}, servers)
    assert found == (Revert("shop", shop, evidence),)
    (one,) = reverts({"shop": shop}, {"shop"}, servers[:1])
    assert one.evidence == "its only server failed its checks after the reload"


def attempted(outcome: Outcome) -> Attempted:
    reasons = (Reason(ReloadCause.SERVICE_ADDED, "shop"),)
    deployment = Deployment(outcome=outcome, hash="new")
    return Attempted(at=0.0, reasons=reasons, deployment=deployment)


IN_SYNC = attempted(Outcome.IN_SYNC)
FAILED = Deployment(outcome=Outcome.FAILED, hash="new")
REFUSED = Deployment(outcome=Outcome.REFUSED, hash="new", refused_file="/x.refused")
NEEDS_CONSENT = Deployment(outcome=Outcome.NEEDS_CONSENT, hash="new")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (NEW, NEW, ()),
        (NEW, replace(NEW, running=None), ("running-config-changed",)),
        (NEW, replace(NEW, held=HELD), ("held",)),
        (replace(NEW, held=HELD), replace(NEW, held=HELD), ()),
        (replace(NEW, held=HELD), NEW, ("resumed",)),
        (NEW, replace(NEW, withheld=FAULTY), ("withheld",)),
        (replace(NEW, withheld=FAULTY), replace(NEW, withheld=(replace(*FAULTY),)), ()),
        (replace(NEW, withheld=FAULTY), NEW, ("withheld-ended",)),
        (NEW, replace(NEW, waiting=(SHOP,)), ("removal-waits",)),
        (replace(NEW, waiting=(SHOP,)), replace(NEW, waiting=(SHOP,)), ()),
        (NEW, replace(NEW, problems=(WARNING,)), ("problem",)),
        (replace(NEW, problems=(WARNING,)), NEW, ("problems-gone",)),
        (NEW, replace(NEW, refusal=FAILED, problems=(FAULT,)), ("reload-failed", "problem")),
        (NEW, replace(NEW, refusal=REFUSED, problems=(FAULT,)), ("config-refused", "problem")),
        (NEW, replace(NEW, refusal=NEEDS_CONSENT, problems=(FAULT,)), ("problem",)),
        (
            replace(NEW, refusal=FAILED, problems=(FAULT,)),
            replace(NEW, refusal=replace(FAILED, duration=1.0), problems=(FAULT,)),
            (),
        ),
        (NEW, replace(NEW, taken=attempted(Outcome.RELOADED)), ("config-reloaded",)),
        (NEW, replace(NEW, taken=IN_SYNC), ("config-in-sync",)),
        (replace(NEW, taken=IN_SYNC), replace(NEW, taken=attempted(Outcome.IN_SYNC)), ()),
    ],
)
def test_what_is_logged(before: DaemonState, after: DaemonState, said: tuple[str, ...]) -> None:
    assert tuple(event.name for event in transitions(before, after)) == said


def test_of_many_changes_a_few_are_logged() -> None:
    units = tuple(UnitId(UnitKind.SERVICE, f"shop{number}") for number in range(50))
    events = transitions(NEW, replace(NEW, waiting=units))
    assert len(events) == 21
    assert events[-1].name == "removal-waits-more"
    assert events[-1].fields == {"units": 30}


def test_log_and_metrics_follow_from_the_state() -> None:
    log, metrics = io.StringIO(), Metrics()
    tracker = Tracker(configure(log), metrics)
    tracker.become(replace(NEW, held=HELD, withheld=FAULTY, is_drift_left=True))
    shown = metrics.exposition(0.0).decode()
    for line in (
        "fc_frontend_config_in_sync 1.0",
        "fc_frontend_held 1.0",
        "fc_frontend_config_drift 1.0",
        'fc_frontend_config_problems{severity="error"} 1.0',
        'fc_frontend_withheld{kind="service"} 1.0',
    ):
        assert line in shown
    assert "held entry=3 hash=old by=root" in log.getvalue()
