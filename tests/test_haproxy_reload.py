"""A reload takes over without losses, or leaves everything as it was and reports the reason."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import supervise
from fc_frontend.haproxy.conflicts import endpoint_of
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.preflight import find_obstacles
from fc_frontend.haproxy.process import minimal_environment, run
from fc_frontend.haproxy.reload import (
    ReloadOutcome,
    confirm,
    reload_by_command,
    reload_by_master,
    unconfirmed,
)
from fc_frontend.haproxy.runtime import running_hash
from fc_frontend.haproxy.version import binary_version
from fc_frontend.plan.model import Bind
from tests.conftest import HASH, RealHaproxy, free_bind, until
from tests.test_haproxy_validate import ended

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 20.0
NEXT = "fedcba9876543210"
LAST = "00000000000000ff"


@contextmanager
def echoing() -> Iterator[Bind]:
    """Run an echo server in place of a pod; yield its bind."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def serve(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(1000):
                    connection.sendall(data)

        def accept() -> None:
            threads = []
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(None)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()
            for thread in threads:
                thread.join()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield Bind("ip", "127.0.0.1", listener.getsockname()[1])
        finally:
            stop.set()
            acceptor.join()


def echo(connection: socket.socket) -> bool:
    connection.sendall(b"ping")
    return connection.recv(10) == b"ping"


def connect(bind: Bind) -> socket.socket:
    return socket.create_connection((bind.host, bind.port or 0), timeout=TIMEOUT)


def reload(haproxy: RealHaproxy, timeout: float = TIMEOUT) -> ReloadOutcome:
    return reload_by_master(haproxy.master_socket, binary_version(haproxy.binary), timeout)


def test_a_reload_brings_the_new_configuration(haproxy: RealHaproxy) -> None:
    before = haproxy.start()
    haproxy.write(haproxy.configuration(hash_=NEXT))
    outcome = reload(haproxy)
    assert outcome.ok, outcome
    assert confirm(haproxy.runtime_socket, NEXT, TIMEOUT)
    now = haproxy.processes()
    assert (now.master, now.reloads, now.failed) == (before.master, 1, 0)
    assert now.worker not in (None, before.worker)


def test_many_reloads_in_a_row(haproxy: RealHaproxy) -> None:
    haproxy.start()
    for number in range(1, 8):
        haproxy.write(haproxy.configuration(hash_=f"{number:016x}"))
        assert reload(haproxy).ok
        assert confirm(haproxy.runtime_socket, f"{number:016x}", TIMEOUT)
        assert haproxy.processes().reloads == number


def test_an_old_worker_lives_on_with_its_connection(haproxy: RealHaproxy) -> None:
    bind = free_bind()
    with echoing() as pod:
        sections = ("backend pods", f"  server pod1 {pod}")
        first = haproxy.start(haproxy.configuration(*sections, binds=(bind,)))
        with connect(bind) as held:
            assert echo(held)
            for number, hash_ in enumerate((NEXT, LAST), start=1):
                haproxy.write(haproxy.configuration(*sections, binds=(bind,), hash_=hash_))
                assert reload(haproxy).ok
                assert confirm(haproxy.runtime_socket, hash_, TIMEOUT)
                said = haproxy.processes()
                old = {worker.pid: worker for worker in said.old_workers}
                assert first.worker in old
                assert old[first.worker].reloads == number
                assert said.worker not in old
                assert {first.worker, said.worker, said.master} <= said.pids
                assert find_obstacles([endpoint_of(bind)], owned_by=said.pids) == ()
                with connect(bind) as fresh:
                    assert echo(fresh)
            assert echo(held)
        until(lambda: first.worker not in haproxy.processes().pids)


def test_no_connection_is_lost(haproxy: RealHaproxy) -> None:
    bind = free_bind()
    lost: list[str] = []
    made = 0
    stop = threading.Event()
    with echoing() as pod:
        sections = ("backend pods", f"  server pod1 {pod}")
        haproxy.start(haproxy.configuration(*sections, binds=(bind,)))

        def use() -> None:
            nonlocal made
            while not stop.is_set():
                try:
                    with connect(bind) as connection:
                        if not echo(connection):
                            lost.append("closed")
                    made += 1
                except OSError as error:
                    lost.append(str(error))

        users = [threading.Thread(target=use) for _ in range(4)]
        for user in users:
            user.start()
        for number in range(5):
            hash_ = f"{number:016x}"
            haproxy.write(haproxy.configuration(*sections, binds=(bind,), hash_=hash_))
            seen = made
            until(lambda seen=seen: made > seen)  # type: ignore[misc]
            assert reload(haproxy).ok
            assert confirm(haproxy.runtime_socket, hash_, TIMEOUT)
        stop.set()
        for user in users:
            user.join()
    assert lost == []
    assert made > 0


