"""The fallback after mistakes and failures: the guard and the last good forms in isolation."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fc_frontend.config.loader import read
from fc_frontend.config.running import (
    MAX_FORMER_AGE,
    RawDeclaration,
    RunningDeclarations,
    dump_running,
    load_running,
)
from fc_frontend.daemon.guard import MAX_FORMER_FORMS, MAX_LOOKS_DOWN, WATCH_FOR, Guard
from fc_frontend.errors import Problem
from fc_frontend.model.units import UnitId, UnitKind
from fc_frontend.pipeline import Base, Prepared, base_of, no_check, propose
from fc_frontend.plan.model import Settings
from fc_frontend.rollout import deployed_declarations
from fc_frontend.stored import RunningState, stored_pending, stored_running
from tests.faults.site import put

# The guard


def form(number: int) -> RawDeclaration:
    return RawDeclaration("shop.yaml", {"slots": number})


def watching(*numbers: int) -> Guard:
    """Return a guard after reloads with these forms of a service that always had servers up."""
    guard = Guard()
    for before, after in itertools.pairwise(numbers):
        guard.watch({"shop": form(before)}, {"shop": form(after)}, {"shop"}, 0.0)
    return guard


def lost(guard: Guard, now: float = 1.0) -> Mapping[str, RawDeclaration]:
    """Return the declarations to revert after `MAX_LOOKS_DOWN` looks without a server up."""
    for _ in range(MAX_LOOKS_DOWN):
        found = guard.look((), {"shop"}, now)
    return found


def test_each_evidence_takes_back_one_change() -> None:
    guard = watching(0, 1, 2)
    assert lost(guard) == {"shop": form(1)}
    # HAProxy still runs the reverted form.
    assert lost(guard) == {}
    guard.watch({"shop": form(1)}, {"shop": form(1)}, (), 2.0)
    assert lost(guard, 3.0) == {"shop": form(0)}
    assert not guard.former


def test_a_reload_for_something_else_keeps_the_watch_and_its_end() -> None:
    guard = watching(0, 1)
    guard.watch({"shop": form(1)}, {"shop": form(1), "other": form(5)}, {"shop"}, 10.0)
    assert guard.former == {"shop": (form(0),)}
    guard.look({"shop"}, {"shop"}, WATCH_FOR)
    assert not guard.former


def test_another_change_is_watched_for_the_full_time() -> None:
    guard = Guard()
    for number in range(3):
        guard.watch({"shop": form(number)}, {"shop": form(number + 1)}, {"shop"}, 14.0 * number)
    guard.look({"shop"}, {"shop"}, 14.0 * 2 + WATCH_FOR - 1)
    assert lost(guard, 14.0 * 2 + WATCH_FOR - 1) == {"shop": form(2)}


def test_a_form_that_had_no_server_up_is_no_way_back() -> None:
    guard = watching(0, 1)
    guard.watch({"shop": form(1)}, {"shop": form(2)}, (), 1.0)
    assert guard.former == {"shop": (form(0),)}
    fresh = Guard()
    fresh.watch({"shop": form(0)}, {"shop": form(1), "new": form(1)}, {"new"}, 1.0)
    assert not fresh.former


def test_a_service_that_returns_to_a_former_form_is_watched_as_it_was_then() -> None:
    assert watching(0, 1, 2, 1).former == {"shop": (form(0),)}
    assert not watching(0, 1, 0).former


def test_former_forms_are_few_and_the_proven_one_is_among_them() -> None:
    numbers = range(3 * MAX_FORMER_FORMS)
    former = watching(*numbers).former["shop"]
    assert former == (form(0), *map(form, numbers[-MAX_FORMER_FORMS:-1]))


def test_a_service_that_is_removed_is_not_watched() -> None:
    guard = watching(0, 1)
    guard.watch({"shop": form(1)}, {}, {"shop"}, 1.0)
    assert not guard.former


def test_a_watch_is_taken_up_by_the_next_daemon(tmp_path: Path) -> None:
    guard = watching(0, 1, 2)
    file = tmp_path / "running.json"
    file.write_bytes(dump_running(RunningDeclarations(former=guard.former)))
    resumed = Guard()
    resumed.resume(load_running(str(file)).former, 100.0)
    assert lost(resumed, 100.0 + WATCH_FOR - 1) == {"shop": form(1)}
    # Not after a long absence: the state of the servers then no longer reflects the change.
    past = file.stat().st_mtime - MAX_FORMER_AGE
    os.utime(file, (past, past))
    assert not load_running(str(file)).former


def test_copies_of_files_that_a_former_form_names_are_kept() -> None:
    named = RawDeclaration("shop.yaml", {"bind_options": "ssl crt /a/x.pem"})
    files = {"/a/x.pem": "0" * 64, "/a/y.pem": "1" * 64}
    running = RunningDeclarations(
        services={"shop": form(0)}, former={"shop": (named,)}, files=files
    )
    assert list(running.named_files()) == ["/a/x.pem"]


# The fallback after mistakes and failures, with files and verdicts only

SHOP = UnitId(UnitKind.SERVICE, "shop")
REFUSED = {SHOP: (Problem("refused"),)}


class Daemon:
    """The daemon's records of a service `shop`; the test plays HAProxy's part."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "services.d" / "shop.json"
        self._file.parent.mkdir()
        (directory / "state").mkdir()
        self._settings = directory / "config.json"
        settings = {
            "state_directory": str(directory / "state"),
            "cluster": {"nameservers": ["::1"]},
        }
        self._settings.write_text(json.dumps(settings))
        self._base = Base()
        self.running = RunningDeclarations()
        self.former: dict[str, tuple[RawDeclaration, ...]] = {}

    def declares(
        self, text: str | int | None = None, withhold: Mapping[UnitId, tuple[Problem, ...]] = {}
    ) -> Prepared:
        """Return the configuration prepared for this file content, or for this number of slots."""
        if isinstance(text, int):
            entry = {"mode": "tcp", "pod_port": 80, "binds": "127.0.0.1:8080", "slots": text}
            text = json.dumps({"services": {"shop": entry}})
        if text is not None:
            put(self._file, text)
        self._sources = read(str(self._settings))
        return propose(self._sources, self._base, {}, {}, no_check, withhold=withhold)

    def runs(
        self,
        text: str | int | None = None,
        withhold: Mapping[UnitId, tuple[Problem, ...]] = {},
    ) -> Prepared:
        """Prepare as `declares` does, and record that HAProxy confirmed it."""
        prepared = self.declares(text, withhold)
        self.running = deployed_declarations(
            prepared, self.running, self._sources, former=self.former
        )
        self._base = base_of(prepared, self.running, is_running=True)
        return prepared

    def fails(self, back: RawDeclaration) -> None:
        """Record a failure of the running form, reverted to `back`."""
        self.running = self.running.after_failure("shop", "evidence", back)
        self._base = replace(self._base, declarations=self.running)


