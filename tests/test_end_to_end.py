"""From declared services to served requests, through the real daemon, a real DNS and HAProxy."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.demo.dns import Fault, KubernetesService
from fc_frontend.demo.load import Load
from fc_frontend.haproxy.master import show_proc
from tests.conftest import RealHaproxy
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def test_traffic_reaches_the_pods_that_dns_names_and_leaves_those_it_drops(
    frontend: Frontend,
) -> None:
    pods = frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.settings["services"]["named"] = frontend.service("shop", 8081, pod_port="http")
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.until(lambda: frontend.serves(8081, pods))
    frontend.scale("shop", 5)
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.until(lambda: frontend.serves(8081, pods))
    frontend.scale("shop", 2)
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.until(lambda: frontend.serves(8081, pods))
    # HAProxy discovers the pods by itself: none of this needed a reload.
    assert frontend.metric("fc_frontend_reloads_total") == 1


@pytest.mark.extended
def test_growth_beyond_the_slots_takes_one_reload_and_loses_nothing(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    with Load(frontend.host, 8080, clients=4) as load:
        frontend.scale("shop", 40)
        frontend.until(lambda: frontend.metric("fc_frontend_service_slots", service="shop") == 80)
        frontend.until(lambda: frontend.serves(8080, pods))
        tally = load.stop()
    assert not tally.failures
    assert frontend.metric("fc_frontend_reloads_total") == 2
    assert frontend.metric("fc_frontend_reloads_total", reason="slots") == 1
    assert frontend.metric("fc_frontend_service_slots_short", service="shop") == 0
    (line,) = frontend.events("config-reloaded")
    assert 'reasons="slots shop 10→80"' in line


BAD_FILES = (
    ("bad.json", '{"services": {"bad": {"pod_prt": 1}}}', "did you mean pod_port?"),
    ("bad.yaml", "services: [", "invalid YAML"),
    ("bad.yaml", "services: {bad: {pod_port: 80, extra_config: nonsense}}", "nonsense"),
    ("bad.cfg", "listen bad\n  bind 127.0.0.1:1\n  nonsense\n", "unknown keyword '…'"),
)
"""The name and content of a file, and the message reported for it."""


def test_a_bad_file_costs_only_what_it_declares(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    before = frontend.haproxy_cfg.read_bytes()
    running = frontend.running_hash()
    for number, (name, content, said) in enumerate(BAD_FILES, 1):
        frontend.drop(name, content)
        frontend.until(lambda: frontend.status()["withheld"])
        status = frontend.status()
        assert status["in_sync"]
        (held,) = status["withheld"]
        assert held["effect"] == "not deployed"
        problem = held["problems"][0]
        assert said in problem["message"] + problem["remedy"]
        assert (problem["file"] or "").endswith(name)
        assert frontend.haproxy_cfg.read_bytes() == before
        assert frontend.running_hash() == running
        assert frontend.metric("fc_frontend_config_in_sync") == 1
        assert frontend.metric("fc_frontend_config_problems", severity="error") >= 1
        assert frontend.metric("fc_frontend_withheld") == 1
        assert frontend.serves(8080, pods)
        assert len(frontend.events("withheld")) == number
        frontend.until(lambda: frontend.run("check", check=False).returncode == 0)
        check = frontend.run("check", "--strict", check=False)
        assert check.returncode == 1
        assert check.stderr.startswith("refused: ")
        (frontend.services_d / name).unlink()
        frontend.until(lambda: not frontend.status()["withheld"])
        assert frontend.running_hash() == running
        assert frontend.metric("fc_frontend_reloads_total") == 1
        assert len(frontend.events("withheld-ended")) == number


def test_what_haproxy_refuses_is_kept_beside_the_good_one(frontend: Frontend) -> None:
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    good = frontend.haproxy_cfg.read_text()
    frontend.drop("a.json", {"a": frontend.service("a", 8081, extra_config="nonsense here")})
    refused = frontend.directory / "haproxy.cfg.refused"
    frontend.until(refused.exists)
    assert "nonsense here" in refused.read_text()
    assert frontend.haproxy_cfg.read_text() == good
    (held,) = frontend.until(lambda: frontend.status()["withheld"])
    assert held["name"] == "a"
    assert "nonsense" in held["problems"][0]["remedy"]
    assert refused.exists()
    frontend.drop("a.json", {"a": frontend.service("a", 8081)})
    frontend.until(lambda: not frontend.status()["withheld"])
    frontend.until(lambda: not refused.exists())


def test_a_dropped_file_is_served(frontend: Frontend) -> None:
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.scale("new", 1)
    frontend.drop("new.json", {"new": frontend.service("new", 8081)})
    frontend.until(lambda: frontend.ask(8081) == "new-1")
    (line,) = frontend.until(lambda: frontend.events("config-reloaded"))
    assert 'reasons="service-added new"' in line


def test_a_storm_of_files_ends_in_few_reloads_and_the_last_state(frontend: Frontend) -> None:
    frontend.settings["intervals"]["reload"] = "1s"
    frontend.start()
    names = [f"s{number}" for number in range(100)]
    for number, name in enumerate(names):
        frontend.drop(f"{name}.json", {name: frontend.service(name, 10000 + number)})
    frontend.until(lambda: len(frontend.status()["services"]) == 100 and frontend.ready())
    assert frontend.metric("fc_frontend_reloads_total") <= 4


def test_signals(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    daemon = frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    hidden = frontend.directory / "hidden.json"
    hidden.write_text((frontend.config).read_text().replace('"log": null', '"log": "stdout"'))
    daemon.send_signal(signal.SIGHUP)
    frontend.until(frontend.ready)
    assert daemon.poll() is None
    assert frontend.stop_daemon() == 0
    assert frontend.serves(8080, pods)
    assert frontend.events("stopped")
    running = frontend.running_hash()
    # HAProxy is adopted as it is, without a reload.
    frontend.start()
    assert frontend.running_hash() == running
    assert frontend.events("config-in-sync")
    assert frontend.metric("fc_frontend_reloads_total") == 0
    assert frontend.stop_daemon(signal.SIGKILL) == -signal.SIGKILL
    assert frontend.serves(8080, pods)


def test_a_bind_that_another_process_holds_is_refused_before_a_reload(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    with Load(frontend.host, 8080, clients=4) as load:
        with socket.create_server((frontend.host, 8081)):
            frontend.drop("a.json", {"a": frontend.service("a", 8081)})
            (held,) = frontend.until(lambda: frontend.status()["withheld"])
            (problem,) = held["problems"]
            assert problem["service"] == "a"
            assert f"{frontend.host}:8081 is in use by" in problem["message"]
            assert f"process {os.getpid()}" in problem["message"]
            assert frontend.metric("fc_frontend_reloads_total") == 1
        # The daemon retries by itself.
        frontend.until(lambda: not frontend.status()["withheld"])
        tally = load.stop()
    assert not tally.failures


def test_an_outage_of_dns_costs_nothing_even_across_a_reload(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.settings["services"]["named"] = frontend.service("shop", 8082, pod_port="http")
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.until(lambda: frontend.serves(8082, pods))
    with (
        Load(frontend.host, 8080, clients=4) as load,
        Load(frontend.host, 8082, clients=4) as named,
    ):
        for fault in (Fault.SERVFAIL, Fault.SILENT, Fault.REFUSED):
            frontend.dns.fault = fault
            frontend.until(
                lambda: all(s["state"] == "stale" for s in frontend.status()["services"])
            )
        frontend.drop("other.json", {"other": frontend.service("other", 8081)})
        frontend.until(lambda: len(frontend.status()["services"]) == 3)
        frontend.until(frontend.ready)
        # The daemon and HAProxy's resolver get no answers meanwhile.
        before = sum(frontend.dns.queries.values())
        frontend.until(lambda: sum(frontend.dns.queries.values()) > before + 20)
        assert frontend.serves(8080, pods)
        frontend.dns.fault = Fault.NONE
        frontend.until(lambda: frontend.status()["services"][-1]["state"] == "ok")
        assert not load.stop().failures
        assert not named.stop().failures
    assert frontend.metric("fc_frontend_dns_queries_total", rcode="SERVFAIL") > 0
    assert frontend.events("dns-stale")


def test_a_new_service_has_its_pods_with_the_first_request(frontend: Frontend) -> None:
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.scale("new", 4)
    frontend.drop("new.json", {"new": frontend.service("new", 8081)})
    frontend.until(lambda: frontend.events("config-reloaded"))
    frontend.dns.delay = 5.0
    assert frontend.ask(8081).startswith("new-")


def test_a_supervised_haproxy_that_dies_is_started_again(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.end_haproxy()
    frontend.until(lambda: frontend.events("config-started")[1:])
    frontend.until(lambda: frontend.serves(8080, pods))


def test_a_supervised_haproxy_serves_on_with_the_last_good_configuration(
    frontend: Frontend,
) -> None:
    """HAProxy ends while a file is broken, or is started with one, as after a reboot."""
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    running = frontend.running_hash()
    frontend.drop("bad.yaml", "services: {bad: {}}")
    frontend.until(lambda: frontend.events("withheld"))
    frontend.end_haproxy()
    frontend.until(lambda: frontend.events("config-started")[1:])
    frontend.until(lambda: frontend.serves(8080, pods))
    assert frontend.running_hash() == running
    frontend.stop_daemon()
    frontend.end_haproxy()
    # The settings are invalid and no good ones are known: the file on disk is served.
    good = frontend.config.read_text()
    (frontend.directory / "state" / "running.json").unlink()
    frontend.settings["cluster"]["pod_network"] = frontend.settings["cluster"]["service_network"]
    frontend.write()
    frontend.start(wait=False)
    frontend.until(lambda: frontend.events("haproxy-revived"))
    frontend.until(lambda: frontend.serves(8080, pods))
    assert not frontend.ready()
    frontend.config.write_text(good)
    frontend.until(frontend.ready)
    assert frontend.running_hash() == running


def test_discovery_changes_its_kind_with_the_cluster(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    frontend.dns.set_service(KubernetesService("shop", cluster_ip=f"127.{frontend.octet}.128.7"))
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    (service,) = frontend.status()["services"]
    assert service["discovery"] == "service"
    assert "clusterIP: None" in service["remedy"]
    frontend.dns.set_service(KubernetesService("shop", endpoints=pods.addresses))
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.until(lambda: frontend.status()["services"][0]["discovery"] == "headless")
    reloaded = frontend.until(lambda: frontend.events("config-reloaded"))
    assert "discovery shop service→headless" in reloaded[-1]


def test_metrics_health_and_status(frontend: Frontend) -> None:
    frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    text = frontend.get("/metrics")[1].decode()
    for name in (
        "fc_frontend_build_info",
        "fc_frontend_config_hash_info",
        "fc_frontend_reloads_total",
        "fc_frontend_reload_duration_seconds_bucket",
        "fc_frontend_last_reload_success_timestamp_seconds",
        "fc_frontend_config_in_sync",
        "fc_frontend_checks_total",
        "fc_frontend_dns_queries_total",
        "fc_frontend_dns_query_duration_seconds_bucket",
        "fc_frontend_service_endpoints",
        "fc_frontend_service_slots",
        "fc_frontend_service_slots_short",
        "fc_frontend_service_state",
        "fc_frontend_service_answer_age_seconds",
        "fc_frontend_convergence_seconds_bucket",
        "fc_frontend_old_workers",
    ):
        assert f"\n{name}" in text, name
    labels = {"service": "shop", "namespace": "default"}
    assert frontend.metric("fc_frontend_service_endpoints", **labels) == 3
    assert frontend.metric("fc_frontend_service_state", state="ok", **labels) == 1
    assert frontend.metric("fc_frontend_config_in_sync") == 1
    frontend.until(lambda: frontend.metric("fc_frontend_service_answer_age_seconds", **labels) < 5)
    assert frontend.get("/healthz")[0] == 200
    assert frontend.get("/metrics", 8000)[1].startswith(b"# HELP haproxy_")
    assert frontend.get("/nothing")[0] == 404


def test_systemd_is_told(frontend: Frontend) -> None:
    path = frontend.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(20)
        frontend.environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        daemon = frontend.start()
        told: list[str] = []

        def hear(state: str) -> None:
            told.clear()
            while state not in "\n".join(told):
                told.append(sock.recv(4096).decode())

        hear("READY=1\nSTATUS=1 service, HAProxy in sync")
        hear("WATCHDOG=1")
        daemon.send_signal(signal.SIGHUP)
        hear("RELOADING=1\nMONOTONIC_USEC=")
        hear("READY=1")
        daemon.send_signal(signal.SIGTERM)
        hear("STOPPING=1")


def test_a_swapped_symlink_is_seen(frontend: Frontend) -> None:
    """NixOS does this: /etc/static → store, and services.d behind it."""
    generations = [frontend.directory / f"store-{n}" for n in (1, 2)]
    for number, generation in enumerate(generations):
        (generation / "services.d").mkdir(parents=True)
        name = f"g{number}"
        (generation / "services.d" / "s.json").write_text(
            f'{{"services": {{"{name}": {{"pod_port": {8081 + number}, '
            f'"binds": "{frontend.host}:{8081 + number}"}}}}}}'
        )
    static = frontend.directory / "static"
    static.symlink_to(generations[0])
    frontend.services_d.rmdir()
    frontend.services_d.symlink_to("static/services.d")
    frontend.start()
    assert [s["name"] for s in frontend.status()["services"]] == ["g0"]
    new = frontend.directory / "static.new"
    new.symlink_to(generations[1])
    new.rename(static)
    frontend.until(lambda: [s["name"] for s in frontend.status()["services"]] == ["g1"])


def external(frontend: Frontend, haproxy: RealHaproxy) -> None:
    """Let the daemon use a HAProxy that was started externally, with another configuration."""
    frontend.settings["haproxy"].update(
        supervise=False,
        take_over="always",
        config_file=haproxy.config_file,
        master_socket=haproxy.master_socket,
        runtime_socket=haproxy.runtime_socket,
    )
    haproxy.start()


def test_a_running_haproxy_is_reloaded_through_its_master_socket(
    frontend: Frontend, haproxy: RealHaproxy
) -> None:
    external(frontend, haproxy)
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.write()
    assert "good: reloaded in" in frontend.run("apply").stdout
    frontend.until(lambda: frontend.serves(8080, pods))
    assert "nothing to do" in frontend.run("apply").stdout
    assert show_proc(haproxy.master_socket).reloads == 1


def test_a_running_haproxy_is_reloaded_by_a_command(
    frontend: Frontend, haproxy: RealHaproxy
) -> None:
    external(frontend, haproxy)
    frontend.settings["haproxy"]["reload_command"] = ["/bin/kill", "-USR2", str(haproxy.pid)]
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    assert show_proc(haproxy.master_socket, patience=5.0).reloads == 1


def test_a_reload_command_that_fails_leaves_the_old_file(
    frontend: Frontend, haproxy: RealHaproxy
) -> None:
    external(frontend, haproxy)
    before = Path(haproxy.config_file).read_bytes()
    frontend.settings["haproxy"]["reload_command"] = ["/bin/sh", "-c", "echo no >&2; exit 3"]
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.write()
    done = frontend.run("apply", check=False)
    assert done.returncode == 1
    assert "the reload failed" in done.stderr
    assert Path(haproxy.config_file).read_bytes() == before


def test_without_a_running_haproxy_the_file_is_installed_for_its_start(
    frontend: Frontend,
) -> None:
    frontend.settings["haproxy"]["supervise"] = False
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.write()
    done = frontend.run("apply")
    assert "installed" in done.stdout
    assert "HAProxy is not running" in done.stderr
    assert "listen shop" in frontend.haproxy_cfg.read_text()
    assert frontend.haproxy_cfg.stat().st_mode & 0o777 == 0o640
