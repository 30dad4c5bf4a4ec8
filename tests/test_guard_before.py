"""A change that would leave a running service without servers is withheld before the reload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.demo.load import Load
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """A service with three pods; each test puts it under load."""
    with Frontend(either_binary) as made:
        made.scale("shop", 3)
        made.settings["services"]["shop"] = made.service("shop", 8080)
        made.start()
        made.until(lambda: made.serves(8080, made.pods["shop"]))
        yield made


def withheld(frontend: Frontend) -> list[dict[str, Any]]:
    """Return the withheld changes in the daemon's status."""
    found: list[dict[str, Any]] = frontend.status()["withheld"]
    return found


def change(frontend: Frontend, mistake: str) -> None:
    """Introduce a mistake that leads to the wrong pods."""
    cluster = frontend.settings["cluster"]
    match mistake:
        case "domain":
            cluster["domain"] = "cluster.locla"
        case "nameserver":
            # Nothing listens at this address.
            cluster["nameservers"] = [f"127.{frontend.octet}.255.99:53"]
        case "pod-network":
            cluster["pod_network"] = "10.1.0.0/16"
        case "namespace":
            frontend.settings["services"]["shop"]["namespace"] = "shpo"
        case "service":
            frontend.settings["services"]["shop"]["service"] = "shpo"
    frontend.write()


@pytest.mark.parametrize("mistake", ["domain", "nameserver", "pod-network", "namespace", "service"])
def test_a_mistake_about_where_pods_are_costs_nothing(frontend: Frontend, mistake: str) -> None:
    before = frontend.running_hash()
    with Load(frontend.host, 8080, clients=4) as load:
        change(frontend, mistake)
        (held,) = frontend.until(lambda: withheld(frontend))
        by_settings = mistake in ("domain", "nameserver", "pod-network")
        assert held["kind"] == ("settings" if by_settings else "service")
        assert held["problems"][0]["cause"] == "no-server-left"
        applied = frontend.run("apply", "--json", check=False)
        assert applied.returncode == 1
        assert json.loads(applied.stdout)["outcome"] == "in-sync"
        assert frontend.running_hash() == before
        assert not load.stop().failures
    assert frontend.serves(8080, frontend.pods["shop"])
    assert not frontend.events("service-reverted")


def test_what_is_withheld_is_deployed_once_there_are_pods(frontend: Frontend) -> None:
    with Load(frontend.host, 8080, clients=4) as load:
        frontend.settings["services"]["shop"]["service"] = "store"
        frontend.write()
        frontend.until(lambda: withheld(frontend))
        store = frontend.scale("store", 2)
        frontend.until(lambda: not withheld(frontend))
        frontend.until(lambda: frontend.serves(8080, store))
        assert not load.stop().failures


def test_a_new_service_without_pods_is_deployed(frontend: Frontend) -> None:
    frontend.drop("new.json", {"new": frontend.service("nobody", 8081)})
    frontend.until(lambda: "listen new" in frontend.haproxy_cfg.read_text())
    assert not withheld(frontend)


def test_an_operator_may_force_it(frontend: Frontend) -> None:
    frontend.settings["services"]["shop"]["service"] = "nobody"
    frontend.write()
    frontend.until(lambda: withheld(frontend))
    assert json.loads(frontend.run("apply", "--force", "shop", "--json").stdout)["outcome"] == (
        "reloaded"
    )
    frontend.until(lambda: not withheld(frontend) and frontend.ready())
    assert "nobody.default" in frontend.haproxy_cfg.read_text()
