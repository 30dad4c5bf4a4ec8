"""Rollback under adverse conditions, which is its purpose.

Only commands and files are used: a change of how the history is stored does not affect these tests.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.demo.load import Load
from fc_frontend.render.config import config_hash
from tests.conftest import until
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def listed(frontend: Frontend) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(frontend.run("history", "--json").stdout)["entries"]
    return found


def held(frontend: Frontend) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(frontend.run("history", "--json").stdout)["held"]
    return found


def applied_twice(frontend: Frontend) -> tuple[str | None, str | None]:
    """Run `apply` for shop, then for shop and more, without a daemon; return both hashes."""
    frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.write()
    frontend.run("apply")
    first = frontend.running_hash()
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    frontend.run("apply")
    second = frontend.running_hash()
    assert first and second and first != second
    return first, second


def started_twice(frontend: Frontend) -> tuple[str | None, str | None]:
    """Deploy the same two configurations with a daemon; return both hashes."""
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    first = frontend.running_hash()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    frontend.until(lambda: frontend.running_hash() != first and frontend.ready())
    frontend.until(lambda: len(listed(frontend)) == 2)
    return first, frontend.running_hash()


@pytest.mark.parametrize("arguments", [(), ("1",)])
@pytest.mark.extended
def test_a_haproxy_that_is_down_comes_up_with_what_is_gone_back_to(
    frontend: Frontend, arguments: tuple[str, ...]
) -> None:
    first, _ = applied_twice(frontend)
    frontend.end_haproxy()
    until(lambda: frontend.running_hash() is None)
    frontend.run("rollback", *arguments)
    assert frontend.running_hash() == first
    assert (held(frontend) or {})["hash"] == first


@pytest.mark.parametrize("content", ["{ broken", '{"no_such_field": 1}'])
@pytest.mark.extended
def test_settings_that_are_broken_do_not_stand_in_the_way_back(
    frontend: Frontend, content: str
) -> None:
    first, second = started_twice(frontend)
    frontend.stop_daemon()
    frontend.config.write_text(content)
    # As under systemd: a file that cannot be parsed cannot name the state directory.
    frontend.environ["STATE_DIRECTORY"] = str(frontend.directory / "state")
    assert [entry["hash"] for entry in listed(frontend)] == [first, second]
    frontend.run("rollback")
    assert frontend.running_hash() == first
    frontend.run("resume")
    assert held(frontend) is None


def test_a_text_that_others_changed_is_not_put_back(frontend: Frontend) -> None:
    _, second = applied_twice(frontend)
    text = frontend.directory / "state" / "history" / "000001.cfg"
    text.write_text(text.read_text().replace("balance leastconn", "balance roundrobin"))
    installed = frontend.haproxy_cfg.read_bytes()
    with Load(frontend.host, 8081, clients=2) as load:
        refused = frontend.run("rollback", "1", check=False)
        assert refused.returncode == 1
        assert frontend.running_hash() == second
        assert frontend.haproxy_cfg.read_bytes() == installed
        assert not load.stop().failures
    assert held(frontend) is None


@pytest.mark.extended
def test_a_wrong_port_is_mended_by_the_way_back(frontend: Frontend) -> None:
    frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.write()
    frontend.run("apply")
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
    frontend.settings["services"]["shop"]["pod_port"] = 8099
    frontend.write()
    frontend.run("apply")
    frontend.until(lambda: "503" in frontend.ask(8080))
    frontend.run("rollback")
    # Traffic flows at once: the addresses are known, and the port is that of the text.
    assert frontend.serves(8080, frontend.pods["shop"])


@pytest.mark.extended
def test_a_name_that_was_of_other_pods_does_not_get_them_back(frontend: Frontend) -> None:
    frontend.scale("cart", 3)
    frontend.scale("docs", 3)
    frontend.settings["services"]["web"] = frontend.service("cart", 8080)
    frontend.write()
    frontend.run("apply")
    frontend.until(lambda: frontend.serves(8080, frontend.pods["cart"]))
    frontend.settings["services"]["web"] = frontend.service("docs", 8080)
    frontend.write()
    frontend.run("apply")
    frontend.until(lambda: frontend.serves(8080, frontend.pods["docs"]))
    frontend.run("rollback")
    seen = {frontend.ask(8080) for _ in range(30)}
    assert not {pod for pod in seen if pod.startswith("docs-")}
    frontend.until(lambda: frontend.serves(8080, frontend.pods["cart"]))


@pytest.mark.extended
def test_going_back_twice_goes_back_further(frontend: Frontend) -> None:
    first, _ = applied_twice(frontend)
    frontend.drop("third.json", {"third": frontend.service("shop", 8082)})
    frontend.run("apply")
    frontend.run("rollback")
    frontend.run("rollback")
    assert frontend.running_hash() == first
    refused = frontend.run("rollback", check=False)
    assert refused.returncode == 1
    assert frontend.running_hash() == first


@pytest.mark.extended
def test_going_back_and_going_on_are_in_the_history_with_their_reasons(
    frontend: Frontend,
) -> None:
    first, second = started_twice(frontend)
    frontend.run("rollback")
    assert [entry["hash"] for entry in listed(frontend)] == [first, second, first]
    assert listed(frontend)[-1]["reasons"] == ["rollback to 1"]
    frontend.until(lambda: frontend.metric("fc_frontend_held") == 1)
    frontend.run("resume")
    frontend.until(lambda: frontend.running_hash() == second and frontend.ready())
    frontend.until(lambda: len(listed(frontend)) == 4)
    assert listed(frontend)[-1]["reasons"] == ["resumed"]


@pytest.mark.extended
def test_what_is_refused_over_and_over_does_not_push_out_what_was_good(
    frontend: Frontend,
) -> None:
    first, _ = applied_twice(frontend)
    errors = frontend.directory / "errors.http"
    frontend.settings["haproxy"]["defaults_extra"] = f"errorfile 503 {errors}"
    frontend.write()
    for _ in range(3):
        assert frontend.run("apply", check=False).returncode == 1
    assert [entry["outcome"] for entry in listed(frontend)] == ["started", "reloaded"]
    frontend.run("rollback", "1")
    assert frontend.running_hash() == first


def until_it_waits(pid: int, frontend: Frontend) -> None:
    """Wait until process `pid` has opened the deployment lock."""
    lock = lock_of(frontend)

    def waits() -> bool:
        opened = set()
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                opened.add(str(file.readlink()))
            except OSError:
                continue
        return lock in opened

    until(waits)


HOLDER = """
import sys, os, fcntl, time
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(file, fcntl.LOCK_EX)
os.truncate(file, 0)
os.write(file, str(os.getpid()).encode())
print("locked", flush=True)
sys.stdin.read()
"""


def lock_of(frontend: Frontend) -> str:
    """Return the path of the lock that serialises deployments."""
    return str(frontend.directory / "state" / "deploy.lock")


@pytest.mark.parametrize("who", ["apply", "daemon"])
def test_what_is_held_meanwhile_is_not_overwritten(frontend: Frontend, who: str) -> None:
    """A hold that appears while a deployment is in progress takes effect."""
    _, second = started_twice(frontend)
    if who == "apply":
        frontend.stop_daemon()
    frontend.run("rollback")
    hold = frontend.directory / "state" / "hold.json"
    content = hold.read_bytes()
    frontend.run("resume")
    if who == "apply":
        frontend.run("apply")
    frontend.until(lambda: frontend.running_hash() == second)
    argv = [sys.executable, "-c", HOLDER, lock_of(frontend)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"locked\n"
        frontend.drop("third.json", {"third": frontend.service("shop", 8082)})
        if who == "apply":
            deployer: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-m", "fc_frontend", "apply", "--config", str(frontend.config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            pid = deployer.pid if deployer else 0
        else:
            deployer = None
            assert frontend.daemon
            pid = frontend.daemon.pid
        until_it_waits(pid, frontend)
        hold.write_bytes(content)
        holder.stdin.close()
        assert holder.wait(10) == 0
    if deployer:
        assert deployer.wait(60) == 1
        assert deployer.stderr
        assert b"fc-frontend resume" in deployer.stderr.read()
        deployer.stderr.close()
        assert frontend.running_hash() == second
    else:
        frontend.until(lambda: frontend.metric("fc_frontend_held") == 1)
        frontend.until(frontend.ready)
    assert "listen third" not in frontend.haproxy_cfg.read_text()


def test_a_way_back_that_was_killed_half_way_is_finished_by_the_daemon(
    frontend: Frontend,
) -> None:
    first, second = started_twice(frontend)
    pods = frontend.pods["shop"]
    frontend.run("rollback")
    hold = frontend.directory / "state" / "hold.json"
    content = hold.read_bytes()
    frontend.until(lambda: frontend.metric("fc_frontend_held") == 1)
    frontend.run("resume")
    frontend.until(lambda: frontend.running_hash() == second and frontend.ready())
    # `rollback` leaves this file if it is killed between the hold and the reload.
    hold.write_bytes(content)
    with Load(frontend.host, 8080, clients=2) as load:
        frontend.until(lambda: frontend.running_hash() == first and frontend.ready())
        assert not load.stop().failures
    assert frontend.serves(8080, pods)


@pytest.mark.extended
def test_deployments_never_meet(frontend: Frontend) -> None:
    """Run several `apply` and the daemon, each with a different configuration for one HAProxy."""
    frontend.scale("shop", 1)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.write()
    frontend.run("apply")
    inside = frontend.directory / "inside"
    met = frontend.directory / "met"
    master = shlex.quote(frontend.settings["haproxy"]["master_socket"])
    ask = shlex.quote(
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(b'reload\\n'); s.shutdown(1); s.recv(4096)"
    )
    script = (
        f"mkdir {inside} || echo met >>{met}; {sys.executable} -c {ask} {master}; sleep 0.2; "
        f"rmdir {inside}"
    )
    frontend.settings["haproxy"] |= {
        "supervise": False,
        "reload_command": ["/bin/sh", "-c", script],
    }
    frontend.write()
    configs = []
    for number in range(4):
        directory = frontend.directory / f"other{number}"
        directory.mkdir()
        services = {f"other{number}": frontend.service("shop", 8090 + number)}
        settings = {**frontend.settings, "services": services}
        (directory / "config.json").write_text(json.dumps(settings))
        configs.append(directory / "config.json")
    codes: dict[str, int] = {}
    said: dict[str, str] = {}

    def apply(config: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "fc_frontend", "apply", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        codes[config.parent.name] = done.returncode
        said[config.parent.name] = done.stderr

    frontend.start(wait=False)
    threads = [threading.Thread(target=apply, args=(config,)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes.values()) == {0}, said
    assert not met.exists()
    # The daemon deploys last.
    frontend.until(frontend.ready)
    assert config_hash(frontend.haproxy_cfg.read_text()) == frontend.running_hash()
    entries = listed(frontend)
    assert len({entry["id"] for entry in entries}) == len(entries)
    # No two deployments used the same number.
    assert sum(entry["reasons"] == ["apply"] for entry in entries) == 5


def test_a_history_that_cannot_be_kept_hinders_nobody(frontend: Frontend) -> None:
    frontend.scale("shop", 1)
    frontend.start()
    history = frontend.directory / "state" / "history"
    history.rename(history.with_name("away"))
    history.write_text("in the way")
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080)})
    frontend.until(lambda: frontend.ask(8080) == "shop-1")
    frontend.until(frontend.ready)
    frontend.until(lambda: frontend.events("history-not-kept"))
    failures = "fc_frontend_state_write_failures_total"
    frontend.until(lambda: frontend.metric(failures, what="history") >= 1)
    assert frontend.metric(failures) == frontend.metric(failures, what="history")
    history.unlink()
    history.with_name("away").rename(history)
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    # A text that could not be recorded is recorded when it is replaced.
    frontend.until(lambda: len(listed(frontend)) == 3)


DAMAGE = {
    "empty": "",
    "deep": "[" * 100_000,
    "endless": '{"version": 1, "id": 1, "at": 1e999, "hash": "0123456789abcdef", "outcome": '
    '"reloaded", "reasons": [], "services": 1, "slots": 1, "seconds": 1}',
    "no number": '{"version": 1, "id": 1, "at": NaN, "hash": "0123456789abcdef", "outcome": '
    '"reloaded", "reasons": [], "services": 1, "slots": 1, "seconds": 1}',
    "a colour": '{"version": 1, "id": 1, "at": 1, "hash": "0123456789abcdef", "outcome": '
    '"\\u001b[31m", "reasons": ["\\u001b]0;x\\u0007"], "services": 1, "slots": 1, "seconds": 1}',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_left_out_with_a_warning(tmp_path: Path, content: str) -> None:
    state = tmp_path / "state" / "history"
    state.mkdir(parents=True)
    (state / "000001.json").write_text(content)
    (state / "000002.json").write_text(
        '{"version": 1, "id": 2, "at": 1, "hash": "0123456789abcdef", "outcome": "reloaded", '
        '"reasons": ["start"], "services": 1, "slots": 1, "seconds": 1, "has_text": true}'
    )
    os.mkfifo(state / "000003.json")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"state_directory": str(state.parent)}))
    argv = [sys.executable, "-m", "fc_frontend", "history", "--config", str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "0123456789abcdef" in done.stdout or " start" in done.stdout
    assert "\x1b" not in done.stdout
    assert "000001.json" in done.stderr
    assert "000003.json" in done.stderr


def as_root(script: str) -> None:
    """Run a Python script as root, or as root of a user namespace."""
    argv = [sys.executable, "-c", script]
    if os.geteuid() != 0:
        argv = ["unshare", "--map-root-user", "--map-auto", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_the_daemon_can_read_what_root_wrote(tmp_path: Path) -> None:
    """The daemon has its own user, which owns the state directory; `rollback` runs as root."""
    as_root(
        f"""
