"""A stuck daemon is not mistaken for a working one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.daemon.progress import Progress, Stuck, Work, bound
from fc_frontend.observe.metrics import WORK
from fc_frontend.plan.model import Haproxy
from tests.conftest import until
from tests.hostile.hung import hung
from tests.support.frontend import Frontend


def test_work_without_progress_is_stuck() -> None:
    now = 0.0
    progress = Progress(lambda: now)
    assert progress.stuck(10) is None
    with progress.of(Work.STEP), progress.of(Work.SWEEP):
        now = 10
        assert progress.stuck(10) is None
        progress.advance(Work.SWEEP)
        now = 11
        assert progress.stuck(10) == Stuck(Work.STEP, 11)
        assert str(progress.stuck(10)) == "the step has made no progress for 11 s"
        progress.advance(Work.STEP)
        assert progress.stuck(10) is None
        # Work that is not in progress cannot be stuck.
        progress.advance(Work.LOOK)
        now = 30
        assert progress.stuck(10) == Stuck(Work.SWEEP, 20)
    assert progress.stuck(10) is None


def test_the_bound_follows_the_time_limits() -> None:
    assert bound(Haproxy()) == 150
    assert bound(Haproxy(check_timeout=1, reload_timeout=2)) == 36
    assert {work.value for work in Work} == set(WORK)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


@pytest.mark.extended
def test_a_state_directory_that_does_not_answer_turns_readiness_red(
    either_binary: str, tmp_path: Path, systemd: socket.socket
) -> None:
    with Frontend(either_binary) as frontend:
        frontend.settings["haproxy"].update(check_timeout="1s", reload_timeout="2s")
        frontend.scale("shop", 1)
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        frontend.environ = {
            "NOTIFY_SOCKET": systemd.getsockname(),
            "WATCHDOG_USEC": "1000000",
        }
        frontend.start()

        def alive() -> bool:
            with pytest.raises(BlockingIOError):
                while True:
                    heard.append(systemd.recv(4096))
            return any(b"WATCHDOG=1" in said for said in heard)

        heard: list[bytes] = []
        until(alive)
        with hung(Path(frontend.settings["state_directory"])):
            assert frontend.daemon is not None
            os.kill(frontend.daemon.pid, signal.SIGHUP)
            frontend.until(lambda: frontend.get("/readyz")[0] == 503, timeout=90)
            assert b"has made no progress for" in frontend.get("/readyz")[1]
            assert frontend.get("/healthz")[0] == 503
            frontend.until(lambda: frontend.status()["stuck"])
            frontend.until(lambda: frontend.metric("fc_frontend_stuck") == 1)
            frontend.until(lambda: frontend.events("stuck"))
            alive()
            heard.clear()
            assert frontend.ask(8080) == "shop-1"
            frontend.drop("new.json", {"new": frontend.service("shop", 8081)})
            assert not alive()
        # Once the state directory answers again, all work continues.
        frontend.until(frontend.ready)
        frontend.until(lambda: frontend.ask(8081) == "shop-1")
        assert frontend.get("/healthz")[0] == 200
        until(alive)
