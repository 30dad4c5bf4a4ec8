"""The status of Services of type LoadBalancer: set after the bind is confirmed, by one frontend.

Row numbers refer to the checklist for implementations of load balancers.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from fc_frontend.balancer.assign import AssignedAddress, Assignment
from fc_frontend.balancer.requests import AddressGap, AddressProblem
from fc_frontend.balancer.status import desired_status
from fc_frontend.model.load_balancers import (
    BalancedPort,
    IngressAddress,
    LoadBalancerRequest,
    PortStatus,
    ServedCondition,
)
from tests.support.api_objects import Json
from tests.support.certificates import Certificates
from tests.support.frontend import wrong_clock
from tests.test_load_balancers import Balanced

V4, V6 = ip_address("198.51.100.2"), ip_address("2a02::1")
HTTPS, HTTP, DNS = (
    BalancedPort(443, "TCP", ""),
    BalancedPort(80, "TCP", ""),
    BalancedPort(53, "UDP", ""),
)
REQUEST = LoadBalancerRequest(ports=(HTTPS,))
SERVED = ServedCondition(True, "Served", "served by HAProxy")
PROXY = IngressAddress(str(V4), "Proxy")


def assigned(*addresses: AssignedAddress, gap: AddressGap | None = None) -> Assignment:
    return Assignment(addresses, (AddressProblem(gap, "x"),) if gap else ())


ONE = assigned(AssignedAddress(V4, (443,)))


def test_row_03_the_address_has_the_mode_of_a_proxy() -> None:
    found = desired_status(REQUEST, ONE, {(V4, 443)}, {})
    assert found.ingress == (PROXY,)
    assert found.condition == SERVED
    assert found.differs_from(REQUEST)
    done = replace(REQUEST, ingress=found.ingress, condition=found.condition)
    assert not found.differs_from(done)
    # An old API server dropped the mode.
    dropped = replace(done, ingress=(IngressAddress(str(V4), ""),))
    assert found.differs_from(dropped)
    assert not found.differs_from(dropped, with_mode=False)


def test_row_04_nothing_is_said_before_the_bind_is_confirmed() -> None:
    found = desired_status(REQUEST, ONE, frozenset(), {})
    assert not found.differs_from(REQUEST)
    # An existing status is kept while HAProxy is away, or another frontend serves the address.
    served = replace(REQUEST, ingress=(PROXY,), condition=SERVED)
    assert not desired_status(served, ONE, frozenset(), {}).differs_from(served)
    # The same holds if the address is not on this host, or another process here has it.
    elsewhere = assigned(AssignedAddress(V4), gap=AddressGap.NOT_ON_HOST)
    assert not desired_status(served, elsewhere, frozenset(), {}).differs_from(served)
    assert not desired_status(served, ONE, frozenset(), {443: "in use"}).differs_from(served)


def test_row_05_each_port_has_its_error() -> None:
    request = LoadBalancerRequest(ports=(HTTPS, HTTP, DNS))
    found = desired_status(request, assigned(AssignedAddress(V4, (443,), (80,))), {(V4, 443)}, {})
    (entry,) = found.ingress
    assert entry.ports == (
        PortStatus(443, "TCP", ""),
        PortStatus(80, "TCP", "fc-frontend.io/PortTaken"),
        PortStatus(53, "UDP", "fc-frontend.io/UnsupportedProtocol"),
    )
    assert found.condition is not None
    assert found.condition[:2] == (True, "PartlyServed")
    both = assigned(AssignedAddress(V4, (443, 80)))
    found = desired_status(request, both, {(V4, 443)}, {80: "allow.0: no network"})
    assert found.ingress[0].ports[1].error == "fc-frontend.io/Withheld"


@pytest.mark.parametrize("gap", AddressGap)
def test_row_18_the_condition_has_the_reason(gap: AddressGap) -> None:
    found = desired_status(REQUEST, assigned(gap=gap), frozenset(), {})
    assert found.ingress == ()
    assert found.condition is not None
    assert found.condition[:2] == (False, gap.value)
    withheld = desired_status(REQUEST, ONE, frozenset(), {443: "taken by service shop"})
    assert withheld.condition == ServedCondition(
        False, "Withheld", "port 443 is not served: taken by service shop"
    )


def test_addresses_of_others_are_replaced() -> None:
    of_nodes = replace(REQUEST, ingress=(IngressAddress("10.0.0.5", "VIP"),))
    assert desired_status(of_nodes, ONE, {(V4, 443)}, {}).ingress == (PROXY,)
    assert desired_status(of_nodes, ONE, frozenset(), {}).ingress == ()


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[Balanced]:
    with Balanced(either_binary, certificates) as found:
        yield found


def status(frontend: Balanced, name: str = "web") -> Json:
    found: Json = frontend.api.objects.now["services", "default", name].get("status", {})
    return found


def ingress(frontend: Balanced, name: str = "web") -> list[Json]:
    found: list[Json] = status(frontend, name).get("loadBalancer", {}).get("ingress", [])
    return found


def condition(frontend: Balanced, name: str = "web") -> tuple[str, str]:
    """Return status and reason of fc-frontend's own condition."""
    for each in status(frontend, name).get("conditions", ()):
        if each["type"] == "fc-frontend.io/Served":
            assert each["message"]
            assert each["lastTransitionTime"]
            return each["status"], each["reason"]
    return "", ""


