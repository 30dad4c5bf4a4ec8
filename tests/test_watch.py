"""Changes of real files are detected by real inotify, however they are made.

Events of one directory arrive in order.  Where no callback may follow, the test makes a later
change and waits for its callback: none may precede it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from watchdog.events import FileSystemEvent

from fc_frontend.daemon.watch import Changes, FileWatch
from tests.conftest import PATIENCE, until


class Observed(FileWatch):
    """A watch that counts the events that have arrived."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[Changes], None]
    ) -> None:
        super().__init__(loop, on_change)
        self.events = 0

    def seen(self, event: FileSystemEvent) -> None:
        super().seen(event)
        self.events += 1


class Watched:
    """A watch in the running loop, and the record of its callbacks.

    Next to each path it also watches `later`, which is changed after everything else (`has_all`).
    """

    def __init__(self, files: Iterable[Path] = (), directories: Iterable[Path] = ()) -> None:
        self.files = [*files]
        self.directories = [*directories]
        self.calls: list[frozenset[str]] = []
        self.names: list[Changes] = []
        self._later = {path.parent / "later" for path in (*self.files, *self.directories)}
        self._seen_later: set[str] = set()
        self._called = asyncio.Event()

    async def __aenter__(self) -> Watched:
        self.watch = Observed(asyncio.get_running_loop(), self._on_change)
        self.watch.watch(map(str, (*self.files, *self._later)), map(str, self.directories))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.watch.stop()

    def _on_change(self, changes: Changes) -> None:
        later = {str(path) for path in self._later}
        self._seen_later |= later & changes.keys()
        own = {path: names for path, names in changes.items() if path not in later}
        if own:
            self.calls.append(frozenset(own))
            self.names.append(own)
        self._called.set()

    async def sees(self, path: Path) -> None:
        """Wait for a callback for `path`, and then until all events about it have arrived."""
        await self.until(lambda: str(path) in self.paths)
        await self.settled()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition on the callbacks holds."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._called.clear()
                await self._called.wait()

    @property
    def paths(self) -> set[str]:
        return {path for call in self.calls for path in call}

    async def has_all(self) -> None:
        """Wait for all events of the changes made so far, by the event of a later one."""
        changed = {path for path in self._later if path.parent.is_dir()}
        self._seen_later.clear()
        for path in changed:
            if path.exists():
                path.rmdir()
            else:
                path.mkdir()
        await self.until(lambda: {str(path) for path in changed} <= self._seen_later)

    async def settled(self) -> None:
        """Clear the recorded callbacks once no more of them can arrive."""
        await self.has_all()
        self.calls.clear()

    async def sees_nothing(self) -> None:
        await self.has_all()
        assert self.calls == []


def replace(path: Path, text: str, temporary: str) -> None:
    """Write `path` by way of a temporary file and a rename."""
    new = path.parent / temporary
    new.write_text(text)
    new.rename(path)


def make(directories: Iterable[Path]) -> None:
    for directory in directories:
        directory.mkdir(parents=True)


def swap(link: Path, target: str) -> None:
    """Change the target of a link atomically, as NixOS does."""
    new = link.parent / f"{link.name}.tmp"
    new.symlink_to(target)
    new.rename(link)


# Changes in a file or directory


def rewritten(path: Path) -> None:
    path.write_text("b")


def appended(path: Path) -> None:
    with path.open("a") as file:
        file.write("b")


def truncated(path: Path) -> None:
    os.truncate(path, 0)


def replaced(path: Path) -> None:
    replace(path, "b", ".new-1")


def replaced_from_elsewhere(path: Path) -> None:
    replace(path, "b", "../outside")


def removed(path: Path) -> None:
    path.unlink()


def moved_away(path: Path) -> None:
    path.rename(path.parent.parent / "away")


def renamed(path: Path) -> None:
    path.rename(path.parent / "other")


def made_unreadable(path: Path) -> None:
    path.chmod(0)


