"""Features for sites: logins, cookies, redirects, rewritten paths, a page for 503."""

from __future__ import annotations

import json
import os
import random
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from fc_frontend.config.loader import read
from fc_frontend.errors import Problem
from fc_frontend.haproxy import maps
from fc_frontend.haproxy.runtime import command
from fc_frontend.haproxy.validate import validate
from fc_frontend.pipeline import Base, Prepared, no_check, propose
from fc_frontend.plan.model import Answer, Freshness, Kind, Standby
from fc_frontend.render.config import maps_in
from fc_frontend.syntax.htpasswd import (
    MAX_LOGINS,
    Login,
    read_groups,
    read_logins,
    with_groups,
)
from fc_frontend.syntax.routes import is_ambiguous
from tests.conftest import HASH, RealHaproxy
from tests.support.echo_pods import echo_pod
from tests.support.prepared import prepared, running, withheld

SECRET = {
    "bcrypt": "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
    "sha256": "$5$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM.",
    "sha512": "$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil.G5Nbc4NiXZaNGStk8PSwGfQv72N2CKPPrVACtLtip/"
    "cZ/1GM/O6IND4WQhG.",
    "yescrypt": "$y$j9T$abcdefghijklmnop$3dL1LkYnZM.OVXuVdnnaKVDlLYT92dRwOzDZ5XiVCe.",
}
"""The password `secret`."""
SETTINGS = """
cluster: {nameservers: ["127.0.0.1:53"]}
haproxy: {config_file: /etc/haproxy/haproxy.cfg, log: null}
"""


@pytest.fixture
def declare(tmp_path: Path) -> Path:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    (tmp_path / "services.d").mkdir()
    (tmp_path / "config.yaml").write_text(SETTINGS)
    (tmp_path / "users").write_text(f"alice:{SECRET['bcrypt']}\nbob:{SECRET['sha512']}\n")
    (tmp_path / "groups").write_text("staff: alice bob\nops: bob nobody\n")
    (tmp_path / "sorry.html").write_text("<h1>Back soon</h1>\n")
    return tmp_path


def put(directory: Path, services: dict[str, object]) -> Prepared:
    frontends = {"web": {"binds": "127.0.0.1:8443"}}
    (directory / "services.d" / "a.yaml").write_text(
        json.dumps({"frontends": frontends, "services": services})
    )
    return prepared(directory / "config.yaml")


def site(**fields: object) -> dict[str, object]:
    return {"frontend": "web", "pod_port": 80, **fields}


def text_of(found: Prepared) -> str:
    assert not withheld(found)
    assert found.config is not None
    return found.config.text


def fault(found: Prepared, unit: str = "service shop") -> Problem:
    (problem,) = withheld(found)[unit]
    assert problem.remedy
    return problem


@pytest.mark.parametrize("hashed", SECRET.values(), ids=SECRET)
def test_hashes_that_haproxy_can_check_are_accepted(hashed: str) -> None:
    logins, flaws = read_logins(f"# staff\n\nalice:{hashed}\n")
    assert logins == (Login("alice", hashed),)
    assert not flaws
    assert hashed not in repr(logins)


@pytest.mark.parametrize(
    "hashed",
    [
        "$apr1$abcdefgh$KrvJ5OF9M4lG2hG8yBc3s0",
        "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "{SSHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1",
        "rqXexS6ZhobKA",
        "secret",
        "",
        "*",
        "!",
        "$2y$05$tooshort",
        "$2y$31$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
        SECRET["sha256"].replace("$5$", "$5$rounds=999999999$"),
        SECRET["sha256"].replace("$5$", "$5$rounds=9999999999999999999999$"),
        SECRET["yescrypt"].replace("j9T", "jFT"),
        SECRET["bcrypt"] + " groups admin",
    ],
)
def test_other_hashes_are_refused_with_a_fix_and_without_being_shown(hashed: str) -> None:
    logins, flaws = read_logins(f"bob:{SECRET['sha256']}\nalice:{hashed}\n")
    (flaw,) = flaws
    assert flaw.line == 2
    assert "htpasswd -B" in flaw.remedy
    assert len(hashed) < 4 or hashed not in flaw.message
    assert [login.user for login in logins] == ["bob"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("alice", 1),
        (f"\nal ice:{SECRET['sha256']}", 2),
        (f"a\u2028b:{SECRET['sha256']}", 1),
        (f"a'b:{SECRET['sha256']}", 1),
        (f":{SECRET['sha256']}", 1),
        (f"a:{SECRET['sha256']}\na:{SECRET['sha256']}", 2),
        ("".join(f"u{number}:{SECRET['sha256']}\n" for number in range(MAX_LOGINS + 1)), 1),
    ],
)
def test_files_that_name_no_users_are_refused(text: str, line: int) -> None:
    (flaw,) = read_logins(text)[1]
    assert flaw.line == line
    assert flaw.remedy


