"""HAProxy text as sections of lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fc_frontend.syntax.lines import Line, LineKind, read_lines

PROXIES = ("listen", "frontend", "backend")


@dataclass(frozen=True, slots=True)
class ConfigSection:
    """A section: its header, None for what is before the first one, and all lines after it.

    `lines` include blank lines, comments and preprocessor lines; a header inside a condition
    (`.if`) begins a section like any other, because HAProxy may take it.
    """

    header: Line | None
    lines: tuple[Line, ...] = ()

    @property
    def kind(self) -> str:
        """`listen`, `global`…; empty before the first header."""
        return self.header.words[0].text if self.header else ""

    @property
    def name(self) -> str:
        """The second word of the header; empty if there is none (`defaults from X` has none)."""
        words = self.header.words[1:] if self.header else ()
        if not words or (self.kind == "defaults" and words[0].text == "from"):
            return ""
        return words[0].text

    @property
    def statements(self) -> tuple[Line, ...]:
        """The lines that say something to the section itself."""
        return tuple(
            line for line in self.lines if line.kind in (LineKind.STATEMENT, LineKind.VARIABLE)
        )


def read_sections(text: str) -> Iterator[ConfigSection]:
    """The sections of one file, in order.  Never raises: see `Line.kind` for what is wrong."""
    header: Line | None = None
    lines: list[Line] = []
    for line in read_lines(text):
        if line.kind is not LineKind.SECTION:
            lines.append(line)
            continue
        if header is not None or lines:
            yield ConfigSection(header, tuple(lines))
        header, lines = line, []
    if header is not None or lines:
        yield ConfigSection(header, tuple(lines))