def backed_up_as_by_vim(path: Path) -> None:
    """`backup` with `backupcopy=no`: the old file is renamed, the new one written in its place."""
    (path.parent / f".{path.name}.swp").write_text("swap")
    path.rename(path.parent / f"{path.name}~")
    path.write_text("b")
    (path.parent / f"{path.name}~").unlink()
    (path.parent / f".{path.name}.swp").unlink()


def backed_up_as_by_emacs(path: Path) -> None:
    lock = path.parent / f".#{path.name}"
    lock.symlink_to("somebody@somewhere.1:2")
    (path.parent / f"#{path.name}#").write_text("b")
    path.rename(path.parent / f"{path.name}~")
    path.write_text("b")
    (path.parent / f"#{path.name}#").unlink()
    lock.unlink()


CHANGES = (
    rewritten,
    appended,
    truncated,
    replaced,
    replaced_from_elsewhere,
    removed,
    moved_away,
    renamed,
    made_unreadable,
    backed_up_as_by_vim,
    backed_up_as_by_emacs,
)


@pytest.mark.parametrize("change", CHANGES)
def test_each_way_to_change_a_file_is_seen(tmp_path: Path, change: Callable[[Path], None]) -> None:
    settings = tmp_path / "etc" / "frontend.yaml"
    services = tmp_path / "etc" / "services.d"
    services.mkdir(parents=True)
    settings.write_text("a")
    (services / "web.yaml").write_text("a")

    async def scenario() -> None:
        async with Watched([settings], [services]) as watched:
            change(settings)
            await watched.sees(settings)
            change(services / "web.yaml")
            await watched.sees(services)
            assert watched.watch.problems == ()

    asyncio.run(scenario())


def test_names_that_changed_in_a_directory_are_called_back(tmp_path: Path) -> None:
    services = tmp_path / "services.d"
    services.mkdir()
    (services / "old.yaml").write_text("a")

    async def scenario() -> None:
        async with Watched([], [services]) as watched:
            (services / "web.yaml").write_text("a")
            (services / "old.yaml").rename(services / "new.yaml")
            names: set[str] = set()
            while names != {"web.yaml", "old.yaml", "new.yaml"}:
                await watched.until(lambda: bool(watched.names))
                for changes in watched.names:
                    names |= changes[str(services)] or {"anything"}
                watched.names.clear()
            shutil.rmtree(services)
            await watched.until(lambda: any(None in seen.values() for seen in watched.names))

    asyncio.run(scenario())


def test_a_link_that_came_after_the_watch_is_followed(tmp_path: Path) -> None:
    services, elsewhere = tmp_path / "services.d", tmp_path / "elsewhere"
    services.mkdir()
    elsewhere.mkdir()
    (elsewhere / "web.yaml").write_text("a")
    (services / "plain.yaml").write_text("a")

    async def scenario() -> None:
        async with Watched([], [services]) as watched:
            (services / "web.yaml").symlink_to(elsewhere / "web.yaml")
            await watched.sees(services)
            (elsewhere / "web.yaml").write_text("b")
            await watched.sees(services)
            (services / "web.yaml").unlink()
            await watched.sees(services)
            (elsewhere / "web.yaml").write_text("c")
            await watched.sees_nothing()

    asyncio.run(scenario())


def test_after_very_many_events_nothing_is_taken_for_known(tmp_path: Path) -> None:
    services = tmp_path / "services.d"
    services.mkdir()

    async def scenario() -> None:
        async with Watched([], [services]) as watched:
            for number in range(2000):
                (services / f"{number}.yaml").write_text("a")
            await watched.until(lambda: any(None in seen.values() for seen in watched.names))

    asyncio.run(scenario())


def test_only_what_changed_is_called_back(tmp_path: Path) -> None:
    settings, services = tmp_path / "frontend.yaml", tmp_path / "services.d"
    services.mkdir()
    settings.write_text("a")

    async def scenario() -> None:
        async with Watched([settings], [services]) as watched:
            (services / "web.yaml").write_text("a")
            await watched.until(lambda: bool(watched.calls))
            await watched.has_all()
            assert set(watched.calls) == {frozenset([str(services)])}
            await watched.settled()
            settings.write_text("b")
            await watched.until(lambda: bool(watched.calls))
            assert set(watched.calls) == {frozenset([str(settings)])}

    asyncio.run(scenario())