def test_hashes_that_keep_haproxy_from_starting_soon_are_refused() -> None:
    slow = SECRET["bcrypt"].replace("$05$", "$10$")
    assert not read_logins("".join(f"u{number}:{slow}\n" for number in range(50)))[1]
    (flaw,) = read_logins("".join(f"u{number}:{slow}\n" for number in range(200)))[1]
    assert "at each start" in flaw.message


def test_groups_are_lists_of_users() -> None:
    groups, flaws = read_groups("staff: alice bob\n# none\nstaff: carol\nops:\n")
    assert groups == {"staff": ("alice", "bob", "carol"), "ops": ()}
    assert not flaws
    logins = with_groups((Login("bob", "x"), Login("dora", "y")), groups)
    assert [login.groups for login in logins] == [("staff",), ()]
    assert [flaw.line for flaw in read_groups("a b: c\nx\n")[1]] == [1, 2]


def test_all_fields_are_accepted_by_haproxy(declare: Path, haproxy_binary: str) -> None:
    found = put(
        declare,
        {
            "shop": site(
                basic_auth={
                    "users": f"{declare}/users",
                    "groups": f"{declare}/groups",
                    "allow_groups": ["staff"],
                    "realm": "my shop",
                },
                sticky={"cookie": "POD", "same_site": "none"},
                redirects=[
                    {"path": "/old", "to": "/new"},
                    {"path": {"exact": "/x"}, "to": "https://e.org:8443/%20y", "code": 302},
                    {"path": "/it's", "to": "/"},
                ],
                rewrite=[{"path": "/api", "to": "/"}, {"path": "/v1", "to": "/v2/$x;'"}],
                unavailable_page=f"{declare}/sorry.html",
            ),
            "own": {
                "mode": "http",
                "pod_port": 81,
                "basic_auth": {"users": f"{declare}/users"},
                "sticky": True,
                "redirects": {"to": "https://example.org/"},
            },
        },
    )
    text = text_of(found)
    verdict = validate(haproxy_binary, text, timeout=30)
    assert verdict.accepted, verdict.output
    assert not [each for each in verdict.warnings if "server state file" not in each.text]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"basic_auth": {}}, "basic_auth.users"),
        ({"basic_auth": {"users": "users"}}, "basic_auth.users"),
        ({"basic_auth": {"users": "/x", "realm": 'a"b'}}, "basic_auth.realm"),
        ({"basic_auth": {"users": "/x", "realm": "%[env(HOME)]"}}, "basic_auth.realm"),
        ({"basic_auth": {"users": "/x", "allow_groups": "a"}}, "basic_auth.allow_groups"),
        ({"basic_auth": {"users": "/x", "allow_groups": ["a b"]}}, "basic_auth.allow_groups.0"),
        ({"sticky": {"cookie": "a;b"}}, "sticky.cookie"),
        ({"sticky": {"cookie": ""}}, "sticky.cookie"),
        ({"sticky": {"same_site": "x"}}, "sticky.same_site"),
        ({"redirects": {"to": "//evil.example"}}, "redirects.0.to"),
        ({"redirects": {"to": "ftp://a.org"}}, "redirects.0.to"),
        ({"redirects": {"to": "https://a.org/?q"}}, "redirects.0.to"),
        ({"redirects": {"to": "https://a.org\r\nX: y"}}, "redirects.0.to"),
        ({"redirects": {"to": "https://a@b.org/"}}, "redirects.0.to"),
        ({"redirects": {"to": "https://a.org:99999/"}}, "redirects.0.to"),
        ({"redirects": {"to": "https://*.org/"}}, "redirects.0.to"),
        ({"redirects": {"to": "/x"}}, "redirects.0.to"),
        ({"redirects": {"path": "/x", "to": "/x/y"}}, "redirects.0.to"),
        ({"redirects": {"path": "/x", "to": "/y", "code": 200}}, "redirects.0.code"),
        ({"redirects": [{"path": "/x"}]}, "redirects.0.to"),
        ({"rewrite": {"path": "/x", "to": "y"}}, "rewrite.0.to"),
        ({"rewrite": {"path": "/x", "to": "/../y"}}, "rewrite.0.to"),
        ({"rewrite": {"path": "/x", "to": "/y z"}}, "rewrite.0.to"),
        (
            {"rewrite": [{"path": "/a", "to": "/"}, {"path": "/a/b", "to": "/"}]},
            "rewrite.1.path",
        ),
        ({"unavailable_page": "x.html"}, "unavailable_page"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    declare: Path, fields: dict[str, object], field: str
) -> None:
    (problem,) = withheld(put(declare, {"shop": site(**fields)}))["service shop"]
    assert problem.field == field
    assert problem.line is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"basic_auth": {"users": "/x"}},
        {"sticky": True},
        {"redirects": {"to": "https://a.org"}},
        {"rewrite": {"path": "/x", "to": "/"}},
        {"unavailable_page": "/x"},
    ],
)
def test_sites_need_http(declare: Path, fields: dict[str, object]) -> None:
    problem = fault(put(declare, {"shop": {"pod_port": 80, **fields}}))
    assert problem.message.endswith("needs mode: http")