def events(frontend: Balanced, name: str = "web") -> list[str]:
    return [
        item["reason"]
        for (resource, _, _), item in list(frontend.api.objects.now.items())
        if resource == "events" and item["regarding"]["name"] == name
    ]


def test_rows_03_04_17_and_18_a_service_is_told_its_address(frontend: Balanced) -> None:
    frontend.start()
    pod = frontend.publish_pods("web")
    frontend.balanced_service("web")
    frontend.until(lambda: ingress(frontend))
    # The bind was confirmed before.
    assert frontend.ask_at(frontend.address(1)) == pod
    assert ingress(frontend) == [{"ip": frontend.address(1), "ipMode": "Proxy"}]
    assert condition(frontend) == ("True", "Served")
    frontend.until(lambda: events(frontend) == ["IPAllocated", "EnsuredLoadBalancer"])
    # Row 2: after a change of type, the status and the condition are removed.
    item = frontend.api.objects.now["services", "default", "web"]
    patch = {"spec": {**item["spec"], "type": "ClusterIP"}}

    async def change() -> None:
        frontend.api.objects.patch(("services", "default", "web"), patch)

    frontend.call(change())
    frontend.until(lambda: not ingress(frontend))
    assert condition(frontend) == ("", "")
    frontend.until(lambda: not frontend.ask_at(frontend.address(1)))


def test_rows_05_and_17_what_is_not_served_is_told_once(frontend: Balanced) -> None:
    frontend.start()
    frontend.publish_pods("web")
    frontend.balanced_service("web", {80: "TCP", 53: "UDP"})
    frontend.balanced_service("pool", annotations={"fc-frontend.io/pool": "absent"})
    frontend.balanced_service("bad", loadBalancerSourceRanges=["everybody"])
    frontend.until(lambda: condition(frontend, "pool") == ("False", "NoPool"))
    frontend.until(lambda: condition(frontend, "bad") == ("False", "Withheld"))
    frontend.until(lambda: condition(frontend) == ("True", "PartlyServed"))
    (entry,) = ingress(frontend)
    assert entry["ports"] == [
        {"port": 80, "protocol": "TCP"},
        {"port": 53, "protocol": "UDP", "error": "fc-frontend.io/UnsupportedProtocol"},
    ]
    assert not ingress(frontend, "pool")
    assert not ingress(frontend, "bad")
    frontend.until(lambda: events(frontend, "bad") == ["SyncLoadBalancerFailed"])
    frontend.until(lambda: events(frontend, "pool") == ["AllocationFailed"])
    frontend.balanced_service("pool")
    frontend.until(lambda: condition(frontend, "pool") == ("True", "Served"))
    told = ["AllocationFailed", "IPAllocated", "EnsuredLoadBalancer"]
    frontend.until(lambda: events(frontend, "pool") == told)


