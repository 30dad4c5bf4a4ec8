"""Render the sections of haproxy.cfg from a plan and templates.

The templates only define the layout; this module computes all values, as small render models.
Every value that a template prints is checked once more: no control character and no None reaches
the text.  The same plan always produces the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import jinja2

from fc_frontend.errors import Problem, Refused
from fc_frontend.model.memo import Memo
from fc_frontend.model.units import SETTINGS, Section, UnitId, UnitKind
from fc_frontend.plan import sites
from fc_frontend.plan.model import (
    FREE_ADDRESS,
    Fragment,
    FrontendSpec,
    Kind,
    Nameserver,
    Network,
    Plan,
    ServicePlan,
    ServiceSpec,
    Target,
    Tls,
    nodes_of,
)
from fc_frontend.render.config import (
    BLANK_DESCRIPTION,
    MARK,
    Config,
    assemble,
    description_of,
    has_unit_mark,
)
from fc_frontend.render.sites import (
    DENY_AMBIGUOUS,
    cookie_lines,
    login_lines,
    page_lines,
    path_lines,
    userlist_lines,
)
from fc_frontend.syntax.certificates import bind_words, list_path
from fc_frontend.syntax.routes import allow_lines, allow_path, rules, sni_rules
from fc_frontend.syntax.sections import read_sections
from fc_frontend.syntax.units import UnitFault, section_faults
from fc_frontend.syntax.words import quote

MAIN = "haproxy.cfg.j2"
SERVICE = "service.cfg.j2"
FRONTEND = "frontend.cfg.j2"
FRAGMENT = "fragment.cfg.j2"


ALIVE_TABLES = {"fc-alive-10s": 10, "fc-alive-30s": 30}
"""The stick-tables with the daemon's heartbeat, and the seconds after which it expires.