def test_a_broken_file_leaves_the_old_worker(haproxy: RealHaproxy) -> None:
    before = haproxy.start()
    haproxy.write(haproxy.configuration("  nonsense", hash_=NEXT))
    outcome = reload(haproxy)
    assert not outcome.ok
    if binary_version(haproxy.binary).reload_answers:
        assert "unknown keyword '…'" in outcome.message
        assert "path to executable" not in outcome.message
    else:
        assert "its log has the reason" in outcome.message
    assert not confirm(haproxy.runtime_socket, NEXT, 0.1)
    assert running_hash(haproxy.runtime_socket) == HASH
    now = haproxy.processes()
    assert before.worker in now.pids
    assert (now.reloads, now.failed) == (1, 1)


def test_a_bind_held_elsewhere_fails_and_the_old_worker_goes_on(haproxy: RealHaproxy) -> None:
    bind = free_bind()
    taken = free_bind()
    with echoing() as pod, socket.create_server((taken.host, taken.port or 0)):
        sections = ("backend pods", f"  server pod1 {pod}")
        haproxy.start(haproxy.configuration(*sections, binds=(bind,)))
        with connect(bind) as held:
            assert echo(held)
            text = haproxy.configuration(*sections, binds=(bind, taken), hash_=NEXT)
            haproxy.write(text)
            outcome = reload(haproxy)
            assert not outcome.ok
            if binary_version(haproxy.binary).reload_answers:
                assert f"Address already in use) for [{taken}]" in outcome.message
            assert echo(held)
        assert running_hash(haproxy.runtime_socket) == HASH
        with connect(bind) as fresh:
            assert echo(fresh)
        assert haproxy.processes().failed == 1
    haproxy.write(text)
    assert reload(haproxy).ok
    assert confirm(haproxy.runtime_socket, NEXT, TIMEOUT)
    assert haproxy.processes().failed == 0


def test_warnings_of_a_good_reload_are_told(haproxy: RealHaproxy) -> None:
    haproxy.start()
    text = haproxy.configuration("backend pods", "  server pod1 192.0.2.1:80", hash_=NEXT)
    haproxy.write(text.replace("  timeout server 60s\n", ""))
    outcome = reload(haproxy)
    assert outcome.ok
    if binary_version(haproxy.binary).reload_answers:
        assert "missing timeouts" in outcome.message


def test_without_a_master_nothing_is_tried(short_directory: Path, haproxy_binary: str) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        reload_by_master(str(short_directory / "none"), binary_version(haproxy_binary), 0.2)


def test_a_master_that_hangs_costs_the_time_limit(haproxy: RealHaproxy) -> None:
    said = haproxy.start()
    os.kill(said.master, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="no complete answer"):
            reload(haproxy, 0.3)
    finally:
        os.kill(said.master, signal.SIGCONT)


def test_a_reload_that_takes_too_long_is_an_outcome(haproxy: RealHaproxy) -> None:
    """HAProxy retries for 2 s to bind an address that is in use."""
    taken = free_bind()
    haproxy.start()
    with socket.create_server((taken.host, taken.port or 0)):
        haproxy.write(haproxy.configuration(binds=(taken,), hash_=NEXT))
        outcome = reload(haproxy, 0.5)
    assert not outcome.ok
    assert "did not finish the reload within 0.5 s" in outcome.message
    until(lambda: haproxy.processes().reloads == 1)


def test_a_master_that_dies_is_an_outcome(haproxy: RealHaproxy) -> None:
    """The master re-executes its binary and cannot continue without it."""
    link = haproxy.directory / "haproxy"
    link.symlink_to(haproxy.binary)
    version = binary_version(haproxy.binary)
    haproxy.binary = str(link)
    said = haproxy.start()
    link.unlink()
    link.write_text("#!/bin/sh\nexit 1\n")
    link.chmod(0o755)
    reaper = threading.Thread(target=os.waitpid, args=(said.master, 0))
    reaper.start()
    outcome = reload_by_master(haproxy.master_socket, version, TIMEOUT)
    reaper.join()
    assert not outcome.ok
    assert f"master process {said.master} ended" in outcome.message


def test_a_command_reloads(haproxy: RealHaproxy) -> None:
    said = haproxy.start()
    haproxy.write(haproxy.configuration(hash_=NEXT))
    outcome = reload_by_command(["kill", "-USR2", str(said.master)], TIMEOUT)
    assert outcome == ReloadOutcome(True, "", outcome.duration)
    assert confirm(haproxy.runtime_socket, NEXT, TIMEOUT)


