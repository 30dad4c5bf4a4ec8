"""What is not retried after a failed reload, and when it is retried."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fc_frontend.haproxy import failed_reloads
from fc_frontend.haproxy.failed_reloads import Attempt
from fc_frontend.haproxy.reload import FilePlace, ReloadOutcome, refused_binds
from fc_frontend.haproxy.trial import Taker
from fc_frontend.model.units import SETTINGS, Section, UnitId, UnitKind
from fc_frontend.plan.model import Haproxy, Settings
from fc_frontend.render.config import BLANK_DESCRIPTION, Config, assemble
from tests.conftest import free_port, loopback

TAKER = Taker()
UNNAMED = ReloadOutcome(False, "its log has the reason", 2.0)


class Site:
    """Sections with one bind each, and the record of failed reloads."""

    def __init__(self, directory: Path, *names: str) -> None:
        haproxy = Haproxy(config_file=f"{directory}/haproxy.cfg")
        self.settings = Settings(state_directory=str(directory), haproxy=haproxy)
        self.head = Section(SETTINGS, f"global\n  description {BLANK_DESCRIPTION}")
        self.sections = {name: section(name) for name in names}

    @property
    def config(self) -> Config:
        return assemble([self.head, *self.sections.values()])

    def change(self, name: str, line: str) -> None:
        before = self.sections[name]
        self.sections[name] = replace(before, text=f"{before.text}\n  {line}")

    def attempt(self, *, is_forced: bool = False) -> Attempt:
        return Attempt(self.settings, self.config, is_forced=is_forced)

    def fails(self, outcome: ReloadOutcome = UNNAMED, taker: Taker = TAKER) -> None:
        assert not self.attempt().failed(taker, outcome)

    def rejected(self, taker: Taker = TAKER, *, is_forced: bool = False) -> list[str]:
        """Return the units that are not retried; an empty name stands for the text as a whole."""
        found = self.attempt(is_forced=is_forced).rejected(taker)
        return [str(problem.unit or "") for problem in found]

    def line(self, name: str) -> int:
        """Return the line of a service's bind."""
        place = next(each for each in self.config.places if each.unit.name == name)
        return place.first + 1


def section(name: str) -> Section:
    address = loopback()
    text = f"listen {name}\n  bind {address}:{free_port(address)}\n  server a 192.0.2.1:80"
    return Section(UnitId(UnitKind.SERVICE, name), text)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, "a", "b", "c")


def named(site: Site, *names: str, file: str = "/elsewhere/haproxy.cfg") -> ReloadOutcome:
    places = tuple(FilePlace(file, site.line(name)) for name in names)
    return ReloadOutcome(False, "cannot bind socket", 2.0, places)


def test_only_the_unit_that_haproxy_names_is_rejected(site: Site) -> None:
    assert site.rejected() == []
    site.fails(named(site, "b"))
    assert site.rejected() == ["service b"]
    (problem,) = site.attempt().rejected(TAKER)
    assert "cannot bind socket" in problem.message
    assert site.rejected(is_forced=True) == []
    # While withheld, the unit is not deployed and the failure is kept; a deployment clears it.
    withheld = site.sections.pop("b")
    assert site.rejected() == []
    assert not site.attempt().succeeded()
    site.sections["b"] = withheld
    assert site.rejected() == ["service b"]
    assert not site.attempt().succeeded()
    assert site.rejected() == []
    assert not Path(failed_reloads.path(site.settings.state_directory)).exists()


def test_names_of_another_file_are_not_ours(site: Site) -> None:
    site.fails(named(site, "b", file="/etc/haproxy/other.cfg"))
    assert len(failed_reloads.load(site.settings.state_directory)) == 3


def test_another_text_is_tried_but_other_pods_do_not_make_one(site: Site) -> None:
    site.fails(named(site, "b"))
    site.change("a", "balance source")
    site.change("b", "server more 192.0.2.2:80")
    assert site.rejected() == ["service b"]
    site.change("b", "balance source")
    assert site.rejected() == []


