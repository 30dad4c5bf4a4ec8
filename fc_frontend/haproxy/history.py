"""Deployment history: each configuration, with its time, reasons and outcome, for rollback.

Each deployment is a separate file in the state directory; the text of an accepted one is stored
beside it.  Foreign texts that were overwritten are kept in the same way: the first one is entry 0.
Numbers only increase.  A damaged entry is left out, and affects no others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from fc_frontend import files
from fc_frontend.errors import Cause, Problem, Refused, Unavailable
from fc_frontend.files import Attributes, Content
from fc_frontend.haproxy.lock import directory_locked
from fc_frontend.render.config import HASH_LENGTH, config_hash
from fc_frontend.text import one_line

DIRECTORY = "history"
MOST_ENTRIES = 50
MOST_BYTES = 64 * 1024 * 1024
"""Total size of all entries and texts."""
ACCEPTED = frozenset(("routed", "reloaded", "started", "installed"))
"""Outcomes of deployments that HAProxy accepted, or loads when it is started."""
_KEPT_ACCEPTED = 2
"""Number of newest accepted entries that are always kept: the running one and the one before."""
_KEPT_FOREIGN = 5
"""Number of newest foreign texts that are always kept, in addition to entry 0."""
_KEPT_EDITED = 10
"""Maximum number of texts edited by hand; they make room for deployments."""
BEFORE_US = 0
"""The number of the text that existed before fc-frontend."""
_MOST_REASONS = 20
_LONGEST_WORD = 500
_LARGEST_ENTRY = 64 * 1024
_COPY = 0o640
_MAX_COUNT = 2**32 - 1
"""The invalid user and group ID; far above any number of services, slots or permissions."""
_PERMISSIONS = 0o777
_NAME = re.compile(r"^(\d{6}|[1-9]\d{6,11})\.(json|cfg)$")
_HASH = re.compile(r"^[0-9a-f]{16}$")


class Kept(StrEnum):
    """Outcomes of texts that were overwritten, not deployed."""

    FOREIGN = "foreign"
    """Not written by fc-frontend."""
    EDITED = "edited"
    """Written by fc-frontend, and edited since."""


_REASONS = {Kept.FOREIGN: "not written by fc-frontend", Kept.EDITED: "edited by hand"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One deployment, or one text that was kept before it was overwritten.

    `at` is Unix time; `seconds` is the duration of the reload or start.  `id` is -1 until the entry
    is recorded.  `slots` and `services` are None if unknown; for a foreign text, `services` counts
    its proxies.  `mode`, `uid` and `gid` are those of a file that was kept.  `by` is the user who
    ran the command, empty for the daemon; `files` lists the files that changed.
    """

    id: int = -1
    at: float
    hash: str
    outcome: str
    reasons: tuple[str, ...] = ()
    services: int | None = None
    slots: int | None = None
    seconds: float = 0.0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    by: str = ""
    files: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether HAProxy accepted it."""
        return self.outcome in ACCEPTED

    @property
    def has_text(self) -> bool:
        """Whether there is a text to roll back to."""
        return self.accepted or self.outcome in set(Kept)

    @property
    def has_served(self) -> bool:
        """Whether HAProxy has served clients with it, as far as that is known."""
        return self.accepted or (self.outcome == Kept.FOREIGN and bool(self.services))

    @property
    def attributes(self) -> Attributes | None:
        """Permissions and owner of the file that was kept; None for a deployment."""
        if self.mode is None or self.uid is None or self.gid is None:
            return None
        return Attributes(self.mode, self.uid, self.gid)


def record(state_directory: str, entry: Entry, text: str, *, mode: int = 0o640) -> Entry | None:
    """Record `entry`, and `text` if HAProxy accepted it; return the entry with its number.

    The text gets `mode`.  Returns None if the last entry is the same: a configuration that is
    refused repeatedly is recorded once.  Removes old entries.  Raises `Unavailable`.
    """
    with _exclusive(state_directory):
        directory = _directory(state_directory)
        known = entries(state_directory)
        if known and not entry.accepted and _same(known[-1], entry):
            return None
        entry = replace(
            _bounded(entry), id=max((number for number, _ in _files(directory)), default=0) + 1
        )
        if entry.accepted:
            # Before the entry: an entry without its text would be of no use.
            data = text.encode("utf-8", "surrogateescape")
            files.write_own(f"{directory}/{entry.id:06}.cfg", data, mode=mode)
        _write(directory, entry)
        prune(state_directory)
    return entry


def keep(
    state_directory: str, content: Content, kind: Kept, *, proxies: int = 0, reason: str = ""
) -> Entry:
    """Keep a text that is about to be overwritten, byte for byte; return its entry.

    The first foreign text is entry 0.  A text that is already in the history is not kept twice.
    Raises `Unavailable`.
    """
    data, attributes = content.data, content.attributes
    digest = digest_of(data)
    with _exclusive(state_directory):
        directory = _directory(state_directory)
        for entry in reversed(entries(state_directory)):
            if entry.has_text and entry.hash == digest:
                with contextlib.suppress(Refused, Unavailable):
                    if text(state_directory, entry) == data.decode("utf-8", "surrogateescape"):
                        return entry
        taken = {number for number, _ in _files(directory)}
        is_first = kind is Kept.FOREIGN and BEFORE_US not in taken
        entry = Entry(
            id=BEFORE_US if is_first else max(taken, default=0) + 1,
            at=time.time(),
            hash=digest,
            outcome=kind.value,
            reasons=("before fc-frontend" if is_first else reason or _REASONS[kind],),
            services=proxies if kind is Kept.FOREIGN else None,
            **asdict(attributes),
        )
        mode = _COPY & attributes.mode
        files.write_own(f"{directory}/{entry.id:06}.cfg", data, mode=mode)
        _write(directory, entry)
        prune(state_directory)
    return entry


def keep_installed(state_directory: str, content: Content) -> Entry | None:
    """Record the installed text of fc-frontend when the history has no other text to roll back to.

    This happens, for example, after the state directory was lost.  Raises `Unavailable`.
    """
    text = content.data.decode("utf-8", "surrogateescape")
    reasons = ("was installed before",)
    entry = Entry(at=time.time(), hash=own_hash(text) or "", outcome="installed", reasons=reasons)
    return record(state_directory, entry, text, mode=_COPY & content.attributes.mode)


def digest_of(data: bytes) -> str:
    """Return the hash of a text that fc-frontend did not write."""
    return hashlib.sha256(data).hexdigest()[:HASH_LENGTH]


def unseen(state_directory: str) -> Problem | None:
    """Return a problem if this user may not read the history, so that it only seems empty."""
    directory = _directory(state_directory)
    try:
        next(directory.iterdir(), None)
    except PermissionError:
        return Problem(
            f"{directory} cannot be read: permission denied",
            "run as root, or as the user that fc-frontend's daemon runs as",
            cause=Cause.FORBIDDEN,
            file=str(directory),
        )
    except OSError:
        return None
    return None


def deployments(directory: str) -> tuple[Entry, ...]:
    """Return the entries that are deployments, not kept texts; otherwise like `entries`."""
    return tuple(each for each in entries(directory) if each.outcome not in set(Kept))


def entries(state_directory: str) -> tuple[Entry, ...]:
    """Return the readable entries, the oldest first."""
    directory = _directory(state_directory)
    found = (
        _read(directory / f"{number:06}.json", number)
        for number, suffix in _files(directory)
        if suffix == "json"
    )
    return tuple(sorted((entry for entry in found if entry), key=lambda entry: entry.id))


def damaged(state_directory: str) -> tuple[str, ...]:
    """Return the paths of entries that cannot be read; all other functions skip them."""
    directory = _directory(state_directory)
    found = (
        (directory / f"{number:06}.json", number)
        for number, suffix in sorted(_files(directory))
        if suffix == "json"
    )
    # A file that no longer exists was pruned in the meantime.
    return tuple(
        str(path) for path, number in found if _read(path, number) is None and os.path.lexists(path)
    )


def text(state_directory: str, entry: Entry) -> str:
    """Return the haproxy.cfg of an entry that HAProxy accepted, or that was kept.

    Raises `Refused` if there is none or if it differs from the recorded hash, and `Unavailable` if
    it cannot be read.
    """
    path = _directory(state_directory) / f"{entry.id:06}.cfg"
    if not entry.has_text:
        raise Refused.of(
            f"entry {entry.id} is of a configuration that HAProxy did not take ({entry.outcome})",
            remedy="choose one that it took: fc-frontend history",
        )
    try:
        data = files.read_own(str(path), files.MAX_BYTES) or b""
    except PermissionError as error:
        raise Unavailable.of(
            f"{path} cannot be read: {error.strerror or error}",
            "run as the user that fc-frontend's daemon runs as, or as root",
            file=str(path),
        ) from error
    except OSError:
        # A link or a pipe, which fc-frontend did not write.
        data = b""
    content = data.decode("utf-8", "surrogateescape")
    if entry.hash in (digest_of(data), own_hash(content)):
        return content
    raise Refused.of(
        f"the text of entry {entry.id} is damaged or gone",
        "choose another one: fc-frontend history",
        file=str(path),
    )


def own_hash(content: str) -> str | None:
    """Return the digest of an unedited text of fc-frontend, else None."""
    # A text with surrogates has no hash: fc-frontend cannot have rendered it.
    with contextlib.suppress(UnicodeEncodeError):
        return config_hash(content)
    return None


def prune(state_directory: str) -> None:
    """Remove entries beyond `MOST_ENTRIES` and `MOST_BYTES`, the oldest first.

    Entry 0, the newest accepted entries and the newest foreign texts are kept.  At most half of all
    entries may be refused ones.
    """
    directory = _directory(state_directory)
    known = entries(state_directory)
    foreign = [entry.id for entry in known if entry.outcome == Kept.FOREIGN]
    edited = [entry.id for entry in known if entry.outcome == Kept.EDITED]
    refused = {entry.id for entry in known if not entry.has_text}
    kept = {entry.id for entry in [e for e in known if e.accepted][-_KEPT_ACCEPTED:]}
    kept |= {BEFORE_US, *foreign[-_KEPT_FOREIGN:]}
    unwanted = {*foreign[:-_KEPT_FOREIGN], *edited[:-_KEPT_EDITED]}
    unwanted |= set(sorted(refused)[: -MOST_ENTRIES // 2])
    sizes: dict[int, int] = {}
    for (number, _), size in _files(directory).items():
        sizes[number] = sizes.get(number, 0) + size
    # Damaged entries count as well, or they would never be removed.
    left = MOST_ENTRIES - len(kept & sizes.keys())
    room = MOST_BYTES - sum(sizes.get(number, 0) for number in kept)
    for number in sorted(sizes.keys() - kept, reverse=True):
        if number not in unwanted and left > 0 and sizes[number] <= room:
            left -= 1
            room -= sizes[number]
            continue
        for suffix in ("json", "cfg"):
            with contextlib.suppress(Unavailable):
                files.remove(f"{directory}/{number:06}.{suffix}")


@contextlib.contextmanager
def _exclusive(state_directory: str) -> Iterator[None]:
    """Lock the history, so that no number is assigned twice.

    Raises `Unavailable`.
    """
    path = _directory(state_directory)
    files.make_directory(str(path), mode=0o750)
    with directory_locked(path):
        yield


def _write(directory: Path, entry: Entry) -> None:
    data = json.dumps({"version": 1, **asdict(entry)}).encode()
    files.write_own(f"{directory}/{entry.id:06}.json", data + b"\n")


def _directory(state_directory: str) -> Path:
    return Path(state_directory) / DIRECTORY


def _files(directory: Path) -> dict[tuple[int, str], int]:
    """Return the sizes of the entries' files in bytes, by number and suffix."""
    return {
        (int(match[1]), match[2]): size
        for name, size in files.sizes(str(directory)).items()
        if (match := _NAME.match(name))
    }


