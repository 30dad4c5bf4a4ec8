"""The effect of EndpointSlices on a service: its answer, its standby, and mass emptying."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from fc_frontend.config.templates import packaged_templates
from fc_frontend.discovery.slices import (
    MASS_HELD,
    MASS_WINDOW,
    MassEmptying,
    answer_of,
    as_stale,
)
from fc_frontend.plan.cluster_objects import (
    Condition,
    KubeService,
    ObjectKey,
    ServicePort,
    Slice,
    SliceEndpoint,
    SlicePort,
)
from fc_frontend.plan.model import (
    Answer,
    ApiSettings,
    Cluster,
    Discovery,
    Endpoint,
    Freshness,
    Kind,
    Nameserver,
    Plan,
    ServiceSpec,
    Settings,
    Standby,
    Target,
    Tls,
)
from fc_frontend.plan.planner import plan, uses_api
from fc_frontend.plan.slices import H2C, standby_of
from fc_frontend.render.render import render

CLUSTER = Cluster(
    nameservers=(Nameserver(ip_address("10.2.0.10")),),
    service_networks=(ip_network("10.2.0.0/16"),),
    pod_networks=(ip_network("10.1.0.0/16"),),
    api=ApiSettings(kubeconfig="/etc/fc-frontend/kubeconfig"),
)
SPEC = ServiceSpec(name="shop", service="web", namespace="shop", binds=(), port=8080)
SERVICE = KubeService(
    ObjectKey("shop", "web"),
    "ClusterIP",
    is_headless=False,
    cluster_ips=("10.2.0.7",),
    ports=(ServicePort("http", 80, "web"), ServicePort("metrics", 9100, 9100)),
)
HEADLESS = SERVICE._replace(is_headless=True, cluster_ips=())
NAME = "web.shop.svc.cluster.local"


def made(*conditions: Condition, number: int = 8080) -> Slice:
    return Slice(
        ObjectKey("shop", "web-1"),
        "web",
        "ipv4",
        (SlicePort("http", number, ""),),
        tuple(SliceEndpoint(f"10.1.0.{n}", each, f"p{n}") for n, each in enumerate(conditions, 1)),
    )


def text_of(planned: Plan) -> str:
    """Return the section of the only service."""
    config = render(planned, packaged_templates())
    return config.section_text("shop")


def test_an_answer_has_what_gets_requests_and_what_finishes_them() -> None:
    slices = [made(Condition.READY, Condition.DRAINING, Condition.NOT_READY)]
    answer = answer_of(SPEC, SERVICE, slices, CLUSTER, None)
    assert answer.kind is Kind.API
    assert answer.freshness is Freshness.FRESH
    assert answer.endpoints == (Endpoint("10.1.0.1", 8080),)
    assert answer.draining == (Endpoint("10.1.0.2", 8080),)
    assert answer.error is None


def test_it_keeps_what_haproxy_was_given() -> None:
    before = Answer(kind=Kind.API, reason="", slots=40, by_runtime=True)
    answer = answer_of(SPEC, SERVICE, [made(Condition.READY)], CLUSTER, before)
    assert (answer.slots, answer.by_runtime) == (40, True)


def test_it_says_why_there_is_nobody() -> None:
    for service, slices, said in (
        (None, [], "no Service web in namespace shop"),
        (SERVICE._replace(type="ExternalName"), [], "ExternalName"),
        (SERVICE, [], "no endpoints"),
        (SERVICE, [made(Condition.NOT_READY)], "none of the pods"),
    ):
        answer = answer_of(SPEC, service, slices, CLUSTER, None)
        assert said in str(answer.error)
        assert answer.remedy
        assert not answer.endpoints


def test_while_the_server_is_away_the_last_answer_stays() -> None:
    before = answer_of(SPEC, SERVICE, [made(Condition.READY)], CLUSTER, None)
    stale = as_stale(SPEC, before, "gone", "look")
    assert stale.endpoints == before.endpoints
    assert stale.freshness is Freshness.STALE
    assert as_stale(SPEC, None, "gone", "look").freshness is Freshness.UNKNOWN


@pytest.mark.parametrize(
    ("spec", "service", "wanted"),
    [
        (SPEC, SERVICE, Standby(NAME, 80, "10.2.0.7")),
        (replace(SPEC, port="http"), SERVICE, Standby(NAME, 80, "10.2.0.7")),
        (replace(SPEC, port=9100), SERVICE, Standby(NAME, 9100, "10.2.0.7")),
        (replace(SPEC, target=Target.SERVICE, port=80), SERVICE, Standby(NAME, 80, "10.2.0.7")),
        (replace(SPEC, port=7), SERVICE, None),
        (SPEC, SERVICE._replace(cluster_ips=("192.0.2.1",)), None),
        (SPEC, SERVICE._replace(type="ExternalName"), None),
        (SPEC, None, None),
        (SPEC, HEADLESS, Standby(NAME, 8080)),
        (replace(SPEC, port="http"), HEADLESS, Standby(NAME, 8080)),
        (replace(SPEC, target=Target.SERVICE, port=80), HEADLESS, Standby(NAME, 8080)),
    ],
)
def test_the_standby_leads_to_the_same_port(
    spec: ServiceSpec, service: KubeService | None, wanted: Standby | None
) -> None:
    assert standby_of(spec, service, [made(Condition.READY)], CLUSTER) == wanted


def test_pods_with_different_numbers_have_no_standby_by_dns() -> None:
    other = made(Condition.READY, number=8081)._replace(key=ObjectKey("shop", "web-2"))
    by_name = replace(SPEC, port="http")
    assert standby_of(by_name, HEADLESS, [made(Condition.READY), other], CLUSTER) is None
    without = replace(CLUSTER, nameservers=())
    assert standby_of(SPEC, HEADLESS, [made(Condition.READY)], without) is None


def test_only_what_is_left_to_us_is_found_by_the_api() -> None:
    assert uses_api(SPEC, CLUSTER)
    assert uses_api(replace(SPEC, discovery=Discovery.API), CLUSTER)
    assert not uses_api(replace(SPEC, discovery=Discovery.HEADLESS), CLUSTER)
    of_nodes = replace(SPEC, target=Target.NODE)
    assert uses_api(of_nodes, CLUSTER)
    assert not uses_api(of_nodes, replace(CLUSTER, nodes={"n": ip_address("192.0.2.1")}))
    assert not uses_api(SPEC, replace(CLUSTER, api=None))


def test_terminating_pods_count_for_slots() -> None:
    states = [Condition.READY] * 6 + [Condition.DRAINING] * 3
    answer = answer_of(SPEC, SERVICE, [made(*states)], CLUSTER, None)
    (planned,) = plan(Settings(cluster=CLUSTER), [SPEC], (), {"shop": answer}).services
    assert planned.slots == 20
    assert planned.by_runtime
    assert planned.standby == Standby(NAME, 80, "10.2.0.7")


def test_a_service_without_checks_is_warned_of() -> None:
    answer = answer_of(SPEC, SERVICE, [made(Condition.READY)], CLUSTER, None)
    for check in (True, False):
        spec = replace(SPEC, check=check)
        problems = plan(Settings(cluster=CLUSTER), [spec], (), {"shop": answer}).problems
        assert [problem.field for problem in problems] == ([] if check else ["check"])


def test_http_2_without_tls_is_spoken_to_pods_that_say_so() -> None:
    h2c = made(Condition.READY)._replace(ports=(SlicePort("http", 8080, H2C),))
    for spec, words in (
        (replace(SPEC, mode="http"), " proto h2"),
        (SPEC, ""),
        (replace(SPEC, mode="http", tls=Tls()), ""),
    ):
        answer = answer_of(spec, SERVICE, [h2c], CLUSTER, None)
        planned = plan(Settings(cluster=CLUSTER), [spec], (), {"shop": answer})
        lines = [
            line
            for line in text_of(planned).splitlines()
            if line.split()[:1] in (["server"], ["server-template"])
        ]
        assert len(lines) == 2
        assert all((" proto h2" in line) == bool(words) for line in lines)


def test_a_service_is_a_section_and_its_standby() -> None:
    spec = replace(SPEC, extra_config=("option httpchk GET /up", "http-request deny if FALSE"))
    answer = answer_of(spec, SERVICE, [made(Condition.READY)], CLUSTER, None)
    text = text_of(plan(Settings(cluster=CLUSTER), [spec], (), {"shop": answer}))
    listen, _, standby = text.partition("\nbackend shop.standby")
    assert "use_backend shop.standby if { nbsrv(shop.standby) ge 1 } { nbsrv(shop) lt 1 }" in listen
    assert "in_table(fc-alive-30s)" in listen
    assert "option httpchk GET /up" in standby
    assert "http-request deny" not in standby
    assert "server service 10.2.0.7:80" in standby


# Mass emptying


def full(*names: str) -> dict[str, Answer]:
    answer = answer_of(SPEC, SERVICE, [made(Condition.READY)], CLUSTER, None)
    return dict.fromkeys(names, answer)


def empty(*names: str) -> dict[str, Answer]:
    answer = answer_of(SPEC, SERVICE, [made(Condition.NOT_READY)], CLUSTER, None)
    return dict.fromkeys(names, answer)


def seen(*names: str) -> MassEmptying:
    emptying = MassEmptying(0.5)
    emptying.looked(full(*names), {}, 0.0)
    return emptying


def test_one_service_that_empties_is_believed() -> None:
    emptying = seen("a", "b", "c")
    assert not emptying.looked(empty("a"), {}, 1.0)["a"].endpoints
    assert not emptying.looked(empty("a"), {}, 1.0)["a"].lost_at


def test_most_that_empty_together_keep_their_pods_for_a_while() -> None:
    emptying = seen("a", "b", "c")
    emptying.looked(empty("a"), {}, 100.0)
    answer = emptying.looked(empty("b"), {}, 130.0)["b"]
    assert answer.endpoints
    assert answer.lost_at == 130.0
    assert emptying.held == {"a", "b"}
    assert emptying.looked(empty("a"), {}, 131.0)["a"].endpoints
    assert emptying.overdue(100.0 + MASS_HELD + 1) == {"a"}
    assert not emptying.looked(empty("a"), {}, 100.0 + MASS_HELD + 1)["a"].endpoints
    assert emptying.looked(empty("b"), {}, 100.0 + MASS_HELD + 1)["b"].endpoints


def test_those_that_empty_one_by_one_over_long_are_believed() -> None:
    emptying = seen("a", "b", "c")
    for number, name in enumerate("abc"):
        answers = emptying.looked(empty(name), {}, number * (MASS_WINDOW + 1))
        assert not answers[name].endpoints


def test_a_service_that_comes_back_is_held_no_longer() -> None:
    emptying = seen("a", "b")
    emptying.looked(empty("a", "b"), {}, 1.0)
    assert emptying.held == {"a", "b"}
    emptying.looked(full("a"), {}, 2.0)
    assert emptying.held == {"b"}


def test_a_daemon_that_has_just_started_holds_what_the_last_one_had() -> None:
    """While most services are empty, a restart must not remove the pods that still serve."""
    stored = {n: replace(a, freshness=Freshness.STALE) for n, a in full("a", "b", "c").items()}
    emptying = MassEmptying(0.5)
    answers = emptying.looked({**empty("a", "b"), **full("c")}, stored, 5.0)
    assert all(answer.endpoints for answer in answers.values())
    assert emptying.held == {"a", "b"}
    # The time limit applies to the stored answers: it does not start again.
    late = 5.0 + MASS_HELD + 1
    assert not emptying.looked(empty("a"), answers, late)["a"].endpoints
    assert not emptying.looked(empty("a"), answers, late + 1)["a"].endpoints


def test_services_that_are_not_declared_any_more_are_forgotten_once_they_are_not_held() -> None:
    emptying = seen("a", "b", "c", "d")
    emptying.looked(empty("a", "b", "c"), {}, 1.0)
    emptying.keep(["a"], 2.0)
    assert emptying.held == {"a", "b", "c"}
    emptying.keep(["a"], 2.0 + MASS_HELD)
    assert emptying.held == {"a"}
    # "a" alone is no majority, as "d" is not declared.
    emptying.looked(full("a"), {}, 3.0 + MASS_HELD)
    assert not emptying.looked(empty("a"), {}, 4.0 + MASS_HELD)["a"].endpoints
