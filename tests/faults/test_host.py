"""Faults of the host around the daemon: disks, programs, sockets, limits, signals, clocks."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.socket import ask
from tests.conftest import binary_of
from tests.faults.site import EXTRA, SERVICES, Site, Sites, put
from tests.support.frontend import Frontend

MOUNTED = "mounted"
"""The mount point of a separate file system that can be full or read-only."""


@contextlib.contextmanager
def own_site(
    *launcher: str,
    prepare: Callable[[Frontend], object] = lambda _: None,
    binary: str | None = None,
    **haproxy: Any,
) -> Iterator[Site]:
    """Run a site under load whose daemon, and with it HAProxy, is started by `launcher`."""
    with Frontend(binary or binary_of("2.6-debian")) as frontend:
        frontend.launcher = launcher
        prepare(frontend)
        site = Site(frontend)
        site.start(**haproxy)
        with site.loaded():
            yield site


def shell(script: str, *arguments: str, flags: str = "--mount") -> tuple[str, ...]:
    """Return a launcher that runs `script` in new namespaces first, with `arguments` as $1…"""
    count = len(arguments)
    return (
        *("unshare", *flags.split(), "/bin/sh", "-euc", f'{script}; shift {count}; exec "$@"'),
        *("sh", *arguments),
    )


def extra_is_served(site: Site) -> None:
    name, port = EXTRA
    site.frontend.until(lambda: site.frontend.ask(port) == f"{name}-1")
    site.frontend.until(site.frontend.ready)


def extra_is_not_served(site: Site) -> None:
    with contextlib.suppress(OSError), socket.create_connection((site.frontend.host, EXTRA[1]), 1):
        raise AssertionError("it is served")


def daemon(site: Site) -> subprocess.Popen[bytes]:
    assert site.frontend.daemon is not None
    return site.frontend.daemon


def until_said(site: Site, event: str, words: str) -> None:
    """Wait until an event with these words is logged; the daemon must be alive and healthy."""
    site.frontend.until(lambda: any(words in line for line in site.frontend.events(event)))
    assert daemon(site).poll() is None
    assert site.frontend.get("/healthz")[0] == 200


# Disks


@contextlib.contextmanager
def on_own_disk(what: str) -> Iterator[Site]:
    """Run a site whose config or state, by `what`, is on a file system of 256 KiB."""

    def prepare(frontend: Frontend) -> None:
        mounted = frontend.directory / MOUNTED
        mounted.mkdir()
        frontend.launcher = shell('mount -t tmpfs -o size=256k none "$1"', str(mounted))
        if what == "config":
            frontend.settings["haproxy"]["config_file"] = str(mounted / "haproxy.cfg")
        else:
            frontend.settings["state_directory"] = str(mounted / "state")

    with own_site(prepare=prepare) as site:
        site.frontend.haproxy_cfg = inside(site, site.frontend.settings["haproxy"]["config_file"])
        yield site


def inside(site: Site, path: str | Path) -> Path:
    """Return the path of a file in the daemon's mount namespace."""
    return Path(f"/proc/{daemon(site).pid}/root{path}")


def remount(site: Site, how: str) -> None:
    mounted = site.frontend.directory / MOUNTED
    argv = ["nsenter", "-t", str(daemon(site).pid), "-m", "mount", "-o", f"remount,{how}"]
    subprocess.run([*argv, str(mounted)], check=True)


def fill(directory: Path) -> Path:
    """Fill the file system with one file, and return its path."""
    path = directory / "filler"
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return path


def nothing_half_done(site: Site, text: bytes, running: str | None) -> None:
    frontend = site.frontend
    assert frontend.haproxy_cfg.read_bytes() == text
    assert frontend.running_hash() == running
    left = [path.name for path in frontend.haproxy_cfg.parent.iterdir() if "tmp" in path.suffix]
    assert not left
    site.file_is_good()
    extra_is_not_served(site)
    assert not frontend.ready()


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("config", "full"),
        ("state", "read-only"),
        pytest.param("config", "read-only", marks=pytest.mark.extended),
        pytest.param("state", "full", marks=pytest.mark.extended),
    ],
)
def test_a_disk_that_takes_nothing_more(what: str, fault: str) -> None:
    with on_own_disk(what) as site:
        frontend = site.frontend
        text, running = frontend.haproxy_cfg.read_bytes(), frontend.running_hash()
        if fault == "full":
            filler = fill(inside(site, frontend.directory / MOUNTED))
        else:
            remount(site, "ro")
        site.declare(*EXTRA)
        until_said(site, "reload-failed", "No space" if fault == "full" else "Read-only")
        nothing_half_done(site, text, running)
        # Pods are still followed: HAProxy does that by itself.
        pods = frontend.scale("cart", 4)
        frontend.until(lambda: frontend.serves(SERVICES["cart"], pods))
        site.still_serve()
        if fault == "full":
            filler.unlink()
        else:
            remount(site, "rw")
        extra_is_served(site)
        site.is_mended()


