"""Convert the rules by which a frontend chooses a backend to routes of services.  Pure.

HAProxy uses the first `use_backend` whose condition is true (manual 4.2).  Routes are matched by
their specificity (see `syntax.routes`), independent of their order.  So each host is combined with
each path in the rules, and the first rule that matches the combination determines its backend;
routes that are implied by less specific ones are left out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.migrate.proxies import NotAService
from fc_frontend.plurals import counted
from fc_frontend.syntax.lines import Line
from fc_frontend.syntax.routes import NotARoute, Path, parse_host, parse_path

ANY_HOST = ""
ROOT = Path("")
MOST_COMBINATIONS = 20_000
"""The maximum number of hosts times paths of one frontend."""
_MOST_ALTERNATIVES = 256
CHALLENGES = Path("/.well-known/acme-challenge")
"""The path of ACME challenges (RFC 8555, 8.3)."""

_HOST = re.compile(
    r"(?:req\.)?f?hdr\(host\)((?:,(?:lower|host_only|(?:field|word)\(1,:\)))*)", re.IGNORECASE
)
_SNI = re.compile(r"req[._]ssl_sni(?:,lower)?")
_HELLO = re.compile(r"req[._]ssl_hello_type")
_PATHS = {"path": "str", "path_beg": "beg", "path_str": "str"}


class Fetch(StrEnum):
    """The properties of a request in conditions that routes can express."""

    HOST = "host"
    PATH = "path"
    SNI = "sni"
    TLS = "tls"
    """Whether the connection is TLS (`ssl_fc`)."""
    HELLO = "hello"
    """Whether it begins with a TLS Client Hello."""


@dataclass(frozen=True, slots=True)
class Test:
    """An `acl` line or an anonymous one in braces: true if the fetched value is one of `values`."""

    fetch: Fetch
    values: frozenset[str] | frozenset[Path] = frozenset()
    differences: tuple[str, ...] = ()
    """How a route matches differently, for display."""


@dataclass(frozen=True, slots=True)
class Term:
    """A test or its negation.  One of several `tests` has to be true."""

    tests: tuple[Test, ...]
    is_negated: bool = False


Condition = tuple[tuple[Term, ...], ...]
"""Alternatives, each of terms that must all be true."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests for one of `hosts` and one of `paths` use `backend`; empty sets match all."""

    hosts: frozenset[str]
    paths: frozenset[Path]
    backend: str

    def matches(self, host: str, path: Path) -> bool:
        """Return whether it matches `host` and `path`, apart from more specific paths."""
        return (not self.hosts or host in self.hosts) and (
            not self.paths or any(_covers(own, path) for own in self.paths)
        )


@dataclass(frozen=True, slots=True)
class Routes:
    """Hosts and paths of one service; an empty set of hosts or paths matches all."""

    hosts: tuple[str, ...]
    paths: tuple[Path, ...]