The standby of a headless Service has the same pods, so it may take over soon; a cluster IP adds a
hop.
"""
ALIVE_KEY = "daemon"
_NO_SITES: Mapping[str, sites.SiteFiles] = MappingProxyType({})
_MAX_NETWORKS = 50
"""Per line."""

_FOR_STANDBY = (
    "option httpchk", "option tcp-check", "http-check", "tcp-check", "timeout server",
    "timeout tunnel", "timeout connect", "timeout queue", "timeout check", "retries", "retry-on",
    "http-reuse", "http-send-name-header", "no option", "option http-server-close",
    "option prefer-last-server", "dynamic-cookie-key",
)  # fmt: skip
"""Prefixes of the raw lines that concern only servers, and are copied to the standby."""


@dataclass(frozen=True, slots=True)
class StandbyModel:
    """The backend that serves while the daemon does not fill the slots.

    `table` contains the daemon's heartbeat.
    """

    name: str
    table: str
    servers: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """The values for service.cfg.j2.

    `comments` contain the values that change at runtime: routes and allowed client addresses.
    """

    name: str
    section: str
    comments: tuple[str, ...]
    defaults: str
    binds: tuple[str, ...]
    bind_options: str
    balance: str
    affinity: tuple[str, ...]
    options: tuple[str, ...]
    servers: tuple[str, ...]
    extra_config: tuple[str, ...]
    standby: StandbyModel | None
    userlist: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PassthroughModel:
    """The part of a frontend that passes TLS through, ahead of the part that terminates TLS.

    `socket` connects the two parts, and `bind` is that socket with its options.  `access` contains
    the lines that expect PROXY headers and define the clients allowed by `rules`.
    """

    socket: str
    bind: str
    access: tuple[str, ...]
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrontendModel:
    """The values for frontend.cfg.j2.

    `allowed` are the comments with allowed client addresses, `access` the lines that reject
    requests, `headers` the lines that set headers, and `rules` the lines that select the service.
    `request` is the keyword for the mode.  `standby_table` contains the heartbeat for standbys.
    """

    name: str
    defaults: str
    binds: tuple[str, ...]
    tls: str
    passthrough: PassthroughModel | None
    bind_options: str
    acme: str
    redirect_binds: tuple[str, ...]
    allowed: tuple[str, ...]
    access: tuple[str, ...]
    headers: tuple[str, ...]
    request: str
    rules: tuple[str, ...]
    standby_table: str
    extra_config: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FragmentModel:
    """The values for fragment.cfg.j2."""

    name: str
    text: Verbatim
    is_http: bool


@dataclass(frozen=True, slots=True)
class NameserverModel:
    """One line of a resolvers section."""

    name: str
    address: str


class Verbatim(str):
    """HAProxy text that may contain several lines."""

    __slots__ = ()


class RenderMemo:
    """The previously rendered sections of units."""

    def __init__(self) -> None:
        self.services: Memo[Section] = Memo()
        self.fragments: Memo[Section] = Memo()
        self.frontends: Memo[Section] = Memo()


def render(plan: Plan, templates: Mapping[str, str], *, memo: RenderMemo | None = None) -> Config:
    """Return haproxy.cfg for `plan`.  `templates` maps file names to texts.

    Units whose plan has not changed are taken from `memo`.  Raises Refused if a template is
    missing, fails, or omits lines that fc-frontend relies on.
    """
    refused: list[Problem] = []
    sections = render_sections(plan, templates, refused, memo=memo)
    if refused:
        raise Refused(*refused)
    return assemble(sections)


def render_sections(
    plan: Plan,
    templates: Mapping[str, str],
    refused: list[Problem],
    *,
    memo: RenderMemo | None = None,
    files: Mapping[str, sites.SiteFiles] = _NO_SITES,
) -> tuple[Section, ...]:
    """Return the sections of haproxy.cfg for `plan`, beginning with the settings section.

    `files` contains the data from files of this host for each service, by name; without it, nobody
    can log in.  Units that cannot be rendered are omitted, and their problems are added to
    `refused`.  Raises Refused if the settings section cannot be rendered.
    """
    environment = _environment(tuple(sorted(templates.items())))
    head = _print(
        environment,
        MAIN,
        settings=plan.settings,
        description=BLANK_DESCRIPTION,
        nameservers=_nameservers(plan.settings.cluster.nameservers),
        alive_tables=ALIVE_TABLES if plan.settings.cluster.api else {},
    )
    _require_description(head)
    _require_own_sections(head, MAIN)
    return (
        Section(SETTINGS, head),
        *_unit_sections(plan, environment, refused, memo or RenderMemo(), files),
    )


def _require_description(head: str) -> None:
    """Raise Refused unless `head` contains the placeholder for the digest."""
    if description_of(head) != BLANK_DESCRIPTION:
        raise Refused.of(
            "the templates do not print `description {{ description }}` on a line of "
            "its own in the global section",
            remedy="add it to global.cfg.j2 again: it shows which configuration is running",
            file="global.cfg.j2",
        )


def _require_own_sections(text: str, template: str, unit: str = "") -> None:
    """Raise Refused unless HAProxy reads `text` as complete sections and nothing else.

    Units are checked before they are rendered, so any fault found here is in a template.
    """
    for fault in _faults(text) if not unit else section_faults(text):
        where = f"for {unit}: " if unit else ""
        raise Refused.of(where + fault.message, fault.remedy, file=template)
    if has_unit_mark(text):
        raise Refused.of(
            f"the text has a line that begins with `{MARK.strip()}`",
            "remove that comment: fc-frontend finds its own sections by it",
            service=unit or None,
            file=None if unit else template,
        )


@lru_cache(maxsize=4)
def _faults(head: str) -> tuple[UnitFault, ...]:
    return tuple(section_faults(head))


def _unit_sections(
    plan: Plan,
    environment: jinja2.Environment,
    refused: list[Problem],
    memo: RenderMemo,
    files: Mapping[str, sites.SiteFiles],
) -> list[Section]:
    nodes = plan.settings.cluster.nodes
    directory = plan.settings.haproxy.config_file.rpartition("/")[0]
    guarded = {
        each.spec.frontend
        for each in plan.services
        if each.spec.basic_auth is not None or each.spec.allow is not None
    }
    sections: list[Section] = []

    def section(kind: UnitKind, name: str, template: str, **model: object) -> Section:
        unit = UnitId(kind, name)
        try:
            text = _print(environment, template, **model)
            _require_own_sections(text, template, name)
        except Refused as exc:
            raise Refused(*(replace(problem, unit=unit) for problem in exc.problems)) from None
        return Section(unit, text)

    def of_service(service: ServicePlan) -> Section:
        model = _service_model(service, plan, files.get(service.spec.name, sites.NO_FILES))
        return section(UnitKind.SERVICE, service.spec.name, SERVICE, service=model)

    def of_fragment(fragment: Fragment) -> Section:
        model = _fragment_model(fragment)
        return section(UnitKind.FRAGMENT, fragment.name, FRAGMENT, fragment=model)

    def of_frontend(frontend: FrontendSpec) -> Section:
        model = _frontend_model(frontend, plan, is_guarded=frontend.name in guarded)
        return section(UnitKind.FRONTEND, frontend.name, FRONTEND, frontend=model)

    def add(
        memo: Memo[Section], name: str, source: tuple[object, ...], make: Callable[[], Section]
    ) -> None:
        try:
            sections.append(memo.of(name, source, make))
        except Refused as exc:
            refused.extend(exc.problems)

    for frontend in plan.frontends:
        settings = plan.settings
        places = settings.haproxy.config_file, settings.state_directory, settings.cluster.api
        is_guarded = frontend.name in guarded
        source: tuple[object, ...] = (frontend, environment, places, is_guarded)
        add(memo.frontends, frontend.name, source, partial(of_frontend, frontend))
    for service in plan.services:
        source = (service, environment, nodes, directory, files.get(service.spec.name))
        add(memo.services, service.spec.name, source, partial(of_service, service))
    for fragment in plan.fragments:
        source = (fragment, environment)
        add(memo.fragments, fragment.name, source, partial(of_fragment, fragment))
    memo.frontends.keep([frontend.name for frontend in plan.frontends])
    memo.services.keep([service.spec.name for service in plan.services])
    memo.fragments.keep([fragment.name for fragment in plan.fragments])
    return sections


@lru_cache(maxsize=4)
def _environment(templates: tuple[tuple[str, str], ...]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(dict(templates)),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 (the output is not HTML; `_checked` guards it)
        finalize=_checked,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["time"] = haproxy_time
    return environment


_AS_IT_IS = (Verbatim, jinja2.Undefined)


def _checked(value: Any) -> Any:
    if isinstance(value, _AS_IT_IS):
        return value
    if value is None:
        raise ValueError("a value is missing")
    text = str(value)
    if not text.replace("\t", "").isprintable():
        raise ValueError(f"{text[:40]!r} has a control character")
    return text


def _print(environment: jinja2.Environment, name: str, **values: Any) -> str:
    try:
        return environment.get_template(name).render(values).strip("\n")
    except jinja2.TemplateSyntaxError as exc:
        raise Refused.of(
            f"not a template: {exc.message}",
            "fix it, or remove it to use the packaged one",
            file=exc.name or name,
            line=exc.lineno,
        ) from None
    except jinja2.TemplateNotFound as exc:
        raise Refused.of(f"there is no template {exc.name}", "check its name", file=name) from None
    except Exception as exc:
        # A template is code: an operator's template may raise any exception.
        raise Refused.of(
            f"the template failed: {type(exc).__name__}: {exc}",
            "fix it, or remove it to use the packaged one",
            file=name,
        ) from None


def haproxy_time(seconds: float) -> str:
    """Return a time in HAProxy's format (manual 2.5), in the largest exact unit."""
    milliseconds = round(seconds * 1000)
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"


