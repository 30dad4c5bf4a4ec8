"""`doctor` on directories and clocks."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from fc_frontend.doctor.findings import Result, worst
from fc_frontend.doctor.judge.machine import (
    Clock,
    DirectoryFacts,
    judge_clock,
    judge_date,
    judge_place,
    judge_serial,
)
from fc_frontend.doctor.observe.machine import observe_clock, observe_place
from fc_frontend.kubernetes.health import ahead
from tests.support.doctor import result_of, said

ROOT = Path(__file__).parent.parent


def test_places(tmp_path: Path) -> None:
    good = observe_place("state directory", str(tmp_path))
    assert (good.writable, good.nearest) == (True, str(tmp_path))
    new = observe_place("state directory", str(tmp_path / "a" / "b"))
    assert (new.writable, new.nearest) == (True, str(tmp_path))
    assert "will be created" in said(judge_place(new))
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    blocked = observe_place("state directory", str(tmp_path / "file" / "b"))
    assert worst(judge_place(blocked)) is Result.PROBLEM
    full = replace(good, free=1000)
    assert worst(judge_place(full)) is Result.WARNING


def test_nothing_writable_at_all(tmp_path: Path) -> None:
    """In a mount namespace whose every mount is read-only, as after a disk failure."""
    settings = {
        "cluster": {"nameservers": ["127.0.0.1:5"]},
        "state_directory": str(tmp_path),
        "haproxy": {"config_file": str(tmp_path / "haproxy.cfg")},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    script = 'mount -o remount,bind,ro / 2>/dev/null || mount -o remount,ro,bind / && exec "$@"'
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        [
            *("unshare", *user, "--mount", "/bin/sh", "-c", script, "sh"),
            *(sys.executable, "-B", "-m", "fc_frontend", "doctor", "-c", str(path)),
            *("--format", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found = {f["check"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    for check in ("directory of haproxy.cfg", "state directory"):
        assert found[check]["result"] == "problem"
        assert f"may not write in {tmp_path}" in found[check]["message"]


def test_the_clock(tmp_path: Path) -> None:
    now = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC).timestamp()
    assert worst(judge_clock(Clock(now, now - 5, "f", True))) is Result.OK
    assert worst(judge_clock(Clock(now, now + 30, "f", True))) is Result.OK
    assert worst(judge_clock(Clock(now, now + 90, "f", True))) is Result.PROBLEM
    assert worst(judge_clock(Clock(0.0, None, "", True))) is Result.PROBLEM
    assert result_of(judge_clock(Clock(now)), "synchronized") == "unknown"
    assert result_of(judge_clock(Clock(now, synchronized=False)), "synchronized") == "warning"
    future = tmp_path / "history"
    future.write_text("")
    os.utime(future, (time.time() + 3600, time.time() + 3600))
    seen = observe_clock(str(tmp_path))
    assert seen.newest_path == str(future)
    assert result_of(judge_clock(seen), "time") == "problem"
    assert seen.synchronized is not None
    assert observe_clock(str(tmp_path / "none")).newest_file is None


def test_other_clocks() -> None:
    assert judge_serial("dns", None, 2e9) == ()
    # The serials of other servers are dates, which no clock reaches before 2033.
    assert judge_serial("dns", 2026112301, 1.8e9) == ()
    assert judge_serial("dns", 1, 2e9) == ()
    assert judge_serial("dns", 1_900_000_000, 2e9)[0].result is Result.OK
    assert judge_serial("dns", 2_000_001_000, 2e9)[0].result is Result.WARNING
    assert ahead(1000.0, 1000.2, 1000.4) == 0
    assert ahead(1300.0, 1000.0, 1000.0) == 300
    assert judge_date("api", 0.0).result is Result.OK
    assert judge_date("api", 300.0).result is Result.PROBLEM
    assert "300 s ahead of" in judge_date("api", -300.0).message


def test_places_are_judged_by_what_is_seen() -> None:
    place = DirectoryFacts(
        check="c",
        path="/a/b",
        nearest="/a/b",
        is_directory=True,
        writable=False,
        user="u",
        free=None,
    )
    assert "u may not write in /a/b" in said(judge_place(place))
