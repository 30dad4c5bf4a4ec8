"""The hold: HAProxy stays with one configuration until the operator resumes.

A file in the state directory, so that it outlives the daemon and needs none.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fc_frontend.errors import Problem, Unavailable
from fc_frontend.haproxy.install import atomic_write

FILE = "hold.json"
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Which configuration is held, since when (Unix time), and by whom."""

    id: int
    hash: str
    since: float
    by: str

    def as_json(self) -> dict[str, Any]:
        """The hold in the shape of all JSON output."""
        return asdict(self)


def load(state_directory: str) -> Hold | None:
    """The hold, None if there is none.  A damaged one holds nothing."""
    try:
        with (Path(state_directory) / FILE).open("rb") as stream:
            document = json.loads(stream.read(_MOST_BYTES))
        return Hold(
            id=int(document["id"]),
            hash=str(document["hash"]),
            since=float(document["since"]),
            by=str(document["by"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save(state_directory: str, hold: Hold) -> None:
    """Hold from now on.  Raises `Unavailable`."""
    content = json.dumps({**hold.as_json(), "version": 1}).encode() + b"\n"
    atomic_write(f"{state_directory}/{FILE}", content)


def remove(state_directory: str) -> None:
    """Hold no longer.  Raises `Unavailable`."""
    try:
        with contextlib.suppress(FileNotFoundError):
            (Path(state_directory) / FILE).unlink()
    except OSError as error:
        raise Unavailable(
            Problem(
                message=f"{state_directory}/{FILE} cannot be removed: {error.strerror}",
                remedy="run this as a user who may write there",
            )
        ) from error