def test_files_are_for_trusted_declarations_only(declare: Path) -> None:
    services = {
        "auth": site(hosts="a.org", basic_auth={"users": f"{declare}/users"}),
        "page": site(hosts="b.org", unavailable_page=f"{declare}/sorry.html"),
        "free": site(hosts="c.org", sticky=True, redirects={"path": "/a", "to": "/b"}),
    }
    (declare / "config.yaml").write_text(SETTINGS + 'frontends: {web: {binds: "127.0.0.1:8443"}}\n')
    path = declare / "services.d" / "a.yaml"
    path.write_text(json.dumps({"services": services}))
    path.chmod(0o666)
    found = withheld(prepared(declare / "config.yaml"))
    assert {unit: problem.field for unit, (problem,) in found.items()} == {
        "service auth": "basic_auth.users",
        "service page": "unavailable_page",
    }


def test_a_faulty_file_of_users_keeps_those_that_run(declare: Path) -> None:
    services: dict[str, object] = {
        "shop": site(hosts="a.org", basic_auth={"users": f"{declare}/users"}),
        "blog": site(hosts="b.org"),
    }
    before = put(declare, services)
    assert SECRET["bcrypt"] in text_of(before)
    users = declare / "users"
    for text in ("alice:$apr1$abcdefgh$KrvJ5OF9M4lG2hG8yBc3s0\n", "\xff", ""):
        users.write_text(text, encoding="latin-1")
        found = prepared(declare / "config.yaml", running(before))
        problem = fault(found)
        assert str(users) in problem.message
        assert problem.field == "basic_auth.users"
        assert problem.file is not None
        assert found.config is not None
        assert found.config.hash == (before.config and before.config.hash)
    users.unlink()
    found = prepared(declare / "config.yaml", running(before))
    assert "cannot be read" in fault(found).message
    # A new service is left out, and others are not affected.
    found = prepared(declare / "config.yaml")
    assert "backend blog " in (found.config.text if found.config else "")
    assert "backend shop " not in (found.config.text if found.config else "")


