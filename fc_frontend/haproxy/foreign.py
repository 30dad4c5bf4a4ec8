"""Classify a haproxy.cfg on disk, and decide whether it may be replaced: it may serve clients.

==============================  =====================================================
on disk                         replaced
==============================  =====================================================
no file, or fc-frontend's text  yes
fc-frontend's text, edited      yes; it is kept in the history as edited
foreign text without a proxy    yes; it is kept in the history as foreign
foreign text with proxies       with consent to this very text; it is kept as foreign
==============================  =====================================================

A text that cannot be parsed counts as one with proxies.  Without a text of fc-frontend on disk,
consent is also needed to replace a worker that serves foreign proxies: its file was moved away, or
it uses more than one.  Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.haproxy.history import Kept, own_hash
from fc_frontend.render.config import HASH_LENGTH, HASH_PREFIX, has_mark
from fc_frontend.syntax.keywords import PREPROCESSOR
from fc_frontend.syntax.lines import LineKind
from fc_frontend.syntax.sections import PROXIES, ConfigSection, read_sections

_LIVE = frozenset((*PROXIES, "log-forward", "program"))
"""Sections that serve clients, or run a program, by themselves."""
_STATED = re.compile(rf"{HASH_PREFIX}([0-9a-f]{{{HASH_LENGTH}}})")
_SHOWN = 5


Name = tuple[str, str]
"""A section's keyword and name."""


class FileOrigin(StrEnum):
    """The author and kind of a haproxy.cfg."""

    NONE = "none"
    """There is no file, or an empty one."""
    OURS = "ours"
    EDITED = "edited"
    """It has the digest of a text of fc-frontend, or its comments and no other proxies."""
    BARE = "bare"
    """A foreign text without a proxy."""
    FOREIGN = "foreign"
    """A foreign text with proxies."""
    UNREADABLE = "unreadable"
    """A text that cannot be parsed as a HAProxy configuration."""


@dataclass(frozen=True, slots=True)
class ForeignProxy:
    """A section that serves clients or runs a program."""

    kind: str
    name: str
    binds: tuple[str, ...] = ()

    def __str__(self) -> str:
        binds = f" on {', '.join(self.binds[:_SHOWN])}" if self.binds else ""
        return f"{self.kind} {self.name}".strip() + binds


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """The file on disk.

    `digest` is the SHA-256 of its bytes; `hash` is the digest in a text that fc-frontend wrote.
    """

    origin: FileOrigin
    digest: str = ""
    proxies: tuple[ForeignProxy, ...] = ()
    hash: str = ""


NOTHING = FoundConfig(FileOrigin.NONE)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the file may be replaced.

    `needed` are the digests that lack consent.  `kept` is the kind under which the history must
    first keep the text, or None if nothing is lost.
    """

    needed: frozenset[str] = frozenset()
    kept: Kept | None = None

    @property
    def allowed(self) -> bool:
        """Whether the file may be replaced."""
        return not self.needed


@dataclass(frozen=True, slots=True)
class ServingWorker:
    """The running worker.

    `is_ours` is set if it runs a text of fc-frontend.  Otherwise, `proxies` are the names of the
    sections that it serves.
    """

    is_ours: bool = False
    proxies: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of a configuration that exists only in HAProxy's memory."""
        return hashlib.sha256("\n".join(sorted(self.proxies)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class OwnConfigs:
    """Lookups in the texts that fc-frontend wrote here: `has` a digest, `proxies` in them."""

    has: Callable[[str], bool] = lambda _: False
    proxies: Callable[[], frozenset[Name]] = frozenset


def look_at(data: bytes | None, known: OwnConfigs) -> FoundConfig:
    """Classify a haproxy.cfg."""
    if not data or not data.strip():
        return NOTHING
    digest = hashlib.sha256(data).hexdigest()
    text = data.decode("utf-8", "surrogateescape")
    if (own := own_hash(text)) is not None:
        return FoundConfig(FileOrigin.OURS, digest, hash=own)
    sections = tuple(read_sections(text))
    proxies = tuple(_proxy(section) for section in sections if section.kind in _LIVE)
    stated = stated_in(sections)
    if (stated is not None and known.has(stated)) or _is_derived(text, proxies, known):
        return FoundConfig(FileOrigin.EDITED, digest, proxies)
    if proxies:
        return FoundConfig(FileOrigin.FOREIGN, digest, proxies)
    is_readable = all(_is_readable(section) for section in sections)
    return FoundConfig(FileOrigin.BARE if is_readable else FileOrigin.UNREADABLE, digest)


def proxies_in(text: str) -> frozenset[Name]:
    """Return the sections of a text that serve clients or run a program."""
    sections = read_sections(text)
    return frozenset((section.kind, section.name) for section in sections if section.kind in _LIVE)


def _is_derived(text: str, proxies: Collection[ForeignProxy], known: OwnConfigs) -> bool:
    """Return whether a text is fc-frontend's, with its digest removed.

    It has fc-frontend's comments, and no proxies but fc-frontend's.
    """
    names = {(proxy.kind, proxy.name) for proxy in proxies}
    return bool(names) and has_mark(text) and names <= known.proxies()


def decide(
    found: FoundConfig,
    worker: ServingWorker,
    consents: Collection[str],
    *,
    always: bool = False,
    is_refused: bool = False,
) -> Decision:
    """Decide whether the file `found` may be replaced.

    `always` means consent to everything.  `is_refused` means that HAProxy refuses an unreadable
    file: if HAProxy runs a text of fc-frontend, that file serves nobody.
    """
    asked: set[str] = set()
    if found.origin is FileOrigin.FOREIGN:
        asked.add(found.digest)
    if found.origin is FileOrigin.UNREADABLE and not (is_refused and worker.is_ours):
        asked.add(found.digest)
    if found.origin in (FileOrigin.NONE, FileOrigin.BARE, FileOrigin.UNREADABLE) and worker.proxies:
        asked.add(worker.digest)
    kept = None
    if found.origin is FileOrigin.EDITED:
        kept = Kept.EDITED
    elif found.origin in (FileOrigin.BARE, FileOrigin.FOREIGN, FileOrigin.UNREADABLE):
        kept = Kept.FOREIGN
    needed = frozenset() if always else frozenset(asked) - frozenset(consents)
    return Decision(needed=needed, kept=kept)


def _proxy(section: ConfigSection) -> ForeignProxy:
    binds = (
        line.arguments[0]
        for line in section.statements
        if line.keyword in ("bind", "dgram-bind", "command") and line.arguments
    )
    return ForeignProxy(
        section.kind, _printable(section.name), tuple(_printable(bind) for bind in binds)
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:100]


def stated_in(sections: Iterable[ConfigSection]) -> str | None:
    """Return the digest that HAProxy reports for a text, valid or not; None if it has none.

    The last `description` counts.
    """
    stated = None
    for section in sections:
        if section.kind == "global":
            for line in section.statements:
                if line.keyword == "description":
                    match = _STATED.fullmatch(" ".join(line.arguments))
                    stated = match[1] if match else None
    return stated


def _is_readable(section: ConfigSection) -> bool:
    """Return False if a line may hide a proxy, or is outside any section."""
    for line in section.lines:
        if line.kind in (LineKind.INVALID, LineKind.SCOPE):
            return False
        if line.kind is LineKind.PREPROCESSOR and line.keyword not in PREPROCESSOR:
            return False
        if line.kind is LineKind.VARIABLE or (
            line.kind is LineKind.STATEMENT and section.header is None
        ):
            return False
    return True
