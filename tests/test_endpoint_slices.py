"""Pods of every Service, from the Kubernetes API: a real API server's protocol, real HAProxy."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from fc_frontend.demo.load import Load
from fc_frontend.demo.pods import PodSet
from tests.support.api_cluster import NOT_READY, READY, TERMINATING, ApiFrontend, token_until
from tests.support.api_objects import Json
from tests.support.certificates import Certificates

PORT = 8080


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[ApiFrontend]:
    with ApiFrontend(either_binary, certificates) as found:
        yield found


def names_of(frontend: ApiFrontend, count: int = 20) -> set[str]:
    return set(frontend.answers(PORT, count))


def test_pods_of_a_service_with_a_cluster_ip_come_and_go_without_a_reload(
    frontend: ApiFrontend,
) -> None:
    address, _vip = frontend.cluster_ip("shop")
    pods = frontend.scale("shop", 3, publish=False)
    frontend.kube_service("shop", cluster_ip=address)
    frontend.ready_endpoints("shop", pods.addresses[:2])
    frontend.settings["services"]["shop"] = frontend.service("shop", PORT)
    frontend.start()
    first, second, third = (pod.name for pod in pods.pods)
    frontend.until(lambda: names_of(frontend) == {first, second})
    reloads = frontend.running_hash()

    with Load(frontend.host, PORT, clients=4) as load:
        frontend.ready_endpoints("shop", pods.addresses)
        frontend.until(lambda: names_of(frontend) == {first, second, third})
        one, two, three = pods.addresses
        frontend.endpoints("shop", {one: TERMINATING, two: READY, three: READY})
        frontend.until(lambda: names_of(frontend) == {second, third})
        assert frontend.slots("shop")["pod1"][1] & 8, "it is drained"
        frontend.endpoints("shop", {two: NOT_READY, three: READY})
        frontend.until(lambda: names_of(frontend) == {third})
        frontend.until(lambda: set(frontend.slots("shop").values()) == {(three, 4)})
    tally = load.tally()
    assert tally.requests > 50
    assert not tally.failures
    assert frontend.running_hash() == reloads, "no reload"


def deploy(frontend: ApiFrontend, count: int, *, headless: bool = False) -> list[str]:
    """Deploy a service `shop` with `count` ready pods on `PORT`; return their addresses."""
    pods = frontend.scale("shop", count, publish=headless)
    address = None if headless else frontend.cluster_ip("shop")[0]
    frontend.kube_service("shop", cluster_ip=address)
    frontend.ready_endpoints("shop", pods.addresses)
    frontend.settings["services"]["shop"] = frontend.service("shop", PORT)
    frontend.start()
    frontend.until(lambda: frontend.serves(PORT, pods))
    return list(pods.addresses)


@pytest.mark.parametrize("headless", [True, False], ids=["headless", "cluster-ip"])
def test_a_killed_daemon_whose_pods_are_all_replaced_costs_a_handful_of_requests(
    frontend: ApiFrontend, headless: bool
) -> None:
    deploy(frontend, 3, headless=headless)
    pods = frontend.pods["shop"]
    old = {pod.name for pod in pods.pods}
    with Load(frontend.host, PORT, clients=4) as load:
        frontend.until(lambda: load.tally().requests > 50)
        frontend.stop_daemon(signal.SIGKILL)
        frontend.scale("shop", 6, publish=headless)
        if headless:
            # Pods enter cluster DNS once they are ready, and others leave after that.
            frontend.until(lambda: len(frontend.slots("shop.standby")) == 6)
        for pod in list(pods.pods):
            if pod.name in old:
                frontend.call(pods.remove(pod))
        if headless:
            frontend.publish("shop", pods.addresses)
        before = load.tally().requests
        frontend.until(lambda: load.tally().requests > before + 300)
    tally = load.tally()
    # Requests in flight when a pod ends, at most one per client and pod.
    assert len(tally.failures) <= 12, tally.failures
    answering = {name for name in names_of(frontend) if name}
    expected = {pod.name for pod in pods.pods}
    if not headless:
        expected = {pod.name for pod in frontend.pods["shop-vip"].pods}
    assert answering == expected


@contextlib.contextmanager
def unanswered(addresses: list[str]) -> Iterator[None]:
    """Open sockets at `addresses` whose queue is full: no client gets an answer (listen(2))."""
    with contextlib.ExitStack() as stack:
        for address in addresses:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, 8080))
            listener.listen(0)
            for _ in range(2):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((address, 8080))
        yield


@pytest.mark.extended
@pytest.mark.parametrize("headless", [True, False], ids=["headless", "cluster-ip"])
def test_pods_that_do_not_answer_any_more_cost_a_killed_daemon_a_handful_of_requests(
    frontend: ApiFrontend, headless: bool
) -> None:
    """Their nodes are gone, so no connection is refused, and new pods have replaced them."""
    old = deploy(frontend, 3, headless=headless)
    pods = frontend.pods["shop"]
    with Load(frontend.host, PORT, clients=4, timeout=30) as load:
        frontend.until(lambda: load.tally().requests > 50)
        frontend.stop_daemon(signal.SIGKILL)
        frontend.scale("shop", 6, publish=headless)
        if headless:
            frontend.until(lambda: len(frontend.slots("shop.standby")) == 6)
        for pod in pods.pods[:3]:
            frontend.call(pods.remove(pod))
        with unanswered(old):
            if headless:
                frontend.publish("shop", pods.addresses)
            before = load.tally().requests
            frontend.until(lambda: load.tally().requests > before + 300)
    tally = load.tally()
    assert len(tally.failures) <= 12, tally.failures


def test_a_new_daemon_puts_right_what_a_killed_one_left(frontend: ApiFrontend) -> None:
    one, two, three = deploy(frontend, 3)
    frontend.endpoints("shop", {one: TERMINATING, two: READY, three: READY})
    frontend.until(lambda: frontend.slots("shop")["pod1"][1] & 8)
    frontend.stop_daemon(signal.SIGKILL)
    frontend.ready_endpoints("shop", [one, two])
    running = frontend.running_hash()
    frontend.start()
    pods = frontend.pods["shop"].pods
    frontend.until(lambda: names_of(frontend) == {pods[0].name, pods[1].name})
    # The slot of the third pod is free a second after its last session.
    frontend.until(lambda: {each for each, _ in frontend.slots("shop").values()} == {one, two})
    assert not any(state & 8 for _, state in frontend.slots("shop").values())
    assert frontend.running_hash() == running


@pytest.mark.extended
def test_a_pod_that_an_operator_drained_stays_so(frontend: ApiFrontend) -> None:
    one, two, three = deploy(frontend, 3)
    pods = frontend.pods["shop"].pods
    frontend.run("drain", "shop", one)
    frontend.until(lambda: names_of(frontend) == {pods[1].name, pods[2].name})
    frontend.ready_endpoints("shop", [one, two])
    frontend.until(lambda: names_of(frontend) == {pods[1].name})
    frontend.run("drain", "shop")
    frontend.until(lambda: frontend.get("/", PORT)[0] == 503)
    assert three not in str(frontend.slots("shop"))


@pytest.mark.extended
def test_an_api_server_that_is_gone_leaves_everything_as_it_is(frontend: ApiFrontend) -> None:
    deploy(frontend, 2)
    pods = frontend.pods["shop"].pods
    with Load(frontend.host, PORT, clients=2) as load:
        frontend.stop_api()
        frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 0, 90)
        frontend.until(lambda: frontend.status()["services"][0]["freshness"] == "stale")
        assert "cannot be watched" in frontend.status()["services"][0]["error"]
        for shape in ("table", "wide"):
            said = frontend.run("status", "--format", shape, check=False).stdout
            assert re.search(
                r"^Kubernetes API not watched: .*, last heard .* ago$", said, re.MULTILINE
            )
        document = json.loads(frontend.run("status", "--format", "json", check=False).stdout)
        assert document["api"]["current"] is False
        assert document["api"]["failure"]
        nagios = frontend.run("status", "--format", "nagios", check=False)
        assert nagios.returncode == 1
        assert "Kubernetes API: cannot be watched" in nagios.stdout
        assert names_of(frontend) == {pod.name for pod in pods}
        frontend.start_api()
        frontend.scale("shop", 3, publish=False)
        frontend.ready_endpoints("shop", frontend.pods["shop"].addresses)
        frontend.until(lambda: frontend.serves(PORT, frontend.pods["shop"]))
        frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 1)
    assert not load.tally().failures, frontend.log_text()[-4000:]


def test_pods_are_followed_with_other_credentials_than_at_the_start(frontend: ApiFrontend) -> None:
    deploy(frontend, 2)
    other = frontend.directory / "other-kubeconfig"
    other.write_text(frontend.kubeconfig.read_text())
    before = len(frontend.api.requests)
    frontend.settings["cluster"]["api"] = {"kubeconfig": str(other)}
    frontend.write()
    frontend.until(lambda: len(frontend.api.requests) >= before + 2)
    frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 1)
    pods = frontend.scale("shop", 4, publish=False)
    frontend.ready_endpoints("shop", pods.addresses)
    frontend.until(lambda: frontend.serves(PORT, pods))


@pytest.mark.extended
def test_a_service_that_was_just_deployed_outlives_daemon_and_api(frontend: ApiFrontend) -> None:
    """The daemon is killed as soon as HAProxy runs a new service, and the API is gone then."""
    deploy(frontend, 2)
    pods = frontend.scale("more", 2, publish=False)
    address, _vip = frontend.cluster_ip("more")
    frontend.kube_service("more", cluster_ip=address)
    frontend.ready_endpoints("more", pods.addresses)
    before = frontend.running_hash()
    frontend.drop("more.json", {"more": frontend.service("more", PORT + 1)})
    # No pause: data written after the reload must not exist yet.
    assert next(seen for _ in range(100_000) if (seen := frontend.running_hash()) != before)
    frontend.stop_daemon(signal.SIGKILL)
    frontend.stop_api()
    frontend.until(lambda: frontend.ask(PORT + 1).startswith("more-"))
    with Load(frontend.host, PORT + 1, clients=2) as load:
        frontend.start()
        done = load.tally().requests + 100
        frontend.until(lambda: load.tally().requests > done)
    assert not load.tally().failures, frontend.log_text()[-4000:]
    frontend.start_api()


@pytest.mark.extended
def test_while_the_api_is_away_cluster_dns_adds_pods(frontend: ApiFrontend) -> None:
    deploy(frontend, 2, headless=True)
    frontend.stop_api()
    frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 0, 90)
    pods = frontend.scale("shop", 4)
    frontend.until(lambda: frontend.serves(PORT, pods))
    frontend.start_api()


@pytest.mark.extended
def test_without_any_api_server_cluster_dns_is_asked(frontend: ApiFrontend) -> None:
    frontend.stop_api()
    pods = frontend.scale("shop", 2)
    frontend.kube_service("shop")
    frontend.ready_endpoints("shop", pods.addresses)
    frontend.settings["services"]["shop"] = frontend.service("shop", PORT)
    frontend.start()
    frontend.until(lambda: frontend.serves(PORT, pods))
    assert frontend.status()["services"][0]["discovery"] == "headless"
    with Load(frontend.host, PORT, clients=2) as load:
        frontend.start_api()
        frontend.until(lambda: frontend.status()["services"][0]["discovery"] == "api", 90)
        frontend.until(lambda: frontend.serves(PORT, pods))
    assert not load.tally().failures, frontend.log_text()[-4000:]


@pytest.mark.extended
def test_more_pods_than_slots_take_one_reload_a_doubling(frontend: ApiFrontend) -> None:
    deploy(frontend, 3)
    with Load(frontend.host, PORT, clients=2) as load:
        for count in (30, 5, 60):
            pods = frontend.scale(
                "shop", max(count, len(frontend.pods["shop"].pods)), publish=False
            )
            chosen = pods.addresses[:count]
            frontend.ready_endpoints("shop", chosen)
            frontend.until(
                lambda chosen=chosen: (
                    {each for each, _ in frontend.slots("shop").values()} == set(chosen)
                )
            )
    assert not load.tally().failures, frontend.log_text()[-4000:]
    assert frontend.metric("fc_frontend_reloads_total", reason="slots") <= 3


@pytest.mark.parametrize("way", ["not ready", pytest.param("gone", marks=pytest.mark.extended)])
def test_most_services_that_lose_all_pods_at_once_keep_them(
    frontend: ApiFrontend, way: str
) -> None:
    """They keep them across a restart of the daemon, and until the pods return."""
    names = [f"site{number}" for number in range(4)]
    for number, name in enumerate(names):
        pods = frontend.scale(name, 2, publish=False)
        frontend.kube_service(name, cluster_ip=frontend.cluster_ip(name)[0])
        frontend.ready_endpoints(name, pods.addresses)
        frontend.settings["services"][name] = frontend.service(name, PORT + number)
    frontend.start()

    def served(name: str) -> None:
        frontend.until(lambda: frontend.serves(PORT + names.index(name), frontend.pods[name]))

    for name in names:
        served(name)
    with Load(frontend.host, PORT, clients=2) as load:
        for name in names[:3]:
            addresses = frontend.pods[name].addresses if way == "not ready" else ()
            frontend.endpoints(name, dict.fromkeys(addresses, NOT_READY))
        frontend.until(lambda: frontend.metric("fc_frontend_api_held_services") == 3)
        assert frontend.status()["api"]["held"] == names[:3]
        assert (
            "3 services lost all ready pods at once" in frontend.run("status", check=False).stdout
        )
        for name in names:
            served(name)
        frontend.stop_daemon()
        frontend.start()
        frontend.until(lambda: frontend.metric("fc_frontend_api_held_services") == 3)
        for name in names:
            served(name)
        for name in names[:3]:
            frontend.ready_endpoints(name, frontend.pods[name].addresses[:1])
        frontend.until(lambda: frontend.metric("fc_frontend_api_held_services") == 0)
        frontend.until(lambda: len(names_of(frontend)) == 1)
    assert not load.tally().failures, frontend.log_text()[-4000:]


@pytest.mark.extended
def test_a_service_whose_target_port_changes_is_followed(frontend: ApiFrontend) -> None:
    address, _ = frontend.cluster_ip("shop")
    pods = frontend.scale("shop", 2, publish=False)
    frontend.kube_service("shop", cluster_ip=address, port=80)
    frontend.ready_endpoints("shop", pods.addresses, port=9)
    frontend.settings["services"]["shop"] = {
        "mode": "http",
        "service_port": 80,
        "binds": f"{frontend.host}:{PORT}",
    }
    frontend.start()
    frontend.ready_endpoints("shop", pods.addresses)
    frontend.until(lambda: frontend.serves(PORT, pods))
    # The Service's own port leads to the same pods by another number: only the standby changes.
    frontend.kube_service("shop", cluster_ip=address, port=81)
    frontend.settings["services"]["shop"]["service_port"] = 81
    frontend.write()
    frontend.until(lambda: frontend.events("config-reloaded"))
    frontend.until(lambda: frontend.serves(PORT, pods))


@pytest.mark.extended
def test_metrics_of_the_watch_have_the_values_that_they_should(frontend: ApiFrontend) -> None:
    expires = int(time.time()) + 90 * 86400
    frontend.write_kubeconfig(token_until(expires))
    one, two, _ = deploy(frontend, 3)
    value = frontend.metric
    frontend.until(lambda: value("fc_frontend_api_watching") == 1)
    assert value("fc_frontend_api_synced") == 1
    # Services and EndpointSlices were listed once each.
    assert value("fc_frontend_api_lists_total", reason="first") == 2
    assert value("fc_frontend_api_lists_total") == 2
    assert value("fc_frontend_api_credentials_expiry_timestamp_seconds") == expires
    assert value("fc_frontend_api_held_services") == 0
    assert value("fc_frontend_api_failures_total") == 0
    events = value("fc_frontend_api_events_total")
    confirmed = value("fc_frontend_api_event_duration_seconds_count")
    for addresses in ([one], [one, two], [two]):
        frontend.ready_endpoints("shop", addresses)
        frontend.until(
            lambda wanted=set(addresses): {a for a, _ in frontend.slots("shop").values()} == wanted
        )
    assert value("fc_frontend_api_events_total") == events + 3
    # Slots that are freed later do not count as API events.
    assert value("fc_frontend_api_event_duration_seconds_count") == confirmed + 3
    assert value("fc_frontend_api_age_seconds") < 60
    frontend.call(frontend.break_connections())
    frontend.until(lambda: value("fc_frontend_api_failures_total", kind="closed") >= 1)
    assert value("fc_frontend_api_lists_total") == 2, "a broken watch is continued"


@pytest.mark.extended
def test_changes_of_a_service_cost_no_request(frontend: ApiFrontend) -> None:
    """Pods listen elsewhere; the type, the cluster IP and the name of the port change."""
    address, _ = frontend.cluster_ip("shop")
    old = frontend.scale("shop", 2, publish=False)
    new = PodSet("new", network=f"127.{frontend.octet}.100.0/24", port=8081)
    frontend.call(new.scale(2))
    frontend.kube_service("shop", cluster_ip=address, target="web", port_name="http")
    frontend.ready_endpoints("shop", old.addresses)
    fields = {"mode": "http", "service_port": 80, "binds": f"{frontend.host}:{PORT}"}
    frontend.settings["services"]["shop"] = fields
    frontend.start()
    frontend.until(lambda: frontend.serves(PORT, old))
    running = frontend.running_hash()
    with Load(frontend.host, PORT, clients=4) as load:
        # A new version has another number for its named port, in a slice of its own.
        frontend.endpoints("shop", dict.fromkeys(new.addresses, READY), port=8081, number=2)
        both = {pod.name for pod in (*old.pods, *new.pods)}
        frontend.until(lambda: names_of(frontend) == both)
        frontend.endpoints("shop", dict.fromkeys(old.addresses, TERMINATING))
        frontend.until(lambda: names_of(frontend) == {pod.name for pod in new.pods})
        frontend.endpoints("shop", {})
        frontend.until(lambda: set(dict(frontend.slots("shop").values())) == set(new.addresses))
        assert frontend.running_hash() == running, "no reload"
        # Its type, which does not matter to fc-frontend.
        service = frontend.api.objects.now[("services", "default", "shop")]
        for kind in ("NodePort", "LoadBalancer", "ClusterIP"):
            frontend.call(changed(frontend, typed(service, kind)))
            frontend.until(lambda: frontend.serves(PORT, new))
        # It is deleted and recreated with another cluster IP.
        other, _ = frontend.cluster_ip("other")

        async def replace() -> None:
            frontend.api.objects.delete(("services", "default", "shop"))

        frontend.call(replace())
        frontend.kube_service("shop", cluster_ip=other, target="web", port_name="http")
        frontend.until(lambda: other in frontend.haproxy_cfg.read_text())
        frontend.until(lambda: frontend.serves(PORT, new))
        # The port gets another name, in the Service and then in its slices.
        frontend.kube_service("shop", cluster_ip=other, target="web", port_name="web")
        frontend.endpoints(
            "shop", dict.fromkeys(new.addresses, READY), port=8081, port_names=("web",), number=2
        )
        frontend.until(lambda: frontend.serves(PORT, new))
        before = load.tally().requests
        frontend.until(lambda: load.tally().requests > before + 100)
    frontend.call(new.stop())
    assert not load.tally().failures, frontend.log_text()[-4000:]


def typed(service: Json, kind: str) -> Json:
    metadata = {"name": "shop", "namespace": "default"}
    return {**service, "metadata": metadata, "spec": {**service["spec"], "type": kind}}


async def changed(frontend: ApiFrontend, item: Json) -> None:
    frontend.api.objects.update(("services", "default", "shop"), item)


def test_nodes_come_from_the_api_without_those_kept_out_of_load_balancers(
    frontend: ApiFrontend,
) -> None:
    pods = frontend.scale("node", 3, publish=False)
    one, two, three = pods.addresses
    frontend.kube_node("n1", one)
    frontend.kube_node("n2", two, {"node.kubernetes.io/exclude-from-external-load-balancers": ""})
    frontend.settings["services"]["shop"] = {
        "mode": "http",
        "lb_service_port": 8080,
        "binds": f"{frontend.host}:{PORT}",
    }
    frontend.start()
    first, _, third = (pod.name for pod in pods.pods)
    frontend.until(lambda: names_of(frontend) == {first})
    frontend.kube_node("n3", three)
    frontend.until(lambda: names_of(frontend) == {first, third})
    assert frontend.metric("fc_frontend_reloads_total") <= 1