def test_conditions_of_others_stay(frontend: Balanced) -> None:
    other = {"type": "example.org/Other", "status": "True", "reason": "X", "message": "",
             "lastTransitionTime": "2026-01-01T00:00:00Z"}  # fmt: skip
    frontend.balanced_service("web")
    frontend.call(patched(frontend, {"status": {"loadBalancer": {}, "conditions": [other]}}))
    frontend.start()
    frontend.until(lambda: condition(frontend) == ("True", "Served"))
    assert other in status(frontend)["conditions"]


async def patched(frontend: Balanced, change: Json, name: str = "web") -> None:
    frontend.api.objects.patch(("services", "default", name), change, "status", "k3s")


def doctor(frontend: Balanced) -> dict[str, str]:
    """Return `doctor`'s findings, by check."""
    document = json.loads(frontend.run("doctor", "--json", check=False).stdout)
    found = document["findings"]
    return {
        each["check"]: f"{each['result']}: {each['message']} → {each['remedy']}" for each in found
    }


@pytest.mark.extended
def test_doctor_says_who_writes_the_status_and_which_right_is_missing(frontend: Balanced) -> None:
    frontend.kube_node("node1", "192.0.2.1")
    frontend.start()
    for name in ("web", "wiped"):
        frontend.balanced_service(name)
        frontend.until(lambda name=name: condition(frontend, name) == ("True", "Served"))
    found = doctor(frontend)
    assert found["rights of load_balancer"].startswith("ok: ")
    assert "status of Services" not in found
    frontend.stop_daemon()
    foreign = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9", "ipMode": "VIP"}]}}}
    frontend.call(patched(frontend, foreign))
    said = doctor(frontend)["status of Services"]
    assert said.startswith("warning: default/web: set to 192.0.2.9 by k3s → ServiceLB of k3s")
    frontend.call(patched(frontend, {"status": {"loadBalancer": {"ingress": None}}}, "wiped"))
    frontend.delete_service("web")
    said = doctor(frontend)["status of Services"]
    assert said.startswith("warning: default/wiped: emptied by another program → ")
    frontend.api.denied = {("patch", "services/status"), ("update", "leases")}
    said = doctor(frontend)["rights of load_balancer"]
    assert said.startswith(
        "problem: the credentials may not patch services/status, update "
        "leases.coordination.k8s.io in namespace fc-frontend → "
    )
    assert "rbac-load-balancer.yaml" in said


def test_a_status_that_others_wipe_is_written_again_and_reported(frontend: Balanced) -> None:
    frontend.start()
    frontend.balanced_service("web")
    for _ in range(2):
        frontend.until(lambda: ingress(frontend))
        frontend.until(lambda: condition(frontend) == ("True", "Served"))
        frontend.call(patched(frontend, {"status": {"loadBalancer": {"ingress": None}}}))
    frontend.until(lambda: ingress(frontend))
    frontend.until(lambda: frontend.events("service-status-overwritten"))
    # The overwritten status is not an event for users.
    assert events(frontend).count("EnsuredLoadBalancer") == 1


def test_without_the_right_services_are_served_and_the_reason_is_logged(
    frontend: Balanced,
) -> None:
    frontend.api.denied = {("patch", "services/status")}
    frontend.start()
    pod = frontend.publish_pods("web")
    frontend.balanced_service("web")
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == pod)
    frontend.until(lambda: frontend.events("service-status-not-written"))
    assert "rbac-load-balancer.yaml" in frontend.events("service-status-not-written")[0]
    assert not ingress(frontend)
    frontend.api.denied = set()
    frontend.until(lambda: ingress(frontend))


def test_an_old_server_that_drops_the_mode_is_reported_once(frontend: Balanced) -> None:
    frontend.api.keeps_ip_mode = False
    frontend.start()
    frontend.balanced_service("web")
    frontend.until(lambda: frontend.events("ip-mode-dropped"))
    frontend.until(lambda: condition(frontend) == ("True", "Served"))
    writes = [each for each in frontend.api.requests if each.startswith("PATCH")]
    frontend.balanced_service("other")
    frontend.until(lambda: condition(frontend, "other") == ("True", "Served"))
    patches = [each for each in frontend.api.requests if each.startswith("PATCH")]
    assert len(patches) == len(writes) + 1
    assert len(frontend.events("ip-mode-dropped")) == 1


