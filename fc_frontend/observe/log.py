"""Events, one line each: a kebab-case name, then fields as logfmt.

No value can begin a line, colour a terminal or fill a disk: control characters are escaped, values
are truncated, and repeated events can be limited.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

from fc_frontend.text import printable

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
"""Priorities as in sd-daemon(3)."""
_LONGEST_VALUE = 1000
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/@+,*%→[]")


class Log:
    """Writes events.  Fields that are None are omitted."""

    def __init__(
        self,
        logger: logging.Logger,
        clock: Callable[[], float],
        limits: Limits,
        repeated: int | None = None,
    ) -> None:
        """Create a log; `repeated` is a field of every event."""
        self._logger = logger
        self._clock = clock
        self._limits = limits
        self._repeated = repeated

    def debug(self, event: str, **fields: object) -> None:
        """Log a detail for debugging fc-frontend."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log an event that requires no action."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log an event that an operator should look at during working hours."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log an event that an operator should look at now."""
        self._write(logging.ERROR, event, fields)

    def limited(self, key: str, seconds: float = 60.0, burst: int = 1) -> Log:
        """Return a log that writes `burst` times in `seconds` per `key`, and counts the rest."""
        repeated = self._limits.allowed(key, seconds, self._clock(), burst)
        logger = _SILENT if repeated is None else self._logger
        return Log(logger, self._clock, self._limits, repeated or None)

    def _write(self, level: int, event: str, fields: Mapping[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            fields = {"repeated": self._repeated, **fields}
            self._logger.log(level, "%s", event, extra={"fields": fields})


class Limits:
    """The time of each key's first event, and the count of its events since.  Bounded."""

    def __init__(self, most: int = 5000) -> None:
        self._most = most
        self._seen: dict[str, tuple[float, int]] = {}

    def allowed(self, key: str, seconds: float, now: float, burst: int = 1) -> int | None:
        """Return how often `key` was suppressed before; None if it is to be suppressed now."""
        first, count = self._seen.get(key, (float("-inf"), 0))
        if now - first < seconds:
            self._seen[key] = first, count + 1
            return 0 if count < burst else None
        self._seen.pop(key, None)
        while len(self._seen) >= self._most:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = now, 1
        return max(0, count - burst)


_SILENT = logging.Logger("silent", level=sys.maxsize)


class _Formatter(logging.Formatter):
    """Formats an event as one line: with its priority for the journal, else the time in UTC."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        name = record.levelname.lower()
        head = f"<{_PRIORITIES[name]}>" if self._journal else f"{_now()} {name:7} "
        return head + render_event(record.getMessage(), getattr(record, "fields", {}))


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines; a full disk or a closed reader must not end the daemon."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        with suppress(OSError, ValueError):
            self.stream.write(f"{line}\n")
            self.flush()


def configure(
    stream: TextIO,
    *,
    level: str = "info",
    journal: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Log:
    """Return a log that writes events of `level` and above to `stream`.

    With `journal`, lines begin with the priority that systemd's journal reads (sd-daemon(3)),
    otherwise with the time in UTC.
    """
    handler = _Handler(stream)
    handler.setFormatter(_Formatter(journal=journal))
    logger = logging.Logger("fc-frontend", LEVELS[level])
    logger.addHandler(handler)
    return Log(logger, clock, Limits())


def render_event(event: str, fields: Mapping[str, object]) -> str:
    """Return an event and its fields as one line of logfmt."""
    shown = [f"{key}={_value(value)}" for key, value in fields.items() if value is not None]
    return " ".join([printable(event), *shown])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if text and len(text) <= _LONGEST_VALUE and all(letter in _BARE for letter in text):
        return text
    text = text[: _LONGEST_VALUE + 1].replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(text, _LONGEST_VALUE)}"'
