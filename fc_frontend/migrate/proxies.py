"""Convert a proxy and its inherited lines to an equivalent declaration.

A declared service inherits fc-frontend's own defaults; different lines in the `defaults` of the
configuration are added to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Any

from fc_frontend.config.fields import DNS_LABEL, SERVICE_NAME
from fc_frontend.config.schema import ServiceDeclaration
from fc_frontend.errors import Problem, Severity
from fc_frontend.migrate.options import Option, effective, options_in
from fc_frontend.migrate.sections import OldSection
from fc_frontend.plan.addresses import NotAnAddress, normal_bind, parse_bind
from fc_frontend.plan.model import Bind
from fc_frontend.syntax.lines import Line

Key = tuple[str, ...]
Meaning = tuple[str, ...]

_SINGLE = frozenset("retries maxconn fullconn backlog mode balance".split())
_HTTP_ONLY = re.compile(
    r"http-.*|compression|capture|cookie|error(?:file|files|loc|loc302|loc303)|monitor-uri|redirect"
    r"|stats|unique-id-.*|option (?:http(?!chk).*|forwardfor|forwarded|originalto|checkcache"
    r"|idle-close-on-response|accept-invalid-http-.*|h1-case-adjust-.*|accept-unsafe-.*)"
)
_FOR_BOTH_MODES = re.compile(
    r"timeout|retries|maxconn|fullconn|backlog|option (?:redispatch|dontlognull|dontlog-normal"
    r"|tcpka|clitcpka|srvtcpka|abortonclose|logasap|log-separate-errors|log-health-checks"
    r"|socket-stats|nolinger|splice-auto|splice-request|splice-response|tcp-smart-accept"
    r"|tcp-smart-connect|contstats|allbackups)"
)
_V6_OPTIONS = ("v4v6", "v6only")
"""Bind options for IPv6 only (manual 5.1); HAProxy ignores them for other addresses."""
_ROUTING = frozenset("use_backend default_backend use-server dispatch".split())
_OWN_OPTIONS = frozenset("check no-check resolvers init-addr resolve-prefer".split())
_TLS_OPTIONS = frozenset("ssl no-ssl verify ca-file sni verifyhost".split())
_HOSTNAME = re.compile(
    r"(?P<wild>\*\.)?(?:_(?P<port_name>[a-z0-9-]{1,15})\._tcp\.)?(?P<service>[a-z0-9-]{1,63})\."
    r"(?P<namespace>[a-z0-9-]{1,63})\.svc\.(?P<domain>[A-Za-z0-9.-]{1,253}?)\.?"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_STR = re.compile(r"str\(([A-Za-z0-9.-]{1,253})\)")


def _subjects(keywords: str, options: str, timeouts: str) -> frozenset[str]:
    return frozenset(
        (
            *keywords.split(),
            *(f"option {name}" for name in options.split()),
            *(f"timeout {name}" for name in timeouts.split()),
        )
    )


_CLIENT_SIDE = _subjects(
    """
    backlog capture log-format log-format-sd maxconn monitor-uri unique-id-format unique-id-
    header
    """,
    """
    clitcpka contstats dontlog-normal dontlognull http-ignore-probes httplog log-separate-
    errors logasap socket-stats tcp-smart-accept tcplog
    """,
    """client client-fin client-hs""",
)
"""Lines that a backend cannot have (manual 4.1)."""
_SERVER_SIDE = _subjects(
    """
    cookie external-check fullconn hash-type http-check http-reuse http-send-name-header
    retries retry-on source tcp-check
    """,
    """
    abortonclose allbackups checkcache external-check httpchk ldap-check log-health-checks
    mysql-check pgsql-check prefer-last-server persist redis-check redispatch smtpchk spop-
    check srvtcpka ssl-hello-chk tcp-check tcp-smart-connect transparent
    """,
    """check connect queue server server-fin tunnel""",
)
"""Lines that a frontend cannot have."""


class NotAService(Exception):
    """Why a section cannot become a declaration; it becomes a fragment instead."""


class Role(StrEnum):
    """The kind of declaration that a section becomes."""

    SERVICE = "service"
    """A service with binds of its own."""
    FRONTEND = "frontend"
    ROUTED = "routed"
    """A service of a frontend."""


@dataclass(slots=True)
class ConvertedSection:
    """A section as a declaration: its fields, without inherited lines.

    `carried` are lines from `defaults` that differ from fc-frontend's own; `overridden` are the
    keys of those that the section itself sets.
    """

    name: str
    sections: tuple[OldSection, ...]
    fields: dict[str, Any]
    domain: str = ""
    resolvers: str = ""
    nodes: dict[str, str] = field(default_factory=dict)
    carried: list[tuple[Key, Line]] = field(default_factory=list)
    overridden: frozenset[Key] = frozenset()
    logs: tuple[tuple[str, ...], ...] = ()
    extra: list[str] = field(default_factory=list)
    unset: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    role: Role = Role.SERVICE
    mode: str = "tcp"
    group: tuple[OldSection, ...] = ()
    """The sections that can only be declared together with it."""

    @property
    def section(self) -> OldSection:
        """The section whose place is reported."""
        return self.sections[0]

    @property
    def own_lines(self) -> list[str]:
        """Lines for `extra_config`: those of `defaults` that a section with this role can have."""
        others = {Role.FRONTEND: _SERVER_SIDE, Role.ROUTED: _CLIENT_SIDE}.get(self.role, ())
        return [line.source for _, line in self.carried if _subject(line) not in others]


def key_of(line: Line) -> Key:
    """Return the key of a line if a later line with the same key overrides it; else empty."""
    keyword, arguments = line.keyword, line.arguments
    if keyword in ("timeout", "option") and arguments:
        return (keyword, arguments[0])
    return (keyword,) if keyword in _SINGLE else ()


def meaning_of(line: Line) -> Meaning:
    """Return the words of a line, for comparison."""
    return tuple(word.text for word in line.words)


def own_defaults(sections: Iterable[OldSection]) -> dict[str, dict[Key, Meaning]]:
    """Return the lines of fc-frontend's own `defaults`, by mode, from a rendered configuration."""
    found: dict[str, dict[Key, Meaning]] = {}
    for section in sections:
        if section.kind == "defaults" and section.name in ("fc-tcp", "fc-http"):
            lines = [line for base in [*section.lineage(), section] for line in base.statements]
            found[section.name.removeprefix("fc-")] = {
                key_of(line) or (line.keyword,): meaning_of(line) for line in lines
            }
    return found


