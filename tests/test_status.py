"""`status` in each of its states: with the daemon, with HAProxy alone, and with neither."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from fc_frontend.demo.dns import Fault, KubernetesService
from tests.support.frontend import Frontend

EXITS = {"ok": 0, "warning": 1, "critical": 1, "unknown": 3}


def status(frontend: Frontend) -> dict[str, Any]:
    """Return the output of `status --json`."""
    done = frontend.run("status", "--json", check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == EXITS[document["status"]]
    assert set(document) == {
        *("version", "status", "summary", "in_sync", "wanted_hash", "running_hash", "daemon"),
        *("haproxy_state", "api", "cluster", "load_balancers", "certificates", "frontends"),
        *("haproxy", "held", "last_reload", "dns", "services", "withheld", "findings"),
    }
    return document


def until(frontend: Frontend, level: str, said: str) -> dict[str, Any]:
    """Return the status once it is of `level` and a finding of that level contains `said`."""

    def found() -> dict[str, Any] | None:
        document = status(frontend)
        is_said = any(
            said in f"{finding['subject']}: {finding['message']}" and finding["level"] == level
            for finding in document["findings"]
        )
        return document if document["status"] == level and is_said else None

    document: dict[str, Any] = frontend.until(found)
    return document


def publish(frontend: Frontend, name: str, endpoints: tuple[str, ...]) -> None:
    async def set_service() -> None:
        service = KubernetesService(name, ports={"http": 8080}, endpoints=endpoints)
        frontend.dns.set_service(service)

    frontend.call(set_service())


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        made.scale("shop", 3)
        made.settings["services"]["shop"] = made.service("shop", 8080)
        made.settings["intervals"].update(hold="1s")
        made.start()
        made.until(lambda: made.serves(8080, made.pods["shop"]))
        yield made


def test_all_is_well(frontend: Frontend) -> None:
    document = frontend.until(lambda: (d := status(frontend))["status"] == "ok" and d)
    (shop,) = document["services"]
    assert shop == {
        "name": "shop",
        "namespace": "default",
        "state": "ok",
        "pods": 3,
        "slots": 10,
        "up": 3,
        "down": 0,
        "drained": 0,
        "maintenance": 0,
        "binds": [f"{frontend.host}:8080"],
        "source": str(frontend.config),
        "why": "shop.default.svc.cluster.local answers with pods: a headless service",
    }
    assert document["in_sync"]
    assert document["findings"] == []
    assert document["running_hash"] == frontend.running_hash()
    assert document["last_reload"]["reasons"] == ["start"]
    (dns,) = document["dns"]
    assert dns["ok"]
    assert dns["seconds"] > 0
    text = frontend.run("status").stdout
    assert text.startswith("ok: 1 service, all served, HAProxy in sync\n")
    assert "\x1b" not in text
    header, row = (line for line in text.splitlines() if line.startswith(("SERVICE", "shop ")))
    assert header.split() == "SERVICE STATE UP PODS BINDS".split()
    assert row.split() == ["shop", "ok", "3", "3", f"{frontend.host}:8080"]
    wide = frontend.run("status", "-o", "wide").stdout
    header, row = (line for line in wide.splitlines() if line.startswith(("SERVICE", "shop ")))
    assert header.split() == (
        "SERVICE NAMESPACE STATE PODS SLOTS UP DOWN DRAINED BINDS SOURCE WHY".split()
    )
    assert row.split()[:6] == ["shop", "default", "ok", "3", "10", "3"]
    assert yaml.safe_load(frontend.run("status", "-o", "yaml").stdout)["services"] == [shop]
    nagios = frontend.run("status", "--format", "nagios").stdout.splitlines()
    assert nagios[0].startswith("FC-FRONTEND OK - ")
    assert nagios[0].endswith(" up=3 down=0 drained=0 withheld=0")
    assert " | services=1 services_unknown=0 " in nagios[0]


@pytest.mark.extended
def test_warnings(frontend: Frontend) -> None:
    frontend.dns.fault = Fault.SERVFAIL
    document = until(frontend, "warning", "shop: cluster DNS gives no answer")
    assert document["services"][0]["state"] == "stale"
    assert document["services"][0]["up"] == 3
    assert "SERVFAIL" in document["dns"][0]["said"]
    frontend.dns.fault = Fault.NONE
    frontend.until(lambda: status(frontend)["status"] == "ok")
    frontend.run("drain", "shop", frontend.pods["shop"].addresses[0])
    document = until(frontend, "warning", "shop: 1 drained")
    assert document["services"][0]["drained"] == 1
    assert "fc-frontend undrain shop" in document["findings"][0]["remedy"]
    frontend.run("undrain", "shop", frontend.pods["shop"].addresses[0])
    frontend.drop("few.json", {"few": frontend.service("shop", 8081, slots=4)})
    until(frontend, "warning", "few: 3 pods in 4 slots: little room is left")
    (frontend.services_d / "few.json").unlink()
    frontend.until(lambda: status(frontend)["status"] == "ok")
    publish(frontend, "shop", ())
    document = until(frontend, "critical", "shop: cluster DNS names no pod")
    publish(frontend, "shop", (*frontend.pods["shop"].addresses, "192.0.2.1"))
    until(frontend, "warning", "shop: cluster DNS names addresses outside")


def test_what_is_critical(frontend: Frontend) -> None:
    frontend.drop("bad.yaml", "services:\n  bad:\n    pod_prt: 1\n")
    document = until(frontend, "critical", "service bad: withheld, not deployed")
    finding = document["findings"][0]
    assert finding["file"].endswith("bad.yaml")
    assert finding["line"] == 3
    assert finding["remedy"] == "did you mean pod_port?"
    bad = document["services"][0]
    assert (bad["name"], bad["state"]) == ("bad", "withheld")
    text = frontend.run("status", check=False)
    assert text.returncode == 1
    assert "bad.yaml:3: critical: service bad: " in text.stdout
    nagios = frontend.run("status", "--format", "nagios", check=False)
    assert nagios.returncode == 2
    assert nagios.stdout.startswith("FC-FRONTEND CRITICAL - service bad: withheld")
    frontend.drop("bad.yaml", "")
    frontend.until(lambda: status(frontend)["status"] == "ok")
    frontend.drop("few.json", {"few": frontend.service("shop", 8081, slots=2)})
    until(frontend, "warning", "few: 3 pods in 2 slots: 1 pod gets no traffic")
    # A new service is kept as it is: there is no earlier version to return to.
    frontend.drop("dead.json", {"dead": frontend.service("shop", 8082, pod_port=9)})
    document = until(frontend, "critical", "dead: 3 pods, and no server up (3 down)")
    finding = next(f for f in document["findings"] if f["subject"] == "dead")
    assert finding["remedy"] == "`fc-frontend explain dead`"


def test_a_hold_is_a_warning(frontend: Frontend) -> None:
    frontend.drop("cart.json", {"cart": frontend.service("shop", 8081)})
    frontend.until(lambda: frontend.serves(8081, frontend.pods["shop"]))
    frontend.run("rollback")
    document = until(frontend, "warning", "hold: rolled back to #")
    assert document["held"]["id"] >= 1
    assert document["in_sync"]


@pytest.mark.extended
def test_without_the_daemon_files_and_haproxy_tell(frontend: Frontend) -> None:
    frontend.until(lambda: status(frontend)["status"] == "ok")
    frontend.stop_daemon()
    document = until(frontend, "warning", "daemon: the daemon does not answer")
    assert document["daemon"] is None
    assert document["in_sync"]
    (shop,) = document["services"]
    assert (shop["pods"], shop["up"], shop["state"]) == (3, 3, "stale")
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    document = until(frontend, "critical", "configuration: not in sync")
    assert "fc-frontend diff" in document["findings"][0]["remedy"]


@pytest.mark.extended
def test_without_haproxy_it_is_critical_with_and_without_the_daemon(frontend: Frontend) -> None:
    haproxy = frontend.settings["haproxy"]
    there = haproxy["runtime_socket"]
    haproxy["runtime_socket"] = str(frontend.directory / "none.sock")
    moved = frontend.directory / "moved.json"
    moved.write_text(json.dumps(frontend.settings))
    haproxy["runtime_socket"] = there
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", "status", "--config", str(moved)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "critical: HAProxy: not running: HAProxy's socket" in done.stdout
    frontend.stop_daemon(9)
    frontend.end_haproxy()
    document = frontend.until(lambda: (d := status(frontend))["status"] == "critical" and d)
    assert document["summary"].startswith("HAProxy: not running: ")
    assert (document["haproxy_state"], document["haproxy"]) == ("stopped", None)
    assert document["daemon"] is None
    assert {service["state"] for service in document["services"]} == {"down"}
    nagios = frontend.run("status", "--format", "nagios", check=False)
    assert nagios.returncode == 2
    assert nagios.stdout.startswith("FC-FRONTEND CRITICAL - HAProxy: not running")


@pytest.mark.extended
def test_the_status_page_has_what_it_had_and_more(frontend: Frontend) -> None:
    document = frontend.status()
    assert document["version"] == 1
    assert document["drifted"] is False
    (shop,) = document["services"]
    assert shop["freshness"] == "fresh"
    assert 0 <= shop["answer_age"] < 10
    assert shop["file"] == str(frontend.config)