def _nameservers(nameservers: tuple[Nameserver, ...]) -> list[NameserverModel]:
    models = []
    for number, nameserver in enumerate(nameservers, start=1):
        for transport in nameserver.transports:
            host = str(nameserver.address)
            host = f"[{host}]" if ":" in host else host
            prefix = "tcp@" if transport == "tcp" else ""
            models.append(
                NameserverModel(f"dns{number}-{transport}", f"{prefix}{host}:{nameserver.port}")
            )
    return models


def _service_model(service: ServicePlan, plan: Plan, files: sites.SiteFiles) -> ServiceModel:
    spec = service.spec
    directory = plan.settings.haproxy.config_file.rpartition("/")[0]
    options = tuple(_option_lines(spec, files, directory))
    return ServiceModel(
        name=spec.name,
        section="backend" if spec.frontend else "listen",
        comments=(*(route.line for route in spec.routes), *allow_lines(spec.allow or ())),
        defaults=f"fc-{spec.mode}",
        binds=tuple(str(bind) for bind in spec.binds),
        bind_options=spec.bind_options,
        balance=spec.balance,
        affinity=tuple(_affinity_lines(spec)),
        options=options,
        servers=tuple(_servers(service, plan)),
        extra_config=spec.extra_config,
        standby=_standby_model(service),
        userlist=tuple(userlist_lines(spec, files)),
    )