import os, pathlib, tempfile
from fc_frontend.haproxy import hold
state = pathlib.Path(tempfile.mkdtemp(dir={str(tmp_path)!r}))
os.chown(state, 1, 1)
hold.save(str(state), hold.Hold(id=1, hash="0123456789abcdef", since=1.0, by="root"))
found = {{path.name: (path.stat().st_uid, path.stat().st_gid) for path in state.iterdir()}}
assert set(found.values()) == {{(1, 1)}}, found
import shutil; shutil.rmtree(state)
"""
    )


def test_who_is_killed_leaves_no_lock_behind(frontend: Frontend) -> None:
    applied_twice(frontend)
    argv = [sys.executable, "-c", HOLDER, lock_of(frontend)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    frontend.run("rollback")


@pytest.mark.extended
def test_who_waits_for_too_long_is_told_for_whom(frontend: Frontend) -> None:
    _, second = applied_twice(frontend)
    frontend.settings["haproxy"] |= {"check_timeout": "1s", "reload_timeout": "1s"}
    frontend.write()
    frontend.run("apply")
    argv = [sys.executable, "-c", HOLDER, lock_of(frontend)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"locked\n"
        waited = frontend.run("rollback", "1", check=False)
        assert waited.returncode in (1, 3)
        assert f"process {holder.pid}" in waited.stderr
        holder.stdin.close()
    assert frontend.running_hash() == second
