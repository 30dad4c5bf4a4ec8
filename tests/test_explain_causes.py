"""The output of `explain` and `status` depends on causes, whatever the wording of messages."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from ipaddress import ip_network

import pytest

from fc_frontend.daemon.state import DaemonState
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.desired.isolate import Withheld
from fc_frontend.errors import Cause, Problem
from fc_frontend.explain.facts import Facts
from fc_frontend.explain.overview import Seen, StatusLevel, overview
from fc_frontend.explain.steps import Step, StepVerdict, explain
from fc_frontend.haproxy.wording import without_lines
from fc_frontend.model.units import ChangeKind, UnitId, UnitKind
from fc_frontend.observe.log import configure
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import Answer, Bind, Cluster, Freshness, Kind, ServiceSpec, Target

SPEC = ServiceSpec(name="shop", service="shop", binds=(Bind("ip", "127.0.0.1", 80),), port=8080)
CLUSTER = Cluster(
    service_networks=(ip_network("10.96.0.0/16"),), pod_networks=(ip_network("10.1.0.0/16"),)
)
ANSWER = Answer(kind=Kind.HEADLESS, reason="why", freshness=Freshness.FRESH)


def step(name: str, answer: Answer, spec: ServiceSpec = SPEC) -> Step:
    facts = Facts(name="shop", spec=spec, cluster=CLUSTER, now=answer)
    return next(step for step in explain(facts).steps if step.name == name)


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        (Cause.SERVFAIL, "CoreDNS has no data"),
        (Cause.REFUSED, "acl"),
        (Cause.UNUSABLE_ANSWER, "dig +tcp"),
        (None, "routes, firewall"),
    ],
)
def test_the_remedy_of_a_dns_failure_follows_from_its_cause(
    failure: Cause | None, remedy: str
) -> None:
    words = "one says SERVFAIL, another REFUSED, a third is truncated"
    failed = replace(ANSWER, freshness=Freshness.UNKNOWN, error=words, failure=failure)
    assert remedy in step("dns", failed).remedy


def test_a_cluster_ip_in_the_place_of_pods_comes_with_a_headless_manifest() -> None:
    answer = replace(ANSWER, rejected=("10.96.0.7",), remedy="use service_port")
    assert not step("networks", answer).details
    assert "  clusterIP: None" in step("networks", replace(answer, cause=Cause.CLUSTER_IP)).details


def test_pods_behind_service_port_are_not_blamed_on_wildcards() -> None:
    spec = replace(SPEC, target=Target.SERVICE)
    answer = replace(
        ANSWER,
        kind=Kind.SERVICE,
        rejected=("10.1.0.7",),
        remedy="use pod_port",
        cause=Cause.FOREIGN_NETWORK,
    )
    assert step("dns", answer, spec).verdict is StepVerdict.OK
    assert step("networks", answer, spec).remedy == "use pod_port"


@pytest.mark.parametrize(("cause", "level"), [(Cause.FORBIDDEN, 1), (None, 2)])
def test_only_a_socket_that_this_user_may_not_open_is_no_critical_state(
    cause: Cause | None, level: int
) -> None:
    problem = Problem(message="Permission denied", cause=cause)
    (finding,) = overview(Seen(worker_problem=problem)).findings
    assert finding.level == StatusLevel(level)


def test_a_withheld_change_is_logged_again_only_if_more_than_its_line_changes() -> None:
    written = StringIO()
    tracker = Tracker(configure(written), Metrics())
    problem = Problem(message="no such keyword", file="a.yaml", line=3)

    def logged(problem: Problem) -> int:
        before = len(written.getvalue())
        unit = UnitId(UnitKind.SERVICE, "shop")
        withheld = Withheld(unit, ChangeKind.EDITED, (problem,), is_kept=True)
        tracker.become(DaemonState(withheld=(withheld,)))
        return written.getvalue()[before:].count("withheld")

    assert logged(problem) == 1
    assert logged(replace(problem, line=4)) == 0
    assert logged(replace(problem, message="no such file")) == 1


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("parsing [haproxy.cfg:7] : unknown keyword 'x'", "unknown keyword 'x'"),
        ("proxy 'a': no bind at [haproxy.cfg:12]", "proxy 'a': no bind at [haproxy.cfg]"),
        ("parsing [/etc/haproxy/haproxy.cfg:7] : x", "parsing [/etc/haproxy/haproxy.cfg] : x"),
    ],
)
def test_messages_have_no_lines_of_a_text_that_nobody_keeps(said: str, shown: str) -> None:
    assert without_lines(said) == shown
