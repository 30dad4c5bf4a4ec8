"""The load generator as a context manager, for benchmarks and tests."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The results of all requests, as `tests.support.clients` counts them.  Times in seconds."""

    requests: int
    failed: int
    failures: dict[str, int]
    failed_at: list[tuple[float, str]]
    closed: int
    gap: float
    slowest: float
    lag: float

    @property
    def kinds(self) -> str:
        """Return the failures by kind, as text."""
        return ", ".join(f"{count}× {why}" for why, count in self.failures.items())


class Clients:
    """Clients in a process of their own, counting from the first response to each of them.

    They count until `end`.  With `now` they count from their first request on, whether it is
    answered or not.
    """

    def __init__(
        self,
        host: str,
        *,
        http: int,
        keep: int = 0,
        new: int = 0,
        tcp: int = 0,
        long: int = 0,
        pause: float = 0.35,
        now: bool = False,
    ) -> None:
        given = {
            "http": http, "tcp": tcp, "keep": keep, "new": new, "long": long, "pause": pause,
        }  # fmt: skip
        self._argv = [sys.executable, "-m", "tests.support.clients", host]
        self._argv += [f"--{name}={value}" for name, value in given.items()]
        self._argv += ["--now"] if now else []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line == "ready\n", "not all clients were answered within a minute"
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()

    def end(self) -> Loaded:
        """Let each client finish its request; return the results."""
        assert self._process
        output, _ = self._process.communicate(timeout=60)
        return Loaded(**json.loads(output))
