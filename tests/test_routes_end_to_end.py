"""Many sites on one address, with the real daemon, DNS and HAProxy."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.haproxy.runtime import command, traffic
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        made.settings["frontends"] = {"web": {"binds": f"{made.host}:8080"}}
        yield made


def routed(frontend: Frontend, name: str, **fields: Any) -> None:
    """Declare a service of frontend `web` with the pods of `name`."""
    frontend.settings["services"][name] = {
        "frontend": "web",
        "pod_port": 8080,
        "service": name,
        **fields,
    }


def asked(frontend: Frontend, host: str, path: str = "/") -> str | int:
    """Return the name of the service whose pod answers, or the status if that is not 200."""
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
    url = "http://shop.example.org:8080/api/x"
    document = json.loads(frontend.run("explain", url, "-o", "json").stdout)
    assert document["verdict"] == "ok", document
    assert document["route"]["route"] == "web shop.example.org/api"
    text = frontend.run("explain", "http://no.where:8080/", check=False).stdout
    assert "404" in text
    # Traffic through a service counts for it, although clients connect to the frontend.
    passed = traffic(frontend.settings["haproxy"]["runtime_socket"], backends=True)
    assert passed["api"].requests
    assert passed["web"].requests > passed["api"].requests
    del frontend.settings["services"]["api"]
    frontend.write()
    frontend.until(lambda: asked(frontend, "shop.example.org", "/api/x") == "shop")


@pytest.mark.extended
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


def test_routes_of_services_that_run_change_without_a_reload(frontend: Frontend) -> None:
    for name in ("shop", "api"):
        frontend.scale(name, 1)
    routed(frontend, "shop", hosts=["shop.example.org", "old.example.org"])
    routed(frontend, "api", hosts=["api.example.org"])
    frontend.start()
    frontend.until(lambda: asked(frontend, "old.example.org") == "shop")
    reloads = frontend.metric("fc_frontend_reloads_total")
    # One route added, one removed, one moved from one service to another.
    hostile = ["/a;b", "/it's", "/$HOME", "/%23", "/*", "/a,b"]
    routed(frontend, "shop", hosts=["new.example.org", "api.example.org"])
    routed(frontend, "api", hosts=["shop.example.org"], paths=[*hostile, {"exact": "/x"}])
    frontend.write()
    frontend.until(lambda: asked(frontend, "new.example.org") == "shop")
    assert asked(frontend, "api.example.org") == "shop"
    assert asked(frontend, "old.example.org") == 404
    assert asked(frontend, "shop.example.org") == 404
    assert [asked(frontend, "shop.example.org", path) for path in hostile] == ["api"] * 6
    assert asked(frontend, "shop.example.org", "/x") == "api"
    # Many at once: the map is replaced as a whole.
    many = [f"host{number}.example.org" for number in range(900)]
    routed(frontend, "shop", hosts=many)
    frontend.write()
    frontend.until(lambda: asked(frontend, many[-1]) == "shop")
    assert {asked(frontend, host) for host in many[::100]} == {"shop"}
    assert asked(frontend, "new.example.org") == 404
    frontend.until(lambda: len(frontend.events("config-routed")) == 2)
    assert frontend.metric("fc_frontend_reloads_total") == reloads
    # The next worker has the routes as well.
    routed(frontend, "more", hosts=["more.example.org"], service="api")
    frontend.write()
    frontend.until(lambda: asked(frontend, "more.example.org") == "api")
    assert asked(frontend, many[7]) == "shop"
    assert frontend.run("apply").stdout.startswith("good: nothing to do")


@pytest.mark.extended
def test_a_worker_whose_map_was_changed_by_others_is_put_right(frontend: Frontend) -> None:
    frontend.scale("shop", 1)
    routed(frontend, "shop", hosts=["shop.example.org"])
    frontend.start()
    frontend.until(lambda: asked(frontend, "shop.example.org") == "shop")
    path = frontend.directory / "fc-frontend-maps" / "web.prefix.map"
    command(frontend.settings["haproxy"]["runtime_socket"], f"clear map {path}")
    assert asked(frontend, "shop.example.org") == 404
    assert "changed at runtime" in frontend.run("apply").stdout
    assert asked(frontend, "shop.example.org") == "shop"


def test_headers_are_set_literally_and_removed(frontend: Frontend) -> None:
    frontend.scale("shop", 1)
    hostile = {
        "X-Env": "%[env(HOME)] %H %%",
        "X-Quotes": "it's \"quoted\" 'twice'",
        "X-Escapes": "a\\b \\n # $HOME ${HOME} {{ x }} ;",
        "X-Plain": "yes",
    }
    routed(frontend, "shop", response_headers={**hostile, "X-Pod": None}, timeout="5s")
    frontend.start()
    frontend.until(lambda: frontend.get("/", 8080)[0] == 200)
    connection = http.client.HTTPConnection(frontend.host, 8080, timeout=10)
    connection.request("GET", "/")
    response = connection.getresponse()
    response.read()
    connection.close()
    assert {name: response.headers[name] for name in hostile} == hostile
    assert response.headers["X-Pod"] is None


@pytest.mark.extended
def test_a_proxy_header_tells_the_client_and_allow_decides_by_it(frontend: Frontend) -> None:
    frontend.scale("shop", 1)
    web = frontend.settings["frontends"]["web"]
    web |= {"proxy_protocol_from": "127.0.0.0/8", "allow": "192.0.2.0/24"}
    routed(frontend, "shop")
    frontend.start()

    def status(client: str, path: str = "/") -> int:
        with socket.create_connection((frontend.host, 8080), 10) as connection:
            header = f"PROXY TCP4 {client} 127.0.0.1 1000 80\r\n"
            connection.sendall(f"{header}GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            return int(connection.recv(4096).split()[1])

    frontend.until(lambda: status("192.0.2.7") == 200)
    assert status("198.51.100.7") == 403
    assert status("192.0.2.7", "/a/../b") == 400
    assert status("192.0.2.7", "/%61") == 400


@pytest.mark.extended
def test_a_client_that_asks_too_often_is_refused_for_a_while(frontend: Frontend) -> None:
    frontend.scale("shop", 1)
    routed(frontend, "shop", hosts=["a.org"], rate_limit={"requests": 10, "period": "2s"})
    routed(frontend, "free", hosts=["b.org"], service="shop")
    frontend.start()
    frontend.until(lambda: asked(frontend, "b.org") == "shop")
    answers = [asked(frontend, "a.org") for _ in range(40)]
    assert answers[0] == "shop"
    assert answers[-1] == 429
    assert asked(frontend, "b.org") == "shop"
    # Refused requests count as well, so the client has to pause.
    path = frontend.settings["haproxy"]["runtime_socket"]
    frontend.until(lambda: not re.search(r"rate\(2000\)=[^0]", command(path, "show table shop")))
    assert asked(frontend, "a.org") == "shop"
