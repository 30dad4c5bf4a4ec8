"""Incremental reading, planning and rendering give the same result as starting from scratch."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fc_frontend import stored
from fc_frontend.config import reading
from fc_frontend.config.declare import declare
from fc_frontend.config.loader import Sources, is_unchanged, read
from fc_frontend.config.running import RawDeclaration, RunningDeclarations, dump_running
from fc_frontend.daemon import records
from fc_frontend.daemon.records import Records
from fc_frontend.daemon.state import DaemonState
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.discovery.store import dump_answers
from fc_frontend.observe.log import configure
from fc_frontend.observe.metrics import Metrics
from fc_frontend.pipeline import ProposalMemo
from fc_frontend.plan.model import Answer, Endpoint, Freshness, Kind
from fc_frontend.stored import (
    RunningState,
    question,
    save_answers,
    stored_answers,
    stored_form,
)
from tests.support.prepared import prepare

LONG_AGO = time.time() - 3600


class Files:
    """Settings and services.d, with time stamps in the past, as those of files usually are."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.services_d = directory / "services.d"
        self.services_d.mkdir()
        self.settings = directory / "config.json"
        self.write_settings({})
        (directory / "server-state").write_text("1\n")

    def write_settings(self, intervals: dict[str, Any]) -> None:
        self.settings.write_text(
            json.dumps(
                {
                    "cluster": {
                        "nameservers": ["udp://127.0.0.1:1"],
                        "nodes": {"node-a": "127.0.0.1"},
                    },
                    "haproxy": {"runtime_socket": f"{self.directory}/admin.sock", "log": None},
                    "state_directory": str(self.directory),
                    "intervals": intervals,
                }
            )
        )
        self.age(self.settings)

    def write(self, name: str, text: str) -> None:
        (self.services_d / name).write_text(text)
        self.age(self.services_d / name)

    def age(self, path: Path) -> None:
        """Set a time stamp that differs at each call and is always in the past."""
        global LONG_AGO  # noqa: PLW0603
        LONG_AGO += 0.001
        os.utime(path, (LONG_AGO, LONG_AGO))

    def read(self, before: Sources | None = None, *names: str) -> Sources:
        return read(str(self.settings), before, frozenset(names) if names else None)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    # The ctime of an inode cannot be set, so only the check of its age is left out.
    monkeypatch.setattr(reading, "CLOCK_GRAIN", -(10**9))
    return Files(tmp_path)


def service(port: int = 8080, **fields: Any) -> dict[str, Any]:
    return {"pod_port": port, "binds": [f"127.0.0.1:{10000 + port}"], **fields}


def services(**declared: dict[str, Any]) -> str:
    return json.dumps({"services": declared})


def test_a_file_that_is_as_it_was_is_not_read_again(files: Files) -> None:
    files.write("a.json", services(a=service(1)))
    files.write("b.json", services(b=service(2)))
    before = files.read()
    assert is_unchanged(before)
    files.write("b.json", services(b=service(3)))
    assert not is_unchanged(before)
    now = files.read(before)
    assert now.services["a"] is before.services["a"]
    assert now.services["b"].value == service(3)
    assert is_unchanged(now)


def test_of_a_file_with_many_services_only_those_that_changed_are_made_anew(files: Files) -> None:
    files.write("all.json", services(a=service(1), b=service(2)))
    before = declare(files.read())
    sources = files.read()
    first = declare(sources)
    files.write("all.json", services(a=service(1), b=service(3)))
    now = declare(files.read(sources))
    assert now.services[0] is first.services[0]
    assert now.services[1] != before.services[1]


def test_lines_of_problems_are_those_of_the_file_as_it_is_now(files: Files) -> None:
    files.write("all.json", services(a=service(1)))
    sources = files.read()
    declare(sources)
    files.write("all.json", '\n\n\n{"services":\n{"a":\n' + json.dumps(service(1)) + "}}")
    now = files.read(sources)
    assert now.services["a"].problem("pod_port", "", "").line == 6


