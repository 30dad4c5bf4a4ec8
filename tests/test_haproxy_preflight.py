"""The preflight finds problems that `haproxy -c` misses, and agrees with HAProxy's behaviour."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.conflicts import endpoint_of
from fc_frontend.haproxy.descriptors import (
    RESERVED,
    check_file_descriptors,
    descriptor_limit,
    file_descriptors_needed,
)
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.preflight import Obstacle, find_obstacles
from fc_frontend.haproxy.rights import Capability, rights_in
from fc_frontend.plan.model import Bind
from fc_frontend.syntax.demand import Demand, demand_of
from tests.conftest import RealHaproxy, free_bind, free_port, loopback, until

NOBODY = 65534
NONE: frozenset[int] = frozenset()
ABSENT = "203.0.113.7"


@contextmanager
def listening(
    bind: Bind,
    *,
    v6only: bool = False,
    listen: bool = True,
    reuse: bool = True,
    share: bool = False,
) -> Iterator[socket.socket]:
    """Yield a socket of this process on `bind`."""
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    with socket.socket(family) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        holder.bind(("" if bind.host == "*" else bind.host, bind.port))
        if listen:
            holder.listen()
        yield holder


@contextmanager
def foreign_process(bind: Bind, name: str = "python3") -> Iterator[int]:
    """Yield the ID of another process, which is called `name` and listens on `bind`."""
    script = (
        "import socket, sys\n"
        "open('/proc/self/comm', 'w').write(sys.argv[3])\n"
        "s = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, bind.host, str(bind.port), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate()


def check_binds(
    binds: Iterable[Bind],
    *,
    owned_by: frozenset[int],
    v6only: frozenset[Bind] = frozenset(),
) -> tuple[Obstacle, ...]:
    """Return what prevents HAProxy from using the binds; those in `v6only` have that option."""
    endpoints = [
        replace(endpoint_of(bind), v6only=True, ipv4=None) if bind in v6only else endpoint_of(bind)
        for bind in binds
    ]
    return find_obstacles(endpoints, owned_by=owned_by)


def as_nobody(check: Callable[[], Iterable[Obstacle]]) -> list[str]:
    """Run `check` as a user who may not inspect other users' processes, and return its findings."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        sender.send([f"{found.message} → {found.remedy}" for found in check()])

    process = context.Process(target=child)
    process.start()
    sender.close()
    found: list[str] = receiver.recv()
    process.join()
    receiver.close()
    process.close()
    return found


def privileged_port() -> int:
    while True:
        port = random.randint(200, 1000)
        with contextlib.suppress(OSError), listening(Bind("ip", "::", port)):
            return port


def starts(haproxy: RealHaproxy, text: str, descriptors: int | None = None) -> bool:
    """Return whether HAProxy really starts with `text`.

    Its master may end after the worker has started, so both must answer.
    """
    haproxy.write(text)
    process = haproxy.launch(descriptors=descriptors)

    def settled() -> str | None:
        if process.poll() is not None:
            return "ended"
        try:
            found = runtime.running_hash(haproxy.runtime_socket)
            show_proc(haproxy.master_socket)
            return found
        except Unavailable:
            return None

    found = until(settled)
    haproxy.end()
    return found != "ended"


def test_a_free_bind_is_no_problem() -> None:
    free = free_bind()
    wanted = [free, Bind("ip", "*", free_port()), Bind("ip", "::", free_port())]
    assert check_binds(wanted, owned_by=NONE) == ()
    with listening(free):
        pass


def test_the_holder_is_named() -> None:
    bind = free_bind()
    with foreign_process(bind) as pid:
        (problem,) = check_binds([bind], owned_by=NONE)
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    assert problem.message == f"{bind} is in use by {name} (process {pid})"
    assert problem.remedy.startswith(f"stop {name} (process {pid})")


@pytest.mark.parametrize("name", ["kube-proxy", "k3s-server", "kube-controller", "traefik"])
def test_nobody_is_told_to_stop_a_part_of_the_cluster(name: str) -> None:
    bind = free_bind()
    with foreign_process(bind, name) as pid:
        (problem,) = check_binds([bind], owned_by=NONE)
    assert problem.message == f"{bind} is in use by {name} (process {pid})"
    assert problem.remedy.startswith("use another address or port")


def test_a_wildcard_is_held_by_one_address(haproxy: RealHaproxy) -> None:
    bind = free_bind()
    with foreign_process(bind) as pid:
        (problem,) = check_binds([Bind("ip", "*", bind.port)], owned_by=NONE)
    assert str(pid) in problem.message