def test_what_editors_leave_lying_about_is_no_change(tmp_path: Path) -> None:
    services = tmp_path / "services.d"
    services.mkdir()

    async def scenario() -> None:
        async with Watched(directories=[services]) as watched:
            for name in (".web.yaml.swp", ".#web.yaml", "#web.yaml#", "web.yaml~", ".hidden"):
                (services / name).write_text("a")
                (services / name).write_text("b")
                (services / name).unlink()
            (services / ".#web.yaml").symlink_to("somebody@somewhere.1:2")
            (services / ".web.yaml.swp").write_text("a")
            (services / ".web.yaml.swp").rename(services / ".web.yaml.swo")
            await watched.sees_nothing()

    asyncio.run(scenario())


def test_reading_is_no_change(tmp_path: Path) -> None:
    settings, services = tmp_path / "frontend.yaml", tmp_path / "services.d"
    services.mkdir()
    settings.write_text("a")
    (services / "web.yaml").write_text("a")

    async def scenario() -> None:
        async with Watched([settings], [services]) as watched:
            for _ in range(5):
                assert settings.read_text() == "a"
                assert [path.read_text() for path in services.iterdir()] == ["a"]
                settings.stat()
            await watched.sees_nothing()

    asyncio.run(scenario())


def test_neighbours_are_no_change(tmp_path: Path) -> None:
    settings, services = tmp_path / "frontend.yaml", tmp_path / "services.d"
    (services / "deep").mkdir(parents=True)
    settings.write_text("a")

    async def scenario() -> None:
        async with Watched([settings], [services]) as watched:
            (tmp_path / "unrelated").write_text("a")
            (tmp_path / "unrelated").rename(tmp_path / "frontend.yaml.bak")
            (tmp_path / "frontend.yaml.bak").unlink()
            (tmp_path / "other.d").mkdir()
            (tmp_path / "other.d").rmdir()
            (services / "deep" / "web.yaml").write_text("a")
            await watched.sees_nothing()

    asyncio.run(scenario())


# Paths that appear and disappear


def test_a_directory_may_come_later_and_go_and_come_again(tmp_path: Path) -> None:
    services = tmp_path / "etc" / "fc-frontend" / "services.d"

    async def scenario() -> None:
        async with Watched(directories=[services]) as watched:
            for _ in range(3):
                services.mkdir(parents=True)
                await watched.sees(services)
                (services / "web.yaml").write_text("a")
                await watched.sees(services)
                shutil.rmtree(tmp_path / "etc")
                await watched.sees(services)

    asyncio.run(scenario())


def test_a_directory_that_is_replaced_at_once_is_watched_again(tmp_path: Path) -> None:
    """File systems reuse the number of an inode for the next one: it identifies nothing."""
    services = tmp_path / "services.d"
    services.mkdir()

    async def scenario() -> None:
        async with Watched(directories=[services]) as watched:
            for _ in range(5):
                shutil.rmtree(services)
                services.mkdir()
                await watched.sees(services)
                (services / "web.yaml").write_text("a")
                await watched.sees(services)

    asyncio.run(scenario())


def test_a_directory_that_is_moved_away_is_not_watched_there(tmp_path: Path) -> None:
    services, away = tmp_path / "services.d", tmp_path / "away"
    services.mkdir()

    async def scenario() -> None:
        async with Watched(directories=[services]) as watched:
            services.rename(away)
            await watched.sees(services)
            (away / "web.yaml").write_text("a")
            await watched.sees_nothing()
            away.rename(services)
            await watched.sees(services)
            (services / "web.yaml").write_text("b")
            await watched.sees(services)

    asyncio.run(scenario())


