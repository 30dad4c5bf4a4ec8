"""Slots follow the pods, storms cause few reloads, and excess demand is refused in advance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.demo.load import Load
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.master import show_proc
from tests.conftest import RealHaproxy, until
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def servers_with_address(frontend: Frontend, proxy: str) -> int:
    servers = runtime.servers(frontend.settings["haproxy"]["runtime_socket"])
    return sum(server.proxy == proxy and server.address is not None for server in servers)


@pytest.mark.parametrize(
    ("port", "count"),
    [(8080, 300), pytest.param(8080, 1000, marks=pytest.mark.extended), ("http", 300)],
)
@pytest.mark.extended
def test_many_pods_in_one_step_take_one_reload(
    frontend: Frontend, port: int | str, count: int
) -> None:
    frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080, pod_port=port)
    frontend.start()
    with Load(frontend.host, 8080, clients=4) as load:
        pods = frontend.scale("shop", count)
        frontend.until(lambda: servers_with_address(frontend, "shop") == count)
        assert not load.stop().failures
    # HAProxy has the pods shortly before the daemon has counted its reload.
    frontend.until(lambda: frontend.metric("fc_frontend_reloads_total", reason="slots") == 1)
    assert frontend.metric("fc_frontend_reloads_total") == 2
    assert frontend.metric("fc_frontend_service_slots_short") == 0
    before = {pod.name: pod.requests for pod in pods.pods}
    for _ in range(3):
        frontend.answers(8080, count // 2)
    asked = [pod.requests - before[pod.name] for pod in pods.pods]
    assert sum(map(bool, asked)) > count * 0.9


def test_fixed_slots_that_do_not_suffice_are_said(frontend: Frontend) -> None:
    frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080, slots=4)
    frontend.start()
    assert frontend.metric("fc_frontend_service_slots_short", service="shop") == 0
    assert "little room is left" in frontend.run("check").stderr
    frontend.scale("shop", 6)
    frontend.until(lambda: frontend.metric("fc_frontend_service_slots_short", service="shop") == 2)
    assert frontend.status()["services"][0]["slots_short"] == 2
    assert frontend.metric("fc_frontend_reloads_total") == 1


@pytest.mark.extended
def test_five_hundred_files_in_a_second_take_three_reloads_at_most(frontend: Frontend) -> None:
    frontend.settings["intervals"]["reload"] = "2s"
    frontend.start()
    started = time.monotonic()
    for number in range(500):
        name = f"s{number}"
        frontend.drop(f"{name}.json", {name: frontend.service(name, 10000 + number)})
        time.sleep(max(0.0, started + number / 500 - time.monotonic()))
    frontend.until(lambda: len(frontend.status()["services"]) == 500 and frontend.ready())
    # The first reload is HAProxy's start; three are due if all this takes no more than 4 s.
    took = time.monotonic() - started
    assert frontend.metric("fc_frontend_reloads_total") - 1 <= max(3, 1 + took / 2)


@pytest.mark.extended
def test_cluster_dns_is_asked_three_times_a_second_for_a_service(frontend: Frontend) -> None:
    """HAProxy asks once over each transport, and fc-frontend once, every `intervals.resolve`."""
    frontend.settings["intervals"]["resolve"] = "1s"
    frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: servers_with_address(frontend, "shop") == 3)

    async def asked() -> int:
        return sum(
            count
            for (name, _, _), count in frontend.dns.queries.items()
            if name.startswith("shop.")
        )

    def sweeps() -> float:
        return frontend.metric("fc_frontend_dns_sweeps_total")

    before, first = frontend.call(asked()), sweeps()
    frontend.until(lambda: sweeps() >= first + 6)
    rate = (frontend.call(asked()) - before) / (sweeps() - first)
    assert 1.8 < rate < 3.7


def test_changes_without_effect_cause_no_reload(frontend: Frontend) -> None:
    frontend.scale("shop", 2)
    frontend.drop(
        "a.yaml",
        f"services:\n  shop: {{mode: http, pod_port: 8080, binds: '{frontend.host}:8080'}}\n",
    )
    frontend.start()
    running = frontend.running_hash()
    text = (frontend.services_d / "a.yaml").read_text()

    def until_read(name: str) -> None:
        """Add an invalid file, and wait until it is reported: earlier changes are read by then."""
        frontend.drop(f"{name}.json", "{")
        frontend.until(lambda: name in str(frontend.status()["withheld"]))

    frontend.drop("a.yaml", "# a comment\n" + text + "    \n")
    until_read("commented")
    (frontend.services_d / "a.yaml").rename(frontend.services_d / "b.yaml")
    until_read("renamed")
    frontend.drop("b.yaml", text.replace("mode: http", "balance: leastconn, mode: http"))
    until_read("changed")
    assert frontend.ready()
    assert frontend.running_hash() == running
    assert frontend.metric("fc_frontend_reloads_total") == 1


def test_more_slots_than_descriptors_are_refused_before_a_reload(
    frontend: Frontend, haproxy: RealHaproxy
) -> None:
    frontend.settings["haproxy"].update(
        supervise=False,
        take_over="always",
        config_file=haproxy.config_file,
        master_socket=haproxy.master_socket,
        runtime_socket=haproxy.runtime_socket,
    )
    haproxy.write(haproxy.configuration())
    haproxy.launch(descriptors=600)
    until(lambda: Path(haproxy.master_socket).exists())
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080, slots=1000)
    frontend.write()
    done = frontend.until(lambda: frontend.run("apply", check=False))
    assert done.returncode == 1
    assert "file descriptors" in done.stderr
    assert show_proc(haproxy.master_socket, patience=5).reloads == 0
