"""Parse haproxy.cfg into sections of lines, with the place of each.

Sections begin where they begin for HAProxy.  A line that HAProxy cannot parse, or that
fc-frontend's files must not contain, is reported as a problem, and its section is not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fc_frontend.errors import Problem, Refused
from fc_frontend.syntax.lines import MAX_LINE, Line, LineKind, read_line
from fc_frontend.syntax.sections import PROXIES

MAX_TEXT = 4 * 1024 * 1024
"""The maximum size of all files together, in characters."""
MOST_SECTIONS = 5_000
MOST_DEFAULTS = 32
"""The maximum depth of inheritance."""
MOST_INHERITED = 500
"""The maximum number of lines that a section inherits from `defaults`."""


@dataclass(slots=True)
class OldSection:
    """A section: `base` is the `defaults` section it inherits, `comment` the comment above it."""

    kind: str
    name: str
    file: str
    header: Line
    base: OldSection | None = None
    comment: tuple[str, ...] = ()
    lines: list[Line] = field(default_factory=list)
    broken: bool = False
    """Whether it cannot be used; a problem contains the reason."""
    depth: int = 0
    """The number of `defaults` sections that it inherits."""
    inherited: int = 0
    """The number of lines in these."""
    conditional: bool = False
    """Whether some of its lines depend on HAProxy's preprocessor (`.if`)."""

    @property
    def statements(self) -> list[Line]:
        """The lines that are not empty or comments."""
        return [line for line in self.lines if line.words]

    def lineage(self) -> list[OldSection]:
        """Return the `defaults` that it inherits, the most general one first."""
        chain: list[OldSection] = []
        base = self.base
        while base is not None:
            chain.insert(0, base)
            base = base.base
        return chain


def read_sections(texts: Iterable[tuple[str, str]]) -> tuple[list[OldSection], list[Problem]]:
    """Return the sections of files, given as (file, text), in HAProxy's order, and the problems.

    Raises `Refused` if the files together are too large.
    """
    reader = _Reader()
    size = 0
    for file, text in texts:
        size += len(text)
        if size > MAX_TEXT:
            raise Refused.of(
                f"more than {MAX_TEXT} characters", "import the files in several runs", file=file
            )
        reader.read(file, text)
    return reader.sections, reader.problems