HOLDERS = [("address", False), ("*", False), ("::", False), ("::", True), ("::1", False)]


def port_free_everywhere() -> int:
    """Return a port that is free on every address of this host."""
    while True:
        port = random.randint(10_000, 30_000)
        with contextlib.suppress(OSError), listening(Bind("ip", "::", port)):
            return port


@pytest.mark.parametrize(("held", "held_v6only"), HOLDERS)
@pytest.mark.parametrize(("wanted", "v6only"), HOLDERS)
def test_the_trial_agrees_with_haproxy(
    haproxy: RealHaproxy, held: str, held_v6only: bool, wanted: str, v6only: bool
) -> None:
    address = loopback()
    port = port_free_everywhere()
    holder = Bind("ip", address if held == "address" else held, port)
    bind = Bind("ip", address if wanted == "address" else wanted, port)
    text = haproxy.configuration(binds=(bind,))
    if v6only:
        text = text.replace(f"bind {bind}", f"bind {bind} v6only")
    with listening(holder, v6only=held_v6only):
        found = check_binds([bind], owned_by=NONE, v6only=frozenset({bind} if v6only else ()))
        assert starts(haproxy, text) == (not found)


def test_haproxys_own_binds_are_no_problem(haproxy: RealHaproxy) -> None:
    binds = tuple(free_bind() for _ in range(5))
    said = haproxy.start(haproxy.configuration(binds=binds))
    assert check_binds(binds, owned_by=said.pids) == ()
    assert check_binds(binds, owned_by=frozenset({said.master})) == ()
    found = check_binds(binds, owned_by=NONE)
    assert len(found) == 5
    assert all(f"haproxy (process {said.worker})" in problem.message for problem in found)


def test_haproxys_own_bind_does_not_hide_a_foreign_one(haproxy: RealHaproxy) -> None:
    own = free_bind()
    said = haproxy.start(haproxy.configuration(binds=(own,)))
    other = Bind("ip", loopback(), own.port)
    with foreign_process(other) as pid:
        (problem,) = check_binds([Bind("ip", "*", own.port)], owned_by=said.pids)
    assert f"process {pid}" in problem.message
    assert check_binds([Bind("ip", "*", own.port)], owned_by=said.pids) == ()


def test_a_wildcard_over_ipv6_alone_is_not_blamed(haproxy: RealHaproxy) -> None:
    own = free_bind()
    said = haproxy.start(haproxy.configuration(binds=(own,)))
    with listening(Bind("ip", "::", own.port), v6only=True):
        assert check_binds([own], owned_by=said.pids) == ()


def test_a_holder_that_would_share_is_a_problem(haproxy: RealHaproxy) -> None:
    """HAProxy would start, and lose part of the traffic to the other process."""
    bind = free_bind()
    with listening(bind, share=True):
        assert len(check_binds([bind], owned_by=NONE)) == 1
        assert starts(haproxy, haproxy.configuration(binds=(bind,)))


def test_a_port_without_a_listener_can_be_held(haproxy: RealHaproxy) -> None:
    """An outgoing connection holds its own port like this."""
    bind = free_bind()
    with listening(bind, listen=False, reuse=False):
        (problem,) = check_binds([bind], owned_by=NONE)
        assert not starts(haproxy, haproxy.configuration(binds=(bind,)))
    assert problem.message == f"{bind} is in use by another process"


def test_an_address_of_another_host_is_a_problem(haproxy: RealHaproxy) -> None:
    bind = Bind("ip", ABSENT, 8080)
    (problem,) = check_binds([bind], owned_by=NONE)
    assert "does not have the address" in problem.message
    assert "net.ipv4.ip_nonlocal_bind=1" in problem.remedy
    assert not starts(haproxy, haproxy.configuration(binds=(bind,)))
    (problem,) = check_binds([Bind("ip", "2001:db8::1", 8080)], owned_by=NONE)
    assert "net.ipv6.ip_nonlocal_bind=1" in problem.remedy


def test_a_holder_that_we_may_not_see_is_a_problem() -> None:
    bind = free_bind()
    with foreign_process(bind) as pid:
        (said,) = as_nobody(lambda: check_binds([bind], owned_by=NONE))
    if os.geteuid() == 0:
        assert f"{bind} is in use by another process" in said
        assert "ss -tanpx" in said
    else:
        assert str(pid) in said


def test_a_privileged_port_is_compared_with_who_listens() -> None:
    host = loopback()
    port = privileged_port() if os.geteuid() == 0 else free_port(host)
    bind = Bind("ip", host, port)
    assert as_nobody(lambda: check_binds([bind], owned_by=NONE)) == []
    with listening(Bind("ip", loopback(), port)):
        assert as_nobody(lambda: check_binds([bind], owned_by=NONE)) == []
    with listening(bind):
        (said,) = as_nobody(lambda: check_binds([bind], owned_by=NONE))
    assert str(bind) in said


