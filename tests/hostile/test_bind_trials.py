"""Obstacles to a listener are found before a reload, and HAProxy agrees."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.preflight import Obstacle, find_obstacles
from fc_frontend.haproxy.rights import Rights, rights_of
from fc_frontend.haproxy.runtime import info
from fc_frontend.syntax.binds import read_listeners
from fc_frontend.syntax.endpoints import ListenEndpoint
from tests.conftest import RealHaproxy, free_port, loopback, until

NOBODY = 65534
ABSENT = "203.0.113.7"


def endpoints(bind: str, section: str = "listen web") -> list[ListenEndpoint]:
    read = read_listeners(f"{section}\n  {bind}\n")
    assert not read.flaws
    return [listener.endpoint for _, listener in read.listeners]


def obstacle(bind: str, rights: Rights | None = None) -> Obstacle | None:
    found = find_obstacles(endpoints(f"bind {bind}"), owned_by=frozenset(), rights=rights)
    return found[0] if found else None


def starts(
    haproxy: RealHaproxy, bind: str, *, as_nobody: bool = False, section: str = "listen web"
) -> bool:
    """Return whether HAProxy starts with a section that contains this line."""
    runtime = f"{haproxy.directory}/run/admin.sock"
    (haproxy.directory / "run").mkdir(exist_ok=True)
    (haproxy.directory / "run").chmod(0o777)
    haproxy.write(
        f"global\n  stats socket {runtime}\ndefaults\n  timeout client 1s\n  timeout server 1s\n"
        f"  timeout connect 1s\n{section}\n  {bind}\n"
    )
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if as_nobody else {}
    with subprocess.Popen(
        [haproxy.binary, "-db", "-f", haproxy.config_file],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **(user if os.geteuid() == 0 else {}),  # type: ignore[call-overload]
    ) as process:

        def settled() -> bool:
            with suppress(Unavailable):
                return bool(info(runtime))
            return process.poll() is not None

        try:
            until(settled)
            return process.poll() is None
        finally:
            process.kill()


def unprivileged() -> Rights:
    """Return the credentials of nobody, or of this user if it is not root."""
    if os.geteuid() == 0:
        return Rights(NOBODY, (NOBODY,), 0)
    rights = rights_of(os.getpid())
    assert rights is not None
    return rights


@contextmanager
def bound(path: Path, kind: int) -> Iterator[socket.socket]:
    """Bind a socket to a path, without any connection to it."""
    with socket.socket(socket.AF_UNIX, kind) as holder:
        holder.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            holder.listen()
        holder.setblocking(False)
        yield holder


@pytest.mark.parametrize(
    "form",
    [
        "{absent}:80",
        "ipv4@{absent}:80-81",
        "[2001:db8::1]:80",
        "[::ffff:{absent}]:80",
        "[::ffff:127.0.0.1]:8080 v6only",
        "fe80::1:80",
    ],
)
def test_an_address_that_cannot_be_bound(haproxy: RealHaproxy, form: str) -> None:
    bind = form.format(absent=ABSENT)
    assert obstacle(bind) is not None
    assert not starts(haproxy, f"bind {bind}")


def test_a_foreign_address_can_be_bound_with_transparent(haproxy: RealHaproxy) -> None:
    bind = f"{ABSENT}:{free_port()} transparent"
    assert obstacle(bind) is None
    assert starts(haproxy, f"bind {bind}")


def test_an_interface_that_does_not_exist_would_open_all(haproxy: RealHaproxy) -> None:
    address = loopback()
    bind = f"{address}:{free_port(address)} interface nope0"
    found = obstacle(bind)
    assert found is not None
    assert "HAProxy would listen on all interfaces" in found.message
    # It does: the start succeeds with a warning.
    assert starts(haproxy, f"bind {bind}")
    assert obstacle(bind.replace("nope0", "lo")) is None


def test_one_port_of_a_range_is_held(haproxy: RealHaproxy) -> None:
    address = loopback()
    with socket.create_server((address, 0)) as holder:
        port = holder.getsockname()[1]
        bind = f"{address}:{port - 2}-{min(port + 2, 65535)}"
        found = obstacle(bind)
        assert found is not None
        assert f"process {os.getpid()}" in found.message
        assert not starts(haproxy, f"bind {bind}")


@pytest.mark.parametrize("option", [0, socket.SO_REUSEADDR])
def test_a_datagram_port_that_another_process_has(haproxy: RealHaproxy, option: int) -> None:
    address = loopback()
    section = "log-forward l\n  log 127.0.0.9:9 local0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        if option:
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
        holder.bind((address, 0))
        line = f"dgram-bind {address}:{holder.getsockname()[1]}"
        (found,) = find_obstacles(endpoints(line, section), owned_by=frozenset())
        assert f"process {os.getpid()}" in found.message
        # With the option, HAProxy would bind the same port and receive the holder's datagrams.
        assert starts(haproxy, line, section=section) is bool(option)
        # The TCP port of the same number is free.
        assert obstacle(line.split()[1]) is None
    assert not find_obstacles(endpoints(line, section), owned_by=frozenset())
    assert starts(haproxy, line, section=section)


@pytest.mark.parametrize(
    "kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=str
)
def test_a_foreign_socket_of_any_kind_is_not_replaced(haproxy: RealHaproxy, kind: int) -> None:
    path = haproxy.directory / "log"
    with bound(path, kind) as holder:
        found = obstacle(f"unix@{path}")
        assert found is not None
        assert "is in use by" in found.message
        # The trial has not disturbed the socket.
        with pytest.raises(BlockingIOError):
            holder.accept() if kind != socket.SOCK_DGRAM else holder.recv(10)
        # HAProxy would replace it.
        before = path.stat().st_ino
        assert starts(haproxy, f"bind unix@{path}")
        assert path.stat().st_ino != before
    assert obstacle(f"unix@{path}") is None


def test_a_socket_by_another_path_or_of_another_network_namespace(haproxy: RealHaproxy) -> None:
    path = haproxy.directory / "log"
    (haproxy.directory / "link").symlink_to(haproxy.directory)
    with bound(path, socket.SOCK_DGRAM):
        found = obstacle(f"unix@{haproxy.directory}/link/./log")
        assert found is not None
        assert f"process {os.getpid()}" in found.message
    path.unlink()
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print(flush=True); sys.stdin.read()"
    )
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    with subprocess.Popen(
        ["unshare", *user, "--net", sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = obstacle(f"unix@{path}")
        assert found is not None
        assert "is in use by another process" in found.message
        process.communicate()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.touch(),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to("/dev/null"),
        os.mkfifo,
        Path.mkdir,
    ],
    ids=["file", "dangling", "link", "pipe", "directory"],
)
def test_what_is_not_a_socket_is_not_replaced(
    haproxy: RealHaproxy, make: Callable[[Path], None]
) -> None:
    path = haproxy.directory / "there"
    make(path)
    before = path.lstat().st_ino
    assert obstacle(f"unix@{path}") is not None
    assert path.lstat().st_ino == before


def test_a_directory_in_which_haproxys_user_may_not_write(haproxy: RealHaproxy) -> None:
    closed = haproxy.directory / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    bind = f"unix@{closed}/web"
    found = obstacle(bind, unprivileged())
    assert found is not None
    assert "may not write" in found.message
    assert not starts(haproxy, f"bind {bind}", as_nobody=True)
    closed.chmod(0o777)
    assert obstacle(bind, unprivileged()) is None
    assert starts(haproxy, f"bind {bind}", as_nobody=True)


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_stale_socket_of_another_user(haproxy: RealHaproxy, mode: int) -> None:
    shared = haproxy.directory / "shared"
    shared.mkdir()
    shared.chmod(mode)
    with bound(shared / "web", socket.SOCK_STREAM):
        pass
    bind = f"unix@{shared}/web"
    found = obstacle(bind, unprivileged())
    assert (found is None) == starts(haproxy, f"bind {bind}", as_nobody=True)


def test_a_low_port_without_the_privilege(haproxy: RealHaproxy) -> None:
    bind = f"{loopback()}:{random.randint(200, 1000)}"
    found = obstacle(bind, unprivileged())
    assert found is not None
    assert "CAP_NET_BIND_SERVICE" in found.remedy
    assert not starts(haproxy, f"bind {bind}", as_nobody=True)


def test_a_namespace_that_cannot_be_entered_is_reported() -> None:
    found = obstacle("127.0.0.1:80 namespace other")
    assert found is not None
    assert not found.is_certain
    assert "cannot be entered" in found.message


IN_ANOTHER_NAMESPACE = """
import os, socket, subprocess, sys
from tests.hostile.test_bind_trials import obstacle

def ip(*words):
    subprocess.run(["ip", *words], check=True)

ip("netns", "add", "other")
ip("-n", "other", "link", "set", "lo", "up")
ip("link", "set", "lo", "up")
holder = [sys.executable, "-c", "import socket; s = socket.create_server(('127.0.0.1', 81));"
          "print(flush=True); input()"]
held = subprocess.Popen(["ip", "netns", "exec", "other", *holder],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
held.stdout.readline()
found = obstacle("127.0.0.1:81 namespace other")
assert found.is_certain and f"process {held.pid}" in found.message, found
assert obstacle("127.0.0.1:82 namespace other") is None
assert obstacle("127.0.0.1:81") is None
found = obstacle("192.0.2.1:82 namespace other")
assert found.is_certain and "does not have the address" in found.message, found
found = obstacle("127.0.0.1:82 interface eth7 namespace other")
assert found.is_certain and "eth7" in found.message, found
held.communicate()
"""


def test_a_bind_of_another_namespace_is_tried_there() -> None:
    script = f'mount -t tmpfs none /run && mkdir /run/netns && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        [
            *("unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net", "--mount"),
            *("sh", "-c", script, IN_ANOTHER_NAMESPACE),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