def declared(
    section: OldSection,
    backend: OldSection | None,
    own: Mapping[str, Mapping[Key, Meaning]],
) -> ConvertedSection:
    """Return the declaration for a listen section, or for a frontend with its only backend.

    Raises NotAService with the reason.
    """
    return _Proxy(section, backend).declaration(own)


def declared_backend(
    backend: OldSection, own: Mapping[str, Mapping[Key, Meaning]]
) -> ConvertedSection:
    """Return the declaration of a backend as a service of a frontend, without its routes.

    Raises NotAService.
    """
    return _Proxy(backend, None).declaration(own, Role.ROUTED)


def declared_frontend(
    section: OldSection, own: Mapping[str, Mapping[Key, Meaning]], *, skip: Collection[int]
) -> ConvertedSection:
    """Return a frontend without fields: the lines of its `defaults` and its own.

    Lines whose IDs are in `skip` are left out.  Raises NotAService.
    """
    return _Proxy(section, None, skip=skip).frontend(own)


class _Proxy:
    """Collects all lines that apply to a proxy."""

    def __init__(
        self, section: OldSection, backend: OldSection | None, *, skip: Collection[int] = ()
    ) -> None:
        self.section = section
        self.sections = (section, backend) if backend else (section,)
        _require_usable(self.sections)
        self.inherited = [line for base in section.lineage() for line in base.statements]
        self.own = [
            line for part in self.sections for line in part.statements if id(line) not in skip
        ]
        if backend:
            _require_mergeable(section, backend)
            self.own = [line for line in self.own if line.keyword != "default_backend"]
        self.mode = "tcp"
        self.balance: Line | None = None
        self.binds: list[Line] = []
        self.servers: list[tuple[Line, list[Option]]] = []
        self.logs: list[tuple[str, ...]] = []
        self.rest: list[Line] = []
        self.problems: list[Problem] = []

    def declaration(
        self, own: Mapping[str, Mapping[Key, Meaning]], role: Role = Role.SERVICE
    ) -> ConvertedSection:
        result = self._begun(role, own)
        servers = self._servers(result)
        if role is Role.SERVICE:
            result.fields["binds"] = self._binds(result)
        result.fields["mode"] = self.mode
        result.fields.update(servers)
        self._balance(result)
        self._end(result, own)
        _simplify(result)
        return result

    def frontend(self, own: Mapping[str, Mapping[Key, Meaning]]) -> ConvertedSection:
        result = self._begun(Role.FRONTEND, own)
        self._end(result, own)
        return result

    def _begun(self, role: Role, own: Mapping[str, Mapping[Key, Meaning]]) -> ConvertedSection:
        name = self.section.name
        if not SERVICE_NAME.fullmatch(name):
            raise NotAService("its name is not one that a service may have")
        self._gather()
        if self.mode not in own:
            raise NotAService(f"mode {self.mode}")
        return ConvertedSection(
            name, self.sections, {}, problems=self.problems, role=role, mode=self.mode
        )

    def _end(self, result: ConvertedSection, own: Mapping[str, Mapping[Key, Meaning]]) -> None:
        self._defaults(result, own[self.mode])
        result.logs = tuple(self.logs)
        result.extra += [line.source for line in self.rest]

    def _gather(self) -> None:
        defaults: list[Option] = []
        for is_own, line in [
            *((False, line) for line in self.inherited),
            *((True, line) for line in self.own),
        ]:
            keyword = line.keyword
            if keyword in _ROUTING:
                raise NotAService(f"it routes by itself ({keyword})")
            if keyword in ("mode", "balance", "bind", "server", "server-template"):
                _require_plain(line)
            if keyword == "mode":
                self.mode = line.arguments[0] if line.arguments else ""
            elif keyword == "balance":
                self.balance = line
            elif keyword == "bind" and is_own:
                self.binds.append(line)
            elif keyword == "log":
                self._log(line)
            elif keyword == "default-server":
                defaults += options_in(line.words[1:])
            elif keyword in ("server", "server-template") and is_own:
                start = 3 if keyword == "server" else 4
                options = [*defaults, *options_in(line.words[start:])]
                self.servers.append((line, options))
            elif is_own:
                self.rest.append(line)

    def _log(self, line: Line) -> None:
        if line.negated:
            self.logs = []
        else:
            self.logs.append(tuple(word.source for word in line.words[1:]))

    # Servers

    def _servers(self, result: ConvertedSection) -> dict[str, Any]:
        named = [
            (line, options, match)
            for line, options in self.servers
            if (match := _HOSTNAME.fullmatch(_address(line)))
        ]
        if not named:
            return self._nodes(result)
        templates = [entry for entry in named if entry[0].keyword == "server-template"]
        line, options, match = (templates or named)[0]
        others = [entry[0] for entry in self.servers if entry[0] is not line]
        target = self._target(result, line, options, match)
        others = self._fallback(target, options, match, named, others)
        self._other_servers(others)
        self._require_same_name(line, "pod" if line.keyword == "server-template" else "service")
        return target

    def _target(
        self, result: ConvertedSection, line: Line, options: list[Option], match: re.Match[str]
    ) -> dict[str, Any]:
        resolvers = effective(options, "resolvers")
        if resolvers is None:
            raise NotAService(
                f"line {line.number}: the server has no `resolvers`, so its name is resolved at "
                "the start only"
            )
        result.resolvers = resolvers.argument
        result.domain = match["domain"].lower()
        for part in ("service", "namespace"):
            if not DNS_LABEL.fullmatch(match[part]):
                raise NotAService(f"{match[part]} cannot be a name in Kubernetes")
        fields: dict[str, Any] = {"service": match["service"], "namespace": match["namespace"]}
        port = int(match["port"]) if match["port"] else None
        if line.keyword == "server":
            if match["wild"] or match["port_name"] or port is None:
                raise NotAService(f"line {line.number}: one server for many pods")
            return {**fields, "service_port": port, **_server_fields(options)}
        fields["slots"] = _slots(line)
        if match["port_name"]:
            if match["wild"]:
                raise NotAService(f"line {line.number}: a wildcard above a port's name")
            fields["pod_port"] = match["port_name"]
        elif port is None:
            raise NotAService(f"line {line.number}: the server has no port")
        else:
            fields["pod_port"] = port
            fields["discovery"] = "wildcard" if match["wild"] else "headless"
        return {**fields, **_server_fields(options)}

    def _fallback(
        self,
        target: dict[str, Any],
        options: list[Option],
        match: re.Match[str],
        named: list[tuple[Line, list[Option], re.Match[str]]],
        others: list[Line],
    ) -> list[Line]:
        """Return `others` without the server that `fallback: service` represents."""
        for line, backup_options, backup in named:
            if (
                any(line is other for other in others)
                and target.get("discovery") == "wildcard"
                and backup["wild"] is None
                and line.keyword == "server"
                and line.words[1].text == "service"
                and all(
                    backup[part] == match[part]
                    for part in ("service", "namespace", "domain", "port", "port_name")
                )
                and effective(backup_options, "backup")
                and Counter(_said(backup_options, "backup")) == Counter(_said(options))
            ):
                target["fallback"] = "service"
                return [other for other in others if other is not line]
        return others

    def _other_servers(self, others: list[Line]) -> None:
        for line in others:
            if any(entry.keyword == "default-server" for entry in [*self.inherited, *self.own]):
                raise NotAService("several servers share a `default-server`")
            host, _, port = _address(line).rpartition(":")
            if line.keyword != "server" or not port.isdigit() or not _is_address(host):
                raise NotAService(f"line {line.number}: a second name to resolve")
            self.rest.append(line)

    def _nodes(self, result: ConvertedSection) -> dict[str, Any]:
        """Convert servers at literal addresses with one port, as the cluster's nodes."""
        if len(self.servers) < 2:
            raise NotAService("no server is a name in the cluster's DNS")
        _, first_options = self.servers[0]
        ports = set()
        for line, options in self.servers:
            host, _, port = _address(line).rpartition(":")
            name = line.words[1].text
            if (
                line.keyword != "server"
                or not port.isdigit()
                or not _is_address(host)
                or not SERVICE_NAME.fullmatch(name)
                or _said(options) != _said(first_options)
            ):
                raise NotAService("no server is a name in the cluster's DNS")
            ports.add(int(port))
            result.nodes[name] = str(ip_address(host.strip("[]")))
        if len(ports) != 1 or effective(first_options, "resolvers"):
            raise NotAService("no server is a name in the cluster's DNS")
        return {"lb_service_port": ports.pop(), **_server_fields(first_options)}

    def _require_same_name(self, line: Line, name: str) -> None:
        said = line.words[1].text
        if said == name:
            return
        mentions = [
            entry
            for entry in self.rest
            if entry.keyword in ("use-server", "cookie")
            or any(re.search(rf"\b{re.escape(said)}", word.text) for word in entry.words[1:])
        ]
        if mentions:
            raise NotAService(
                f"line {mentions[0].number} may rely on the servers' name, {said}, which would "
                f"be {name}"
            )
        number = "1" if name == "pod" else ""
        self.problems.append(
            notice(
                self.section,
                line.number,
                f"its servers are called {name}{number} instead of {said}{number}",
                "adapt dashboards and scripts that name them",
            )
        )

    # The rest of a section

    def _binds(self, result: ConvertedSection) -> list[str]:
        if not self.binds:
            raise NotAService("it has no bind")
        binds: list[str] = []
        options: set[tuple[str, ...]] = set()
        v6_options: set[tuple[str, ...]] = set()
        for line in self.binds:
            words = line.words[1:]
            if not words:
                raise NotAService(f"line {line.number}: a bind without an address")
            said = [word.source for word in words[1:]]
            options.add(tuple(word for word in said if word not in _V6_OPTIONS))
            for text in words[0].text.split(","):
                bind = self._bind(line, text)
                if bind is not None:
                    binds.append(str(bind))
                    if bind.kind == "ip" and ":" in bind.host:
                        v6_options.add(tuple(word for word in said if word in _V6_OPTIONS))
        if len(options) > 1 or len(v6_options) > 1:
            raise NotAService("its binds differ in their options")
        if not binds:
            raise NotAService("none of its binds is an address")
        for_ipv6 = v6_options.pop() if v6_options else ()
        result.fields["bind_options"] = " ".join((*for_ipv6, *options.pop()))
        return binds

    def _bind(self, line: Line, text: str) -> Bind | None:
        try:
            return parse_bind(normal_bind(text))
        except NotAnAddress as exc:
            # A name contains no colon: this is an address that HAProxy rejects as well.
            if text.startswith("[") and re.search(r"\[[0-9A-Fa-f:]*:[0-9A-Fa-f:]*\]", text):
                self.problems.append(
                    Problem(
                        f"bind {text} of {self.section.name} is left out: {exc}",
                        exc.remedy + ", and add it to the service's binds",
                        file=self.section.file,
                        line=line.number,
                    )
                )
                return None
            raise NotAService(f"line {line.number}: {exc}") from None

    def _balance(self, result: ConvertedSection) -> None:
        words = self.balance.words[1:] if self.balance else ()
        text = " ".join(word.text for word in words) or "roundrobin"
        fields = {"pod_port": 1, "mode": self.mode, "balance": text}
        if self.balance and not _accepted("x", fields):
            result.extra.append(self.balance.code)
        else:
            result.fields["balance"] = text

    def _defaults(self, result: ConvertedSection, own: Mapping[Key, Meaning]) -> None:
        """Collect the lines of `defaults` and the section that differ from fc-frontend's own."""
        set_here = {key_of(line) for line in self.rest} - {()}
        set_above: dict[Key, Line] = {}
        others: list[tuple[Key, Line]] = []
        handled = ("mode", "balance", "log", "default-server", "load-server-state-from-file")
        for line in self.inherited:
            keyword = line.keyword
            if keyword in handled or (self.mode == "tcp" and _is_http_only(line)):
                continue
            key = key_of(line)
            if key:
                set_above[key] = line
            else:
                others.append((key, line))
        self.rest = [
            line
            for line in self.rest
            if key_of(line) in set_above
            or not key_of(line)
            or own.get(key_of(line)) != meaning_of(line)
        ]
        result.overridden = frozenset(set_here)
        result.carried = others + [
            (key, line)
            for key, line in set_above.items()
            if key not in set_here and own.get(key) != meaning_of(line)
        ]
        ours = ("mode", "log", "load-server-state-from-file")
        known = set_here | set(set_above)
        result.unset = tuple(
            " ".join(meaning)
            for key, meaning in own.items()
            if key not in known and key[0] not in ours
        )


