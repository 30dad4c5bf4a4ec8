"""fc_frontend.syntax reads words, lines and sections exactly as a real HAProxy does."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from fc_frontend.syntax.keywords import PREPROCESSOR, SECTIONS
from fc_frontend.syntax.lines import LineKind, is_plain_statement, read_line
from fc_frontend.syntax.words import NotWords, WordFlaw, split
from tests.hostile.real_words import (
    PREFIX,
    SAID,
    checked,
    disguised,
    expanded,
    place_of,
    random_line,
    reading,
    refusals,
)

AT_ONCE = 2000
"""Lines per start of HAProxy."""
NOT_IN_2 = frozenset("crt-store log-profile traces acme healthcheck".split())
"""Section keywords of HAProxy 3.x."""


# Words


def glues(binary: str, path: Path) -> bool:
    """Return whether an unset variable at the end of a quoted word joins the next word to it."""
    with reading(binary, ['a"$FC_UNSET" b'], path) as asked:
        return b"@ ab\n" in asked.patterns(0, 1)


def compare(binary: str, path: Path, count: int, seed: int, most_refused: int) -> None:
    """Compare `split` with HAProxy on `count` accepted lines, and on some that are refused."""
    chance = random.Random(seed)
    with_glue = glues(binary, path)
    refused: list[tuple[str, WordFlaw]] = []
    for _ in range(0, count, AT_ONCE):
        lines: list[str] = []
        shown: list[bytes] = []
        while len(lines) < AT_ONCE:
            line = random_line(chance)
            whole = PREFIX.format(len(lines)) + line
            meant = expanded(whole, *place_of(len(lines), path), glues=with_glue)
            try:
                split(whole)
                words = split(meant).words[6:]
            except NotWords as exc:
                refused.append((whole, exc.flaw))
                continue
            lines.append(line)
            # HAProxy takes patterns up to the first empty word.
            texts = [word.text for word in words]
            texts = texts[: texts.index("") if "" in texts else None]
            shown.append("".join(f"@ {t}\n" for t in texts).encode("utf-8", "surrogateescape"))
        with reading(binary, lines, path) as asked:
            for first in range(0, AT_ONCE, 200):
                some = range(first, min(first + 200, AT_ONCE))
                if asked.patterns(first, some.stop) == b"".join(shown[i] + b"\n" for i in some):
                    continue
                for index in some:
                    found = asked.patterns(index, index + 1)
                    assert found == shown[index] + b"\n", (seed, lines[index])
    assert len(refused) > 100
    for (line, flaw), said in zip(
        refused[:most_refused],
        refusals(binary, [line for line, _ in refused[:most_refused]], path),
        strict=True,
    ):
        # For a line with several flaws including too many words, HAProxy may report another one.
        assert said if flaw is WordFlaw.TOO_MANY else SAID[flaw] in said, (seed, line, flaw, said)


def test_words_are_those_that_haproxy_reads(haproxy_binary: str, short_directory: Path) -> None:
    compare(haproxy_binary, short_directory, 10_000, 4711, 900)


@pytest.mark.extended
def test_a_hundred_thousand_random_lines(haproxy_binary: str, short_directory: Path) -> None:
    compare(haproxy_binary, short_directory, 100_000, random.randrange(2**32), 20_000)


@pytest.mark.parametrize("end", ["", " ", "\t", " # x", "\r", " \r"])
@pytest.mark.parametrize("count", [63, 64, 65])
def test_the_number_of_words(
    count: int, end: str, haproxy_binary: str, short_directory: Path
) -> None:
    line = " ".join(["setenv", "A", *"b" * (count - 2)]) + end
    (said,) = refusals(haproxy_binary, [line], short_directory)
    assert ("too many words" in said) == (read_line(line).kind is LineKind.INVALID), said


# Kinds of lines


def observed(binary: str, line: str, path: Path) -> LineKind:
    """Return how HAProxy classifies a line, judged by its messages for it and for the next line."""
    first = "global" if "cache" in read_line(line).keyword else "cache first"
    said = checked(binary, f"{first}\n{line}\nfcprobe\n", path)
    about: dict[int, str] = {}
    for number, message in re.findall(r"parsing \[[^\]]*:(\d+)\]\s*:\s*(.*)", said):
        about.setdefault(int(number), message)
    if any(flaw in about.get(2, "") for flaw in SAID.values()):
        return LineKind.INVALID
    if "scope" in about.get(2, ""):
        return LineKind.SCOPE
    if re.search(r"'\.[a-zA-Z]+'|in '\.if'", about.get(2, "")):
        return LineKind.PREPROCESSOR
    if f"in '{first.split(maxsplit=1)[0]}' section" in about.get(3, ""):
        return LineKind.STATEMENT if 2 in about else LineKind.BLANK
    return LineKind.INVALID if "negation/default" in about.get(2, "") else LineKind.SECTION


def test_disguised_keywords_are_what_haproxy_takes_them_for(
    haproxy_binary: str, short_directory: Path
) -> None:
    chance = random.Random(42)
    keywords = [*sorted(SECTIONS - NOT_IN_2), *sorted(PREPROCESSOR), ".bogus"] * 3
    lines = [f"{disguised(word, chance)} fcx fcy" for word in keywords]
    lines += [f"{prefix} {disguised('backend', chance)} fcx" for prefix in ("no", "default")]
    lines += [
        "Global fcx",
        "glo\\bal fcx",
        "globals fcx",
        ".If fcx",
        "\tlisten fcx",
        "\v\flisten a",
    ]
    lines += ["'listen fcx'", "listen\\ fcx", '"" listen fcx', "''", "# listen fcx", "#listen", ""]
    lines += ["[listen", "\\x00listen fcx", "global\\x00x", '"\\x00" listen', "listen#fcx", "fcx#"]
    lines += ['"listen fcx', "\\x6", "listen fcx \\", "no", "default", "no fcx"]
    for line in lines:
        found = read_line(line)
        kind = LineKind.BLANK if found.kind is LineKind.EMPTY else found.kind
        assert observed(haproxy_binary, line, short_directory) is kind, line


def test_a_plain_statement_is_a_statement() -> None:
    chance = random.Random(1)
    heads = [*sorted(SECTIONS), *sorted(PREPROCESSOR), "no", "default", "[x", "bind", ""]
    plain = 0
    for _ in range(20_000):
        line = chance.choice(heads) + random_line(chance)
        if is_plain_statement(line):
            plain += 1
            assert read_line(line).kind is LineKind.STATEMENT, line
    assert plain > 1000


@pytest.mark.extended
def test_no_section_keyword_is_missing(haproxy_binary: str, short_directory: Path) -> None:
    """Every text in the program itself is tried as a section keyword."""
    words = set()
    for match in re.finditer(rb"[a-z0-9_-]{3,}(?=\0)", Path(haproxy_binary).read_bytes()):
        # The linker stores a text that ends another text only once.
        text = match[0].decode()
        words |= {text[-n:] for n in range(3, min(len(text), 18) + 1) if text[-n].isalpha()}
    words = {word for word in words if word not in SECTIONS}
    assert len(words) > 10_000
    todo = sorted(words)
    while todo:
        batch, todo = todo[:45], todo[45:]
        said = checked(haproxy_binary, "\n".join([*batch, ""]), short_directory)
        unknown = set(re.findall(r"unknown keyword '(\S+)' out of section", said))
        for word in set(batch) - unknown:
            alone = checked(haproxy_binary, f"{word}\n", short_directory)
            assert "out of section" in alone, word


@pytest.mark.parametrize("keyword", sorted(SECTIONS - NOT_IN_2))
def test_section_keywords_are_haproxys(
    keyword: str, haproxy_binary: str, short_directory: Path
) -> None:
    said = checked(haproxy_binary, f"{keyword} fcx\n", short_directory)
    assert "out of section" not in said, said
