"""The listeners of a piece of haproxy.cfg: every socket that HAProxy opens for it.

These are `bind` in proxies and peers, `bind` and `dgram-bind` in log-forward, the local `peer`, and
`stats socket` in global.  No other lines open a listener; the master's socket is an argument on the
command line.  A `bind` in a backend is included: HAProxy (2.6, 2.8) warns that it ignores the line,
but listens nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fc_frontend.model.units import SETTINGS, UnitId
from fc_frontend.syntax.endpoints import (
    Family,
    ListenEndpoint,
    NotAnEndpoint,
    located_path,
    read_endpoints,
    read_options,
)
from fc_frontend.syntax.lines import Line, LineKind, notable_lines
from fc_frontend.syntax.words import Word

_KEYWORDS = frozenset(
    """
    bind default-bind dgram-bind disabled enabled localpeer peer server stats unix-bind
    """.split()
)
MAX_PORTS = 65_535
"""Ports per text: each costs a file descriptor in HAProxy, and a comparison in fc-frontend."""

Branch = tuple[tuple[int, int], ...]
"""For each condition around a line: the line of its `.if`, and the number of the branch."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that HAProxy opens for a line.

    `line` is counted from 1 in the owner's text.  If `peer` is set, HAProxy listens only if that is
    its own name.
    """

    endpoint: ListenEndpoint
    line: int
    branch: Branch = ()
    peer: str = ""
    takes_prefix: bool = False
    """Whether a preceding global `unix-bind prefix` applies to its path."""

    def excludes(self, other: Listener) -> bool:
        """Return whether both are in different branches of one condition of the same text."""
        return any(
            mine[0] == theirs[0] and mine[1] != theirs[1]
            for mine, theirs in zip(self.branch, other.branch, strict=False)
        )


class Owned(NamedTuple):
    """A listener, and the unit that defines it."""

    owner: UnitId
    listener: Listener


@dataclass(frozen=True, slots=True)
class BindFlaw:
    """A line whose listeners cannot be determined, and the reason.  `line` is counted from 1."""

    owner: UnitId
    line: int
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Listeners:
    """The listeners of a text, and its directives that affect the following texts.

    `unix_prefix` is the path that `unix-bind prefix` prepends to all following UNIX socket paths;
    `local_peer` is HAProxy's own peer name, if `localpeer` sets it.  If `is_plain`, neither is set
    and no listener depends on them.
    """

    listeners: tuple[Owned, ...] = ()
    flaws: tuple[BindFlaw, ...] = ()
    unix_prefix: str | None = None
    local_peer: str | None = None
    is_plain: bool = True


def read_listeners(text: str, owner: UnitId = SETTINGS) -> Listeners:
    """Return the listeners of `text`, one or more sections of `owner`.  Never raises.

    Lines that HAProxy refuses for a reason other than their address are treated as accepted; lines
    under a condition (`.if`) are always included.
    """
    return _Reader(owner).read(text)


def effective(texts: Iterable[Listeners], host_name: str) -> tuple[list[Owned], list[BindFlaw]]:
    """Return the listeners and flaws of texts that HAProxy reads one after the other.

    HAProxy applies the first `unix-bind prefix` and the last `localpeer` before a line; without
    `localpeer`, `host_name` is the local peer's name.
    """
    prefix, peer = "", host_name
    found: list[Owned] = []
    flaws: list[BindFlaw] = []
    for read in texts:
        flaws += read.flaws
        if read.is_plain:
            found += read.listeners
            continue
        for owner, listener in read.listeners:
            if listener.peer in ("", peer):
                try:
                    found.append(Owned(owner, _located(listener, prefix)))
                except NotAnEndpoint as exc:
                    flaws.append(BindFlaw(owner, listener.line, str(exc), exc.remedy))
        prefix = prefix or read.unix_prefix or ""
        peer = read.local_peer or peer
    return found, flaws


def _located(listener: Listener, prefix: str) -> Listener:
    """Return `listener` with its full path.  Raises NotAnEndpoint."""
    endpoint = listener.endpoint
    if endpoint.family is not Family.UNIX:
        return listener
    path = located_path(prefix + endpoint.host if listener.takes_prefix else endpoint.host)
    return listener if path == endpoint.host else _moved(listener, path)


def _moved(listener: Listener, path: str) -> Listener:
    return replace(listener, endpoint=replace(listener.endpoint, host=path), takes_prefix=False)


@dataclass(frozen=True, slots=True)
class _Opening:
    """A line that opens listeners on `address`, with the words of its options."""

    line: int
    branch: Branch
    address: Word
    options: tuple[Word, ...]
    is_datagram: bool = False
    prefix: str | None = None
    """The prefix of a path; None if this text does not determine it."""
    peer: str = ""


@dataclass(slots=True)
class _Section:
    """A section being read: its lines take effect at its end, unless it is disabled then."""

    kind: str = ""
    is_disabled: bool = False
    openings: list[_Opening] = field(default_factory=list)
    options: list[Word] = field(default_factory=list)
    """The options of all listeners of a peers section."""


class _Reader:
    """Reads one text."""

    def __init__(self, owner: UnitId) -> None:
        self._owner = owner
        self._section = _Section()
        self._listeners: list[Owned] = []
        self._flaws: list[BindFlaw] = []
        self._prefix: str | None = None
        self._peer: str | None = None
        self._branch: Branch = ()
        self._ports = 0

    def read(self, text: str) -> Listeners:
        for line in notable_lines(text, _KEYWORDS):
            self._take(line)
        self._end_section()
        depends = any(one.peer or one.endpoint.family is Family.UNIX for _, one in self._listeners)
        return Listeners(
            tuple(self._listeners),
            tuple(self._flaws),
            self._prefix,
            self._peer,
            self._prefix is self._peer is None and not depends,
        )

    def _take(self, line: Line) -> None:
        if line.kind is LineKind.SECTION:
            self._end_section()
            self._section = _Section(line.keyword)
        elif line.kind is LineKind.PREPROCESSOR:
            self._condition(line)
        elif line.kind is LineKind.VARIABLE:
            self._flaws.append(
                BindFlaw(
                    self._owner,
                    line.number,
                    f"{line.words[0].source} stands for a keyword",
                    "write the keyword itself: fc-frontend cannot see what the variable contains",
                )
            )
        elif line.kind is LineKind.STATEMENT and not line.prefix:
            self._statement(line)

    def _condition(self, line: Line) -> None:
        word = line.words[0].text
        if word == ".if":
            self._branch = (*self._branch, (line.number, 0))
        elif word == ".endif":
            self._branch = self._branch[:-1]
        elif word in (".elif", ".else") and self._branch:
            start, number = self._branch[-1]
            self._branch = (*self._branch[:-1], (start, number + 1))

    def _statement(self, line: Line) -> None:
        section, words = self._section, line.words
        match section.kind, line.keyword:
            case (("listen" | "frontend" | "backend" | "peers" | "log-forward"), "bind"):
                self._open(line, 1)
                if section.kind == "peers":
                    section.options += words[2:]
            case "log-forward", "dgram-bind":
                self._open(line, 1, is_datagram=True)
            case "global", "stats" if line.arguments[:1] == ("socket",):
                self._open(line, 2, takes_prefix=False)
            case "peers", "peer":
                self._open(line, 2, peer=words[1].text if len(words) > 1 else "")
            case "peers", "default-bind":
                section.options += words[1:]
            case (("listen" | "frontend" | "backend" | "peers"), ("disabled" | "enabled")):
                # A section that is disabled only under a condition may listen.
                if line.keyword == "enabled" or not self._branch:
                    section.is_disabled = line.keyword == "disabled"
            case "global", "localpeer":
                self._peer = words[1].text if len(words) > 1 else None
            case "global", "unix-bind":
                self._unix_bind(line.arguments)
            case _:
                pass

    def _open(
        self,
        line: Line,
        at: int,
        *,
        is_datagram: bool = False,
        takes_prefix: bool = True,
        peer: str = "",
    ) -> None:
        """Record the listeners of a line whose address is the word at index `at`."""
        if peer and self._peer is not None:
            if peer != self._peer:
                return
            peer = ""
        if len(line.words) > at:
            prefix = self._prefix if takes_prefix else ""
            address, options = line.words[at], line.words[at + 1 :]
            if self._section.kind == "peers":
                # A peer's own options apply to connections to that peer.
                options = ()
            self._section.openings.append(
                _Opening(line.number, self._branch, address, options, is_datagram, prefix, peer)
            )

    def _unix_bind(self, arguments: tuple[str, ...]) -> None:
        for option, value in zip(arguments[::2], arguments[1::2], strict=False):
            if option == "prefix" and self._prefix is None:
                self._prefix = value

    def _end_section(self) -> None:
        section = self._section
        for opening in () if section.is_disabled else section.openings:
            try:
                found = _listeners(opening, (*section.options, *opening.options))
                self._ports += sum(len(one.endpoint.ports) for one in found)
                if self._ports > MAX_PORTS:
                    raise NotAnEndpoint(f"more than {MAX_PORTS} ports", "use fewer")
                self._listeners += [Owned(self._owner, listener) for listener in found]
            except NotAnEndpoint as exc:
                self._flaws.append(BindFlaw(self._owner, opening.line, str(exc), exc.remedy))
        self._section = _Section()


def _listeners(opening: _Opening, options: tuple[Word, ...]) -> list[Listener]:
    """Return the listeners of a line.  Raises NotAnEndpoint."""
    endpoints = read_endpoints(
        opening.address.text, read_options(options), datagram=opening.is_datagram
    )
    prefix = opening.prefix
    found = [
        Listener(endpoint, opening.line, opening.branch, opening.peer, prefix is None)
        for endpoint in endpoints
        if endpoint is not None
    ]
    return [
        _moved(one, prefix + one.endpoint.host)
        if prefix and one.endpoint.family is Family.UNIX
        else one
        for one in found
    ]