def test_a_changed_file_of_users_is_another_configuration(declare: Path) -> None:
    services: dict[str, object] = {"shop": site(basic_auth={"users": f"{declare}/users"})}
    before = put(declare, services)
    (declare / "users").write_text(f"carol:{SECRET['sha256']}\n")
    after = prepared(declare / "config.yaml", running(before))
    assert "user carol " in text_of(after)
    assert "user alice " not in text_of(after)
    assert after.config and before.config and after.config.hash != before.config.hash


def test_a_group_must_exist(declare: Path) -> None:
    auth = {"users": f"{declare}/users", "groups": f"{declare}/groups", "allow_groups": ["stuff"]}
    problem = fault(put(declare, {"shop": site(basic_auth=auth)}))
    assert problem.field == "basic_auth.allow_groups"


def test_a_page_is_small_regular_and_public(declare: Path) -> None:
    page = declare / "sorry.html"
    services: dict[str, object] = {"shop": site(unavailable_page=str(page))}
    page.write_text("x" * 15_000)
    assert "15000 bytes" in fault(put(declare, services)).message


def test_paths_are_unambiguous_where_a_service_asks_for_passwords(declare: Path) -> None:
    plain = text_of(put(declare, {"shop": site(hosts="a.org")}))
    assert "path -m reg" not in plain
    guarded = {
        "shop": site(hosts="a.org"),
        "admin": site(hosts="a.org", paths="/admin", basic_auth={"users": f"{declare}/users"}),
    }
    text = text_of(put(declare, dict(guarded)))
    frontend = text[text.index("frontend web ") : text.index("# fc-frontend unit: service")]
    assert "deny_status 400 if { path -m reg" in frontend


def test_cookies_do_not_tell_addresses_and_keys_are_not_shown(declare: Path) -> None:
    services: dict[str, object] = {
        "shop": site(hosts="a.org", sticky=True),
        "blog": site(hosts="b.org", sticky=True),
    }
    lines = text_of(put(declare, services)).splitlines()
    keys = [line.split()[1] for line in lines if "dynamic-cookie-key" in line]
    names = [line.split()[1] for line in lines if line.strip().startswith("cookie ")]
    assert len(set(names)) == 2
    assert len(set(keys)) == 2
    assert all(len(key) == 64 for key in keys)


def test_services_have_lists_of_allowed_addresses_of_their_own(
    declare: Path, haproxy_binary: str
) -> None:
    services: dict[str, object] = {
        "admin": site(paths="/admin", allow=["10.0.0.0/8"]),
        "rest": site(),
        "raw": {"pod_port": 81, "allow": "::1"},
    }
    before = put(declare, services)
    text = text_of(before)
    verdict = validate(haproxy_binary, text, timeout=30)
    assert verdict.accepted, verdict.output
    assert not [each for each in verdict.warnings if "server state file" not in each.text]
    maps = maps_in("/etc/haproxy/haproxy.cfg", text)
    lists = {path.rpartition("/")[2]: maps[path] for path in maps if path.endswith(".acl")}
    assert lists == {"admin.allow.acl": "10.0.0.0/8\n", "raw.allow.acl": "::1/128\n"}
    # Applications may treat another path as /admin.
    frontend = text[text.index("frontend web ") : text.index("# fc-frontend unit: service")]
    assert "deny_status 400 if { path -m reg" in frontend
    services["raw"] = {"pod_port": 81, "allow": []}
    (declare / "services.d" / "a.yaml").write_text(
        json.dumps({"frontends": {"web": {"binds": "127.0.0.1:8443"}}, "services": services})
    )
    after = prepared(declare / "config.yaml", running(before))
    assert after.config and before.config
    assert after.config.hash == before.config.hash
    assert (
        maps_in("/etc/haproxy/haproxy.cfg", text_of(after))[
            "/etc/haproxy/fc-frontend-maps/raw.allow.acl"
        ]
        == ""
    )


