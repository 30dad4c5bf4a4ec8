"""Routes: the mapping of requests on a shared frontend to services.

    hosts and paths of a service ─► routes ─► comments in its section ─► maps of its frontend

Hosts and paths have the same semantics as in Kubernetes Ingress: an exact path takes precedence
over a prefix, and a longer prefix over a shorter one; prefixes match whole path elements.  A host
takes precedence over a wildcard, which matches one label, and a wildcard over routes without a
host.  The routes of a service are comments in its section of haproxy.cfg, so that the maps can be
derived from the text alone.  The same applies to the client addresses that a frontend or service
allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from fc_frontend.model.units import Resource

MAPS_DIRECTORY = "fc-frontend-maps"
"""Beside haproxy.cfg.  Its files belong to fc-frontend."""
MAX_HOST = 253
MAX_PATH = 1024
"""Characters.  HAProxy joins host and path in a buffer of 16 KiB."""
ALLOW_ENDING = ".allow.acl"
ROUTE_MARK = "# fc-frontend route: "
_LINE = re.compile(rf"^[ \t]*{ROUTE_MARK}(\S+) (exact|prefix|sni) (\S+)$", re.MULTILINE)
ALLOW_MARK = "# fc-frontend allow: "
_ALLOWED = re.compile(rf"^[ \t]*{ALLOW_MARK}(\S+)$", re.MULTILINE)
_WHOLE_LINE = re.compile(rf"^[ \t]*(?:{ROUTE_MARK}|{ALLOW_MARK}).*\n?", re.MULTILINE)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_NEEDLESS = re.compile(r"%(?:2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])")
"""An encoded letter, digit, `-`, `.`, `_` or `~` (RFC 3986, 2.3)."""
_HIDDEN_SLASH = re.compile(r"%2[fF]|%5[cC]|%00")
_MAX_TEXTS = 65_536


class NotARoute(ValueError):
    """A host or path that cannot be routed, with a remedy."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class Match(StrEnum):
    """How a route is matched, and the map that contains it."""

    EXACT = "exact"
    PREFIX = "prefix"
    SNI = "sni"


@dataclass(frozen=True, slots=True, order=True)
class Path:
    """A path that a service serves; a prefix unless it `is_exact`.  Prefixes have no final `/`."""

    text: str
    is_exact: bool = False


@dataclass(frozen=True, slots=True, order=True)
class RouteEntry:
    """One entry in a map of `frontend`.  `key` is the host, followed by the path except for SNI."""

    frontend: str
    match: Match
    key: str

    @property
    def line(self) -> str:
        """The comment for this route in a service's section."""
        return f"{ROUTE_MARK}{self.frontend} {self.match} {self.key}"

    @property
    def resource(self) -> Resource:
        """The resource that a service with this route holds."""
        return Resource("route", f"{self.frontend} {self.match} {self.key}")

    @property
    def shown(self) -> str:
        """Host and path for display: `shop.example.org/api`, `*/api (exact)`."""
        host, slash, path = self.key.partition("/")
        if self.match is Match.PREFIX:
            path = path.removesuffix("/")
        return f"{host or '*'}{slash}{path}" + (" (exact)" if self.match is Match.EXACT else "")

    def __str__(self) -> str:
        return f"{self.frontend} {self.shown}"


def parse_host(text: str) -> str:
    """Return a host in canonical form: lower case, IDNA, no final dot.  Raises NotARoute."""
    if not isinstance(text, str):
        raise NotARoute(f"{text!r} is not a string", "put it in quotes")
    shown = _short(text)
    host = text.lower().removesuffix(".")
    if not host.isascii():
        try:
            wildcard = "*." if host.startswith("*.") else ""
            host = wildcard + host.removeprefix("*.").encode("idna").decode("ascii").lower()
        except UnicodeError:
            raise NotARoute(f"{shown} is not a host name", "write it as xn--…") from None
    if "://" in host or "/" in host:
        raise NotARoute(f"{shown} is not a host name", "write the name alone: shop.example.org")
    if ":" in host:
        raise NotARoute(
            f"{shown} has a port or is an IPv6 address",
            "write the name alone: hosts match on every port",
        )
    if "*" in host.removeprefix("*."):
        raise NotARoute(
            f"{shown} is not a wildcard", "write `*.` and a domain: it stands for one label"
        )
    if not _HOST.fullmatch(host) or len(host) > MAX_HOST:
        raise NotARoute(
            f"{shown} is not a host name", "use letters, digits, dashes and dots: shop.example.org"
        )
    return host