def test_trying_disturbs_no_listener() -> None:
    bind = free_bind()
    failed: list[OSError] = []
    stop = threading.Event()
    connected = 0
    with listening(bind) as holder:

        def connect() -> None:
            nonlocal connected
            while not stop.is_set():
                try:
                    with socket.create_connection((bind.host, bind.port or 0), timeout=5):
                        holder.accept()[0].close()
                        connected += 1
                except OSError as error:
                    failed.append(error)

        thread = threading.Thread(target=connect)
        thread.start()
        until(lambda: connected)
        owned = frozenset({os.getpid()})
        for _ in range(30):
            assert check_binds([bind], owned_by=owned) == ()
        before = connected
        until(lambda: connected > before)
        stop.set()
        thread.join()
    assert failed == []


def test_a_unix_bind_needs_its_directory(haproxy: RealHaproxy) -> None:
    directory = haproxy.directory
    (directory / "file").touch()
    (directory / "folder").mkdir()
    broken = {
        str(directory / "none" / "s"): "does not exist",
        str(directory / "file" / "s"): "is not a directory",
        str(directory / "folder"): "is a directory",
    }
    for path, reason in broken.items():
        bind = Bind("unix", path)
        (problem,) = check_binds([bind], owned_by=NONE)
        assert reason in problem.message
        assert problem.remedy
        assert not starts(haproxy, haproxy.configuration(binds=(bind,)))


def test_a_unix_bind_does_not_replace_what_is_not_its_own(haproxy: RealHaproxy) -> None:
    """HAProxy would replace a file, and also a socket on which another process listens."""
    file = haproxy.directory / "file"
    file.touch()
    (problem,) = check_binds([Bind("unix", str(file))], owned_by=NONE)
    assert "not a socket, and HAProxy would replace it" in problem.message
    live = haproxy.directory / "live"
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(live))
        holder.listen()
        (problem,) = check_binds([Bind("unix", str(live))], owned_by=NONE)
        assert f"process {os.getpid()}" in problem.message
    assert check_binds([Bind("unix", str(live))], owned_by=NONE) == ()
    assert starts(haproxy, haproxy.configuration(binds=(Bind("unix", str(live)),)))


def test_haproxys_own_unix_binds_are_no_problem(haproxy: RealHaproxy) -> None:
    bind = Bind("unix", str(haproxy.directory / "own"))
    name = f"fcf-{random.getrandbits(48):x}"
    abstract = Bind("abns", name)
    free = Bind("unix", str(haproxy.directory / "free"))
    said = haproxy.start(haproxy.configuration(binds=(bind, abstract)))
    assert check_binds([bind, abstract, free], owned_by=said.pids) == ()
    (problem,) = check_binds([abstract], owned_by=NONE)
    assert f"process {said.worker}" in problem.message


def test_an_abstract_name_is_tried_as_haproxy_binds_it(haproxy: RealHaproxy) -> None:
    name = f"fcf-{random.getrandbits(48):x}"
    bind = Bind("abns", name)
    text = haproxy.configuration(binds=(bind,))
    short = b"\0" + name.encode()
    for shown, held in ((short, False), (short.ljust(108, b"\0"), True)):
        with socket.socket(socket.AF_UNIX) as holder:
            holder.bind(shown)
            holder.listen()
            assert bool(check_binds([bind], owned_by=NONE)) == held
            assert starts(haproxy, text) != held


