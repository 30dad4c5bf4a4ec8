"""Convert a frontend that chooses between backends to a declared frontend with services.

binds, `ssl crt`                 binds, tls.certificates
redirect scheme https            http, with the binds of a frontend that does nothing else
use_backend for ACME challenges  acme
use_backend, default_backend     hosts, paths and sni of services, one for each backend
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fc_frontend.config.fields import SERVICE_NAME
from fc_frontend.config.schema import FrontendDeclaration
from fc_frontend.errors import Problem
from fc_frontend.migrate.options import options_in
from fc_frontend.migrate.proxies import (
    ConvertedSection,
    Key,
    Meaning,
    NotAService,
    accepted,
    declared_backend,
    declared_frontend,
    notice,
)
from fc_frontend.migrate.routing import (
    CHALLENGES,
    Acls,
    Condition,
    Fetch,
    Routes,
    Rule,
    Term,
    routes,
    rules,
)
from fc_frontend.migrate.sections import OldSection
from fc_frontend.plan.addresses import NotAnAddress, normal_bind, parse_bind
from fc_frontend.syntax.lines import Line
from fc_frontend.syntax.routes import Path

Own = Mapping[str, Mapping[Key, Meaning]]

_TLS_OPTIONS = frozenset(
    """
    alpn ca-file ciphers ciphersuites crt curves ecdhe no-sslv3 no-tls-tickets no-tlsv10 no-tlsv11
    prefer-client-ciphers ssl ssl-max-ver ssl-min-ver strict-sni verify
    """.split()
)
_OF_PROFILE = ("ciphers", "ciphersuites", "curves", "ecdhe", "ssl-min-ver", "ssl-max-ver")
_KEPT = frozenset(
    """
    acl backlog capture compression description errorfile errorfiles http-after-response http-error
    http-response log-format log-format-sd log-tag maxconn monitor-uri option rate-limit stick-table
    timeout unique-id-format unique-id-header
    """.split()
)
_KEPT_ACTIONS = frozenset(
    """
    add-header auth cache-use capture del-header deny redirect reject return sc-inc-gpc0 set-header
    set-log-level set-nice silent-drop tarpit track-sc0 track-sc1 track-sc2
    """.split()
)
_HARMLESS = frozenset(("mode", "log", "option", "timeout", "maxconn", "description"))
"""Keywords allowed in a frontend that only redirects, besides those that identify it."""
_FORWARDED = re.compile(r"hdr[a-z_]*\((?:x-forwarded|forwarded)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RoutedFrontend:
    """A frontend with the services that it routes to; all become declarations, or none."""

    frontend: ConvertedSection
    services: tuple[ConvertedSection, ...]
    unreached: tuple[OldSection, ...] = ()
    """Backends in its rules that never receive a request."""

    @property
    def members(self) -> tuple[ConvertedSection, ...]:
        """The frontend and its services."""
        return (self.frontend, *self.services)


def is_routed(section: OldSection) -> bool:
    """Return whether a section is a frontend that chooses between backends."""
    return section.kind == "frontend" and any(
        line.keyword == "use_backend" for line in section.statements
    )


def has_tls(section: OldSection) -> bool:
    """Return whether a bind of a frontend terminates TLS."""
    return any(line.keyword == "bind" and "ssl" in line.arguments for line in section.statements)


def routed(
    section: OldSection,
    backends: Mapping[str, OldSection],
    redirecting: Sequence[OldSection],
    own: Own,
    crt_base: str = "",
) -> RoutedFrontend:
    """Return the frontend and its services; all of `redirecting` become part of it.

    `crt_base` is the base directory of relative certificates.  Raises NotAService.
    """
    return _Frontend(section, backends, redirecting, own, crt_base).result()


def only_redirects(section: OldSection) -> bool:
    """Return whether a frontend redirects all requests to https, except for ACME challenges."""
    if section.kind != "frontend" or section.conditional or section.broken:
        return False
    acls = Acls(section.statements)
    does = False
    for line in section.statements:
        keyword = line.keyword
        if (redirect := _to_https(line)) is not None:
            try:
                condition = _conditions(redirect, line, acls)
            except NotAService:
                return False
            does = does or _redirects_plain(condition)
        elif keyword == "bind":
            if len(line.words) != 2:
                return False
        elif keyword not in _HARMLESS | {"acl", "use_backend", "default_backend"}:
            return False
    return does


class _Frontend:
    """A conversion in progress."""

    def __init__(
        self,
        section: OldSection,
        backends: Mapping[str, OldSection],
        redirecting: Sequence[OldSection],
        own: Own,
        crt_base: str,
    ) -> None:
        self.section = section
        self.backends = backends
        self.redirecting = redirecting
        self.own = own
        self.crt_base = crt_base
        self.acls = Acls(section.statements)
        self.fields: dict[str, Any] = {}
        self.problems: dict[str, Problem] = {}
        self.handled: set[int] = set()
        self.challenges: dict[str, OldSection] = {}
        self.has_redirect = False
        self.redirect_codes: set[str] = set()
        self.named: dict[str, None] = {}

    def result(self) -> RoutedFrontend:
        section = self.section
        if not SERVICE_NAME.fullmatch(section.name):
            raise NotAService("its name is not one that a frontend may have")
        modes = [line.arguments for line in self._all_lines() if line.keyword == "mode"]
        mode = modes[-1][0] if modes and modes[-1] else "tcp"
        self._redirects()
        self._binds()
        is_tls = "tls" in self.fields
        found = self._rules(is_tls=is_tls, is_sni=mode == "tcp")
        for other in self.redirecting:
            self._companion(other)
        by_backend = routes(found)
        self._rest()
        frontend = declared_frontend(section, self.own, skip=self.handled)
        # HAProxy runs `redirect` after all of `http-request`, where declared routes have responded.
        frontend.extra = [
            f"http-request {text}" if text.startswith("redirect ") else text
            for text in frontend.extra
        ]
        if mode == "tcp":
            self.fields["mode"] = "tcp"
        frontend.fields = self.fields
        self._require_valid()
        services = self._services(by_backend, is_sni=mode == "tcp")
        unreached = [self.backends[name] for name in self.named if name not in by_backend]
        group = (
            section,
            *self.redirecting,
            *(each.section for each in services),
            *self.challenges.values(),
            *unreached,
        )
        frontend.sections = (section, *self.redirecting, *self.challenges.values())
        frontend.problems = list(self.problems.values())
        for each in (frontend, *services):
            each.group = group
        return RoutedFrontend(frontend, tuple(services), tuple(unreached))

    def _all_lines(self) -> list[Line]:
        lineage = [line for base in self.section.lineage() for line in base.statements]
        return [*lineage, *self.section.statements]

    # Redirects and binds

    def _redirects(self) -> None:
        for line in self.section.statements:
            redirect = _to_https(line)
            if redirect is None:
                continue
            if not _redirects_plain(_conditions(redirect, line, self.acls)):
                raise NotAService(f"line {line.number}: it redirects for a reason of its own")
            self.has_redirect = True
            self.redirect_codes.add(redirect[0])
            self.handled.add(id(line))

    def _binds(self) -> None:
        plain: list[str] = []
        tls: list[str] = []
        options: set[tuple[str, ...]] = set()
        tls_options: list[dict[str, list[str]]] = []
        for line in self.section.statements:
            if line.keyword != "bind":
                continue
            self.handled.add(id(line))
            addresses = _addresses(line)
            said, rest = _tls_options(line)
            if said is None:
                plain += addresses
            else:
                tls += addresses
                tls_options.append(said)
            options.add(tuple(rest))
        if not plain and not tls:
            raise NotAService("it has no bind")
        if len(options) > 1 or any(each != tls_options[0] for each in tls_options):
            raise NotAService("its binds differ in their options")
        if plain and tls:
            if not self.has_redirect:
                raise NotAService("it serves plain and TLS connections alike")
            if any(options):
                raise NotAService("its binds have options")
            self.fields["binds"] = tls
            self.fields["http"] = {"binds": plain}
        else:
            self.fields["binds"] = tls or plain
            if self.has_redirect and plain:
                raise NotAService("it redirects to https, and serves no TLS itself")
        if tls_options:
            self.fields["tls"] = self._tls(tls_options[0])
        if options and any(options):
            self.fields["bind_options"] = " ".join(options.pop())

    def _tls(self, said: dict[str, list[str]]) -> dict[str, Any]:
        paths = [self._path(path) for path in said.get("crt", ())]
        if not paths:
            raise NotAService("its binds have ssl and no crt")
        fields: dict[str, Any] = {"certificates": paths}
        number = self.section.header.number
        if "strict-sni" not in said:
            if "." in paths[0].rpartition("/")[2]:
                fields["default"] = paths[0]
            else:
                self._notice(
                    number,
                    "clients that name no host of a certificate are refused",
                    "add tls.default to the frontend if such clients have to be served",
                )
        verify = said.get("verify", ["none"])[-1]
        if verify in ("required", "optional") and "ca-file" in said:
            fields["client_ca"] = self._path(said["ca-file"][-1])
            fields["client_certificates"] = verify
        elif verify != "none" or "ca-file" in said:
            raise NotAService(f"its binds verify clients in another way (verify {verify})")
        changed = [word for word in _OF_PROFILE if word in said]
        if changed:
            self._notice(
                number,
                f"its TLS settings ({', '.join(changed)}) become Mozilla's intermediate profile",
                "see tls.profile of the frontend",
            )
        if said.get("alpn", ["h2"])[-1].split(",")[0] != "h2":
            self._notice(number, "HTTP/2 is offered to clients as well", "nothing to do")
        return fields

    def _path(self, path: str) -> str:
        if path.startswith("/"):
            return path
        if not self.crt_base.startswith("/"):
            raise NotAService(f"{path} is relative, and there is no crt-base")
        return f"{self.crt_base.rstrip('/')}/{path}"

    def _companion(self, other: OldSection) -> None:
        """Add the binds of a frontend that only redirects."""
        if "tls" not in self.fields:
            raise NotAService("another frontend redirects to it, and it serves no TLS")
        acls = Acls(other.statements)
        binds: list[str] = []
        for line in other.statements:
            if line.keyword == "bind":
                binds += _addresses(line)
            elif (redirect := _to_https(line)) is not None:
                self.redirect_codes.add(redirect[0])
            elif line.keyword == "use_backend":
                name, words = _destination(line)
                if not self._is_for_challenges(name, acls.condition(words, line)):
                    raise NotAService(
                        f"frontend {other.name} redirects, and chooses between backends as well"
                    )
        self.fields["http"] = {"binds": [*self.fields.get("http", {}).get("binds", ()), *binds]}

    # Routes

    def _rules(self, *, is_tls: bool, is_sni: bool) -> list[Rule]:
        found: list[Rule] = []
        default = ""
        for line in self.section.statements:
            keyword = line.keyword
            if keyword == "default_backend":
                default = line.arguments[0] if line.arguments else ""
                self.handled.add(id(line))
            if keyword != "use_backend":
                continue
            self.handled.add(id(line))
            name, words = _destination(line)
            condition = self.acls.condition(words, line)
            if not found and self._is_for_challenges(name, condition):
                continue
            self.named[name] = None
            new, differences = rules(name, condition, line, is_tls=is_tls, is_sni=is_sni)
            found += new
            for difference in differences:
                self._notice(line.number, difference, "see the hosts and paths of its services")
        if default:
            if is_sni:
                raise NotAService(
                    "connections for other names go to its default_backend, which no sni can say"
                )
            self.named[default] = None
            found.append(Rule(frozenset(), frozenset(), default))
        elif not is_sni:
            self._notice(
                self.section.header.number,
                "requests for other hosts and paths get 404 instead of 503",
                "nothing to do",
            )
        return found

    def _is_for_challenges(self, name: str, condition: Condition) -> bool:
        """Return whether a rule sends ACME challenges to one address, which becomes `acme`."""
        if not all(_is_challenge(term) for terms in condition for term in terms):
            return False
        backend = self.backends.get(name)
        servers = [
            line for line in (backend.statements if backend else ()) if line.keyword == "server"
        ]
        if backend is None or len(servers) != 1 or len(servers[0].arguments) < 2:
            return False
        address = servers[0].arguments[1]
        known = self.fields.setdefault("acme", {"challenges": address})
        if known != {"challenges": address}:
            raise NotAService("challenges of ACME go to several addresses")
        self.challenges[name] = backend
        return True

    def _services(
        self, by_backend: Mapping[str, Sequence[Routes]], *, is_sni: bool
    ) -> list[ConvertedSection]:
        taken = {self.section.name, *by_backend}
        services: list[ConvertedSection] = []
        for name in self.named:
            if name not in self.backends:
                raise NotAService(f"{name} is not a backend in these files")
            if name == self.section.name:
                raise NotAService(f"its backend {name} has the same name")
        for name, several in by_backend.items():
            for number, each in enumerate(several):
                service = self._service(name, each, is_sni=is_sni)
                if number:
                    service.name = next(
                        own for count in range(number + 1, 10_000)
                        if (own := f"{name}-{count}") not in taken
                    )  # fmt: skip
                    taken.add(service.name)
                    service.fields = {"service": name, **service.fields}
                    service.problems = []
                services.append(service)
            if len(several) > 1:
                self._notice(
                    self.section.header.number,
                    f"backend {name} becomes {len(several)} services, each with its own hosts and "
                    "paths",
                    "nothing to do",
                )
        for name in self.named:
            if name not in by_backend:
                self._notice(
                    self.section.header.number,
                    f"no request reaches backend {name}: rules before it take them all",
                    "remove it, or put its rule first and import again",
                )
        order = {id(section): at for at, section in enumerate(self.backends.values())}
        return sorted(services, key=lambda service: order[id(service.section)])

    def _service(self, name: str, each: Routes, *, is_sni: bool) -> ConvertedSection:
        try:
            service = declared_backend(self.backends[name], self.own)
        except NotAService as exc:
            raise NotAService(f"its backend {name} cannot be a service: {exc}") from None
        wanted = "tcp" if is_sni else "http"
        if service.fields.pop("mode", "tcp") != wanted:
            raise NotAService(f"its backend {name} has another mode")
        routed: dict[str, Any] = {"frontend": self.section.name}
        if is_sni:
            routed["sni"] = list(each.hosts)
        else:
            if each.hosts:
                routed["hosts"] = list(each.hosts)
            if each.paths:
                routed["paths"] = [_declared_path(path) for path in each.paths]
        service.fields = {**routed, **service.fields}
        if not accepted(service):
            raise NotAService(f"a declaration has no fields for what its backend {name} sets")
        return service

    # The rest

    def _rest(self) -> None:
        """Require that all other lines have the same effect in `extra_config`."""
        kept: list[Line] = []
        for line in self.section.statements:
            if id(line) in self.handled or line.keyword in ("mode", "log", "acl"):
                continue
            if _is_client_hello(line):
                self.handled.add(id(line))
                continue
            if not _is_kept(line):
                raise NotAService(f"line {line.number}: {line.keyword} stays HAProxy text")
            kept.append(line)
        for line in kept:
            if _FORWARDED.search(line.code):
                raise NotAService(f"line {line.number}: it relies on headers of a proxy before it")
        used = {id(line) for line in self.acls.used_by(kept)}
        self.handled |= {
            id(line)
            for line in self.section.statements
            if line.keyword == "acl" and id(line) not in used
        }
        codes = self.redirect_codes - {"308"}
        if "http" in self.fields and codes:
            self._notice(
                self.section.header.number,
                f"redirects to https have status 308 instead of {', '.join(sorted(codes))}",
                "nothing to do",
            )

    def _require_valid(self) -> None:
        from pydantic import ValidationError

        try:
            found = FrontendDeclaration.model_validate(self.fields).complaints()
        except ValidationError:
            raise NotAService("a declaration has no fields for what it sets") from None
        if found:
            raise NotAService(found[0][1])

    def _notice(self, line: int, message: str, remedy: str) -> None:
        """Warn about a difference, once, at the first line that causes it."""
        self.problems.setdefault(message, notice(self.section, line, message, remedy))


def _is_kept(line: Line) -> bool:
    """Return whether a line has the same effect in `extra_config` of a declared frontend."""
    if line.keyword == "redirect":
        return True
    if line.keyword == "http-request":
        name = line.arguments[1].lower() if len(line.arguments) > 1 else ""
        return bool(line.arguments) and (
            line.arguments[0] in _KEPT_ACTIONS
            and not (line.arguments[0].endswith("-header") and name == "host")
        )
    if line.keyword == "tcp-request":
        return line.arguments[:1] == ("connection",)
    return line.keyword in _KEPT


def _is_client_hello(line: Line) -> bool:
    """Return whether a line waits for a Client Hello, which a declared frontend does anyway."""
    return line.keyword == "tcp-request" and (
        line.arguments[:1] == ("inspect-delay",)
        or (line.arguments[:2] == ("content", "accept") and "ssl_hello_type" in line.code)
    )


def _to_https(line: Line) -> tuple[str, tuple[str, ...]] | None:
    """Return the status of a redirect to https, and the words after it; None for other lines."""
    words = line.arguments
    if line.keyword == "http-request":
        if words[:1] != ("redirect",):
            return None
        words = words[1:]
    elif line.keyword != "redirect":
        return None
    if words[:2] != ("scheme", "https"):
        return None
    words, code = words[2:], "302"
    if words[:1] == ("code",) and len(words) > 1:
        code, words = words[1], words[2:]
    return code, words


def _conditions(
    redirect: tuple[str, tuple[str, ...]], line: Line, acls: Acls
) -> tuple[Condition, bool] | None:
    """Return the condition of a redirect, and whether it is `unless`; None if there is none."""
    _, words = redirect
    if not words:
        return None
    if words[0] not in ("if", "unless"):
        raise NotAService(f"line {line.number}: its redirect has {words[0]}")
    return acls.condition(words[1:], line), words[0] == "unless"


def _redirects_plain(condition: tuple[Condition, bool] | None) -> bool:
    """Return whether a redirect applies to all requests without TLS, except for ACME challenges."""
    if condition is None:
        return True
    alternatives, is_unless = condition
    terms = [term for each in alternatives for term in each]
    if is_unless:
        # No alternative is true for plain requests, except for challenges.
        return all(
            len(each) == 1 and (_is_tls(each[0], True) or _is_challenge(each[0]))
            for each in alternatives
        )
    return len(alternatives) == 1 and all(
        _is_tls(term, False) or _is_challenge(Term(term.tests, not term.is_negated))
        for term in terms
    )


def _is_tls(term: Term, wanted: bool) -> bool:
    return {test.fetch for test in term.tests} == {Fetch.TLS} and term.is_negated != wanted


def _is_challenge(term: Term) -> bool:
    return not term.is_negated and all(
        test.fetch is Fetch.PATH and test.values == frozenset((CHALLENGES,)) for test in term.tests
    )


def _destination(line: Line) -> tuple[str, tuple[str, ...]]:
    """Return the backend of a `use_backend`, and its condition.  Raises NotAService."""
    words = line.arguments
    if any(word.variable for word in line.words) or not words or "%[" in words[0]:
        raise NotAService(f"line {line.number}: it computes the backend's name")
    if len(words) < 3 or words[1] != "if":
        raise NotAService(f"line {line.number}: it has no condition with `if`")
    return words[0], words[2:]


def _addresses(line: Line) -> list[str]:
    found = []
    for text in line.arguments[0].split(",") if line.arguments else ():
        try:
            found.append(str(parse_bind(normal_bind(text))))
        except NotAnAddress as exc:
            raise NotAService(f"line {line.number}: {exc}") from None
    return found


def _tls_options(line: Line) -> tuple[dict[str, list[str]] | None, list[str]]:
    """Return a bind's TLS options with arguments, None without `ssl`; and its other options."""
    said: dict[str, list[str]] = {}
    rest: list[str] = []
    for option in options_in(line.words[2:]):
        if option.keyword == "crt-list":
            raise NotAService(f"line {line.number}: its certificates are in a crt-list")
        if option.keyword not in _TLS_OPTIONS:
            rest.append(option.source)
            continue
        if any(word.variable for word in option.words):
            raise NotAService(f"line {line.number}: a variable, {option.source}")
        said.setdefault(option.keyword, []).append(option.argument)
    if "ssl" in said:
        return said, rest
    if said:
        raise NotAService(f"line {line.number}: options of TLS without ssl")
    return None, rest


def _declared_path(path: Path) -> Any:
    if path.is_exact:
        return {"exact": path.text}
    return path.text or "/"