def test_a_command_that_fails_says_why() -> None:
    outcome = reload_by_command(["sh", "-c", "echo no such unit >&2; exit 5"], TIMEOUT)
    assert not outcome.ok
    assert outcome.message.endswith("ended with status 5: no such unit")


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "child"
    script = f"sleep 60 & echo $! >{marker}; wait"
    outcome = reload_by_command(["sh", "-c", script], 0.5)
    assert not outcome.ok
    assert "did not end within" in outcome.message
    child = Path("/proc") / marker.read_text().strip() / "stat"
    until(lambda: ended(child))


def test_a_command_may_leave_a_child_behind(tmp_path: Path) -> None:
    """The command's result does not wait for the child's open output."""
    marker = tmp_path / "child"
    outcome = reload_by_command(["sh", "-c", f"sleep 60 & echo $! >{marker}; echo done"], TIMEOUT)
    assert (outcome.ok, outcome.message) == (True, "done")
    assert not ended(Path("/proc") / marker.read_text().strip() / "stat")
    os.kill(int(marker.read_text()), signal.SIGKILL)


def test_a_command_that_floods_is_bounded() -> None:
    outcome = reload_by_command(["sh", "-c", "head -c 10000000 /dev/zero | tr '\\0' x"], TIMEOUT)
    assert outcome.ok
    assert len(outcome.message) == 4096


def test_a_missing_command_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="cannot be started"):
        reload_by_command(["/nowhere/systemctl"], TIMEOUT)


def test_programs_get_a_minimal_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    finished = run(["env"], timeout=TIMEOUT, limit=10_000)
    names = {line.partition("=")[0] for line in finished.output.splitlines()}
    assert names == set(minimal_environment()) == {"PATH", "LC_ALL"}


def test_confirm_waits_for_the_hash(haproxy: RealHaproxy) -> None:
    haproxy.write(haproxy.configuration())
    haproxy.launch()
    assert confirm(haproxy.runtime_socket, HASH, TIMEOUT)


def test_confirm_gives_up(short_directory: Path) -> None:
    assert not confirm(str(short_directory / "none"), HASH, 0.2)
    assert not confirm(str(short_directory / "none"), HASH, 0)


def test_what_was_not_confirmed_is_told() -> None:
    assert f"has the configuration {NEXT}" in unconfirmed(HASH, NEXT, 5).message
    assert "has no configuration of ours" in unconfirmed(HASH, None, 5).message


def start(haproxy: RealHaproxy, text: str | None = None, timeout: float = TIMEOUT) -> int:
    haproxy.write(text or haproxy.configuration())
    pid = supervise.start(
        haproxy.binary,
        haproxy.config_file,
        haproxy.master_socket,
        timeout=timeout,
        expected_hash=HASH,
        runtime_socket=haproxy.runtime_socket,
        output=str(haproxy.log),
    )
    haproxy.adopt(pid)
    return pid


def test_haproxy_is_started_and_found_again(haproxy: RealHaproxy) -> None:
    assert supervise.running(haproxy.master_socket) is None
    pid = start(haproxy)
    said = supervise.running(haproxy.master_socket)
    assert said is not None
    assert said.master == pid
    assert os.getsid(pid) == pid
    assert running_hash(haproxy.runtime_socket) == HASH
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert b"SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_started_haproxy_reloads(haproxy: RealHaproxy) -> None:
    start(haproxy)
    haproxy.write(haproxy.configuration(hash_=NEXT))
    assert reload(haproxy).ok
    assert confirm(haproxy.runtime_socket, NEXT, TIMEOUT)


def test_a_second_one_is_not_started(haproxy: RealHaproxy) -> None:
    pid = start(haproxy)
    with pytest.raises(Unavailable, match=rf"already runs .*process {pid}.* adopt it"):
        start(haproxy)
    assert show_proc(haproxy.master_socket).master == pid


OUTLIVED = """
import sys
from fc_frontend.haproxy import supervise
binary, config, master, runtime, expected = sys.argv[1:]
print(supervise.start(binary, config, master, timeout=20, expected_hash=expected,
                      runtime_socket=runtime), flush=True)
sys.stdin.read()
"""


def test_haproxy_outlives_us(haproxy: RealHaproxy) -> None:
    bind = free_bind()
    with echoing() as pod:
        text = haproxy.configuration("backend pods", f"  server pod1 {pod}", binds=(bind,))
        haproxy.write(text)
        argv = [haproxy.binary, haproxy.config_file, haproxy.master_socket, haproxy.runtime_socket]
        with (
            haproxy.log.open("wb") as log,
            subprocess.Popen(
                [sys.executable, "-c", OUTLIVED, *argv, HASH],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            ) as child,
        ):
            assert child.stdout is not None
            pid = int(child.stdout.readline())
            haproxy.adopt(pid)
            with connect(bind) as held:
                assert echo(held)
                child.kill()
                child.wait()
                assert echo(held)
                with connect(bind) as fresh:
                    assert echo(fresh)
        haproxy.write(text.replace(HASH, NEXT))
        assert reload(haproxy).ok
        assert confirm(haproxy.runtime_socket, NEXT, TIMEOUT)
        assert supervise.stop(
            pid, master_socket=haproxy.master_socket, graceful=False, timeout=TIMEOUT
        )


