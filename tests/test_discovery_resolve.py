"""From cluster DNS to endpoints: every kind, `auto`, and the data that failures leave unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any, ParamSpec

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from fc_frontend.demo.dns import ClusterDns, Fault, KubernetesService
from fc_frontend.discovery.client import DnsClient
from fc_frontend.discovery.resolve import LookupResult, choose, resolve_all, resolve_service
from fc_frontend.errors import Cause
from fc_frontend.plan.model import (
    Answer,
    Bind,
    Cluster,
    Discovery,
    Endpoint,
    Freshness,
    Kind,
    Nameserver,
    ServiceSpec,
    Target,
    Transport,
)
from tests.support.nameservers import ANSWER_TIMEOUT

P = ParamSpec("P")

SOON = 0.1
"""Timeout in seconds for an answer that never arrives."""

BARE = "web.default.svc.cluster.local"
WILDCARD = f"*.{BARE}"
NAMED = f"_http._tcp.{BARE}"
V4 = ("10.1.0.3", "10.1.0.4", "10.1.0.5")
V6 = ("fd00::3", "fd00::4")
NODES = {"node1": ip_address("192.0.2.2"), "node0": ip_address("192.0.2.1")}

HEADLESS = KubernetesService("web", ports={"http": 8080}, endpoints=(*V4, *V6))
WITH_IP = replace(HEADLESS, cluster_ip="10.96.0.7")
SPEC = ServiceSpec(name="web", service="web", binds=(Bind("ip", "*", 80),), port=8080)


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Wrap the test in an ordinary function that runs it in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@dataclass
class Frontend:
    """A cluster with its DNS, and one service that is looked up in it."""

    dns: ClusterDns
    cluster: Cluster
    client: DnsClient

    async def resolve(
        self, previous: Answer | None = None, spec: ServiceSpec = SPEC, **changes: Any
    ) -> Answer:
        """Return the answer for `spec` with `changes`."""
        return await resolve_service(replace(spec, **changes), self.cluster, self.client, previous)

    def asked(self) -> set[tuple[str, str]]:
        """Return the names and types queried since the last call."""
        seen = {(name, rdtype) for name, rdtype, _ in self.dns.queries}
        self.dns.queries.clear()
        return seen


@contextlib.asynccontextmanager
async def frontend(
    *services: KubernetesService,
    pods: tuple[str, ...] = ("10.1.0.0/16",),
    cluster_ips: tuple[str, ...] = ("10.96.0.0/12",),
    patience: float = ANSWER_TIMEOUT,
    nameserver: Nameserver | None = None,
    **options: Any,
) -> AsyncIterator[Frontend]:
    """Yield a cluster DNS with `services`, and a client of it."""
    async with ClusterDns(services, **options) as server:
        cluster = Cluster(
            nameservers=(
                nameserver or Nameserver(ip_address(server.address[0]), server.address[1]),
            ),
            pod_networks=tuple(ip_network(network) for network in pods),
            service_networks=tuple(ip_network(network) for network in cluster_ips),
            nodes=NODES,
        )
        client = DnsClient(cluster.nameservers, timeout=patience, tries=1)
        try:
            yield Frontend(server, cluster, client)
        finally:
            client.close()


def at(*addresses: str, port: int = 8080) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(address, port) for address in addresses)


def dual(**more: Any) -> dict[str, Any]:
    """Return fields for IPv4 first, then IPv6."""
    return {
        "pods": ("10.1.0.0/16", "fd00::/64"),
        "cluster_ips": ("10.96.0.0/12", "fd96::/112"),
        **more,
    }


# Explicitly declared kinds


@in_loop
async def test_headless_takes_the_pods_at_the_services_own_name() -> None:
    async with frontend(HEADLESS) as f:
        answer = await f.resolve(discovery=Discovery.HEADLESS)
        assert answer == Answer(
            kind=Kind.HEADLESS,
            reason="as discovery: headless says",
            endpoints=at(*V4),
            freshness=Freshness.FRESH,
        )
        assert f.asked() == {(BARE, "A")}


@in_loop
async def test_headless_rejects_a_cluster_ip() -> None:
    async with frontend(WITH_IP) as f:
        answer = await f.resolve(discovery=Discovery.HEADLESS)
        assert (answer.endpoints, answer.rejected) == ((), ("10.96.0.7",))
        assert answer.kind is Kind.HEADLESS
        assert "clusterIP: None" in answer.remedy
        assert "pod_network" not in answer.remedy


@in_loop
async def test_wildcard_takes_the_pods_that_old_coredns_lists() -> None:
    async with frontend(WITH_IP, wildcards=True) as f:
        answer = await f.resolve(discovery=Discovery.WILDCARD)
        assert (answer.kind, answer.endpoints) == (Kind.WILDCARD, at(*V4))
        assert answer.freshness is Freshness.FRESH
        assert f.asked() == {(WILDCARD, "A")}


@in_loop
async def test_wildcard_on_new_coredns_says_that_it_is_not_answered_any_more() -> None:
    async with frontend(WITH_IP) as f:
        answer = await f.resolve(discovery=Discovery.WILDCARD)
        assert (answer.kind, answer.endpoints) == (Kind.WILDCARD, ())
        assert answer.error == f"{WILDCARD}: NXDOMAIN, but {BARE} exists"
        assert "discovery: auto" in answer.remedy


@in_loop
async def test_wildcard_of_a_service_that_does_not_exist_says_so_without_that_remedy() -> None:
    async with frontend() as f:
        answer = await f.resolve(discovery=Discovery.WILDCARD)
        assert "NXDOMAIN: no such service" in str(answer.error)
        assert answer.remedy == ""


@in_loop
async def test_service_port_takes_the_cluster_ip_and_rejects_pods() -> None:
    async with frontend(WITH_IP) as f:
        answer = await f.resolve(target=Target.SERVICE)
        assert (answer.kind, answer.endpoints) == (Kind.SERVICE, at("10.96.0.7"))
        f.dns.set_service(HEADLESS)
        answer = await f.resolve(target=Target.SERVICE)
        assert (answer.kind, answer.endpoints, answer.rejected) == (Kind.SERVICE, (), V4)
        assert "use pod_port" in answer.remedy


@in_loop
async def test_lb_service_port_takes_the_declared_nodes_and_asks_nobody() -> None:
    async with frontend() as f:
        f.dns.fault = Fault.SILENT
        answer = await f.resolve(target=Target.NODE, port=31000)
        assert answer.kind is Kind.NODES
        assert answer.endpoints == at("192.0.2.1", "192.0.2.2", port=31000)
        assert answer.freshness is Freshness.FRESH
        assert f.asked() == set()


@in_loop
async def test_a_named_port_takes_pods_and_port_from_srv_in_one_question() -> None:
    async with frontend(HEADLESS) as f:
        answer = await f.resolve(port="http")
        assert (answer.kind, answer.freshness) == (Kind.SRV, Freshness.FRESH)
        assert answer.endpoints == tuple(
            Endpoint(pod, 8080, f"{pod.replace('.', '-')}.{BARE}") for pod in V4
        )
        assert f.asked() == {(NAMED, "SRV")}


@in_loop
async def test_a_named_port_of_a_service_with_a_cluster_ip_takes_that_and_says_why() -> None:
    async with frontend(replace(WITH_IP, ports={"http": 80})) as f:
        answer = await f.resolve(port="http")
        assert (answer.kind, answer.endpoints) == (Kind.SRV, (Endpoint("10.96.0.7", 80, BARE),))
        assert "clusterIP: None" in answer.remedy


@in_loop
async def test_an_unknown_port_name_is_an_error_with_no_endpoints() -> None:
    async with frontend(HEADLESS) as f:
        answer = await f.resolve(port="https")
        assert (answer.kind, answer.endpoints) == (Kind.SRV, ())
        assert "NXDOMAIN" in str(answer.error)


@in_loop
async def test_a_named_port_of_600_pods_comes_over_tcp() -> None:
    many = tuple(f"10.1.{i // 200 + 1}.{i % 200 + 1}" for i in range(600))
    async with frontend(replace(HEADLESS, endpoints=many)) as f:
        answer = await f.resolve(port="http")
        assert {endpoint.address for endpoint in answer.endpoints} == set(many)
        assert len(answer.endpoints) == 600


# `auto`


@in_loop
async def test_auto_finds_a_headless_service_and_asks_no_wildcard() -> None:
    async with frontend(HEADLESS, wildcards=True) as f:
        answer = await f.resolve()
        assert (answer.kind, answer.endpoints) == (Kind.HEADLESS, at(*V4))
        assert answer.reason == f"{BARE} answers with pods: a headless service"
        assert (answer.error, answer.remedy, answer.rejected) == (None, "", ())
        assert f.asked() == {(BARE, "A")}


@in_loop
async def test_auto_takes_the_wildcard_where_old_coredns_answers_it() -> None:
    async with frontend(WITH_IP, wildcards=True) as f:
        answer = await f.resolve()
        assert (answer.kind, answer.endpoints) == (Kind.WILDCARD, at(*V4))
        assert answer.reason == f"{BARE} is a cluster IP, {WILDCARD} answers with its pods"
        assert f.asked() == {(BARE, "A"), (WILDCARD, "A")}


@in_loop
async def test_auto_takes_the_cluster_ip_where_new_coredns_answers_no_wildcard() -> None:
    async with frontend(WITH_IP) as f:
        answer = await f.resolve()
        assert (answer.kind, answer.endpoints) == (Kind.SERVICE, at("10.96.0.7"))
        assert "kube-proxy balances" in answer.reason
        assert "clusterIP: None" in answer.remedy
        assert "8080 must be a port of the Service" in answer.remedy
        assert (answer.freshness, answer.error) == (Freshness.FRESH, None)


@in_loop
async def test_auto_follows_a_service_that_is_made_headless() -> None:
    async with frontend(WITH_IP) as f:
        before = await f.resolve()
        f.dns.set_service(HEADLESS)
        assert (await f.resolve(before)).kind is Kind.HEADLESS


@in_loop
async def test_auto_without_any_answer_yet_takes_a_missing_service_as_headless() -> None:
    async with frontend() as f:
        answer = await f.resolve()
        assert (answer.kind, answer.endpoints) == (Kind.HEADLESS, ())
        assert answer.freshness is Freshness.FRESH
        assert answer.error == f"{BARE}: NXDOMAIN: no such service, or none of its pods is ready"


@pytest.mark.parametrize("wildcards", [False, True])
@in_loop
async def test_auto_keeps_the_kind_of_a_service_that_vanishes(wildcards: bool) -> None:
    async with frontend(WITH_IP, wildcards=wildcards) as f:
        before = await f.resolve(None)
        f.dns.remove_service("web")
        answer = await f.resolve(before)
        assert (answer.kind, answer.reason) == (before.kind, before.reason)
        assert (answer.endpoints, answer.freshness) == ((), Freshness.FRESH)
        assert "NXDOMAIN" in str(answer.error)


@in_loop
async def test_auto_keeps_pods_while_the_wildcard_fails_as_it_was_the_wildcard_before() -> None:
    async with frontend(WITH_IP, wildcards=True) as f:
        before = await f.resolve()
        f.dns.fault_for[WILDCARD] = Fault.SERVFAIL
        answer = await f.resolve(before)
        assert "SERVFAIL" in str(answer.error)
        assert answer.failure is Cause.SERVFAIL
        stale = replace(before, freshness=Freshness.STALE)
        assert answer == replace(stale, error=answer.error, failure=answer.failure)


@in_loop
async def test_auto_begins_with_the_cluster_ip_while_the_wildcard_fails() -> None:
    async with frontend(WITH_IP, wildcards=True) as f:
        f.dns.fault_for[WILDCARD] = Fault.SERVFAIL
        first = await f.resolve()
        assert (first.kind, first.endpoints) == (Kind.SERVICE, at("10.96.0.7"))
        # A failure reveals nothing about CoreDNS's version.
        assert "cannot be asked" in first.reason
        assert first.remedy == ""
        assert await f.resolve(first) == first
        f.dns.fault_for.clear()
        assert (await f.resolve(first)).kind is Kind.WILDCARD


@in_loop
async def test_auto_without_an_answer_is_unknown_and_stays_unknown() -> None:
    async with frontend(HEADLESS) as f:
        f.dns.fault = Fault.SERVFAIL
        first = await f.resolve()
        assert (first.kind, first.freshness) == (Kind.HEADLESS, Freshness.UNKNOWN)
        assert "SERVFAIL" in str(first.error)
        assert await f.resolve(first) == first
        f.dns.fault = Fault.NONE
        assert (await f.resolve(first)).freshness is Freshness.FRESH


def choice(
    bare: LookupResult, wildcard: LookupResult | None = None, previous: Answer | None = None
) -> Answer:
    cluster = Cluster(
        pod_networks=(ip_network("10.1.0.0/16"),), service_networks=(ip_network("10.96.0.0/12"),)
    )
    return choose(SPEC, bare, wildcard, cluster, previous)


CLUSTER_IP = LookupResult(BARE, exists=True, endpoints=at("10.96.0.7"))


def test_pods_at_the_bare_name_win_over_everything_else() -> None:
    mixed = LookupResult(BARE, exists=True, endpoints=at("10.1.0.3", "10.96.0.7", "8.8.8.8"))
    answer = choice(mixed, LookupResult(WILDCARD, exists=True, endpoints=at("10.1.0.9")))
    assert (answer.kind, answer.endpoints) == (Kind.HEADLESS, at("10.1.0.3"))
    assert answer.rejected == ("10.96.0.7", "8.8.8.8")


def test_a_wildcard_that_exists_without_addresses_is_still_the_wildcard() -> None:
    answer = choice(CLUSTER_IP, LookupResult(WILDCARD, exists=True))
    assert (answer.kind, answer.endpoints) == (Kind.WILDCARD, ())
    assert "no addresses" in str(answer.error)


def test_a_wildcard_that_answers_outside_the_pod_network_is_rejected_with_a_remedy() -> None:
    answer = choice(CLUSTER_IP, LookupResult(WILDCARD, exists=True, endpoints=at("8.8.8.8")))
    assert (answer.kind, answer.endpoints, answer.rejected) == (Kind.WILDCARD, (), ("8.8.8.8",))
    assert "cluster.pod_network" in answer.remedy


def test_a_failure_of_the_wildcard_changes_no_cluster_ip() -> None:
    before = choice(CLUSTER_IP, LookupResult(WILDCARD))
    assert before.kind is Kind.SERVICE
    assert choice(CLUSTER_IP, LookupResult(WILDCARD, failure="SERVFAIL"), before) == before


def test_a_failure_at_the_bare_name_keeps_every_kind() -> None:
    for kind in (Kind.HEADLESS, Kind.WILDCARD, Kind.SERVICE):
        before = Answer(
            kind=kind, reason="why", endpoints=at(*V4), freshness=Freshness.FRESH, slots=20
        )
        answer = choice(LookupResult(BARE, failure="SERVFAIL"), None, before)
        assert answer == replace(before, freshness=Freshness.STALE, error="SERVFAIL")


def test_an_answer_in_no_network_keeps_the_kind_and_is_rejected() -> None:
    before = Answer(kind=Kind.WILDCARD, reason="why", endpoints=at(*V4))
    answer = choice(LookupResult(BARE, exists=True, endpoints=at("192.0.2.9")), None, before)
    assert (answer.kind, answer.reason) == (Kind.WILDCARD, "why")
    assert (answer.endpoints, answer.rejected) == ((), ("192.0.2.9",))


# Families


@in_loop
async def test_in_a_dual_stack_cluster_the_operators_first_family_is_taken() -> None:
    async with frontend(HEADLESS, **dual()) as f:
        assert (await f.resolve()).endpoints == at(*V4)
        # The answer for the second family does not matter then.
        assert f.asked() == {(BARE, "A")}
    async with frontend(HEADLESS, **dual(pods=("fd00::/64", "10.1.0.0/16"))) as f:
        assert (await f.resolve()).endpoints == at(*V6)


@in_loop
async def test_in_a_dual_stack_cluster_a_service_may_have_the_second_family_alone() -> None:
    async with frontend(replace(HEADLESS, endpoints=V6), **dual()) as f:
        answer = await f.resolve()
        assert (answer.kind, answer.endpoints, answer.error) == (Kind.HEADLESS, at(*V6), None)


@in_loop
async def test_in_a_dual_stack_cluster_auto_finds_cluster_ips_and_wildcards_of_both() -> None:
    service = replace(HEADLESS, cluster_ip=("fd96::7",), endpoints=V6)
    async with frontend(service, **dual()) as f:
        answer = await f.resolve()
        assert (answer.kind, answer.endpoints) == (Kind.SERVICE, at("fd96::7"))
    async with frontend(service, **dual(), wildcards=True) as f:
        answer = await f.resolve()
        assert (answer.kind, answer.endpoints) == (Kind.WILDCARD, at(*V6))


@in_loop
async def test_an_ipv6_cluster_is_asked_for_nothing_else() -> None:
    async with frontend(HEADLESS, pods=("fd00::/64",), cluster_ips=("fd96::/112",)) as f:
        assert (await f.resolve()).endpoints == at(*V6)
        assert f.asked() == {(BARE, "AAAA")}
        answer = await f.resolve(port="http")
        assert tuple(endpoint.address for endpoint in answer.endpoints) == V6


@in_loop
async def test_a_family_that_fails_empties_nothing_while_the_other_has_no_addresses() -> None:
    def respond(query: dns.message.Message, response: dns.message.Message) -> None:
        if query.question[0].rdtype == dns.rdatatype.AAAA:
            response.set_rcode(dns.rcode.SERVFAIL)

    async with scripted(respond) as nameserver, frontend(nameserver=nameserver, **dual()) as f:
        before = Answer(
            kind=Kind.HEADLESS, reason="why", endpoints=at(*V6), freshness=Freshness.FRESH
        )
        answer = await f.resolve(before)
        assert (answer.endpoints, answer.freshness) == (at(*V6), Freshness.STALE)


@in_loop
async def test_a_target_of_srv_without_addresses_is_asked_for_in_each_family() -> None:
    def respond(query: dns.message.Message, response: dns.message.Message) -> None:
        add(response, NAMED, "SRV", f"0 1 8080 one.{BARE}.", f"0 1 8081 two.{BARE}.")
        add(response, f"one.{BARE}", "A", "10.1.0.3")
        add(response, f"two.{BARE}", "AAAA", "fd00::4")

    async with scripted(respond) as nameserver, frontend(nameserver=nameserver, **dual()) as f:
        answer = await f.resolve(port="http")
        assert answer.endpoints == (
            Endpoint("10.1.0.3", 8080, f"one.{BARE}"),
            Endpoint("fd00::4", 8081, f"two.{BARE}"),
        )


@in_loop
async def test_a_failing_family_of_a_srv_target_does_not_prefer_the_other_one() -> None:
    def respond(query: dns.message.Message, response: dns.message.Message) -> None:
        add(response, NAMED, "SRV", f"0 1 8080 one.{BARE}.")
        add(response, f"one.{BARE}", "AAAA", "fd00::4")
        if query.question[0].rdtype == dns.rdatatype.A:
            response.set_rcode(dns.rcode.SERVFAIL)

    async with scripted(respond) as nameserver, frontend(nameserver=nameserver, **dual()) as f:
        before = Answer(
            kind=Kind.SRV, reason="why", endpoints=at("10.1.0.3"), freshness=Freshness.FRESH
        )
        answer = await f.resolve(before, port="http")
        assert (answer.endpoints, answer.freshness) == (before.endpoints, Freshness.STALE)


@in_loop
async def test_a_target_of_srv_that_cannot_be_asked_for_keeps_all_pods() -> None:
    def respond(query: dns.message.Message, response: dns.message.Message) -> None:
        add(response, NAMED, "SRV", f"0 1 8080 one.{BARE}.", f"0 1 8080 two.{BARE}.")
        add(response, f"one.{BARE}", "A", "10.1.0.3")
        if str(query.question[0].name).startswith("two."):
            response.set_rcode(dns.rcode.SERVFAIL)

    async with scripted(respond) as nameserver, frontend(nameserver=nameserver) as f:
        before = Answer(kind=Kind.SRV, reason="why", endpoints=at("10.1.0.3", "10.1.0.4"), slots=10)
        answer = await f.resolve(replace(before, freshness=Freshness.FRESH), port="http")
        assert (answer.endpoints, answer.freshness) == (before.endpoints, Freshness.STALE)
        assert "SERVFAIL" in str(answer.error)


# Addresses that traffic must not be sent to

HOSTILE = ("127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "192.0.2.9", "10.2.0.1")
HOSTILE_V6 = ("::1", "fe80::1", "::", "ff02::1", "::ffff:10.1.0.3", "fd01::1")


@pytest.mark.parametrize("discovery", [Discovery.AUTO, Discovery.HEADLESS, Discovery.WILDCARD])
@in_loop
async def test_addresses_outside_the_pod_network_are_rejected(discovery: Discovery) -> None:
    service = replace(HEADLESS, endpoints=(*V4, *HOSTILE))
    async with frontend(service, wildcards=True) as f:
        answer = await f.resolve(discovery=discovery)
        assert answer.endpoints == at(*V4)
        assert answer.rejected == tuple(sorted(HOSTILE))
        assert (answer.freshness, answer.error) == (Freshness.FRESH, None)


@in_loop
async def test_ipv6_addresses_outside_the_pod_network_are_rejected() -> None:
    service = replace(HEADLESS, endpoints=(*V6, *HOSTILE_V6))
    async with frontend(service, pods=("fd00::/64",)) as f:
        answer = await f.resolve()
        assert answer.endpoints == at(*V6)
        assert set(answer.rejected) == {str(ip_address(address)) for address in HOSTILE_V6}


@in_loop
async def test_a_named_ports_addresses_outside_of_both_networks_are_rejected() -> None:
    async with frontend(replace(HEADLESS, endpoints=HOSTILE)) as f:
        answer = await f.resolve(port="http")
        assert (answer.endpoints, answer.rejected) == ((), tuple(sorted(HOSTILE)))
        assert "cluster.pod_network" in answer.remedy


@in_loop
async def test_a_cluster_ip_outside_the_service_network_is_rejected() -> None:
    async with frontend(replace(WITH_IP, cluster_ip="127.0.0.1")) as f:
        answer = await f.resolve(target=Target.SERVICE)
        assert (answer.endpoints, answer.rejected) == ((), ("127.0.0.1",))
        assert "cluster.service_network" in answer.remedy
        answer = await f.resolve()
        assert (answer.endpoints, answer.rejected) == ((), ("127.0.0.1",))


@in_loop
async def test_an_alias_out_of_the_cluster_is_followed_but_its_address_is_rejected() -> None:
    other = KubernetesService("other", "elsewhere", endpoints=("192.0.2.80",))
    alias = {BARE: "other.elsewhere.svc.cluster.local"}
    async with frontend(other, extra_records=alias) as f:
        answer = await f.resolve()
        assert (answer.endpoints, answer.rejected) == ((), ("192.0.2.80",))


# Data that is kept


def specs() -> dict[str, ServiceSpec]:
    """Return a service of each kind that is looked up in cluster DNS."""
    return {
        "auto": replace(SPEC, name="auto"),
        "wildcard": replace(SPEC, name="wildcard", discovery=Discovery.WILDCARD),
        "headless": replace(SPEC, name="headless", discovery=Discovery.HEADLESS),
        "srv": replace(SPEC, name="srv", port="http"),
        "service": replace(SPEC, name="service", service="ip", target=Target.SERVICE),
    }


IP_ONLY = replace(WITH_IP, name="ip")


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.SILENT])
@in_loop
async def test_failures_keep_the_endpoints_of_every_kind_as_stale(fault: Fault) -> None:
    async with frontend(HEADLESS, IP_ONLY, wildcards=True, patience=SOON) as f:
        while True:  # a busy machine may need more than the short timeout
            before = await resolve_all(specs().values(), f.cluster, f.client, {})
            if all(answer.freshness is Freshness.FRESH for answer in before.values()):
                break
        before = {name: replace(answer, slots=20) for name, answer in before.items()}
        assert all(answer.endpoints for answer in before.values())
        f.dns.fault = fault
        first = await resolve_all(specs().values(), f.cluster, f.client, before)
        said = "no answer within" if fault is Fault.SILENT else fault.name
        for name, answer in first.items():
            assert said in str(answer.error)
            stale = replace(before[name], freshness=Freshness.STALE)
            assert answer == replace(stale, error=answer.error, failure=answer.failure)
        assert await resolve_all(specs().values(), f.cluster, f.client, first) == first


@in_loop
async def test_a_dead_nameserver_keeps_the_endpoints_and_they_are_fresh_when_it_is_back() -> None:
    async with frontend(HEADLESS, IP_ONLY, wildcards=True) as f:
        before = await resolve_all(specs().values(), f.cluster, f.client, {})
        await f.dns.stop()
        during = await resolve_all(specs().values(), f.cluster, f.client, before)
        assert {a.freshness for a in during.values()} == {Freshness.STALE}
        assert {n: a.endpoints for n, a in during.items()} == {
            n: a.endpoints for n, a in before.items()
        }
        await f.dns.start()
        assert await resolve_all(specs().values(), f.cluster, f.client, during) == before


@in_loop
async def test_nxdomain_is_believed_and_empties() -> None:
    async with frontend(HEADLESS, IP_ONLY, wildcards=True) as f:
        before = await resolve_all(specs().values(), f.cluster, f.client, {})
        f.dns.fault = Fault.NXDOMAIN
        after = await resolve_all(specs().values(), f.cluster, f.client, before)
        for name, answer in after.items():
            assert (answer.endpoints, answer.freshness) == ((), Freshness.FRESH)
            assert answer.kind is before[name].kind
            assert "NXDOMAIN" in str(answer.error)


@in_loop
async def test_equal_answers_compare_equal_however_they_are_shuffled() -> None:
    pods = tuple(f"10.1.3.{i}" for i in range(1, 51))
    services = (replace(HEADLESS, endpoints=pods), replace(IP_ONLY, endpoints=pods))
    async with frontend(*services, wildcards=True) as f:
        before = await resolve_all(specs().values(), f.cluster, f.client, {})
        for _ in range(10):
            after = await resolve_all(specs().values(), f.cluster, f.client, before)
            assert after == before
            before = after
        f.dns.set_endpoints("web", pods[1:])
        after = await resolve_all(specs().values(), f.cluster, f.client, before)
        assert {n for n in after if after[n] != before[n]} == set(specs()) - {"service"}


@in_loop
async def test_the_slot_count_of_the_running_configuration_is_kept() -> None:
    async with frontend(HEADLESS, IP_ONLY, wildcards=True) as f:
        answers = await resolve_all(specs().values(), f.cluster, f.client, {})
        before = {name: replace(answer, slots=40) for name, answer in answers.items()}
        for fault in (Fault.NONE, Fault.SERVFAIL, Fault.NXDOMAIN):
            f.dns.fault = fault
            after = await resolve_all(specs().values(), f.cluster, f.client, before)
            assert {answer.slots for answer in after.values()} == {40}


@in_loop
async def test_one_service_that_fails_leaves_the_others_alone() -> None:
    others = [KubernetesService(f"s{i}", endpoints=(f"10.1.4.{i}",)) for i in range(1, 100)]
    listed = [
        replace(SPEC, name=f"n{i}", service=f"s{i}", binds=(Bind("ip", "*", 1000 + i),))
        for i in range(1, 100)
    ]
    async with frontend(*others) as f:
        f.dns.fault_for["s7.default.svc.cluster.local"] = Fault.SERVFAIL
        answers = await resolve_all(listed, f.cluster, f.client, {})
        assert list(answers) == [spec.name for spec in listed]
        for i in range(1, 100):
            expected = () if i == 7 else at(f"10.1.4.{i}")
            assert answers[f"n{i}"].endpoints == expected


# A server with answers that the embedded one never gives


def add(response: dns.message.Message, owner: str, rdtype: str, *data: str) -> None:
    """Add records to the answer if the question asks for them."""
    asked = response.question[0]
    name = dns.name.from_text(owner)
    if asked.name == name and asked.rdtype == dns.rdatatype.from_text(rdtype):
        response.answer.append(dns.rrset.from_text(name, 5, "IN", rdtype, *data))


class _Scripted(asyncio.DatagramProtocol):
    def __init__(self, respond: Callable[[dns.message.Message, dns.message.Message], None]) -> None:
        self._respond = respond

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        self._respond(query, response)
        self._transport.sendto(response.to_wire(), addr)


@contextlib.asynccontextmanager
async def scripted(
    respond: Callable[[dns.message.Message, dns.message.Message], None],
) -> AsyncIterator[Nameserver]:
    """Run a nameserver for UDP only; `respond` gets each query, with its response to complete."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Scripted(respond), local_addr=("127.0.0.1", 0)
    )
    host, port = transport.get_extra_info("sockname")
    try:
        yield Nameserver(ip_address(host), port, (Transport.UDP,))
    finally:
        transport.close()
