"""Listeners that take connections or paths from each other, whatever declares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.config.declare import declare
from fc_frontend.config.loader import read
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.errors import Problem, Severity, errors_in
from fc_frontend.model.units import SETTINGS, UnitId, UnitKind
from fc_frontend.plan.conflicts import conflicts, overlaps, wider
from fc_frontend.syntax.binds import Owned, read_listeners
from fc_frontend.syntax.endpoints import ListenEndpoint
from tests.support.prepared import newcomers, prepare


def owned(bind: str, owner: str = "a") -> tuple[Owned, ...]:
    unit = UnitId(UnitKind.SERVICE, owner)
    read_ = read_listeners(f"listen {owner}\n  bind {bind}\n", unit)
    assert not read_.flaws
    return read_.listeners


def endpoint(bind: str) -> ListenEndpoint:
    ((_, listener),) = owned(bind)
    return listener.endpoint


SAME = [
    (":80", "0.0.0.0:80"),
    (":80", "ipv4@*:80 v4v6"),
    ("127.0.0.1:80", "[::ffff:127.0.0.1]:80"),
    ("127.0.0.1:80", "mptcp4@127.0.0.1:80"),
    ("[::1]:80", "[0::1]:80"),
    (":::80", "[::]:80 v6only"),
    (":79-81", ":80"),
    (":79-81", ":81-83"),
    (":80 interface lo", ":80 interface lo"),
    (":80", ":80 interface lo"),
    ("127.0.0.1:80", "127.0.0.1:80 interface lo"),
    (":::80", ":::80 interface lo"),
    (":80 namespace x", ":80 namespace x"),
    ("quic4@:443", "quic4@0.0.0.0:443"),
    ("unix@/a", "/a"),
    ("unix@/a", "uxst@/x/../a"),
    ("abns@a", "abns@a"),
]
APART = [
    (":80", ":81"),
    (":80", ":80 namespace x"),
    (":80", "[::1]:80"),
    (":80", "[::]:80 v6only"),
    ("127.0.0.1:80", "127.0.0.2:80"),
    (":443", "quic4@:443"),
    (":80 interface lo", ":80 interface eth0"),
    ("127.0.0.1:80-81", "127.0.0.1:82-83"),
    ("unix@/a", "abns@/a"),
    ("abns@a", "abnsz@a"),
    ("unix@/a", "unix@/b/a"),
]
WIDER = [
    (":80", "127.0.0.1:80"),
    (":80", "127.0.0.1:79-81"),
    (":79-81", "[::ffff:127.0.0.1]:80"),
    (":::80", ":80"),
    (":::80", "127.0.0.1:80"),
    (":::80", "[::1]:80"),
    ("[::]:80 v6only", "[::1]:80"),
    (":80 interface lo", "127.0.0.1:80"),
    (":::80 interface lo", ":80"),
    ("quic4@:443", "quic4@127.0.0.1:443"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_place(one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        claims = [*owned(first, "a"), *owned(second, "b")]
        (conflict,) = conflicts(claims, lambda path: path.replace("/x/..", ""))
        assert (conflict.holder.owner.name, conflict.claim.owner.name) == ("a", "b")


@pytest.mark.parametrize(("one", "other"), APART)
def test_nothing_in_common(one: str, other: str) -> None:
    claims = [*owned(one, "a"), *owned(other, "b")]
    assert not conflicts(claims, str)
    assert not overlaps(claims)


@pytest.mark.parametrize(("wide", "narrow"), WIDER)
def test_one_covers_the_other(wide: str, narrow: str) -> None:
    assert wider(endpoint(wide), endpoint(narrow)) == endpoint(wide)
    assert wider(endpoint(narrow), endpoint(wide)) == endpoint(wide)
    for claims in (
        [*owned(wide, "wide"), *owned(narrow, "narrow")],
        [*owned(narrow, "narrow"), *owned(wide, "wide")],
    ):
        assert not conflicts(claims, str)
        (overlap,) = overlaps(claims)
        assert overlap.wide.owner.name == "wide"
        assert [other.owner.name for other in overlap.covered] == ["narrow"]


def test_a_range_names_the_first_port_that_both_want() -> None:
    (conflict,) = conflicts([*owned(":8000-8010"), *owned(":8005-8020", "b")], str)
    assert conflict.port == 8005


def test_branches_of_one_condition_do_not_meet() -> None:
    text = "listen a\n.if feature(X)\nbind :80\n.else\nbind :80\n.endif\n"
    assert not conflicts(read_listeners(text).listeners, str)
    assert conflicts(read_listeners(f"{text}bind :80\n").listeners, str)


# Declared services and settings


class Site:
    """Settings and services.d, and the running ones that they are compared with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "services.d").mkdir()
        self.settings: dict[str, Any] = {
            "cluster": {"nameservers": ["10.0.0.254:53"]},
            "haproxy": {
                "runtime_socket": f"{directory}/admin.sock",
                "master_socket": f"{directory}/master.sock",
            },
            "services": {},
        }
        self.running = RunningDeclarations()

    def service(self, name: str, binds: str, **fields: Any) -> None:
        self.settings["services"][name] = {"pod_port": 8080, "binds": binds, **fields}

    def fragment(self, name: str, text: str) -> None:
        (self.directory / "services.d" / f"{name}.cfg").write_text(text)

    def found(self) -> tuple[list[Problem], set[UnitId]]:
        """Return the problems with a bind, and the units to blame."""
        path = self.directory / "config.json"
        path.write_text(json.dumps(self.settings))
        declaration = declare(read(str(path)), self.running)
        found = prepare(declaration, {}, newcomers=newcomers(declaration, self.running))
        problems = [p for p in found.problems if "no DNS data" not in p.message]
        units = {p.unit for p in errors_in(problems) if p.unit is not None}
        return problems, units - {SETTINGS} if len(units) > 1 else units

    def accept(self) -> None:
        """Record the present declarations as the running ones."""
        path = self.directory / "config.json"
        path.write_text(json.dumps(self.settings))
        self.running = declare(read(str(path))).raw


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def blamed(site: Site) -> str:
    problems, units = site.found()
    (unit,) = units
    assert all(problem.severity is Severity.ERROR for problem in problems)
    return str(unit)