def _option_lines(spec: ServiceSpec, files: sites.SiteFiles, directory: str) -> Iterator[str]:
    """Return the lines for a service's request and response fields; its standby has them too."""
    if spec.timeout is not None:
        yield f"timeout server {haproxy_time(spec.timeout)}"
    if spec.rate_limit is not None:
        period = haproxy_time(spec.rate_limit.period)
        yield f"stick-table type ipv6 size 10k expire {period} store http_req_rate({period})"
        yield "http-request track-sc2 src"
        yield (
            "http-request deny deny_status 429 "
            f"if {{ sc2_http_req_rate gt {spec.rate_limit.requests} }}"
        )
    if spec.allow is not None:
        yield _allow_acl(directory, spec.name)
        rule = "http-request deny" if spec.mode == "http" else "tcp-request content reject"
        yield f"{rule} unless fc_allowed"
    yield from login_lines(spec)
    yield from path_lines(spec)
    yield from cookie_lines(spec, files)
    yield from page_lines(spec)
    for rule, headers in (
        ("http-request", spec.request_headers),
        ("http-response", spec.response_headers),
    ):
        for name, value in headers:
            if value is None:
                yield f"{rule} del-header {quote(name)}"
            else:
                # The value is a log format (manual 8.2.6).
                yield f"{rule} set-header {quote(name)} {quote(value.replace('%', '%%'))}"


def _frontend_model(frontend: FrontendSpec, plan: Plan, *, is_guarded: bool) -> FrontendModel:
    is_http = frontend.mode == "http"
    directory = plan.settings.haproxy.config_file.rpartition("/")[0]
    return FrontendModel(
        name=frontend.name,
        defaults=f"fc-{frontend.mode}",
        binds=tuple(map(str, frontend.binds)),
        tls=_tls_bind_words(frontend, plan),
        passthrough=_passthrough_model(frontend, plan) if frontend.passes_through else None,
        bind_options=frontend.bind_options,
        acme=str(frontend.acme or ""),
        redirect_binds=tuple(map(str, frontend.redirect_binds)),
        allowed=tuple(allow_lines(frontend.allow or ())),
        access=tuple(_access_rules(frontend, directory, is_guarded=is_guarded)),
        headers=tuple(_header_rules(frontend)) if is_http else (),
        request="http-request" if is_http else "tcp-request content",
        rules=tuple(rules(directory, frontend.name, frontend.match)),
        standby_table="fc-alive-30s" if plan.settings.cluster.api else "",
        extra_config=frontend.extra_config,
    )


def _tls_bind_words(frontend: FrontendSpec, plan: Plan) -> str:
    """Return the `bind` words that terminate TLS; empty without TLS."""
    tls = frontend.tls
    if tls is None:
        return ""
    return bind_words(
        list_path(plan.settings.state_directory, frontend.name),
        has_default=tls.default is not None,
        client_ca=tls.client_ca,
        is_client_optional=tls.is_client_optional,
        profile=tls.profile,
    )


