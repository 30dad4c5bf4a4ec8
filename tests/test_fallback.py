"""What mistakes and evidence fall back to: the guard and the last good forms by themselves."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fc_frontend.config.last_good import (
    MAX_FORMER_AGE,
    Form,
    LastGood,
    Piece,
    Unit,
    dump_last_good,
    load_last_good,
)
from fc_frontend.config.loader import Declaration
from fc_frontend.daemon.declared import Declared
from fc_frontend.daemon.guard import MAX_FORMER_FORMS, MAX_LOOKS_DOWN, WATCH_FOR, Guard
from fc_frontend.errors import Problem
from fc_frontend.pipeline import Memo, stored_last_good, stored_pending
from tests.faults.site import put

# The guard


def form(number: int) -> Form:
    return Form("shop.yaml", {"slots": number})


def watching(*numbers: int) -> Guard:
    """A guard after reloads with these forms of a service that had servers up throughout."""
    guard = Guard()
    for before, after in itertools.pairwise(numbers):
        guard.watch({"shop": form(before)}, {"shop": form(after)}, {"shop"}, 0.0)
    return guard


def lost(guard: Guard, now: float = 1.0) -> Mapping[str, Form]:
    """What is to be reverted after enough looks without a server up."""
    for _ in range(MAX_LOOKS_DOWN):
        found = guard.look((), {"shop"}, now)
    return found


def test_each_evidence_takes_back_one_change() -> None:
    guard = watching(0, 1, 2)
    assert lost(guard) == {"shop": form(1)}
    # HAProxy still runs the form that was taken back.
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
    file = tmp_path / "last-good.json"
    file.write_bytes(dump_last_good(LastGood(former=guard.former)))
    resumed = Guard()
    resumed.resume(load_last_good(str(file)).former, 100.0)
    assert lost(resumed, 100.0 + WATCH_FOR - 1) == {"shop": form(1)}
    # Not if it was away for long: what happened since says nothing about the change.
    past = file.stat().st_mtime - MAX_FORMER_AGE
    os.utime(file, (past, past))
    assert not load_last_good(str(file)).former


def test_copies_of_files_that_a_former_form_names_are_kept() -> None:
    named = Form("shop.yaml", {"bind_options": "ssl crt /a/x.pem"})
    files = {"/a/x.pem": "0" * 64, "/a/y.pem": "1" * 64}
    last_good = LastGood(services={"shop": form(0)}, former={"shop": (named,)}, files=files)
    assert list(last_good.named_files()) == ["/a/x.pem"]


# What is last good, by files and HAProxy's verdicts alone


class Daemon:
    """What the daemon keeps of a service `shop`, with HAProxy's part played by the test."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "services.d" / "shop.json"
        self._file.parent.mkdir()
        (directory / "state").mkdir()
        settings = directory / "config.json"
        settings.write_text(json.dumps({"state_directory": str(directory / "state")}))
        self.kept = Declared(str(settings))
        self.former: dict[str, tuple[Form, ...]] = {}

    def declares(self, text: str | int) -> Declaration:
        """What is declared with this in the file, or with the service having so many slots."""
        if isinstance(text, int):
            entry = {"mode": "tcp", "pod_port": 80, "binds": "127.0.0.1:8080", "slots": text}
            text = json.dumps({"services": {"shop": entry}})
        put(self._file, text)
        asyncio.run(self.kept.read(None, afresh=True))
        return self.declared()

    def declared(self) -> Declaration:
        return asyncio.run(self.kept.declaration())

    def runs(self, text: str | int) -> Declaration:
        """As `declares`; HAProxy confirms it."""
        declaration = self.declares(text)
        self.kept.promote(declaration, self.former)
        return declaration

    def reverts(self, declaration: Declaration, form: Form) -> Declaration:
        """The guard takes back what `declaration` has; what is declared then."""
        assert self.kept.take_back(declaration, "shop", "evidence", {}, form)
        return self.declared()


def slots(declaration: Declaration) -> int:
    (service,) = declaration.services
    assert isinstance(service.slots, int)
    return service.slots


@pytest.mark.parametrize("mistake", ["{", '{"services": {"shop": {"slots": 5}}}'])
def test_a_watched_form_is_what_a_mistake_falls_back_to(tmp_path: Path, mistake: str) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    daemon.former = {"shop": (daemon.kept.last_good.services["shop"],)}
    daemon.runs(11)
    assert slots(daemon.runs(mistake)) == 11
    assert slots(daemon.runs(mistake)) == 11


def test_evidence_during_a_mistake_is_against_what_haproxy_runs(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    first = daemon.kept.last_good.services["shop"]
    daemon.runs(11)
    mistaken = daemon.runs("{")
    assert slots(daemon.reverts(mistaken, first)) == 10
    assert slots(daemon.runs("{")) == 10
    # It is not tried again when only the mistake is gone, but any other form is.
    assert slots(daemon.runs(11)) == 10
    assert slots(daemon.runs(12)) == 12
    assert slots(daemon.runs("{")) == 12
    assert not daemon.kept.last_good.failed


def test_evidence_does_not_leave_out_a_service_that_haproxy_refuses_as_declared(
    tmp_path: Path,
) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    first = daemon.kept.last_good.services["shop"]
    daemon.runs(11)
    daemon.declares(12)
    daemon.kept.withdraw({Unit(Piece.SERVICE, "shop"): (Problem(message="refused", remedy=""),)})
    refused = daemon.declared()
    assert slots(refused) == 11
    daemon.kept.promote(refused, {})
    assert slots(daemon.reverts(refused, first)) == 10


def test_a_form_that_failed_is_not_promoted_again_before_the_reload(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.runs(10)
    first = daemon.kept.last_good.services["shop"]
    running = daemon.runs(11)
    daemon.reverts(running, first)
    daemon.kept.promote(running, {})
    assert slots(daemon.declared()) == 10


def test_a_deployment_that_is_confirmed_late_or_by_the_next_daemon_counts(tmp_path: Path) -> None:
    memo, daemon = Memo(), Daemon(tmp_path)
    settings = daemon.runs(10).settings
    asyncio.run(daemon.kept.save(settings, memo))
    asyncio.run(daemon.kept.attempt(daemon.declares(11), "0123", {}, memo))
    other = Declared(str(tmp_path / "config.json"))
    asyncio.run(other.read(None, afresh=True))
    for kept in (daemon.kept, other):
        kept.confirm("4567")
        assert kept.last_good.services["shop"].value["slots"] == 10
        kept.confirm("0123")
        assert kept.last_good.services["shop"].value["slots"] == 11
    asyncio.run(other.save(settings, memo))
    assert stored_pending(settings.state_directory) is None
    assert stored_last_good(settings.state_directory) == other.last_good