def slots(prepared: Prepared) -> int:
    (service,) = prepared.plan.services
    assert prepared.config is not None
    assert f"server-template pod {service.slots} " in prepared.config.section_text("shop")
    return service.slots


@pytest.mark.parametrize("mistake", ["{", '{"services": {"shop": {"slots": 5}}}'])
def test_a_watched_form_is_what_a_mistake_falls_back_to(tmp_path: Path, mistake: str) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    daemon.former = {"shop": (daemon.running.services["shop"],)}
    daemon.runs(11)
    assert slots(daemon.runs(mistake)) == 11
    assert slots(daemon.runs(mistake)) == 11


def test_evidence_during_a_mistake_is_against_what_haproxy_runs(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    first = daemon.running.services["shop"]
    daemon.runs(11)
    daemon.runs("{")
    daemon.fails(first)
    assert slots(daemon.runs("{")) == 10
    assert slots(daemon.runs("{")) == 10
    # Fixing only the mistake does not retry the failed form; any other form is tried.
    assert slots(daemon.runs(11)) == 10
    assert slots(daemon.runs(12)) == 12
    assert slots(daemon.runs("{")) == 12
    assert not daemon.running.failed


def test_a_form_that_failed_goes_back_while_the_file_still_declares_it(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    first = daemon.running.services["shop"]
    daemon.runs(11)
    daemon.fails(first)
    prepared = daemon.runs()
    assert slots(prepared) == 10
    (held,) = prepared.withheld
    assert (held.unit, held.is_kept) == (SHOP, True)
    assert "evidence" in held.problems[0].message
    assert slots(daemon.runs()) == 10


def test_evidence_does_not_leave_out_a_service_that_haproxy_refuses_as_declared(
    tmp_path: Path,
) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    first = daemon.running.services["shop"]
    daemon.runs(11)
    assert slots(daemon.runs(12, REFUSED)) == 11
    daemon.fails(first)
    assert slots(daemon.runs(12, REFUSED)) == 10


def test_a_removed_service_does_not_come_back_by_evidence(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    first = daemon.running.services["shop"]
    daemon.runs(11)
    daemon.fails(first)
    assert not daemon.runs("{}").plan.services


def test_a_deployment_that_is_confirmed_late_or_by_the_next_daemon_counts(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    settings = Settings(state_directory=state)
    first = RunningDeclarations(services={"shop": form(10)}, hash="4567")
    second = RunningDeclarations(services={"shop": form(11)}, hash="0123")
    daemon = RunningState(state)
    daemon.promote(first)
    (tmp_path / "state").mkdir()
    daemon.save(settings)
    daemon.attempt(settings, second)
    other = RunningState(state)
    for each in (daemon, other):
        assert not each.confirm("89ab")
        assert each.confirmed.services["shop"] == form(10)
        assert each.confirm("0123")
        assert each.confirmed.services["shop"] == form(11)
    other.save(settings)
    assert stored_pending(state) is None
    assert stored_running(state) == other.confirmed