def _passthrough_model(frontend: FrontendSpec, plan: Plan) -> PassthroughModel:
    haproxy = plan.settings.haproxy
    directory = haproxy.config_file.rpartition("/")[0]
    socket = f"unix@{haproxy.runtime_socket.rpartition('/')[0]}/fc-frontend-{frontend.name}.sock"
    # HAProxy connects to it as its own user.  No other user may, because PROXY headers received
    # there are accepted.
    owner = f" user {haproxy.user}" if haproxy.user else ""
    access, limits = list(_expected_proxies(frontend)), []
    if frontend.allow is not None:
        access.append(_allow_acl(directory, frontend.name))
        limits = ["tcp-request content reject if { var(txn.fc_service) -m found } !fc_allowed"]
    return PassthroughModel(
        socket=socket,
        bind=f"{socket} mode 600{owner} accept-proxy",
        access=tuple(access),
        rules=(*sni_rules(directory, frontend.name), *limits),
    )


def _expected_proxies(frontend: FrontendSpec) -> Iterator[str]:
    """Return the lines that expect PROXY headers."""
    if frontend.proxy_protocol_from:
        yield from _networks("fc_proxies", frontend.proxy_protocol_from)
        yield "tcp-request connection expect-proxy layer4 if fc_proxies"


def _access_rules(frontend: FrontendSpec, directory: str, *, is_guarded: bool) -> Iterator[str]:
    """Return the lines that expect PROXY headers, and reject clients and ambiguous paths.

    Ambiguous paths are rejected only where access is restricted: by `allow` of the frontend or its
    services, or by passwords of its services.
    """
    if not frontend.passes_through:
        yield from _expected_proxies(frontend)
    if frontend.allow is not None:
        yield _allow_acl(directory, frontend.name)
        if frontend.mode == "tcp":
            # After the PROXY header, which contains the client's address.
            yield "tcp-request session reject unless fc_allowed"
            return
        yield "http-request deny unless fc_allowed"
    if frontend.allow is not None or is_guarded:
        yield DENY_AMBIGUOUS


def _allow_acl(directory: str, unit: str) -> str:
    """Return the ACL that matches allowed clients; the content of its file changes at runtime."""
    return f"acl fc_allowed src -f {allow_path(directory, unit)}"


def _affinity_lines(spec: ServiceSpec) -> Iterator[str]:
    """Return the lines that send a client to its last pod (manual 4.2, `stick on`).

    Pods are identified by address, because a slot may contain another pod at the next connection.
    """
    if spec.session_affinity is not None:
        expire = haproxy_time(spec.session_affinity)
        yield f"stick-table type ipv6 size 100k expire {expire} srvkey addr"
        yield "stick on src"


def _header_rules(frontend: FrontendSpec) -> Iterator[str]:
    """Return the lines that set headers."""
    trusted = frontend.trusted_proxies
    yield from _networks("fc_trusted", trusted)
    unless, and_not = (" unless fc_trusted", " !fc_trusted") if trusted else ("", "")
    yield f"http-request del-header x-forwarded- -m beg{unless}"
    yield f"http-request del-header forwarded{unless}"
    yield f"http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}{and_not}"
    yield f"http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}{and_not}"
    if frontend.hsts is not None:
        seconds = int(frontend.hsts)
        yield (
            f"http-after-response set-header Strict-Transport-Security max-age={seconds} "
            "if { ssl_fc }"
        )


def _networks(acl: str, networks: Sequence[Network]) -> Iterator[str]:
    """Return `acl` lines for client addresses: HAProxy accepts at most 64 words per line."""
    for start in range(0, len(networks), _MAX_NETWORKS):
        listed = " ".join(map(str, networks[start : start + _MAX_NETWORKS]))
        yield f"acl {acl} src {listed}"


def _standby_model(service: ServicePlan) -> StandbyModel | None:
    standby, spec = service.standby, service.spec
    name = service.standby_name
    if standby is None or name is None:
        return None
    words = [*_check_words(spec, "inter 5s"), *_server_words(service)]
    options = spec.server_options.split()
    if standby.address is not None:
        place = _host_port(standby.address, standby.port)
        servers = [_line("server", "service", place, *words, *options)]
    else:
        resolved = ["resolvers", "cluster", "resolve-prefer", service.prefer]
        target = f"{standby.name}:{standby.port}"
        count = str(service.slots)
        servers = [_line("server-template", "pod", count, target, *words, *resolved, *options)]
    return StandbyModel(
        name=name,
        table="fc-alive-30s" if standby.address is not None else "fc-alive-10s",
        servers=tuple(servers),
        lines=tuple(
            line for line in spec.extra_config if " ".join(line.split()).startswith(_FOR_STANDBY)
        ),
    )


