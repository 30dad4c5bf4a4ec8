"""A bind that fails only at the reload causes at most one pause, and affects only its unit.

HAProxy finds a different network namespace under a name than fc-frontend, and the address is
missing there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fc_frontend.demo.load import Load
from fc_frontend.haproxy.master import show_proc
from tests.conftest import PATIENCE
from tests.support.frontend import Frontend

ADDRESS = "203.0.113.9"
NAMESPACE = "fcx"
HAPROXYS = "fcy"
INSIDE = f"""
mount -t tmpfs none /run && mkdir /run/netns && cd /run/netns && touch {NAMESPACE} {HAPROXYS} &&
unshare --net=/run/netns/{NAMESPACE} sh -c '
    ip link set lo up && ip address add {ADDRESS}/32 dev lo' &&
unshare --net=/run/netns/{HAPROXYS} ip link set lo up && cd / && exec "$@"
"""
WRAPPER = f"""#!/bin/sh
exec unshare --mount sh -c '
    mount --bind /run/netns/{HAPROXYS} /run/netns/{NAMESPACE} && exec "$0" "$@"' BINARY "$@"
"""


def launcher() -> tuple[str, ...]:
    """Return the launcher that gives the daemon and its HAProxy named network namespaces."""
    user = () if os.geteuid() == 0 else ("--map-root-user",)
    return ("unshare", *user, "--mount", "/bin/sh", "-c", INSIDE, "sh")


def entering(frontend: Frontend) -> tuple[str, ...]:
    """Return the command prefix that enters the daemon's namespaces."""
    assert frontend.daemon is not None
    user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
    return ("nsenter", "--target", str(frontend.daemon.pid), "--mount", *user)


def inside(frontend: Frontend, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the daemon's namespaces."""
    return subprocess.run(
        [*entering(frontend), *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fragment(comment: str = "") -> str:
    return (
        f"frontend other\n  mode http\n  # {comment}\n"
        f"  bind {ADDRESS}:80 namespace {NAMESPACE}\n  http-request return status 200\n"
    )


def test_a_bind_that_fails_only_at_the_reload(haproxy_binary: str, short_directory: Path) -> None:
    wrapper = short_directory / "haproxy"
    wrapper.write_text(WRAPPER.replace("BINARY", haproxy_binary))
    wrapper.chmod(0o755)
    with Frontend(str(wrapper)) as frontend:
        frontend.launcher = launcher()
        frontend.settings["intervals"].update(debounce="50ms", reload="200ms", rescan="1s")
        frontend.settings["services"]["shop"] = frontend.service("shop", 8081)
        frontend.scale("shop", 2)
        frontend.scale("extra", 1)
        frontend.start()
        frontend.until(lambda: frontend.serves(8081, frontend.pods["shop"]), PATIENCE)
        with Load(frontend.host, 8081, clients=4, interval=0.02, timeout=20) as load:
            frontend.drop("other.cfg", fragment())
            frontend.drop("extra.json", {"extra": frontend.service("extra", 8090)})
            frontend.until(lambda: withheld(frontend) == {"other"}, PATIENCE)
            frontend.until(lambda: frontend.ask(8090) == "extra-1", PATIENCE)
            assert len(failures(frontend)) == 1
            (said,) = frontend.status()["withheld"]
            assert f"HAProxy could not take {ADDRESS}:80" in said["problems"][0]["message"]
            assert "apply --force" in said["problems"][0]["remedy"]
            before = load.tally()
            not_again(frontend, load)
            restarted(frontend)
            assert not load.tally().since(before).failures
            assert len(failures(frontend)) == 1
            # A changed text is tried again.
            frontend.drop("other.cfg", fragment("now it is better"))
            frontend.until(lambda: len(failures(frontend)) == 2, PATIENCE)
            frontend.until(lambda: withheld(frontend) == {"other"} and frontend.ready(), PATIENCE)
            by_force(frontend)
            assert load.tally().pods.keys() == {"shop-1", "shop-2"}


def withheld(frontend: Frontend) -> set[str]:
    return {held["name"] for held in frontend.status()["withheld"]}


def failures(frontend: Frontend) -> list[str]:
    return frontend.events("reload-failed")


def reloads(frontend: Frontend) -> int:
    return show_proc(frontend.settings["haproxy"]["master_socket"], patience=10).reloads


def reloaded_by(frontend: Frontend, act: Callable[[], object]) -> None:
    """Wait until HAProxy has reloaded after `act` and runs the declared configuration."""
    before = reloads(frontend)
    act()
    frontend.until(lambda: reloads(frontend) > before and frontend.ready(), PATIENCE)


def not_again(frontend: Frontend, load: Load) -> None:
    """Other changes, the same text, a signal and time do not repeat the failed reload."""
    for balance in ("roundrobin", "first"):
        service = frontend.service("extra", 8090, balance=balance)
        reloaded_by(frontend, partial(frontend.drop, "extra.json", {"extra": service}))
    frontend.drop("other.cfg", fragment())
    checks = frontend.metric("fc_frontend_checks_total")
    assert frontend.daemon is not None
    frontend.daemon.send_signal(signal.SIGHUP)
    # HAProxy's check has run several times since, but no reload.
    frontend.until(lambda: frontend.metric("fc_frontend_checks_total") >= checks + 2, PATIENCE)
    answered = load.tally().requests
    frontend.until(lambda: load.tally().requests > answered + 20, PATIENCE)
    assert withheld(frontend) == {"other"}


def restarted(frontend: Frontend) -> None:
    """The next daemon remembers the failed reload."""
    with subprocess.Popen(
        [*entering(frontend), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        # Once it answers, it has entered the namespaces.
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        holder.stdout.readline()
        frontend.stop_daemon()
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        frontend.launcher = ("nsenter", "--target", str(holder.pid), "--mount", *user)
        frontend.start()
        frontend.until(lambda: withheld(frontend) == {"other"} and frontend.ready(), PATIENCE)
        holder.stdin.close()


def by_force(frontend: Frontend) -> None:
    """A change that cannot be detected: only an operator knows that the bind can now succeed."""
    apply = (sys.executable, "-m", "fc_frontend", "apply", "--config", str(frontend.config))
    done = inside(frontend, *apply)
    assert done.returncode == 1
    assert f"HAProxy could not take {ADDRESS}:80" in done.stderr
    added = inside(
        frontend,
        *("nsenter", f"--net=/run/netns/{HAPROXYS}", "ip", "address", "add"),
        *(f"{ADDRESS}/32", "dev", "lo"),
    )
    assert added.returncode == 0, added.stderr
    done = inside(frontend, *apply, "--force", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "reloaded"
    frontend.until(lambda: not withheld(frontend) and frontend.ready(), PATIENCE)
    assert json.loads(done.stdout)["hash"] == frontend.running_hash()
    assert len(failures(frontend)) == 2
