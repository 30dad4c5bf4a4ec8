"""Events, one line each: a kebab-case name, then fields as logfmt.

No value can begin a line, colour a terminal or fill a disk: control characters are escaped, values
are cut, and events that repeat themselves can be limited.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from fc_frontend.text import printable

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
"""sd-daemon(3)."""
_LONGEST_VALUE = 1000
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/@+,*%→[]")


@contextmanager
def _without_rich() -> Iterator[None]:
    """Keep `structlog.dev` from importing rich: 14 MB for tracebacks that a daemon never draws."""
    loaded = "rich" in sys.modules
    if not loaded:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not loaded:
            del sys.modules["rich"]


class Log:
    """Writes events.  Fields that are None are left out."""

    def __init__(self, logger: Any, clock: Callable[[], float], limits: Limits) -> None:
        self._logger = logger
        self._clock = clock
        self._limits = limits

    def debug(self, event: str, **fields: object) -> None:
        """What helps to find a fault in fc-frontend."""
        self._logger.debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """What happened, with nothing to be done."""
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """What an operator should look at in daylight."""
        self._logger.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """What an operator should look at now."""
        self._logger.error(event, **fields)

    def limited(self, key: str, seconds: float = 60.0, burst: int = 1) -> Log:
        """A log that writes `burst` times in `seconds` for the same `key`, and counts the rest."""
        repeated = self._limits.allowed(key, seconds, self._clock(), burst)
        if repeated is None:
            return Log(_Silent(), self._clock, self._limits)
        if repeated:
            return Log(self._logger.bind(repeated=repeated), self._clock, self._limits)
        return self


class Limits:
    """When each key was first written, and how often it came since.  Bounded."""

    def __init__(self, most: int = 5000) -> None:
        self._most = most
        self._seen: dict[str, tuple[float, int]] = {}

    def allowed(self, key: str, seconds: float, now: float, burst: int = 1) -> int | None:
        """How often `key` was kept back before this time, None if it is to be kept back now."""
        first, count = self._seen.get(key, (float("-inf"), 0))
        if now - first < seconds:
            self._seen[key] = first, count + 1
            return 0 if count < burst else None
        self._seen.pop(key, None)
        while len(self._seen) >= self._most:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = now, 1
        return max(0, count - burst)


class _Silent:
    def debug(self, event: str, **fields: object) -> None: ...
    def info(self, event: str, **fields: object) -> None: ...
    def warning(self, event: str, **fields: object) -> None: ...
    def error(self, event: str, **fields: object) -> None: ...


class _Lines:
    """Writes lines; a full disk or a reader that has gone must not end the daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def debug(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    info = warning = error = debug


def configure(
    stream: TextIO,
    *,
    level: str = "info",
    journal: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Log:
    """A log that writes to `stream` events of `level` and above.

    With `journal`, lines begin with the priority that systemd's journal reads (sd-daemon(3)); else
    with the time in UTC.
    """
    with _without_rich():
        import structlog

    def line(_logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        head = f"<{_PRIORITIES[method]}>" if journal else f"{_now()} {method:7} "
        return head + render_event(event)

    logger = structlog.wrap_logger(
        _Lines(stream),
        processors=[line],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        cache_logger_on_first_use=True,
    )
    return Log(logger, clock, Limits())


def render_event(event: MutableMapping[str, Any]) -> str:
    """`event` and its fields as one line of logfmt."""
    name = event.pop("event", "")
    fields = [f"{key}={_value(value)}" for key, value in event.items() if value is not None]
    return " ".join([printable(name), *fields])


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
