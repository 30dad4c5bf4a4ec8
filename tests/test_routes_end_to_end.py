"""Many sites on one address, through the real daemon, DNS and HAProxy."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        made.settings["frontends"] = {"web": {"binds": f"{made.host}:8080"}}
        yield made


def routed(frontend: Frontend, name: str, **fields: Any) -> None:
    """Declare a service of frontend `web` whose pods are those of `name`."""
    frontend.settings["services"][name] = {
        "frontend": "web",
        "pod_port": 8080,
        "service": name,
        **fields,
    }


def asked(frontend: Frontend, host: str, path: str = "/") -> str | int:
    """The name of the service whose pod answers, or the status if that is not 200."""
    connection = http.client.HTTPConnection(frontend.host, 8080, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        response.read()
        pod = response.headers.get("X-Pod", "")
        return pod.rpartition("-")[0] if response.status == 200 else response.status
    finally:
        connection.close()


def test_sites_share_an_address_and_come_and_go(frontend: Frontend) -> None:
    for name in ("shop", "api", "blog"):
        frontend.scale(name, 1)
    routed(frontend, "shop", hosts=["shop.example.org"])
    routed(frontend, "api", hosts=["shop.example.org"], paths=["/api"])
    frontend.start()
    frontend.until(lambda: asked(frontend, "shop.example.org") == "shop")
    assert asked(frontend, "SHOP.example.org:8080", "/api/x?y") == "api"
    assert asked(frontend, "shop.example.org", "/apix") == "shop"
    assert asked(frontend, "other.example.org") == 404
    routed(frontend, "blog", hosts=["*.example.org"])
    frontend.write()
    frontend.until(lambda: asked(frontend, "other.example.org") == "blog")
    assert asked(frontend, "shop.example.org", "/api/x") == "api"
    text = frontend.run("status").stdout
    assert "shop.example.org" in text
    steps = json.loads(frontend.run("explain", "api", "--json").stdout)
    assert steps, steps
    print(frontend.run("explain", "api").stdout, text)
    del frontend.settings["services"]["api"]
    frontend.write()
    frontend.until(lambda: asked(frontend, "shop.example.org", "/api/x") == "shop")


def test_a_rollback_brings_the_former_routes_back(frontend: Frontend) -> None:
    frontend.scale("shop", 1)
    routed(frontend, "shop", hosts=["old.example.org"])
    frontend.start()
    frontend.until(lambda: asked(frontend, "old.example.org") == "shop")
    routed(frontend, "shop", hosts=["new.example.org"])
    frontend.write()
    frontend.until(lambda: asked(frontend, "new.example.org") == "shop")
    assert asked(frontend, "old.example.org") == 404
    frontend.run("rollback")
    frontend.until(lambda: asked(frontend, "old.example.org") == "shop")
    assert asked(frontend, "new.example.org") == 404
