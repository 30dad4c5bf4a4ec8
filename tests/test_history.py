"""The history, rollback under load, and a hold that survives a restart of the daemon."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.demo.load import Load
from fc_frontend.errors import Refused, Severity, Unavailable
from fc_frontend.haproxy import history, hold
from fc_frontend.haproxy.history import Entry
from fc_frontend.haproxy.hold import Hold
from fc_frontend.haproxy.lock import deploying
from fc_frontend.haproxy.rollback import choice
from fc_frontend.haproxy.server_state import servers_in, state_of_running
from fc_frontend.render.config import config_hash
from tests.support.frontend import Frontend
from tests.test_server_state import running

GOOD = Path(__file__).parent / "golden" / "headless-grown" / "expected.cfg"


def good_text() -> tuple[str, str]:
    """Return a rendered text and its hash."""
    text = GOOD.read_text()
    digest = config_hash(text)
    assert digest
    return text, digest


def entry(outcome: str = "reloaded", digest: str = "0" * 16, **fields: Any) -> Entry:
    return Entry(at=1.0, hash=digest, outcome=outcome, **fields)


# Retention


def test_entries_come_back_as_they_were_and_texts_only_of_what_was_taken(tmp_path: Path) -> None:
    text, digest = good_text()
    state = str(tmp_path / "state")
    first = history.record(
        state, entry(digest=digest, reasons=("start",), services=3, slots=30, seconds=0.25), text
    )
    second = history.record(state, entry("refused"), "nonsense")
    assert first and second
    assert (first.id, second.id) == (1, 2)
    assert history.entries(state) == (first, second)
    assert history.text(state, first) == text
    with pytest.raises(Refused, match="did not take"):
        history.text(state, second)
    kept = tmp_path / "state" / "history"
    assert sorted(path.name for path in kept.iterdir()) == [
        "000001.cfg",
        "000001.json",
        "000002.json",
    ]
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o640}
    assert kept.stat().st_mode & 0o777 == 0o750


def test_the_same_refusal_is_told_once_and_does_not_push_out_what_is_good(tmp_path: Path) -> None:
    text, digest = good_text()
    state = str(tmp_path)
    history.record(state, entry(digest=digest), text)
    for _ in range(3):
        history.record(state, entry("refused"), "")
    assert [found.outcome for found in history.entries(state)] == ["reloaded", "refused"]
    for number in range(2 * history.MOST_ENTRIES):
        history.record(state, entry("failed", f"{number:016x}"), "")
    found = history.entries(state)
    assert found[0].outcome == "reloaded" and history.text(state, found[0]) == text
    assert len(found) == history.MOST_ENTRIES // 2 + 1
    assert found[-1].hash == f"{2 * history.MOST_ENTRIES - 1:016x}"


def test_no_more_than_fifty_entries_and_the_bytes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = str(tmp_path)
    for number in range(history.MOST_ENTRIES + 10):
        history.record(state, entry(digest=f"{number:016x}"), "x" * 1000)
    found = history.entries(state)
    assert [e.id for e in found] == list(range(11, history.MOST_ENTRIES + 11))
    monkeypatch.setattr(history, "MOST_BYTES", 10_000)
    history.record(state, entry(digest="f" * 16), "x" * 1000)
    files = list((tmp_path / "history").iterdir())
    assert sum(path.stat().st_size for path in files) <= 10_000
    assert history.entries(state)[-1].hash == "f" * 16
    # The running entry and the one before it are kept, whatever their size.
    history.record(state, entry(digest="e" * 16), "x" * 20_000)
    assert [e.hash[0] for e in history.entries(state)] == ["f", "e"]


DAMAGED = {
    "empty": "",
    "not JSON": "{",
    "deep": "[" * 100_000,
    "a list": "[]",
    "another version": '{"version": 2, "id": 2}',
    "another number": '{"version": 1, "id": 3}',
    "a hash that is none": json.dumps(
        {"version": 1, "id": 2, "at": 1, "hash": "; quit", "outcome": "reloaded", "reasons": []}
    ),
    "endless time": '{"version": 1, "id": 2, "at": Infinity, "hash": "0123456789abcdef", '
    '"outcome": "reloaded", "reasons": [], "services": 1, "slots": 1, "seconds": 0}',
    "a colour": '{"version": 1, "id": 2, "at": 1, "hash": "0123456789abcdef", '
    '"outcome": "\\u001b[31m", "reasons": [], "services": 1, "slots": 1, "seconds": 0}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_entry_is_left_out_and_its_number_is_not_given_again(
    tmp_path: Path, content: str
) -> None:
    state = str(tmp_path)
    history.record(state, entry(), "")
    (tmp_path / "history" / "000002.json").write_text(content)
    assert [found.id for found in history.entries(state)] == [1]
    third = history.record(state, entry(digest="1" * 16), "")
    assert third and third.id == 3
    assert [found.id for found in history.entries(state)] == [1, 3]


def test_pipes_links_and_other_names_are_no_entries(tmp_path: Path) -> None:
    history.record(str(tmp_path), entry(), "")
    kept = tmp_path / "history"
    os.mkfifo(kept / "000002.json")
    (kept / "000003.json").symlink_to("/dev/zero")
    (kept / "1.json").write_text("{}")
    (kept / "0000001.json").write_text((kept / "000001.json").read_text())
    assert [found.id for found in history.entries(str(tmp_path))] == [1]


def test_a_text_that_was_changed_is_not_gone_back_to(tmp_path: Path) -> None:
    text, digest = good_text()
    kept = history.record(str(tmp_path), entry(digest=digest), text)
    assert kept
    file = tmp_path / "history" / "000001.cfg"
    for changed in (text.replace("leastconn", "roundrobin"), text + "\udcff", ""):
        file.write_bytes(changed.encode("utf-8", "surrogateescape"))
        with pytest.raises(Refused, match="damaged"):
            history.text(str(tmp_path), kept)


def test_reasons_are_bounded_and_on_one_line(tmp_path: Path) -> None:
    reasons = ("a\nb\x1b[31m", "x" * 10_000, *("more",) * 100)
    kept = history.record(str(tmp_path), entry(reasons=reasons), "")
    assert kept and history.entries(str(tmp_path)) == (kept,)
    assert kept.reasons[0] == r"a b\x1b[31m" and len(kept.reasons[1]) == 500
    assert kept.reasons[-1] == "and 82 more"


def test_what_root_writes_belongs_to_the_owner_of_the_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    if os.geteuid() == 0:
        os.chown(state, 4321, 4322)
    text, digest = good_text()
    history.record(str(state), entry(digest=digest), text)
    hold.save(str(state), Hold(id=1, hash=digest))
    found = {(path.stat().st_uid, path.stat().st_gid) for path in state.rglob("*")}
    assert found == {(state.stat().st_uid, state.stat().st_gid)}


def test_only_one_process_deploys_at_a_time(tmp_path: Path) -> None:
    with (
        deploying(str(tmp_path), 1.0) as unlocked,
        pytest.raises(Unavailable, match=rf"process {os.getpid()} has been deploying for 0.05 s"),
        deploying(str(tmp_path), 0.05),
    ):
        raise AssertionError
    assert not unlocked
    with deploying(str(tmp_path), 0.05) as unlocked:
        assert not unlocked


def test_where_no_lock_can_be_had_a_warning_is_all(tmp_path: Path) -> None:
    (tmp_path / "deploy.lock").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "deploy.lock").symlink_to("/dev/null")
    for state in (str(tmp_path), str(tmp_path / "link"), "/proc/none"):
        with deploying(state, 0.1) as (warning,):
            assert warning.severity is Severity.WARNING
            assert "deploy.lock cannot be locked" in warning.message


def test_a_hold_comes_back_and_one_that_cannot_be_understood_holds_too(tmp_path: Path) -> None:
    state = str(tmp_path)
    assert hold.load(state) is None
    hold.remove(state)
    wanted = Hold(id=3, hash="0123456789abcdef", since=5.0, by="ünser")
    hold.save(state, wanted)
    assert hold.load(state) == wanted
    file = tmp_path / hold.FILE
    for content in ("", "[]", "{" * 100_000, '{"version": 1, "id": 1, "hash": "; quit"}'):
        file.write_text(content)
        assert hold.load(state) == Hold()
    hold.remove(state)
    os.mkfifo(file)
    assert hold.load(state) == Hold()
    hold.remove(state)
    assert hold.load(state) is None


# The target of a rollback


def test_going_back_without_a_number_goes_on_from_what_is_held() -> None:
    a, b, c = "a" * 16, "b" * 16, "c" * 16
    known = (
        entry(digest=a, id=1),
        entry(digest=b, id=2),
        entry("refused", c, id=3),
        entry(digest=c, id=4),
    )
    assert choice(known, c, None, None).id == 2
    # A rollback to 2 added an entry of its own; the next rollback goes to 1.
    after = (*known, entry(digest=b, id=5))
    held = Hold(id=2, hash=b)
    assert choice(after, b, held, None).id == 1
    assert choice(after, b, held, 4).id == 4
    # If the running hash is unknown, choose the newest entry that HAProxy accepted.
    assert choice(known, None, None, None).id == 4
    for there in (known, ()):
        with pytest.raises(Refused, match="nothing from before"):
            choice(there, a, None, None)
    with pytest.raises(Refused, match="no entry 9"):
        choice(known, c, None, 9)


def test_running_servers_keep_addresses_where_both_texts_mean_the_same_pods() -> None:
    def section(name: str, server: str) -> str:
        return f"listen {name} from tcp\n    bind 127.0.0.1:80\n    {server}\n"

    shop = "server-template pod 2 shop.default.svc.cluster.local:80 check"
    text = "global\n    # server-template pod 9 x:1\n" + section("shop", shop)
    text += section("srv", "server-template pod 1 _http._tcp.srv.default.svc:1 check")
    text += section("other", "server-template pod 1 other.default.svc.cluster.local:80")
    assert list(servers_in(text)) == ["shop", "srv", "other"]
    before = text.replace(shop, shop.replace("pod 2", "pod 9").replace(":80", ":81"))
    before = before.replace("other.default", "wrong.default")
    servers = [
        running("pod7", "10.1.0.7", admin=8),
        running("pod8", "10.1.0.8"),
        replace(running("pod1", "10.1.0.1"), proxy="other"),
        replace(running("pod1", "10.1.0.9"), proxy="srv"),
    ]
    lines = [line.split() for line in state_of_running(text, before, servers).splitlines()]
    # Only existing slots, with the port of the text; for SRV, the port of the record is kept.
    assert [(line[1], line[3], line[4], line[6], line[-2]) for line in lines[1:]] == [
        ("shop", "pod1", "10.1.0.7", "8", "80"),
        ("shop", "pod2", "10.1.0.8", "0", "80"),
        ("srv", "pod1", "10.1.0.9", "0", "8080"),
    ]
    assert state_of_running(text, "", servers) == "1\n"


# End to end


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def listed(frontend: Frontend) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(frontend.run("history", "--json").stdout)["entries"]
    return found


def started(frontend: Frontend) -> None:
    """Start a daemon that has deployed shop, and then more."""
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    pods = frontend.scale("shop", 3)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.drop("more.json", {"more": frontend.service("more", 8081, service="shop")})
    frontend.until(lambda: len(frontend.status()["services"]) == 2 and frontend.ready())
    frontend.until(lambda: len(listed(frontend)) == 2)


def test_going_back_and_resuming_under_load_loses_no_request(frontend: Frontend) -> None:
    started(frontend)
    first, second = listed(frontend)
    assert (first["outcome"], first["reasons"]) == ("started", ["start"])
    assert (second["outcome"], second["reasons"]) == ("reloaded", ["service-added more"])
    assert (first["running"], second["running"]) == (False, True)
    declared = frontend.running_hash()
    assert second["hash"] == declared
    with Load(frontend.host, 8080, clients=4) as load:
        assert "entry 1: reloaded" in frontend.run("rollback").stdout
        assert frontend.running_hash() == first["hash"]
        assert "listen more" not in frontend.haproxy_cfg.read_text()
        frontend.until(lambda: frontend.metric("fc_frontend_held") == 1)
        frontend.until(frontend.ready)
        status = frontend.status()
        assert status["held"]["id"] == 1 and status["wanted_hash"] == first["hash"]
        # The hold is kept, whatever is declared.
        frontend.drop("third.json", {"third": frontend.service("third", 8082, service="shop")})
        frontend.until(lambda: len(load.tally().pods) == 3)
        refused = frontend.run("apply", check=False)
        assert refused.returncode == 1 and "fc-frontend resume" in refused.stderr
        assert frontend.running_hash() == first["hash"]
        (frontend.services_d / "third.json").unlink()
        seen = load.tally().requests
        frontend.until(lambda: load.tally().requests > seen + 100)
        frontend.run("resume")
        frontend.until(lambda: frontend.running_hash() == declared)
        frontend.until(frontend.ready)
        tally = load.stop()
    assert tally.requests > 200 and not tally.failures
    assert frontend.metric("fc_frontend_held") == 0 and frontend.status()["held"] is None
    assert [found["reasons"] for found in listed(frontend)[2:]] == [["rollback to 1"], ["resumed"]]
    assert len(frontend.events("held")) == len(frontend.events("resumed")) == 1
    assert "← running" in frontend.run("history").stdout
    assert frontend.run("resume").stdout == "there is no hold\n"


@pytest.mark.extended
def test_a_hold_outlasts_the_daemon_and_a_haproxy_that_dies(frontend: Frontend) -> None:
    started(frontend)
    pods = frontend.pods["shop"]
    held = listed(frontend)[0]["hash"]
    frontend.run("rollback", "1")
    assert "held" in frontend.run("history").stdout
    frontend.stop_daemon(signal.SIGKILL)
    frontend.drop("third.json", {"third": frontend.service("third", 8082, service="shop")})
    frontend.start()
    assert frontend.running_hash() == held and frontend.status()["held"]["id"] == 1
    # The hold is kept with invalid files; HAProxy's resolver finds new pods by itself.
    frontend.drop("bad.json", {"bad": {"pod_port": "no such thing !"}})
    frontend.until(lambda: frontend.status()["problems"] or frontend.status()["withheld"])
    frontend.scale("shop", 5)
    frontend.until(lambda: frontend.serves(8080, pods))
    assert frontend.running_hash() == held and frontend.ready()
    frontend.end_haproxy()
    frontend.until(lambda: frontend.events("haproxy-revived"))
    frontend.until(lambda: frontend.running_hash() == held and frontend.ready())
    frontend.until(lambda: frontend.serves(8080, pods))
    # `resume` works even with invalid settings.
    frontend.settings["no_such_field"] = 1
    frontend.write()
    assert "last good form" in frontend.run("resume").stderr
    frontend.until(lambda: "listen third" in frontend.haproxy_cfg.read_text())
    frontend.until(lambda: frontend.ready() and frontend.status()["held"] is None)
    frontend.until(lambda: frontend.serves(8082, pods))


def test_a_text_that_haproxy_refuses_now_changes_nothing(frontend: Frontend) -> None:
    certificate = frontend.directory / "errors.http"
    certificate.write_text("HTTP/1.0 503 No\r\n\r\n")
    frontend.settings["haproxy"]["defaults_extra"] = f"errorfile 503 {certificate}"
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    pods = frontend.scale("shop", 2)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    first = frontend.running_hash()
    frontend.settings["haproxy"]["defaults_extra"] = ""
    frontend.write()
    frontend.until(lambda: frontend.running_hash() != first and frontend.ready())
    frontend.until(lambda: len(listed(frontend)) == 2)
    certificate.unlink()
    second, text = frontend.running_hash(), frontend.haproxy_cfg.read_bytes()
    before = listed(frontend)
    for arguments, code, words in (
        (("rollback",), 1, "does not exist"),
        (("rollback", "1"), 1, "does not exist"),
        (("rollback", "77"), 1, "no entry 77"),
        (("rollback", "0"), 1, "no entry 0"),
        (("rollback", "-1"), 2, "No such option"),
        (("rollback", "x;quit"), 2, "not a valid integer"),
    ):
        done = frontend.run(*arguments, check=False)
        assert done.returncode == code and words in done.stderr, done.stderr
        assert frontend.haproxy_cfg.read_bytes() == text and frontend.running_hash() == second
        assert not (frontend.directory / "state" / hold.FILE).exists()
    # The history contains the refusal once.
    assert [found["outcome"] for found in listed(frontend)[len(before) :]] == ["refused"]
    refused = frontend.run("rollback", "3", check=False)
    assert refused.returncode == 1 and "did not take" in refused.stderr
    (frontend.directory / "state" / "history" / "000001.cfg").write_text("global\n")
    damaged = frontend.run("rollback", "1", check=False)
    assert damaged.returncode == 1 and "damaged" in damaged.stderr
    # The running configuration can be held as well.
    frontend.run("rollback", "2")
    frontend.until(lambda: frontend.metric("fc_frontend_held") == 1 and frontend.ready())
    assert frontend.running_hash() == second and not frontend.events("resumed")


def test_a_reload_that_fails_leaves_file_and_hold_as_they_were(frontend: Frontend) -> None:
    started(frontend)
    frontend.stop_daemon()
    text, now = frontend.haproxy_cfg.read_bytes(), frontend.running_hash()
    frontend.settings["haproxy"] |= {"reload_command": ["/bin/false"], "supervise": False}
    frontend.write()
    for held in (None, Hold(id=2, hash=str(now), since=1.0, by="me")):
        if held is not None:
            hold.save(str(frontend.directory / "state"), held)
        done = frontend.run("rollback", "1", check=False)
        assert done.returncode == 1 and "/bin/false" in done.stderr
        assert frontend.haproxy_cfg.read_bytes() == text and frontend.running_hash() == now
        assert hold.load(str(frontend.directory / "state")) == held
    assert listed(frontend)[-1]["outcome"] == "failed"


@pytest.mark.extended
def test_without_a_daemon_apply_is_recorded_and_can_be_gone_back_from(frontend: Frontend) -> None:
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    pods = frontend.scale("shop", 2)
    frontend.write()
    assert "no deployments yet" in frontend.run("history").stdout
    frontend.run("apply")
    first = frontend.running_hash()
    frontend.drop("more.json", {"more": frontend.service("more", 8081, service="shop")})
    frontend.run("apply")
    assert frontend.running_hash() != first
    frontend.run("rollback")
    assert frontend.running_hash() == first
    frontend.until(lambda: frontend.serves(8080, pods))
    assert frontend.run("apply", check=False).returncode == 1
    frontend.run("resume")
    frontend.run("apply")
    frontend.until(lambda: frontend.serves(8081, pods))
    assert [found["outcome"] for found in listed(frontend)] == [
        "started",
        "reloaded",
        "reloaded",
        "reloaded",
    ]


@pytest.mark.extended
def test_an_entry_is_shown_and_compared_with_others(frontend: Frontend) -> None:
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.scale("shop", 2)
    frontend.start()
    frontend.drop("cart.json", {"cart": frontend.service("shop", 8081)})
    frontend.until(lambda: "listen cart" in frontend.haproxy_cfg.read_text() and frontend.ready())
    frontend.until(lambda: len(listed(frontend)) == 2)
    first, second = listed(frontend)
    assert first["by"] == second["by"] == ""
    assert [Path(file).name for file in second["files"]] == ["cart.json"]
    text = frontend.run("history", "show", str(first["id"])).stdout
    assert "by        daemon" in text
    assert "listen shop" in text
    assert "listen cart" not in text
    difference = frontend.run("history", "diff", str(first["id"])).stdout
    assert "+listen cart" in difference
    both = ("history", "diff", str(second["id"]), str(first["id"]))
    assert "-listen cart" in frontend.run(*both).stdout
    document = json.loads(frontend.run(*both, "--json").stdout)
    assert (document["before"], document["after"]) == (second["id"], first["id"])
    assert frontend.run("history", "show", "99", check=False).returncode == 1
    assert frontend.run("history", "show", check=False).returncode == 2


@pytest.mark.extended
def test_a_rollback_is_the_last_reload_and_has_its_user(frontend: Frontend) -> None:
    """While the hold lasts, `status` shows the binds that are served."""
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.scale("shop", 2)
    frontend.start()
    frontend.settings["services"]["shop"]["binds"] = f"{frontend.host}:8089"
    frontend.write()
    frontend.until(lambda: "8089" in frontend.haproxy_cfg.read_text() and frontend.ready())
    first = listed(frontend)[0]["id"]
    frontend.run("rollback", str(first))
    assert listed(frontend)[-1]["by"]

    def shown() -> dict[str, Any]:
        document: dict[str, Any] = json.loads(frontend.run("status", "--json", check=False).stdout)
        return document

    document = frontend.until(lambda: (d := shown())["held"] and d)
    assert document["last_reload"]["reasons"] == [f"rollback to {first}"]
    frontend.until(lambda: shown()["services"][0]["binds"] == [f"{frontend.host}:8080"])
    frontend.until(lambda: frontend.status()["services"][0]["binds"] == [f"{frontend.host}:8080"])
    frontend.run("resume")
    frontend.until(lambda: shown()["services"][0]["binds"] == [f"{frontend.host}:8089"])
