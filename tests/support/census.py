"""Run fc-frontend in this process, and count its work and its objects from within.

`python -m tests.support.census PYTHON -m fc_frontend ARGUMENT…`, called like a launcher.  A Unix
socket, named by the environment variable FC_CENSUS, answers each connection with JSON, which
`census` reads: current memory and tasks, and the files written, programs executed and functions
called since the start.  Files and programs are counted by Python's own audit events, so that none
is missed and nothing is imitated.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fc_frontend

VARIABLE = "FC_CENSUS"
CALLS = {
    "renders": ("fc_frontend.render.render", "render"),
    "plans": ("fc_frontend.plan.planner", "plan"),
}
TURNS = {
    "sweeps": ("fc_frontend.daemon.answers", "Answers.sweep"),
    "steps": ("fc_frontend.daemon.reconciler", "Reconciler.step"),
}
TEMPLATES = ("jinja2", "Template.render")
_CONFINE = str(Path(fc_frontend.__file__).parent / "haproxy" / "confine.py")
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.tmp$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """The objects and tasks that a process holds, and the work it has done."""

    blocks: int
    """The number of memory blocks allocated for Python objects."""
    tasks: int
    threads: int
    """The number of threads without the event loop's pool, whose size Python decides."""
    calls: dict[str, int]
    """The number of calls, by name; sweeps and steps count when they are complete."""
    under_way: dict[str, int]
    """The number of sweeps and steps in progress."""
    templates: dict[str, int]
    """The number of times each template was rendered, by name."""
    executed: dict[str, int]
    """The number of times each program was executed, by name and first argument."""
    replaced: dict[str, list[int]]
    """For each file renamed into place, by path: the number of times and the total bytes."""
    opened: dict[str, int]
    """The number of times each other file was opened for writing, by path."""
    read: dict[str, int]
    """The number of times each file below the socket's directory was opened for reading, by path.

    Paths below that directory are relative to it; elsewhere and in its subdirectories, `#` replaces
    numbers.
    """


def census(path: str) -> Census:
    """Query a process that runs under this module."""
    return Census(**_ask(path, b"census"))


def types(path: str) -> Counter[str]:
    """Return the number of objects by type created since the daemon became ready.

    The daemon must be idle: a tuple that another thread is building must not be inspected.
    """
    return Counter(_ask(path, b"types"))