def test_a_file_may_come_later_under_missing_directories(tmp_path: Path) -> None:
    settings = tmp_path / "etc" / "fc-frontend" / "frontend.yaml"

    async def scenario() -> None:
        async with Watched([settings]) as watched:
            settings.parent.mkdir(parents=True)
            await watched.sees(settings)
            settings.write_text("a")
            await watched.sees(settings)

    asyncio.run(scenario())


def test_a_deep_path_that_appears_quickly_is_not_missed(tmp_path: Path) -> None:
    ways = [tmp_path / f"{n}" / "b" / "c" / "services.d" for n in range(20)]

    async def scenario() -> None:
        async with Watched(directories=ways) as watched:
            await asyncio.to_thread(make, ways)
            await watched.until(lambda: watched.paths == {str(way) for way in ways})
            await watched.settled()
            for way in ways:
                (way / "web.yaml").write_text("a")
            await watched.until(lambda: watched.paths == {str(way) for way in ways})

    asyncio.run(scenario())


def test_a_file_in_the_place_of_a_directory_is_waited_out(tmp_path: Path) -> None:
    place, services = tmp_path / "etc", tmp_path / "etc" / "services.d"
    place.write_text("not a directory")

    async def scenario() -> None:
        async with Watched(directories=[services]) as watched:
            place.unlink()
            services.mkdir(parents=True)
            await watched.sees(services)
            (services / "web.yaml").write_text("a")
            await watched.sees(services)

    asyncio.run(scenario())


def test_a_relative_path_and_one_with_dots_are_called_back_as_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    relative, dotted = Path("frontend.yaml"), tmp_path / "a" / ".." / "b" / "services.d"

    async def scenario() -> None:
        async with Watched([relative], [dotted]) as watched:
            rewritten(relative)
            await watched.sees(relative)
            dotted.mkdir()
            await watched.sees(dotted)

    asyncio.run(scenario())


def test_what_is_watched_may_change(tmp_path: Path) -> None:
    old, new = tmp_path / "old.d", tmp_path / "new.d"
    old.mkdir()
    new.mkdir()

    async def scenario() -> None:
        async with Watched(directories=[old]) as watched:
            watched.watch.watch([], [str(new)])
            (old / "web.yaml").write_text("a")
            (new / "web.yaml").write_text("a")
            await watched.until(lambda: bool(watched.paths))
            assert watched.paths == {str(new)}

    asyncio.run(scenario())


# Links


def test_what_a_linked_file_leads_to_is_watched(tmp_path: Path) -> None:
    real, link = tmp_path / "store" / "real.yaml", tmp_path / "etc" / "frontend.yaml"
    for path in (real, link):
        path.parent.mkdir()
    real.write_text("a")
    link.symlink_to("../store/real.yaml")

    async def scenario() -> None:
        async with Watched([link]) as watched:
            real.write_text("b")
            await watched.sees(link)
            replace(real, "c", "new")
            await watched.sees(link)
            (tmp_path / "store" / "other.yaml").write_text("a")
            await watched.settled()
            swap(link, "../store/other.yaml")
            await watched.sees(link)
            (tmp_path / "store" / "other.yaml").write_text("b")
            await watched.sees(link)
            real.write_text("d")
            await watched.sees_nothing()

    asyncio.run(scenario())


def test_what_a_linked_directory_leads_to_is_watched(tmp_path: Path) -> None:
    real, link = tmp_path / "store" / "services", tmp_path / "services.d"
    real.mkdir(parents=True)
    link.symlink_to(real)

    async def scenario() -> None:
        async with Watched(directories=[link]) as watched:
            (real / "web.yaml").write_text("a")
            await watched.sees(link)
            (real / "web.yaml").unlink()
            await watched.sees(link)
            link.unlink()
            await watched.sees(link)
            link.mkdir()
            await watched.sees(link)
            (link / "web.yaml").write_text("a")
            await watched.sees(link)

    asyncio.run(scenario())