@pytest.mark.parametrize(
    "line",
    [
        "bind 127.0.0.1:80",
        '"bind" ipv4@127.0.0.1:80 name x',
        "bi\\x6ed 127.0.0.1:79-80",
        "bind [::ffff:127.0.0.1]:80",
        "bind 127.0.0.9:80,127.0.0.1:80",
    ],
)
def test_a_raw_line_on_another_services_bind(site: Site, line: str) -> None:
    site.service("victim", "127.0.0.1:80")
    site.service("thief", "127.0.0.1:81", extra_config=[line])
    ((problem,), units) = site.found()
    assert [str(unit) for unit in units] == ["service thief"]
    assert "127.0.0.1" in problem.message
    assert f"is taken by service victim ({site.directory}/config.json)" in problem.message
    assert (problem.service, problem.field) == ("thief", "extra_config")
    assert problem.file == f"{site.directory}/config.json"
    assert problem.line is not None


def test_a_bind_option_cannot_hide_a_second_bind(site: Site) -> None:
    site.service("victim", "127.0.0.1:80")
    site.service("thief", "127.0.0.1:81,127.0.0.1:80")
    problems, _ = site.found()
    assert "several addresses" in problems[0].message


def test_a_fragment_on_a_services_bind(site: Site) -> None:
    site.service("web", "127.0.0.1:80")
    site.fragment("raw", "# mine\nfrontend raw\n    bind 127.0.0.1:80\n")
    ((problem,), units) = site.found()
    assert [str(unit) for unit in units] == ["fragment raw"]
    assert (problem.file, problem.line) == (f"{site.directory}/services.d/raw.cfg", 3)