@pytest.mark.parametrize("what", ["missing", "a-file"])
def test_a_state_directory_that_cannot_be_made(what: str) -> None:
    with on_own_disk("state") as site:
        state = inside(site, site.frontend.settings["state_directory"])
        shutil.rmtree(state)
        if what == "missing":
            remount(site, "ro")
        else:
            state.touch()
        site.declare(*EXTRA)
        until_said(site, "reload-failed", str(site.frontend.settings["state_directory"]))
        site.still_serve()
        if what == "missing":
            remount(site, "rw")
        else:
            state.unlink()
        extra_is_served(site)
        site.is_mended()


# The HAProxy binary


class Wrapped:
    """A wrapper that runs the real HAProxy, unless its `mode` selects a fault."""

    def __init__(self, directory: Path, real: str) -> None:
        self.path = directory / "haproxy-wrapped"
        self._mode = directory / "mode"
        self._count = directory / "count"
        self.mode = "good"
        self.path.write_text(
            f"""#!/bin/sh
case " $* " in *" -c "*) ;; *) exec {real} "$@";; esac
echo x >> {self._count}
case "$(cat {self._mode})" in
    hang) exec sleep 1000;;
    kill) kill -KILL $$;;
    noise) head -c 20000000 /dev/zero >&2; exit 1;;
    second-killed) [ "$(wc -l < {self._count})" -lt 2 ] || kill -KILL $$;;
esac
exec {real} "$@"
"""
        )
        self.path.chmod(0o755)

    @property
    def mode(self) -> str:
        return self._mode.read_text()

    @mode.setter
    def mode(self, mode: str) -> None:
        put(self._mode, mode)
        self._count.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def wrapped_sites() -> Iterator[Sites]:
    def prepare(frontend: Frontend) -> None:
        program = Wrapped(frontend.directory, frontend.binary)
        frontend.settings["haproxy"]["binary"] = str(program.path)

    with Sites(lambda: own_site(prepare=prepare, check_timeout="3s")) as made:
        yield made


@pytest.fixture
def wrapped(wrapped_sites: Sites) -> Iterator[tuple[Site, Wrapped]]:
    with wrapped_sites.lent() as site:
        yield site, Wrapped(site.frontend.directory, site.frontend.binary)
        site.without_extra()
        site.is_mended()


@pytest.mark.parametrize(
    ("fault", "event", "said"),
    [
        pytest.param(
            "missing", "reload-failed", "there is no HAProxy binary", marks=pytest.mark.extended
        ),
        pytest.param(
            "not-executable", "reload-failed", "may not be executed", marks=pytest.mark.extended
        ),
        ("no-program", "reload-failed", "cannot be started"),
        # A check that exceeds its limits counts as refused; here, no changed unit is to blame.
        ("hang", "config-refused", "did not end within"),
        ("kill", "config-refused", "was killed by SIGKILL"),
    ],
)
def test_a_haproxy_that_cannot_judge_refuses_nothing_for_good(
    wrapped: tuple[Site, Wrapped], fault: str, event: str, said: str
) -> None:
    site, program = wrapped
    frontend = site.frontend
    text, running = frontend.haproxy_cfg.read_bytes(), frontend.running_hash()
    content = program.path.read_text()
    if fault == "missing":
        program.path.unlink()
    elif fault == "not-executable":
        program.path.chmod(0o644)
    elif fault == "no-program":
        program.path.write_text("#!/nowhere\n")
    else:
        program.mode = fault
    site.declare(*EXTRA)
    until_said(site, event, said)
    nothing_half_done(site, text, running)
    assert not site.held()
    site.still_serve()
    put(program.path, content)
    program.path.chmod(0o755)
    program.mode = "good"
    extra_is_served(site)
    site.is_mended()


def test_a_haproxy_killed_in_the_search_for_a_culprit_blames_nobody(
    wrapped: tuple[Site, Wrapped],
) -> None:
    site, program = wrapped
    frontend = site.frontend
    program.mode = "second-killed"
    names = [f"n{number}" for number in range(4)]
    batch = frontend.directory / "batch"
    shutil.copytree(frontend.services_d, batch)
    (batch / "zz.cfg").write_text("frontend unheard-of\n  mode http\n  default_backend no\n")
    frontend.services_d.rename(frontend.directory / "before")
    for number, name in enumerate(names):
        frontend.services_d = batch
        site.declare(name, 10100 + number, service="extra")
    frontend.services_d = frontend.directory / "services.d"
    batch.rename(frontend.services_d)
    until_said(site, "config-refused", "was killed by SIGKILL")
    assert not site.held()
    site.still_serve()
    program.mode = "good"
    site.until_held({("fragment", "zz"): "not deployed"})
    for number in range(len(names)):
        frontend.until(lambda port=10100 + number: frontend.ask(port) == "extra-1")
    for path in [*map(site.file, names), frontend.services_d / "zz.cfg"]:
        path.unlink()


