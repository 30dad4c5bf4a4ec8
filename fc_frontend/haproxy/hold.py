"""The hold that `rollback` sets: while it exists, changes are not deployed.

It is a file, so that it outlives the command that set it, and the daemon.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fc_frontend import files
from fc_frontend.errors import Problem

FILE = "hold.json"
_MOST_BYTES = 64 * 1024
_HASH = re.compile(r"^[0-9a-f]{16}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Entry `id` of the history, with `hash`, is held since the Unix time `since`, set by `by`.

    A file that cannot be parsed holds the running configuration: then `hash` is empty and `id` is
    0.
    """

    id: int = 0
    hash: str = ""
    since: float = 0.0
    by: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the hold as it appears in JSON output."""
        return asdict(self)


def path(state_directory: str) -> str:
    """Return the path of the hold file."""
    return f"{state_directory}/{FILE}"


def load(state_directory: str) -> Hold | None:
    """Return the hold, or None if there is none.

    Never raises.  An unreadable file counts as a hold, because an operator rolled back for a
    reason.
    """
    try:
        content = files.read_own(path(state_directory), _MOST_BYTES)
        return None if content is None else _parsed(json.loads(content))
    except (OSError, ValueError, RecursionError):
        return Hold()


def unseen(state_directory: str) -> Problem | None:
    """Return a problem if this user may not read the hold file, else None."""
    try:
        with Path(path(state_directory)).open("rb"):
            return None
    except PermissionError as error:
        return Problem(
            f"{error.filename} cannot be read: {error.strerror}",
            "run as the user that fc-frontend's daemon runs as, or as root",
            file=str(error.filename),
        )
    except OSError:
        return None


def problem(held: Hold) -> Problem:
    """Return the problem that deployments are paused by this hold."""
    by = f" by {held.by}" if held.by else ""
    what = f"configuration {held.id}" if held.hash else "the running configuration"
    return Problem(
        f"{what} is held{by}: deployments are paused",
        "run `fc-frontend resume` to resume normal deployments",
    )


def save(state_directory: str, hold: Hold) -> None:
    """Set the hold.  Raises `Unavailable`."""
    data = json.dumps({"version": 1, **asdict(hold)}, ensure_ascii=True)
    files.write_own(path(state_directory), data.encode() + b"\n")


def remove(state_directory: str) -> None:
    """Remove the hold, if there is one.  Raises `Unavailable`."""
    files.remove(path(state_directory))


def _parsed(value: Any) -> Hold:
    if not isinstance(value, dict) or value.get("version") != 1:
        return Hold()
    number, digest = value.get("id"), value.get("hash")
    since, by = value.get("since"), value.get("by")
    if type(number) is not int or not isinstance(digest, str) or not _HASH.match(digest):
        return Hold()
    return Hold(
        id=number,
        hash=digest,
        since=float(since) if isinstance(since, int | float) and 0 <= since < 1e11 else 0.0,
        by=by[:100] if isinstance(by, str) and by.isprintable() else "",
    )
