"""The names that a text defines and uses, which link the sections of different units.

Follows the configuration manual: section names in chapters 3 and 4, `from` in 4, `use_backend`,
`default_backend` and `stick-table` in 4.2, server options in 5.2, fetches with a proxy's name in 7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from fc_frontend.model.units import Resource
from fc_frontend.syntax.sections import ConfigSection, read_sections

_DEFINED_BY_SECTION = {
    "listen": ("frontend", "backend"),
    "frontend": ("frontend",),
    "backend": ("backend",),
    "defaults": ("defaults",),
    "userlist": ("userlist",),
    "peers": ("peers",),
    "resolvers": ("resolvers",),
    "mailers": ("mailers",),
    "cache": ("cache",),
    "ring": ("ring",),
    "http-errors": ("http-errors",),
    "fcgi-app": ("fcgi-app",),
    "program": ("program",),
    "crt-store": ("crt-store",),
    "log-forward": ("log-forward",),
    "log-profile": ("log-profile",),
}
_USED_AFTER_WORD = {
    "use_backend": "backend",
    "default_backend": "backend",
    "resolvers": "resolvers",
    "peers": "peers",
    "mailers": "mailers",
    "cache-use": "cache",
    "cache-store": "cache",
    "use-fcgi-app": "fcgi-app",
    "errorfiles": "http-errors",
    "table": "table",
}
_FETCH = re.compile(r"([a-z0-9_]+)\(([^()]*)\)")
_USED_IN_FETCH = re.compile(
    r"(?P<userlist>http_auth(?:_group)?)|(?P<table>in_table|table_\w+|sc\d?_\w+)|"
    r"(?P<backend>nbsrv|queue|avg_queue|connslots|be_\w+|srv_\w+)|(?P<frontend>fe_\w+)"
)
_NAME = re.compile(r"[A-Za-z0-9_.:-]+")


def defined_names(text: str) -> frozenset[Resource]:
    """Return the names that `text` defines, such as backend `web` or userlist `staff`."""
    return frozenset(name for section in read_sections(text) for name in _defined(section))


def used_names(text: str) -> frozenset[Resource]:
    """Return the names that `text` uses and does not define itself.

    Names that are known only at run time (`use_backend %[…]`) are omitted: HAProxy does not require
    that they exist.
    """
    found = frozenset(name for section in read_sections(text) for name in _used(section))
    return found - defined_names(text)


def _defined(section: ConfigSection) -> Iterator[Resource]:
    if section.name:
        for kind in _DEFINED_BY_SECTION.get(section.kind, ()):
            yield Resource(kind, section.name)
    for line in section.statements:
        if line.keyword == "stick-table":
            yield Resource("table", section.name)
        elif line.keyword == "table" and section.kind == "peers" and line.arguments:
            yield Resource("table", f"{section.name}/{line.arguments[0]}")


def _used(section: ConfigSection) -> Iterator[Resource]:
    header = [word.text for word in section.header.words] if section.header else []
    if "from" in header[1:-1]:
        yield Resource("defaults", header[header.index("from", 1) + 1])
    for line in section.statements:
        words = [line.keyword, *line.arguments]
        for before, word in pairwise(words):
            kind = _USED_AFTER_WORD.get(before)
            # In a `peers` section, `table` defines a table.
            if kind and _NAME.fullmatch(word) and section.kind != "peers":
                yield Resource(kind, word)
            elif before == "track" and "/" in word:
                yield Resource("backend", word.partition("/")[0])
        for word in words:
            if word.startswith("ring@"):
                yield Resource("ring", word.removeprefix("ring@"))
            yield from _used_in_fetches(word)


def _used_in_fetches(word: str) -> Iterator[Resource]:
    for name, arguments in _FETCH.findall(word):
        if match := _USED_IN_FETCH.fullmatch(name):
            first, _, last = arguments.replace(" ", "").partition(",")
            # `sc_http_req_rate(0,table)` and similar fetches name the table after the counter.
            argument = last.rpartition(",")[2] if name.startswith("sc_") else first
            kind = str(match.lastgroup)
            if kind in ("backend", "frontend"):
                argument = argument.partition("/")[0]
            if _NAME.fullmatch(argument) or "/" in argument:
                yield Resource(kind, argument)