# HAProxy's sockets and processes


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    with Sites(lambda: own_site(binary=binary_of("2.8-wheel"), reload_timeout="5s")) as made:
        yield made


@pytest.fixture
def site(sites: Sites) -> Iterator[Site]:
    """A site for all cases of this module that leave it unchanged."""
    with sites.lent() as made:
        yield made
        made.without_extra()
        made.shrink("cart", 2)
        made.is_mended()
        made.all_serve()


GARBAGE = b"\xff\0garbage;\n" * 100


class Impostor:
    """A listener in place of HAProxy's socket that answers `answer`, or never."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._taken: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken = self._listener.accept()[0]
                self._taken.append(taken)
                if self._answer is not None:
                    with taken:
                        taken.sendall(self._answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for taken in self._taken:
            taken.close()


@pytest.mark.parametrize(
    "answer", [pytest.param("missing", marks=pytest.mark.extended), "silent", "garbage"]
)
def test_a_master_socket_that_does_not_work(site: Site, answer: str) -> None:
    frontend = site.frontend
    path = frontend.directory / "master.sock"
    text, running = frontend.haproxy_cfg.read_bytes(), frontend.running_hash()
    aside = path.with_name("aside")
    path.rename(aside)
    impostor = None
    if answer != "missing":
        impostor = Impostor(path, GARBAGE if answer == "garbage" else None)
    site.declare(*EXTRA)
    failed = len(frontend.events("reload-failed"))
    frontend.until(lambda: len(frontend.events("reload-failed")) > failed)
    assert daemon(site).poll() is None
    nothing_half_done(site, text, running)
    site.still_serve()
    if impostor:
        impostor.close()
    aside.rename(path)
    extra_is_served(site)
    site.is_mended()


@pytest.mark.parametrize("answer", ["silent", "garbage"])
def test_a_runtime_socket_that_does_not_work(site: Site, answer: str) -> None:
    """Without proof that HAProxy runs a configuration, the daemon is not ready."""
    frontend = site.frontend
    path = frontend.directory / "admin.sock"
    aside = path.with_name("aside")
    path.rename(aside)
    impostor = Impostor(path, GARBAGE if answer == "garbage" else None)
    frontend.until(lambda: not frontend.ready())
    site.still_serve()
    assert daemon(site).poll() is None
    impostor.close()
    aside.rename(path)
    frontend.until(frontend.ready)
    site.declare(*EXTRA)
    extra_is_served(site)
    site.is_mended()


@pytest.mark.parametrize("victim", ["master", "worker"])
def test_a_haproxy_that_crashes_is_started_again_whatever_cluster_dns_does(victim: str) -> None:
    with Frontend(binary_of("2.6-debian")) as frontend:
        site = Site(frontend)
        site.start()
        # After the crash, only the pods of the last DNS answers are known.
        host, port = frontend.dns.address
        frontend.call(frontend.dns.stop())
        processes = show_proc(str(frontend.directory / "master.sock"))
        pid = processes.master if victim == "master" else processes.worker
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        frontend.until(lambda: frontend.events("config-started")[1:])
        with site.loaded():
            site.all_serve()
            site.is_mended()
        frontend.dns = type(frontend.dns)(address=host, port=port)
        frontend.call(frontend.dns.start())


def test_a_haproxy_that_others_reloaded_gets_what_is_declared(site: Site) -> None:
    frontend = site.frontend
    running = frontend.running_hash()
    assert running
    text = frontend.haproxy_cfg.read_text()
    put(frontend.haproxy_cfg, text.replace(f"fc-frontend:{running}", "somebody-elses"))
    ask(str(frontend.directory / "master.sock"), "reload", 10)
    frontend.until(lambda: frontend.running_hash() != running)
    frontend.until(lambda: frontend.ready() and frontend.running_hash() == running)
    assert frontend.haproxy_cfg.read_text() == text
    site.is_mended()


@pytest.mark.parametrize("content", [b"edited by hand\n", b"", None], ids=["edited", "empty", "no"])
def test_an_output_file_that_somebody_edited(site: Site, content: bytes | None) -> None:
    frontend = site.frontend
    if content is None:
        frontend.haproxy_cfg.unlink()
    else:
        frontend.haproxy_cfg.write_bytes(content)
    site.still_serve()
    site.declare(*EXTRA)
    extra_is_served(site)
    site.is_mended()


# The daemon's own limits


def test_services_stay_while_their_directory_is_gone(site: Site) -> None:
    frontend = site.frontend
    texts = {path.name: path.read_text() for path in frontend.services_d.iterdir()}
    running = frontend.running_hash()
    shutil.rmtree(frontend.services_d)
    site.until_held({("file", str(frontend.services_d)): "the last good version keeps running"})
    site.still_serve()
    assert frontend.running_hash() == running
    # A restart keeps the running configuration, too.
    frontend.stop_daemon(signal.SIGKILL)
    frontend.start()
    site.until_held({("file", str(frontend.services_d)): "the last good version keeps running"})
    assert frontend.running_hash() == running
    frontend.services_d.mkdir()
    for name, text in texts.items():
        put(frontend.services_d / name, text)
    site.declare(*EXTRA)
    extra_is_served(site)
    site.is_mended()


def test_a_daemon_without_file_descriptors(site: Site) -> None:
    frontend = site.frontend
    pid = daemon(site).pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(8, used), before[1]))
    site.declare(*EXTRA)
    pods = frontend.scale("cart", 4)
    # HAProxy follows the pods without the daemon.
    frontend.until(lambda: frontend.serves(SERVICES["cart"], pods))
    ends = time.monotonic() + 4
    frontend.until(lambda: time.monotonic() > ends or daemon(site).poll() is not None)
    assert daemon(site).poll() is None, frontend.log_text()[-3000:]
    site.still_serve()
    extra_is_not_served(site)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    extra_is_served(site)
    assert daemon(site).pid == pid
    assert daemon(site).poll() is None
    site.is_mended()


@pytest.mark.parametrize(
    "limit",
    ["max_inotify_instances", pytest.param("max_inotify_watches", marks=pytest.mark.extended)],
)
def test_without_inotify_changes_are_seen_at_the_rescan(limit: str) -> None:
    """The limit is that of the user namespace (user_namespaces(7), /proc/sys/user)."""
    launcher = shell(
        f'echo "$1" > /proc/sys/user/{limit}', "0", flags="--user --map-root-user --keep-caps"
    )
    with own_site(*launcher) as site:
        until_said(site, "files-not-watched", "inotify")
        site.declare(*EXTRA)
        extra_is_served(site)
        site.is_mended()


def test_a_daemon_that_is_stopped_for_5_seconds_catches_up(site: Site) -> None:
    frontend = site.frontend
    daemon(site).send_signal(signal.SIGSTOP)
    began = time.monotonic()
    site.declare(*EXTRA)
    pods = frontend.scale("cart", 4)
    frontend.until(lambda: frontend.serves(SERVICES["cart"], pods))
    frontend.until(lambda: time.monotonic() - began > 5)
    site.still_serve()
    extra_is_not_served(site)
    daemon(site).send_signal(signal.SIGCONT)
    extra_is_served(site)
    assert daemon(site).poll() is None
    site.is_mended()


@pytest.mark.parametrize(
    "moment", [0, *(pytest.param(moment, marks=pytest.mark.extended) for moment in (1, 2, 3))]
)
def test_a_daemon_that_is_ended_in_a_reload_leaves_nothing_half_done(
    site: Site, moment: int
) -> None:
    frontend = site.frontend
    before = frontend.haproxy_cfg.read_bytes()
    site.declare(*EXTRA)
    frontend.until(lambda: frontend.haproxy_cfg.read_bytes() != before)
    time.sleep(moment * 0.015)
    assert frontend.stop_daemon(signal.SIGTERM) == 0
    site.file_is_good()
    running = frontend.running_hash()
    assert running and f"fc-frontend:{running}" in frontend.haproxy_cfg.read_text()
    site.still_serve()
    frontend.start()
    assert frontend.running_hash() == running
    extra_is_served(site)
    site.is_mended()


def test_a_start_after_the_monotonic_clock_went_back_keeps_what_is_held() -> None:
    """As after a reboot: the age of stored answers is computed correctly."""
    ahead = ("unshare", "--time", "--monotonic", "5000000", "--boottime", "5000000", "--fork")
    with own_site(*ahead, "--kill-child") as site:
        frontend = site.frontend
        frontend.call(frontend.dns.stop())
        frontend.until(lambda: all(s["state"] == "stale" for s in frontend.status()["services"]))
        for child in psutil.Process(daemon(site).pid).children():
            if "fc_frontend" in " ".join(child.cmdline()):
                child.kill()
        daemon(site).wait(10)
        frontend.launcher = ()
        frontend.start()
        frontend.until(lambda: all(s["state"] == "stale" for s in frontend.status()["services"]))
        site.declare(*EXTRA)
        frontend.until(lambda: len(frontend.status()["services"]) == 4 and frontend.ready())
        site.still_serve()
        frontend.dns = type(frontend.dns)(
            address=frontend.dns.address[0], port=frontend.dns.address[1]
        )
        frontend.call(frontend.dns.start())