def parse_path(text: str, *, is_exact: bool = False) -> Path:
    """Return a path in the form used for matching.  Raises NotARoute."""
    if not isinstance(text, str):
        raise NotARoute(f"{text!r} is not a string", "put it in quotes")
    shown = _short(text)
    if not text.startswith("/"):
        raise NotARoute(f"{shown} is not a path", "begin it with /")
    if len(text) > MAX_PATH:
        raise NotARoute(f"{shown} is too long", f"use at most {MAX_PATH} characters")
    if not _PATH.fullmatch(text):
        raise NotARoute(
            f"{shown} has characters that no path has",
            "percent-encode them as browsers do, and leave out `?` and what follows",
        )
    if is_ambiguous(text):
        raise NotARoute(
            f"{shown} has a dot segment, a doubled slash, an encoded slash or an encoded letter",
            "write the plain path",
        )
    return Path(text, True) if is_exact else Path(text.removesuffix("/"))


def covers_host(pattern: str, host: str) -> bool:
    """Return whether `pattern`, a host or `*.` and a domain, covers `host`.

    `host` may be a wildcard itself.  Here, a wildcard matches any number of labels.
    """
    return host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def is_ambiguous(path: str) -> bool:
    """Return whether applications may interpret `path` as a different one (RFC 3986, 6.2.2)."""
    segments = path.split("/")
    return (
        "//" in path
        or "." in segments
        or ".." in segments
        or _NEEDLESS.search(path) is not None
        or _HIDDEN_SLASH.search(path) is not None
    )


AMBIGUOUS_PATH = (
    "(//|/[.][.]?(/|$)|%00|%2[dDeEfF]|%3[0-9]|%4[1-9a-fA-F]|"
    "%5[0-9aAcCfF]|%6[1-9a-fA-F]|%7[0-9aAeE])"
)
"""`is_ambiguous` as a regular expression for HAProxy."""


def http_routes(
    frontend: str, hosts: Iterable[str], paths: Iterable[Path]
) -> tuple[RouteEntry, ...]:
    """Return the routes of a service with these hosts and paths; if empty, all match."""
    found = {
        RouteEntry(frontend, Match.EXACT, host + path.text)
        if path.is_exact
        else RouteEntry(frontend, Match.PREFIX, f"{host}{path.text}/")
        for host in (tuple(hosts) or ("",))
        for path in (tuple(paths) or (Path(""),))
    }
    return tuple(sorted(found))


def sni_routes(frontend: str, names: Iterable[str]) -> tuple[RouteEntry, ...]:
    """Return the routes of a service that receives TLS connections for these SNI names."""
    return tuple(sorted({RouteEntry(frontend, Match.SNI, name) for name in names}))


@lru_cache(maxsize=_MAX_TEXTS)
def routes_in(text: str) -> tuple[RouteEntry, ...]:
    """Return the routes in a service's section, or in a whole configuration, in order."""
    if ROUTE_MARK not in text:
        return ()
    return tuple(RouteEntry(found[1], Match(found[2]), found[3]) for found in _LINE.finditer(text))


def without_routes(text: str) -> str:
    """Return `text` without the comments that contain routes and allowed addresses."""
    return _WHOLE_LINE.sub("", text) if ROUTE_MARK in text or ALLOW_MARK in text else text


def allow_lines(networks: Iterable[object]) -> Iterator[str]:
    """Return the comments in a frontend's or service's section for allowed client addresses."""
    return (f"{ALLOW_MARK}{network}" for network in networks)


def allowed_in(text: str) -> tuple[str, ...]:
    """Return the allowed client addresses in a frontend's or service's section."""
    return tuple(_ALLOWED.findall(text)) if ALLOW_MARK in text else ()


def allow_path(directory: str, unit: str) -> str:
    """Return the path of the list of allowed addresses of a frontend or service.

    `directory` contains haproxy.cfg.
    """
    return f"{directory}/{MAPS_DIRECTORY}/{unit}{ALLOW_ENDING}"


def map_path(directory: str, frontend: str, match: Match) -> str:
    """Return the path of a map; `directory` contains haproxy.cfg."""
    return f"{directory}/{MAPS_DIRECTORY}/{frontend}.{match}.map"


def is_own_map(path: str) -> bool:
    """Return whether `path` is one of fc-frontend's own maps, derived from haproxy.cfg."""
    return path.rpartition("/")[0].endswith(f"/{MAPS_DIRECTORY}")


def map_entries(sections: Iterable[tuple[str, str]]) -> Mapping[tuple[str, Match], dict[str, str]]:
    """Return the entries of each map: (frontend, match) → key → service, sorted by key.

    `sections` contains the names of services with their texts.  If several services have the same
    key, the first one takes precedence.
    """
    found: dict[tuple[str, Match], dict[str, str]] = {}
    for name, text in sections:
        for route in routes_in(text):
            found.setdefault((route.frontend, route.match), {}).setdefault(route.key, name)
    return {place: dict(sorted(entries.items())) for place, entries in sorted(found.items())}


