"""Routing by host and path: a plain model of Ingress, and the decisions of a real HAProxy."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path as File

import pytest

from fc_frontend.syntax.routes import (
    AMBIGUOUS_PATH,
    Match,
    NotARoute,
    Path,
    RouteEntry,
    http_routes,
    is_ambiguous,
    map_entries,
    map_path,
    map_text,
    parse_host,
    parse_path,
    route_of,
    routes_in,
    rules,
    sni_routes,
    without_routes,
)
from tests.conftest import HASH, RealHaproxy

Table = dict[str, tuple[tuple[str, ...], tuple[Path, ...]]]
"""Service → its hosts and paths."""


def decided(table: Table, host: str | None, path: str) -> str | None:
    """Return the service for a request by the rules of Ingress, independently of the maps."""
    plain = None if host is None else host.partition(":")[0].lower().rstrip(".")
    if plain == "[":
        plain = None

    def rank(of_host: str, of_path: Path) -> tuple[int, int, int] | None:
        if of_host == "":
            by_host = 0
        elif plain is not None and of_host == plain:
            by_host = 2
        elif of_host.startswith("*.") and plain and plain.partition(".")[2] == of_host[2:]:
            if not plain.partition(".")[0]:
                return None
            by_host = 1
        else:
            return None
        if of_path.is_exact:
            return (by_host, 1, 0) if path == of_path.text else None
        wanted = of_path.text.split("/")[1:]
        if path.split("/")[1:][: len(wanted)] != wanted:
            return None
        return by_host, 0, len(of_path.text)

    found = [
        (ranked, service)
        for service, (hosts, paths) in table.items()
        for of_host in hosts or ("",)
        for of_path in paths or (Path(""),)
        if (ranked := rank(of_host, of_path)) is not None
    ]
    return max(found)[1] if found else None


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("shop.example.org", "shop.example.org"),
        ("Shop.EXAMPLE.org.", "shop.example.org"),
        ("*.Example.org", "*.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("localhost", "localhost"),
    ],
)
def test_a_host_has_one_form(given: str, host: str) -> None:
    assert parse_host(given) == host


@pytest.mark.parametrize(
    "given",
    [
        "", ".", "*", "*.", "*.*.org", "a.*.org", "shop.example.org:80", "[::1]", "::1",
        "https://shop.example.org", "shop.example.org/x", "a b", "a\nb", "a#b", "a\tb", "-a.org",
        "a..b", "a\0b", "a" * 64 + ".org", "a." * 130 + "org", "%[env(HOME)]", "a'b", "a;b",
        "ex\u2028ample.org",
    ],
)  # fmt: skip
def test_what_is_no_host_is_refused_with_a_fix(given: str) -> None:
    with pytest.raises(NotARoute) as refused:
        parse_host(given)
    assert refused.value.remedy


@pytest.mark.parametrize(
    "given",
    [
        "", "api", "/a b", "/a\n/b", "/a#b", "/a?b", "/a%", "/a%2", "/a%2Fb", "/%61", "//", "/a//b",
        "/./a", "/a/..", "/../a", "/é", "/a\\b", "/a%5cb", "/a\0", "/a\tb", "/" + "a" * 1024,
    ],
)  # fmt: skip
def test_what_is_no_path_is_refused_with_a_fix(given: str) -> None:
    with pytest.raises(NotARoute) as refused:
        parse_path(given)
    assert refused.value.remedy


def test_a_prefix_has_no_final_slash_and_an_exact_path_keeps_it() -> None:
    assert parse_path("/api/") == parse_path("/api") == Path("/api")
    assert parse_path("/api/", is_exact=True) == Path("/api/", True)
    assert parse_path("/") == Path("")


def test_haproxy_and_we_find_the_same_paths_ambiguous() -> None:
    chance = random.Random(17)
    pieces = ["/", "//", ".", "..", "a", "%2f", "%2F", "%41", "%5b", "%7e", "%20", "%C3", "%5C"]
    pieces += [f"%{number:02x}" for number in range(256)]
    for _ in range(20_000):
        path = "/" + "".join(chance.choices(pieces, k=chance.randint(1, 4)))
        assert is_ambiguous(path) == bool(re.search(AMBIGUOUS_PATH, path)), path


def test_routes_are_read_back_from_a_section() -> None:
    routes = http_routes(
        "web", ["shop.example.org", "*.example.org"], [Path("/a"), Path("/b", True)]
    )
    text = "backend shop\n" + "".join(f"    {route.line}\n" for route in routes) + "    balance x\n"
    assert routes_in(text) == routes
    assert without_routes(text) == "backend shop\n    balance x\n"
    entries = map_entries([("shop", text)])
    assert map_text(entries["web", Match.PREFIX]) == (
        "*.example.org/a/ shop\nshop.example.org/a/ shop\n"
    )
    assert map_text(entries["web", Match.EXACT]) == (
        "*.example.org/b shop\nshop.example.org/b shop\n"
    )


def test_a_service_without_hosts_and_paths_has_the_rest() -> None:
    assert http_routes("web", [], []) == (RouteEntry("web", Match.PREFIX, "/"),)
    assert sni_routes("tls", ["a.org"]) == (RouteEntry("tls", Match.SNI, "a.org"),)


HOSTS = [
    "shop.example.org", "*.example.org", "a.shop.example.org", "*.shop.example.org", "example.org",
    "localhost", "*.localhost", "xn--bcher-kva.example", "a", "b.a", "*.a",
]  # fmt: skip
PATHS = [
    "/", "/a", "/ab", "/a/b", "/a/b/c", "/b", "/a%20b", "/a;b", "/a'b", "/*", "/$HOME", "/~x",
    "/.well-known/acme-challenge", "/" + "long/" * 60,
]  # fmt: skip
ASKED_HOSTS = [
    "{}", "{}", "{}", "{}.", "{}:80", "{}:8080", "{}.:80", "x.{}", "x.y.{}", ".{}", "x{}",
    "other.test", "*.example.org", "[::1]:80", "[::1]", "", "{}:80:90",
]  # fmt: skip
ASKED_PATHS = [
    "{}", "{}", "{}", "{}/", "{}/x", "{}x", "{}?q=/a", "/x{}", "//{}", "/./{}", "/../{}", "/%61{}",
    "{}%2fb", "{}/..", "{}//b", "{};v=1", "{}/../x", "{}%00", "{}\\b", "{}%", "{}/%2e%2e/b",
    "{}'\"", "{0}{0}",
]  # fmt: skip
HOSTILE_HOSTS = [
    "shop.example.org/a", "shop.example.org a", "a\tb", "a,shop.example.org", "a#b", "a%2eb", "é",
    "a;b", "a\\b", "$(x)", "%[env(HOME)]", "a@b", "{}/",
]  # fmt: skip


def generated(chance: random.Random) -> Table:
    """Return a table in which each route has one service."""
    table: Table = {}
    seen: set[RouteEntry] = set()
    for number in range(chance.randint(1, 8)):
        hosts = tuple(parse_host(h) for h in chance.sample(HOSTS, chance.randint(0, 3)))
        paths = tuple(
            parse_path(path, is_exact=chance.random() < 0.3)
            for path in chance.sample(PATHS, chance.randint(0, 3))
        )
        routes = set(http_routes("t", hosts, paths))
        if routes.isdisjoint(seen):
            seen |= routes
            table[f"s{number}"] = hosts, paths
    return table


def configuration(directory: File, tables: list[Table]) -> str:
    """Return each table as a frontend on a socket, with services that answer with their names."""
    (directory / "fc-frontend-maps").mkdir(exist_ok=True)
    text = "defaults\n    mode http\n    timeout client 10s\n    timeout server 10s\n"
    text += "    timeout connect 10s\n    option http-keep-alive\n"
    services = [f"s{number}" for number in range(8)]
    for name in services:
        text += f"backend {name}\n    http-request return status 200 hdr x-service {name}\n"
    for number, table in enumerate(tables):
        frontend = f"t{number}"
        sections = [
            (name, "\n".join(route.line for route in http_routes(frontend, hosts, paths)))
            for name, (hosts, paths) in table.items()
        ]
        entries = map_entries(sections)
        for match in (Match.EXACT, Match.PREFIX):
            path = map_path(str(directory), frontend, match)
            File(path).write_text(map_text(entries.get((frontend, match), {})))
        text += f"frontend {frontend}\n    bind unix@{directory}/{frontend}.sock\n"
        lines = rules(str(directory), frontend, Match.PREFIX)
        text += "".join(f"    {line}\n" for line in lines)
        text += "    use_backend %[var(txn.fc_service)]\n"
    return text


def asked(connection: socket.socket, host: str | None, target: str) -> tuple[int, str | None, bool]:
    """Return the status, the service that answered, and whether the connection stays open."""
    header = "" if host is None else f"Host: {host}\r\n"
    version = "1.0" if host is None else "1.1"
    data = f"GET {target} HTTP/{version}\r\n{header}\r\n".encode()
    connection.sendall(data)
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = connection.recv(65536)
        assert more, (host, target, answer)
        answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(
        line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line
    )
    left = int(fields.get("content-length", "0")) - len(body)
    while left > 0:
        left -= len(connection.recv(left))
    is_open = fields.get("connection") != "close" and host is not None
    return int(head.split()[1]), fields.get("x-service"), is_open


def opened(path: File) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def check_decisions(haproxy: RealHaproxy, tables: int, requests: int, seed: int = 0) -> None:
    """Compare HAProxy with the model in `tables` × `requests` decisions."""
    chance = random.Random(f"{tables} {requests} {seed}")
    made = [generated(chance) for _ in range(tables)]
    sockets = f"global\n    stats socket {haproxy.runtime_socket} level admin\n"
    haproxy.start(
        sockets + f"    description fc-frontend:{HASH}\n" + configuration(haproxy.directory, made)
    )
    kinds = set()
    for number, table in enumerate(made):
        path = haproxy.directory / f"t{number}.sock"
        entries = map_entries(
            (name, "\n".join(route.line for route in http_routes("t", hosts, paths)))
            for name, (hosts, paths) in table.items()
        )
        connection = opened(path)
        for _ in range(requests):
            host: str | None = chance.choice(ASKED_HOSTS).format(chance.choice(HOSTS).upper())
            target = chance.choice(ASKED_PATHS).format(chance.choice(PATHS))
            is_hostile = chance.random() < 0.1
            if is_hostile:
                host = chance.choice(HOSTILE_HOSTS)
            elif chance.random() < 0.03:
                host = None
            plain = (host or "").partition(":")[0].lower().rstrip(".")
            is_bad = re.fullmatch(r"[a-z0-9._-]*|\[", plain) is None
            status, service, is_open = asked(connection, host, target)
            expected = decided(table, host, target.partition("?")[0])
            if not is_bad:
                found = route_of(
                    entries, "t", plain if plain != "[" else "", target.partition("?")[0]
                )
                assert (found[1] if found else None) == expected, (table, host, target)
            kinds.add(400 if is_bad else 200 if expected else 404)
            if is_bad:
                assert (status, service) == (400, None), (table, host, target)
            else:
                assert service == expected, (table, host, target, status)
                assert status == (200 if expected else 404), (table, host, target)
            if not is_open:
                connection.close()
                connection = opened(path)
        connection.close()
    assert kinds == {200, 400, 404}


def test_haproxy_decides_as_the_model(haproxy: RealHaproxy) -> None:
    check_decisions(haproxy, tables=20, requests=50)


@pytest.mark.extended
def test_haproxy_decides_in_10_000_tables_as_the_model(haproxy: RealHaproxy) -> None:
    for seed in range(10):
        check_decisions(haproxy, tables=1000, requests=2, seed=seed)
        haproxy.end()


def client_hello(name: str | None) -> bytes:
    """Return the first bytes of a TLS client that asks for `name`."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


