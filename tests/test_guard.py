"""A change that leaves a service without a server up is reverted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.demo.load import Load
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def held(frontend: Frontend) -> list[dict[str, Any]]:
    withheld: list[dict[str, Any]] = frontend.status()["withheld"]
    return withheld


def test_a_port_that_nobody_serves_is_taken_back_with_the_evidence(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 3)
    other = frontend.scale("other", 2)
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080)})
    frontend.drop("other.json", {"other": frontend.service("other", 8081)})
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.until(lambda: frontend.serves(8081, other))
    with Load(frontend.host, 8081, clients=2) as load:
        frontend.drop("shop.json", {"shop": frontend.service("shop", 8080, pod_port=9)})
        # A change of another service, in the same reload or the next one, is deployed.
        frontend.drop("other.json", {"other": frontend.service("other", 8081, slots=33)})
        (change,) = frontend.until(lambda: held(frontend))
        assert (change["kind"], change["name"]) == ("service", "shop")
        assert change["effect"] == "the last good version keeps running"
        assert "failed their checks after the reload" in change["problems"][0]["message"]
        frontend.until(lambda: frontend.serves(8080, pods))
        assert frontend.metric("fc_frontend_service_slots", service="other") == 33
        assert len(frontend.events("service-reverted")) == 1
        assert not load.stop().failures
    # Neither a change of other files nor a restart retries the same form.
    reloads = frontend.metric("fc_frontend_reloads_total")
    frontend.drop("more.json", {"more": frontend.service("more", 8082)})
    frontend.until(lambda: frontend.metric("fc_frontend_reloads_total") == reloads + 1)
    frontend.stop_daemon()
    frontend.start()
    assert held(frontend)
    assert frontend.serves(8080, pods)
    # Any other form is deployed without further action.
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080, slots=20)})
    frontend.until(lambda: not held(frontend))
    assert frontend.serves(8080, pods)
    last_good = frontend.directory / "state" / "running.json"
    frontend.until(lambda: not json.loads(last_good.read_text())["failed"])


def test_a_change_to_a_named_port_is_not_taken_back(frontend: Frontend) -> None:
    """HAProxy flags servers named by SRV records; they serve traffic all the same."""
    pods = frontend.scale("shop", 2)
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080)})
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080, pod_port="http")})
    frontend.until(lambda: frontend.status()["services"][0]["discovery"] == "srv")
    frontend.until(lambda: frontend.serves(8080, pods))
    # The new form becomes the last good form at once; the former one is dropped after 15 s.
    last_good = frontend.directory / "state" / "running.json"
    frontend.until(lambda: '"pod_port":"http"' in last_good.read_text())
    frontend.until(lambda: '"former":{}' in last_good.read_text())
    assert not held(frontend)


@pytest.mark.extended
def test_a_change_that_works_is_not_taken_back_when_its_pods_go(frontend: Frontend) -> None:
    """A change is not reverted if there were no servers before it, or if the pods are gone."""
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080)})
    frontend.scale("shop", 0)
    frontend.start()
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080, slots=20)})
    frontend.until(lambda: frontend.metric("fc_frontend_service_slots", service="shop") == 20)
    pods = frontend.scale("shop", 2)
    frontend.until(lambda: frontend.serves(8080, pods))
    assert not held(frontend)
