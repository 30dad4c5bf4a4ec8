"""Services of type LoadBalancer are served: a real API server's protocol, real HAProxy.

Row numbers refer to the checklist for load balancer implementations.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator

import pytest

from fc_frontend.demo.load import Load
from tests.support.api_cluster import READY, ApiFrontend
from tests.support.certificates import Certificates


class Balanced(ApiFrontend):
    """A frontend with a pool of 14 addresses on loopback."""

    def __init__(self, binary: str, certificates: Certificates) -> None:
        super().__init__(binary, certificates)
        self.settings["load_balancer"] = {
            "pools": {"public": {"addresses": f"{self.address(1)}-{self.address(14)}",
                                 "default": True}}
        }  # fmt: skip

    def address(self, number: int) -> str:
        """Return an address of the pool."""
        return f"127.{self.octet}.201.{number}"

    def publish_pods(self, name: str, *ports: int) -> str:
        """Publish a pod for Service `name`, ready at its TCP ports; return the name of the pod."""
        pods = self.scale(name, 1, publish=False)
        names = [f"tcp-{port}" for port in ports or (80,)]
        self.endpoints(name, dict.fromkeys(pods.addresses, READY), port_names=names)
        return pods.pods[0].name

    def ask_at(self, address: str, port: int = 80, source: str = "") -> str:
        """Return the name of the pod that answers at the address; empty if none answers."""
        connection = http.client.HTTPConnection(
            address, port, timeout=10, source_address=(source, 0) if source else None
        )
        try:
            connection.request("GET", "/")
            return connection.getresponse().getheader("X-Pod") or ""
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()

    def section(self, unit: str) -> str:
        """Return the text of a service in haproxy.cfg; empty if there is none."""
        text = self.haproxy_cfg.read_text()
        _, found, rest = text.partition(f"\nlisten {unit} ")
        return rest.partition("\n# ")[0] if found else ""

    def warnings(self) -> list[str]:
        """Return the messages about Services in the daemon's status."""
        return [
            problem["message"]
            for problem in self.status()["problems"]
            if (problem["file"] or "").startswith("kubernetes:")
        ]


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[Balanced]:
    with Balanced(either_binary, certificates) as found:
        yield found


def test_a_service_gets_an_address_and_traffic_to_its_pods(frontend: Balanced) -> None:
    frontend.start()
    pod = frontend.publish_pods("web")
    frontend.balanced_service("web")
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == pod)
    # Row 2: a change of the type withdraws the bind and frees the address.
    frontend.kube_service("web")
    frontend.until(lambda: not frontend.ask_at(frontend.address(1)))
    other = frontend.publish_pods("other")
    frontend.balanced_service("other")
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == other)
    frontend.delete_service("other")
    frontend.until(lambda: not frontend.ask_at(frontend.address(1)))
    assert frontend.section("svc.default.other.80") == ""


def test_row_01_other_classes_are_not_touched(frontend: Balanced) -> None:
    frontend.start()
    pod = frontend.publish_pods("ours")
    for name in ("theirs", "nobodys"):
        frontend.publish_pods(name)
    frontend.balanced_service("nobodys", loadBalancerClass=None)
    frontend.balanced_service("theirs", loadBalancerClass="example.org/other")
    frontend.balanced_service("ours")
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == pod)
    assert "svc.default.theirs" not in frontend.haproxy_cfg.read_text()
    assert "svc.default.nobodys" not in frontend.haproxy_cfg.read_text()
    assert frontend.warnings() == []
    frontend.settings["load_balancer"]["default"] = True
    frontend.write()
    frontend.until(lambda: frontend.section("svc.default.nobodys.80"))
    assert "svc.default.theirs" not in frontend.haproxy_cfg.read_text()