def test_a_changed_list_of_allowed_addresses_keeps_the_digest(declare: Path) -> None:
    def put_allow(allow: list[str] | None, before: Prepared | None = None) -> Prepared:
        web = {"binds": "127.0.0.1:8443", "allow": allow}
        (declare / "services.d" / "a.yaml").write_text(
            json.dumps({"frontends": {"web": web}, "services": {"shop": site()}})
        )
        return prepared(declare / "config.yaml", running(before) if before else None)

    path = "/etc/haproxy/fc-frontend-maps/web.allow.acl"
    first = put_allow(["10.0.0.0/8", "::1", "10.0.0.0/8"])
    assert maps_in("/etc/haproxy/haproxy.cfg", text_of(first))[path] == "10.0.0.0/8\n::1/128\n"
    second = put_allow(["192.0.2.1"], first)
    assert maps_in("/etc/haproxy/haproxy.cfg", text_of(second))[path] == "192.0.2.1/32\n"
    none = put_allow([], first)
    assert maps_in("/etc/haproxy/haproxy.cfg", text_of(none))[path] == ""
    assert first.config and second.config and none.config
    assert first.config.hash == second.config.hash == none.config.hash
    everybody = put_allow(None, first)
    assert path not in maps_in("/etc/haproxy/haproxy.cfg", text_of(everybody))
    assert everybody.config and everybody.config.hash != first.config.hash


REDIRECTS = [
    ("/old", "/new", False), ("/o", "/", False), ("/it's", "https://e.org/x%20y", False),
    ("/%C3%A9", "/a;b", False), ("/ex", "/$HOME", True), ("/(a)", "https://e.org/", False),
]  # fmt: skip
REWRITES = [
    ("/api", "/", False), ("/v1", "/v2", False), ("/a.c", "/%41".replace("41", "20"), False),
    ("/one", "/two", True), ("/w*", "/x'y", False),
]  # fmt: skip
TAILS = ["", "/", "/x", "x", "/x/y?q=1", "?", "?a=/b", "/x?y?z", "/%20", "/%25b", "/;v"]
HOSTILE_TAILS = ["//evil.example", "/\\evil.example", "/../x", "/./x", "/%2f/x", "//"]


def expected(path: str, query: str, *, is_rewritten: bool) -> tuple[int, str]:
    """Return the status, and the location or the path that a pod receives."""
    rest = f"?{query}" if query else ""
    if is_rewritten and is_ambiguous(path):
        return 400, ""
    for prefix, to, is_exact in REDIRECTS:
        if is_exact and path == prefix:
            return 308, to + rest
        if not is_exact and f"{path}/".startswith(f"{prefix}/"):
            tail = path[len(prefix) :]
            if to == "/" and ("\\" in tail or "//" in tail):
                return 400, ""
            return 308, (to.rstrip("/") + tail if tail else to) + rest
    for prefix, to, is_exact in REWRITES if is_rewritten else ():
        if is_exact and path == prefix:
            return 200, to + rest
        if not is_exact and f"{path}/".startswith(f"{prefix}/"):
            tail = path[len(prefix) :]
            return 200, (to.rstrip("/") + tail if tail else to) + rest
    return 200, path + rest


