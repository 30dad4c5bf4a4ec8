"""Pods of every Service, from the Kubernetes API: a real API server's protocol, real HAProxy."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from fc_frontend.demo.load import Load
from tests.support.api_cluster import NOT_READY, READY, TERMINATING, ApiFrontend
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
