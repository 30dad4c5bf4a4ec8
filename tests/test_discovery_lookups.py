"""Lookups of many services: slow, numerous or silent names delay no other service's answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, ParamSpec

import pytest

from fc_frontend.demo.dns import ClusterDns, Fault, KubernetesService, endpoint_label
from fc_frontend.discovery import budget, resolve
from fc_frontend.discovery.client import DnsClient
from fc_frontend.discovery.lookups import Clients, Lookups
from fc_frontend.discovery.resolve import resolve_all
from fc_frontend.plan.model import (
    Answer,
    Bind,
    Cluster,
    Freshness,
    LookupLimit,
    Nameserver,
    ServiceSpec,
)

P = ParamSpec("P")
ZONE = "default.svc.cluster.local"
PODS = tuple(f"10.1.{n // 250}.{1 + n % 250}" for n in range(600))
SRV = f"_http._tcp.evil.{ZONE}"


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Wrap the test in an ordinary function that runs it in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def spec(name: str, port: int | str = 8080) -> ServiceSpec:
    return ServiceSpec(name=name, service=name, binds=(Bind("ip", "*", 80),), port=port)


EVIL = spec("evil", "http")
GOOD = [spec(f"s{n}") for n in range(5)]


class Sweeps:
    """Cluster DNS, and the daemon's lookups of `specs` in it."""

    def __init__(self, dns: ClusterDns, specs: list[ServiceSpec]) -> None:
        self.dns = dns
        self.specs = specs
        host, port = dns.address
        self.cluster = Cluster(
            nameservers=(Nameserver(ip_address(host), port),),
            pod_networks=(ip_network("10.1.0.0/16"),),
            service_networks=(ip_network("10.96.0.0/16"),),
        )
        self.clients = Clients(
            DnsClient(self.cluster.nameservers), DnsClient(self.cluster.nameservers)
        )
        self.lookups = Lookups()
        self.known: dict[str, Answer] = {}
        self.hold = 30.0

    async def sweep(self, *, is_new: bool = False) -> dict[str, Answer]:
        """Return the answers of a sweep; all known answers are in `known`."""
        answers = await self.lookups.answers(
            self.specs, self.cluster, self.clients, self.known, hold=self.hold, is_new=is_new
        )
        self.known.update(answers)
        return answers

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Sweep until a condition holds."""
        async with asyncio.timeout(60):
            while not is_so():
                await self.sweep()

    def asking_each(self, others: Sequence[ClusterDns]) -> None:
        """Ask further nameservers, too, as for services whose slots fc-frontend fills."""
        servers = [self.dns.address, *(other.address for other in others)]
        names = [Nameserver(ip_address(host), port) for host, port in servers]
        each = tuple(DnsClient((name,)) for name in names)
        self.clients = replace(self.clients, each=each)


@contextlib.asynccontextmanager
async def sweeping(*specs: ServiceSpec) -> AsyncIterator[Sweeps]:
    """Yield the services of GOOD with a pod each, and `evil` with many pods behind a named port."""
    services = [KubernetesService(s.service, endpoints=("10.1.9.9",)) for s in GOOD]
    evil = KubernetesService("evil", ports={"http": 8080}, endpoints=PODS)
    async with ClusterDns([*services, evil]) as dns:
        sweeps = Sweeps(dns, list(specs))
        try:
            yield sweeps
        finally:
            sweeps.lookups.close()
            sweeps.clients.close()
            await asyncio.sleep(0)


@in_loop
async def test_slots_that_are_filled_here_have_the_pods_of_all_nameservers() -> None:
    async with sweeping(*GOOD) as sweeps, ClusterDns() as second:
        sweeps.asking_each([second])
        await sweeps.until(lambda: "s0" in sweeps.known)
        sweeps.known["s0"] = replace(sweeps.known["s0"], by_runtime=True)

        def has(*addresses: str) -> bool:
            return {e.address for e in sweeps.known["s0"].endpoints} == {*addresses}

        # The first nameserver lags behind.
        second.set_service(KubernetesService("s0", endpoints=("10.1.9.10",)))
        await sweeps.until(lambda: has("10.1.9.9", "10.1.9.10"))
        sweeps.dns.set_endpoints("s0", ("10.1.9.10",))
        await sweeps.until(lambda: has("10.1.9.10"))
        # A pod that only one nameserver lists is not kept forever.
        second.set_endpoints("s0", ("10.1.9.10", "10.1.9.11"))
        await sweeps.until(lambda: has("10.1.9.10", "10.1.9.11"))
        sweeps.hold = 0.0
        await sweeps.until(lambda: has("10.1.9.10"))
        # A nameserver that is silent or has no answer removes no pod.
        sweeps.hold = 30.0
        second.fault_for[f"s0.{ZONE}"] = Fault.SILENT
        sweeps.dns.set_endpoints("s0", ("10.1.9.10", "10.1.9.12"))
        await sweeps.until(lambda: has("10.1.9.10", "10.1.9.12"))


@in_loop
async def test_a_silent_service_is_answered_later_than_the_others() -> None:
    async with sweeping(EVIL, *GOOD) as sweeps:
        sweeps.dns.fault_for[SRV] = Fault.SILENT
        for is_new in (True, False, False):
            answers = await sweeps.sweep(is_new=is_new)
            assert answers.keys() >= {s.name for s in GOOD}
        await sweeps.until(lambda: sweeps.known.get("evil") is not None)
        assert sweeps.known["evil"].freshness is Freshness.UNKNOWN
        sweeps.dns.fault_for.clear()
        await sweeps.until(lambda: len(sweeps.known["evil"].endpoints) == len(PODS))


@in_loop
async def test_many_silent_services_take_no_place_from_the_others() -> None:
    silent = [spec(f"x{n}") for n in range(200)]
    async with sweeping(*silent, *GOOD) as sweeps:
        for each in silent:
            sweeps.dns.fault_for[f"{each.name}.{ZONE}"] = Fault.SILENT
        await sweeps.until(lambda: len(sweeps.known) == len(sweeps.specs))
        # They have failed once now, and wait in a queue of their own.
        for number in range(3):
            sweeps.dns.set_endpoints("s0", (f"10.1.8.{1 + number}",))
            answers = await sweeps.sweep()
            assert answers["s0"].endpoints[0].address == f"10.1.8.{1 + number}"


@in_loop
async def test_more_lookups_than_allowed_leave_the_last_good_answer() -> None:
    async with sweeping(EVIL, *GOOD) as sweeps:
        sweeps.dns.set_endpoints("evil", PODS[:2])
        await sweeps.until(lambda: "evil" in sweeps.known)
        before = sweeps.known["evil"]
        sweeps.dns.fault_for[SRV] = Fault.NO_ADDITIONAL
        sweeps.dns.set_endpoints("evil", PODS)
        await sweeps.until(lambda: sweeps.known["evil"].exceeded is not None)
        assert sweeps.known["evil"].endpoints == before.endpoints
        assert sweeps.known["evil"].freshness is Freshness.STALE
        sweeps.dns.set_endpoints("evil", PODS[:40])
        await sweeps.until(lambda: sweeps.known["evil"].exceeded is None)
        assert len(sweeps.known["evil"].endpoints) == 40


@pytest.mark.parametrize(
    ("limit", "module", "name", "value"),
    [
        (LookupLimit.QUERIES, budget, "MAX_QUERIES", 10),
        (LookupLimit.RECORDS, budget, "MAX_RECORDS", 10),
        (LookupLimit.SECONDS, resolve, "MAX_SECONDS", 0.2),
    ],
)
def test_each_limit_is_reported(
    monkeypatch: pytest.MonkeyPatch, limit: LookupLimit, module: Any, name: str, value: float
) -> None:
    @in_loop
    async def scenario() -> None:
        async with sweeping(EVIL, *GOOD) as sweeps:
            sweeps.dns.fault_for[SRV] = Fault.NO_ADDITIONAL
            sweeps.dns.set_endpoints("evil", PODS[:40])
            if limit is LookupLimit.SECONDS:
                target = f"{endpoint_label(PODS[0])}.evil.{ZONE}"
                sweeps.dns.fault_for[target] = Fault.SILENT
                sweeps.dns.set_endpoints("evil", PODS[:1])
            client = sweeps.clients.usual
            answers = await resolve_all(sweeps.specs, sweeps.cluster, client, {})
            assert answers["evil"].exceeded is limit
            assert answers["evil"].error == budget.EXPLANATIONS[limit]
            assert answers["evil"].remedy == budget.REMEDIES[limit]
            assert all(answers[each.name].endpoints for each in GOOD)

    monkeypatch.setattr(module, name, value)
    scenario()


@in_loop
async def test_an_answer_that_comes_late_has_the_slots_of_now() -> None:
    async with sweeping(EVIL) as sweeps:
        await sweeps.until(lambda: "evil" in sweeps.known)
        sweeps.dns.fault_for[SRV] = Fault.SILENT
        await sweeps.sweep()
        assert sweeps.lookups.pending == {"evil"}
        sweeps.known["evil"] = replace(sweeps.known["evil"], slots=1280, by_runtime=True)
        await sweeps.until(lambda: sweeps.known["evil"].freshness is Freshness.STALE)
        assert (sweeps.known["evil"].slots, sweeps.known["evil"].by_runtime) == (1280, True)


@in_loop
async def test_a_service_that_asks_something_else_is_asked_about_anew() -> None:
    async with sweeping(EVIL) as sweeps:
        sweeps.dns.fault_for[SRV] = Fault.SILENT
        assert await sweeps.sweep() == {}
        sweeps.specs = [spec("evil", 8080)]
        await sweeps.until(lambda: "evil" in sweeps.known)
        assert len(sweeps.known["evil"].endpoints) == len(PODS)
        sweeps.specs = []
        assert await sweeps.sweep() == {}
        assert sweeps.lookups.pending == frozenset()
