"""The files that HAProxy opens for a configuration, determined from its words.

Comments are ignored; quoted and escaped names are recognised.  The keywords are those of HAProxy
2.6 and 2.8, each traced with strace(1), and those of the 3.x manuals.  Files of other keywords are
only subject to the limits under which `haproxy -c` runs.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from fc_frontend.syntax.certificates import is_own_list
from fc_frontend.syntax.lines import Line, LineKind, read_line
from fc_frontend.syntax.routes import is_own_map
from fc_frontend.syntax.words import Word

CHANGING = frozenset(
    ("server-state-file", "server-state-file-name", "stats-file", "namespace", "account-key")
)
"""Keywords of files that change while HAProxy runs, and take effect when it starts."""
NETWORK_NAMESPACES = "/var/run/netns"
"""The directory where HAProxy looks up `namespace NAME`."""


class Use(StrEnum):
    """How HAProxy uses a file."""

    KEYS = "keys"
    """Certificates and keys: used, but never shown."""
    READ = "read"
    """Read line by line: lists, maps, programs.  Error messages and maps can reveal the content."""
    SERVED = "served"
    """Sent to clients."""
    WRITTEN = "written"
    """Created or written."""
    REPLACED = "replaced"
    """Renamed and recreated, even by `haproxy -c`."""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file named in a line, which is counted from 1.

    `path` is the path that HAProxy opens; None if it contains a variable, whose value is unknown.
    """

    line: int
    keyword: str
    path: str | None
    use: Use
    may_be_directory: bool = False
    must_exist: bool = False
    """True if HAProxy refuses a configuration without it; False if it may be missing or unknown."""
    written: str = ""
    """The name as written in the line, without quotes and escapes."""
    is_option: bool = False
    """True if the name follows `keyword` as an option of a line with an address."""
    crt_base: str = "/"
    ca_base: str = "/"
    """The directories against which relative names in a crt-list are resolved."""


_OF_GLOBAL = {
    "lua-load": Use.READ,
    "lua-load-per-thread": Use.READ,
    "h1-case-adjust-file": Use.READ,
    "ssl-dh-param-file": Use.KEYS,
    "issuers-chain-path": Use.KEYS,
    "httpclient.ssl.ca-file": Use.KEYS,
    "51degrees-data-file": Use.READ,
    "deviceatlas-json-file": Use.READ,
    "wurfl-data-file": Use.READ,
    "wurfl-patch-file": Use.READ,
    "server-state-file": Use.KEYS,
    "server-state-file-name": Use.KEYS,
    "stats-file": Use.READ,
    "shm-stats-file": Use.WRITTEN,
    "pidfile": Use.WRITTEN,
    "backing-file": Use.REPLACED,
    "account-key": Use.KEYS,
}
"""Keywords whose first argument is a file and whose other arguments are irrelevant here."""
_OF_ADDRESSES = {
    "crt": Use.KEYS,
    "crt-list": Use.READ,
    "ca-file": Use.KEYS,
    "ca-verify-file": Use.KEYS,
    "ca-sign-file": Use.KEYS,
    "crl-file": Use.KEYS,
    "tls-ticket-keys": Use.KEYS,
    "key": Use.KEYS,
    "ocsp": Use.KEYS,
    "issuer": Use.KEYS,
    "sctl": Use.KEYS,
    "ech": Use.KEYS,
    "namespace": Use.READ,
}
"""Options of `_ADDRESS_LINES`."""
_ADDRESS_LINES = frozenset(
    """
    bind dgram-bind server server-template default-server default-bind stats ssl-f-use load source
    """.split()
)
_DIRECTORIES = frozenset(
    ("crt", "ca-file", "ca-verify-file", "issuers-chain-path", "ech", "httpclient.ssl.ca-file")
)
_MUST_EXIST = frozenset(
    """
    crt crt-list ca-file ca-verify-file crl-file tls-ticket-keys -f map errorfile file lf-file
    lua-load lua-load-per-thread ssl-dh-param-file
    """.split()
)
_OPTIONAL = ("opt@", "virt@")
"""Prefixes for names of lists and maps that need no file, since 3.1."""
_BASES = {
    "crt": "crt-base",
    "crt-list": "crt-base",
    "key": "key-base",
    "ca-file": "ca-base",
    "ca-verify-file": "ca-base",
    "ca-sign-file": "ca-base",
    "crl-file": "ca-base",
    "ocsp": "crt-base",
    "issuer": "crt-base",
    "sctl": "crt-base",
    "server-state-file": "server-state-base",
    "server-state-file-name": "server-state-base",
}
"""The global base directory for relative names, by keyword."""
_BASE_KEYWORDS = frozenset(_BASES.values())
_PLACE_KEYWORDS = _BASE_KEYWORDS | {"default-path"}
_RESPONSE_LINES = frozenset(("http-request", "http-response", "http-after-response", "http-error"))
_RESPONSE_ACTIONS = frozenset(("return", "deny", "tarpit", "reject"))
_RESPONSE_FILES = frozenset(("file", "lf-file", "errorfile"))
_WORDS_OF_RESPONSE = {"hdr": 2, "default-errorfiles": 0}
"""The number of arguments of a response keyword, if it is not one."""
_ACL_FLAGS = {"-i": 0, "-n": 0, "-M": 0, "-m": 1, "-u": 1, "-f": 1}
"""Flags of a condition, and the number of arguments of each (manual 7.1.1)."""
_FILE_FUNCTION = re.compile(r"\b(map(?:_[a-z]+)*|jwt_verify\w*|jwt_decrypt\w*)\(")
_PREFIXES = ("opt@", "virt@", "file@")
"""Prefixes for names of lists and maps, since 3.1."""
_HINT = re.compile(
    r"""-f|file|crt|map|jwt|lua-load|keys|config|base|path|namespace|load|global|[a-z]key|ech|["'\\]"""
)
"""Matches every line that can name a file, but few lines of a large configuration."""