def test_rows_05_and_06_udp_ports_are_reported_and_tcp_ports_served(frontend: Balanced) -> None:
    frontend.start()
    pod = frontend.publish_pods("dns", 80, 443)
    frontend.balanced_service("dns", {80: "TCP", 53: "UDP", 443: "TCP"})
    first = frontend.address(1)
    frontend.until(lambda: frontend.ask_at(first) == pod)
    assert frontend.ask_at(first, 443) == pod
    unserved = ["53/UDP is not served: HAProxy balances TCP only"]
    frontend.until(lambda: frontend.warnings() == unserved)
    frontend.balanced_service("dns", {443: "TCP"})
    frontend.until(lambda: not frontend.ask_at(first))
    assert frontend.ask_at(first, 443) == pod


def test_row_07_dual_stack(frontend: Balanced) -> None:
    port = 20_000 + frontend.octet
    frontend.settings["load_balancer"]["pools"]["six"] = {"addresses": "::1", "default": True}
    frontend.start()
    pod = frontend.publish_pods("web", port)
    frontend.balanced_service(
        "web",
        {port: "TCP"},
        ipFamilies=["IPv6", "IPv4"],
        ipFamilyPolicy="RequireDualStack",
    )
    frontend.until(lambda: frontend.ask_at("::1", port) == pod)
    assert frontend.ask_at(frontend.address(1), port) == pod


def test_rows_08_and_10_requested_and_shared_addresses(frontend: Balanced) -> None:
    frontend.start()
    wanted = frontend.address(5)
    first, second = frontend.publish_pods("first"), frontend.publish_pods("second", 443)
    shared = {"fc-frontend.io/sharing-key": "k"}
    asked = {**shared, "fc-frontend.io/addresses": wanted}
    frontend.balanced_service("first", annotations=asked)
    frontend.until(lambda: frontend.ask_at(wanted) == first)
    frontend.balanced_service("second", {443: "TCP"}, loadBalancerIP=wanted)
    in_use = [f"Service {wanted} is in use by another Service"]
    frontend.until(lambda: frontend.warnings() == in_use)
    frontend.balanced_service("second", {443: "TCP"}, loadBalancerIP=wanted, annotations=shared)
    frontend.until(lambda: frontend.ask_at(wanted, 443) == second)
    assert frontend.ask_at(wanted) == first
    frontend.until(lambda: frontend.warnings() == [])


def test_row_09_a_restart_changes_no_address_and_fails_no_request(frontend: Balanced) -> None:
    frontend.start()
    pods = {name: frontend.publish_pods(name) for name in ("b", "c")}
    for number, name in enumerate(pods, start=1):
        frontend.balanced_service(name)
        frontend.until(
            lambda at=number, pod=pods[name]: frontend.ask_at(frontend.address(at)) == pod
        )
    with Load(frontend.address(1), 80, clients=2) as load:
        frontend.until(lambda: load.tally().requests > 20)
        frontend.stop_daemon(signal.SIGKILL)
        # Add a Service whose name sorts first, and a pool without the addresses in use.
        pods["a"] = frontend.publish_pods("a")
        frontend.balanced_service("a")
        pools = {"public": {"addresses": frontend.address(9), "default": True}}
        frontend.settings["load_balancer"]["pools"] = pools
        frontend.write()
        frontend.start()
        frontend.until(lambda: frontend.ask_at(frontend.address(9)) == pods["a"])
        assert frontend.ask_at(frontend.address(2)) == pods["c"]
        requests = load.tally().requests
        frontend.until(lambda: load.tally().requests > requests + 20)
    assert not load.tally().failures
    assert frontend.ask_at(frontend.address(1)) == pods["b"]


def test_row_09_nothing_changes_while_the_api_is_away(frontend: Balanced) -> None:
    frontend.start()
    pod = frontend.publish_pods("web")
    frontend.balanced_service("web")
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == pod)
    before = frontend.running_hash()
    frontend.stop_daemon()
    frontend.stop_api()
    frontend.start()
    assert frontend.ask_at(frontend.address(1)) == pod
    assert frontend.running_hash() == before
    frontend.drop("more.json", {"more": frontend.service("web", 8080, binds=f"{frontend.host}:1")})
    frontend.until(lambda: frontend.running_hash() != before)
    assert frontend.ask_at(frontend.address(1)) == pod
    # A Service deleted meanwhile is removed with the next complete list.
    frontend.delete_service("web")
    frontend.start_api()
    frontend.until(lambda: not frontend.section("svc.default.web.80"))


