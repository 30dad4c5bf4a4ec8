"""Read YAML and JSON texts as plain values, and locate values in the text on request.

YAML is read by the rules of YAML 1.2's core schema (`on`, `yes` and `12:30` are strings), because
the rules of YAML 1.1 surprise users; JSON is read by the standard library, because YAML parsers
refuse some of it.  Positions are expensive, so they are computed only to report an error.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from json.decoder import scanstring as scan_json_string  # type: ignore[attr-defined]
from typing import Any

import yaml

try:
    from yaml import CLoader as _Parser
except ImportError:  # PyYAML built without libyaml: slower, the same events
    from yaml import Loader as _Parser  # type: ignore[assignment]

Path = tuple[str | int, ...]
Position = tuple[int, int]

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 50
_BLOCK = "\n"
"""Path element for the text of a literal block: the line of its `|`, and its indentation."""
MAX_VALUES = 300_000
"""Values in a document, including those that aliases repeat: reading them takes some seconds."""
MAX_FLAWS = 20
"""Flaws reported per document."""
_TOO_LARGE = ("has too many values", "split it into several files")
_TOO_DEEP = ("nested too deeply", "make it simpler")


@dataclass(frozen=True, slots=True)
class DocumentFlaw:
    """A flaw in a YAML or JSON text.  Lines and columns are counted from 1.

    `message` does not quote the text, because a link can lead to any file.
    """

    message: str
    remedy: str
    line: int | None = None
    column: int | None = None


class DocumentError(ValueError):
    """A text that is not YAML or JSON."""

    def __init__(self, flaw: DocumentFlaw) -> None:
        super().__init__(flaw.message)
        self.flaw = flaw


@dataclass(frozen=True, slots=True)
class Document:
    """A value, the flaws that did not prevent reading it, and the positions of its parts."""

    value: Any
    flaws: tuple[DocumentFlaw, ...]
    _positions: Callable[[], dict[Path, Position]]

    def locate(self, path: Path) -> Position | None:
        """Return line and column of the value at `path`, or of its nearest container."""
        positions = self._positions()
        while path and path not in positions:
            path = path[:-1]
        return positions.get(path)

    def locate_line(self, path: Path, number: int) -> Position | None:
        """Return line and column of line `number`, from 1, of the literal block (`|`) at `path`.

        Return None if the value is not a literal block.
        """
        block = self._positions().get((*path, _BLOCK))
        return (block[0] + number, block[1]) if block else None


def read_document(text: str, *, is_json: bool) -> Document:
    """Parse `text` as a document.  Raises DocumentError if it is not YAML or JSON."""
    return _read_json(text) if is_json else _read_yaml(text)


def _duplicate(first: Position, second: Position) -> DocumentFlaw:
    return DocumentFlaw(
        f"a key is twice in the same mapping, first in line {first[0]}",
        "keep one of the two",
        *second,
    )


# JSON


def _read_json(text: str) -> Document:
    text = text.removeprefix("\ufeff")
    value, duplicates = _json_value(text)
    flaws: list[DocumentFlaw] = []
    if duplicates:
        seen: dict[Path, Position] = {}
        for path, position in _json_positions(text):
            if path in seen and path and isinstance(path[-1], str):
                flaws.append(_duplicate(seen[path], position))
                if len(flaws) == MAX_FLAWS:
                    break
            else:
                seen[path] = position

    def positions() -> dict[Path, Position]:
        places: dict[Path, Position] = {}
        for path, position in _json_positions(text):
            places.setdefault(path, position)
        return places

    return Document(value, tuple(flaws), cache(positions))


def _json_value(text: str) -> tuple[Any, bool]:
    """Return the value of `text`, and whether a mapping has duplicate keys.

    Raises DocumentError.
    """
    duplicates = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal duplicates
        mapping = dict(items)
        duplicates = duplicates or len(mapping) != len(items)
        return mapping

    def constant(name: str) -> Any:
        raise DocumentError(DocumentFlaw(f"{name} is not JSON", "give a number"))

    if text.count(",") > MAX_VALUES:
        raise DocumentError(DocumentFlaw(*_TOO_LARGE))
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as exc:
        raise DocumentError(
            DocumentFlaw(f"not JSON: {exc.msg}", "fix the JSON there", exc.lineno, exc.colno)
        ) from None
    except (RecursionError, ValueError) as exc:
        if isinstance(exc, DocumentError):
            raise
        raise DocumentError(DocumentFlaw("not JSON that can be read", "make it simpler")) from None
    if (at := _half_a_pair(text)) is not None:
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        remedy = "write the character itself, or both halves of its pair"
        raise DocumentError(DocumentFlaw("an escape is half a character", remedy, line, column))
    if _is_too_deep(value):
        raise DocumentError(DocumentFlaw(*_TOO_DEEP))
    return value, duplicates


def _half_a_pair(text: str) -> int | None:
    """Return the offset of the first escaped lone surrogate in valid JSON (RFC 8259, 8.2).

    Return None if there is none.
    """
    if "\\u" not in text:
        return None
    halves = (found.start() for found in _ESCAPE.finditer(text) if found["half"])
    return next(halves, None)


_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F]..)|.)", re.DOTALL
)


def _weight(text: str) -> int:
    """Return how many values a text counts as: more for a long one, so that aliases add up."""
    return 1 + len(text) // 32


def _is_too_deep(value: Any) -> bool:
    """Return whether containers are nested more deeply than `MAX_DEPTH`.

    Python compares and prints values recursively.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _json_positions(text: str) -> Iterator[tuple[Path, Position]]:
    starts = [0, *(newline.end() for newline in re.finditer("\n", text))]
    for path, offset in _json_places(text):
        line = bisect_right(starts, offset)
        yield path, (line, offset - starts[line - 1] + 1)