def named_files(text: str, *, directory: str = "/") -> Iterator[NamedFile]:
    """Return the files that HAProxy opens for the configuration `text`, in order.

    `directory` is HAProxy's working directory, against which relative names are resolved.
    """
    bases = _Bases(directory)
    for number, source in enumerate(text.split("\n"), start=1):
        if not _HINT.search(source):
            continue
        line = read_line(source, number)
        if line.kind is LineKind.SECTION:
            bases.enter(line.words[0].text)
        elif line.kind is LineKind.STATEMENT:
            bases.read(line)
            for keyword, word, use in _named(line):
                if is_own_map(word.text) or (keyword == "crt-list" and is_own_list(word.text)):
                    # Written together with haproxy.cfg, and changed at runtime.
                    continue
                yield NamedFile(
                    written=word.text,
                    is_option=keyword in _OF_ADDRESSES,
                    line=number,
                    keyword=keyword,
                    path=None if word.variable else bases.path(keyword, word.text),
                    use=use,
                    may_be_directory=keyword in _DIRECTORIES,
                    must_exist=keyword in _MUST_EXIST
                    and not word.source.lstrip("\"'").startswith(_OPTIONAL),
                    crt_base=bases.path("crt", ""),
                    ca_base=bases.path("ca-file", ""),
                )


def base_lines(text: str) -> str:
    """Return the lines that set base directories for relative names, as a `global` section."""
    found = [line for line in map(read_line, text.split("\n")) if line.keyword in _PLACE_KEYWORDS]
    return "\n".join(("global", *(line.source for line in found))) if found else ""


def files_of_crt_list(text: str, crt_list: NamedFile) -> Iterator[NamedFile]:
    """Return the files that the text of `crt_list` names (manual 5.1, `crt-list`)."""
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        path = posixpath.join(crt_list.crt_base, words[0])
        yield NamedFile(number, "crt", path, Use.KEYS)
        for keyword, value in pairwise(word.strip("[]") for word in words[1:]):
            if keyword in _BASES:
                base = crt_list.ca_base if _BASES[keyword] == "ca-base" else crt_list.crt_base
                yield NamedFile(number, keyword, posixpath.join(base, value), Use.KEYS)