def test_row_11_source_ranges_are_enforced_and_never_left_open(frontend: Balanced) -> None:
    frontend.start()
    pod = frontend.publish_pods("web")
    first, inside = frontend.address(1), f"127.{frontend.octet}.7.7"
    frontend.balanced_service("web", loadBalancerSourceRanges=[f"127.{frontend.octet}.7.9/16"])
    frontend.until(lambda: frontend.ask_at(first, source=inside) == pod)
    assert frontend.ask_at(first, source="127.0.0.1") == ""
    # Invalid ranges leave the previous ones in force, and a new Service closed.
    frontend.publish_pods("new")
    frontend.balanced_service("web", loadBalancerSourceRanges=["everybody"])
    frontend.balanced_service("new", loadBalancerSourceRanges=["0.0.0.0/0", "2001:db8::/129"])

    def withheld() -> dict[str, str]:
        found = frontend.status()["withheld"]
        return {each["name"]: each["problems"][0]["field"] for each in found}

    frontend.until(
        lambda: withheld() == {"svc.default.web.80": "allow.0", "svc.default.new.80": "allow.1"}
    )
    assert frontend.ask_at(first, source=inside) == pod
    assert frontend.ask_at(first, source="127.0.0.1") == ""
    assert frontend.ask_at(frontend.address(2), source=inside) == ""
    frontend.balanced_service("web")
    frontend.until(lambda: frontend.ask_at(first, source="127.0.0.1") == pod)


def test_rows_12_to_14_policies_node_ports_and_session_affinity(frontend: Balanced) -> None:
    frontend.start()
    pod = frontend.publish_pods("web")
    frontend.balanced_service(
        "web",
        externalTrafficPolicy="Local",
        allocateLoadBalancerNodePorts=False,
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    )
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == pod)
    text = frontend.section("svc.default.web.80")
    assert "    stick-table type ipv6 size 100k expire 1m srvkey addr\n    stick on src\n" in text
    assert "send-proxy" not in text
    frontend.balanced_service("web", annotations={"fc-frontend.io/proxy-protocol": "v2"})
    frontend.until(lambda: " send-proxy-v2 " in frontend.section("svc.default.web.80"))
    assert "stick" not in frontend.section("svc.default.web.80")


def test_row_15_without_endpoints_the_address_stays(frontend: Balanced) -> None:
    frontend.start()
    frontend.balanced_service("web")
    frontend.until(lambda: frontend.section("svc.default.web.80"))

    def state() -> str:
        services = {each["name"]: each for each in frontend.status()["services"]}
        return str(services.get("svc.default.web.80", {}).get("state"))

    frontend.until(lambda: state() == "empty")
    with socket.create_connection((frontend.address(1), 80), 10):
        pass
    pod = frontend.publish_pods("web")
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == pod)
    frontend.endpoints("web", {}, port_names=["tcp-80"])
    frontend.until(lambda: state() == "empty")
    with socket.create_connection((frontend.address(1), 80), 10):
        pass