def test_other_circumstances_are_another_chance(site: Site, tmp_path: Path) -> None:
    directory = tmp_path / "sockets"
    site.change("c", f"bind unix@{directory}/web")
    site.fails(named(site, "c"))
    assert site.rejected() == ["service c"]
    directory.mkdir()
    assert site.rejected() == []
    site.fails(named(site, "c"))
    assert site.rejected() == ["service c"]
    directory.chmod(0o711)
    assert site.rejected() == []
    assert site.rejected(Taker(master=1)) == []


def test_of_several_suspects_all_but_one_wait(site: Site) -> None:
    site.fails()
    assert site.rejected() == ["service b", "service c"]
    # The first suspect is deployed successfully and is no longer suspected.
    others = {name: site.sections.pop(name) for name in "bc"}
    assert not site.attempt().succeeded()
    site.sections |= others
    assert site.rejected() == ["service c"]
    # The second suspect fails alone, which clears the third.
    del site.sections["a"], site.sections["c"]
    site.fails()
    site.sections |= others
    assert site.rejected() == ["service b"]


def test_one_suspect_is_tried_while_the_others_are_withheld(site: Site) -> None:
    site.fails()
    assert site.rejected() == ["service b", "service c"]
    withheld = {name: site.sections.pop(name) for name in ("b", "c")}
    assert site.rejected() == []
    assert not site.attempt().succeeded()
    site.sections |= withheld
    assert site.rejected() == ["service c"]


def test_the_last_suspect_is_not_tried_at_all(site: Site) -> None:
    site.fails()
    kept = dict(site.sections)
    for name in "ab":
        site.sections = {name: kept[name]}
        assert not site.attempt().succeeded()
    site.sections = kept
    assert site.rejected() == ["service c"]


def test_raw_text_is_suspected_before_declared_binds() -> None:
    listener = section("z")
    units = [UnitId(UnitKind.FRAGMENT, "a"), listener.unit]
    assert failed_reloads.most_suspicious_last(units, [], None) == [listener.unit, units[0]]


def test_without_a_new_listener_the_text_is_rejected(site: Site) -> None:
    site.sections.clear()
    site.fails(taker=Taker(master=5, pids=frozenset({5, 6})))
    same = Taker(master=5, pids=frozenset({5, 6}))
    assert site.rejected(same) == [""]
    assert site.rejected(Taker(master=5, pids=frozenset({5, 7}))) == []
    site.sections["d"] = section("d")
    assert site.rejected(same) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"version": 2, "failures": []}',
        b'{"version": 1, "failures": [{}]}',
        b'{"version": 1, "failures": [{"kind": "nonsense", "name": "", "text": "", '
        b'"circumstances": "", "binds": "", "message": "", "at": 0, "is_suspected": false}]}',
        b'{"version": 1, "failures": [[]]}',
        b'{"version": 1, "failures": 1}',
        b'{"version": 1, "failures": {"kind": 1}}',
        *(
            b'{"version": 1, "failures": [{"kind": "", "name": "", "text": "", "circumstances": "",'
            b' "binds": "", "message": "", "at": %s, "is_suspected": false}]}' % at
            for at in (b'"1"', b"1e999", b"NaN", b"1e300", b"[]")
        ),
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: bytes) -> None:
    Path(failed_reloads.path(str(tmp_path))).write_bytes(content)
    assert failed_reloads.load(str(tmp_path)) == ()


def test_where_haproxy_says_it_could_not_bind() -> None:
    logs = (
        "[NOTICE]   (1) : haproxy version is 2.8.25\n"
        "[ALERT]    (1) : Binding [c.cfg:15] for frontend b: cannot bind socket (x) [/x]\n"
        "[ALERT]    (1) : Starting [/etc/a b/haproxy.cfg:7] for proxy c: cannot listen\n"
        "[WARNING]  (1) : Binding [c.cfg:18] for frontend a: cannot bind receiver to device\n"
        "[ALERT]    (1) : [haproxy.main()] Some protocols failed to start their listeners!\n"
    )
    assert refused_binds(logs) == (("c.cfg", 15), ("/etc/a b/haproxy.cfg", 7))