def _check_words(spec: ServiceSpec, *more: str) -> list[str]:
    return ["check", *" ".join(more).split()] if spec.check else []


def _server_words(service: ServicePlan) -> list[str]:
    """Return the `server` words for TLS, HTTP/2 and PROXY headers to the pods."""
    spec = service.spec
    words = _tls_words(spec.tls) if spec.tls else []
    if spec.protocol == "h2":
        words += ["alpn", "h2"]
    elif spec.protocol == "h2c" or service.is_h2c:
        words += ["proto", "h2"]
    if spec.proxy_protocol is not None:
        words.append("send-proxy" if spec.proxy_protocol == "v1" else "send-proxy-v2")
    return words


def _fragment_model(fragment: Fragment) -> FragmentModel:
    text = fragment.text.rstrip("\n")
    return FragmentModel(fragment.name, Verbatim(text), is_http=_is_http(text))


def _is_http(text: str) -> bool:
    """Return whether all `listen` and `frontend` sections of a fragment contain `mode http`.

    False if there are no such sections.
    """
    listening = [each for each in read_sections(text) if each.kind in ("listen", "frontend")]
    return bool(listening) and all(
        any(line.keyword == "mode" and line.arguments == ("http",) for line in each.statements)
        for each in listening
    )


def _servers(service: ServicePlan, plan: Plan) -> list[str]:
    spec = service.spec
    watched = ""
    if service.standby:
        # A pod that refuses one connection is marked down until a check passes: the daemon, which
        # would remove the pod, may not be running.
        watched = "observe layer4 error-limit 1 on-error mark-down"
    elif service.by_runtime:
        # Deleted pods remain in their slots while one nameserver lags.  Until checks detect them,
        # after 1 to 3 s, a request can reach four of them in a row, which exhausts its retries: 4
        # of 1,000 failed on a busy machine, 0 of 1,000 with this.  Three errors, because nothing
        # replaces a pod that misses one connection.
        watched = "observe layer4 error-limit 3 on-error mark-down"
    common = [*_check_words(spec, watched), *_server_words(service)]
    options = spec.server_options.split()
    if service.query is None:
        return [
            _line("server", name, _host_port(str(address), spec.port), *common, *options)
            for name, address in nodes_of(spec, plan.settings.cluster).items()
        ]
    own = ["resolvers", "cluster", "resolve-prefer", service.prefer]
    resolved = own
    if service.by_runtime:
        # Free slots need an address that can be changed later, and receive no traffic until then.
        resolved = ["disabled", "init-addr", f"last,{FREE_ADDRESS}"]
    # A server without a port maps the client's destination port until the first SRV answer, even
    # if the server state file contains one.  The port number here is replaced by that of the
    # record.  Slots that the daemon fills receive the port of each pod.
    named = isinstance(spec.port, str) or spec.target is Target.SERVICE
    is_of_pod = service.kind.finds_ports or (service.kind is Kind.API and named)
    port = 1 if is_of_pod else spec.port
    target = f"{service.query}:{port}"
    if service.kind is Kind.SERVICE:
        return [_line("server", "service", target, *common, *resolved, *options)]
    lines = [
        _line("server-template", "pod", str(service.slots), target, *common, *resolved, *options)
    ]
    if service.fallback_query:
        backup = f"{service.fallback_query}:{spec.port}"
        lines.append(_line("server", "service", backup, *common, "backup", *own, *options))
    return lines


def _line(*words: str) -> str:
    return " ".join(words)


def _host_port(host: str, port: int | str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls_words(tls: Tls) -> list[str]:
    words = ["ssl", "verify", "required" if tls.ca_file else "none"]
    if tls.ca_file:
        words += ["ca-file", tls.ca_file]
    if tls.sni:
        words += ["sni", f"str({tls.sni})"]
        words += ["verifyhost", tls.sni] if tls.ca_file else []
    return words