@pytest.mark.extended
def test_services_that_all_vanish_at_once_are_served_on_for_a_while(frontend: Balanced) -> None:
    """This happens if the API server loses its data; a single Service is removed at once."""
    frontend.settings["intervals"]["removal"] = "200ms"
    frontend.start()
    names = ("one", "two", "three")
    pods = [frontend.publish_pods(name) for name in names]
    for name in names:
        frontend.balanced_service(name)
        number = names.index(name) + 1
        frontend.until(lambda n=number: frontend.ask_at(frontend.address(n)) == pods[n - 1])
    frontend.delete_service("three")
    frontend.until(lambda: not frontend.ask_at(frontend.address(3)))
    with Load(frontend.address(1), 80, clients=2) as load:

        async def lose() -> None:
            for name in names[:2]:
                frontend.api.objects.delete(("services", "default", name))

        frontend.call(lose())

        def is_reported(count: str) -> bool:
            return any(
                problem["cause"] == "emptied" and count in problem["message"]
                for problem in frontend.status()["problems"]
            )

        frontend.until(lambda: is_reported("2 Services"))
        assert "2 Services of type LoadBalancer" in frontend.run("status", check=False).stdout
        # A restart does not change this.
        frontend.stop_daemon()
        frontend.start()
        frontend.until(lambda: is_reported("2 Services"))
        # The Services return one by one with the same addresses; the others wait meanwhile.
        frontend.balanced_service("two")
        frontend.until(lambda: is_reported("1 Service of type"))
        for number in (1, 2):
            assert frontend.ask_at(frontend.address(number)) == pods[number - 1]
        frontend.balanced_service("one")
        frontend.until(lambda: not frontend.status()["problems"])
    assert not load.tally().failures
    for number in (1, 2):
        assert frontend.ask_at(frontend.address(number)) == pods[number - 1]
    frontend.call(lose())
    # After 120 times `intervals.removal`, the removal takes effect.
    frontend.until(lambda: not frontend.ask_at(frontend.address(1)), 90)


def test_what_serves_wins_between_a_file_and_a_service(frontend: Balanced) -> None:
    one, two = frontend.address(1), frontend.address(2)
    of_file = frontend.scale("filed", 1).pods[0].name
    fields = frontend.service("filed", 80, binds=f"{one}:80", discovery="headless")
    frontend.drop("filed.json", {"filed": fields})
    frontend.start()
    frontend.until(lambda: frontend.ask_at(one) == of_file)
    pod = frontend.publish_pods("web")
    frontend.balanced_service("web")

    def withheld() -> list[str]:
        return [each["name"] for each in frontend.status()["withheld"]]

    frontend.until(lambda: withheld() == ["svc.default.web.80"])
    assert frontend.ask_at(one) == of_file
    frontend.drop("filed.json", {"filed": {**fields, "binds": f"{two}:80"}})
    frontend.until(lambda: frontend.ask_at(two) == of_file)
    frontend.until(lambda: frontend.ask_at(one) == pod)
    frontend.until(lambda: withheld() == [])
    frontend.drop("filed.json", {"filed": fields})
    frontend.until(lambda: withheld() == ["filed"])
    assert frontend.ask_at(one) == pod
    assert frontend.ask_at(two) == of_file


def test_commands_leave_services_of_the_cluster_as_they_run(frontend: Balanced) -> None:
    frontend.start()
    pod = frontend.publish_pods("web")
    frontend.balanced_service("web")
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == pod)
    before = frontend.running_hash()
    assert frontend.run("check").returncode == 0
    assert "svc.default" not in frontend.run("diff").stdout
    assert "svc.default.web.80" in frontend.run("status").stdout
    assert "svc.default.web.80" in frontend.run("explain", "svc.default.web.80").stdout
    frontend.stop_daemon()
    frontend.run("apply")
    assert frontend.running_hash() == before
    assert frontend.ask_at(frontend.address(1)) == pod
    del frontend.settings["load_balancer"]
    frontend.write()
    frontend.run("apply")
    assert not frontend.ask_at(frontend.address(1))


def test_the_addresses_of_services_are_published_after_one_reload(frontend: Balanced) -> None:
    """Services that exist before the daemon starts cost a start and at most one reload."""
    pods = [frontend.publish_pods(f"web{number}") for number in range(1, 6)]
    for number in range(1, 6):
        frontend.balanced_service(f"web{number}")
    frontend.start()
    for number, pod in enumerate(pods, start=1):
        frontend.until(lambda at=number, pod=pod: frontend.ask_at(frontend.address(at)) == pod)
    reloads = frontend.events("config-reloaded")
    assert len(reloads) <= 1, json.dumps(reloads)