def test_files_that_are_not_named_are_not_looked_at(files: Files) -> None:
    files.write("a.json", services(a=service(1)))
    files.write("b.json", services(b=service(2)))
    before = files.read()
    files.write("a.json", services(a=service(3)))
    files.write("b.json", services(b=service(4)))
    files.write("c.json", services(c=service(5)))
    now = files.read(before, "b.json")
    assert [now.services[name].value["pod_port"] for name in sorted(now.services)] == [1, 4]
    assert sorted(files.read(now).services) == ["a", "b", "c"]


def test_what_was_changed_just_now_is_read_again(tmp_path: Path) -> None:
    files = Files(tmp_path)
    path = files.services_d / "a.json"
    path.write_text(services(a=service(1)))
    before = files.read()
    # As on a file system with a coarse clock: different content with the same times.
    assert not is_unchanged(before)
    now = files.read(before)
    assert now.services["a"].document is not before.services["a"].document


def test_a_file_that_could_not_be_read_is_tried_again(files: Files) -> None:
    files.write("a.json", "{")
    before = files.read()
    assert before.broken
    assert not is_unchanged(before)
    files.write("a.json", services(a=service(1)))
    assert not files.read(before).problems


def test_a_link_to_another_file_is_another_file(files: Files) -> None:
    for number in (1, 2):
        target = files.directory / f"target{number}.json"
        target.write_text(services(a=service(number)))
        os.utime(target, (LONG_AGO, LONG_AGO))
    link = files.services_d / "a.json"
    link.symlink_to(files.directory / "target1.json")
    before = files.read()
    link.unlink()
    link.symlink_to(files.directory / "target2.json")
    assert not is_unchanged(before)
    assert files.read(before).services["a"].value == service(2)
    assert files.read(before, "a.json").services["a"].value == service(2)