def hoisted(services: Sequence[ConvertedSection]) -> list[Line]:
    """Return the lines from `defaults` that all services can share, and remove them there."""
    if not services:
        return []
    found: list[Line] = []
    for key, line in services[0].carried:
        meaning = meaning_of(line)
        if not _FOR_BOTH_MODES.fullmatch(_kind_of(line)) or any(w.variable for w in line.words):
            continue
        if all(
            any(meaning_of(other) == meaning for _, other in service.carried)
            or key in service.overridden
            for service in services
        ):
            found.append(line)
    taken = {meaning_of(line) for line in found}
    for service in services:
        service.carried = [
            (key, line) for key, line in service.carried if meaning_of(line) not in taken
        ]
    return found


def _subject(line: Line) -> str:
    """Return a keyword, with the name of the option or timeout."""
    if line.keyword in ("option", "timeout"):
        return " ".join((line.keyword, *line.arguments[:1]))
    return line.keyword


def _kind_of(line: Line) -> str:
    if line.keyword == "option":
        return " ".join(("option", *line.arguments[:1]))
    return line.keyword


def _is_http_only(line: Line) -> bool:
    return bool(_HTTP_ONLY.fullmatch(_kind_of(line)))


def _require_usable(sections: Iterable[OldSection]) -> None:
    for section in sections:
        for part in [section, *section.lineage()]:
            if part.conditional:
                raise NotAService("it has conditions (.if)")
            if part.name.startswith("fc-"):
                raise NotAService("its name is fc-frontend's own")


