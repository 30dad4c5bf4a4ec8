"""Servers of fragments survive reloads and cluster DNS outages, as those of services do."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fc_frontend.demo.dns import Fault
from fc_frontend.demo.load import Load
from fc_frontend.haproxy.master import show_proc
from tests.support.frontend import Frontend

RELOADS = 6
LONG = 50.0
"""Seconds of silence; plain HAProxy drops resolved addresses after a `hold` of 30 s."""


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """A frontend with a service, and a fragment that creates servers from cluster DNS twice."""
    with Frontend(either_binary) as made:
        made.scale("shop", 3)
        made.settings["services"]["plain"] = made.service("shop", 8081)
        target = "shop.default.svc.cluster.local:8080"
        made.drop(
            "edge.cfg",
            f"frontend edge\n    mode http\n    bind {made.host}:8080\n"
            "    default_backend pool\n\n"
            "backend pool\n    mode http\n"
            f"    server-template web 2-4 {target} check resolvers cluster\n"
            f"    server one {target} check resolvers cluster\n",
        )
        made.start()
        made.until(lambda: made.get("/", 8080)[0] == 200)
        made.until(lambda: made.serves(8081, made.pods["shop"]))
        yield made


def test_a_reload_costs_a_fragment_no_request(frontend: Frontend) -> None:
    frontend.dns.delay = 0.1
    with Load(frontend.host, 8080, clients=4) as load:
        for number in range(RELOADS):
            frontend.drop(
                "more.json", {"more": frontend.service("shop", 8090 + number, slots=10 + number)}
            )
            frontend.until(
                lambda number=number: len(frontend.events("config-reloaded")) == number + 1
            )
        tally = load.stop()
    assert tally.requests > 100
    assert not tally.failures


def test_a_reload_by_others_costs_a_fragment_no_request(frontend: Frontend) -> None:
    frontend.dns.delay = 0.1
    saved = frontend.directory / "state" / "server-state"
    pods = frontend.pods["shop"].addresses
    frontend.until(lambda: all(f" {pod} " in _of_pool(saved.read_text()) for pod in pods))
    path = frontend.settings["haproxy"]["master_socket"]
    with Load(frontend.host, 8080, clients=4) as load:
        for _ in range(3):
            before = show_proc(path, patience=10)
            os.kill(before.master, signal.SIGUSR2)
            frontend.until(lambda n=before.reloads: show_proc(path, patience=10).reloads > n)
            answered = load.tally()
            frontend.until(lambda n=answered: load.tally().since(n).requests > 100)
        assert not load.stop().failures


def _of_pool(text: str) -> str:
    """Return the lines of a state file that belong to the fragment's backend."""
    return "\n".join(line for line in text.splitlines() if " pool " in line)


def test_a_fragment_serves_while_cluster_dns_is_silent(frontend: Frontend) -> None:
    """This holds over a reload too, although the new worker gets no answer from cluster DNS."""
    frontend.dns.fault = Fault.SILENT
    with Load(frontend.host, 8080, clients=4) as load:
        frontend.drop("more.json", {"more": frontend.service("shop", 8090)})
        frontend.until(lambda: len(frontend.events("config-reloaded")) == 1)
        before = load.tally()
        frontend.until(lambda: load.tally().since(before).requests > 200)
        assert not load.stop().failures


@pytest.mark.extended
def test_a_fragment_serves_after_silence_that_plain_haproxy_does_not_survive(
    frontend: Frontend,
) -> None:
    """Reload after `LONG` seconds: the new worker never received an answer of its own."""
    frontend.dns.fault = Fault.SILENT
    with Load(frontend.host, 8080, clients=2, interval=0.05) as load:
        frontend.until(
            lambda: frontend.metric("fc_frontend_service_answer_age_seconds") > LONG, 2 * LONG
        )
        assert not load.tally().failures
        frontend.drop("more.json", {"more": frontend.service("shop", 8090)})
        frontend.until(lambda: len(frontend.events("config-reloaded")) == 1)
        before = load.tally()
        frontend.until(lambda: load.tally().since(before).requests > 200)
        # Pods added in the meantime are used as soon as cluster DNS answers again.
        frontend.scale("shop", 4)
        frontend.dns.fault = Fault.NONE
        frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
        assert not load.stop().failures
