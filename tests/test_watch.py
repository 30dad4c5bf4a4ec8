"""Files that change are seen at once, whichever way they change; reading them is not a change."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fc_frontend.daemon.watch import FileWatch

QUIET = 0.3
"""Seconds without a callback after which there was none."""


class Seen:
    """What a watch called back with, and waiting for it."""

    def __init__(self) -> None:
        self.changes: list[frozenset[str]] = []
        self.event = asyncio.Event()

    def __call__(self, paths: frozenset[str]) -> None:
        self.changes.append(paths)
        self.event.set()

    async def after(self, action: Callable[[], object]) -> float:
        """Run `action` and wait for a callback; how long it took, in seconds."""
        await self.settle()
        started = time.monotonic()
        action()
        await asyncio.wait_for(self.event.wait(), 5)
        return time.monotonic() - started

    async def nothing_after(self, action: Callable[[], object]) -> None:
        await self.settle()
        action()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.event.wait(), QUIET)

    async def settle(self) -> None:
        """Wait until events of what was done before have passed."""
        while True:
            self.event.clear()
            try:
                await asyncio.wait_for(self.event.wait(), 0.1)
            except TimeoutError:
                return


def watching(
    test: Callable[[Seen, FileWatch], object], files: list[Path], directories: list[Path]
) -> None:
    async def main() -> None:
        seen = Seen()
        watch = FileWatch(asyncio.get_running_loop(), seen)
        watch.watch(map(str, files), map(str, directories))
        try:
            result = test(seen, watch)
            assert asyncio.iscoroutine(result)
            await result
        finally:
            watch.stop()

    asyncio.run(main())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "services.d").mkdir()
    (tmp_path / "config.yaml").write_text("old")
    (tmp_path / "services.d" / "a.yaml").write_text("old")
    return tmp_path


def test_writes_creations_renames_and_deletions_are_seen(tree: Path) -> None:
    directory, config = tree / "services.d", tree / "config.yaml"

    async def test(seen: Seen, _watch: FileWatch) -> None:
        await seen.after(lambda: config.write_text("new"))
        assert str(config) in seen.changes[-1]
        await seen.after(lambda: (directory / "a.yaml").write_text("new"))
        await seen.after(lambda: (directory / "b.yaml").write_text("new"))
        await seen.after(lambda: (directory / "b.yaml").rename(directory / "c.yaml"))
        await seen.after((directory / "c.yaml").unlink)
        await seen.after(lambda: (directory / "a.yaml").chmod(0o600))
        assert str(directory) in seen.changes[-1]

    watching(test, [config], [directory])


def test_editors_ways_are_seen_and_their_other_files_are_not(tree: Path) -> None:
    directory, config = tree / "services.d", tree / "config.yaml"

    def replace() -> None:
        (tree / "config.yaml.tmp1").write_text("new")
        (tree / "config.yaml.tmp1").rename(config)

    def vim() -> None:
        (directory / "a.yaml").rename(directory / "a.yaml~")
        (directory / "a.yaml").write_text("new")
        (directory / "a.yaml~").unlink()

    async def test(seen: Seen, _watch: FileWatch) -> None:
        await seen.after(replace)
        await seen.after(vim)
        for name in (".a.yaml.swp", "#a.yaml#", "a.yaml~"):
            await seen.nothing_after(partial((directory / name).write_text, "x"))
        await seen.nothing_after(lambda: (directory / ".#a.yaml").symlink_to("nowhere"))

    watching(test, [config], [directory])


def test_reading_and_unrelated_files_are_no_change(tree: Path) -> None:
    directory, config = tree / "services.d", tree / "config.yaml"

    def read() -> None:
        config.read_text()
        (directory / "a.yaml").read_text()
        sorted(directory.iterdir())

    async def test(seen: Seen, _watch: FileWatch) -> None:
        await seen.nothing_after(read)
        await seen.nothing_after(lambda: (tree / "unrelated").write_text("x"))

    watching(test, [config], [directory])


def test_a_directory_that_comes_goes_and_comes_again(tmp_path: Path) -> None:
    directory = tmp_path / "etc" / "services.d"

    async def test(seen: Seen, _watch: FileWatch) -> None:
        await seen.after(partial(directory.mkdir, parents=True))
        await seen.after(lambda: (directory / "a.yaml").write_text("x"))
        await seen.after((directory / "a.yaml").unlink)
        await seen.after(directory.rmdir)
        await seen.after(directory.mkdir)
        await seen.after(lambda: (directory / "b.yaml").write_text("x"))

    watching(test, [], [directory])


def test_links_are_followed_and_their_swapping_is_seen(tmp_path: Path) -> None:
    """As NixOS does: etc/static → store/aaa, and etc/fc-frontend/* → ../static/…"""
    for store in ("aaa", "bbb"):
        (tmp_path / "store" / store / "services.d").mkdir(parents=True)
        (tmp_path / "store" / store / "config.yaml").write_text(store)
    etc = tmp_path / "etc"
    (etc / "fc-frontend").mkdir(parents=True)
    (etc / "static").symlink_to(tmp_path / "store" / "aaa")
    (etc / "fc-frontend" / "services.d").symlink_to("../static/services.d")
    (etc / "fc-frontend" / "config.yaml").symlink_to("../static/config.yaml")

    def swap() -> None:
        (etc / "static.tmp").symlink_to(tmp_path / "store" / "bbb")
        (etc / "static.tmp").rename(etc / "static")

    async def test(seen: Seen, _watch: FileWatch) -> None:
        old, new = (tmp_path / "store" / name / "services.d" for name in ("aaa", "bbb"))
        await seen.after(lambda: (old / "a.yaml").write_text("x"))
        await seen.nothing_after(lambda: (new / "a.yaml").write_text("x"))
        await seen.after(swap)
        await seen.after(lambda: (new / "b.yaml").write_text("x"))
        await seen.after(lambda: (tmp_path / "store" / "bbb" / "config.yaml").write_text("y"))
        await seen.nothing_after(lambda: (old / "b.yaml").write_text("x"))

    files = [etc / "fc-frontend" / "config.yaml"]
    watching(test, files, [etc / "fc-frontend" / "services.d"])


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    async def test(seen: Seen, _watch: FileWatch) -> None:
        def untie() -> None:
            (tmp_path / "b").unlink()
            (tmp_path / "b").mkdir()

        await seen.after(untie)
        await seen.after(lambda: (tmp_path / "b" / "x.yaml").write_text("x"))

    watching(test, [], [tmp_path / "a"])


def test_nothing_is_called_back_after_stop_and_nothing_is_left(tree: Path) -> None:
    threads, descriptors = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    async def test(seen: Seen, watch: FileWatch) -> None:
        await seen.after(lambda: (tree / "config.yaml").write_text("1"))
        watch.stop()
        await seen.nothing_after(lambda: (tree / "config.yaml").write_text("2"))

    watching(test, [tree / "config.yaml"], [tree / "services.d"])
    assert threading.active_count() == threads
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_what_cannot_be_watched_is_said(tree: Path) -> None:
    """With no descriptor left, inotify cannot be had: the daemon's rescan has to do."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        watch = FileWatch(asyncio.get_running_loop(), lambda _paths: None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
        try:
            watch.watch([str(tree / "config.yaml")], [])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        try:
            (problem,) = watch.problems
            assert "cannot be watched" in problem.message
            assert "fs.inotify" in problem.remedy
            watch.watch([str(tree / "config.yaml")], [])
            assert not watch.problems
        finally:
            watch.stop()

    asyncio.run(main())


def test_changes_are_seen_within_50_ms(tree: Path) -> None:
    async def test(seen: Seen, _watch: FileWatch) -> None:
        took = [
            await seen.after(partial((tree / "services.d" / f"{n}.yaml").write_text, "x"))
            for n in range(5)
        ]
        assert sorted(took)[2] < 0.05

    watching(test, [], [tree / "services.d"])
