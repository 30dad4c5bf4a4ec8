"""History, and the way back: rollback holds a configuration until resume."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.demo.load import Load
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import history, hold
from fc_frontend.haproxy.lock import deploying
from tests.frontend import Frontend


@pytest.fixture
def frontend(haproxy_binary: str) -> Iterator[Frontend]:
    with Frontend(haproxy_binary) as made:
        yield made


def two_configurations(frontend: Frontend) -> tuple[str, str]:
    """A daemon that has deployed two configurations; their hashes."""
    frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    first = frontend.running_hash()
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    frontend.until(lambda: frontend.metric("fc_frontend_reloads_total") == 2)
    frontend.until(frontend.ready)
    second = frontend.running_hash()
    assert first
    assert second
    frontend.until(
        lambda: len(json.loads(frontend.run("history", "--json").stdout)["entries"]) == 2
    )
    return first, second


def test_going_back_is_held_until_resume_and_costs_no_request(frontend: Frontend) -> None:
    first, second = two_configurations(frontend)
    pods = frontend.pods["shop"]
    frontend.until(lambda: frontend.serves(8080, pods))
    with Load(frontend.host, 8080, clients=4) as load:
        done = frontend.run("rollback")
        assert "good: 1 is held, reloaded" in done.stdout
        assert frontend.running_hash() == first
        frontend.until(lambda: frontend.status()["held"])
        assert frontend.until(frontend.ready)
        assert frontend.metric("fc_frontend_held") == 1
        # Neither files nor a restart nor `apply` end it.
        frontend.drop("third.json", {"third": frontend.service("shop", 8082)})
        refused = frontend.run("apply", check=False)
        assert refused.returncode == 1
        assert "fc-frontend resume" in refused.stderr
        frontend.stop_daemon()
        frontend.start()
        assert frontend.running_hash() == first
        assert frontend.serves(8080, pods)
        listed = frontend.run("history").stdout
        assert "1 is held" in listed
        assert "*     1 " in listed
        done = frontend.run("resume")
        assert "1 is not held any more" in done.stdout
        frontend.until(lambda: frontend.ask(8082).startswith("shop-"))
        frontend.until(lambda: not frontend.status()["held"] and frontend.ready())
        assert frontend.running_hash() not in (first, second)
        assert frontend.metric("fc_frontend_held") == 0
        assert not load.stop().failures
    assert frontend.run("resume").stdout == "nothing was held\n"


def test_a_haproxy_that_dies_while_held_comes_back_with_what_is_held(frontend: Frontend) -> None:
    first, _ = two_configurations(frontend)
    frontend.run("rollback", "1")
    frontend.until(lambda: frontend.status()["held"])
    frontend.end_haproxy()
    frontend.until(lambda: frontend.running_hash() == first)
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
    frontend.until(lambda: frontend.events("haproxy-revived"))


def test_what_cannot_be_gone_back_to_changes_nothing(frontend: Frontend) -> None:
    _, second = two_configurations(frontend)
    unknown = frontend.run("rollback", "77", check=False)
    assert unknown.returncode == 1
    assert "there is no configuration 77 to go back to" in unknown.stderr
    text = frontend.directory / "state" / "history" / "000001.cfg"
    text.write_text(text.read_text().replace("leastconn", "nonsense"))
    refused = frontend.run("rollback", "1", check=False)
    assert refused.returncode == 1
    assert "not gone back to 1: all is as before" in refused.stderr
    assert "nonsense" in refused.stderr
    assert frontend.running_hash() == second
    assert hold.load(str(frontend.directory / "state")) is None
    frontend.until(frontend.ready)


def test_what_haproxy_refused_is_remembered_without_its_text(frontend: Frontend) -> None:
    frontend.start()
    frontend.drop("a.json", {"a": frontend.service("a", 8081, extra_config="nonsense")})
    frontend.until(lambda: frontend.status()["quarantined"])
    entries = history.entries(str(frontend.directory / "state"))
    assert [entry.outcome for entry in entries if entry.has_text] == ["started"]
    directory = frontend.directory / "state" / "history"
    assert directory.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o640}


def test_several_at_once_take_turns(frontend: Frontend) -> None:
    frontend.scale("shop", 1)
    frontend.start()
    codes: list[int] = []

    def apply() -> None:
        codes.append(frontend.run("apply", check=False).returncode)

    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080)})
    threads = [threading.Thread(target=apply) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0, 0]
    frontend.until(frontend.ready)
    frontend.until(lambda: frontend.ask(8080) == "shop-1")


def add(state: Path, number: int, text: str | None = "x") -> history.Entry:
    return history.record(
        str(state),
        at=float(number),
        hash=f"{number:016x}",
        outcome="reloaded" if text else "refused",
        reasons=[f"reason {number}"],
        services=1,
        slots=10,
        seconds=0.1,
        text=text,
    )


def test_history_is_bounded_in_number_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(history.MOST_ENTRIES + 7):
        add(tmp_path, number)
    kept = history.entries(str(tmp_path))
    assert len(kept) == history.MOST_ENTRIES
    assert kept[-1].id == history.MOST_ENTRIES + 7
    assert history.text_of(str(tmp_path), kept[0]) == "x"
    monkeypatch.setattr(history, "MOST_BYTES", 5000)
    add(tmp_path, 90, "y" * 4000)
    assert len(history.entries(str(tmp_path))) < 10
    # What HAProxy took last stays, however large, and however much it refused since.
    last = add(tmp_path, 91, "z" * 9000)
    add(tmp_path, 92, None)
    assert history.text_of(str(tmp_path), last) == "z" * 9000


def test_what_fails_again_and_again_is_told_once(tmp_path: Path) -> None:
    add(tmp_path, 1)
    first = add(tmp_path, 2, None)
    assert add(tmp_path, 2, None) == first
    assert add(tmp_path, 3, None).id == 3
    assert len(history.entries(str(tmp_path))) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"at": "x"}', b"\xff\xfe"])
def test_damaged_entries_are_left_out(tmp_path: Path, damage: bytes) -> None:
    add(tmp_path, 1)
    add(tmp_path, 2)
    (tmp_path / "history" / "000001.json").write_bytes(damage)
    (tmp_path / "hold.json").write_bytes(damage)
    assert [entry.id for entry in history.entries(str(tmp_path))] == [2]
    assert hold.load(str(tmp_path)) is None
    assert add(tmp_path, 3).id == 3


def test_who_deploys_for_too_long_is_named(tmp_path: Path) -> None:
    with (
        deploying(str(tmp_path), 1.0),
        pytest.raises(Unavailable, match=r"process \d+ has been deploying for 0.1 s"),
        deploying(str(tmp_path), 0.1),
    ):
        raise AssertionError
    # Where no lock can be made, nobody is hindered.
    with deploying("/proc/none", 0.1):
        pass