class _Reader:
    """Reads files one after another: `defaults` of one file apply to the next."""

    def __init__(self) -> None:
        self.sections: list[OldSection] = []
        self.problems: list[Problem] = []
        self._file = ""
        self._section: OldSection | None = None
        self._comment: list[str] = []
        self._last_defaults: OldSection | None = None
        self._named: dict[str, OldSection] = {}
        self._taken: dict[tuple[str, str], OldSection] = {}
        self._depth = 0

    def read(self, file: str, text: str) -> None:
        self._file, self._section, self._comment, self._depth = file, None, [], 0
        for number, raw in enumerate(text.split("\n"), start=1):
            if len(raw) > MAX_LINE:
                self._refuse(number, f"more than {MAX_LINE} characters in a line", "shorten it")
            else:
                self._read_line(read_line(raw, number))
        self._end_section()

    def _refuse(self, number: int, message: str, remedy: str) -> None:
        self.problems.append(Problem(message, remedy, file=self._file, line=number))
        if self._section:
            self._section.broken = True

    def _read_line(self, line: Line) -> None:
        number, code = line.number, line.code
        if line.kind is LineKind.BLANK:
            # A comment is no reason to reject a section.
            self._comment.append(_shown(line.source.rstrip()))
        elif line.kind is LineKind.EMPTY:
            self._refuse(
                number,
                f"{_short(code)} begins with an empty word, so that HAProxy skips the line",
                "remove the line, or write # before it",
            )
        elif line.fault is not None:
            self._refuse(number, str(line.fault), line.fault.remedy)
        elif line.kind is LineKind.SCOPE:
            self._refuse(number, f"{_short(line.source)} belongs into a SPOE file", "remove it")
        elif not all(_fit(letter) for letter in code):
            self._refuse(
                number, "has a control character or another one that is not printable", "replace it"
            )
        elif any(word.is_cut for word in line.words):
            self._refuse(number, "\\x00 ends a word early", "remove it")
        elif line.kind is LineKind.VARIABLE:
            self._refuse(
                number,
                f"{_short(code)} has a variable in the place of its keyword",
                "write the file as it comes out for this host, and import that",
            )
        elif line.kind is LineKind.SECTION:
            self._begin(replace(line, source=code + _shown(line.comment)))
        elif self._section is None:
            self._refuse(number, f"{_short(code)} stands in no section", "put it into one")
        else:
            self._add(self._section, replace(line, source=code + _shown(line.comment)))

    def _add(self, section: OldSection, line: Line) -> None:
        self._flush_comment(section)
        section.lines.append(line)
        if line.kind is LineKind.PREPROCESSOR:
            section.conditional = True
            self._depth += {".if": 1, ".endif": -1}.get(line.keyword, 0)

    def _flush_comment(self, section: OldSection) -> None:
        section.lines += [Line(0, text, LineKind.BLANK) for text in self._comment]
        self._comment = []

    def _begin(self, line: Line) -> None:
        comment = self._split_comment()
        outer = self._depth
        self._end_section()
        words = [word.text for word in line.words]
        kind = words[0]
        name = words[1] if len(words) > 1 else ""
        if kind == "defaults" and name == "from":
            name, words = "", [kind, "", *words[1:]]
        section = OldSection(kind, name, self._file, line, comment=comment)
        self._section = section
        self.sections.append(section)
        if len(self.sections) > MOST_SECTIONS:
            raise Refused.of(
                f"more than {MOST_SECTIONS} sections",
                "import the files in several runs",
                file=self._file,
                line=line.number,
            )
        if outer:
            self._refuse(
                line.number,
                f"{kind} {name}".strip() + " stands inside a condition (.if)",
                "write the file as it comes out for this host, and import that",
            )
        if any(word.variable for word in line.words):
            self._refuse(line.number, "a variable in a section's name", "write the name itself")
        if kind in PROXIES or kind == "defaults":
            self._set_base(section, words)
        if kind == "defaults":
            self._last_defaults = section
            if name:
                self._named[name] = section
        self._require_unique(section)

    def _set_base(self, section: OldSection, words: list[str]) -> None:
        number = section.header.number
        if len(words) > 2:
            if words[2] != "from" or len(words) != 4:
                self._refuse(
                    number,
                    f"{_short(' '.join(words[2:]))} after the name",
                    "put it on lines of its own (an address belongs into a `bind`)",
                )
            elif words[3] not in self._named:
                self._refuse(number, f"there is no `defaults {words[3]}` above", "add it")
            else:
                section.base = self._named[words[3]]
        elif section.kind != "defaults":
            section.base = self._last_defaults
        if section.kind in PROXIES and not section.name:
            self._refuse(number, f"{section.kind} has no name", "give it one")
        if section.base is not None:
            section.depth = section.base.depth + 1
            section.inherited = section.base.inherited + len(section.base.lines)
            if section.depth > MOST_DEFAULTS or section.inherited > MOST_INHERITED:
                self._refuse(
                    number,
                    f"more than {MOST_DEFAULTS} `defaults`, or {MOST_INHERITED} lines in them, "
                    "hold for it",
                    "shorten them",
                )
                section.base = None
        if section.base is not None and section.base.broken:
            section.broken = True
            self.problems.append(
                Problem(
                    f"{section.kind} {section.name} relies on `defaults` that could not be read",
                    remedy="fix those and import again",
                    file=self._file,
                    line=number,
                )
            )

    def _require_unique(self, section: OldSection) -> None:
        kind = section.kind
        if kind == "global" or (kind == "defaults" and not section.name):
            return
        for taken in {"listen": ("listen", "frontend", "backend")}.get(kind, (kind, "listen")):
            if taken == "listen" and kind not in PROXIES:
                continue
            first = self._taken.get((taken, section.name))
            if first:
                self._refuse(
                    section.header.number,
                    f"{kind} {section.name} has the name of the {first.kind} in "
                    f"{first.file}:{first.header.number}",
                    "rename one of the two",
                )
                return
        self._taken[kind, section.name] = section

    def _split_comment(self) -> tuple[str, ...]:
        """Return the comment directly above a section, without text before a blank line."""
        above: list[str] = []
        if self._section is None:
            # Comments at the beginning of a file have no other place.
            above, self._comment = [text for text in self._comment if text], []
        while self._comment and self._comment[-1]:
            above.insert(0, self._comment.pop())
        return tuple(above)

    def _end_section(self) -> None:
        section = self._section
        if section is not None:
            self._flush_comment(section)
            while section.lines and not section.lines[-1].source:
                section.lines.pop()
            if self._depth and not section.broken:
                self._refuse(
                    section.header.number,
                    "a condition (.if) does not end in the section where it begins",
                    "write the file as it comes out for this host, and import that",
                )
        self._section = None


def _shown(comment: str) -> str:
    return "".join(letter if _fit(letter) else "?" for letter in comment)


def _fit(letter: str) -> bool:
    return letter == "\t" or letter.isprintable()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