def _json_places(text: str) -> Iterator[tuple[Path, int]]:
    """Return path and offset of each key and list item of a text that must be valid JSON."""
    decoder = json.JSONDecoder()
    blank: Callable[[str, int], Any] = WHITESPACE.match

    def skip(at: int) -> int:
        return int(blank(text, at).end())

    # A loop, because nesting may be deeper than Python's stack.
    at = skip(0)
    path: Path = ()
    containers: list[tuple[Path, int | None]] = []
    """The containers around `at`: path, and number of the next item or None for a mapping."""
    while True:
        if text[at] in "{[":
            containers.append((path, None if text[at] == "{" else 0))
            at = skip(at + 1)
        else:
            at = skip(decoder.raw_decode(text, at)[1])
        while containers and text[at] in "}]":
            containers.pop()
            at = skip(at + 1)
        if not containers:
            return
        if text[at] == ",":
            at = skip(at + 1)
        outer, number = containers[-1]
        start = at
        if number is None:
            key, at = scan_json_string(text, at + 1)
            at = skip(skip(at) + 1)
            path = (*outer, key)
        else:
            path = (*outer, number)
            containers[-1] = (outer, number + 1)
        yield path, start


# YAML

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAYBE_NUMBER = frozenset("+-.0123456789")
_LONGEST_NUMBER = 40
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _plain(text: str) -> Any:
    """Return the value of an unquoted scalar (YAML 1.2.2, 10.3.2, the core schema)."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] in _MAYBE_NUMBER and len(text) <= _LONGEST_NUMBER:
        if _INT.fullmatch(text):
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text if base == 10 else text[2:], base)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


def _mark(event: yaml.Event) -> Position:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


@dataclass(slots=True)
class _Level:
    """A mapping or sequence under construction."""

    value: Any
    path: Path
    anchor: str | None
    before: int
    """The number of values before it."""
    key: str | None = None

    @property
    def at_key(self) -> bool:
        return isinstance(self.value, dict) and self.key is None

    @property
    def next_path(self) -> Path:
        return (*self.path, len(self.value) if isinstance(self.value, list) else self.key or "")


def _read_yaml(text: str) -> Document:
    flaws: list[DocumentFlaw] = []
    value = _YamlReader(text, flaws).read()

    def positions() -> dict[Path, Position]:
        reader = _YamlReader(text, [], places={})
        reader.read()
        return reader.places or {}

    return Document(value, tuple(flaws), cache(positions))


class _YamlReader:
    """Builds values from libyaml's events.

    PyYAML's C composer recurses without bound: a file of 100 kB of `[` ends the process.  Here,
    events are read one by one, and the depth is limited.  An alias yields the same object again.
    The total size of aliased values is limited, because comparing or joining them takes as much
    time and memory as if they were written out.
    """

    def __init__(
        self, text: str, flaws: list[DocumentFlaw], *, places: dict[Path, Position] | None = None
    ) -> None:
        self._text = text
        self._flaws = flaws
        self.places = places
        self._levels: list[_Level] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        """The value of each anchor, and how many values it counts as."""
        self._lines: list[str] | None = None
        self._values = 0
        self._result: Any = None
        self._documents = 0

    def read(self) -> Any:
        """Return the document's value.  Raises DocumentError."""
        try:
            for event in yaml.parse(self._text, Loader=_Parser):
                self._take(event)
        except yaml.YAMLError as exc:
            raise DocumentError(self._syntax_flaw(exc)) from None
        return self._result

    def _syntax_flaw(self, exc: yaml.YAMLError) -> DocumentFlaw:
        mark = getattr(exc, "problem_mark", None)
        what = getattr(exc, "problem", None) or getattr(exc, "reason", None) or str(exc)
        if mark is None:
            return DocumentFlaw(f"invalid YAML: {what}", "fix the YAML")
        return DocumentFlaw(
            f"invalid YAML: {what}",
            self._syntax_remedy(exc, mark.line),
            mark.line + 1,
            mark.column + 1,
        )

    def _syntax_remedy(self, exc: yaml.YAMLError, number: int) -> str:
        """Return a remedy for a syntax error in a line, counted from 0, by the kind of error."""
        lines = self._text.splitlines()
        if any("\t" in text for text in lines[number : number + 1]):
            return "indent with spaces, not tabs"
        if not any(text.strip() for text in lines[number:]):
            return "close what is open at the end: a quote, [ or {"
        if isinstance(exc, yaml.parser.ParserError):
            return (
                "check the indentation (the fields of a service begin in one column), and close "
                "any open quote, [ or {"
            )
        return (
            "write `name: value` in each line, and quote a value that has `: ` or ` #` in it or "
            "begins with one of % @ ` & * ! | > { ["
        )

    def _fatal(self, message: str, remedy: str, event: yaml.Event) -> DocumentError:
        return DocumentError(DocumentFlaw(message, remedy, *_mark(event)))

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            level = self._levels.pop()
            if level.anchor:
                self._anchors[level.anchor] = level.value, self._values - level.before
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._fatal("unknown alias", "define &… before *…", event)
            value, size = self._anchors[event.anchor]
            self._count(size, event)
            self._put(value, event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._fatal("a second document", "give each its own file", event)

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._levels) >= MAX_DEPTH:
            raise self._fatal(*_TOO_DEEP, event)
        if self._levels and self._levels[-1].at_key:
            raise self._fatal("a key must be a string", "put it in quotes", event)
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        if not event.implicit:
            self._unknown_tag(event)
        path = self._levels[-1].next_path if self._levels else ()
        before = self._values
        self._count(1, event)
        self._put(value, event)
        self._levels.append(_Level(value, path, event.anchor, before))

    def _count(self, values: int, event: yaml.Event) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise self._fatal(*_TOO_LARGE, event)

    def _note(self, flaw: DocumentFlaw) -> None:
        if len(self._flaws) < MAX_FLAWS:
            self._flaws.append(flaw)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        self._count(_weight(event.value), event)
        if not event.value.isascii() and _SURROGATE.search(event.value):
            # libyaml refuses it; PyYAML's own parser does not.
            raise self._fatal("half a character", "write the character itself", event)
        if self._levels and self._levels[-1].at_key:
            self._key(self._levels[-1], event)
            return
        value: Any = event.value
        if event.tag is not None and event.tag not in ("!", "tag:yaml.org,2002:str"):
            self._unknown_tag(event)
        elif event.tag is None and event.implicit[0]:
            value = _plain(event.value)
        if event.anchor:
            self._anchors[event.anchor] = value, _weight(event.value)
        if event.style == "|" and self._levels and self.places is not None:
            path = (*self._levels[-1].next_path, _BLOCK)
            self.places.setdefault(path, self._block_place(event))
        self._put(value, event)

    def _block_place(self, event: yaml.ScalarEvent) -> Position:
        """Return the line of a literal block's `|`, and the column where its lines begin."""
        line, _ = _mark(event)
        if self._lines is None:
            self._lines = self._text.split("\n")
        texts = self._lines[line : line + event.value.count("\n")]
        indents = [len(text) - len(text.lstrip(" ")) for text in texts if text.strip(" ")]
        return line, min(indents, default=0) + 1

    def _unknown_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        self._note(DocumentFlaw("unknown tag", "remove the tag", *_mark(event)))

    def _key(self, level: _Level, event: yaml.ScalarEvent) -> None:
        level.key = event.value
        path = level.next_path
        if self.places is not None:
            self.places.setdefault(path, _mark(event))
        if level.key in level.value:
            self._note(_duplicate(self._first_place(path), _mark(event)))

    def _first_place(self, path: Path) -> Position:
        if self.places is None:
            reader = _YamlReader(self._text, [], places={})
            reader.read()
            self.places = reader.places
        return (self.places or {}).get(path, (1, 1))

    def _put(self, value: Any, event: yaml.Event) -> None:
        if not self._levels:
            self._result = value
            return
        level = self._levels[-1]
        if level.at_key:
            raise self._fatal("a key must be a string", "put it in quotes", event)
        if isinstance(level.value, list):
            if self.places is not None:
                self.places.setdefault(level.next_path, _mark(event))
            level.value.append(value)
        else:
            level.value.setdefault(level.key, value)
            level.key = None