def _ask(path: str, question: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(path)
        connection.sendall(question)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    found: dict[str, Any] = json.loads(answer)
    return found


def _whole(name: str | bytes, directory: int) -> str:
    """Return the path of `name`, which may be relative to a directory's file descriptor."""
    path = os.fsdecode(name)
    return path if directory < 0 else str(Path(f"/proc/self/fd/{directory}").readlink() / path)


def _confined(argv: list[str]) -> list[str]:
    """Return the command that runs within limits, if `argv` is the command that sets these."""
    return argv[argv.index(_CONFINE) + 5 :] if _CONFINE in argv else argv


class _Counts:
    """The counts so far; audit events arrive from all threads."""

    def __init__(self, root: str) -> None:
        self.root = f"{root}/"
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.calls: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.templates: Counter[str] = Counter()
        self.executed: Counter[str] = Counter()
        self.replaced: dict[str, list[int]] = {}
        self.opened: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self._busy = threading.local()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event.

        Must be fast, and must not raise, as that would end the observed process.
        """
        if event not in ("open", "os.rename", "subprocess.Popen"):
            return
        if getattr(self._busy, "here", False):
            return
        self._busy.here = True
        try:
            if event == "os.rename":
                names, directories = arguments[:2], arguments[2:]
                self._renamed(*map(_whole, names, directories))
            elif event == "subprocess.Popen":
                argv = _confined([os.fsdecode(word) for word in arguments[1]])
                with self.lock:
                    self.executed[" ".join([Path(argv[0]).name, *argv[1:2]])] += 1
            elif isinstance(arguments[0], (str, bytes)):
                self._opened(os.fsdecode(arguments[0]), arguments[2])
        except (OSError, TypeError, ValueError, IndexError):
            pass
        finally:
            self._busy.here = False

    def _renamed(self, source: str, target: str) -> None:
        size = Path(source).stat().st_size
        with self.lock:
            entry = self.replaced.setdefault(self._name(target), [0, 0])
            entry[0] += 1
            entry[1] += size

    def _opened(self, path: str, flags: int) -> None:
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        # Files renamed into place are counted by the rename.
        if _TEMPORARY.search(path) or not (writes or path.startswith(self.root)):
            return
        with self.lock:
            (self.opened if writes else self.read)[self._name(path)] += 1

    def _name(self, path: str) -> str:
        """Map many files to few names; otherwise the counters themselves would grow."""
        below = path.removeprefix(self.root)
        return re.sub(r"\d+", "#", below) if below == path or "/" in below else below

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `function` to count its calls."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.lock:
                self.calls[name] += 1
            return function(*arguments, **named)

        return call

    def turning(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the coroutine function `function` to count its completed calls."""

        async def turn(*arguments: Any, **named: Any) -> Any:
            self.loop = asyncio.get_running_loop()
            with self.lock:
                self.under_way[name] += 1
            try:
                return await function(*arguments, **named)
            finally:
                with self.lock:
                    self.under_way[name] -= 1
                    self.calls[name] += 1

        return turn

    def printing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a template's method `function` to count its calls by the template's name."""

        def call(template: Any, *arguments: Any, **named: Any) -> Any:
            with self.lock:
                self.templates[str(template.name)] += 1
            return function(template, *arguments, **named)

        return call

    def types(self) -> bytes:
        """Return the number of live objects by type, after a garbage collection."""
        gc.collect()
        found = Counter(
            f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects()
        )
        return json.dumps(found).encode()

    def answer(self) -> bytes:
        """Return all counts, after a garbage collection."""
        gc.collect()
        tasks = len(asyncio.all_tasks(self.loop)) if self.loop else 0
        turns = dict.fromkeys(TURNS, 0)
        with self.lock:
            return json.dumps(
                {
                    "blocks": sys.getallocatedblocks(),
                    "tasks": tasks,
                    "threads": sum(not _is_ours(each) for each in threading.enumerate()),
                    "calls": dict.fromkeys(CALLS, 0) | turns | self.calls,
                    "under_way": turns | self.under_way,
                    "templates": self.templates,
                    "executed": self.executed,
                    "replaced": self.replaced,
                    "opened": self.opened,
                    "read": self.read,
                }
            ).encode()


def main() -> None:
    path = os.environ[VARIABLE]
    counts = _Counts(str(Path(path).parent))
    for name, place in CALLS.items():
        _replace(place, partial(counts.counted, name))
    for name, place in TURNS.items():
        _replace(place, partial(counts.turning, name))
    _replace(TEMPLATES, counts.printing)
    listener = socket.socket(socket.AF_UNIX)
    # A previous daemon may have left it.
    Path(path).unlink(missing_ok=True)
    listener.bind(path)
    listener.listen()
    threading.Thread(target=_serve, args=(listener, counts), daemon=True).start()
    sys.addaudithook(counts.audit)
    sys.argv = sys.argv[3:]
    importlib.import_module("fc_frontend.__main__").main()


def _replace(
    place: tuple[str, str], counted: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Wrap a module's function, or a class's method, to count its calls."""
    module, path = place
    owner: Any = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, last, counted(getattr(owner, last)))


def _is_ours(thread: threading.Thread) -> bool:
    return thread is threading.current_thread() or thread.name.startswith("asyncio_")


def _serve(listener: socket.socket, counts: _Counts) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            question = connection.recv(64)
            connection.sendall(counts.types() if question == b"types" else counts.answer())


if __name__ == "__main__":
    main()