def _read(path: Path, number: int) -> Entry | None:
    try:
        value = json.loads(files.read_own(str(path), _LARGEST_ENTRY) or b"")
    except (OSError, ValueError, RecursionError):
        return None
    return _parsed(value, number)


def _parsed(value: Any, number: int) -> Entry | None:
    if not isinstance(value, dict) or value.get("version") != 1 or value.get("id") != number:
        return None
    reasons, changed = value.get("reasons"), value.get("files", [])
    by = value.get("by", "")
    numbers = (value.get(field) for field in ("services", "slots", "mode", "uid", "gid"))
    digest, outcome = value.get("hash"), value.get("outcome")
    is_good = (
        isinstance(digest, str)
        and _HASH.match(digest)
        and isinstance(outcome, str)
        and outcome.isprintable()
        and isinstance(reasons, list)
        and all(_is_text(reason) for reason in reasons)
        and isinstance(changed, list)
        and all(_is_text(file) for file in changed)
        and _is_text(by)
        and all(_is_count(number) for number in numbers)
        and all(_is_time(value.get(field)) for field in ("at", "seconds"))
    )
    if not is_good:
        return None
    return Entry(
        id=number,
        at=float(value["at"]),
        hash=str(digest),
        outcome=str(outcome),
        reasons=tuple(value["reasons"]),
        services=value["services"],
        slots=value["slots"],
        seconds=float(value["seconds"]),
        mode=None if value.get("mode") is None else value["mode"] & _PERMISSIONS,
        uid=value.get("uid"),
        gid=value.get("gid"),
        by=by,
        files=tuple(changed),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < _MAX_COUNT)


def _is_time(value: object) -> bool:
    # NaN and infinity, which json accepts, are out of range.
    return isinstance(value, int | float) and 0 <= value < 1e11


def _bounded(entry: Entry) -> Entry:
    shown = entry.reasons[:_MOST_REASONS]
    more = len(entry.reasons) - len(shown)
    words = [one_line(reason, _LONGEST_WORD) for reason in shown]
    return replace(
        entry,
        reasons=(*words, *([f"and {more} more"] if more else [])),
        by=one_line(entry.by, _LONGEST_WORD),
        files=tuple(one_line(file, _LONGEST_WORD) for file in entry.files[:_MOST_REASONS]),
    )


def _same(one: Entry, other: Entry) -> bool:
    return (one.hash, one.outcome) == (other.hash, other.outcome)
