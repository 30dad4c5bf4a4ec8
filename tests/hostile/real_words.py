"""HAProxy's own parsing of lines, as the reference for fc_frontend.syntax.

A pattern of an ACL is a word of the configuration, and `show acl` on the runtime socket prints it
byte for byte.  One start of HAProxy therefore reveals the words of thousands of lines.
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.syntax.words import WordFlaw
from tests.conftest import until

ENVIRONMENT = {"FC_A": "alpha", "FC_SP": " p  q\tr ", "FC_Q": "a'b\"c#d\\", "FC_E": ""}
"""Variables that lines may use; FC_UNSET is not set."""
PREFIX = "acl a{} str(x) -m str -- "
_FRONTEND = 200
"""The number of ACLs in each frontend: HAProxy searches names linearly."""
_BATCH = 200
_FATAL = 45
"""HAProxy stops after 50 errors."""
_POINTER = re.compile(rb"0x[0-9a-f]+ ")
SAID = {
    WordFlaw.QUOTE: "unmatched quote",
    WordFlaw.BRACE: "unmatched brace in environment variable name",
    WordFlaw.VARIABLE: "forbidden first char in environment variable name",
    WordFlaw.HEX: "truncated or invalid hexadecimal sequence",
    WordFlaw.EXPANSION: "truncated or invalid word expansion sequence",
    WordFlaw.TOO_MANY: "too many words",
}
_VARIABLE = re.compile(r"\$(\{)?(\.?[A-Za-z_][A-Za-z0-9_]*)(?(1)(\[\*\])?(?:-([^}]*))?\})")
DOUBLE = '"'
_SPACES = re.compile(r"[ \t\v\f\r\n]+")

_PIECES = [
    *[*"abcxyz", "listen", "=", "--", "-f", ".if", "%[env(A)]", "ü", "{", "}", "[", "]", "!", "~"],
    *[" ", " ", " ", "  ", "\t", "\v", "\f", " \r", "\r"],
    *["'", '"', '"', "''", '""', "#", "\\", "\\\\", "\\ ", "\\#", "\\'", '\\"', "\\$", "\\t"],
    *["\\n", "\\r", "\\1", "\\x41", "\\x0a", "\\x20", "\\x22", "\\x27", "\\x23", "\\x5c"],
    *["\\x24", "\\xFf", "\\x00", "\\x", "\\x4", "\\xg1", "\udcff", "\udc80\udcc3"],
    *["\N{NO-BREAK SPACE}", "$", "$FC_A", "${FC_A}", "${FC_SP}", "${FC_SP[*]}", "${FC_Q}"],
    *["${FC_E}", "$FC_UNSET", "${FC_UNSET}", "${FC_UNSET-d e'f}", "${FC_A-d}", "$.LINE"],
    *["${FC_UNSET[*]-g h}", "${.SECTION}", "${FC_A", "${FC_A[", "${FC_A[x]}", "$1", "$.NO"],
    *["${.FILE}", '"$FC_UNSET" ', "$.", "${}"],
]


def random_line(chance: random.Random) -> str:
    """Return a line made of everything that has a meaning to HAProxy."""
    if chance.random() < 0.02:
        words = [chance.choice(("a", '"b c"', "'d'", "\\ ")) for _ in range(chance.randint(55, 62))]
        return " ".join(words) + chance.choice(("", " ", " # x", "\t", ' ""'))
    line = "".join(chance.choice(_PIECES) for _ in range(chance.randint(1, 14)))
    if chance.random() < 0.3:
        line = f'"{line}"'
    for quote in "\"'":
        if line.count(quote) % 2 and chance.random() < 0.8:
            line += quote
    return line


def disguised(word: str, chance: random.Random) -> str:
    """Return another spelling of `word` that HAProxy reads as the same word."""
    source = ""
    while word:
        length = chance.randint(1, len(word))
        part, word = word[:length], word[length:]
        match chance.randrange(4):
            case 0:
                source += f"'{part}'"
            case 1:
                source += f'"{part}"'
            case 2:
                source += "".join(f"\\x{ord(c):02{chance.choice('xX')}}" for c in part)
            case _:
                source += part
    return chance.choice(("", "''", '""')) + source + chance.choice(("", "''", '""'))


def expanded(line: str, number: int, file: str, section: str, *, glues: bool) -> str:
    """Return `line` with its variables replaced by quoted text that means the same.

    With `glues`, an unset variable at the end of a quoted word also consumes the blanks after the
    quote, and so joins the next word (HAProxy 2.8 and later).
    """
    values = {**ENVIRONMENT, ".LINE": str(number), ".FILE": file, ".SECTION": section}
    result, at, quote = "", 0, ""
    while at < len(line):
        letter = line[at]
        match = _VARIABLE.match(line, at) if letter == "$" and quote == DOUBLE else None
        if letter == "#" and not quote:
            return result + line[at:]
        if match:
            value: str | None = values.get(match[2], match[4])
            at = match.end()
            result += _in_quotes(value or "", splits=bool(match[3]))
            if glues and value is None and line[at : at + 1] == DOUBLE:
                result, quote, at = result + DOUBLE, "", at + 1
                spaces = _SPACES.match(line, at)
                at = spaces.end() if spaces else at
            continue
        taken = 2 if letter == "\\" and quote != "'" else 1
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        result += line[at : at + taken]
        at += taken
    return result


def _in_quotes(value: str, *, splits: bool) -> str:
    parts = _SPACES.split(value) if splits else [value]
    escaped = [re.sub(r'(["\\$])', r"\\\1", part) for part in parts]
    return '" "'.join(escaped)


@dataclass(frozen=True, slots=True)
class Asked:
    """A running HAProxy that has loaded lines as ACLs."""

    socket: str
    file: str

    def patterns(self, first: int, end: int) -> bytes:
        """Return the output for the ACLs from `first` up to `end`, pointers replaced by `@ `."""
        commands = ";".join(f"show acl #{index}" for index in range(first, end))
        answer = bytearray()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self.socket)
            connection.sendall(f"{commands}\n".encode())
            while received := connection.recv(65_536):
                answer += received
        return _POINTER.sub(b"@ ", bytes(answer))


def place_of(index: int, directory: Path) -> tuple[int, str, str]:
    """Return the line number, file and section of line `index`, as `reading` writes them."""
    frontend, offset = divmod(index, _FRONTEND)
    number = 8 + frontend * (_FRONTEND + 1) + 2 + offset
    return number, f"{directory}/words.cfg", f"f{frontend}"


@contextmanager
def reading(binary: str, lines: Sequence[str], directory: Path) -> Iterator[Asked]:
    """Run a HAProxy that has loaded each of `lines` as the patterns of a separate ACL."""
    text = [
        "global",
        f"  stats socket {directory}/words.sock mode 600 level admin",
        # HAProxy 2.6 parses a line that is longer than all lines before it twice, and then loses
        # the defaults of variables.
        f"  setenv LONG {'x' * 60_000}",
        "defaults",
        "  timeout connect 1s",
        "  timeout client 1s",
        "  timeout server 1s",
        "  mode http",
    ]
    for index, line in enumerate(lines):
        if index % _FRONTEND == 0:
            text.append(f"frontend f{index // _FRONTEND}")
        assert len(text) + 1 == place_of(index, directory)[0]
        text.append(PREFIX.format(index) + line)
    # A frontend needs an address only if it is used.
    text += ["frontend last", f"  bind unix@{directory}/last.sock", ""]
    file = directory / "words.cfg"
    file.write_bytes("\n".join(text).encode("utf-8", "surrogateescape"))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [binary, "-db", "-f", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **ENVIRONMENT},
        )
    path = f"{directory}/words.sock"

    def answers() -> bool:
        assert process.poll() is None, (directory / "log").read_text(errors="replace")[-3000:]
        try:
            return bool(runtime.command(path, "show info"))
        except Unavailable:
            return False

    try:
        until(answers, 60)
        yield Asked(path, str(file))
    finally:
        process.kill()
        process.wait()


def refusals(binary: str, lines: Sequence[str], directory: Path) -> list[str]:
    """Return HAProxy's message for each of `lines` in a global section; empty if there is none."""
    said: list[str] = []
    for start in range(0, len(lines), _FATAL):
        batch = lines[start : start + _FATAL]
        text = ["global", f"  setenv LONG {'x' * 60_000}", *batch, ""]
        output = checked(binary, "\n".join(text), directory)
        by_line: dict[int, str] = {}
        for number, message in re.findall(r"parsing \[[^\]]*:(\d+)\]\s*:\s*(.*)", output):
            by_line.setdefault(int(number), message)
        said += [by_line.get(number, "") for number in range(3, 3 + len(batch))]
    return said


def checked(binary: str, text: str, directory: Path) -> str:
    """Return the output of `haproxy -c` for `text`."""
    file = directory / "checked.cfg"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    done = subprocess.run(
        [binary, "-c", "-f", str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **ENVIRONMENT},
    )
    return (done.stdout + done.stderr).decode("utf-8", "replace")
