"""Detect changes of declared files at once, however they are changed.

inotify watches inodes.  When a symbolic link is swapped, as NixOS does with everything in /etc, the
directory behind it is another inode.  So each path is watched through its real directory and
through the directory of every link on the way; after each event the paths are resolved again.
The daemon's rescan finds changes that inotify does not report.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from fc_frontend.errors import Problem, Severity
from fc_frontend.safe_files import Unsafe, bounded, remote_mount

# watchdog logs an error if an event arrives while a watch ends; `problems` has the relevant ones.
logging.getLogger("watchdog").addHandler(logging.NullHandler())

_MOST_LINKS = 40
_MOST_LOOKS = 10
_LINKS_SECONDS = 2.0
"""Seconds for all links of a directory together; the loop waits for this."""
_LINK_SECONDS = 0.5
_MANY = 1_000
"""Events in one batch after which some may have been lost: inotify queues 16,384 (inotify(7))."""
_MOST_EVENTS = 10 * _MANY
_REST = 0.02
"""Minimum seconds between two looks at events: a file may be written thousands of times."""
_REST_TIMES = 4
"""The pause until the next look, in multiples of the duration of the last one."""
_QUIET = frozenset(("opened", "closed_no_write"))
"""Events of reading a file, which is no change."""
_Names = dict[str, dict[str | None, set[str]]]
"""Directory → name in it (None: any but an editor's) → the paths affected by a change of it."""
Changes = Mapping[str, frozenset[str] | None]
"""Path, as it was given → names in it that may have changed, None if anything about it may have."""


class FileWatch:
    """Calls back in the loop when a watched file, or a file in a watched directory, changes.

    `on_change` gets the paths that may have changed, as they were given.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[Changes], None]
    ) -> None:
        self._loop = loop
        self._on_change = on_change
        self._observer: BaseObserver | None = None
        self._watches: dict[str, ObservedWatch] = {}
        self._identities: dict[str, tuple[int, int]] = {}
        self._names: _Names = {}
        self._links: dict[str, set[str]] = {}
        self._events: deque[FileSystemEvent] = deque(maxlen=_MOST_EVENTS)
        self._is_due = False
        self._not_before = 0.0
        self._files: frozenset[str] = frozenset()
        self._directories: frozenset[str] = frozenset()
        self._stopped = False
        self.problems: tuple[Problem, ...] = ()

    def watch(self, files: Iterable[str], directories: Iterable[str]) -> None:
        """Watch only these paths, which need not exist.  `problems` lists unwatchable ones."""
        self._files, self._directories = frozenset(files), frozenset(directories)
        self._links.clear()
        changed = self._look_up()
        if changed:
            self._on_change(dict.fromkeys(changed))

    def stop(self) -> None:
        """End all watches; there are no callbacks after this."""
        self._stopped = True
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(5)
            self._observer = None

    def _look_up(self) -> frozenset[str]:
        """Resolve the paths and update the watches; return the paths that now lead elsewhere.

        Files that appeared before their directory was watched caused no event, so the paths are
        resolved until nothing is new.
        """
        before = _places(self._names)
        wanted = self._wanted()
        for _ in range(_MOST_LOOKS):
            for directory in self._watches.keys() - wanted.keys():
                self._unschedule(directory)
            problems = [problem for problem in map(self._schedule, wanted) if problem]
            self._names, self.problems = wanted, tuple(problems)
            wanted = self._wanted()
            if wanted == self._names:
                break
        now = _places(self._names)
        return frozenset(path for path in before.keys() & now if before[path] != now[path])

    def _wanted(self) -> _Names:
        wanted: _Names = {}
        for path in self._files | self._directories:
            _add(wanted, _way(path), path)
        for path in self._directories:
            real = os.path.realpath(path)
            if _is_directory(real):
                wanted.setdefault(real, {}).setdefault(None, set()).add(path)
                if real not in self._links:
                    self._links[real] = _links_in(real)
                for way in _ways([f"{real}/{name}" for name in self._links[real]]):
                    _add(wanted, way, path)
        return wanted

    def _schedule(self, directory: str) -> Problem | None:
        """Watch a directory; if its inode has been replaced, watch the new one."""
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
            if not os.access(directory, os.R_OK):
                # watchdog would not report this.
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._watches[directory] = self._observer.schedule(_Handler(self), directory)
        except OSError as exc:
            return Problem(
                f"{directory} cannot be watched: {exc.strerror or exc}",
                remedy="changes are seen at the next rescan; raise fs.inotify.max_user_watches or "
                "fs.inotify.max_user_instances, or fix its permissions",
                severity=Severity.WARNING,
                file=directory,
            )
        self._identities[directory] = key
        self._links.pop(directory, None)
        return None

    def _unschedule(self, directory: str) -> None:
        watch = self._watches.pop(directory)
        self._identities.pop(directory, None)
        self._links.pop(directory, None)
        if self._observer is not None:
            try:
                self._observer.unschedule(watch)
            except (KeyError, OSError):
                return

    def seen(self, event: FileSystemEvent) -> None:
        """Take an event, in watchdog's thread."""
        # Another event reports the same change with the name of the file.
        is_echo = event.is_directory and event.event_type == "modified"
        if event.event_type in _QUIET or is_echo or self._stopped:
            return
        self._events.append(event)
        if self._is_due:
            return
        self._is_due = True
        try:
            self._loop.call_soon_threadsafe(self._plan)
        except RuntimeError:
            return

    def _plan(self) -> None:
        """Take the events at once, or soon if others were taken just now."""
        self._loop.call_at(max(self._not_before, self._loop.time()), self._take)

    def _take(self) -> None:
        """Take all events that have arrived so far."""
        # Later events are planned anew.
        self._is_due = False
        began = self._loop.time()
        self._take_all()
        ended = self._loop.time()
        self._not_before = ended + max(_REST, _REST_TIMES * (ended - began))

    def _take_all(self) -> None:
        changed: dict[str, frozenset[str] | None] = {}
        named: dict[str, set[str]] = {}
        count = 0
        while self._events and not self._stopped:
            count += 1
            event = self._events.popleft()
            path = os.fsdecode(event.src_path)
            changed.update(self._meant(path, named))
            if event.event_type in ("deleted", "moved") and path in self._watches:
                # Its watch ended with it, even if another directory has its inode number now.
                self._unschedule(path)
            if event.dest_path:
                changed.update(self._meant(os.fsdecode(event.dest_path), named))
        if not changed and not named:
            return
        changed = {**{path: frozenset(names) for path, names in named.items()}, **changed}
        if count > _MANY:
            self._links.clear()
            changed = dict.fromkeys(changed)
        self._on_change({**changed, **dict.fromkeys(self._look_up())})

    def _meant(self, path: str, named: dict[str, set[str]]) -> dict[str, None]:
        """Return the given paths that `path` affects, except the directories that contain it.

        Those directories are added to `named`, with the name of the file.
        """
        directory, name = os.path.split(path)
        names = self._names.get(directory, {})
        if not _is_editors(name):
            for about in names.get(None, ()):
                named.setdefault(about, set()).add(name)
            if directory in self._links:
                is_link = Path(path).is_symlink()
                (self._links[directory].add if is_link else self._links[directory].discard)(name)
        meant = dict.fromkeys(names.get(name, ()))
        for paths in self._names.get(path, {}).values():
            meant |= dict.fromkeys(paths)
        return meant


class _Handler(FileSystemEventHandler):
    def __init__(self, watch: FileWatch) -> None:
        self._watch = watch

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._watch.seen(event)


def _is_editors(name: str) -> bool:
    """Return whether `name` is an editor's lock, backup or swap file: `.x`, `#x#`, `x~`."""
    return name.startswith((".", "#")) or name.endswith("~")


def _identity(directory: str) -> tuple[int, int]:
    try:
        status = Path(directory).stat()
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino


def _is_directory(path: str | Path) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def _link_target(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


def _links_in(directory: str) -> set[str]:
    """Return the names of symbolic links in a directory, without those of editors."""
    try:
        with os.scandir(directory) as entries:
            return {
                entry.name
                for entry in entries
                if entry.is_symlink() and not _is_editors(entry.name)
            }
    except OSError:
        return set()


def _places(names: _Names) -> dict[str, set[tuple[str, str | None]]]:
    """Return where each path is watched."""
    places: dict[str, set[tuple[str, str | None]]] = {}
    for directory, about in names.items():
        for name, paths in about.items():
            for path in paths:
                places.setdefault(path, set()).add((directory, name))
    return places


def _add(wanted: _Names, way: list[tuple[str, str]], path: str) -> None:
    for directory, name in way:
        wanted.setdefault(directory, {}).setdefault(name, set()).add(path)


def _way(path: str) -> list[tuple[str, str]]:
    """Return the directories on the way to `path`, each with the name in it that leads on.

    These are the directory of the path, the directories of all links on the way and, if a component
    is missing, the directory in which it would appear.
    """
    steps: list[tuple[str, str]] = []
    todo = _parts(path if path.startswith("/") else str(Path.cwd() / path))
    at, links = Path("/"), 0
    while todo:
        name = todo.pop()
        if name == "..":
            at = at.parent
            continue
        here = at / name
        target = _link_target(here) if links < _MOST_LINKS else None
        if target is not None:
            links += 1
            steps.append((str(at), name))
            at = Path("/") if target.startswith("/") else at
            todo += _parts(target)
            continue
        if not todo or not _is_directory(here):
            steps.append((str(at), name))
            break
        at = here
    return steps


def _ways(links: list[str]) -> list[list[tuple[str, str]]]:
    """Return the ways to the targets of links, except for file systems that do not respond.

    The rescan finds those files once the file system responds.
    """
    if not links:
        return []
    with contextlib.suppress(Unsafe):
        return bounded(f"{links[0]}/..", lambda: [_way(link) for link in links], _LINKS_SECONDS)
    ways = []
    for link in links:
        mount = remote_mount(link)
        if mount is None:
            ways.append(_way(link))
            continue
        with contextlib.suppress(Unsafe):
            ways.append(bounded(mount, partial(_way, link), _LINK_SECONDS))
    return ways


def _parts(path: str) -> list[str]:
    """Return the parts of a path, last one first."""
    return [part for part in path.split("/") if part not in ("", ".")][::-1]
