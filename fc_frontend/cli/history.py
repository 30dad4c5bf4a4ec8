"""`fc-frontend history`: show past deployments, their reasons and results."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import click

from fc_frontend.cli import completion
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
from fc_frontend.errors import Problem, Refused, Severity, Unavailable

if TYPE_CHECKING:
    from fc_frontend.haproxy.history import Entry
    from fc_frontend.haproxy.hold import Hold

_LONGEST_REASONS = 100

EPILOG = """\
\b
Examples:
  fc-frontend history         list deployments: when, by whom, why, result
  fc-frontend history show 7  entry 7 with its haproxy.cfg
  fc-frontend history diff 7  what has changed since entry 7
"""


@click.command("history", epilog=EPILOG)
@common_options
@format_options("table", "wide", "json")
@click.argument("action", type=click.Choice(["show", "diff"]), required=False)
@click.argument("ids", metavar="[ID [ID]]", type=int, nargs=-1, shell_complete=completion.entry)
def command(config: str, shape: str, action: str | None, ids: tuple[int, ...]) -> None:
    """Show the deployment history, newest last: when, by whom, why, and the result.

    `history show ID` prints an entry with its haproxy.cfg. `history diff ID` compares its
    haproxy.cfg with the running one, `history diff ID ID` two entries. Run it as root or as the
    daemon's user: it needs read access to the state directory.

    `fc-frontend rollback ID` restores an entry that was routed, reloaded, started or installed.

    \b
    0  listed
    1  no such entry, or its haproxy.cfg was not kept
    3  haproxy.cfg or the history cannot be read
    """
    from fc_frontend.haproxy import history, hold
    from fc_frontend.haproxy.rollback import present, present_hash

    wanted = {None: (0, 0), "show": (1, 1), "diff": (1, 2)}[action]
    if not wanted[0] <= len(ids) <= wanted[1]:
        raise click.UsageError("say which entry: history show ID, history diff ID [ID]")
    settings = settings_in_force(config)
    directory = settings.state_directory
    unseen = history.unseen(directory)
    if unseen is not None:
        fail([unseen], Exit.CANNOT_TELL)
    held = hold.load(directory)
    try:
        digest = present_hash(settings.haproxy, held)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    entries = history.entries(directory)
    print_problems(
        Problem(
            "this entry of the history is damaged, and is left out",
            "remove it, or leave it: it goes with its age",
            severity=Severity.WARNING,
            file=path,
        )
        for path in history.damaged(directory)
    )
    now = present(entries, digest, held)
    if action is None:
        _list(entries, now, held, shape)
        return
    chosen = [_entry(entries, number) for number in ids]
    if action == "diff" and len(chosen) == 1:
        if now is None:
            _refuse("what HAProxy runs is not in the history", "name a second entry")
        chosen.append(now)
    try:
        texts = [history.text(directory, entry) for entry in chosen]
    except Refused as exc:
        fail(exc.problems, Exit.PROBLEMS)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    if action == "show":
        _show(chosen[0], texts[0], now, held, shape)
    else:
        _diff(chosen, texts, shape)


def _entry(entries: tuple[Entry, ...], number: int) -> Entry:
    found = next((entry for entry in entries if entry.id == number), None)
    if found is None:
        _refuse(f"the history has no entry {number}", "see fc-frontend history")
    return found


def _refuse(message: str, remedy: str) -> NoReturn:
    fail([Problem(message, remedy)], Exit.PROBLEMS)


def _list(entries: tuple[Entry, ...], now: Entry | None, held: Hold | None, shape: str) -> None:
    if shape == "json":
        emit(_document(entries, now, held))
        return
    header: tuple[str, ...] = ("ID", "TIME", "BY", "OUTCOME", "SERVICES", "REASONS")
    if shape == "wide":
        header = (*header[:4], "HASH", "SERVICES", "SLOTS", "SECONDS", "FILES", "REASONS")
    rows = [header, *(_row(entry, is_wide=shape == "wide") for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row, entry in zip(rows, (None, *entries), strict=True):
        line = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
        marks = _marks(entry, now, held)
        say(f"{line.rstrip()}{'  ' if marks else ''}{style(marks, 'green') if marks else ''}")
    if not entries:
        say("no deployments yet")
    if held is not None:
        what = f"entry {held.id}" if held.hash else "the running configuration"
        by = f" by {held.by}" if held.by else ""
        since = f" since {_time(held.since)}" if held.since else ""
        say(f"{what} is held{since}{by}; deployments are paused until: fc-frontend resume")


def _show(entry: Entry, text: str, now: Entry | None, held: Hold | None, shape: str) -> None:
    if shape == "json":
        emit({"version": 1, **_values(entry, now, held), "text": text})
        return
    lines = {
        "entry": f"{entry.id}  {_marks(entry, now, held)}".rstrip(),
        "time": _time(entry.at),
        "by": entry.by or _nobody(entry),
        "outcome": f"{entry.outcome} in {entry.seconds:.2f} s",
        "hash": entry.hash,
        "reasons": "; ".join(entry.reasons),
        "files": ", ".join(entry.files),
    }
    for name, value in lines.items():
        if value:
            say(f"{name:9} {value}")
    say()
    for line in text.splitlines():
        say(line.expandtabs())


def _diff(entries: list[Entry], texts: list[str], shape: str) -> None:
    from difflib import unified_diff

    before, after = entries
    one, other = (text.expandtabs().splitlines() for text in texts)
    names = (f"entry {before.id}", f"entry {after.id}")
    lines = list(unified_diff(one, other, *names, lineterm=""))
    if shape == "json":
        emit({"version": 1, "before": before.id, "after": after.id, "lines": lines})
        return
    for line in lines:
        color = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        say(style(line, color) if color else line)
    if not lines:
        say(f"entries {before.id} and {after.id} have the same haproxy.cfg")


def _document(
    entries: tuple[Entry, ...], now: Entry | None, held: Hold | None
) -> dict[str, object]:
    return {
        "version": 1,
        "held": held.as_json() if held else None,
        "entries": [_values(entry, now, held) for entry in entries],
    }


def _values(entry: Entry, now: Entry | None, held: Hold | None) -> dict[str, object]:
    return {
        "id": entry.id,
        "at": entry.at,
        "by": entry.by,
        "hash": entry.hash,
        "outcome": entry.outcome,
        "reasons": list(entry.reasons),
        "files": list(entry.files),
        "services": entry.services,
        "slots": entry.slots,
        "seconds": entry.seconds,
        "running": entry is now,
        "held": _is_held(entry, held),
    }


def _row(entry: Entry, *, is_wide: bool) -> tuple[str, ...]:
    why = "; ".join(entry.reasons)
    if not is_wide and len(why) > _LONGEST_REASONS:
        why = why[: _LONGEST_REASONS - 1] + "…"
    first = (str(entry.id), _time(entry.at), entry.by or _nobody(entry), entry.outcome)
    services = "-" if entry.services is None else str(entry.services)
    if not is_wide:
        return *first, services, why
    slots = "-" if entry.slots is None else str(entry.slots)
    names = ", ".join(file.rpartition("/")[2] for file in entry.files) or "-"
    return *first, entry.hash, services, slots, f"{entry.seconds:.2f}", names, why


def _nobody(entry: Entry) -> str:
    """Return who made an entry without a user; unknown for a foreign or edited file."""
    return "-" if entry.outcome in ("foreign", "edited") else "daemon"


def _marks(entry: Entry | None, now: Entry | None, held: Hold | None) -> str:
    if entry is None:
        return ""
    marks = (("← running", entry is now), ("held", _is_held(entry, held)))
    return " ".join(mark for mark, is_so in marks if is_so)


def _is_held(entry: Entry, held: Hold | None) -> bool:
    return held is not None and bool(held.hash) and entry.id == held.id


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
