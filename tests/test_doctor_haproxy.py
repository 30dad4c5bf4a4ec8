"""`doctor` on HAProxy: versions, features, sockets and low ports."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import pytest

from fc_frontend.doctor.findings import Finding, Result, worst
from fc_frontend.doctor.judge.haproxy import (
    Build,
    Privilege,
    SocketFacts,
    judge_build,
    judge_low_ports,
    judge_sockets,
    parse_build,
)
from fc_frontend.doctor.observe.haproxy import observe_build
from fc_frontend.errors import Problem
from fc_frontend.haproxy.conflicts import endpoint_of
from fc_frontend.plan.model import (
    Bind,
    Haproxy,
)
from fc_frontend.syntax.endpoints import ListenEndpoint
from tests.support.doctor import result_of, said

TODAY = datetime.date(2026, 11, 23)
ENDS = {"2.6": 2027, "2.8": 2028, "3.0": 2029}
"""The years of the last fixes of the branches, as `haproxy -vv` reports them."""


@pytest.mark.parametrize(
    ("branch", "status", "expected", "words"),
    [
        ("2.4", "", "warning", "got its last fixes in Q2 2026"),
        ("2.6", "", "ok", "until Q2 2027 (known as of"),
        ("3.3", "", "ok", "until Q1 2027"),
        ("2.9", "", "warning", "Q1 2025"),
        ("4.0", "long-term branch - will stop receiving fixes around Q2 2034.", "ok", "its own"),
        ("4.1", "stable branch - will stop receiving fixes around Q3 2026.", "warning", "Q3 2026"),
        ("4.1", "stable branch - will stop receiving fixes around Q4 2026.", "ok", "Q4 2026"),
        ("3.5", "development branch - not safe for use in production.", "warning", "development"),
        ("9.9", "", "unknown", "branch 9.9 is unknown"),
    ],
)
def test_end_of_life(branch: str, status: str, expected: str, words: str) -> None:
    build = Build(
        path="haproxy", version=f"{branch}.1", branch=branch, supported=True, status=status
    )
    found = judge_build(build, TODAY, with_tls=False, with_stats=False)
    assert result_of(found, "end of life") == expected
    assert words in said(found)


def test_features() -> None:
    bare = Build(path="haproxy", version="2.6.1", branch="2.6", supported=True)
    full = replace(bare, features=frozenset({"OPENSSL", "PROMEX"}))
    old = replace(bare, version="2.2.1", supported=False)
    for build, tls, stats, expected in (
        (bare, True, True, "problem"),
        (bare, False, True, "warning"),
        (bare, False, False, "ok"),
        (full, True, True, "ok"),
    ):
        found = judge_build(build, TODAY, with_tls=tls, with_stats=stats)
        assert result_of(found, "features") == expected
    found = judge_build(old, TODAY, with_tls=False, with_stats=False)
    assert result_of(found, "version") == "problem"


def test_the_real_binaries_tell_all(haproxy_binary: str) -> None:
    build = observe_build(Haproxy(binary=haproxy_binary), 10.0)
    assert build.supported
    assert {"OPENSSL", "PROMEX"} <= build.features
    # The table agrees with the status that the binary reports.
    own = parse_build("", f"Status: {build.status}\n", build.version, "0.0", True)
    for known in (build, own):
        found = judge_build(known, TODAY, with_tls=True, with_stats=True)
        assert f"until Q2 {ENDS[build.branch]}" in said(found)


def test_sockets() -> None:
    problem = Problem(message="it refuses", remedy="ask again")
    away = SocketFacts("s", problem, is_there=False)
    good, master = (
        SocketFacts("r", level="admin", version="2.8.1"),
        SocketFacts("m", version="2.8.1"),
    )

    def judged(runtime: SocketFacts, other: SocketFacts, **settings: Any) -> tuple[Finding, ...]:
        return judge_sockets(Haproxy(**settings), runtime, other, "2.8.1")

    assert worst(judged(good, master)) is Result.OK
    assert worst(judged(away, away)) is Result.WARNING
    assert worst(judged(away, away, supervise=True)) is Result.OK
    assert result_of(judged(good, away), "master socket") == "problem"
    assert worst(judged(good, away, reload_command=("true",))) is Result.OK
    assert result_of(judged(away, master), "runtime socket") == "problem"
    assert result_of(judged(replace(good, level="operator"), master), "runtime") == "problem"
    updated = judge_sockets(Haproxy(), good, master, "2.8.25")
    assert result_of(updated, "running version") == "warning"


def test_low_ports() -> None:
    low, high = (endpoint_of(Bind("ip", "*", port)) for port in (443, 8080))

    def judged(may: bool | None, *binds: ListenEndpoint, first: int = 1024) -> str:
        privilege = Privilege(first_free=first, may=may, who="HAProxy's master")
        return judge_low_ports(binds, privilege).result.value

    assert judged(False, high) == "ok"
    assert judged(False, low, high) == "problem"
    assert judged(True, low) == "ok"
    assert judged(None, low) == "unknown"
    assert judged(None, low, first=80) == "ok"
    assert judged(False, endpoint_of(Bind("unix", "/run/x"))) == "ok"
