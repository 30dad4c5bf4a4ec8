"""Servers from EndpointSlices: which endpoints get traffic, on which port, and why none do."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.plan.cluster_objects import (
    Condition,
    KubeService,
    ObjectKey,
    ServicePort,
    Slice,
    SliceEndpoint,
    SlicePort,
    parse_service,
    parse_slice,
)
from fc_frontend.plan.model import Endpoint, ServiceSpec, Target
from fc_frontend.plan.slices import H2C, SliceAnswer, SliceGap, endpoints_from_slices

NETWORKS = (ip_network("10.1.0.0/16"), ip_network("fd00:1::/64"))
BY_NUMBER = ServiceSpec(name="web", service="web", namespace="shop", binds=(), port=8080)
BY_NAME = replace(BY_NUMBER, port="http")
SERVICE = KubeService(
    ObjectKey("shop", "web"),
    "ClusterIP",
    is_headless=False,
    cluster_ips=("10.2.0.7",),
    ports=(ServicePort("http", 80, "web"), ServicePort("metrics", 9100, 9100)),
)
READY = {"ready": True, "serving": True, "terminating": False}
LEAVING = {"ready": False, "serving": True, "terminating": True}
GONE = {"ready": False, "serving": False, "terminating": True}
STARTING = {"ready": False, "serving": False, "terminating": False}


def pod(address: str, conditions: Any = None, name: str | None = None) -> dict[str, Any]:
    """Return an endpoint as in the API."""
    entry: dict[str, Any] = {"addresses": [address], "conditions": conditions}
    if name is not None:
        entry["targetRef"] = {"kind": "Pod", "namespace": "shop", "name": name}
    return entry


def made(
    *endpoints: dict[str, Any],
    ports: Any = ({"name": "http", "protocol": "TCP", "port": 8080},),
    family: str = "IPv4",
    name: str = "web-1",
) -> Slice:
    """Return the slice that is parsed from an object of the API."""
    found = parse_slice(
        {
            "metadata": {
                "name": name,
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": family,
            "endpoints": list(endpoints) or None,
            "ports": None if ports is None else list(ports),
        }
    )
    assert found is not None
    return found


def answer(*slices: Slice, spec: ServiceSpec = BY_NUMBER) -> SliceAnswer:
    return endpoints_from_slices(spec, SERVICE, slices, NETWORKS, ("ipv4", "ipv6"))


def shown(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [f"{endpoint.address}:{endpoint.port}" for endpoint in endpoints]


@pytest.mark.parametrize(
    ("conditions", "active", "draining"),
    [
        (READY, True, False),
        (None, True, False),
        ({}, True, False),
        ({"ready": None, "serving": None, "terminating": None}, True, False),
        ({"ready": True, "terminating": True}, True, False),
        (LEAVING, False, True),
        ({"ready": False, "terminating": True}, False, True),
        ({"ready": False, "serving": None, "terminating": True}, False, True),
        (GONE, False, False),
        (STARTING, False, False),
        ({"ready": False}, False, False),
        ({"ready": False, "serving": True}, False, False),
    ],
)
def test_conditions_decide_whether_an_endpoint_gets_traffic(
    conditions: Any, active: bool, draining: bool
) -> None:
    found = answer(made(pod("10.1.0.1", READY), pod("10.1.0.2", conditions)))
    assert ("10.1.0.2:8080" in shown(found.active)) is active
    assert ("10.1.0.2:8080" in shown(found.draining)) is draining


def test_the_last_endpoints_keep_traffic_while_they_terminate_and_serve() -> None:
    found = answer(made(pod("10.1.0.1", LEAVING), pod("10.1.0.2", GONE)))
    assert shown(found.active) == ["10.1.0.1:8080"]
    assert found.terminating and not found.draining


@pytest.mark.parametrize("turned", [False, True])
def test_an_endpoint_in_several_slices_counts_once_and_the_ready_one_wins(turned: bool) -> None:
    slices = [made(pod("10.1.0.1", STARTING), name="a"), made(pod("10.1.0.1", READY), name="b")]
    found = answer(*(reversed(slices) if turned else slices))
    assert shown(found.active) == ["10.1.0.1:8080"]


def test_a_named_port_is_looked_up_in_each_slice() -> None:
    first = made(pod("10.1.0.1"), ports=[{"name": "http", "port": 8080}], name="a")
    second = made(pod("10.1.0.2"), ports=[{"name": "http", "port": 8081}], name="b")
    without = made(pod("10.1.0.3"), ports=[{"name": "other", "port": 1}], name="c")
    found = answer(first, second, without, spec=BY_NAME)
    assert shown(found.active) == ["10.1.0.1:8080", "10.1.0.2:8081"]


def test_a_port_number_is_that_number_on_each_pod() -> None:
    found = answer(made(pod("10.1.0.1"), ports=[{"name": "http", "port": 9999}]))
    assert shown(found.active) == ["10.1.0.1:8080"]


@pytest.mark.parametrize("port", [80, "http"])
def test_a_port_of_the_service_is_the_slices_port_of_the_same_name(port: int | str) -> None:
    spec = replace(BY_NUMBER, target=Target.SERVICE, port=port)
    found = answer(made(pod("10.1.0.1"), ports=[{"name": "http", "port": 8083}]), spec=spec)
    assert shown(found.active) == ["10.1.0.1:8083"]


def test_a_port_without_name_or_number_or_of_another_protocol() -> None:
    only = replace(BY_NUMBER, target=Target.SERVICE, port=80)
    service = SERVICE._replace(ports=(ServicePort("", 80, 8080),))
    unnamed = made(pod("10.1.0.1"), ports=[{"name": None, "port": 8080}])
    found = endpoints_from_slices(only, service, [unnamed], NETWORKS, ("ipv4",))
    assert shown(found.active) == ["10.1.0.1:8080"]
    for ports in (None, [{"name": "http", "port": None}],
                  [{"name": "http", "port": 8080, "protocol": "UDP"}],
                  [{"name": "http", "port": 0}], [{"name": "http", "port": "8080"}],
                  [{"name": "http", "port": True}]):  # fmt: skip
        assert answer(made(pod("10.1.0.1"), ports=ports), spec=BY_NAME).gap is SliceGap.NO_PORT


def test_a_pod_with_two_families_counts_once_with_the_preferred_one() -> None:
    four = made(pod("10.1.0.1", READY, "a"), pod("10.1.0.2", READY, "b"), name="four")
    six = made(
        pod("fd00:1::1", READY, "a"), pod("fd00:1::3", READY, "c"), family="IPv6", name="six"
    )
    assert shown(answer(six, four).active) == ["10.1.0.1:8080", "10.1.0.2:8080", "fd00:1::3:8080"]
    preferred = endpoints_from_slices(BY_NUMBER, SERVICE, [four, six], NETWORKS, ("ipv6", "ipv4"))
    assert shown(preferred.active) == ["10.1.0.2:8080", "fd00:1::1:8080", "fd00:1::3:8080"]


def test_hand_made_endpoints_without_a_pod_are_all_used() -> None:
    four = made(pod("10.1.0.1"), name="four")
    six = made(pod("fd00:1::1"), family="IPv6", name="six")
    assert shown(answer(four, six).active) == ["10.1.0.1:8080", "fd00:1::1:8080"]


def test_addresses_are_canonical_and_outside_of_the_networks_never_used() -> None:
    six = made(pod("FD00:0001::0001"), pod("fd00:1:0::1"), family="IPv6", name="six")
    outside = made(pod("192.0.2.1"), pod("127.0.0.1"), pod("10.1.0.1 backup"), pod("10.1.0.9"))
    found = answer(outside, six)
    assert shown(found.active) == ["10.1.0.9:8080", "fd00:1::1:8080"]
    assert found.rejected == ("10.1.0.1 backup", "127.0.0.1", "192.0.2.1")


def test_only_the_first_address_of_an_endpoint_counts() -> None:
    entry = {"addresses": ["10.1.0.1", "10.1.0.2"], "conditions": READY}
    assert shown(answer(made(entry)).active) == ["10.1.0.1:8080"]


@pytest.mark.parametrize(
    ("protocols", "is_h2c"),
    [([H2C], True), ([H2C, H2C], True), ([H2C, None], False), (["http"], False), ([None], False)],
)
def test_h2c_is_used_only_if_all_endpoints_speak_it(
    protocols: list[str | None], is_h2c: bool
) -> None:
    slices = [
        made(
            pod(f"10.1.0.{number}"),
            ports=[{"name": "http", "port": 8080, "appProtocol": protocol}],
            name=f"s{number}",
        )
        for number, protocol in enumerate(protocols)
    ]
    assert answer(*slices).is_h2c is is_h2c
    assert answer(*slices, spec=BY_NAME).is_h2c is is_h2c


@pytest.mark.parametrize(
    ("slices", "gap"),
    [
        ([], SliceGap.NO_ENDPOINTS),
        ([made()], SliceGap.NO_ENDPOINTS),
        ([made(pod("10.1.0.1", STARTING))], SliceGap.NOT_READY),
        ([made(pod("192.0.2.1"))], SliceGap.FOREIGN_NETWORK),
    ],
)
def test_an_answer_without_endpoints_has_a_reason(slices: list[Slice], gap: SliceGap) -> None:
    found = answer(*slices)
    assert found.gap is gap
    assert not found.active and not found.draining


def test_without_a_service_and_for_an_alias_slices_do_not_count() -> None:
    left = made(pod("10.1.0.1"))
    alias = SERVICE._replace(type="ExternalName")
    for service, gap in ((None, SliceGap.NO_SERVICE), (alias, SliceGap.EXTERNAL_NAME)):
        found = endpoints_from_slices(BY_NUMBER, service, [left], NETWORKS, ("ipv4",))
        assert found == SliceAnswer(gap=gap)


@pytest.mark.parametrize(
    "item",
    [None, [], "x", {}, {"metadata": None}, {"metadata": {"name": 1}},
     {"metadata": {"name": "a"}, "addressType": "IPv4"},
     {"metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
      "addressType": "FQDN"}],
)  # fmt: skip
def test_objects_of_no_use_are_no_slices(item: Any) -> None:
    assert parse_slice(item) is None


def test_services_are_reduced_to_ports_and_addresses() -> None:
    item = {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "clusterIP": "10.2.0.7",
            "clusterIPs": ["10.2.0.7", "fd00:2::7"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web"},
                {"port": 443, "protocol": "TCP", "targetPort": 8443},
                {"port": 53, "protocol": "UDP"},
                {"port": 81},
            ],
        },
    }
    service = parse_service(item)
    assert service is not None
    assert service.cluster_ips == ("10.2.0.7", "fd00:2::7")
    assert service.ports == (
        ServicePort("http", 80, "web"), ServicePort("", 443, 8443), ServicePort("", 81, 81),
    )  # fmt: skip
    headless = parse_service(
        {"metadata": {"name": "a"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}}
    )
    assert headless is not None
    assert headless.is_headless and not headless.cluster_ips


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["metadata", "name", "labels", "kubernetes.io/service-name", "spec",
                         "addressType", "endpoints", "addresses", "conditions", "ready", "ports",
                         "port", "targetRef", "kind", "clusterIP", "clusterIPs", "type"]),
        inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_no_object_of_any_shape_fails(item: Any) -> None:
    parse_service(item)
    if (found := parse_slice(item)) is not None:
        answer(found)
    json.dumps(item)


ENDPOINTS = st.builds(
    SliceEndpoint,
    st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3", "192.0.2.1", "nonsense"]),
    st.sampled_from(Condition),
    st.sampled_from(["", "a", "b"]),
)
SLICES = st.lists(
    st.builds(
        Slice,
        st.builds(ObjectKey, st.just("shop"), st.text("ab", min_size=1, max_size=3)),
        st.just("web"),
        st.just("ipv4"),
        st.lists(
            st.builds(SlicePort, st.sampled_from(["http", ""]), st.sampled_from([8080, 8081]),
                      st.just("")),
            max_size=2,
        ).map(tuple),
        st.lists(ENDPOINTS, max_size=5).map(tuple),
    ),
    max_size=4,
)  # fmt: skip


@given(SLICES, st.randoms(), st.sampled_from([BY_NUMBER, BY_NAME]))
def test_order_of_slices_is_irrelevant_and_endpoints_are_unique_and_inside(
    slices: list[Slice], random: Any, spec: ServiceSpec
) -> None:
    found = answer(*slices, spec=spec)
    mixed = list(slices)
    random.shuffle(mixed)
    assert answer(*mixed, spec=spec) == found
    used = [*found.active, *found.draining]
    assert len(used) == len(set(used))
    assert all(endpoint.address.startswith("10.1.0.") for endpoint in used)
    ready = {e.address for s in slices for e in s.endpoints if e.condition is Condition.READY}
    if not found.terminating:
        assert {e.address for e in found.active} <= ready
    assert bool(found.active) is (found.gap is None)
