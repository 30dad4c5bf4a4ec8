"""Write access to the state directory, or to haproxy.cfg's, gains no root privileges.

The daemon's user plants links where root's `apply`, `rollback`, `status`… write and read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fc_frontend import files
from fc_frontend.config.running import RunningDeclarations, load_running
from fc_frontend.discovery.store import load_answers
from fc_frontend.errors import Refused, Severity, Unavailable
from fc_frontend.haproxy import drain_record, history, hold, install, kept_files
from fc_frontend.haproxy.drain import NOTHING, Drained
from fc_frontend.haproxy.history import Entry
from fc_frontend.haproxy.hold import Hold
from fc_frontend.haproxy.lock import deploying
from fc_frontend.plan.model import Haproxy, Settings
from fc_frontend.stored import save_running
from tests.hostile.as_root import DAEMON, again_as_root, as_daemon, as_root, given
from tests.support.frontend import Frontend

SECRET = "root:$y$secret:20000:0:99999:7:::\n"
ENTRY = Entry(at=1.0, hash="0" * 16, outcome="reloaded")


def record(state: Path) -> None:
    history.record(str(state), ENTRY, "global\n")


def set_hold(state: Path) -> None:
    hold.save(str(state), Hold(id=1, hash="0" * 16))


def drain(state: Path) -> None:
    settings = Settings(state_directory=str(state))
    drain_record.save(settings, NOTHING, Drained(services=frozenset(("shop",))))


def keep_forms(state: Path) -> None:
    haproxy = Haproxy(config_file=str(state / "haproxy.cfg"))
    save_running(Settings(state_directory=str(state), haproxy=haproxy), RunningDeclarations())


def lock(state: Path) -> None:
    with deploying(str(state), 1.0):
        pass


WRITERS: dict[str, Callable[[Path], None]] = {
    "history/000001.json": record,
    "history/000001.cfg": record,
    hold.FILE: set_hold,
    drain_record.FILE: drain,
    "running.json": keep_forms,
    "deploy.lock": lock,
}
PLANTED: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, victim: path.symlink_to(victim),
    "link to nothing": lambda path, victim: path.symlink_to(victim.with_name("new")),
    "hard link": lambda path, victim: path.hardlink_to(victim),
    "pipe": lambda path, _: os.mkfifo(path),
}


def state_of(directory: Path) -> tuple[Path, Path]:
    """Return a state directory of the daemon's user, and a root file that nobody else may read."""
    state, root = directory / "state", directory / "root"
    (state / "history").mkdir(parents=True)
    given(state)
    given(state / "history")
    root.mkdir(mode=0o700)
    victim = root / "shadow"
    victim.write_text(SECRET)
    victim.chmod(0o600)
    return state, victim


