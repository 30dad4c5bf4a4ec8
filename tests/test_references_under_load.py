"""Removing what others refer to, under load: a definition in use is not lost."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from fc_frontend.demo.load import Load
from fc_frontend.haproxy.master import show_proc
from tests.support.frontend import Frontend
from tests.test_contents import certificate

PATIENCE = 60.0
KINDS: dict[str, tuple[str, str]] = {
    "backend": ("backend NAME\n mode http\n server a POD:8080", "default_backend NAME"),
    "choice": (
        "backend NAME\n mode http\n server a POD:8080",
        "use_backend NAME if { path /other }\n default_backend shop",
    ),
    "userlist": (
        "userlist NAME\n user operator insecure-password x",
        "http-request auth if { path /admin } !{ http_auth(NAME) }\n default_backend shop",
    ),
    "peers": (
        "peers NAME\n peer fc-frontend-test HOST:PORT",
        "stick-table type ip size 1k peers NAME\n http-request track-sc0 src\n"
        " default_backend shop",
    ),
    "resolvers": (
        "resolvers NAME\n nameserver a 127.0.0.1:9",
        "http-request do-resolve(txn.ip,NAME,ipv4) hdr(host) if { path /resolve }\n"
        " default_backend shop",
    ),
    "errors": (
        "http-errors NAME\n errorfile 503 ERRORS",
        "errorfiles NAME\n default_backend shop",
    ),
    "cache": (
        "cache NAME\n total-max-size 1\n max-age 1",
        "filter cache NAME\n http-request cache-use NAME if { path /cached }\n"
        " http-response cache-store NAME if { res.hdr(x-cached) -m found }\n default_backend shop",
    ),
    "table": (
        "backend NAME\n stick-table type ip size 1k store gpc0",
        "http-request track-sc0 src table NAME\n default_backend shop",
    ),
    "defaults": (
        "defaults NAME\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
        # As in fc-frontend's own defaults: no idle connection is closed under a request.
        " option idle-close-on-response",
        "default_backend shop",
    ),
    "state": (
        "backend NAME\n mode http\n server a POD:8080",
        # No denial based on nbsrv(): it is 0 in a replaced worker of HAProxy 2.6 (measured with
        # a hand-written configuration), and kept connections would get 403.
        "http-request set-header X-Up %[nbsrv(NAME)]\n default_backend shop",
    ),
}
"""The definition in one fragment, and the lines with which the other's frontend refers to it."""
PORTS = {kind: 8100 + number for number, kind in enumerate(KINDS)}


def definition(frontend: Frontend, kind: str) -> str:
    text = KINDS[kind][0].replace("NAME", f"def-{kind}").replace("HOST", frontend.host)
    text = text.replace("PORT", "9100").replace("POD", frontend.pods["shop"].addresses[0])
    return text.replace("ERRORS", str(frontend.directory / "503.http")) + "\n"


def user(frontend: Frontend, kind: str) -> str:
    parent = f" from def-{kind}" if kind == "defaults" else ""
    lines = KINDS[kind][1].replace("NAME", f"def-{kind}")
    return (
        f"frontend use-{kind}{parent}\n mode http\n bind {frontend.host}:{PORTS[kind]}\n {lines}\n"
    )


def withheld(frontend: Frontend) -> dict[str, str]:
    """Return the problem of each withheld unit, by its name."""
    return {h["name"]: h["problems"][0]["message"] for h in frontend.status()["withheld"]}


@pytest.mark.extended
def test_what_is_used_is_not_removed_however_it_is_used(either_binary: str) -> None:
    with Frontend(either_binary) as frontend, ExitStack() as stack:
        frontend.settings["intervals"].update(debounce="50ms", reload="200ms", rescan="1s")
        frontend.settings["haproxy"]["global_extra"] = ["localpeer fc-frontend-test"]
        frontend.scale("shop", 2)
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        page = frontend.directory / "503.http"
        page.write_text("HTTP/1.0 503 Down\r\nContent-Type: text/plain\r\n\r\ndown\n")
        page.chmod(0o644)
        frontend.directory.chmod(0o755)
        for kind in KINDS:
            # A parent precedes its users, wherever its file is.
            frontend.drop(f"def-{kind}.cfg", definition(frontend, kind))
            frontend.drop(f"use-{kind}.cfg", user(frontend, kind))
        frontend.start()
        frontend.until(lambda: frontend.ready() and not frontend.status()["withheld"], PATIENCE)
        frontend.until(
            lambda: all(frontend.ask(port).startswith("shop-") for port in PORTS.values())
        )
        loads = {
            kind: stack.enter_context(Load(frontend.host, port, clients=1, interval=0.02))
            for kind, port in PORTS.items()
        }
        master_socket = frontend.settings["haproxy"]["master_socket"]
        reloads = show_proc(master_socket, patience=10).reloads
        for kind in KINDS:
            (frontend.services_d / f"def-{kind}.cfg").unlink()
        frontend.until(
            lambda: withheld(frontend).keys() == {f"def-{kind}" for kind in KINDS}, PATIENCE
        )
        # The next daemon reaches the same result.
        frontend.stop_daemon()
        frontend.start()
        frontend.until(
            lambda: withheld(frontend).keys() == {f"def-{kind}" for kind in KINDS}, PATIENCE
        )
        assert frontend.run("check", check=False).returncode in (0, 1)
        assert show_proc(master_socket, patience=10).reloads == reloads
        # Another change is deployed meanwhile.
        frontend.drop("more.json", {"more": frontend.service("shop", 8090)})
        frontend.until(lambda: frontend.ask(8090).startswith("shop-"), PATIENCE)
        # Once their users are gone, all of them are removed.
        for load in loads.values():
            assert not load.stop().failures
        for kind in KINDS:
            (frontend.services_d / f"use-{kind}.cfg").unlink()
        frontend.until(lambda: not withheld(frontend) and frontend.ready(), PATIENCE)
        text = frontend.haproxy_cfg.read_text()
        assert "frontend use-" not in text
        assert not [kind for kind in KINDS if f"def-{kind}" in text]


@pytest.mark.extended
def test_a_certificate_that_is_removed_or_renamed_costs_nothing(
    either_binary: str, tmp_path: Path
) -> None:
    with Frontend(either_binary) as frontend, ExitStack() as stack:
        frontend.settings["intervals"].update(debounce="50ms", reload="200ms", rescan="1s")
        frontend.scale("shop", 2)
        pem = frontend.directory / "site.pem"
        pem.write_text("".join(certificate(tmp_path, "site", 1)))
        frontend.drop(
            "edge.cfg",
            f"frontend edge\n mode http\n bind {frontend.host}:8095\n"
            f" bind {frontend.host}:8096 ssl crt {pem}\n default_backend shop\n",
        )
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        frontend.start()
        frontend.until(lambda: frontend.ask(8095).startswith("shop-"), PATIENCE)
        load = stack.enter_context(Load(frontend.host, 8095, clients=2, interval=0.02))
        pem.rename(frontend.directory / "other.pem")
        frontend.drop("more.json", {"more": frontend.service("shop", 8090)})
        frontend.until(lambda: frontend.ask(8090).startswith("shop-"), PATIENCE)
        assert not load.stop().failures
        # HAProxy restarts without the file, from the copy that it ran with.
        frontend.end_haproxy()
        frontend.until(lambda: frontend.ask(8095).startswith("shop-"), PATIENCE)