class Acls:
    """The `acl` lines of a section, and conditions that refer to them."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines: dict[str, list[Line]] = {}
        for line in lines:
            if line.keyword == "acl" and line.arguments:
                self._lines.setdefault(line.arguments[0], []).append(line)

    def used_by(self, lines: Iterable[Line]) -> list[Line]:
        """Return the `acl` lines whose names occur in `lines`."""
        words = {word.text.removeprefix("!") for line in lines for word in line.words}
        return [line for name in self._lines if name in words for line in self._lines[name]]

    def condition(self, words: Sequence[str], line: Line) -> Condition:
        """Parse the words after `if`.

        Raises NotAService if routes cannot express the condition.
        """
        found: list[tuple[Term, ...]] = []
        terms: list[Term] = []
        is_negated, at = False, 0
        while at < len(words):
            word = words[at]
            at += 1
            if word in ("or", "||"):
                found.append(tuple(terms))
                terms = []
            elif word == "!":
                is_negated = not is_negated
            elif word in ("{", "!{"):
                if "}" not in words[at:]:
                    raise _cannot(line, "its condition has no end")
                end = words.index("}", at)
                terms.append(Term((_test(words[at:end], line),), is_negated != (word == "!{")))
                is_negated, at = False, end + 1
            else:
                name = word.removeprefix("!")
                if name not in self._lines:
                    raise _cannot(line, f"{name} is not an acl of this section")
                tests = tuple(_test(acl.arguments[1:], acl) for acl in self._lines[name])
                terms.append(Term(tests, is_negated != word.startswith("!")))
                is_negated = False
        found.append(tuple(terms))
        if not all(found):
            raise _cannot(line, "its condition has an empty alternative")
        return tuple(found)


def rules(
    backend: str, condition: Condition, line: Line, *, is_tls: bool, is_sni: bool
) -> tuple[list[Rule], list[str]]:
    """Return the rules of one `use_backend`, and how routes match differently.

    `is_tls` is set if the frontend terminates TLS; with `is_sni`, TLS is passed through, and
    hosts are the names in Client Hellos.  Raises NotAService.
    """
    visible = {Fetch.SNI} if is_sni else {Fetch.HOST, Fetch.PATH}
    found: list[Rule] = []
    differences: list[str] = []
    for terms in condition:
        choices = [term.tests for term in terms if not _is_certain(term, line)]
        if any(_is_impossible(term, is_tls) for term in terms):
            continue
        combinations = list(itertools.islice(itertools.product(*choices), _MOST_ALTERNATIVES + 1))
        if len(combinations) > _MOST_ALTERNATIVES:
            raise _cannot(line, "its condition has too many alternatives")
        for tests in combinations:
            if any(test.fetch not in visible for test in tests):
                raise _cannot(line, "its condition looks at what cannot be seen here")
            rule = _rule(backend, tests, line)
            if rule is not None:
                found.append(rule)
                differences += [each for test in tests for each in test.differences]
    return found, list(dict.fromkeys(differences))


def routes(rules: Sequence[Rule]) -> dict[str, list[Routes]]:
    """Return the routes of each backend, one for each set of hosts and paths.

    Raises NotAService if there are too many.  A backend that no request reaches has none.
    """
    hosts = [ANY_HOST, *sorted({host for rule in rules for host in rule.hosts})]
    paths = sorted({ROOT, *(path for rule in rules for path in rule.paths)}, key=_specificity)
    if len(hosts) * len(paths) > MOST_COMBINATIONS:
        shown = f"{counted(len(hosts), 'host')} and {counted(len(paths), 'path')}"
        raise NotAService(f"it combines {shown}, which are too many routes")
    kept: dict[str, dict[Path, str]] = {host: {} for host in hosts}
    for host in hosts:
        for path in paths:
            backend = next((rule.backend for rule in rules if rule.matches(host, path)), None)
            if backend is not None and backend != _taken(kept, host, path):
                kept[host][path] = backend
    by_backend: dict[str, dict[str, list[Path]]] = {}
    for host, taken in kept.items():
        for path, backend in taken.items():
            by_backend.setdefault(backend, {}).setdefault(host, []).append(path)
    return {backend: _grouped(by_host) for backend, by_host in by_backend.items()}


def _grouped(by_host: Mapping[str, Sequence[Path]]) -> list[Routes]:
    """Group hosts with the same paths; a service cannot combine some hosts with any host."""
    by_paths: dict[tuple[bool, tuple[Path, ...]], list[str]] = {}
    for host, paths in by_host.items():
        by_paths.setdefault((host == ANY_HOST, tuple(paths)), []).append(host)
    return [
        Routes(tuple(host for host in hosts if host), () if paths == (ROOT,) else paths)
        for (_, paths), hosts in by_paths.items()
    ]


def _taken(kept: Mapping[str, Mapping[Path, str]], host: str, path: Path) -> str | None:
    """Return the backend of less specific routes: those for the host before those for any."""
    for name in dict.fromkeys((host, ANY_HOST)):
        own = () if name == host else (path,)
        for other in (*own, *_parents(path)):
            if other in kept[name]:
                return kept[name][other]
    return None


def _parents(path: Path) -> Iterator[Path]:
    """Yield the prefixes that match everything that `path` matches, the longest first."""
    text = path.text
    if path.is_exact:
        text = text.removesuffix("/")
        yield Path(text)
    while text:
        text = text.rpartition("/")[0]
        yield Path(text)


def _covers(own: Path, path: Path) -> bool:
    if own.is_exact:
        return own == path
    return f"{path.text}/".startswith(f"{own.text}/")


def _specificity(path: Path) -> tuple[bool, int, str]:
    return path.is_exact, len(path.text), path.text


def _is_certain(term: Term, line: Line) -> bool:
    """Return whether a term does not depend on the request."""
    kinds = {test.fetch for test in term.tests}
    if kinds == {Fetch.TLS}:
        return True
    if term.is_negated:
        raise _cannot(line, "its condition has a negation")
    if Fetch.TLS in kinds or Fetch.HELLO in kinds:
        raise _cannot(line, "its condition looks at the connection")
    return False


def _is_impossible(term: Term, is_tls: bool) -> bool:
    return {test.fetch for test in term.tests} == {Fetch.TLS} and term.is_negated == is_tls


def _rule(backend: str, tests: Sequence[Test], line: Line) -> Rule | None:
    """Return a rule for tests that must all be true; None if that is impossible."""
    hosts: frozenset[str] | None = None
    paths: frozenset[Path] | None = None
    for test in tests:
        if test.fetch is Fetch.PATH:
            if paths is not None:
                raise _cannot(line, "its condition looks at the path twice")
            paths = frozenset(each for each in test.values if isinstance(each, Path))
        else:
            named = frozenset(each for each in test.values if isinstance(each, str))
            hosts = named if hosts is None else hosts & named
            if not hosts:
                return None
    return Rule(hosts or frozenset(), frozenset() if paths is None else _outer(paths), backend)


def _outer(paths: frozenset[Path]) -> frozenset[Path]:
    return frozenset() if ROOT in paths else paths


def _test(words: Sequence[str], line: Line) -> Test:
    """Return a test from its words: a fetch with converters, flags, values (manual 7.1)."""
    fetch = words[0] if words else ""
    method, values, ignores_case = "", list(words[1:]), False
    while values and values[0].startswith("-"):
        flag = values.pop(0)
        if flag == "--":
            break
        if flag == "-i":
            ignores_case = True
        elif flag == "-m" and values:
            method = values.pop(0)
        else:
            raise _cannot(line, f"its acl has the flag {flag}")
    if fetch == "ssl_fc" and not values and method in ("", "bool"):
        return Test(Fetch.TLS)
    if _HELLO.fullmatch(fetch) and values == ["1"]:
        return Test(Fetch.HELLO)
    if not values:
        raise _cannot(line, f"it chooses by {fetch or 'nothing'}")
    if (match := _HOST.fullmatch(fetch)) and method in ("", "str"):
        names = frozenset(_name(value, line) for value in values)
        return Test(Fetch.HOST, names, _of_hosts(match[1], ignores_case))
    if _SNI.fullmatch(fetch) and method in ("", "str"):
        return Test(Fetch.SNI, frozenset(_name(value, line) for value in values))
    if fetch in _PATHS and (method or _PATHS[fetch]) in ("str", "beg"):
        is_exact = (method or _PATHS[fetch]) == "str"
        return _path_test(values, line, is_exact=is_exact, ignores_case=ignores_case)
    raise _cannot(line, f"it chooses by {' '.join((fetch, *(('-m', method) if method else ())))}")


def _of_hosts(converters: str, ignores_case: bool) -> tuple[str, ...]:
    if ignores_case and converters:
        return ()
    return ("hosts match in any letter case, with any port and with a final dot",)


def _path_test(values: Sequence[str], line: Line, *, is_exact: bool, ignores_case: bool) -> Test:
    found: set[Path] = set()
    differences: dict[str, None] = {}
    if ignores_case and any(value.lower() != value.upper() for value in values):
        differences["paths match in the letter case in which they are written only"] = None
    for value in values:
        try:
            path = parse_path(value, is_exact=is_exact)
        except NotARoute as exc:
            raise _cannot(line, str(exc)) from None
        found.add(path)
        if not is_exact and path.text:
            if value.endswith("/"):
                said = f"{path.text} is matched as {value} is"
            else:
                said = f"{value} matches {value}/… and no longer {value}more"
            differences[said] = None
    return Test(Fetch.PATH, frozenset(found), tuple(differences))


def _name(text: str, line: Line) -> str:
    try:
        name = parse_host(text)
    except NotARoute as exc:
        raise _cannot(line, str(exc)) from None
    if name.startswith("*."):
        raise _cannot(line, f"{text} is compared letter by letter")
    return name


def _cannot(line: Line, reason: str) -> NotAService:
    return NotAService(f"line {line.number}: {reason}")
