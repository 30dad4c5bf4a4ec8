"""Deployment history: what HAProxy was given, when, why and with what outcome, to go back to.

Each deployment is a file of its own in the state directory; one that HAProxy took has its text
beside it.  Texts of others that were overwritten are kept in the same way: the first one is entry
0.  Numbers only rise.  A damaged entry is left out, and affects nothing else.
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
"""Of all entries and texts together."""
ACCEPTED = frozenset(("routed", "reloaded", "started", "installed"))
"""Outcomes of deployments that HAProxy took, or will take when it is started."""
_KEPT_ACCEPTED = 2
"""The newest accepted entries that are never forgotten: the one that runs and the one before."""
_KEPT_FOREIGN = 5
"""The newest texts of others that are never forgotten; nor is entry 0."""
_KEPT_EDITED = 10
"""Texts edited by hand; they make room for deployments."""
BEFORE_US = 0
"""The number of the text that was there before fc-frontend."""
_MOST_REASONS = 20
_LONGEST_WORD = 500
_LARGEST_ENTRY = 64 * 1024
_COPY = 0o640
_MAX_COUNT = 2**32 - 1
"""The invalid user and group; no number of services, slots or permissions comes near."""
_PERMISSIONS = 0o777
_NAME = re.compile(r"^(\d{6}|[1-9]\d{6,11})\.(json|cfg)$")
_HASH = re.compile(r"^[0-9a-f]{16}$")


class Kept(StrEnum):
    """Outcomes of texts that were not deployed, but overwritten."""

    FOREIGN = "foreign"
    """Not written by fc-frontend."""
    EDITED = "edited"
    """Written by fc-frontend, and edited since."""


_REASONS = {Kept.FOREIGN: "not written by fc-frontend", Kept.EDITED: "edited by hand"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One deployment, or one text that was kept before it was overwritten.

    `at` is Unix time, `seconds` how long its reload or start took.  `id` is -1 until it is
    recorded.  `slots` and `services` are None where they are not known; of a foreign text,
    `services` counts its proxies.  `mode`, `uid` and `gid` are those of a file that was kept.
    `by` is the user whose command it was, empty for the daemon; `files` have what changed.
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
        """True if HAProxy took it."""
        return self.outcome in ACCEPTED

    @property
    def has_text(self) -> bool:
        """True if there is a text to go back to."""
        return self.accepted or self.outcome in set(Kept)

    @property
    def has_served(self) -> bool:
        """True if HAProxy has served something with it, as far as that is known."""
        return self.accepted or (self.outcome == Kept.FOREIGN and bool(self.services))

    @property
    def attributes(self) -> Attributes | None:
        """Permissions and owner of the file that was kept; None of a deployment."""
        if self.mode is None or self.uid is None or self.gid is None:
            return None
        return Attributes(self.mode, self.uid, self.gid)


def record(state_directory: str, entry: Entry, text: str, *, mode: int = 0o640) -> Entry | None:
    """Keep `entry`, and `text` if HAProxy took it; returns it with its number.

    The text gets `mode`.  None if the last entry says the same: something that is refused again
    and again is recorded once.  Forgets what is too old.  Raises `Unavailable`.
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
    """Keep a text that is about to be overwritten, byte for byte; returns its entry.

    The first foreign one is entry 0.  A text that the history has already is not kept twice.
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
    """Record a text of ours that was installed while nothing else is known to go back to.

    As after the state directory was lost.  Raises `Unavailable`.
    """
    text = content.data.decode("utf-8", "surrogateescape")
    reasons = ("was installed before",)
    entry = Entry(at=time.time(), hash=own_hash(text) or "", outcome="installed", reasons=reasons)
    return record(state_directory, entry, text, mode=_COPY & content.attributes.mode)


def digest_of(data: bytes) -> str:
    """The hash of a text that is not ours."""
    return hashlib.sha256(data).hexdigest()[:HASH_LENGTH]


def unseen(state_directory: str) -> Problem | None:
    """That this user may not read the history, so that nothing follows from what is not seen."""
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
    """The entries that are deployments, not texts that were kept; as `entries` otherwise."""
    return tuple(each for each in entries(directory) if each.outcome not in set(Kept))


def entries(state_directory: str) -> tuple[Entry, ...]:
    """The entries that can be read, the oldest one first."""
    directory = _directory(state_directory)
    found = (
        _read(directory / f"{number:06}.json", number)
        for number, suffix in _files(directory)
        if suffix == "json"
    )
    return tuple(sorted((entry for entry in found if entry), key=lambda entry: entry.id))


def damaged(state_directory: str) -> tuple[str, ...]:
    """The paths of entries that cannot be read; they are left out everywhere else."""
    directory = _directory(state_directory)
    found = (
        (directory / f"{number:06}.json", number)
        for number, suffix in sorted(_files(directory))
        if suffix == "json"
    )
    # One that has gone meanwhile has only made room.
    return tuple(
        str(path) for path, number in found if _read(path, number) is None and os.path.lexists(path)
    )


def text(state_directory: str, entry: Entry) -> str:
    """The haproxy.cfg of an entry that HAProxy took, or that was kept.

    Raises `Refused` if there is none, or if it is not what was recorded; `Unavailable` if it cannot
    be read.
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
        # A link, a pipe: nothing of ours.
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
    """The digest of a text that fc-frontend wrote and nobody edited, else None."""
    # A surrogate has no hash: it could not have been rendered.
    with contextlib.suppress(UnicodeEncodeError):
        return config_hash(content)
    return None


def prune(state_directory: str) -> None:
    """Forget what is beyond `MOST_ENTRIES` and `MOST_BYTES`, the oldest first.

    Entry 0, the newest entries that HAProxy took and the newest foreign ones stay.  Of what it
    refused there is no more than half of all.
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
    # Damaged entries count as well, or they would stay for ever.
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
    """Nobody else records in the meantime, so that no number is given twice.

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
    """The files of entries, by number and suffix, and their sizes in bytes."""
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
    # NaN and infinity, which json reads, compare as outside.
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
