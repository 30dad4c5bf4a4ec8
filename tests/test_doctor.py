"""`doctor` as a whole: probes, running frontends, output and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from fc_frontend.demo.dns import Fault
from fc_frontend.doctor.examine import Probe, examine
from fc_frontend.doctor.findings import Finding, Group, Result, worst
from fc_frontend.errors import Problem, Unavailable
from fc_frontend.haproxy.master import show_proc
from tests.conftest import RealHaproxy, free_bind, until
from tests.support.doctor import SECRET, doctor, said
from tests.support.frontend import Frontend


def test_the_worst_counts_and_nothing_is_unknown() -> None:
    group = Group("g")
    ok, warning = group.ok("a", "b"), group.warning("a", "b", "c")
    unknown, problem = group.unknown("a", "b", "c"), group.problem("a", "b", "c")
    assert worst(()) is Result.UNKNOWN
    assert worst((ok,)) is Result.OK
    assert worst((warning, ok)) is Result.WARNING
    assert worst((ok, unknown, warning)) is Result.UNKNOWN
    assert worst((problem, unknown, ok)) is Result.PROBLEM


def test_a_probe_that_hangs_or_fails_costs_only_itself() -> None:
    release = threading.Event()
    ended = threading.Event()

    def hang() -> list[Finding]:
        release.wait(30)
        ended.set()
        return []

    def fail() -> list[Finding]:
        raise ValueError(SECRET)

    def refuse() -> list[Finding]:
        raise Unavailable(Problem(message="no such thing", remedy="make it"))

    good = Group("g").ok("good", "all is well")
    heard: list[int] = []
    found = examine(
        (
            Probe("g", "hanging", hang),
            Probe("g", "failing", fail),
            Probe("g", "refusing", refuse),
            Probe("g", "good", lambda: (good,)),
        ),
        whole=1.0,
        told=lambda done, _under_way: heard.append(done),
    )
    assert not ended.is_set()
    release.set()
    assert [f.check for f in found] == ["hanging", "failing", "refusing", "good"]
    assert [f.result for f in found[:3]] == [Result.UNKNOWN] * 3
    assert "no result within 1 s" in found[0].message
    assert SECRET not in said(found)
    assert "ValueError" in found[1].message
    assert (found[2].message, found[2].remedy) == ("no such thing", "make it")
    assert found[3] == good
    assert max(heard) == 3


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def files(frontend: Frontend) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in frontend.directory.rglob("*")
        if path != frontend.log and not path.name.startswith(".")
    }


def test_a_running_frontend_is_fit_and_stays_as_it_is(frontend: Frontend) -> None:
    frontend.settings["services"]["web"] = frontend.service("web", 8001)
    frontend.scale("web", 2)
    frontend.start()
    frontend.until(lambda: frontend.answers(8001, 4).keys())
    frontend.stop_daemon()
    master = frontend.settings["haproxy"]["master_socket"]
    before, processes = files(frontend), show_proc(master)
    _, found = doctor(frontend)
    assert files(frontend) == before
    after = show_proc(master)
    assert (after.worker, after.reloads) == (processes.worker, processes.reloads)
    # The daemon is unaffected too: it serves during the checks.
    frontend.start()
    _, found = doctor(frontend)
    for check in ("runtime socket", "master socket", "binds", "low ports", "file descriptors"):
        assert found[check]["result"] == "ok", found[check]
    assert "listen" not in found
    assert "with level admin" in found["runtime socket"]["message"]
    assert found["directory of haproxy.cfg"]["result"] == "ok"
    assert found["state directory"]["result"] == "ok"
    assert found["time"]["result"] == "ok"
    at = ":".join(map(str, frontend.dns.address))
    assert found[f"against {at}"]["result"] == "ok"
    assert "1 headless: web" in found[f"{at} declared services"]["message"]
    assert frontend.answers(8001, 4).keys()


def test_binds_that_others_hold(frontend: Frontend) -> None:
    frontend.settings["services"]["web"] = frontend.service("web", 8001)
    frontend.write()
    with socket.create_server((frontend.host, 8001)), socket.create_server((frontend.host, 9484)):
        code, found = doctor(frontend)
    assert code == 1
    assert found["binds"]["result"] == "problem"
    assert f"{frontend.host}:8001 is in use by" in found["binds"]["message"]
    assert f"{frontend.host}:9484 is in use by" in found["listen"]["message"]
    assert found["sockets"]["result"] == "ok"
    assert "supervise" in found["sockets"]["message"]


def test_a_runtime_socket_that_permits_too_little(haproxy: RealHaproxy, frontend: Frontend) -> None:
    text = haproxy.configuration(binds=(free_bind(),)).replace("level admin", "level operator")
    haproxy.start(text)
    frontend.settings["haproxy"].update(
        runtime_socket=haproxy.runtime_socket, master_socket=haproxy.master_socket
    )
    frontend.write()
    reloads = haproxy.processes().reloads
    _, found = doctor(frontend)
    assert found["runtime socket"]["result"] == "problem"
    assert "permits level operator only" in found["runtime socket"]["message"]
    assert found["master socket"]["result"] == "ok"
    assert haproxy.processes().reloads == reloads


@pytest.mark.extended
def test_sockets_that_hang_cost_only_their_time(frontend: Frontend) -> None:
    """A nameserver is silent as well: the whole command ends within 15 seconds."""
    frontend.settings["services"] = {
        f"web{n}": frontend.service(f"web{n}", 10000 + n) for n in range(50)
    }
    frontend.write()
    frontend.dns.fault = Fault.SILENT
    with contextlib.ExitStack() as stack:
        for name in ("master_socket", "runtime_socket"):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            silent.bind(frontend.settings["haproxy"][name])
            silent.listen()
        code, found = doctor(frontend)
    assert code == 1
    at = ":".join(map(str, frontend.dns.address))
    assert "timed out" in found[at]["message"]
    assert found[f"{at} names"]["result"] == "unknown"
    assert "no complete answer" in found["runtime socket"]["message"]
    assert "no complete answer" in found["master socket"]["message"]


def test_no_haproxy_at_all(frontend: Frontend) -> None:
    frontend.settings["haproxy"].update(binary="/nowhere/haproxy", supervise=False)
    frontend.write()
    code, found = doctor(frontend)
    assert code == 1
    assert found["version"]["result"] == "problem"
    assert found["sockets"]["result"] == "warning"


def test_the_command_as_text_and_for_nagios(frontend: Frontend) -> None:
    frontend.settings["services"]["web"] = frontend.service("web", 8001)
    frontend.write()
    done = frontend.run("doctor", check=False)
    for group in ("network", "cluster DNS", "HAProxy", "files", "clock"):
        assert f"\n{group}\n" in f"\n{done.stdout}"
    assert "\x1b" not in done.stdout
    rows = re.findall(
        r"^  (ok|warning|problem|unknown) +\S.*\n((?:   +→ .*\n)*)", done.stdout, re.MULTILINE
    )
    assert len(rows) > 15
    assert all(bool(remedy) == (word != "ok") for word, remedy in rows)
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"(ok|ok, with warnings|unknown|not ready): .*\d+ ok", last)
    words = {word for word, _ in rows}
    assert done.returncode == (1 if "problem" in words else 3 if "unknown" in words else 0)
    nagios = frontend.run("doctor", "--format", "nagios", check=False)
    code = 2 if "problem" in words else 3 if "unknown" in words else 1 if "warning" in words else 0
    assert nagios.returncode == code
    assert re.match(
        r"FC-FRONTEND (OK|WARNING|CRITICAL|UNKNOWN) - .* \| problems=\d+ warnings=\d+ unknown=\d",
        nagios.stdout,
    )


def test_settings_that_cannot_be_read_and_services_that_are_wrong(frontend: Frontend) -> None:
    frontend.config.write_text("{")
    assert frontend.run("doctor", check=False).returncode == 3
    for shape in ("json", "nagios"):
        done = frontend.run("doctor", "--format", shape, check=False)
        assert done.returncode == 3
        assert "unknown" in done.stdout.lower()
    frontend.config.write_text(json.dumps({"cluster": {"pod_network": "everything"}}))
    done = frontend.run("doctor", check=False)
    assert done.returncode == 3
    assert "'everything' is not a network" in done.stderr
    overlapping = {"pod_network": "10.1.0.0/16", "service_network": "10.1.0.0/24"}
    frontend.config.write_text(json.dumps({"cluster": overlapping}))
    code, found = doctor(frontend)
    assert code == 1
    assert found["services and pods"]["result"] == "problem"
    frontend.settings["services"]["web"] = {"pod_port": 0}
    frontend.write()
    code, found = doctor(frontend)
    assert code == 1
    assert found["declaration"]["result"] == "problem"
    assert found["state directory"]["result"] == "ok"


def test_wrong_usage(frontend: Frontend) -> None:
    assert frontend.run("doctor", "--format", "xml", check=False).returncode == 2


def test_progress_on_a_terminal(frontend: Frontend) -> None:
    frontend.write()
    frontend.dns.fault = Fault.SILENT
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fc_frontend", "doctor", "-c", str(frontend.config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = bytearray()
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # EIO: the last process has closed its end
        pass
    finally:
        os.close(ours)
    until(lambda: process.poll() is not None)
    assert b"done; now: cluster DNS" in seen
    assert seen.endswith(b"\r\x1b[K")


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", "doctor", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for word in ("overlaps", "--kubeconfig", "changes nothing", "Exit code"):
        assert word in done.stdout