def _require_mergeable(frontend: OldSection, backend: OldSection) -> None:
    if [id(part) for part in frontend.lineage()] != [id(part) for part in backend.lineage()]:
        raise NotAService("frontend and backend have different `defaults`")
    modes = [
        [line.arguments for line in part.statements if line.keyword == "mode"]
        for part in (frontend, backend)
    ]
    if modes[0] != modes[1]:
        raise NotAService("frontend and backend differ in their mode")
    for keyword in ("acl", "stick-table", "log"):
        if all(
            any(line.keyword == keyword for line in part.statements) for part in (frontend, backend)
        ):
            raise NotAService(f"frontend and backend both have `{keyword}`")


def _require_plain(line: Line) -> None:
    for word in line.words:
        if word.variable:
            raise NotAService(f"line {line.number}: a variable, {word.source}")
        if any(not letter.isprintable() for letter in word.text):
            raise NotAService(f"line {line.number}: a letter that is not printable")


def _address(line: Line) -> str:
    index = 2 if line.keyword == "server" else 3
    return line.words[index].text if len(line.words) > index else ""


def _is_address(host: str) -> bool:
    try:
        return "%" not in host and bool(ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        return False


def _slots(line: Line) -> int:
    text = line.words[2].text
    match = re.fullmatch(r"(?:1-)?([0-9]{1,4})", text)
    if not match:
        raise NotAService(f"line {line.number}: its servers are numbered {text}")
    return int(match[1])


def _said(options: Iterable[Option], *without: str) -> list[str]:
    return [option.source for option in options if option.keyword not in without]


def _server_fields(options: list[Option]) -> dict[str, Any]:
    """Return `check`, `tls` and `server_options`."""
    last = ""
    for option in options:
        if option.keyword in ("check", "no-check"):
            last = option.keyword
    fields: dict[str, Any] = {"check": last == "check"}
    kept = [option for option in options if not _is_ours(option)]
    tls = _tls(kept)
    if tls is not None:
        fields["tls"] = tls
        kept = [option for option in kept if option.keyword not in _TLS_OPTIONS]
    fields["server_options"] = " ".join(option.source for option in kept)
    return fields


def _is_ours(option: Option) -> bool:
    if option.keyword == "init-addr":
        return option.argument in ("none", "last,none")
    if option.keyword == "resolve-prefer":
        return option.argument == "ipv4"
    return option.keyword in _OWN_OPTIONS


def _tls(options: list[Option]) -> bool | dict[str, str] | None:
    """Return the `tls` field, None if it cannot express the options."""
    said: dict[str, str] = {}
    for option in options:
        if option.keyword in _TLS_OPTIONS:
            if option.keyword in said:
                return None
            said[option.keyword] = option.argument
    if said == {"ssl": "", "verify": "none"}:
        return True
    sni = _STR.fullmatch(said.pop("sni", "str(none)"))
    if sni is None or "ssl" not in said or "no-ssl" in said:
        return None
    fields = {"sni": sni[1]} if sni[1] != "none" else {}
    match said:
        case {"verify": "none", **rest} if set(rest) == {"ssl"}:
            fields["verify"] = "none"
        case {"verify": "required", "ca-file": ca_file, **rest}:
            if rest.get("verifyhost", "") != fields.get("sni", "") or not set(rest) <= {
                "ssl",
                "verifyhost",
            }:
                return None
            fields["ca_file"] = ca_file
        case _:
            return None
    return fields if _accepted("x", {"pod_port": 1, "tls": fields}) else None


def _accepted(name: str, fields: Mapping[str, Any]) -> bool:
    from pydantic import ValidationError

    try:
        return not ServiceDeclaration.model_validate(dict(fields)).complaints(name)
    except ValidationError:
        return False


def accepted(service: ConvertedSection) -> bool:
    """Return whether the loader will accept the declaration."""
    return _accepted(service.name, service.fields)


def _simplify(result: ConvertedSection) -> None:
    """Remove fields that have their default value."""
    fields = result.fields
    port = next(
        (fields[key] for key in ("pod_port", "service_port", "lb_service_port") if key in fields),
        None,
    )
    defaults: dict[str, Any] = {
        "service": result.name,
        "namespace": "default",
        "binds": [f"127.0.0.1:{port}"],
        "mode": "tcp",
        "balance": "leastconn",
        "check": True,
        "server_options": "",
        "bind_options": "",
    }
    result.fields = {
        key: fields[key]
        for key in ServiceDeclaration.model_fields
        if key in fields and (key not in defaults or defaults[key] != fields[key])
    }


def notice(section: OldSection, line: int, message: str, remedy: str) -> Problem:
    """Return a warning about the conversion of a section."""
    return Problem(
        f"{section.kind} {section.name}: {message}",
        remedy,
        severity=Severity.WARNING,
        file=section.file,
        line=line,
    )