def test_what_we_may_not_look_at_is_no_problem(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    closed.chmod(0o000)
    assert as_nobody(lambda: check_binds([Bind("unix", f"{closed}/x/s")], owned_by=NONE)) == []
    closed.chmod(0o700)


def test_many_binds_cost_little_even_among_many_connections() -> None:
    with ExitStack() as stack:
        binds = [free_bind() for _ in range(200)]
        holders = [stack.enter_context(listening(bind)) for bind in binds]
        for bind in binds:
            for _ in range(5):
                address = (bind.host, bind.port or 0)
                stack.enter_context(socket.create_connection(address))
        started = time.process_time()
        assert len(check_binds(binds, owned_by=NONE)) == 200
        assert time.process_time() - started < 2
        assert check_binds(binds, owned_by=frozenset({os.getpid()})) == ()
        assert len(holders) == 200


@pytest.mark.parametrize("slots", [100, 1000])
@pytest.mark.parametrize("binds", [1, 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_descriptors_that_we_ask_for_are_enough_and_not_far_more(
    haproxy: RealHaproxy, slots: int, binds: int, threads: int
) -> None:
    text = haproxy.configuration(
        "backend pods",
        f"  server-template pod {slots} 192.0.2.1:80 check inter 1h",
        binds=tuple(free_bind() for _ in range(binds)),
        settings=(f"nbthread {threads}",),
    )
    needed = file_descriptors_needed(demand_of(text), binds + 1)
    assert starts(haproxy, text, needed), haproxy.log.read_text()
    assert not starts(haproxy, text, needed - RESERVED + 31)


@pytest.mark.parametrize(("maxconn", "splice"), [(50, False), (1000, False), (1000, True)])
def test_connections_take_descriptors(haproxy: RealHaproxy, maxconn: int, splice: bool) -> None:
    text = haproxy.configuration(
        "backend pods",
        "  option splice-auto" if splice else "",
        "  server-template pod 10 192.0.2.1:80 check inter 1h",
        "  server-template plain 100 192.0.2.1:80",
        settings=("nbthread 1", f"maxconn {maxconn}"),
    )
    needed = file_descriptors_needed(demand_of(text), 2)
    assert starts(haproxy, text, needed), haproxy.log.read_text()
    # The master counts at least 100 connections: 179 are enough for the worker with 50.
    too_few = 179 if maxconn == 50 else needed - RESERVED + 31
    assert not starts(haproxy, text, too_few)


CHECKS = {
    "both checks": (
        "backend pods",
        "  server-template pod 200 192.0.2.1:80 check inter 1h agent-check agent-port 9",
    ),
    "by default": (
        "defaults checked",
        "  default-server inter 1h check agent-check agent-port 9",
        "backend pods from checked",
        "  server-template pod 100-299 192.0.2.1:80",
        "  server-template plain 200 192.0.2.1:80 no-check no-agent-check",
    ),
    "inherited": (
        "defaults checked",
        "  default-server inter 1h check",
        "defaults both from checked",
        "  default-server agent-check agent-port 9",
        "backend pods from both",
        "  server-template pod 200 192.0.2.1:80 no-agent-check",
        "backend plain from checked",
        "  default-server no-check",
        "  server-template pod 200 192.0.2.1:80",
    ),
    "quoted": (
        "backend pods",
        "  default-server 'check' inter 1h",
        '  "server-template" pod 2"00" 192.0.2.1:80',
    ),
}
"""Sections with at least 200 checks."""


@pytest.mark.parametrize("kind", CHECKS)
def test_checks_are_counted_as_haproxy_does(haproxy: RealHaproxy, kind: str) -> None:
    text = haproxy.configuration(*CHECKS[kind], settings=("nbthread 1",))
    demand = demand_of(text)
    assert demand.checks >= 200
    needed = file_descriptors_needed(demand, 2)
    assert starts(haproxy, text, needed), haproxy.log.read_text()
    assert not starts(haproxy, text, needed - RESERVED + 31)


def test_a_start_that_would_fail_is_told(haproxy: RealHaproxy) -> None:
    needed = file_descriptors_needed(Demand(1000), 2)
    assert check_file_descriptors(needed, needed) is None
    problem = check_file_descriptors(needed, 1024)
    assert problem is not None
    assert f"needs {needed} file descriptors for this configuration and may have 1024" in str(
        problem
    )
    assert "LimitNOFILE=" in problem.remedy


def test_the_limit_is_that_of_the_running_haproxy(haproxy: RealHaproxy) -> None:
    haproxy.write(haproxy.configuration())
    process = haproxy.launch(descriptors=777)
    until(lambda: Path(haproxy.master_socket).exists())
    assert descriptor_limit(process.pid) == 777
    assert descriptor_limit(None) >= 1024
    assert descriptor_limit(2**22 + 1) == descriptor_limit(None)


@pytest.mark.parametrize(("capabilities", "raises"), [("000001ffffffffff", True), ("0", False)])
def test_who_may_raise_limits_is_bound_by_the_kernel_alone(capabilities: str, raises: bool) -> None:
    """Use the text of /proc/<pid>/status: a process with this capability may not be available."""
    status = "Name:\thaproxy\nUid:\t0\t99\t0\t0\nGid:\t0\t7\t0\t0\nGroups:\t4 5\n"
    rights = rights_in(f"{status}CapEff:\t{capabilities}\n")
    assert rights is not None
    assert rights.has(Capability.SYS_RESOURCE) is raises
    assert (rights.user, rights.groups) == (99, (7, 4, 5))
    assert rights_in(status) is None