def is_untouched(victim: Path) -> bool:
    status = victim.stat()
    return (
        victim.read_text() == SECRET
        and (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
        and list(victim.parent.iterdir()) == [victim]
    )


# Written as root


def every_writer_leaves_what_was_planted_alone(directory: Path) -> None:
    for number, (name, write) in enumerate(WRITERS.items()):
        for kind, plant in PLANTED.items():
            place = directory / f"{number}-{kind}"
            place.mkdir()
            state, victim = state_of(place)
            path = state / name
            plant(path, victim)
            given(path) if kind != "hard link" else None
            # A refusal is fine too: no file outside the state directory changes.
            with contextlib.suppress(Unavailable):
                write(state)
            assert is_untouched(victim), (name, kind)
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_ino != victim.stat().st_ino:
                assert (found.st_uid, found.st_gid) == (DAEMON, DAEMON), (name, kind)
                assert not found.st_mode & 0o7137, (name, kind)


def test_a_planted_name_is_replaced_itself(tmp_path: Path) -> None:
    as_root(every_writer_leaves_what_was_planted_alone, tmp_path)


def a_writer_meets_a_directory_that_is_a_link(directory: Path) -> None:
    state, victim = state_of(directory)
    (state / "history").rmdir()
    (state / "history").symlink_to(victim.parent)
    given(state / "history")
    (state / "kept").symlink_to(victim.parent)
    given(state / "kept")
    with pytest.raises(Unavailable, match="symbolic link that user 4321 made"):
        record(state)
    certificate = directory / "cert.pem"
    certificate.write_text("key")
    with pytest.raises(Unavailable, match="symbolic link"):
        kept_files.keep(
            str(state), kept_files.files_in(f"listen a\n bind :1 ssl crt {certificate}").values()
        )
    kept_files.forget(str(state), {})
    assert files.remove_leftovers([str(state / "history")]) == 0
    history.prune(str(state))
    assert is_untouched(victim)
    whole = directory / "elsewhere"
    whole.symlink_to(state)
    given(whole)
    for write in (set_hold, drain, keep_forms):
        with pytest.raises(Unavailable, match="symbolic link"):
            write(whole)
    with deploying(str(whole), 0.1) as (warning,):
        assert warning.severity is Severity.WARNING
    assert not (state / hold.FILE).exists()


def test_a_directory_that_is_a_planted_link_is_not_entered(tmp_path: Path) -> None:
    as_root(a_writer_meets_a_directory_that_is_a_link, tmp_path)


def a_writer_races_with_links(directory: Path) -> None:
    """The daemon's user swaps `history` with a link repeatedly."""
    state, victim = state_of(directory)
    link = state / "link"
    link.symlink_to(victim.parent)
    given(link)
    done = threading.Event()
    libc = ctypes.CDLL(None)
    names = bytes(state / "history"), bytes(link)

    def exchange() -> None:
        while not done.is_set():
            # renameat2(AT_FDCWD, …, AT_FDCWD, …, RENAME_EXCHANGE)
            libc.renameat2(-100, names[0], -100, names[1], 2)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        written = refused = 0
        while written < 20 or refused < 20:
            try:
                record(state)
                written += 1
            except Unavailable:
                refused += 1
    finally:
        done.set()
        thread.join()
    assert is_untouched(victim)


def test_a_directory_exchanged_for_a_link_meanwhile_is_not_entered(tmp_path: Path) -> None:
    as_root(a_writer_races_with_links, tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_directory_that_everybody_may_write_is_not_used(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(Unavailable, match="every user may write"):
        set_hold(tmp_path)
    assert not list(tmp_path.iterdir())


def another_user_made_the_state_directory(directory: Path) -> None:
    directory.chmod(0o1777)
    state = directory / "state"
    state.mkdir()
    given(state)
    with pytest.raises(Unavailable, match="where every user may create one"):
        set_hold(state)
    directory.chmod(0o755)
    set_hold(state)


def test_a_directory_that_anybody_could_have_made_is_not_used(tmp_path: Path) -> None:
    as_root(another_user_made_the_state_directory, tmp_path)


# Read as root


def nothing_of_root_is_shown(directory: Path) -> None:
    for plant in ("link", "hard link"):
        place = directory / plant
        place.mkdir()
        state, victim = state_of(place)
        record(state)
        names = ("history/000001.cfg", hold.FILE, drain_record.FILE, "running.json")
        for name in (*names, "answers.json", "history/000002.json"):
            (state / name).unlink(missing_ok=True)
            PLANTED[plant](state / name, victim)
        (entry,) = history.entries(str(state))
        with pytest.raises(Refused, match="damaged or gone") as refused:
            history.text(str(state), entry)
        assert "secret" not in str(refused.value)
        assert hold.load(str(state)) == Hold()
        drained, (warning,) = drain_record.load(Settings(state_directory=str(state)))
        assert drained == NOTHING
        assert "link" in warning.message and "secret" not in warning.message
        assert load_running(str(state / "running.json")) == RunningDeclarations()
        assert load_answers(str(state / "answers.json")) == {}
        assert history.damaged(str(state)) == (f"{state}/history/000002.json",)
        config = state / "haproxy.cfg"
        PLANTED[plant](config, victim)
        given(config) if plant == "link" else None
        with pytest.raises(Unavailable, match="link") as unavailable:
            install.read(str(config))
        assert "secret" not in str(unavailable.value)


def test_root_reads_nothing_through_links_of_others(tmp_path: Path) -> None:
    as_root(nothing_of_root_is_shown, tmp_path)


# haproxy.cfg


def test_a_link_of_our_own_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    real, link = tmp_path / "real.cfg", tmp_path / "etc" / "haproxy.cfg"
    real.write_text("old")
    real.chmod(0o604)
    link.symlink_to("../real.cfg")
    assert install.install(str(link), "new") == b"old"
    assert link.is_symlink() and real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o604
    install.write_refused(str(link), "bad")
    assert (tmp_path / "etc" / "haproxy.cfg.refused").read_text() == "bad"
    install.restore(str(link), None)
    assert link.is_symlink() and not real.exists()


def test_a_file_in_a_store_is_not_replaced(tmp_path: Path) -> None:
    """As on NixOS: /etc/haproxy.cfg is a link into /nix/store."""
    stored, link = tmp_path / "abc-haproxy.cfg", tmp_path / "haproxy.cfg"
    stored.write_text("global\n")
    stored.chmod(0o444)
    link.symlink_to(stored)
    assert install.read(str(link)) == b"global\n"
    with pytest.raises(Unavailable, match=r"is read-only → set the path to a file of its own"):
        install.install(str(link), "new")
    assert stored.read_text() == "global\n" and link.is_symlink()


def root_writes_beside_a_planted_link(directory: Path) -> None:
    _, victim = state_of(directory)
    etc = directory / "etc"
    etc.mkdir()
    os.chown(etc, 0, DAEMON)
    etc.chmod(0o775)
    config = etc / "haproxy.cfg"
    for owner in (DAEMON, 0):
        # A user who can write to the directory can also rename root's links.
        config.symlink_to(victim)
        given(config, owner)
        for act in (lambda: install.install(str(config), "new"), lambda: files.read(str(config))):
            with pytest.raises(Unavailable, match="symbolic link"):
                act()
        config.unlink()
    config.write_text("mine")
    config.chmod(0o600)
    given(config)
    (etc / "haproxy.cfg.refused").symlink_to(victim)
    given(etc / "haproxy.cfg.refused")
    install.write_refused(str(config), "bad")
    found = (etc / "haproxy.cfg.refused").lstat()
    assert stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_uid, found.st_gid) == (DAEMON, DAEMON)
    config.unlink()
    install.install(str(config), "new")
    # The directory's group is the daemon's.
    assert (config.stat().st_gid, stat.S_IMODE(config.stat().st_mode)) == (DAEMON, 0o640)
    assert is_untouched(victim)


def test_a_planted_link_in_place_of_haproxy_cfg_is_refused(tmp_path: Path) -> None:
    as_root(root_writes_beside_a_planted_link, tmp_path)


def test_copies_are_readable_by_nobody_else_than_haproxy_cfg(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("secret")
    config.chmod(0o600)
    assert install.mode_of_copies(str(config)) == 0o600
    install.write_refused(str(config), "secret")
    settings = Settings(
        state_directory=str(tmp_path / "state"), haproxy=Haproxy(config_file=str(config))
    )
    files.make_directory(settings.state_directory, mode=0o750)
    save_running(settings, RunningDeclarations())
    history.record(settings.state_directory, ENTRY, "secret", mode=0o600)
    for path in (tmp_path / "haproxy.cfg.refused", tmp_path / "state" / "running.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "state/history/000001.cfg").stat().st_mode) == 0o600


def test_a_mode_never_gets_wider_nor_keeps_set_id_bits(tmp_path: Path) -> None:
    own, config = tmp_path / "own", tmp_path / "haproxy.cfg"
    for mode, expected in ((0o600, 0o600), (0o4755, 0o640), (0o440, 0o440)):
        own.write_text("")
        own.chmod(mode)
        files.write_own(str(own), b"new")
        assert stat.S_IMODE(own.stat().st_mode) == expected
        own.unlink()
    config.write_text("")
    config.chmod(0o6755)
    install.install(str(config), "new")
    assert stat.S_IMODE(config.stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket", "circle"])
def test_what_is_no_file_is_not_replaced(short_directory: Path, kind: str) -> None:
    path = short_directory / "haproxy.cfg"
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "circle":
            path.symlink_to(path)
        else:
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        before = path.lstat().st_ino
        with pytest.raises(Unavailable):
            install.install(str(path), "new")
        with pytest.raises(Unavailable):
            files.write(str(path), b"new")
        assert path.lstat().st_ino == before


# End to end: the daemon is a separate user, the operator is root


def owned(frontend: Frontend) -> dict[str, int]:
    state = frontend.directory / "state"
    return {str(path.relative_to(state)): path.lstat().st_uid for path in state.rglob("*")}


def test_root_and_the_daemons_user_share_the_state(
    request: pytest.FixtureRequest, either_binary: str
) -> None:
    if again_as_root(request):
        return
    with Frontend(either_binary) as frontend:
        share_the_state(frontend)


def share_the_state(frontend: Frontend) -> None:
    frontend.launcher = as_daemon()
    frontend.scale("shop", 2)
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080)})
    # As packaged: root owns the declarations, the daemon everything else.
    state, etc = frontend.directory / "state", frontend.directory / "etc"
    frontend.haproxy_cfg = etc / "haproxy.cfg"
    places = {"config_file": "haproxy.cfg", "master_socket": "m", "runtime_socket": "r"}
    frontend.settings["haproxy"].update({name: str(etc / file) for name, file in places.items()})
    frontend.write()
    frontend.directory.chmod(0o755)
    for path in (state, etc):
        path.mkdir(mode=0o750)
        given(path)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
    # Root makes every possible change.
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    frontend.run("apply")
    frontend.run("drain", "shop", frontend.pods["shop"].addresses[0])
    frontend.run("rollback")
    frontend.run("resume")
    frontend.run("undrain", "shop")
    frontend.run("apply", check=False)
    assert set(owned(frontend).values()) == {DAEMON}, owned(frontend)
    assert frontend.haproxy_cfg.stat().st_uid == DAEMON
    # The daemon continues with the result.
    frontend.drop("third.json", {"third": frontend.service("shop", 8082)})
    frontend.until(lambda: frontend.serves(8082, frontend.pods["shop"]) and frontend.ready())
    frontend.stop_daemon()
    assert not frontend.events("state-not-saved") and not frontend.events("history-not-kept")
    # From here on, the daemon's user is malicious.
    victim = frontend.directory.with_name(frontend.directory.name + ".root")
    victim.write_text(SECRET)
    victim.chmod(0o600)
    try:
        for name in ("server-state", "answers.json", "drained.json"):
            (state / name).unlink(missing_ok=True)
            (state / name).symlink_to(victim)
            given(state / name)
        refused = frontend.haproxy_cfg.with_name("haproxy.cfg.refused")
        refused.symlink_to(victim)
        given(refused)
        frontend.drop("fourth.json", {"fourth": frontend.service("shop", 8083)})
        # HAProxy reads this file as root.
        refused_at_first = frontend.run("apply", check=False)
        assert refused_at_first.returncode == 1 and "a link of user" in refused_at_first.stderr
        (state / "server-state").unlink()
        frontend.run("apply")
        assert frontend.serves(8083, frontend.pods["shop"])
        frontend.drop("bad.json", {"bad": {**frontend.service("shop", 8084), "bind_options": "x"}})
        assert frontend.run("apply", check=False).returncode == 1
        assert not refused.is_symlink() and refused.stat().st_uid == DAEMON
        latest = max((state / "history").glob("*.cfg"))
        latest.unlink()
        latest.symlink_to(victim)
        number = str(int(latest.stem))
        said = [
            frontend.run(*words, check=False)
            for words in (("rollback", number), ("history",), ("status",), ("diff", "--text"))
        ]
        assert not [done for done in said if "secret" in done.stdout + done.stderr]
        frontend.haproxy_cfg.unlink()
        frontend.haproxy_cfg.symlink_to(victim)
        given(frontend.haproxy_cfg)
        (frontend.services_d / "bad.json").unlink()
        for words in (("apply",), ("diff", "--text"), ("rollback",)):
            done = frontend.run(*words, check=False)
            assert done.returncode != 0 and "secret" not in done.stdout + done.stderr
        assert victim.read_text() == SECRET
        assert (victim.stat().st_uid, stat.S_IMODE(victim.stat().st_mode)) == (0, 0o600)
    finally:
        victim.unlink()
