"""Addresses of Services of type LoadBalancer: sticky, deterministic, never assigned twice.

Row numbers refer to the checklist for load balancer implementations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_frontend.balancer.assign import (
    AssignedAddress,
    Assignment,
    HostAddresses,
    assign,
)
from fc_frontend.balancer.requests import AddressGap, AddressProblem
from fc_frontend.model.load_balancers import (
    AddressPool,
    AddressRange,
    BalancedPort,
    FamilyPolicy,
    IngressAddress,
    IpAddress,
    IpFamily,
    LoadBalancerRequest,
    LoadBalancerSettings,
    family_of,
)
from fc_frontend.plan.cluster_objects import ObjectKey, parse_service
from tests.test_api_server import recorded

ANY_HOST = HostAddresses(nonlocal_bind=frozenset(("ipv4", "ipv6")))
V4, V6 = "198.51.100.2", "2a02:238:f030::1000"


def range_of(first: str, last: str = "") -> AddressRange:
    return AddressRange(ip_address(first), ip_address(last or first))


def pool_of(name: str, *ranges: AddressRange, **more: Any) -> AddressPool:
    return AddressPool(name=name, ranges=ranges, **{"is_default": True, **more})


PUBLIC = pool_of("public", range_of(V4), range_of(V6), range_of("198.51.100.16", "198.51.100.17"))


def request(*ports: int, **more: Any) -> LoadBalancerRequest:
    served = tuple(BalancedPort(port, "TCP", "") for port in ports or (443,))
    return LoadBalancerRequest(ports=served, **more)


def key(name: str, namespace: str = "shop") -> ObjectKey:
    return ObjectKey(namespace, name)


def proxy(*addresses: str) -> tuple[IngressAddress, ...]:
    return tuple(IngressAddress(address, "Proxy") for address in addresses)


def assigned(
    services: Mapping[str, LoadBalancerRequest],
    pools: Iterable[AddressPool] = (PUBLIC,),
    statuses: Mapping[str, Sequence[IngressAddress]] | None = None,
    *,
    host: HostAddresses = ANY_HOST,
    served: Mapping[str, Sequence[tuple[str, int]]] | None = None,
) -> dict[str, Assignment]:
    """Return the assignments of Services in one namespace, by name."""
    found = assign(
        {key(name): service for name, service in services.items()},
        pools,
        {key(name): entries for name, entries in (statuses or {}).items()},
        host=host,
        served={
            key(name): frozenset((ip_address(address), port) for address, port in places)
            for name, places in (served or {}).items()
        },
    )
    return {each.name: assignment for each, assignment in found.items()}


def addresses(assignment: Assignment) -> list[str]:
    return [str(each.address) for each in assignment.addresses]


def gaps(assignment: Assignment) -> list[AddressGap]:
    return [problem.gap for problem in assignment.problems]


DUAL: dict[str, Any] = {"families": ("ipv4", "ipv6")}


def test_row_01_load_balancer_class() -> None:
    ours = LoadBalancerSettings(class_name="fc-frontend.io/haproxy")
    default = replace(ours, is_default=True)
    named, foreign, unset = (
        request(class_name=name) for name in ("fc-frontend.io/haproxy", "other.io/x", None)
    )
    assert [ours.owns(each) for each in (named, foreign, unset)] == [True, False, False]
    assert [default.owns(each) for each in (named, foreign, unset)] == [True, False, True]


def test_row_02_a_service_that_changes_its_type_frees_its_address() -> None:
    item = {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 443}]},
    }
    before = parse_service(item)
    after = parse_service({**item, "spec": {"type": "ClusterIP", "ports": [{"port": 443}]}})
    assert before is not None
    assert before.load_balancer is not None
    assert after is not None
    assert after.load_balancer is None

    one = pool_of("one", range_of(V4))
    web, waiting = before.load_balancer, request(created="2026-02-01T00:00:00Z")
    found = assigned({"web": web, "waiting": waiting}, [one])
    assert addresses(found["web"]) == [V4]
    assert gaps(found["waiting"]) == [AddressGap.OUT_OF_ADDRESSES]
    served = {"web": [(V4, 443)]}
    assert addresses(assigned({"waiting": waiting}, [one], served=served)["waiting"]) == [V4]


@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
def test_row_06_tcp_ports_are_served_beside_others(protocol: str) -> None:
    ports = (BalancedPort(443, "TCP", "https"), BalancedPort(443, protocol, "other"))
    (found,) = assigned({"web": LoadBalancerRequest(ports=ports)}).values()
    assert found == Assignment((AssignedAddress(ip_address(V4), (443,)),))

    (found,) = assigned({"dns": LoadBalancerRequest(ports=ports[1:])}).values()
    assert found == Assignment((), (AddressProblem(AddressGap.NO_PORT),))


@pytest.mark.parametrize(
    ("families", "policy", "expected"),
    [
        (("ipv4",), FamilyPolicy.SINGLE, [V4]),
        (("ipv6",), FamilyPolicy.SINGLE, [V6]),
        (("ipv4", "ipv6"), FamilyPolicy.PREFER_DUAL, [V4, V6]),
        (("ipv6", "ipv4"), FamilyPolicy.REQUIRE_DUAL, [V6, V4]),
        (("ipv4",), FamilyPolicy.PREFER_DUAL, [V4]),
    ],
)
def test_row_07_ip_families(
    families: tuple[IpFamily, ...], policy: FamilyPolicy, expected: list[str]
) -> None:
    (found,) = assigned({"web": request(families=families, policy=policy)}).values()
    assert addresses(found) == expected
    assert not found.problems


def test_row_07_prefer_dual_stack_is_content_with_one_family() -> None:
    only_v6 = [pool_of("six", range_of(V6))]
    service = request(**DUAL, policy=FamilyPolicy.PREFER_DUAL)
    (found,) = assigned({"web": service}, only_v6).values()
    assert found == Assignment((AssignedAddress(ip_address(V6), (443,)),))
    (found,) = assigned({"web": service}, []).values()
    assert found == Assignment((), (AddressProblem(AddressGap.NO_POOL, "ipv4"),))


def test_row_07_require_dual_stack_takes_both_families_or_none() -> None:
    six, four = pool_of("six", range_of(V6)), pool_of("four", range_of(V4))
    service = request(**DUAL, policy=FamilyPolicy.REQUIRE_DUAL)
    (found,) = assigned({"web": service}, [six]).values()
    assert found == Assignment((), (AddressProblem(AddressGap.NO_POOL, "ipv4"),))
    # The Service cannot use one address alone, so that address is left to others.
    other = request(families=("ipv6",), created="2026-02-01T00:00:00Z")
    for wish in ("", V6):
        requiring = replace(service, requested=wish)
        both = assigned({"web": requiring, "other": replace(other, requested=wish)}, [six])
        assert addresses(both["web"]) == []
        assert addresses(both["other"]) == [V6]
    # It keeps an address that it already had.
    (found,) = assigned({"web": service}, [six], {"web": proxy(V6)}).values()
    assert addresses(found) == [V6]
    assert gaps(found) == [AddressGap.NO_POOL]
    (found,) = assigned({"web": service}, [six, four], {"web": proxy(V6)}).values()
    assert addresses(found) == [V4, V6]


def test_row_07_a_family_that_is_dropped_frees_its_address() -> None:
    (found,) = assigned({"web": request()}, statuses={"web": proxy(V4, V6)}).values()
    assert addresses(found) == [V4]


@pytest.mark.parametrize(
    ("annotation", "field", "expected"),
    [
        ("198.51.100.17", "", "198.51.100.17"),
        ("", "198.51.100.17", "198.51.100.17"),
        ("198.51.100.17", "198.51.100.17", "198.51.100.17"),
    ],
)
def test_row_08_requested_address(annotation: str, field: str, expected: str) -> None:
    service = request(requested=annotation, load_balancer_ip=field)
    (found,) = assigned({"web": service}).values()
    assert addresses(found) == [expected]
    assert not found.problems


@pytest.mark.parametrize(
    ("annotation", "field", "gap"),
    [
        ("198.51.100.16", "198.51.100.17", AddressGap.CONFLICTING_REQUESTS),
        ("198.51.100.16,198.51.100.17", "", AddressGap.CONFLICTING_REQUESTS),
        ("2a02:238:f030::1000", "", AddressGap.WRONG_FAMILY),
        ("203.0.113.9", "", AddressGap.NOT_IN_POOL),
        ("0.0.0.0", "", AddressGap.NOT_IN_POOL),
        ("example.org", "", AddressGap.INVALID_REQUEST),
        ("", "198.51.100.16\n", AddressGap.INVALID_REQUEST),
        ("fe80::1%eth0", "", AddressGap.INVALID_REQUEST),
    ],
)
def test_row_08_a_request_that_cannot_be_fulfilled_changes_nothing(
    annotation: str, field: str, gap: AddressGap
) -> None:
    service = request(requested=annotation, load_balancer_ip=field)
    (found,) = assigned({"web": service}).values()
    assert (addresses(found), gaps(found)) == ([], [gap])
    (found,) = assigned({"web": service}, statuses={"web": proxy(V4)}).values()
    assert (addresses(found), gaps(found)) == ([V4], [gap])


def test_row_08_addresses_of_both_families_can_be_requested() -> None:
    service = request(**DUAL, policy=FamilyPolicy.REQUIRE_DUAL, requested=f" {V6} , 198.51.100.16")
    (found,) = assigned({"web": service}).values()
    assert addresses(found) == ["198.51.100.16", V6]


def test_row_08_requests_that_exchange_addresses_are_fulfilled_as_they_become_free() -> None:
    statuses = {"one": proxy("198.51.100.16"), "two": proxy("198.51.100.17")}
    services = {
        "one": request(requested="198.51.100.17"),
        "two": request(requested=V4, created="2026-02-01T00:00:00Z"),
    }
    found = assigned(services, statuses=statuses)
    assert addresses(found["one"]) == ["198.51.100.17"]
    assert addresses(found["two"]) == [V4]
    services["two"] = replace(services["two"], requested="198.51.100.16")
    found = assigned(services, statuses=statuses)
    assert gaps(found["one"]) == gaps(found["two"]) == [AddressGap.IN_USE]
    assert addresses(found["one"]) == ["198.51.100.16"]


def test_row_09_every_status_is_claimed_before_anything_is_allocated() -> None:
    # The new Service is older and sorts first.
    services = {"a": request(), "z": request(created="2026-02-01T00:00:00Z")}
    found = assigned(services, statuses={"z": proxy(V4)})
    assert addresses(found["z"]) == [V4]
    assert addresses(found["a"]) == ["198.51.100.16"]


def test_row_09_what_is_served_is_claimed_where_a_status_was_wiped() -> None:
    services = {"a": request(), "z": request(created="2026-02-01T00:00:00Z")}
    found = assigned(services, served={"z": [(V4, 443)]})
    assert addresses(found["z"]) == [V4]


def test_row_09_pools_edited_under_a_service_keep_its_address() -> None:
    elsewhere = [pool_of("other", range_of("203.0.113.1", "203.0.113.9"))]
    served = {"web": [(V4, 443)]}
    (found,) = assigned({"web": request()}, elsewhere, {"web": proxy(V4)}, served=served).values()
    assert found == Assignment((AssignedAddress(ip_address(V4), (443,)),))
    (found,) = assigned({"web": request()}, [], served=served).values()
    assert addresses(found) == [V4]


def test_row_09_a_status_is_no_permission_to_bind_an_address_outside_of_the_pools() -> None:
    for outside in ("203.0.113.9", "0.0.0.0", "::", "127.0.0.1"):
        families: tuple[IpFamily, ...] = (family_of(ip_address(outside)),)
        service = request(families=families)
        (found,) = assigned({"web": service}, statuses={"web": proxy(outside)}).values()
        assert found == Assignment(
            (AssignedAddress(ip_address(outside)),),
            (AddressProblem(AddressGap.NOT_IN_POOL, outside),),
        )
    closed = [pool_of("public", range_of(V4), namespaces=("infra",))]
    (found,) = assigned({"web": request()}, closed, {"web": proxy(V4)}).values()
    assert not found.addresses[0].ports


def test_row_09_the_status_of_another_load_balancer_is_not_claimed() -> None:
    of_nodes = (IngressAddress("10.0.0.5", "VIP"), IngressAddress("10.0.0.6", ""))
    (found,) = assigned({"web": request()}, statuses={"web": of_nodes}).values()
    assert addresses(found) == [V4]


def test_row_10_an_address_is_shared_with_an_equal_key_and_other_ports() -> None:
    one = [pool_of("one", range_of(V4))]
    later = {"created": "2026-02-01T00:00:00Z"}
    first = request(443, sharing_key="k")
    cases = [
        (request(80, sharing_key="k", **later), [V4]),
        (request(443, sharing_key="k", **later), []),
        (request(80, 443, sharing_key="k", **later), []),
        (request(80, sharing_key="other", **later), []),
        (request(80, **later), []),
    ]
    for second, expected in cases:
        found = assigned({"first": first, "second": second}, one)
        assert addresses(found["first"]) == [V4]
        assert addresses(found["second"]) == expected
        if not expected:
            assert gaps(found["second"]) == [AddressGap.OUT_OF_ADDRESSES]
            # Allocation is retried when the address is freed.
            assert addresses(assigned({"second": second}, one)["second"]) == [V4]


def test_row_10_services_with_the_same_key_go_to_the_same_address() -> None:
    services = {
        "a": request(443, sharing_key="k", requested="198.51.100.17"),
        "b": request(80, sharing_key="k", created="2026-02-01T00:00:00Z"),
    }
    assert addresses(assigned(services)["b"]) == ["198.51.100.17"]


def test_row_05_a_port_that_was_added_and_is_taken_is_reported_alone() -> None:
    statuses = {"a": proxy(V4), "b": proxy(V4)}
    services = {
        # The older Service added the port that the other one already has.
        "a": request(443, 80, sharing_key="k"),
        "b": request(80, sharing_key="k", created="2026-02-01T00:00:00Z"),
    }
    served = {"a": [(V4, 443)], "b": [(V4, 80)]}
    found = assigned(services, statuses=statuses, served=served)
    assert found["a"] == Assignment((AssignedAddress(ip_address(V4), (443,), (80,)),))
    assert found["b"] == Assignment((AssignedAddress(ip_address(V4), (80,)),))


def test_an_address_that_is_not_on_this_host_is_not_given_out() -> None:
    host = HostAddresses(frozenset([ip_address("198.51.100.17")]))
    assert addresses(assigned({"web": request()}, host=host)["web"]) == ["198.51.100.17"]
    (found,) = assigned({"web": request()}, host=HostAddresses()).values()
    assert found == Assignment((), (AddressProblem(AddressGap.NOT_ON_HOST, V4),))
    (found,) = assigned({"web": request(requested=V4)}, host=host).values()
    assert found == Assignment((), (AddressProblem(AddressGap.NOT_ON_HOST, V4),))


def test_an_address_that_this_host_lost_stays_assigned() -> None:
    problem = AddressProblem(AddressGap.NOT_ON_HOST, V4)
    (found,) = assigned(
        {"web": request()}, statuses={"web": proxy(V4)}, host=HostAddresses()
    ).values()
    assert found == Assignment((AssignedAddress(ip_address(V4)),), (problem,))
    # A Service keeps the addresses that HAProxy has bound.
    (found,) = assigned(
        {"web": request()}, host=HostAddresses(), served={"web": [(V4, 443)]}
    ).values()
    assert found == Assignment((AssignedAddress(ip_address(V4), (443,)),), (problem,))


def test_pools_serve_their_namespaces_and_other_than_default_ones_on_request() -> None:
    inner = pool_of("inner", range_of("203.0.113.1"), is_default=False, namespaces=("infra",))
    pools = [PUBLIC, inner]

    def one(namespace: str, **more: Any) -> Assignment:
        (found,) = assign(
            {key("web", namespace): request(**more)}, pools, {}, host=ANY_HOST
        ).values()
        return found

    assert addresses(one("infra")) == [V4]
    assert addresses(one("infra", pool="inner")) == ["203.0.113.1"]
    assert one("shop", pool="inner").problems == (AddressProblem(AddressGap.NO_POOL, "inner"),)
    assert one("shop", pool="absent").problems == (AddressProblem(AddressGap.NO_POOL, "absent"),)
    assert gaps(one("shop", requested="203.0.113.1")) == [AddressGap.NOT_IN_POOL]


def test_a_pool_of_a_large_network_is_not_listed() -> None:
    huge = [pool_of("huge", range_of("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"))]
    service = request(families=("ipv6",))
    assert addresses(assigned({"web": service}, huge)["web"]) == ["2001:db8::"]
    found = assigned({"web": service}, huge, host=HostAddresses())["web"]
    assert gaps(found) == [AddressGap.NOT_ON_HOST]


def read_service(item: Any) -> LoadBalancerRequest:
    found = parse_service(item)
    assert found is not None
    assert found.load_balancer is not None
    return found.load_balancer


def test_row_03_the_status_of_a_real_api_server_is_read() -> None:
    before, after = (json.loads(recorded(name).body) for name in ("lb-before", "lb-after"))
    expected = LoadBalancerRequest(
        created="2026-11-25T23:53:20Z", ports=(BalancedPort(443, "TCP", "https"),)
    )
    assert read_service(before) == expected
    assert read_service(after) == replace(expected, ingress=proxy("198.51.100.2"))


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        (12, "externalTrafficPolicy", "Local"),
        (12, "externalTrafficPolicy", "Cluster"),
        (13, "allocateLoadBalancerNodePorts", False),
        (19, "externalIPs", ["203.0.113.1"]),
    ],
)
def test_rows_12_13_and_19_change_nothing(row: int, field: str, value: Any) -> None:
    """Traffic policies, node ports and external IPs do not apply to a proxy to the pods."""
    item = json.loads(recorded("lb-before").body)
    expected = read_service(item)
    for port in item["spec"]["ports"] if row == 13 else ():
        del port["nodePort"]
    item["spec"][field] = value
    assert read_service(item) == expected


def test_row_16_finalizers_do_not_matter() -> None:
    item = json.loads(recorded("lb-before").body)
    expected = read_service(item)
    item["metadata"]["finalizers"] = ["service.kubernetes.io/load-balancer-cleanup"]
    assert read_service(item) == expected


def test_row_11_and_14_source_ranges_and_affinity_are_read() -> None:
    def read(annotations: dict[str, Any] | None = None, **spec: Any) -> LoadBalancerRequest:
        metadata = {"name": "web", "namespace": "shop", "annotations": annotations}
        return read_service({"metadata": metadata, "spec": {"type": "LoadBalancer", **spec}})

    name = "service.beta.kubernetes.io/load-balancer-source-ranges"
    assert read({name: "10.0.0.0/8, ::/0"}).source_ranges == ("10.0.0.0/8", "::/0")
    assert read({name: " "}).source_ranges == ()
    both = read({name: "10.0.0.0/8"}, loadBalancerSourceRanges=[" 192.0.2.0/24 "])
    assert both.source_ranges == ("192.0.2.0/24",)
    # Invalid values are kept, so that they are refused later.
    assert read(loadBalancerSourceRanges=[7, None]).source_ranges == ("7", "None")
    assert read(loadBalancerSourceRanges="everybody").source_ranges == ("everybody",)
    assert read({name: "10.0.0.0/8,"}).source_ranges == ("10.0.0.0/8", "")
    assert read().affinity is None
    assert read(sessionAffinity="ClientIP").affinity == 10800
    config = {"clientIP": {"timeoutSeconds": 60}}
    assert read(sessionAffinity="ClientIP", sessionAffinityConfig=config).affinity == 60
    assert read(sessionAffinity="None", sessionAffinityConfig=config).affinity is None
    assert read(ipFamilies=["IPv6", "IPv4", 7]).families == ("ipv6", "ipv4")
    assert read(clusterIPs=["fd00::1", "10.0.0.1"]).families == ("ipv6", "ipv4")
    assert read(clusterIP="None").families == ("ipv4",)


ADDRESSES = ("198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8::1", "2001:db8::2")
NAMES = ("a", "b", "c", "d", "e")


@st.composite
def services(draw: st.DrawFn) -> LoadBalancerRequest:
    families = draw(st.sampled_from([("ipv4",), ("ipv6",), ("ipv4", "ipv6"), ("ipv6", "ipv4")]))
    policies = list(FamilyPolicy) if len(families) == 2 else [FamilyPolicy.SINGLE]
    return request(
        *draw(st.sets(st.sampled_from([80, 443, 8080]), min_size=1)),
        created=draw(st.sampled_from(["1", "2", "3"])),
        families=families,
        policy=draw(st.sampled_from(policies)),
        sharing_key=draw(st.sampled_from(["", "k", "l"])),
        requested=draw(st.sampled_from(["", "", *ADDRESSES])),
        pool=draw(st.sampled_from(["", "", "one", "two"])),
    )


pools = st.lists(
    st.builds(
        pool_of,
        st.sampled_from(["one", "two"]),
        st.sampled_from([range_of("198.51.100.1", "198.51.100.2"), range_of(ADDRESSES[0])]),
        st.sampled_from([range_of("2001:db8::1", "2001:db8::2"), range_of("198.51.100.3")]),
        is_default=st.booleans(),
        namespaces=st.sampled_from([None, ("shop",), ("other",)]),
    ),
    max_size=2,
    unique_by=lambda pool: pool.name,
)
hosts = st.one_of(
    st.just(ANY_HOST),
    st.sets(st.sampled_from(ADDRESSES)).map(lambda a: HostAddresses(frozenset(map(ip_address, a)))),
)


@dataclass
class Frontend:
    """A frontend, with the parts of the cluster that concern load balancers.

    Every assignment is served at once and written to the statuses, until these are wiped.
    """

    services: dict[ObjectKey, LoadBalancerRequest] = field(default_factory=dict)
    pools: list[AddressPool] = field(default_factory=list)
    host: HostAddresses = ANY_HOST
    statuses: dict[ObjectKey, tuple[IngressAddress, ...]] = field(default_factory=dict)
    served: dict[ObjectKey, frozenset[tuple[IpAddress, int]]] = field(default_factory=dict)

    def assignments(self) -> dict[ObjectKey, Assignment]:
        return assign(self.services, self.pools, self.statuses, host=self.host, served=self.served)

    def step(self) -> dict[ObjectKey, Assignment]:
        found = self.assignments()
        self.served = {
            each: frozenset((a.address, port) for a in assignment.addresses for port in a.ports)
            for each, assignment in found.items()
        }
        self.statuses = {each: proxy(*addresses(assignment)) for each, assignment in found.items()}
        return found

    def check(self, before: Mapping[ObjectKey, Assignment]) -> None:
        """Check the invariants that hold after any event."""
        found = self.assignments()
        holders: dict[IpAddress, list[tuple[ObjectKey, AssignedAddress]]] = {}
        for each, assignment in found.items():
            service = self.services[each]
            families = [family_of(a.address) for a in assignment.addresses]
            assert len(set(families)) == len(families)
            assert set(families) <= set(service.families)
            for address in assignment.addresses:
                if address.ports:
                    holders.setdefault(address.address, []).append((each, address))
                had = {a.address for a in before[each].addresses} if each in before else set()
                if address.address not in had:
                    assert any(
                        pool.has(address.address) and pool.admits(each.namespace)
                        for pool in self.pools
                    )
                    assert self.host.has(address.address)
        for sharing in holders.values():
            ports = [port for _, address in sharing for port in address.ports]
            assert len(set(ports)) == len(ports), "a port is served twice"
            keys = {self.services[each].sharing_key for each, _ in sharing}
            assert len(sharing) == 1 or (len(keys) == 1 and "" not in keys)


events = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(NAMES), services()),
        st.tuples(st.just("delete"), st.sampled_from(NAMES), st.none()),
        st.tuples(st.just("pools"), st.none(), pools),
        st.tuples(st.just("host"), st.none(), hosts),
        st.tuples(st.just("wipe"), st.none(), st.none()),
        st.tuples(st.just("restart"), st.none(), st.none()),
    ),
    max_size=12,
)


def apply(frontend: Frontend, kind: str, name: str | None, value: Any) -> set[ObjectKey]:
    """Apply one event; return the Services that asked for a change through it."""
    match kind:
        case "put":
            assert name is not None
            frontend.services[key(name)] = value
            return {key(name)}
        case "delete":
            assert name is not None
            frontend.services.pop(key(name), None)
        case "pools":
            frontend.pools = value
        case "host":
            frontend.host = value
        case "wipe":
            # If a Service is not served either, its former address is unknown.
            frontend.statuses = {
                each: status
                for each, status in frontend.statuses.items()
                if not frontend.served.get(each)
            }
        case "restart":
            frontend.served = {
                each: places for each, places in frontend.served.items() if each.name != "a"
            }
    return set()


@given(pools, events)
@settings(max_examples=300, deadline=None)
def test_any_order_of_events_gives_a_valid_assignment(
    first_pools: list[AddressPool], happened: list[tuple[str, str | None, Any]]
) -> None:
    frontend = Frontend(pools=first_pools)
    before: dict[ObjectKey, Assignment] = {}
    for event in happened:
        apply(frontend, *event)
        frontend.check(before)
        before = frontend.step()
        frontend.check(before)


@given(pools, events)
@settings(max_examples=300, deadline=None)
def test_no_address_changes_without_a_cause(
    first_pools: list[AddressPool], happened: list[tuple[str, str | None, Any]]
) -> None:
    frontend = Frontend(pools=first_pools)
    before: dict[ObjectKey, Assignment] = {}
    for event in happened:
        asked = apply(frontend, *event)
        after = frontend.assignments()
        for each in before.keys() & after.keys() - asked:
            had = {a.address for a in before[each].addresses}
            has = {a.address for a in after[each].addresses}
            wished = {
                a
                for a in has
                if str(a) == frontend.services[each].requested
                or family_of(a) not in {family_of(b) for b in had}
            }
            assert had <= has or wished, (event, before[each], after[each])
        before = frontend.step()
        assert frontend.assignments() == before, "nothing happened in between"


@given(pools, st.dictionaries(st.sampled_from(NAMES).map(key), services()), st.randoms())
@settings(max_examples=200, deadline=None)
def test_the_order_of_what_is_listed_does_not_matter(
    some: list[AddressPool], wanted: dict[ObjectKey, LoadBalancerRequest], random: Any
) -> None:
    shuffled = list(wanted.items())
    random.shuffle(shuffled)
    first = assign(wanted, some, {}, host=ANY_HOST)
    assert assign(dict(shuffled), some[::-1], {}, host=ANY_HOST) == first
    assert list(first) == sorted(wanted)