def test_row_20_two_frontends_have_one_writer(
    frontend: Balanced, certificates: Certificates, either_binary: str
) -> None:
    """Both serve the same cluster; the second one has other addresses of the pool."""

    def holder() -> Any:
        leases = [
            item for key, item in list(frontend.api.objects.now.items()) if key[0] == "leases"
        ]
        return leases[0]["spec"]["holderIdentity"] if leases else None

    frontend.start()
    frontend.until(holder)
    first = holder()
    with Balanced(either_binary, certificates) as second:
        second.settings["cluster"] = {**frontend.settings["cluster"]}
        second.settings["cluster"]["nameservers"] = frontend.settings["cluster"]["nameservers"]
        second.settings["load_balancer"] = frontend.settings["load_balancer"]
        # Only one of the two can bind an address on this host.
        second.settings["haproxy"]["reload_timeout"] = "5s"
        second.start()
        frontend.balanced_service("web")
        frontend.until(lambda: condition(frontend)[0] == "True")
        assert holder() == first
        # An orderly exit releases the Lease: the other one may write at once.
        frontend.stop_daemon()
        second.until(lambda: holder() not in ("", first))
        # Here it cannot bind the address, which the first one's HAProxy still serves.
        frontend.balanced_service("more")
        second.until(lambda: condition(frontend, "more") == ("True", "Served"))
        assert condition(frontend) == ("True", "Served")
        assert ingress(frontend) == [{"ip": frontend.address(1), "ipMode": "Proxy"}]


@pytest.mark.extended
def test_row_02_settings_that_no_longer_want_a_service_withdraw_its_status(
    frontend: Balanced,
) -> None:
    """Only Services that got their address here are affected; the status of others is kept."""
    balancer = frontend.settings["load_balancer"]
    balancer["default"] = True
    frontend.start()
    frontend.balanced_service("unset", loadBalancerClass=None)
    frontend.balanced_service("web")
    frontend.balanced_service("foreign", loadBalancerClass="example.com/other")
    other = {"ingress": [{"ip": frontend.address(9), "ipMode": "Proxy"}]}
    frontend.call(patched(frontend, {"status": {"loadBalancer": other}}, "foreign"))
    for name in ("unset", "web"):
        frontend.until(lambda name=name: condition(frontend, name) == ("True", "Served"))
    balancer["default"] = False
    frontend.write()
    frontend.until(lambda: not ingress(frontend, "unset"))
    assert condition(frontend, "unset") == ("", "")
    frontend.until(lambda: "svc.default.unset.80" not in frontend.haproxy_cfg.read_text())
    assert ingress(frontend)
    del frontend.settings["load_balancer"]
    frontend.write()
    frontend.until(lambda: not ingress(frontend))
    frontend.until(lambda: "svc.default.web.80" not in frontend.haproxy_cfg.read_text())
    assert condition(frontend) == ("", "")
    assert ingress(frontend, "foreign") == other["ingress"]
    frontend.until(lambda: frontend.status()["load_balancers"] is None)
    # The Lease is released.
    frontend.until(
        lambda: (
            not [
                item["spec"]["holderIdentity"]
                for key, item in list(frontend.api.objects.now.items())
                if key[0] == "leases" and item["spec"]["holderIdentity"]
            ]
        )
    )


@contextlib.contextmanager
def beside(frontend: Balanced, certificates: Certificates, binary: str) -> Iterator[Balanced]:
    """Run another frontend of the same cluster with the same pool."""
    with Balanced(binary, certificates) as second:
        second.settings["cluster"] = {**frontend.settings["cluster"]}
        second.settings["load_balancer"] = frontend.settings["load_balancer"]
        yield second


