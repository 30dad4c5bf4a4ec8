"""Certificates of a frontend through the real daemon and HAProxy, checked by real TLS clients."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fc_frontend.haproxy.runtime import command
from fc_frontend.haproxy.socket import ask
from tests.support.frontend import Frontend
from tests.support.issued import Authority, Issued

PORT = 8443


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        live = made.directory / "live"
        live.mkdir()
        made.settings["frontends"] = {
            "web": {"binds": f"{made.host}:{PORT}", "tls": {"certificates": f"{live}/*/"}}
        }
        made.settings["services"]["shop"] = {
            "frontend": "web",
            "hosts": ["shop.example.org", "other.example.org"],
            "pod_port": 8080,
        }
        made.scale("shop", 1)
        yield made


def put(frontend: Frontend, issued: Issued, name: str = "shop") -> None:
    """Install a certificate as certbot does: one link after the other."""
    live = frontend.directory / "live" / name
    archive = frontend.directory / "archive" / name
    live.mkdir(exist_ok=True)
    archive.mkdir(exist_ok=True, parents=True)
    number = len(list(archive.iterdir())) // 2 + 1
    for stem, content in (("privkey", issued.key), ("fullchain", issued.chain)):
        target = archive / f"{stem}{number}.pem"
        target.write_bytes(content)
        link = live / f"{stem}.pem"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../archive/{name}/{target.name}")


def serial(frontend: Frontend, authority: Authority, name: str = "shop.example.org") -> str:
    """Return the serial number of the certificate served to a client that verifies it."""
    context = ssl.create_default_context(cafile=str(authority.root_file))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((frontend.host, PORT), 10) as connection,
        context.wrap_socket(connection, server_hostname=name) as tls,
    ):
        assert tls.selected_alpn_protocol() == "h2"
        found = tls.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


def serves(
    frontend: Frontend, authority: Authority, issued: Issued, name: str = "shop.example.org"
) -> bool:
    return serial(frontend, authority, name) == of(issued)


def is_refused(frontend: Frontend, authority: Authority, name: str) -> bool:
    try:
        serial(frontend, authority, name)
    except ssl.SSLError:
        return True
    return False


def of(issued: Issued) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-serial"], input=issued.leaf, capture_output=True, check=True
    )
    return done.stdout.decode().strip().partition("=")[2]


def test_a_renewed_certificate_is_served_without_a_reload(
    frontend: Frontend, authority: Authority
) -> None:
    first, second = (authority.issue("shop.example.org") for _ in range(2))
    other = authority.issue("other.example.org")
    put(frontend, first)
    frontend.start()
    frontend.until(lambda: serial(frontend, authority) == of(first))
    reloads = frontend.metric("fc_frontend_reloads_total")
    checks = frontend.metric("fc_frontend_checks_total")
    put(frontend, second)
    frontend.until(lambda: serial(frontend, authority) == of(second))
    # A new certificate appears, for a host that had none.
    assert is_refused(frontend, authority, "other.example.org")
    problems = [each["message"] for each in frontend.status()["problems"]]
    assert "frontend web has no certificate for other.example.org" in problems
    put(frontend, other, "other")
    frontend.until(lambda: serial(frontend, authority, "other.example.org") == of(other))
    frontend.until(lambda: not frontend.status()["problems"])
    assert is_refused(frontend, authority, "unknown.example.org")
    # A certificate and key that do not match leave the former pair in place.
    (frontend.directory / "live" / "shop" / "fullchain.pem").unlink()
    shutil.copy(
        frontend.directory / "archive/shop/fullchain1.pem",
        frontend.directory / "live/shop/fullchain.pem",
    )
    frontend.until(lambda: "do not belong together" in str(frontend.status()["problems"]))
    assert serial(frontend, authority) == of(second)
    put(frontend, first)
    frontend.until(lambda: serial(frontend, authority) == of(first))
    assert frontend.metric("fc_frontend_reloads_total") == reloads
    assert frontend.metric("fc_frontend_checks_total") == checks
    path = f"{frontend.directory}/live/shop/fullchain.pem"
    ends = frontend.metric("fc_frontend_certificate_expiry_timestamp_seconds", certificate=path)
    assert ends > 1_700_000_000
    # The next worker loads them as well, and nobody else may read them.
    store = frontend.directory / "state" / "fc-frontend-certificates"
    assert store.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.iterdir()} == {0o600}
    frontend.settings["services"]["more"] = {
        **frontend.settings["services"]["shop"],
        "hosts": "x.org",
    }
    frontend.settings["services"]["more"]["service"] = "shop"
    frontend.write()
    frontend.until(lambda: frontend.metric("fc_frontend_reloads_total") == reloads + 1)
    frontend.until(lambda: serial(frontend, authority) == of(first))
    assert serial(frontend, authority, "other.example.org") == of(other)
    assert "PRIVATE KEY" not in frontend.log_text()


def test_a_frontend_starts_before_its_first_certificate(
    frontend: Frontend, authority: Authority
) -> None:
    frontend.start()
    frontend.until(lambda: is_refused(frontend, authority, "shop.example.org"))
    frontend.until(lambda: "leads to no certificate" in str(frontend.status()["problems"]))
    reloads = frontend.metric("fc_frontend_reloads_total")
    issued = authority.issue("shop.example.org")
    put(frontend, issued)
    frontend.until(lambda: serial(frontend, authority) == of(issued))
    assert frontend.metric("fc_frontend_reloads_total") == reloads


def test_a_certificate_renewed_while_the_daemon_is_stopped_is_served(
    frontend: Frontend, authority: Authority
) -> None:
    issued = [authority.issue("shop.example.org") for _ in range(3)]
    put(frontend, issued[0])
    frontend.start()
    frontend.until(lambda: serial(frontend, authority) == of(issued[0]))
    frontend.stop_daemon()
    put(frontend, issued[1])
    assert "1 swapped" in frontend.run("certificates", "sync").stdout
    assert serial(frontend, authority) == of(issued[1])
    assert "0 swapped" in frontend.run("certificates", "sync").stdout
    assert "shop.example.org" in frontend.run("certificates", "list").stdout
    put(frontend, issued[2])
    frontend.start()
    frontend.until(lambda: serial(frontend, authority) == of(issued[2]))
    assert "reason=start" not in " ".join(frontend.events("reloaded"))


def test_the_default_certificate_is_served_for_other_names(
    frontend: Frontend, authority: Authority
) -> None:
    tls = frontend.settings["frontends"]["web"]["tls"]
    tls["default"] = str(frontend.directory / "default.pem")
    site, fallback, renewed = (
        authority.issue(name) for name in ("shop.example.org", "*.example.org", "*.example.org")
    )
    put(frontend, site)
    frontend.start()
    frontend.until(lambda: serial(frontend, authority) == of(site))
    # The stand-in is served until a default certificate exists.
    assert is_refused(frontend, authority, "any.example.org")
    path = frontend.directory / "default.pem"
    for issued in (fallback, renewed):
        new = path.with_suffix(".new")
        new.write_bytes(issued.chain + b"\n\n" + issued.key)
        new.rename(path)
        frontend.until(partial(serves, frontend, authority, issued, "any.example.org"))
    assert serial(frontend, authority) == of(site)


@pytest.mark.extended
def test_of_two_certificates_for_a_name_the_first_is_served(
    frontend: Frontend, authority: Authority
) -> None:
    old, new = (authority.issue("shop.example.org") for _ in range(2))
    put(frontend, old, "a-old")
    put(frontend, new, "b-new")
    frontend.start()
    frontend.until(lambda: serial(frontend, authority) == of(old))
    assert "and HAProxy serves the one that it loaded first" in str(frontend.status()["problems"])
    assert "loaded first" in frontend.run("check").stderr
    shutil.rmtree(frontend.directory / "live" / "a-old")
    frontend.until(lambda: serial(frontend, authority) == of(new))
    # A certificate added at runtime hides no other, whatever its place in the list.
    put(frontend, old, "a-old")
    frontend.until(lambda: "loaded first" in str(frontend.status()["problems"]))
    assert serial(frontend, authority) == of(new)


def test_a_certificate_that_is_too_large_takes_a_reload(
    frontend: Frontend, authority: Authority
) -> None:
    first = authority.issue("shop.example.org")
    names = [f"host-{number:04}.shop.example.org" for number in range(400)]
    large = authority.issue("shop.example.org", *names, key="rsa:4096")
    put(frontend, first)
    frontend.start()
    frontend.until(lambda: serial(frontend, authority) == of(first))
    reloads = frontend.metric("fc_frontend_reloads_total", reason="file-changed")
    put(frontend, large)
    frontend.until(lambda: serial(frontend, authority) == of(large))
    frontend.until(
        lambda: frontend.metric("fc_frontend_reloads_total", reason="file-changed") == reloads + 1
    )


def test_what_others_did_to_certificates_is_put_right(
    frontend: Frontend, authority: Authority
) -> None:
    """A transaction that somebody left open, and a restarted HAProxy."""
    first, second = (authority.issue("shop.example.org") for _ in range(2))
    put(frontend, first)
    frontend.start()
    frontend.until(lambda: serial(frontend, authority) == of(first))
    socket_path = frontend.settings["haproxy"]["runtime_socket"]
    (copy,) = (
        path
        for path in (frontend.directory / "state" / "fc-frontend-certificates").iterdir()
        if path.name.startswith("shop-")
    )
    text = (first.chain + first.key).decode().strip()
    ask(socket_path, f"set ssl cert {copy}", 5, payload=text)
    put(frontend, second)
    frontend.until(lambda: serial(frontend, authority) == of(second))
    assert "transaction" not in command(socket_path, "show ssl cert")


def test_no_handshake_fails_while_certificates_are_swapped(
    frontend: Frontend, authority: Authority
) -> None:
    issued = [authority.issue("shop.example.org") for _ in range(10)]
    put(frontend, issued[0])
    frontend.start()
    frontend.until(lambda: serial(frontend, authority) == of(issued[0]))
    outcome: Counter[str] = Counter()
    is_over = threading.Event()

    def connect() -> None:
        while not is_over.is_set():
            try:
                serial(frontend, authority)
                outcome["good"] += 1
            except OSError as exc:
                outcome[str(exc)] += 1

    threads = [threading.Thread(target=connect) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for each in issued[1:]:
            put(frontend, each)
            frontend.until(partial(serves, frontend, authority, each))
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert outcome["good"] > 20
    assert set(outcome) == {"good"}


def test_client_certificates_are_required(
    frontend: Frontend, authority: Authority, tmp_path: Path
) -> None:
    tls = frontend.settings["frontends"]["web"]["tls"]
    tls["client_ca"] = str(authority.root_file)
    put(frontend, authority.issue("shop.example.org"))
    frontend.start()
    client = authority.issue("client")
    (tmp_path / "client.pem").write_bytes(client.chain + client.key)
    base = ["curl", "-s", "--cacert", str(authority.root_file), "-o", os.devnull,
            "-w", "%{http_code} %{http_version}", f"https://shop.example.org:{PORT}/",
            "--resolve", f"shop.example.org:{PORT}:{frontend.host}"]  # fmt: skip

    def curl(*options: str) -> str:
        done = subprocess.run([*base, *options], capture_output=True, text=True, check=False)
        return done.stdout

    certificate = ["--cert", str(tmp_path / "client.pem")]
    frontend.until(lambda: curl(*certificate) == "200 2")
    assert curl(*certificate, "--http1.1") == "200 1.1"
    assert curl().startswith("000")


def test_protocols_before_tls_1_2_are_refused(frontend: Frontend, authority: Authority) -> None:
    put(frontend, authority.issue("shop.example.org"))
    frontend.start()
    frontend.until(lambda: serial(frontend, authority))

    def succeeds(*options: str) -> bool:
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"{frontend.host}:{PORT}", "-servername",
             "shop.example.org", *options],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return "BEGIN CERTIFICATE" in done.stdout

    assert succeeds("-tls1_3")
    assert succeeds("-tls1_2")
    assert not succeeds("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
    assert not succeeds("-tls1_2", "-cipher", "AES128-SHA")


def test_acme_challenges_of_all_hosts_reach_the_client(frontend: Frontend) -> None:
    """They come before redirects, and also from addresses that are not allowed."""
    frontend.scale("client", 1)
    client = f"{frontend.pods['client'].addresses[0]}:8080"
    web = frontend.settings["frontends"]["web"]
    web |= {
        "acme": {"challenges": client},
        "http": {"binds": f"{frontend.host}:8080"},
        "allow": "192.0.2.0/24",
    }
    frontend.start()

    def asked(path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(frontend.host, 8080, timeout=10)
        try:
            connection.request("GET", path, headers={"Host": "any.example.org"})
            response = connection.getresponse()
            response.read()
            return response.status, response.headers.get("X-Pod", "")
        finally:
            connection.close()

    challenge = "/.well-known/acme-challenge/token"
    frontend.until(lambda: asked(challenge) == (200, "client-1"))
    assert asked("/")[0] == 403
    assert asked("/.well-known/acme")[0] == 403
    text = frontend.run("explain", f"http://a.org:8080{challenge}", check=False).stdout
    assert f"ACME challenges to {client}" in text