def test_what_linked_files_in_a_directory_lead_to_is_watched(tmp_path: Path) -> None:
    """Kubernetes volumes have this form: `web.yaml` → `..data/web.yaml`, `..data` → `..1`."""
    volume = tmp_path / "services.d"
    for number in ("1", "2"):
        (volume / f"..{number}").mkdir(parents=True)
        (volume / f"..{number}" / "web.yaml").write_text(number)
    (volume / "..data").symlink_to("..1")
    (volume / "web.yaml").symlink_to("..data/web.yaml")

    async def scenario() -> None:
        async with Watched(directories=[volume]) as watched:
            (volume / "..1" / "web.yaml").write_text("b")
            await watched.sees(volume)
            swap(volume / "..data", "..2")
            await watched.sees(volume)
            (volume / "..2" / "web.yaml").write_text("b")
            await watched.sees(volume)

    asyncio.run(scenario())


def test_a_link_on_the_way_may_be_swapped_as_nixos_does(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    for name in ("aaa", "bbb"):
        (tmp_path / "store" / name / "services.d").mkdir(parents=True)
        (tmp_path / "store" / name / "frontend.yaml").write_text(name)
    (etc / "fc-frontend").mkdir(parents=True)
    (etc / "static").symlink_to("../store/aaa")
    services, settings = etc / "fc-frontend" / "services.d", etc / "fc-frontend" / "frontend.yaml"
    services.symlink_to("../static/services.d")
    settings.symlink_to("../static/frontend.yaml")

    async def scenario() -> None:
        async with Watched([settings], [services]) as watched:
            (tmp_path / "store" / "aaa" / "services.d" / "web.yaml").write_text("a")
            await watched.sees(services)
            for name, former in (("bbb", "aaa"), ("aaa", "bbb")):
                swap(etc / "static", f"../store/{name}")
                await watched.until(lambda: watched.paths == {str(services), str(settings)})
                await watched.settled()
                (tmp_path / "store" / name / "services.d" / "web.yaml").write_text("b")
                await watched.sees(services)
                (tmp_path / "store" / name / "frontend.yaml").write_text("b")
                await watched.sees(settings)
                (tmp_path / "store" / former / "services.d" / "web.yaml").write_text("b")
                (tmp_path / "store" / former / "frontend.yaml").write_text("b")
                await watched.sees_nothing()

    asyncio.run(scenario())


def test_links_in_a_circle_end_and_may_be_mended(tmp_path: Path) -> None:
    services = tmp_path / "services.d"
    (tmp_path / "b").symlink_to("services.d")
    services.symlink_to("b")

    async def scenario() -> None:
        async with Watched([services / "web.yaml"], [services]) as watched:
            services.unlink()
            services.mkdir()
            await watched.sees(services)
            (services / "web.yaml").write_text("a")
            await watched.sees(services / "web.yaml")

    asyncio.run(scenario())


# Limits


def test_nothing_is_called_back_after_stop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Watched(directories=[tmp_path]) as watched:
            (tmp_path / "web.yaml").write_text("a")
            await watched.sees(tmp_path)
            before = watched.watch.events
            (tmp_path / "web.yaml").write_text("b")
            # The event is queued in the loop, but the loop has not run yet.
            until(lambda: watched.watch.events > before)
            watched.watch.stop()
            async with Watched(directories=[tmp_path]) as another:
                (tmp_path / "web.yaml").write_text("c")
                await another.sees(tmp_path)
            assert watched.calls == []
            watched.watch.stop()

    asyncio.run(scenario())


def test_stop_without_watch_is_nothing() -> None:
    async def scenario() -> None:
        FileWatch(asyncio.get_running_loop(), lambda _paths: None).stop()

    asyncio.run(scenario())


def test_changes_after_the_end_of_the_loop_do_no_harm(tmp_path: Path) -> None:
    async def scenario() -> Observed:
        watch = Observed(asyncio.get_running_loop(), lambda _paths: None)
        watch.watch([], [str(tmp_path)])
        return watch

    watch = asyncio.run(scenario())
    (tmp_path / "web.yaml").write_text("a")
    until(lambda: watch.events)
    watch.stop()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as the kernel lists them


def test_stop_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    places = [tmp_path / f"{number}.d" for number in range(10)]
    for place in places:
        place.mkdir()

    async def scenario() -> None:
        async with Watched(directories=places) as watched:
            for place in places:
                shutil.rmtree(place)
                await watched.sees(place)
                place.mkdir()
                await watched.sees(place)
            (places[0] / "web.yaml").write_text("a")
            (places[0] / "web.yaml").rename(tmp_path / "away")

    async def once() -> None:
        async with Watched(directories=places):
            pass

    # watchdog keeps one inotify instance and its thread for the life of the process.
    asyncio.run(once())
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    asyncio.run(scenario())
    assert set(threading.enumerate()) <= threads
    assert open_descriptors() <= descriptors


UNPRIVILEGED = """
import asyncio, os, pathlib, sys
from fc_frontend.daemon.watch import Changes, FileWatch
from tests.conftest import PATIENCE

async def main():
    changed = asyncio.Queue()
    watch = FileWatch(asyncio.get_running_loop(), changed.put_nowait)
    locked = sys.argv[1]
    watch.watch([locked + "/deep/er/frontend.yaml"], [locked, locked + "/deep"])
    for problem in watch.problems:
        print(problem)
    return watch, changed
"""


def said_in_child(directory: Path, code: str) -> list[str]:
    """Return the output of a watch in a process that has fewer rights or descriptors."""
    done = subprocess.run(
        [sys.executable, "-c", f"{UNPRIVILEGED}\n{textwrap.dedent(code)}", str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_directory_that_may_not_be_read_is_a_problem_until_it_may(short_directory: Path) -> None:
    locked = short_directory / "locked"
    (locked / "deep" / "er").mkdir(parents=True)
    if os.getuid() == 0:
        os.chown(locked, 65534, 65534)
    locked.chmod(0)
    said = said_in_child(
        locked,
        """
        async def mended():
            watch, changed = await main()
            os.chmod(sys.argv[1], 0o755)
            watch.watch([], [sys.argv[1]])
            print("problems:", len(watch.problems))
            names = frozenset()
            while "web.yaml" not in names:
                pathlib.Path(sys.argv[1], "web.yaml").write_text("a")
                names = (await asyncio.wait_for(changed.get(), 60))[sys.argv[1]] or ()
            watch.stop()

        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        asyncio.run(mended())
        """,
    )
    assert len(said) == 2
    assert said[0].startswith(f"{locked}: warning: {locked} cannot be watched: Permission denied →")
    assert "next rescan" in said[0]
    assert said[1] == "problems: 0"


def test_a_lack_of_descriptors_is_a_problem(short_directory: Path) -> None:
    said = said_in_child(
        short_directory,
        """
        import resource

        async def starved():
            try:
                while True:
                    os.dup(0)
            except OSError:
                pass
            (await main())[0].stop()

        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        asyncio.run(starved())
        """,
    )
    assert said
    assert all("cannot be watched" in line and "max_user_instances" in line for line in said)


# Many paths


def test_each_of_many_changes_is_seen(tmp_path: Path) -> None:
    settings = tmp_path / "frontend.yaml"
    settings.write_text("a")

    async def scenario() -> None:
        async with Watched([settings]) as watched:
            for number in range(10):
                settings.write_text(str(number))
                await watched.until(lambda: bool(watched.calls))
                await watched.settled()
                replace(settings, str(number), "new")
                await watched.until(lambda: bool(watched.calls))
                await watched.settled()

    asyncio.run(scenario())


def test_a_change_after_a_burst_is_seen(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Watched(directories=[tmp_path]) as watched:
            writing = asyncio.create_task(
                asyncio.to_thread(
                    lambda: [(tmp_path / f"{n}.yaml").write_text("a") for n in range(500)]
                )
            )
            await writing
            await watched.settled()
            (tmp_path / "last.yaml").write_text("a")
            await watched.sees(tmp_path)

    asyncio.run(scenario())