def written_addresses(frontend: Balanced, name: str) -> list[list[str]]:
    """Return the addresses in the status of a Service, in the order in which they were written."""
    key = ("services", "default", name)
    found: list[list[str]] = []
    for event in list(frontend.api.objects.events):
        if event.key == key and event.after is not None:
            entries = event.after.get("status", {}).get("loadBalancer", {}).get("ingress") or []
            addresses = [entry["ip"] for entry in entries]
            if not found or found[-1] != addresses:
                found.append(addresses)
    return found


@pytest.mark.extended
def test_row_20_a_writer_that_loses_its_settings_leaves_the_statuses_to_another_frontend(
    frontend: Balanced, certificates: Certificates, either_binary: str
) -> None:
    frontend.start()
    frontend.balanced_service("web")
    frontend.until(lambda: condition(frontend) == ("True", "Served"))
    with beside(frontend, certificates, either_binary) as second:
        second.start()
        second.until(lambda: second.status()["load_balancers"]["holder"])
        del frontend.settings["load_balancer"]
        frontend.write()
        second.until(lambda: second.status()["load_balancers"]["leader"], 60)
        # The address is free on this host, and the second frontend serves it.
        second.until(lambda: f"{frontend.address(1)}:80" in second.haproxy_cfg.read_text(), 60)
        second.until(lambda: condition(frontend) == ("True", "Served"))
        # More than two durations of the Lease later, nothing was withdrawn.
        renewed = set()

        def is_renewed() -> bool:
            leases = [i for key, i in list(frontend.api.objects.now.items()) if key[0] == "leases"]
            renewed.add(leases[0]["spec"]["renewTime"])
            return len(renewed) > 8

        second.until(is_renewed, 90)
        assert written_addresses(frontend, "web") == [[], [frontend.address(1)]]


@pytest.mark.extended
@pytest.mark.parametrize("way", ["stopped", "killed", "fast clock"])
def test_row_20_nothing_alternates_when_the_writer_changes(
    frontend: Balanced, certificates: Certificates, either_binary: str, way: str
) -> None:
    """The first frontend is stopped and continued, is killed, or has a fast clock."""

    def holder() -> str:
        leases = [i for key, i in list(frontend.api.objects.now.items()) if key[0] == "leases"]
        return str(leases[0]["spec"]["holderIdentity"]) if leases else ""

    if way == "fast clock":
        frontend.environ |= wrong_clock(3 * 3600)
    frontend.start()
    frontend.until(holder)
    first = holder()
    frontend.balanced_service("web")
    frontend.until(lambda: condition(frontend) == ("True", "Served"))
    with beside(frontend, certificates, either_binary) as second:
        second.start()
        assert frontend.daemon is not None
        if way == "fast clock":
            # Renewals that appear to the second frontend as three hours in the future.
            renewed = set()

            def is_renewed() -> bool:
                (lease,) = [
                    i for key, i in list(frontend.api.objects.now.items()) if key[0] == "leases"
                ]
                renewed.add(lease["spec"]["renewTime"])
                return len(renewed) > 3

            second.until(is_renewed, 60)
            soon = datetime.now(UTC) + timedelta(hours=2)
            assert max(renewed) > soon.strftime("%Y-%m-%dT%H:%M:%S")
            assert holder() == first
        else:
            frontend.daemon.send_signal(signal.SIGSTOP if way == "stopped" else signal.SIGKILL)
            second.until(lambda: holder() not in ("", first), 60)
            # The first frontend's HAProxy has the address of `web`; this address is new.
            frontend.balanced_service("more")
            second.until(lambda: condition(frontend, "more") == ("True", "Served"))
            if way == "stopped":
                frontend.daemon.send_signal(signal.SIGCONT)
            else:
                frontend.daemon.wait()
                frontend.start()
            now = holder()
            # It participates again, and has seen the new Service.
            frontend.until(lambda: frontend.status()["load_balancers"]["holder"] == now)
            frontend.until(lambda: len(frontend.status()["load_balancers"]["services"]) == 2)
            assert holder() == now
            assert written_addresses(frontend, "more") == [[], [frontend.address(2)]]
        assert written_addresses(frontend, "web") == [[], [frontend.address(1)]]
        assert ingress(frontend) == [{"ip": frontend.address(1), "ipMode": "Proxy"}]