def answer(connection: socket.socket, target: str) -> tuple[int, str]:
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: a.org\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        assert more, target
        data += more
    head, _, body = data.decode().partition("\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    left = int(fields.get("content-length", "0")) - len(body)
    while left > 0:
        left -= len(connection.recv(left))
    return int(head.split()[1]), fields.get("location", fields.get("x-path", ""))


@pytest.mark.parametrize("is_rewritten", [True, False], ids=["rewritten", "not-rewritten"])
def test_haproxy_redirects_and_rewrites_as_the_model(
    declare: Path, haproxy: RealHaproxy, is_rewritten: bool
) -> None:
    rules = {
        key: [
            {"path": {"exact": path} if is_exact else path, "to": to}
            for path, to, is_exact in given
        ]
        for key, given in (("redirects", REDIRECTS), ("rewrite", REWRITES if is_rewritten else []))
    }
    text = text_of(put(declare, {"shop": site(**rules)}))
    section = text[text.index("backend shop ") :]
    lines = [line for line in section.splitlines() if "http-request" in line]
    directory = haproxy.directory
    haproxy.start(
        f"global\n    stats socket {haproxy.runtime_socket} level admin\n"
        f"    description fc-frontend:{HASH}\n"
        "defaults\n    mode http\n    timeout client 60s\n    timeout server 60s\n"
        f"    timeout connect 5s\nlisten shop\n    bind unix@{directory}/shop.sock\n"
        + "\n".join(lines)
        + "\n    http-request return status 200 hdr x-path %[url]\n"
    )
    chance = random.Random(17)
    prefixes = [path for path, _, _ in (*REDIRECTS, *REWRITES)] + ["", "/none", "/oldx"]
    seen = set()
    for _ in range(1500):
        target = chance.choice(prefixes) + chance.choice([*TAILS, *HOSTILE_TAILS])
        if not target.startswith("/"):
            continue
        path, mark, query = target.partition("?")
        status, place = expected(path, query, is_rewritten=is_rewritten)
        if mark and not query and status != 400:
            place += "?"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(f"{directory}/shop.sock")
            assert answer(connection, target) == (status, place), target
        seen.add(status)
    assert seen == {200, 308, 400}


@pytest.mark.extended
def test_a_cookie_follows_a_pod_through_slots_that_are_set_at_runtime(
    declare: Path, haproxy: RealHaproxy
) -> None:
    directory = haproxy.directory
    directory.chmod(0o755)
    settings = {
        "cluster": {"nameservers": ["127.0.0.1:53"], "api": {"kubeconfig": "/root/kubeconfig"}},
        "haproxy": {
            "config_file": haproxy.config_file,
            "runtime_socket": haproxy.runtime_socket,
            "log": None,
            "stats": None,
        },
        "state_directory": str(directory),
        "listen": None,
    }
    (declare / "config.yaml").write_text(json.dumps(settings))
    bind = f"unix@{directory}/shop.sock"
    service = {"mode": "http", "pod_port": 8080, "binds": bind, "sticky": True, "check": False}
    put(declare, {"shop": {**service, "slots": 4}})
    answer = Answer(
        kind=Kind.API,
        reason="the API lists them",
        freshness=Freshness.FRESH,
        standby=Standby("shop.default.svc.cluster.local", 8080),
    )
    sources = read(str(declare / "config.yaml"))
    found = propose(sources, Base(), {"shop": answer}, {}, no_check)
    text = text_of(found)
    assert "disabled init-addr last" in text
    maps.write(found.plan.settings, text.encode())
    haproxy.start(text)
    # The daemon's heartbeat, without which the standby would serve.
    command(haproxy.runtime_socket, "set table fc-alive-10s key daemon data.gpc0 1")

    def put_pod(slot: int, address: str) -> None:
        name = f"shop/pod{slot}"
        command(haproxy.runtime_socket, f"set server {name} addr {address} port 8080")
        command(haproxy.runtime_socket, f"set server {name} state ready")

    def asked(cookie: str = "") -> tuple[str, str]:
        """Return the pod that answers, and the client's cookie afterwards."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(bind.removeprefix("unix@"))
            header = f"Cookie: {cookie}\r\n" if cookie else ""
            connection.sendall(
                f"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}\r\n".encode()
            )
            data = b""
            while more := connection.recv(65536):
                data += more
        head, _, body = data.decode().partition("\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        given = fields.get("set-cookie", cookie).partition(";")[0]
        return json.loads(body)["pod"], given

    addresses = [f"127.77.{os.getpid() % 250}.{number}" for number in range(1, 5)]
    with ExitStack() as stack:
        for address in addresses:
            stack.enter_context(echo_pod(address))
        for number, address in enumerate(addresses[:3], start=1):
            put_pod(number, address)
        clients = dict(asked() for _ in range(20))
        assert clients.keys() == set(addresses[:3])
        assert len(set(clients.values())) == 3
        for pod, cookie in clients.items():
            assert {asked(cookie) for _ in range(5)} == {(pod, cookie)}
        # Another pod in the first slot; its former pod returns in the last one.
        put_pod(1, addresses[3])
        put_pod(4, addresses[0])
        for pod, cookie in clients.items():
            assert {asked(cookie) for _ in range(5)} == {(pod, cookie)}
