"""A bind that another process holds, or HAProxy cannot take, affects only the unit with the bind.

The tests use the real daemon and HAProxy.  Three services are under load throughout: no request
may fail, and none may be answered by a pod of another service.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.haproxy import runtime
from tests.conftest import BINARIES, PATIENCE, binary_of
from tests.faults.site import EXTRA, SERVICES, Site, Sites, serving

ABSENT = "203.0.113.7"


@pytest.fixture(scope="module")
def every_sites() -> Iterator[dict[str, Sites]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(Sites(functools.partial(serving, binary_of(name))))
            for name in BINARIES
        }


@pytest.fixture(params=BINARIES)
def site(every_sites: dict[str, Sites], request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site under load; each test must remove everything that it adds."""
    with every_sites[request.param].lent() as made:
        yield made


def raw(site: Site, name: str, line: str) -> None:
    """Return a separate service with a line in extra_config."""
    number = 8100 + len(list(site.frontend.services_d.iterdir()))
    site.declare(name, number, service="extra", extra_config=line)


def fragment(site: Site, name: str, *lines: str) -> None:
    """Return a fragment whose section answers without a server."""
    own = (f"frontend {name}", "  mode http", "  http-request return status 200")
    site.put(f"{name}.cfg", "\n".join((*own, *(f"  {line}" for line in lines))) + "\n")


def until_withheld(site: Site, expected: dict[str, str]) -> None:
    """Wait until exactly these units are not deployed, each for its reason, and all others are."""
    frontend = site.frontend
    site.declare(*EXTRA)

    def held() -> dict[str, str]:
        return {
            name: " ".join(problem["message"] for problem in found["problems"])
            for (_, name), found in site.held().items()
        }

    frontend.until(lambda: held().keys() == expected.keys() and frontend.ready(), PATIENCE)
    wrong = {name: said for name, said in held().items() if expected[name] not in said}
    assert not wrong
    extra, port = EXTRA
    frontend.until(lambda: frontend.ask(port) == f"{extra}-1", PATIENCE)
    site.still_serve()
    assert frontend.metric("fc_frontend_reloads_total", result="failed") == 0


def until_well(site: Site, *names: str) -> None:
    for name in names:
        for path in site.frontend.services_d.glob(f"{name}.*"):
            path.unlink()
    site.without_extra()
    site.frontend.until(lambda: not site.held() and site.frontend.ready(), PATIENCE)


def test_nobody_takes_a_part_of_anothers_traffic(site: Site) -> None:
    host, directory = site.frontend.host, site.frontend.directory
    shop, cart = SERVICES["shop"], SERVICES["cart"]
    taken = "is taken by service shop"
    ours = "is used by fc-frontend itself"
    lines = {
        "a-plain": (f"bind {host}:{shop}", taken),
        "a-quoted": (f"'bi'\"nd\" ipv4@{host}:{shop} name x", taken),
        "a-range": (f"bind {host}:{shop}-{shop + 2}", taken),
        "a-mapped": (f"bind [::ffff:{host}]:{shop}", taken),
        "a-list": (f"bind abns@x{site.frontend.octet},{host}:{shop}", taken),
        "a-stats": (f"bind {host}:8000", ours),
        "a-listen": ("bind :9484", ours),
        "a-socket": (f"bind unix@{directory}/./admin.sock", "a socket that controls HAProxy"),
        "a-master": (f"bind {directory}/templates/../master.sock", "a socket that controls"),
        "a-name": (f"bind localhost:{shop}", "is not an IP address"),
        "a-variable": (f"bind $HOST:{shop}", "is an address with a variable"),
    }
    for name, (line, _) in lines.items():
        raw(site, name, line)
    fragment(site, "f-plain", f"bind {host}:{cart}")
    fragment(site, "f-twice", f"bind {host}:8199", f"bind ipv4@{host}:8199 name x")
    fragment(site, "f-backend")
    site.put("f-backend.cfg", f"backend f-backend\n  mode http\n  bind {host}:{cart}\n")
    site.put(
        "f-peers.cfg",
        f"peers f-peers\n  peer {socket.gethostname()} {host}:{cart}\n"
        "backend f-peers-table\n  stick-table type ip size 1k peers f-peers\n",
    )
    expected = {name: said for name, (_, said) in lines.items()} | {
        "f-plain": "is taken by service cart",
        "f-twice": "is bound twice",
        "f-backend": "is taken by service cart",
        "f-peers": "is taken by service cart",
    }
    until_withheld(site, expected)
    # The socket that controls HAProxy still belongs to HAProxy.
    assert runtime.info(f"{directory}/admin.sock")["Name"] == "HAProxy"
    until_well(site, *expected)