def route_of(
    entries: Mapping[tuple[str, Match], Mapping[str, str]],
    frontend: str,
    host: str,
    path: str | None,
) -> tuple[RouteEntry, str] | None:
    """Return the route and service for a request, as HAProxy selects them; None for 404.

    `host` is in canonical form, without a port.  If `path` is None, it is an SNI name.
    """
    label, dot, domain = host.partition(".")
    hosts = [host, f"*.{domain}"] if label and dot else [host]
    if path is None:
        names = entries.get((frontend, Match.SNI), {})
        key = next((each for each in hosts if each in names), None)
        return None if key is None else (RouteEntry(frontend, Match.SNI, key), names[key])
    exact = entries.get((frontend, Match.EXACT), {})
    prefixes = entries.get((frontend, Match.PREFIX), {})
    for each in dict.fromkeys((*hosts, "")):
        if each + path in exact:
            return RouteEntry(frontend, Match.EXACT, each + path), exact[each + path]
        key = f"{each}{path}/"
        while "/" in key:
            if key in prefixes:
                return RouteEntry(frontend, Match.PREFIX, key), prefixes[key]
            key = key[: key.rstrip("/").rfind("/") + 1] if not key.endswith("//") else key[:-1]
    return None


def map_text(entries: Mapping[str, str]) -> str:
    """Return the content of a map file: a key and a service on each line."""
    return "".join(f"{key} {service}\n" for key, service in sorted(entries.items()))


def sni_rules(directory: str, frontend: str) -> Iterator[str]:
    """Return the lines of a TCP frontend that set `txn.fc_service` if the SNI has a route."""
    path = map_path(directory, frontend, Match.SNI)
    found, wildcard = "{ var(txn.fc_service) -m found }", "{ var(txn.fc_host) -m reg ^[^.]+[.] }"
    # The condition waits for the complete ClientHello.
    yield (
        "tcp-request content set-var(txn.fc_host) req.ssl_sni,lower,rtrim(.) "
        "if { req.ssl_sni -m found }"
    )
    yield f"tcp-request content set-var(txn.fc_service) var(txn.fc_host),map_str({path})"
    yield (
        "tcp-request content set-var(txn.fc_service) "
        f"var(txn.fc_host),regsub(^[^.]+,*),map_str({path}) if !{found} {wildcard}"
    )


def rules(directory: str, frontend: str, match: Match) -> Iterator[str]:
    """Return the lines of a frontend that set `txn.fc_service`; for HTTP, `match` is PREFIX."""
    if match is Match.SNI:
        yield "tcp-request inspect-delay 5s"
        yield "tcp-request content reject unless { req.ssl_sni -m found }"
        yield from sni_rules(directory, frontend)
        yield "tcp-request content reject unless { var(txn.fc_service) -m found }"
        return
    exact, prefix = (map_path(directory, frontend, each) for each in (Match.EXACT, Match.PREFIX))
    service = "http-request set-var(txn.fc_service)"
    missing = "!{ var(txn.fc_service) -m found }"
    wildcard = f"{missing} {{ var(txn.fc_wildcard) -m found }}"
    yield "http-request set-var(txn.fc_host) req.fhdr(host),field(1,:),lower,rtrim(.)"
    yield (
        "http-request deny deny_status 400 if { var(txn.fc_host) -m found } "
        "!{ var(txn.fc_host) -m reg ^[a-z0-9._-]*$ } !{ var(txn.fc_host) -m str [ }"
    )
    yield "http-request set-var(txn.fc_path) path"
    yield (
        "http-request set-var(txn.fc_wildcard) var(txn.fc_host),regsub(^[^.]+,*) "
        "if { var(txn.fc_host) -m reg ^[^.]+[.] }"
    )
    yield f"{service} var(txn.fc_host),concat(,txn.fc_path),map_str({exact})"
    yield f"{service} var(txn.fc_host),concat(,txn.fc_path,/),map_beg({prefix}) if {missing}"
    yield f"{service} var(txn.fc_wildcard),concat(,txn.fc_path),map_str({exact}) if {wildcard}"
    yield f"{service} var(txn.fc_wildcard),concat(,txn.fc_path,/),map_beg({prefix}) if {wildcard}"
    yield f"{service} var(txn.fc_path),map_str({exact}) if {missing}"
    yield f"{service} var(txn.fc_path),concat(/),map_beg({prefix}) if {missing}"
    yield f"{service} str(/),map_beg({prefix}) if {missing} !{{ var(txn.fc_path) -m found }}"
    # A browser reuses a connection for all names of its certificate (RFC 9113, 9.1.1).  On a
    # separate connection, the other name may have a route.
    yield f"http-request set-var(txn.fc_sni) ssl_fc_sni,lower if {missing}"
    yield (
        f"http-request return status 421 if {missing} {{ var(txn.fc_sni) -m found }} "
        "!{ var(txn.fc_sni),strcmp(txn.fc_host) eq 0 }"
    )
    yield f"http-request return status 404 if {missing}"


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "…"