@pytest.mark.parametrize(
    "path", ["admin.sock", "./admin.sock", "x/../admin.sock", "link/admin.sock", "/master.sock"]
)
def test_haproxys_own_sockets_by_any_path(site: Site, path: str) -> None:
    (site.directory / "x").mkdir()
    (site.directory / "link").symlink_to(site.directory)
    site.service("evil", "127.0.0.1:80", extra_config=[f"bind unix@{site.directory}/{path}"])
    assert blamed(site) == "service evil"
    assert "is a socket that controls HAProxy" in site.found()[0][0].message


def test_fc_frontends_own_listeners_in_any_form(site: Site) -> None:
    for bind in ("ipv4@:8000", "127.0.0.1:7999-8001", ":::9484", "*:9484 interface lo"):
        site.service("web", "127.0.0.1:80", extra_config=[f"bind {bind}"])
        assert blamed(site) == "service web", bind
        assert "is used by fc-frontend itself" in site.found()[0][0].message


def test_what_haproxy_has_already_wins(site: Site) -> None:
    site.service("young", "127.0.0.1:80")
    site.fragment("zfrag", "listen z\n  mode tcp\n  bind 127.0.0.1:81\n")
    site.accept()
    site.service("a-newcomer", "127.0.0.1:80", extra_config=["bind 127.0.0.1:81"])
    problems, units = site.found()
    assert [str(unit) for unit in units] == ["service a-newcomer"]
    assert len(problems) == 2


def test_new_settings_lose_against_what_serves(site: Site) -> None:
    site.service("web", "127.0.0.1:8001")
    site.accept()
    site.settings["haproxy"]["stats"] = "127.0.0.1:8001"
    ((problem,), units) = site.found()
    assert [str(unit) for unit in units] == ["settings"]
    assert (problem.service, problem.field) == (None, "haproxy.stats")
    assert problem.line is not None
    # An existing service is kept; a new one yields to settings of the same age.
    site.settings["services"] = {}
    site.service("other", "127.0.0.1:8001")
    assert blamed(site) == "service other"


def test_raw_settings_are_compared_too(site: Site) -> None:
    site.service("web", "127.0.0.1:81")
    site.accept()
    site.settings["haproxy"]["global_extra"] = ["stats socket ipv4@127.0.0.1:81 level admin"]
    ((problem,), units) = site.found()
    assert [str(unit) for unit in units] == ["settings"]
    assert problem.field == "haproxy.global_extra"


def test_a_prefix_for_sockets_counts(site: Site) -> None:
    site.settings["haproxy"]["global_extra"] = [f"unix-bind prefix {site.directory}/"]
    site.service("one", "127.0.0.1:80", extra_config=["bind unix@admin.sock"])
    assert blamed(site) == "service one"


def test_a_wildcard_over_many_is_one_warning(site: Site) -> None:
    site.service("wide", "*:80")
    for number in range(9):
        site.service(f"x{number}", f"127.0.0.{number + 1}:80")
    ((problem,), units) = site.found()
    assert not units
    assert problem.severity is Severity.WARNING
    assert "of service x0" in problem.message
    assert "6 more" in problem.message


def test_what_cannot_be_known_is_refused_with_its_place(site: Site) -> None:
    site.fragment("raw", "listen raw\n  mode tcp\n  bind localhost:80\n")
    ((problem,), units) = site.found()
    assert [str(unit) for unit in units] == ["fragment raw"]
    assert (problem.file, problem.line) == (f"{site.directory}/services.d/raw.cfg", 3)
    assert "is not an IP address" in problem.message


def test_a_template_that_prints_more_binds_is_seen(site: Site) -> None:
    (site.directory / "templates").mkdir()
    (site.directory / "templates" / "service.cfg.j2").write_text(
        "listen {{ service.name }} from {{ service.defaults }}\n    bind 127.0.0.1:80\n"
    )
    site.settings["haproxy"]["templates"] = str(site.directory / "templates")
    site.service("one", "127.0.0.1:81")
    site.service("two", "127.0.0.1:82")
    assert blamed(site) == "service two"
