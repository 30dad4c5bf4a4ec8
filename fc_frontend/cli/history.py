"""`fc-frontend history`: what HAProxy was given, when, why, and what became of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    emit,
    fail,
    format_options,
    print_problems,
    say,
    settings_in_force,
    style,
)
from fc_frontend.errors import Problem, Severity, Unavailable

if TYPE_CHECKING:
    from fc_frontend.haproxy.history import Entry
    from fc_frontend.haproxy.hold import Hold

_LONGEST_REASONS = 100


@click.command("history")
@common_options
@format_options("text", "json")
def command(config: str, shape: str) -> None:
    """List what HAProxy was given, the newest last: the time, what became of it, and the reasons.

    `fc-frontend rollback ID` goes back to an entry that was reloaded, started or installed.

    \b
    0  listed
    3  haproxy.cfg cannot be read
    """
    from fc_frontend.haproxy import history, hold
    from fc_frontend.haproxy.rollback import present, present_hash

    settings = settings_in_force(config)
    held = hold.load(settings.state_directory)
    try:
        digest = present_hash(settings.haproxy, held)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    entries = history.entries(settings.state_directory)
    print_problems(
        Problem(
            "this entry of the history is damaged, and is left out",
            "remove it, or leave it: it goes with its age",
            severity=Severity.WARNING,
            file=path,
        )
        for path in history.damaged(settings.state_directory)
    )
    now = present(entries, digest, held)
    if shape == "json":
        emit(_document(entries, now, held))
        return
    rows: list[tuple[str, ...]] = [
        ("ID", "TIME", "OUTCOME", "HASH", "SERVICES", "SLOTS", "SECONDS", "REASONS")
    ]
    rows += [_row(entry) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row, entry in zip(rows, (None, *entries), strict=True):
        line = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
        marks = _marks(entry, now, held)
        say(f"{line.rstrip()}{'  ' if marks else ''}{style(marks, 'green') if marks else ''}")
    if not entries:
        say("nothing yet: HAProxy was given nothing since the history is kept")
    if held is not None:
        what = f"entry {held.id}" if held.hash else "what HAProxy has"
        by = f" by {held.by}" if held.by else ""
        since = f" since {_time(held.since)}" if held.since else ""
        say(f"{what} is held{since}{by}; what is declared waits for: fc-frontend resume")


def _document(
    entries: tuple[Entry, ...], now: Entry | None, held: Hold | None
) -> dict[str, object]:
    return {
        "version": 1,
        "held": held.as_json() if held else None,
        "entries": [
            {
                "id": entry.id,
                "at": entry.at,
                "hash": entry.hash,
                "outcome": entry.outcome,
                "reasons": list(entry.reasons),
                "services": entry.services,
                "slots": entry.slots,
                "seconds": entry.seconds,
                "running": entry is now,
                "held": _is_held(entry, held),
            }
            for entry in entries
        ],
    }


def _row(entry: Entry) -> tuple[str, ...]:
    why = "; ".join(entry.reasons)
    return (
        str(entry.id),
        _time(entry.at),
        entry.outcome,
        entry.hash,
        "-" if entry.services is None else str(entry.services),
        "-" if entry.slots is None else str(entry.slots),
        f"{entry.seconds:.2f}",
        why if len(why) <= _LONGEST_REASONS else why[: _LONGEST_REASONS - 1] + "…",
    )


def _marks(entry: Entry | None, now: Entry | None, held: Hold | None) -> str:
    if entry is None:
        return ""
    marks = (("← running", entry is now), ("held", _is_held(entry, held)))
    return " ".join(mark for mark, is_so in marks if is_so)


def _is_held(entry: Entry, held: Hold | None) -> bool:
    return held is not None and bool(held.hash) and entry.id == held.id


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
