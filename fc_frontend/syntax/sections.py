"""Split HAProxy text into sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fc_frontend.syntax.lines import Line, LineKind, read_lines

PROXIES = ("listen", "frontend", "backend")


@dataclass(frozen=True, slots=True)
class ConfigSection:
    """A section: its header and all lines after it.

    `header` is None for the lines before the first header.  `lines` include blank lines, comments
    and preprocessor lines.  A header inside a condition (`.if`) begins a section like any other,
    because HAProxy may apply it.
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
        """The lines that configure the section: statements, and lines with a variable keyword."""
        return tuple(
            line for line in self.lines if line.kind in (LineKind.STATEMENT, LineKind.VARIABLE)
        )


def read_sections(text: str) -> Iterator[ConfigSection]:
    """Return the sections of one file, in order.  Never raises: `Line.kind` marks invalid lines."""
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