@contextlib.contextmanager
def answering(name: str) -> Iterator[int]:
    """Run a server that sends `name` to each client that sends something, and yield its port."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            assert self.request.recv(1)
            self.request.sendall(name.encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def test_haproxy_passes_tls_on_by_sni(haproxy: RealHaproxy) -> None:
    directory = haproxy.directory
    (directory / "fc-frontend-maps").mkdir()
    names = {"mail": ["mail.example.org"], "rest": ["*.example.org"], "deep": ["a.b.example.org"]}
    entries = map_entries(
        (service, "\n".join(route.line for route in sni_routes("tls", hosts)))
        for service, hosts in names.items()
    )
    File(map_path(str(directory), "tls", Match.SNI)).write_text(map_text(entries["tls", Match.SNI]))
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(answering(name)) for name in names}
        haproxy.start(
            f"global\n    stats socket {haproxy.runtime_socket} level admin\n"
            f"    description fc-frontend:{HASH}\n"
            "defaults\n    mode tcp\n    timeout client 10s\n    timeout server 10s\n"
            "    timeout connect 10s\n"
            + "".join(f"backend {n}\n    server s 127.0.0.1:{p}\n" for n, p in servers.items())
            + f"frontend tls\n    bind unix@{directory}/tls.sock\n"
            + "".join(f"    {line}\n" for line in rules(str(directory), "tls", Match.SNI))
            + "    use_backend %[var(txn.fc_service)]\n"
        )

        def passed_on(*pieces: bytes) -> str:
            """Return the name of the service that answers a connection; empty if it is closed."""
            with opened(directory / "tls.sock") as connection:
                for piece in pieces:
                    connection.sendall(piece)
                with contextlib.suppress(ConnectionResetError):
                    return connection.recv(100).decode()
            return ""

        assert passed_on(client_hello("mail.example.org")) == "mail"
        assert passed_on(client_hello("MAIL.example.org")) == "mail"
        assert passed_on(client_hello("www.example.org")) == "rest"
        assert passed_on(client_hello("a.b.example.org")) == "deep"
        assert passed_on(client_hello("x.b.example.org")) == ""
        assert passed_on(client_hello("example.org")) == ""
        assert passed_on(client_hello(None)) == ""
        assert passed_on(b"GET / HTTP/1.1\r\nHost: mail.example.org\r\n\r\n") == ""
        hello = client_hello("mail.example.org")
        assert passed_on(*(hello[at : at + 40] for at in range(0, len(hello), 40))) == "mail"
