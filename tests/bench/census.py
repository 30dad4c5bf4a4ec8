"""Runs fc-frontend in this process, and counts from within what it does and holds.

`python -m tests.bench.census PYTHON -m fc_frontend ARGUMENT…`, as a launcher is called.  A Unix
socket, named by the environment's FC_CENSUS, answers each connection with JSON, which `census`
reads: objects and tasks that live, and since the start what was written, executed and called.
Python's own audit events are what is counted, so that nothing is missed and nothing is imitated.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "FC_CENSUS"
CALLS = {
    "renders": ("fc_frontend.render.render", "render"),
    "plans": ("fc_frontend.plan.planner", "plan"),
    "sweeps": ("fc_frontend.daemon.reconciler", "Reconciler.sweep"),
    "steps": ("fc_frontend.daemon.reconciler", "Reconciler.step"),
}
MOST_TYPES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What a process holds (objects by type, tasks), and what it has done."""

    objects: int
    types: dict[str, int]
    tasks: int
    threads: int
    calls: dict[str, int]
    executed: dict[str, int]
    """Programs by name and first argument."""
    replaced: dict[str, list[int]]
    """Files that were renamed into place, by path: how often, and how many bytes in all."""
    opened: dict[str, int]
    """Other files that were opened for writing, by path."""


def census(path: str) -> Census:
    """Ask a process that runs under this module."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(path)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return Census(**json.loads(answer))


class _Counts:
    """What was counted so far; audit events come from all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.executed: Counter[str] = Counter()
        self.replaced: dict[str, list[int]] = {}
        self.opened: Counter[str] = Counter()
        self._busy = threading.local()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The hook: must be quick, and must not raise, as that would end what is observed."""
        if event not in ("open", "os.rename", "subprocess.Popen"):
            return
        if getattr(self._busy, "here", False):
            return
        self._busy.here = True
        try:
            if event == "os.rename":
                source, target = (os.fsdecode(name) for name in arguments[:2])
                size = Path(source).stat().st_size
                with self.lock:
                    entry = self.replaced.setdefault(target, [0, 0])
                    entry[0] += 1
                    entry[1] += size
            elif event == "subprocess.Popen":
                argv = [os.fsdecode(word) for word in arguments[1]]
                with self.lock:
                    self.executed[" ".join([Path(argv[0]).name, *argv[1:2]])] += 1
            else:
                path, _, flags = arguments
                if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR):
                    with self.lock:
                        self.opened[os.fsdecode(path)] += 1
        except (OSError, TypeError, ValueError, IndexError):
            pass
        finally:
            self._busy.here = False

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which counts its calls."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.lock:
                self.calls[name] += 1
            return function(*arguments, **named)

        return call

    def answer(self) -> bytes:
        """All counts, and what lives after a collection."""
        gc.collect()
        living = gc.get_objects()
        types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in living)
        tasks = sum(isinstance(each, asyncio.Task) and not each.done() for each in living)
        with self.lock:
            return json.dumps(
                {
                    "objects": len(living),
                    "types": dict(types.most_common(MOST_TYPES)),
                    "tasks": tasks,
                    "threads": threading.active_count() - 1,
                    "calls": dict.fromkeys(CALLS, 0) | self.calls,
                    "executed": self.executed,
                    "replaced": self.replaced,
                    "opened": self.opened,
                }
            ).encode()


def main() -> None:
    counts = _Counts()
    for name, (module, path) in CALLS.items():
        owner: Any = importlib.import_module(module)
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, counts.counted(name, getattr(owner, last)))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.environ[VARIABLE])
    listener.listen()
    threading.Thread(target=_serve, args=(listener, counts), daemon=True).start()
    sys.addaudithook(counts.audit)
    sys.argv = sys.argv[3:]
    importlib.import_module("fc_frontend.__main__").main()


def _serve(listener: socket.socket, counts: _Counts) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(counts.answer())


if __name__ == "__main__":
    main()
