"""Sites with passwords, cookies, redirects and allowed addresses, with the real daemon."""

from __future__ import annotations

import base64
import http.client
import json
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from fc_frontend.haproxy.runtime import command
from tests.support.echo_pods import echo_pod
from tests.support.frontend import Frontend

SECRET = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
APR1 = "$apr1$abcdefgh$KrvJ5OF9M4lG2hG8yBc3s0"


class Answer(NamedTuple):
    """An answer to a client; `content` is the request as the pod received it."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """Run a frontend with three pods that echo requests."""
    with Frontend(either_binary) as made, ExitStack() as stack:
        made.settings["frontends"] = {"web": {"binds": f"{made.host}:8080"}}
        addresses = tuple(f"127.{made.octet}.120.{number}" for number in (1, 2, 3))
        for address in addresses:
            stack.enter_context(echo_pod(address))
        made.publish("shop", addresses)
        yield made


def declare(frontend: Frontend, **fields: Any) -> None:
    """Declare the service `shop`."""
    frontend.settings["services"]["shop"] = {"frontend": "web", "pod_port": 8080, **fields}
    frontend.write()


def get(frontend: Frontend, path: str = "/", login: str = "", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(frontend.host, 8080, timeout=10)
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    try:
        connection.request("GET", path, headers={"Host": "a.org", **headers})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def test_users_of_a_file_may_log_in_and_its_changes_are_reloads(frontend: Frontend) -> None:
    users, groups = frontend.directory / "users", frontend.directory / "groups"
    users.write_text(f"alice:{SECRET}\nbob:{SECRET}\n")
    groups.write_text("staff: alice\n")
    auth = {"users": str(users), "groups": str(groups), "allow_groups": "staff", "realm": "a shop"}
    declare(frontend, basic_auth=auth)
    frontend.haproxy_cfg.write_text("")
    frontend.haproxy_cfg.chmod(0o644)
    frontend.start()
    frontend.until(lambda: get(frontend, login="alice:secret").status == 200)
    answer = get(frontend, login="alice:secret")
    assert "authorization" not in answer.content["headers"]
    refused = [get(frontend, login=each) for each in ("", "alice:other", "bob:secret", "x:", ":")]
    assert {each.status for each in refused} == {401}
    assert 'realm="a shop"' in refused[0].headers["WWW-Authenticate"]
    assert get(frontend, "/a/../b", login="alice:secret").status == 400
    # Only HAProxy may see the hashes.
    assert not stat.S_IMODE(frontend.haproxy_cfg.stat().st_mode) & 0o007
    assert SECRET not in frontend.log_text()
    assert SECRET not in frontend.run("diff", check=False).stdout
    assert b"secret" not in frontend.get("/status.json")[1]
    # A change causes a reload, with the file as its reason.
    before = frontend.reloads()
    groups.write_text("staff: bob\n")
    frontend.until(lambda: get(frontend, login="bob:secret").status == 200)
    assert get(frontend, login="alice:secret").status == 401
    frontend.until(lambda: frontend.reloads() == before + 1)
    frontend.until(lambda: f"file-changed {groups}" in frontend.log_text())
    # A hash that HAProxy cannot check is refused, and the last good users are kept.
    users.write_text(f"bob:{APR1}\n")
    frontend.until(lambda: "htpasswd -B" in frontend.log_text())
    assert get(frontend, login="bob:secret").status == 200
    assert APR1 not in frontend.log_text()
    users.write_text(f"carol:{SECRET}\n")
    groups.write_text("staff: carol\n")
    frontend.until(lambda: get(frontend, login="carol:secret").status == 200)


def test_a_client_stays_with_its_pod_through_scaling_and_reloads(frontend: Frontend) -> None:
    fields = {"frontend": "web", "pod_port": 8080, "service": "shop", "paths": "/other"}
    frontend.settings["services"]["other"] = {**fields, "sticky": True}
    declare(frontend, sticky=True)
    frontend.start()
    frontend.until(lambda: len({get(frontend).content["pod"] for _ in range(12)}) == 3)
    clients = {}
    for _ in range(12):
        answer = get(frontend)
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert "Secure" not in cookie
        clients[cookie.partition(";")[0]] = answer.content["pod"]
    assert len(clients) == 3
    assert not any(pod in cookie for cookie, pod in clients.items())

    def followed() -> dict[str, str]:
        answers = {cookie: get(frontend, Cookie=cookie) for cookie in clients}
        # The application does not receive the cookie.
        assert not any("cookie" in each.content["headers"] for each in answers.values())
        return {cookie: each.content["pod"] for cookie, each in answers.items()}

    assert followed() == clients
    # Another service on the same host sets another cookie.
    other = get(frontend, "/other").headers["Set-Cookie"].partition(";")[0]
    both = {cookie: get(frontend, Cookie=f"{other}; {cookie}") for cookie in clients}
    assert {cookie: each.content["pod"] for cookie, each in both.items()} == clients
    before = frontend.reloads()
    declare(frontend, sticky=True, timeout="9s")
    frontend.until(lambda: frontend.reloads() > before)
    assert followed() == clients
    # Only the clients of a removed pod move; the others keep their pods.
    gone, *stay = sorted(clients.items(), key=lambda each: each[1])
    frontend.publish("shop", tuple(pod for _, pod in stay))
    frontend.until(lambda: get(frontend, Cookie=gone[0]).content["pod"] != gone[1])
    del clients[gone[0]]
    assert followed() == clients


def test_paths_are_redirected_and_rewritten(frontend: Frontend) -> None:
    declare(
        frontend,
        redirects=[{"path": "/old", "to": "https://new.example.org/x", "code": 301}],
        rewrite={"path": "/api", "to": "/"},
    )
    frontend.start()
    frontend.until(lambda: get(frontend).status == 200)
    answer = get(frontend, "/old/page?q=1")
    assert answer.status == 301
    assert answer.headers["Location"] == "https://new.example.org/x/page?q=1"
    assert get(frontend, "/api/v1?x=/api").content["path"] == "/v1?x=/api"
    assert get(frontend, "/api").content["path"] == "/"
    assert get(frontend, "/apix").content["path"] == "/apix"


def test_a_page_is_shown_while_no_pod_serves(frontend: Frontend) -> None:
    page = frontend.directory / "sorry.html"
    page.write_text("<h1>Back soon</h1>\n")
    frontend.directory.chmod(0o755)
    declare(frontend, unavailable_page=str(page), service="none")
    frontend.start(wait=False)
    answer = frontend.until(lambda: (found := get(frontend)).status == 503 and found)
    assert answer.body == b"<h1>Back soon</h1>\n"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    page.write_text("<h1>In an hour</h1>\n")
    frontend.until(lambda: get(frontend).body == b"<h1>In an hour</h1>\n")


def test_allowed_addresses_change_without_a_reload(frontend: Frontend) -> None:
    web = frontend.settings["frontends"]["web"]
    web["allow"] = ["192.0.2.0/24", "2001:db8::/32"]
    declare(frontend)
    frontend.start()
    frontend.until(lambda: get(frontend).status == 403)
    before = frontend.reloads()

    def become(*networks: str) -> None:
        web["allow"] = list(networks)
        frontend.write()

    many = [f"10.{number // 250}.{number % 250}.0/24" for number in range(900)]
    for allowed, status in (
        (("192.0.2.0/24", "127.0.0.0/8"), 200),
        (("192.0.2.0/24",), 403),
        ((*many, "127.0.0.0/8"), 200),
        ((), 403),
        (("127.0.0.0/8", *many[:9]), 200),
    ):
        become(*allowed)
        frontend.until(lambda status=status: get(frontend).status == status)
    assert frontend.reloads() == before
    path = frontend.directory / "fc-frontend-maps" / "web.allow.acl"
    assert path.read_text().splitlines() == ["127.0.0.0/8", *many[:9]]
    assert frontend.run("apply").stdout.startswith("good: nothing to do")
    # Outside changes in the worker are repaired.
    socket = frontend.settings["haproxy"]["runtime_socket"]
    command(socket, f"clear acl {path}")
    assert get(frontend).status == 403
    frontend.run("apply")
    assert get(frontend).status == 200
    # A service has its own list.
    declare(frontend, allow=["192.0.2.0/24"])
    frontend.until(lambda: get(frontend).status == 403)
    before = frontend.reloads()
    declare(frontend, allow=["127.0.0.1"])
    frontend.until(lambda: get(frontend).status == 200)
    assert frontend.reloads() == before
    # The next worker has the lists as well, and a rollback restores former ones.
    declare(frontend, timeout="9s", allow=["127.0.0.1"])
    frontend.until(lambda: frontend.reloads() > before)
    assert get(frontend).status == 200
    become("192.0.2.0/24")
    frontend.until(lambda: get(frontend).status == 403)
    frontend.run("rollback")
    frontend.until(lambda: get(frontend).status == 200)
