"""Slots, kinds, notices and reasons: pure functions over values."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.errors import Severity
from fc_frontend.plan import slots
from fc_frontend.plan.model import (
    Answer,
    Bind,
    Cluster,
    Endpoint,
    Fragment,
    Freshness,
    Haproxy,
    Kind,
    Origin,
    Plan,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan
from fc_frontend.plan.reasons import Reason, ReloadCause, reasons

SETTINGS = Settings(
    cluster=Cluster(
        pod_networks=(ip_network("10.1.0.0/16"),), service_networks=(ip_network("10.0.0.0/24"),)
    ),
    haproxy=Haproxy(stats=Bind("ip", "127.0.0.1", 8000)),
)
SHOP = ServiceSpec(name="shop", service="shop", binds=(Bind("ip", "127.0.0.1", 80),), port=8080)


def answer(pods: int, kind: Kind = Kind.HEADLESS, have: int = 0) -> Answer:
    endpoints = tuple(Endpoint(f"10.1.{n // 250}.{n % 250 + 1}", 8080) for n in range(pods))
    return Answer(kind=kind, reason="", endpoints=endpoints, freshness=Freshness.FRESH, slots=have)


def planned(spec: ServiceSpec, given: Answer | None, *, shrink: bool = False) -> Plan:
    return plan(SETTINGS, [spec], (), {spec.name: given} if given else {}, shrink=shrink)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_automatic_slots_leave_room_and_never_shrink(pods: int, have: int) -> None:
    count = slots.automatic(pods, have)
    assert count >= min(slots.MOST, pods + max(2, pods // 4))
    assert count >= have
    assert slots.automatic(pods) <= max(10, 2 * slots.needed(pods))


def test_growing_pods_change_the_slots_rarely() -> None:
    have, changes = 0, 0
    for pods in range(1000):
        count = slots.automatic(pods, have)
        changes += count != have
        have = count
    assert changes == 8


@pytest.mark.parametrize(
    ("kind", "query", "count"),
    [
        (Kind.WILDCARD, "*.shop.default.svc.cluster.local", 10),
        (Kind.HEADLESS, "shop.default.svc.cluster.local", 10),
        (Kind.SERVICE, "shop.default.svc.cluster.local", 1),
    ],
)
def test_the_answers_kind_decides_the_query(kind: Kind, query: str, count: int) -> None:
    (service,) = planned(SHOP, answer(3, kind)).services
    assert (service.query, service.slots) == (query, count)


def test_without_an_answer_the_plan_says_that_it_guesses() -> None:
    result = planned(SHOP, None)
    assert result.services[0].kind is Kind.HEADLESS
    assert result.services[0].slots == slots.DEFAULT
    (problem,) = result.problems
    assert problem.severity is Severity.WARNING
    assert "no DNS data for" in problem.message


def test_slots_shrink_only_in_passing_and_only_by_fresh_answers() -> None:
    many = answer(3, have=320)
    assert planned(SHOP, many).services[0].slots == 320
    assert planned(SHOP, many, shrink=True).services[0].slots == 10
    stale = replace(many, freshness=Freshness.STALE)
    assert planned(SHOP, stale, shrink=True).services[0].slots == 320


def test_too_few_fixed_slots_are_said_before_and_when_traffic_is_lost() -> None:
    spec = replace(SHOP, slots=20)
    assert not planned(spec, answer(16)).problems
    assert "little room is left" in planned(spec, answer(17)).problems[0].message
    full = planned(spec, answer(23))
    assert "3 pods get no traffic" in full.problems[0].message
    assert full.problems[0].remedy == "use slots: auto, or 40"


def test_a_fallback_is_planned_only_where_there_is_a_cluster_ip() -> None:
    spec = replace(SHOP, fallback=True)
    wildcard = planned(spec, answer(1, Kind.WILDCARD)).services[0]
    assert wildcard.fallback_query == "shop.default.svc.cluster.local"
    headless = planned(spec, answer(1, Kind.HEADLESS))
    assert headless.services[0].fallback_query is None
    assert "no cluster IP" in headless.problems[0].message


def test_nothing_to_listen_on_is_an_error() -> None:
    settings = replace(SETTINGS, haproxy=replace(SETTINGS.haproxy, stats=None))
    (problem,) = plan(settings, [], (), {}).problems
    assert "nothing to listen on" in problem.message


def test_services_are_sorted_whatever_their_order() -> None:
    specs = [replace(SHOP, name=name) for name in ("b", "c", "a")]
    names = [service.spec.name for service in plan(SETTINGS, specs, (), {}).services]
    assert names == ["a", "b", "c"]


def _reasons(before: Plan, after: Plan) -> list[str]:
    return [str(reason) for reason in reasons(before, after)]


def test_reasons_name_what_changed() -> None:
    before = planned(SHOP, answer(3))
    assert reasons(None, before) == (Reason(ReloadCause.START),)
    assert _reasons(before, planned(SHOP, answer(300))) == ["slots shop 10→640"]
    assert _reasons(before, planned(SHOP, answer(3, Kind.WILDCARD))) == [
        "discovery shop headless→wildcard"
    ]
    other = replace(SHOP, name="other")
    assert _reasons(before, planned(other, answer(3))) == [
        "service-added other",
        "service-removed shop",
    ]
    moved = replace(SHOP, balance="source")
    assert _reasons(before, planned(moved, answer(3))) == ["service-changed shop"]
    fragment = Fragment("raw", "listen raw\n", Origin("raw.cfg"))
    assert _reasons(before, replace(before, fragments=(fragment,))) == ["fragment raw"]
    settings = replace(SETTINGS, state_directory="/elsewhere")
    assert _reasons(before, replace(before, settings=settings)) == ["settings"]
    assert _reasons(before, before) == ["templates"]
    assert [str(each) for each in reasons(before, before, is_same_text=True)] == ["haproxy"]


def test_moving_a_declaration_to_another_file_is_no_reason() -> None:
    one = replace(SHOP, origin=Origin("a.yaml", 1))
    other = replace(SHOP, origin=Origin("b.yaml", 9))
    assert planned(one, answer(3)) == planned(other, answer(3))
