"""Declarations of Services of type LoadBalancer, and their order relative to those in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.balancer.assign import AssignedAddress, Assignment, HostAddresses
from fc_frontend.balancer.declare import (
    MAX_DECLARATIONS,
    BalancedDeclaration,
    declarations,
    key_of_origin,
    origin_of,
    served_at,
    unit_name,
)
from fc_frontend.balancer.requests import AddressGap, AddressProblem
from fc_frontend.balancer.wording import problems_of, words_of
from fc_frontend.config.cluster_source import cluster_raws
from fc_frontend.config.fields import SERVICE_NAME
from fc_frontend.config.host import bindable_addresses
from fc_frontend.config.loader import Sources, read
from fc_frontend.model.load_balancers import AddressRange, BalancedPort, LoadBalancerRequest
from fc_frontend.pipeline import Base, Prepared, base_of, no_check, propose
from fc_frontend.plan.cluster_objects import ObjectKey
from tests.support.in_memory import sources

WEB = ObjectKey("shop", "web")
V4, V6 = ip_address("198.51.100.2"), ip_address("2a02::1")
CLUSTER = {"nameservers": ["10.0.0.254"], "api": {"kubeconfig": "/etc/kubeconfig"}}
SETTINGS: dict[str, Any] = {
    "cluster": CLUSTER,
    "load_balancer": {"pools": {"public": {"addresses": "198.51.100.0/24", "default": True}}},
}
PORTS = (BalancedPort(443, "TCP", "https"), BalancedPort(80, "TCP", "http"))
NAMES = st.from_regex(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


def declared(
    request: LoadBalancerRequest, *addresses: AssignedAddress
) -> dict[str, BalancedDeclaration]:
    return declarations({WEB: request}, {WEB: Assignment(addresses)})


def test_each_served_port_is_a_service_of_its_own() -> None:
    found = declared(
        LoadBalancerRequest(ports=(*PORTS, BalancedPort(53, "UDP", "dns"))),
        AssignedAddress(V4, (443,), (80,)),
        AssignedAddress(V6, (443, 80)),
    )
    common = {"service": "web", "namespace": "shop", "discovery": "api"}
    assert found == {
        "svc.shop.web.443": BalancedDeclaration(
            WEB, {**common, "service_port": 443, "binds": ["198.51.100.2:443", "[2a02::1]:443"]}
        ),
        "svc.shop.web.80": BalancedDeclaration(
            WEB, {**common, "service_port": 80, "binds": ["[2a02::1]:80"]}
        ),
    }


def test_what_a_service_asks_for_is_passed_on_to_the_checks() -> None:
    request = LoadBalancerRequest(
        ports=PORTS[:1],
        source_ranges=("192.0.2.9/24", "everybody", "10.0.0.1", ""),
        affinity=60,
        proxy_protocol='v2" ssl',
    )
    (found,) = declared(request, AssignedAddress(V4, (443,))).values()
    assert found.fields["allow"] == ["192.0.2.0/24", "everybody", "10.0.0.1", ""]
    assert found.fields["session_affinity"] == 60
    assert found.fields["proxy_protocol"] == 'v2" ssl'


@given(NAMES, NAMES, st.integers(1, 65535))
def test_every_service_has_a_usable_name(namespace: str, name: str, port: int) -> None:
    key = ObjectKey(namespace, name)
    found = unit_name(key, port)
    assert SERVICE_NAME.fullmatch(found)
    assert found != unit_name(key, port % 65535 + 1)
    assert found != unit_name(ObjectKey(name, namespace), port) or namespace == name
    assert key_of_origin(origin_of(key)) == key


def test_what_is_served_is_read_from_what_runs() -> None:
    found = declared(
        LoadBalancerRequest(ports=PORTS),
        AssignedAddress(V4, (443,)),
        AssignedAddress(V6, (443, 80)),
    )
    running = [(origin_of(key), fields) for key, fields in found.values()]
    damaged: list[tuple[str, Any]] = [
        (origin_of(WEB), {"binds": ["nowhere", 7, "unix@/run/x", "*:80"]}),
        (origin_of(WEB), {"binds": "198.51.100.9:1"}),
        (origin_of(WEB), None),
        ("/etc/fc-frontend/services.d/a.yaml", {"binds": ["198.51.100.9:1"]}),
    ]
    assert served_at([*running, *damaged]) == {WEB: frozenset(((V4, 443), (V6, 443), (V6, 80)))}


def test_there_is_a_limit_of_all_ports_and_those_that_run_come_first() -> None:
    ports = tuple(BalancedPort(port, "TCP", "") for port in range(1, MAX_DECLARATIONS + 3))
    request = LoadBalancerRequest(ports=ports)
    served = AssignedAddress(V4, tuple(port.number for port in ports))
    running = [unit_name(WEB, port.number) for port in ports[-9:]]
    found = declarations({WEB: request}, {WEB: Assignment((served,))}, running)
    assert len(found) == MAX_DECLARATIONS
    assert found.keys() >= set(running)


@pytest.mark.parametrize("gap", AddressGap)
def test_every_gap_has_a_message_and_a_remedy(gap: AddressGap) -> None:
    message, remedy = words_of(AddressProblem(gap, "198.51.100.2"))
    assert message
    assert remedy
    problem = AddressProblem(gap, "198.51.100.2")
    (warning,) = problems_of({WEB: LoadBalancerRequest()}, {WEB: Assignment((), (problem,))})
    assert warning.file == "kubernetes:shop/web"
    assert str(warning).startswith("kubernetes:shop/web: warning: Service ")


def with_services(services: Mapping[str, Any], files: Mapping[str, Any] | None = None) -> Sources:
    """Return sources with services from files and from the cluster, by name."""
    known = {name: BalancedDeclaration(WEB, fields) for name, fields in services.items()}
    return replace(sources(SETTINGS, files or {}), cluster=cluster_raws(known, None))


def of_cluster(bind: str, **fields: Any) -> dict[str, Any]:
    port = int(bind.rpartition(":")[2])
    return {"service": "web", "namespace": "shop", "binds": [bind], "service_port": port, **fields}


def proposed(found: Sources, before: Prepared | None = None) -> Prepared:
    base = Base()
    if before is not None:
        base = base_of(before, before.declaration.raw, is_running=True)
    return propose(found, base, {}, {}, no_check)


def deployed(found: Prepared) -> set[str]:
    return {service.spec.name for service in found.plan.services}


BIND = "198.51.100.2:443"
FILED = {"binds": [BIND], "pod_port": 443}


def test_files_win_between_two_additions_of_a_bind() -> None:
    # The Service sorts first by name.
    found = proposed(with_services({"svc.shop.web.443": of_cluster(BIND)}, {"zoo": FILED}))
    assert deployed(found) == {"zoo"}
    (withheld,) = found.withheld
    assert withheld.unit.name == "svc.shop.web.443"
    assert withheld.problems[0].file == "kubernetes:shop/web"
    assert withheld.problems[0].remedy


def test_a_service_that_serves_wins_against_a_file() -> None:
    cluster = {"svc.shop.web.443": of_cluster(BIND)}
    before = proposed(with_services(cluster))
    found = proposed(with_services(cluster, {"zoo": FILED, "other": {"pod_port": 1}}), before)
    assert deployed(found) == {"svc.shop.web.443", "other"}
    assert [each.unit.name for each in found.withheld] == ["zoo"]


def test_a_file_wins_a_name_unless_the_service_serves() -> None:
    name = "svc.shop.web.443"
    filed = {name: {"pod_port": 444, "service": "web"}}
    cluster = {name: of_cluster(BIND)}
    first = proposed(with_services(cluster, filed))
    (planned,) = first.plan.services
    assert planned.spec.port == 444
    assert [str(each.unit) for each in first.withheld] == [
        f"duplicate {name} in kubernetes:shop/web"
    ]
    (planned,) = proposed(
        with_services(cluster, filed), proposed(with_services(cluster))
    ).plan.services
    assert planned.spec.port == 443


def test_services_stay_as_they_run_until_the_cluster_is_known() -> None:
    before = proposed(with_services({"svc.shop.web.443": of_cluster(BIND)}))
    unknown = replace(with_services({}), cluster=None)
    assert deployed(proposed(unknown, before)) == {"svc.shop.web.443"}
    assert deployed(proposed(with_services({}), before)) == set()
    off = replace(unknown, settings={"cluster": CLUSTER})
    assert deployed(proposed(off, before)) == set()


def test_limits_of_untrusted_files_do_not_apply_and_values_only_do() -> None:
    limits = {"namespaces": ["other"], "binds": ["192.0.2.1:1"]}
    found = with_services({"svc.shop.web.443": of_cluster(BIND)})
    found = replace(found, settings={**SETTINGS, "untrusted": limits})
    assert deployed(proposed(found)) == {"svc.shop.web.443"}
    found = with_services({"svc.shop.web.443": of_cluster(BIND, proxy_protocol='v2" ssl')})
    (withheld,) = proposed(found).withheld
    assert [problem.field for problem in withheld.problems] == ["proxy_protocol"]


def test_a_service_cannot_take_the_name_of_a_fragment(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "services.d").mkdir()
    text = "backend svc.shop.web.443\n    server a 10.0.0.1:80\n"
    (tmp_path / "services.d" / "own.cfg").write_text(text)
    cluster = with_services({"svc.shop.web.443": of_cluster(BIND)}).cluster
    found = proposed(replace(read(str(tmp_path / "config.json")), cluster=cluster))
    assert [fragment.name for fragment in found.plan.fragments] == ["own"]
    assert deployed(found) == set()
    assert [each.unit.name for each in found.withheld] == ["svc.shop.web.443"]


def test_addresses_that_this_host_can_bind() -> None:
    inside, outside = (ip_address(text) for text in ("127.9.9.9", "203.0.113.7"))
    found = bindable_addresses(
        [AddressRange(address, address) for address in (inside, outside)], [outside]
    )
    assert found.has(inside)
    assert found.has(outside), "an interface has it, whatever the trial says"
    assert bindable_addresses([], []) == HostAddresses(frozenset(), found.nonlocal_bind)