def test_a_reloading_haproxy_is_waited_for(haproxy: RealHaproxy) -> None:
    """On 2.6, the socket has no listener while the master retries a failed bind for 2 s."""
    pid = start(haproxy)
    taken = free_bind()
    with socket.create_server((taken.host, taken.port or 0)):
        haproxy.write(haproxy.configuration(binds=(taken,), hash_=NEXT))
        os.kill(pid, signal.SIGUSR2)
        until(lambda: haproxy.log.read_text().count("Reloading HAProxy"))
        with pytest.raises(Unavailable, match=r"already runs|cannot be reached"):
            start(haproxy, Path(haproxy.config_file).read_text())
        said = supervise.running(haproxy.master_socket, TIMEOUT)
        assert said is not None
        assert said.master == pid


def test_a_file_that_haproxy_refuses_is_told_in_its_words(haproxy: RealHaproxy) -> None:
    with pytest.raises(Unavailable, match=r"did not start: it ended at once: .*keyword '…'"):
        start(haproxy, haproxy.configuration("  nonsense"))
    assert supervise.running(haproxy.master_socket) is None


def test_a_bind_that_is_held_is_told_in_haproxys_words(haproxy: RealHaproxy) -> None:
    taken = free_bind()
    with (
        socket.create_server((taken.host, taken.port or 0)),
        pytest.raises(Unavailable, match=r"Address already in use"),
    ):
        start(haproxy, haproxy.configuration(binds=(taken,)))


def test_words_that_went_elsewhere_are_asked_for_again(haproxy: RealHaproxy) -> None:
    """Standard error is a pipe here; under systemd it is a socket."""
    haproxy.write(haproxy.configuration("  nonsense"))
    argv = [haproxy.binary, haproxy.config_file, haproxy.master_socket, haproxy.runtime_socket]
    finished = subprocess.run(
        [sys.executable, "-c", OUTLIVED, *argv, HASH],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=b"",
        capture_output=True,
        check=False,
    )
    last = finished.stderr.decode().strip().splitlines()[-1]
    assert re.search(r"Unavailable: .*did not start.*haproxy\.cfg:\d+.*'…'", last)


def test_another_configuration_than_expected_is_ended(haproxy: RealHaproxy) -> None:
    with pytest.raises(Unavailable, match="does not have the expected configuration"):
        start(haproxy, haproxy.configuration(hash_=NEXT), timeout=4)
    assert supervise.running(haproxy.master_socket) is None
    with pytest.raises(Unavailable):
        running_hash(haproxy.runtime_socket)


def test_a_binary_that_cannot_run_is_told(haproxy: RealHaproxy) -> None:
    haproxy.binary = "/nowhere/haproxy"
    with pytest.raises(Unavailable, match="cannot be started"):
        start(haproxy)


@pytest.mark.parametrize("graceful", [True, False])
def test_haproxy_is_ended(haproxy: RealHaproxy, graceful: bool) -> None:
    pid = start(haproxy)
    socket_ = haproxy.master_socket
    assert supervise.stop(pid, master_socket=socket_, graceful=graceful, timeout=TIMEOUT)
    assert supervise.running(socket_) is None
    assert not Path(f"/proc/{pid}").exists()
    assert supervise.stop(pid, master_socket=socket_, graceful=graceful, timeout=TIMEOUT)


def test_a_graceful_end_waits_for_connections(haproxy: RealHaproxy) -> None:
    bind = free_bind()
    with echoing() as pod:
        text = haproxy.configuration("backend pods", f"  server pod1 {pod}", binds=(bind,))
        pid = start(haproxy, text)
        with connect(bind) as held:
            assert echo(held)
            assert not supervise.stop(
                pid, master_socket=haproxy.master_socket, graceful=True, timeout=0.3
            )
            assert echo(held)
        until(lambda: supervise.running(haproxy.master_socket) is None)


def test_only_the_master_that_is_meant_is_ended(haproxy: RealHaproxy) -> None:
    pid = start(haproxy)
    with subprocess.Popen(["sleep", "60"]) as innocent:
        with pytest.raises(Unavailable, match=f"is not the HAProxy master .* which is {pid}"):
            supervise.stop(
                innocent.pid, master_socket=haproxy.master_socket, graceful=False, timeout=1
            )
        assert innocent.poll() is None
        with pytest.raises(Unavailable, match="cannot be reached"):
            supervise.stop(innocent.pid, master_socket="/nowhere", graceful=False, timeout=1)
        assert innocent.poll() is None
        innocent.kill()
    assert supervise.running(haproxy.master_socket) is not None