@contextlib.contextmanager
def held_by_others(site: Site) -> Iterator[dict[str, Any]]:
    """Hold sockets on the frontend's host in another process, the test itself."""
    host, directory = site.frontend.host, site.frontend.directory
    with contextlib.ExitStack() as stack:
        tcp = [stack.enter_context(socket.create_server((host, 0))) for _ in range(3)]
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind((host, 0))
        log = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        log.bind(f"{directory}/dev-log")
        (directory / "log").symlink_to(directory / "dev-log")
        try:
            ports = [each.getsockname()[1] for each in tcp]
            yield {"tcp": ports, "udp": udp.getsockname()[1], "log": log}
        finally:
            for name in ("dev-log", "log"):
                (directory / name).unlink()


def test_what_haproxy_cannot_take_never_comes_to_a_reload(site: Site) -> None:
    host, directory = site.frontend.host, site.frontend.directory
    with held_by_others(site) as others:
        one, two, three = others["tcp"]
        held, absent = "is in use by", "this host does not have the address"
        lines = {
            "b-held": (f"bind {host}:{one} name x", held),
            "b-range": (f"bind {host}:{two}-{two}", held),
            "b-absent": (f"bind {ABSENT}:80", absent),
            "b-absent6": ("bind [2001:db8::1]:80", absent),
            "b-interface": (f"bind {host}:8197 interface nope0", "would listen on all interfaces"),
            "b-mapped": (f"bind [::ffff:{host}]:8196 v6only", "cannot be taken"),
            "b-log": (f"bind unix@{directory}/dev-log", held),
            "b-link": (f"bind unix@{directory}/log", "is not a socket"),
            "b-file": (f"bind {directory}/config.json", "is not a socket"),
            "b-nowhere": (f"bind unix@{directory}/none/web", "does not exist"),
            "b-long": (f"bind unix@/{'x' * 96}", "is too long"),
            "b-relative": ("bind unix@web", "is a relative path"),
        }
        for name, (line, _) in lines.items():
            raw(site, name, line)
        fragment(site, "g-held", f"bind {host}:{three}")
        site.put(
            "g-datagrams.cfg",
            "log-forward g-datagrams\n  log 127.0.0.9:9 local0\n"
            f"  dgram-bind {host}:{others['udp']}\n",
        )
        fragment(site, "g-transparent", f"bind {ABSENT}:8195 transparent")
        expected = {name: said for name, (_, said) in lines.items()} | {
            "g-held": held,
            "g-datagrams": held,
        }
        until_withheld(site, expected)
        # Datagrams for the other process still arrive there.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", f"{directory}/log")
        assert others["log"].recv(100) == b"hello"
        assert (directory / "log").is_symlink()
        until_well(site, "g-transparent", *expected)


def test_settings_go_back_if_their_bind_is_held(site: Site) -> None:
    frontend = site.frontend
    before = frontend.settings["haproxy"]["stats"]
    with socket.create_server((frontend.host, 0)) as holder:
        frontend.settings["haproxy"]["stats"] = f"{frontend.host}:{holder.getsockname()[1]}"
        frontend.write()
        until_withheld(site, {"": "is in use by"})
    frontend.settings["haproxy"]["stats"] = before
    frontend.write()
    until_well(site)