NAMES = [f"{name}.json" for name in "abcd"] + ["e.cfg", "f.yml", ".g.json"]
SERVICES = st.dictionaries(
    st.sampled_from(["shop", "cart", "docs", "api"]),
    st.one_of(
        st.builds(service, st.integers(1, 4)),
        st.just({"pod_port": 80, "binds": ["*:80"]}),
        st.just({"pod_prot": 80}),
        st.just({"lb_service_port": 80}),
    ),
    max_size=3,
)
CONTENT = st.one_of(
    st.none(),
    SERVICES.map(lambda found: json.dumps({"services": found})),
    SERVICES.map(lambda found: json.dumps({"services": found}, indent=2)),
    st.sampled_from(["{", "frontend x\n  bind :81\n", ""]),
)
EDITS = st.lists(
    st.tuples(st.sampled_from([*NAMES, "settings"]), CONTENT, st.booleans()), max_size=8
)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(edits=EDITS, pods=st.lists(st.integers(0, 5), min_size=1))
def test_changes_one_by_one_give_the_same_as_all_anew(
    edits: list[tuple[str, str | None, bool]], pods: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CLOCK_GRAIN", -(10**9))
    for directory in temporary():
        files = Files(directory)
        files.write("a.json", services(shop=service(1), cart=service(2)))
        sources = files.read()
        memo, written_answers = ProposalMemo(), stored.WrittenAnswers()
        former = declare(sources).raw
        for number, (name, content, is_named) in enumerate(edits):
            edit(files, name, content)
            names = () if name == "settings" or not is_named else (name,)
            sources = files.read(sources, *names)
            fresh = files.read()
            assert comparable(sources) == comparable(fresh)
            given_answers = answers(pods, number)
            declaration = declare(sources, former)
            assert declaration == declare(fresh, former)
            for shrink in (False, True):
                done = prepare(declaration, given_answers, shrink=shrink, memo=memo)
                assert done == prepare(declaration, given_answers, shrink=shrink)
            specs = declaration.services
            written = stored_form(specs, given_answers, memo=written_answers)
            assert written == stored_form(specs, given_answers)


def test_answers_are_written_one_by_one_as_they_would_be_at_once(files: Files) -> None:
    files.write("a.json", services(shop=service(1), cart=service(2), docs=service(3)))
    declaration = declare(files.read())
    given_answers = answers([3, 0], 0)
    memo, specs = stored.WrittenAnswers(), declaration.services
    written = stored_form(specs, given_answers, memo=memo)
    by_question = {question(spec): given_answers[spec.name] for spec in declaration.services}
    assert written == dump_answers(by_question)
    given_answers["cart"] = answers([5], 0)["cart"]
    assert stored_form(specs, given_answers, memo=memo) != written
    del given_answers["docs"]
    assert stored_form(specs, given_answers, memo=memo) == stored_form(specs, given_answers)


def test_what_changes_while_it_is_written_is_written_the_next_time(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write("a.json", services(shop=service(1)))
    declaration = declare(files.read())
    log, metrics = configure(io.StringIO()), Metrics()
    tracker = Tracker(log, metrics)
    kept = Records(tracker, log, metrics, time.monotonic)
    kept.running_state = RunningState(declaration.settings.state_directory)
    tracker.become(DaemonState(declaration=declaration, resolution=answers([1], 0)))

    def written_during_a_sweep(*given: Any, memo: stored.WrittenAnswers) -> None:
        save_answers(*given, memo=memo)
        tracker.become(replace(tracker.state, resolution=answers([2], 0)))

    with monkeypatch.context() as patched:
        patched.setattr(records, "save_answers", written_during_a_sweep)
        asyncio.run(kept.save())
    assert len(stored_answers(declaration.settings, declaration.services)["shop"].endpoints) == 1
    asyncio.run(kept.save())
    assert len(stored_answers(declaration.settings, declaration.services)["shop"].endpoints) == 2
    assert not kept.has_unsaved_answers
    tracker.become(replace(tracker.state, resolution=answers([3], 0)))
    shutil.rmtree(files.directory)
    files.directory.write_text("no directory")
    asyncio.run(kept.save())
    assert kept.has_unsaved_answers, "it is tried again"


def test_running_declarations_name_their_files() -> None:
    shop = RawDeclaration(
        "/etc/x/shop.json", {"bind_options": "ssl crt /etc/tls/shop.pem,/etc/tls/ä.pem"}
    )
    fragment = RawDeclaration(
        "/etc/x/own.cfg", "listen own\n\tbind :81 ssl crt\t/etc/tls/own.pem\n"
    )
    kept = {"/etc/tls/shop.pem": "a" * 64, "/etc/tls/own.pem": "b" * 64, "/etc/tls/sh": "c" * 64}
    good = RunningDeclarations(services={"shop": shop}, fragments={"own": fragment}, files=kept)
    assert sorted(good.named_files()) == ["/etc/tls/own.pem", "/etc/tls/shop.pem"]
    other = RunningDeclarations(
        services={"shop": shop, "new": RawDeclaration("/etc/x/new.json", {})},
        files=kept,
        failed={"y": (shop,)},
    )
    assert json.loads(dump_running(other))["services"] == {
        "shop": [shop.file, shop.value, "trusted"],
        "new": ["/etc/x/new.json", {}, "trusted"],
    }
    assert sorted(other.named_files()) == ["/etc/tls/shop.pem"]


def temporary() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="fci-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def edit(files: Files, name: str, content: str | None) -> None:
    if name == "settings":
        files.write_settings({"hold": f"{len(content or '') + 1}s"})
    elif content is None:
        (files.services_d / name).unlink(missing_ok=True)
    else:
        files.write(name, content)


def answers(pods: list[int], turn: int) -> dict[str, Answer]:
    return {
        name: Answer(
            kind=Kind.HEADLESS,
            reason="pods",
            endpoints=tuple(
                Endpoint(f"10.1.0.{n + 1}", 80) for n in range(pods[(turn + at) % len(pods)])
            ),
            freshness=Freshness.FRESH,
            slots=4,
        )
        for at, name in enumerate(("shop", "cart", "docs"))
    }


def comparable(sources: Sources) -> tuple[object, ...]:
    """Return what was read, without its locator; the lines of problems are derived from it."""
    return (
        sources.settings,
        {name: (raw.value, raw.file) for name, raw in sources.services.items()},
        sources.fragments,
        sources.templates,
        sources.broken,
        sources.problems,
    )