class _Bases:
    """The base directories for relative names, as set by the lines read so far."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._global: dict[str, str] = {}
        self._store: dict[str, str] | None = None

    def enter(self, section: str) -> None:
        """Begin a section."""
        self._store = {} if section == "crt-store" else None

    def read(self, line: Line) -> None:
        """Record a line that sets a directory."""
        words = line.arguments
        if line.keyword in _BASE_KEYWORDS and words:
            bases = self._global if self._store is None else self._store
            bases[line.keyword] = words[0]
        elif line.keyword == "default-path" and words:
            # During a check, HAProxy reads the configuration from /proc/self/fd.
            places = {"config": "/proc/self/fd", "parent": "/proc/self", "current": "/"}
            origin = words[1] if len(words) > 1 else "/"
            self._directory = places.get(words[0], posixpath.join("/", origin))

    def path(self, keyword: str, name: str) -> str:
        """Return the path that HAProxy opens for a name."""
        if keyword == "namespace":
            return posixpath.join(NETWORK_NAMESPACES, name.lstrip("/"))
        base = ""
        if kind := _BASES.get(keyword):
            base = (self._store or {}).get(kind) or self._global.get(kind, "")
        return posixpath.join(self._directory, base, name)


def _named(line: Line) -> Iterator[tuple[str, Word, Use]]:
    """Return the keywords of a line that name files, each with the name and its use."""
    words = line.words[bool(line.prefix) :]
    keyword = line.keyword
    if keyword in _OF_GLOBAL and len(words) > 1:
        yield keyword, words[1], _OF_GLOBAL[keyword]
    elif keyword == "errorfile" and len(words) > 2:
        yield keyword, words[2], Use.SERVED
    elif keyword == "filter":
        yield from _after(words, {"config": Use.READ})
    elif keyword in _ADDRESS_LINES:
        for option, word, use in _after(words, _OF_ADDRESSES):
            # Skip `@system-ca`, and certificates of a crt-store named by their alias.
            if not word.text.startswith("@") and (option != "namespace" or "/" in word.text):
                yield option, word, use
    elif keyword in _RESPONSE_LINES:
        yield from _in_response(words)
    for name in _in_conditions(words):
        yield "-f", _without_prefix(name), Use.READ
    for word in words:
        yield from _in_functions(word)


def _after(words: Sequence[Word], uses: dict[str, Use]) -> Iterator[tuple[str, Word, Use]]:
    for option, word in pairwise(words):
        if option.text in uses:
            yield option.text, word, uses[option.text]


def _in_response(words: Sequence[Word]) -> Iterator[tuple[str, Word, Use]]:
    at = 1
    if words[0].text != "http-error":
        if len(words) < 2 or words[1].text not in _RESPONSE_ACTIONS:
            return
        at = 2
    while at + 1 < len(words) and words[at].text not in ("if", "unless"):
        keyword = words[at].text
        if keyword in _RESPONSE_FILES:
            yield keyword, words[at + 1], Use.SERVED
        at += 1 + _WORDS_OF_RESPONSE.get(keyword, 1)


def _in_conditions(words: Sequence[Word]) -> Iterator[Word]:
    """Return the names after `-f` in an `acl` line or in conditions in braces."""
    starts = [3] if words and words[0].text == "acl" else []
    # `!{` is also one word.
    starts += [at + 2 for at, word in enumerate(words) if word.text.lstrip("!") == "{"]
    for start in starts:
        at = start
        while at < len(words) and words[at].text in _ACL_FLAGS:
            flag = words[at].text
            if flag == "-f" and at + 1 < len(words):
                yield words[at + 1]
            at += 1 + _ACL_FLAGS[flag]


def _in_functions(word: Word) -> Iterator[tuple[str, Word, Use]]:
    for found in _FILE_FUNCTION.finditer(word.text):
        name = found[1]
        arguments = _arguments(word.text[found.end() :])
        # A key may also be a variable or a secret; then there is no file of that name.
        for argument in arguments[:1] if name.startswith("map") else arguments[1:2]:
            file = Word(argument, argument, word.variable and "$" in argument)
            if name.startswith("map"):
                yield "map", _without_prefix(file), Use.READ
            else:
                yield name, file, Use.KEYS


def _arguments(text: str) -> list[str]:
    """Return the arguments of a fetch or converter up to its closing parenthesis.

    Quotes are removed; blanks and backslashes are part of the argument (`make_arg_list` in
    HAProxy).
    """
    found: list[str] = []
    argument, quote = "", ""
    for letter in text:
        if letter == quote:
            quote = ""
        elif not quote and letter in "'\"":
            quote = letter
        elif not quote and letter in ",)":
            found.append(argument)
            argument = ""
            if letter == ")":
                return found
        else:
            argument += letter
    return [*found, argument]


def _without_prefix(word: Word) -> Word:
    for prefix in _PREFIXES:
        if word.text.startswith(prefix):
            return Word(word.text.removeprefix(prefix), word.source, word.variable)
    return word
