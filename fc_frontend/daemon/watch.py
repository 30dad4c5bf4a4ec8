"""See at once when a declared file changes, whichever way it is changed.

inotify watches inodes, and a directory behind a symbolic link is another inode after the link was
swapped, as NixOS does with everything in /etc.  So each path is watched by the directory that it
really is in, and by the directory of every link on the way; after each event the ways are looked up
anew.  What inotify does not tell, the daemon's rescan finds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from fc_frontend.errors import Problem, Severity

_MOST_LINKS = 40
_QUIET = frozenset(("opened", "closed_no_write"))
"""Reading a file must not look like a change."""


class FileWatch:
    """Calls back in the loop when one of the watched files, or one in a watched directory, changed.

    `on_change` gets the paths, as they were given, that may have changed.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[frozenset[str]], None]
    ) -> None:
        self._loop = loop
        self._on_change = on_change
        self._observer: BaseObserver | None = None
        self._watches: dict[str, ObservedWatch] = {}
        self._identities: dict[str, tuple[int, int]] = {}
        self._names: dict[str, dict[str | None, set[str]]] = {}
        self._files: frozenset[str] = frozenset()
        self._directories: frozenset[str] = frozenset()
        self._stopped = False
        self.problems: tuple[Problem, ...] = ()

    def watch(self, files: Iterable[str], directories: Iterable[str]) -> None:
        """Watch these, and no others; paths need not exist.  `problems` says what cannot be."""
        self._files, self._directories = frozenset(files), frozenset(directories)
        self._look_up()

    def stop(self) -> None:
        """End all watches; nothing is called back after this."""
        self._stopped = True
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(5)
            self._observer = None

    def _look_up(self) -> None:
        """Find the real directories, and let the watches follow."""
        wanted: dict[str, dict[str | None, set[str]]] = {}
        for path in self._files:
            for directory, name in _way(path):
                wanted.setdefault(directory, {}).setdefault(name, set()).add(path)
        for path in self._directories:
            for directory, name in _way(path):
                wanted.setdefault(directory, {}).setdefault(name, set()).add(path)
            real = os.path.realpath(path)
            if Path(real).is_dir():
                wanted.setdefault(real, {}).setdefault(None, set()).add(path)
        problems: list[Problem] = []
        for directory in self._watches.keys() - wanted.keys():
            self._unschedule(directory)
        for directory in wanted:
            problem = self._schedule(directory)
            if problem:
                problems.append(problem)
        self._names = wanted
        self.problems = tuple(problems)

    def _schedule(self, directory: str) -> Problem | None:
        """Watch a directory; an inode that took another one's place is watched anew."""
        key = _identity(directory)
        watched = self._watches.get(directory)
        if watched is not None and self._identities.get(directory) == key:
            return None
        if watched is not None:
            self._unschedule(directory)
        try:
            if self._observer is None:
                observer = Observer()
                observer.daemon = True
                observer.start()
                self._observer = observer
            self._watches[directory] = self._observer.schedule(_Handler(self), directory)
        except OSError as exc:
            return Problem(
                message=f"{directory} cannot be watched: {exc.strerror or exc}",
                remedy="changes are seen at the next rescan; raise fs.inotify.max_user_watches or "
                "fs.inotify.max_user_instances, or mend its permissions",
                severity=Severity.WARNING,
                file=directory,
            )
        self._identities[directory] = key
        return None

    def _unschedule(self, directory: str) -> None:
        watch = self._watches.pop(directory)
        self._identities.pop(directory, None)
        if self._observer is not None:
            try:
                self._observer.unschedule(watch)
            except (KeyError, OSError):
                return

    def seen(self, event: FileSystemEvent) -> None:
        """Take an event, in watchdog's thread."""
        # That a directory changed is said again with the name in it.
        is_echo = event.is_directory and event.event_type == "modified"
        if event.event_type in _QUIET or is_echo or self._stopped:
            return
        paths = [os.fsdecode(event.src_path)]
        if event.dest_path:
            paths.append(os.fsdecode(event.dest_path))
        try:
            self._loop.call_soon_threadsafe(self._take, paths)
        except RuntimeError:
            return

    def _take(self, paths: list[str]) -> None:
        if self._stopped:
            return
        changed: set[str] = set()
        for path in paths:
            directory, name = os.path.split(path)
            for names in (self._names.get(directory, {}), self._names.get(path, {})):
                changed |= names.get(name, set())
            if not _is_editors(name):
                changed |= self._names.get(directory, {}).get(None, set())
            if path in self._names:
                changed |= set().union(*self._names[path].values())
        if changed:
            self._look_up()
            self._on_change(frozenset(changed))


class _Handler(FileSystemEventHandler):
    def __init__(self, watch: FileWatch) -> None:
        self._watch = watch

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._watch.seen(event)


def _is_editors(name: str) -> bool:
    """Lock, backup and swap files: `.x`, `#x#`, `x~`."""
    return name.startswith((".", "#")) or name.endswith("~")


def _identity(directory: str) -> tuple[int, int]:
    try:
        status = Path(directory).stat()
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino


def _way(path: str) -> list[tuple[str, str]]:
    """The directories on the way to `path`, each with the name in it that leads on.

    Those are the directory of the path, those of all links that are passed, and where something is
    missing, the directory in which it would appear.
    """
    steps: list[tuple[str, str]] = []
    todo = _parts(str(Path.cwd() / path))
    at, links = Path("/"), 0
    while todo:
        name = todo.pop()
        if name == "..":
            at = at.parent
            continue
        here = at / name
        if here.is_symlink() and links < _MOST_LINKS:
            links += 1
            steps.append((str(at), name))
            target = str(here.readlink())
            at = Path("/") if target.startswith("/") else at
            todo += _parts(target)
            continue
        if not todo or not here.exists():
            steps.append((str(at), name))
            break
        at = here
    return steps


def _parts(path: str) -> list[str]:
    """The parts of a path, last one first."""
    return [part for part in path.split("/") if part not in ("", ".")][::-1]
