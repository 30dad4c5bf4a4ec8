"""Past configurations: what HAProxy had, when and why, to look at and to go back to.

An entry is a small JSON file, with the text beside it where HAProxy took it.  A damaged entry is
left out; the oldest make room.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fc_frontend.haproxy.install import atomic_write

DIRECTORY = "history"
MOST_ENTRIES = 50
MOST_BYTES = 64 * 1024 * 1024
_MOST_REASONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One deployment.  `at` is Unix time, `seconds` how long it took; `id` counts from 1.

    `has_text` tells whether one can go back to it.
    """

    id: int
    at: float
    hash: str
    outcome: str
    reasons: tuple[str, ...]
    services: int
    slots: int
    seconds: float
    has_text: bool = False

    def as_json(self) -> dict[str, Any]:
        """The entry in the shape of all JSON output."""
        return asdict(self)


def record(
    state_directory: str,
    *,
    at: float,
    hash: str,  # noqa: A002 - as everywhere else
    outcome: str,
    reasons: Iterable[str],
    services: int,
    slots: int,
    seconds: float,
    text: str | None,
) -> Entry:
    """Add an entry, and return it.  `text` is None if HAProxy did not take it.

    What failed before in the same way is not told again.  Raises `Unavailable` if it cannot be
    written.
    """
    directory = Path(state_directory) / DIRECTORY
    known = entries(state_directory)
    if text is None and known and (known[-1].hash, known[-1].outcome) == (hash, outcome):
        return known[-1]
    entry = Entry(
        id=known[-1].id + 1 if known else 1,
        at=at,
        hash=hash,
        outcome=outcome,
        reasons=tuple(reasons)[:_MOST_REASONS],
        services=services,
        slots=slots,
        seconds=seconds,
        has_text=text is not None,
    )
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    if text is not None:
        atomic_write(str(_text_path(directory, entry.id)), text.encode("utf-8", "surrogateescape"))
    content = json.dumps({**entry.as_json(), "version": 1}).encode() + b"\n"
    atomic_write(str(_entry_path(directory, entry.id)), content)
    _make_room(directory, (*known, entry))
    return entry


def entries(state_directory: str) -> tuple[Entry, ...]:
    """All entries that can be read, the oldest first."""
    directory = Path(state_directory) / DIRECTORY
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(directory.glob("[0-9]*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                found.append(_entry(directory, path))
    return tuple(sorted(found, key=lambda entry: entry.id))


def text_of(state_directory: str, entry: Entry) -> str | None:
    """The configuration of an entry, None if it is not there."""
    try:
        content = _text_path(Path(state_directory) / DIRECTORY, entry.id).read_bytes()
    except OSError:
        return None
    return content.decode("utf-8", "surrogateescape")


def _entry_path(directory: Path, number: int) -> Path:
    return directory / f"{number:06}.json"


def _text_path(directory: Path, number: int) -> Path:
    return directory / f"{number:06}.cfg"


def _entry(directory: Path, path: Path) -> Entry:
    """Raises OSError, ValueError, TypeError or KeyError."""
    document = json.loads(path.read_bytes())
    number = int(path.stem)
    return Entry(
        id=number,
        at=float(document["at"]),
        hash=str(document["hash"]),
        outcome=str(document["outcome"]),
        reasons=tuple(str(reason) for reason in document["reasons"]),
        services=int(document["services"]),
        slots=int(document["slots"]),
        seconds=float(document["seconds"]),
        has_text=_text_path(directory, number).is_file(),
    )


def _make_room(directory: Path, known: tuple[Entry, ...]) -> None:
    """Remove the oldest entries beyond the bounds; what HAProxy took last stays in any case."""
    newest = max((entry.id for entry in known if entry.has_text), default=0)
    size = 0
    for count, entry in enumerate(reversed(known), start=1):
        paths = _text_path(directory, entry.id), _entry_path(directory, entry.id)
        for path in paths:
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        if (count > MOST_ENTRIES or size > MOST_BYTES) and entry.id != newest:
            for path in paths:
                with contextlib.suppress(OSError):
                    path.unlink()
