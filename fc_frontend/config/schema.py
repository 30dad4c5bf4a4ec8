"""The shape of what operators may write, and its way into the model.

This is the only place where pydantic stands: text from outside comes in here, and frozen
dataclasses go out.  Every text that can reach haproxy.cfg is held to a set of characters in which
no quote, comment, escape, variable or line break can be written; more take only the fields that are
HAProxy text by intent: `extra_config`, `server_options`, `bind_options` and the settings' extras.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fc_frontend.config.loopback import on_loopback
from fc_frontend.config.sites import (
    BasicAuthField,
    RedirectsField,
    RewriteField,
    StickyField,
    site_complaints,
)
from fc_frontend.config.tls import AcmeDeclaration, FrontendTlsDeclaration
from fc_frontend.config.values import (
    RoutePath,
    SafePath,
    Strict,
    error,
    listed,
    matching,
    short,
)
from fc_frontend.model.load_balancers import (
    DEFAULT_CLASS,
    AddressPool,
    AddressRange,
    LoadBalancerSettings,
)
from fc_frontend.plan.address_ranges import parse_address_range, shared_ranges
from fc_frontend.plan.addresses import (
    SAFE_PATH,
    NotAnAddress,
    parse_address,
    parse_bind,
    parse_bind_range,
    parse_nameserver,
    parse_network,
)
from fc_frontend.plan.model import (
    Address,
    ApiAccessSettings,
    ApiSettings,
    Bind,
    BindRange,
    Cluster,
    Discovery,
    FrontendSpec,
    Haproxy,
    Intervals,
    Nameserver,
    Network,
    Origin,
    RateLimit,
    ServiceSpec,
    Settings,
    Target,
    Tls,
    Trust,
    Untrusted,
)
from fc_frontend.plan.slots import MOST as MOST_SLOTS
from fc_frontend.render.config import MARK, has_mark
from fc_frontend.syntax.routes import (
    NotARoute,
    RouteEntry,
    http_routes,
    parse_host,
    sni_routes,
)
from fc_frontend.syntax.units import Owner, UnitFault, clean_line, option_fault, raw_line_faults
from fc_frontend.syntax.words import split

CAMEL_CASE = {
    "podPort": "pod_port",
    "lbServicePort": "lb_service_port",
    "servicePort": "service_port",
    "maxExpectedPods": "slots",
    "serviceName": "service",
    "sslBackend": "tls",
    "haproxyExtraConfig": "extra_config",
    "extraPodTemplateOptions": "server_options",
}
"""The predecessor's names of a service's fields."""

SERVICE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_QUALIFIED_NAME = re.compile(
    r"(?=.{1,253}/)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_ARGUMENT = r"[A-Za-z0-9._-]{1,100}"
_BALANCE = re.compile(
    r"roundrobin|static-rr|leastconn|first|source|random(?:\([1-9][0-9]?\))?|"
    rf"uri(?: (?:whole|path-only|(?:len|depth) [1-9][0-9]{{0,3}}))*|url_param {_ARGUMENT}|"
    rf"hdr\({_ARGUMENT}\)|rdp-cookie(?:\({_ARGUMENT}\))?"
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$&*+.^_|~-]{1,100}")
_MAX_HEADERS = 50
_MAX_HEADER_LENGTH = 4000
MAX_ROUTES = 10_000
"""Of one service: each is an entry in a map of HAProxy."""
_HTTP_BALANCE = ("uri", "url_param", "hdr(")

T = TypeVar("T")


def _parsed(parse: Callable[[str], T]) -> Callable[[Any], T]:
    def validate(value: Any) -> T:
        if not isinstance(value, str):
            raise error(f"{short(value)} is not a string", "put it in quotes")
        try:
            return parse(value)
        except NotAnAddress as exc:
            raise error(str(exc), exc.remedy) from None

    return validate


def _seconds(value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise error(f"{short(value)} is not a time", "write 200ms, 5s, 2m, 1h or 1d")
    match = _TIME.fullmatch(str(value))
    if not match:
        raise error(f"{short(value)} is not a time", "write 200ms, 5s, 2m, 1h or 1d")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not least <= seconds <= most:
        raise error(f"{value} is out of range", f"give a time from {least:g} s to {most:g} s")
    return seconds


def _time(least: float, most: float) -> Any:
    return BeforeValidator(lambda value: _seconds(value, least, most))


def _optional_time(least: float, most: float) -> Any:
    def validate(value: Any) -> float | None:
        return None if value is None else _seconds(value, least, most)

    return BeforeValidator(validate)


def _require_printable(text: str) -> None:
    if not text.replace("\t", "").isprintable():
        raise error(f"{short(text)} has a control character", "leave it out")


def _haproxy_lines(owner: Owner) -> Any:
    def validate(value: Any) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise error(f"{short(value)} is not a string", "write lines of HAProxy configuration")
        for index, text in enumerate(texts):
            item = None if texts is not value else index
            _require_printable(text.replace("\n", ""))
            if has_mark(text):
                raise error(f"a comment begins with `{MARK.strip()}`", "write it in another way")
            for fault in raw_line_faults(text, owner):
                raise _error_in(fault, text, item)
        lines = [line for text in texts for line in text.split("\n")]
        return tuple(clean_line(line) for line in lines if line.strip())

    return BeforeValidator(validate)


def _haproxy_words(value: Any) -> str:
    if not isinstance(value, str):
        raise error(f"{short(value)} is not a string", "write words as after HAProxy's `server`")
    # The predecessor's NixOS option has a line for each word or so.
    text = value.replace("\n", " ").strip(" \t")
    _require_printable(text)
    fault = option_fault(text)
    if fault is not None:
        raise error(fault.message, fault.remedy)
    return " ".join(word.source for word in split(text).words)


def _error_in(fault: UnitFault, text: str, item: int | None) -> PydanticCustomError:
    """An error in a line of `text`, which may be an item of a list."""
    has_lines = "\n" in text.strip("\n")
    where = f"line {fault.line}: " if has_lines else ""
    context = {"text": where + fault.message, "remedy": fault.remedy, "line": fault.line}
    if item is not None:
        context["item"] = item
    return PydanticCustomError("fc_frontend", "{text}", context)


def _port(value: Any) -> int | str:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value) if len(value) <= 6 else -1
    if isinstance(value, int) and not isinstance(value, bool):
        if 1 <= value <= 65535:
            return value
        raise error(f"{short(value)} is not a port", "give a number from 1 to 65535")
    if isinstance(value, str) and _PORT_NAME.fullmatch(value):
        return value
    raise error(
        f"{short(value)} is not a port",
        "give a number from 1 to 65535, or a port's name as in the Service's spec.ports",
    )


def _port_number(value: Any) -> int:
    port = _port(value)
    if isinstance(port, str):
        raise error(
            f"{short(value)} is not a number", "a port's name is known only for pod_port (SRV)"
        )
    return port


def _slots(value: Any) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SLOTS:
        return value
    raise error(f"{short(value)} is not a number of slots", f"give auto, or 1 to {MOST_SLOTS}")


def _user(value: Any) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _USER.fullmatch(text):
        raise error(f"{short(value)} is not a user", "give a user's name or number")
    return text


def _tls(value: Any) -> Any:
    return {"verify": "none"} if value is True else value


def _optional(value: Any) -> Any:
    return None if value is False else value


def _balance(value: Any) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else value
    if not isinstance(text, str) or not _BALANCE.fullmatch(text):
        raise error(
            f"{short(value)} is not a balance algorithm",
            "give leastconn, roundrobin, source, first, random, uri, hdr(NAME)…; others as a line "
            "`balance …` in extra_config",
        )
    return text


def _host(value: Any) -> str:
    try:
        return parse_host(value)
    except NotARoute as exc:
        raise error(str(exc), exc.remedy) from None


def _headers(value: Any) -> tuple[tuple[str, str | None], ...]:
    remedy = "write `Name: value`, or `Name: null` to remove it"
    if not isinstance(value, dict):
        raise error(f"{short(value)} is not a mapping", remedy)
    if len(value) > _MAX_HEADERS:
        raise error(f"more than {_MAX_HEADERS} headers", "use fewer headers")
    found: dict[str, tuple[str, str | None]] = {}
    for name, text in value.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise error(f"{short(name)} is not the name of a header", remedy)
        if name.lower() in found:
            raise error(f"{name} is given twice", "keep one of the two")
        if text is not None and not isinstance(text, str):
            raise error(f"{short(text)} is not a string", f"put the value of {name} in quotes")
        if text is not None and not (text.isascii() and text.isprintable()):
            raise error(
                f"the value of {name} has characters that are not printable ASCII", "leave them out"
            )
        if text is not None and len(text) > _MAX_HEADER_LENGTH:
            raise error(
                f"the value of {name} is too long", f"use at most {_MAX_HEADER_LENGTH} characters"
            )
        found[name.lower()] = name, text
    return tuple(found.values())


def _paths(value: Any) -> Any:
    return listed([value] if isinstance(value, dict) else value)


Headers = Annotated[tuple[tuple[str, str | None], ...], BeforeValidator(_headers)]
HostName = Annotated[str, BeforeValidator(_host)]
ServiceName = Annotated[
    str, matching(DNS_LABEL, "a DNS-1123 label", "use lower-case letters, digits and inner dashes")
]
Domain = Annotated[
    str, matching(_DNS_NAME, "a domain name", "write it as cluster.local, without a final dot")
]
AccountName = Annotated[
    str, matching(_ACCOUNT, "an account's name", "give a name as in /etc/passwd or /etc/group")
]
UserName = Annotated[str, BeforeValidator(_user)]
BindAddresses = Annotated[BindRange, BeforeValidator(_parsed(parse_bind_range))]
BindAddress = Annotated[Bind, BeforeValidator(_parsed(parse_bind))]
NetworkAddress = Annotated[Network, BeforeValidator(_parsed(parse_network))]
PoolRange = Annotated[AddressRange, BeforeValidator(_parsed(parse_address_range))]
NameserverAddress = Annotated[Nameserver, BeforeValidator(_parsed(parse_nameserver))]
HostAddress = Annotated[Address, BeforeValidator(_parsed(parse_address))]
NodeAddresses = dict[
    Annotated[str, matching(SERVICE_NAME, "a node's name", "use letters, digits and inner ._-")],
    HostAddress,
]
ServiceLines = Annotated[tuple[str, ...], _haproxy_lines(Owner.SERVICE)]
GlobalLines = Annotated[tuple[str, ...], _haproxy_lines(Owner.GLOBAL)]
DefaultsLines = Annotated[tuple[str, ...], _haproxy_lines(Owner.DEFAULTS)]
Words = Annotated[str, BeforeValidator(_haproxy_words)]


def _ip_only(bind: Bind | None) -> Bind | None:
    if bind is not None and bind.kind != "ip":
        raise error(f"{bind} is not an IP address with a port", "write 127.0.0.1:9484")
    return bind


_HTTPS_URL = re.compile(r"https://[A-Za-z0-9._:\[\]-]{1,253}(/[A-Za-z0-9._/-]{0,200})?")
_HTTP_URL = re.compile(r"http://[A-Za-z0-9._:\[\]-]{1,253}/?")
_LOG_TARGET = re.compile(rf"/dev/log|stdout|stderr|{SAFE_PATH.pattern}|[0-9.]+:[0-9]{{1,5}}")


class ApiDeclaration(Strict):
    """`cluster.api:`, the access to the Kubernetes API."""

    kubeconfig: SafePath | None = None
    context: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    server: (
        Annotated[
            str,
            matching(_HTTPS_URL, "the URL of an API server", "write it as https://192.0.2.10:6443"),
        ]
        | None
    ) = None
    ca_file: SafePath | None = None
    token_file: SafePath | None = None
    client_certificate: SafePath | None = None
    client_key: SafePath | None = None
    proxy_url: (
        Annotated[
            str,
            matching(_HTTP_URL, "the URL of an HTTP proxy", "write it as http://192.0.2.1:3128"),
        ]
        | None
    ) = None
    tls_server_name: Domain | None = None

    @model_validator(mode="after")
    def _is_one_way(self) -> ApiDeclaration:
        files = [
            name
            for name in ("ca_file", "token_file", "client_certificate", "client_key", "proxy_url",
                         "tls_server_name")
            if getattr(self, name) is not None
        ]  # fmt: skip
        if (self.kubeconfig is None) == (self.server is None):
            raise error(
                "either kubeconfig or server is needed",
                "give `kubeconfig: FILE`, or `server: https://…` with ca_file and token_file",
            )
        if self.kubeconfig is not None and files:
            raise error(
                f"{files[0]} has no meaning with kubeconfig", "leave it out: the kubeconfig has it"
            )
        if self.server is not None and self.context is not None:
            raise error("context has no meaning with server", "leave it out, or use kubeconfig")
        is_token = self.token_file is not None
        if self.server is not None and is_token == (self.client_certificate is not None):
            raise error(
                "either token_file or client_certificate is needed",
                "give the file of a ServiceAccount's token, or a certificate with its client_key",
            )
        if self.client_key is not None and self.client_certificate is None:
            raise error("client_key needs client_certificate", "give both files")
        return self

    def model(self) -> ApiSettings:
        return ApiSettings(**dict(self))


class ClusterDeclaration(Strict):
    """`cluster:`."""

    domain: Domain = "cluster.local"
    nameservers: Annotated[
        tuple[NameserverAddress, ...], BeforeValidator(listed), Field(max_length=8)
    ] = ()
    service_network: Annotated[
        tuple[NetworkAddress, ...], BeforeValidator(listed), Field(min_length=1, max_length=16)
    ] = (IPv4Network("10.0.0.0/24"),)
    pod_network: Annotated[
        tuple[NetworkAddress, ...], BeforeValidator(listed), Field(min_length=1, max_length=16)
    ] = (IPv4Network("10.1.0.0/16"),)
    nodes: NodeAddresses = Field(default_factory=dict)
    sudden_loss: Annotated[float, Field(gt=0, le=1)] = 0.5
    api: ApiDeclaration | None = None

    def model(self) -> Cluster:
        return Cluster(
            domain=self.domain.lower(),
            nameservers=self.nameservers,
            service_networks=self.service_network,
            pod_networks=self.pod_network,
            nodes=dict(sorted(self.nodes.items())),
            sudden_loss=self.sudden_loss,
            api=self.api.model() if self.api else None,
        )


class HaproxyDeclaration(Strict):
    """`haproxy:`."""

    binary: Annotated[str, Field(min_length=1)] = "haproxy"
    config_file: SafePath = "/etc/haproxy/haproxy.cfg"
    master_socket: SafePath = "/run/haproxy/master.sock"
    runtime_socket: SafePath = "/run/haproxy/admin.sock"
    reload_command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    supervise: StrictBool = False
    stats: Annotated[BindAddress | None, AfterValidator(_ip_only)] = Field(
        default_factory=lambda: on_loopback(8000)
    )
    user: AccountName | None = None
    group: AccountName | None = None
    log: (
        Annotated[
            str,
            matching(
                _LOG_TARGET, "a log target", "give /dev/log, stdout, stderr, a socket or ip:port"
            ),
        ]
        | None
    ) = "/dev/log"
    hard_stop_after: Annotated[float, _time(1, 7 * 86400)] = 3600.0
    most_old_workers: Annotated[int, Field(ge=1, le=1000)] = 10
    drift: Literal["restore", "adopt"] = "restore"
    take_over: Literal["ask", "always"] = "ask"
    check_timeout: Annotated[float, _time(1, 600)] = 30.0
    reload_timeout: Annotated[float, _time(1, 600)] = 30.0
    global_extra: GlobalLines = ()
    defaults_extra: DefaultsLines = ()
    templates: SafePath | None = None

    def model(self) -> Haproxy:
        return Haproxy(**dict(self))


class IntervalsDeclaration(Strict):
    """`intervals:`."""

    resolve: Annotated[float, _time(0.1, 3600)] = 1.0
    hold: Annotated[float, _time(0, 86400)] = 30.0
    rescan: Annotated[float, _time(1, 86400)] = 30.0
    debounce: Annotated[float, _time(0, 10)] = 0.2
    reload: Annotated[float, _time(0, 3600)] = 2.0
    removal: Annotated[float, _time(0, 3600)] = 5.0

    def model(self) -> Intervals:
        return Intervals(**dict(self))


class TrustDeclaration(Strict):
    """`trust:`."""

    users: Annotated[tuple[UserName, ...], BeforeValidator(listed), Field(max_length=100)] = ()


class UntrustedDeclaration(Strict):
    """`untrusted:`, the limits of files that are not trusted."""

    namespaces: (
        Annotated[tuple[ServiceName, ...], BeforeValidator(listed), Field(max_length=1000)] | None
    ) = None
    binds: (
        Annotated[tuple[BindAddresses, ...], BeforeValidator(listed), Field(max_length=1000)] | None
    ) = None
    hosts: (
        Annotated[tuple[HostName, ...], BeforeValidator(listed), Field(max_length=1000)] | None
    ) = None
    raw_lines: Literal["none", "safe"] = "none"

    def model(self) -> Untrusted:
        return Untrusted(**dict(self))


class AddressPoolDeclaration(Strict):
    """One of `load_balancer.pools:`."""

    addresses: Annotated[
        tuple[PoolRange, ...], BeforeValidator(listed), Field(min_length=1, max_length=1000)
    ]
    default: StrictBool = False
    namespaces: (
        Annotated[tuple[ServiceName, ...], BeforeValidator(listed), Field(max_length=1000)] | None
    ) = None

    def model(self, name: str) -> AddressPool:
        return AddressPool(
            name=name,
            ranges=self.addresses,
            is_default=self.default,
            namespaces=self.namespaces,
        )


PoolName = Annotated[
    str, matching(DNS_LABEL, "a pool's name", "use lower-case letters, digits and inner dashes")
]


class LoadBalancerDeclaration(Strict):
    """`load_balancer:`, for Services of type LoadBalancer."""

    class_name: Annotated[
        str,
        matching(
            _QUALIFIED_NAME, "a loadBalancerClass", "write a domain, a slash and a name, as "
            f"{DEFAULT_CLASS}",
        ),
        Field(alias="class"),
    ] = DEFAULT_CLASS  # fmt: skip
    default: StrictBool = False
    pools: Annotated[dict[PoolName, AddressPoolDeclaration], Field(max_length=100)] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _has_disjoint_pools(self) -> LoadBalancerDeclaration:
        if not self.pools:
            raise error(
                "there is no pool of addresses",
                "add pools: {public: {addresses: [198.51.100.2], default: true}}",
            )
        shared = shared_ranges(self.model().pools)
        if shared is not None:
            (one, first), (other, second) = shared
            which = f"pools {one} and {other}" if one != other else f"pool {one}"
            raise error(
                f"{which}: {first} and {second} overlap", "give each address to one pool, once"
            )
        return self

    def model(self) -> LoadBalancerSettings:
        return LoadBalancerSettings(
            class_name=self.class_name,
            is_default=self.default,
            pools=tuple(pool.model(name) for name, pool in sorted(self.pools.items())),
        )


class ApiAccessDeclaration(Strict):
    """`api_access:`, the Kubernetes API at an address of the frontend."""

    binds: Annotated[
        tuple[BindAddress, ...], BeforeValidator(listed), Field(min_length=1, max_length=16)
    ]
    allow: (
        Annotated[tuple[NetworkAddress, ...], BeforeValidator(listed), Field(max_length=1000)]
        | None
    ) = None
    nodes: NodeAddresses = Field(default_factory=dict)
    port: Annotated[int, BeforeValidator(_port_number)] = 6443

    def model(self) -> ApiAccessSettings:
        return ApiAccessSettings(
            binds=self.binds,
            allow=self.allow,
            nodes=dict(sorted(self.nodes.items())),
            port=self.port,
        )


class SettingsDeclaration(Strict):
    """The settings file, but for its services."""

    cluster: ClusterDeclaration = Field(default_factory=ClusterDeclaration)
    haproxy: HaproxyDeclaration = Field(default_factory=HaproxyDeclaration)
    state_directory: SafePath = "/var/lib/fc-frontend"
    listen: Annotated[BindAddress | None, AfterValidator(_ip_only)] = Field(
        default_factory=lambda: on_loopback(9484)
    )
    intervals: IntervalsDeclaration = Field(default_factory=IntervalsDeclaration)
    trust: TrustDeclaration = Field(default_factory=TrustDeclaration)
    untrusted: UntrustedDeclaration = Field(default_factory=UntrustedDeclaration)
    load_balancer: LoadBalancerDeclaration | None = None
    api_access: ApiAccessDeclaration | None = None

    @model_validator(mode="after")
    def _knows_api_servers(self) -> SettingsDeclaration:
        access = self.api_access
        if access is not None and not access.nodes and self.cluster.api is None:
            raise error(
                "api_access knows no API server",
                "set cluster.api, or api_access.nodes: {NAME: ADDRESS} of the control plane",
            )
        return self

    def model(self) -> Settings:
        """The settings as a value for all later stages."""
        return Settings(
            cluster=self.cluster.model(),
            haproxy=self.haproxy.model(),
            state_directory=self.state_directory,
            listen=self.listen,
            intervals=self.intervals.model(),
            trust=Trust(users=self.trust.users),
            untrusted=self.untrusted.model(),
            load_balancer=self.load_balancer.model() if self.load_balancer else None,
            api_access=self.api_access.model() if self.api_access else None,
        )


class TlsDeclaration(Strict):
    """`tls:` as a mapping; `true` means no verification, as the predecessor's sslBackend."""

    verify: Literal["required", "none"] = "required"
    ca_file: SafePath | None = None
    sni: Domain | None = None

    @model_validator(mode="after")
    def _verifiable(self) -> TlsDeclaration:
        if (self.verify == "required") != (self.ca_file is not None):
            raise error(
                f"verify: {self.verify} and {'no ' if self.ca_file is None else ''}ca_file",
                "give ca_file: /path/to/ca.pem to verify the pods' certificates, or verify: none",
            )
        return self

    def model(self) -> Tls:
        return Tls(ca_file=self.ca_file, sni=self.sni)


class HttpDeclaration(Strict):
    """`http:` of a frontend: where plain HTTP is redirected to https."""

    binds: Annotated[
        tuple[BindAddress, ...], BeforeValidator(listed), Field(min_length=1, max_length=256)
    ]
    redirect: Literal["https"] = "https"


class FrontendDeclaration(Strict):
    """One frontend."""

    binds: Annotated[
        tuple[BindAddress, ...], BeforeValidator(listed), Field(min_length=1, max_length=256)
    ]
    mode: Literal["http", "tcp"] = "http"
    tls: FrontendTlsDeclaration | None = None
    acme: AcmeDeclaration | None = None
    http: HttpDeclaration | None = None
    hsts: Annotated[float | None, _optional_time(1, 10 * 366 * 86400)] = None
    allow: (
        Annotated[tuple[NetworkAddress, ...], BeforeValidator(listed), Field(max_length=1000)]
        | None
    ) = None
    trusted_proxies: Annotated[
        tuple[NetworkAddress, ...], BeforeValidator(listed), Field(max_length=1000)
    ] = ()
    proxy_protocol_from: Annotated[
        tuple[NetworkAddress, ...], BeforeValidator(listed), Field(max_length=1000)
    ] = ()
    bind_options: Words = ""
    extra_config: ServiceLines = ()

    def complaints(self) -> list[tuple[str, str, str]]:
        """Field, message and remedy of what is wrong between the fields of this frontend."""
        is_tcp = self.mode == "tcp"
        given = {
            "tls": self.tls is not None,
            "acme": self.acme is not None,
            "http": self.http is not None,
            "hsts": self.hsts is not None,
            "trusted_proxies": bool(self.trusted_proxies),
        }
        found = [
            (field, f"{field} needs mode: http", "use mode: http, or leave it out")
            for field, is_given in given.items()
            if is_given and is_tcp
        ]
        if self.tls is not None and {"ssl", "crt", "crt-list"} & set(self.bind_options.split()):
            found.append(
                ("bind_options", "tls has the certificates already", "leave ssl and crt out")
            )
        return found

    def model(self, name: str, origin: Origin) -> FrontendSpec:
        """The frontend as a value for all later stages; only after `complaints` found nothing."""
        return FrontendSpec(
            name=name,
            binds=self.binds,
            mode=self.mode,
            tls=self.tls.model() if self.tls else None,
            acme=self.acme.challenges if self.acme else None,
            redirect_binds=self.http.binds if self.http else (),
            hsts=self.hsts,
            allow=self.allow,
            trusted_proxies=self.trusted_proxies,
            proxy_protocol_from=self.proxy_protocol_from,
            bind_options=self.bind_options,
            extra_config=self.extra_config,
            origin=origin,
        )


class RateLimitDeclaration(Strict):
    """`rate_limit:` of a service: requests of one client address in a period."""

    requests: Annotated[int, Field(ge=1, le=1_000_000)]
    period: Annotated[float, _time(1, 3600)] = 10.0

    def model(self) -> RateLimit:
        return RateLimit(self.requests, self.period)


class ServiceDeclaration(Strict):
    """One service."""

    service: ServiceName | None = None
    namespace: ServiceName = "default"
    binds: (
        Annotated[tuple[BindAddress, ...], BeforeValidator(listed), Field(max_length=256)] | None
    ) = None
    frontend: (
        Annotated[
            str, matching(SERVICE_NAME, "a frontend's name", "give a name below `frontends:`")
        ]
        | None
    ) = None
    hosts: Annotated[tuple[HostName, ...], BeforeValidator(listed)] = ()
    paths: Annotated[tuple[RoutePath, ...], BeforeValidator(_paths)] = ()
    sni: Annotated[tuple[HostName, ...], BeforeValidator(listed)] = ()
    mode: Literal["tcp", "http"] | None = None
    pod_port: Annotated[int | str, BeforeValidator(_port)] | None = None
    service_port: Annotated[int, BeforeValidator(_port_number)] | None = None
    lb_service_port: Annotated[int, BeforeValidator(_port_number)] | None = None
    nodes: NodeAddresses = Field(default_factory=dict)
    discovery: Literal["auto", "api", "wildcard", "headless", "srv"] = "auto"
    slots: Annotated[int | None, BeforeValidator(_slots)] = None
    fallback: Literal["none", "service"] = "none"
    balance: Annotated[str, BeforeValidator(_balance)] = "leastconn"
    check: StrictBool = True
    tls: Annotated[TlsDeclaration | None, BeforeValidator(_tls), BeforeValidator(_optional)] = None
    protocol: Literal["http1", "h2", "h2c"] | None = None
    proxy_protocol: Literal["v1", "v2"] | None = None
    rate_limit: RateLimitDeclaration | None = None
    allow: (
        Annotated[tuple[NetworkAddress, ...], BeforeValidator(listed), Field(max_length=1000)]
        | None
    ) = None
    basic_auth: BasicAuthField = None
    sticky: StickyField = None
    redirects: RedirectsField = ()
    rewrite: RewriteField = ()
    unavailable_page: SafePath | None = None
    session_affinity: Annotated[float | None, _optional_time(1, 86400)] = None
    timeout: Annotated[float | None, _optional_time(0.001, 7 * 86400)] = None
    request_headers: Headers = ()
    response_headers: Headers = ()
    extra_config: ServiceLines = ()
    server_options: Words = ""
    bind_options: Words = ""

    def ports(self) -> dict[Target, int | str]:
        """The port fields that were given."""
        given = {
            Target.POD: self.pod_port,
            Target.SERVICE: self.service_port,
            Target.NODE: self.lb_service_port,
        }
        return {target: port for target, port in given.items() if port is not None}

    @property
    def effective_mode(self) -> Literal["tcp", "http"]:
        """The mode as given; by default http for routes by host and path, else tcp."""
        if self.mode is not None:
            return self.mode
        return "http" if self.frontend is not None and not self.sni else "tcp"

    def _route_complaints(self) -> list[tuple[str, str, str]]:
        """What is wrong between the fields about routes."""
        routed = {"hosts": self.hosts, "paths": self.paths, "sni": self.sni}
        if self.frontend is None:
            return [
                (field, f"{field} needs a frontend", "add frontend: NAME")
                for field, given in routed.items()
                if given
            ]
        own = {"binds": self.binds is not None, "bind_options": bool(self.bind_options)}
        found = [
            (field, f"a service of frontend {self.frontend} has no {field}", "leave it out")
            for field, is_given in own.items()
            if is_given
        ]
        if self.sni and (self.hosts or self.paths):
            found.append(
                (
                    "sni",
                    "sni passes TLS through: hosts and paths are not visible then",
                    "keep sni, or hosts and paths",
                )
            )
        if self.sni and self.mode == "http":
            found.append(("mode", "sni passes TLS through, and needs mode: tcp", "leave it out"))
        if self.mode == "tcp" and not self.sni:
            found.append(("mode", "mode: tcp on a frontend needs sni", "add sni, or leave it out"))
        if len(self.hosts or ("",)) * len(self.paths or ("",)) > MAX_ROUTES:
            found.append(("paths", f"more than {MAX_ROUTES} routes", "use fewer hosts or paths"))
        return found

    def complaints(self, name: str) -> list[tuple[str, str, str]]:
        """Field, message and remedy of what is wrong between the fields of this service."""
        if found := self._route_complaints():
            return found
        ports = self.ports()
        if len(ports) != 1:
            given = " and ".join(ports)
            return [
                (
                    list(ports)[-1] if ports else "",
                    f"set one of pod_port, service_port and lb_service_port, not {given}"
                    if ports
                    else "set one of pod_port, service_port and lb_service_port",
                    "keep pod_port to reach the pods directly" if ports else "add pod_port: 443",
                )
            ]
        target, port = next(iter(ports.items()))
        named = isinstance(port, str)
        rules = (
            (
                self.service is None and not DNS_LABEL.fullmatch(name),
                "",
                f"{name!r} cannot be the name of a Kubernetes Service",
                "add service: NAME, in lower-case letters, digits and inner dashes",
            ),
            (
                self.binds is None and self.frontend is None and named,
                "binds",
                "a named port gives no default for binds",
                'add binds: ["127.0.0.1:8080"]',
            ),
            (
                bool(self.nodes) and target is not Target.NODE,
                "nodes",
                f"nodes have no meaning with {target}",
                "leave them out, or use lb_service_port",
            ),
            (
                self.binds == (),
                "binds",
                "there is no bind",
                "leave binds out or give an address",
            ),
            (
                self.discovery not in ("auto", "api" if target is Target.SERVICE else "auto")
                and target is not Target.POD,
                "discovery",
                f"has no meaning with {target}",
                "leave it out, or use pod_port",
            ),
            (
                named and self.discovery in ("wildcard", "headless"),
                "discovery",
                f"{self.discovery} cannot find the number of the port named {port!r}",
                "use discovery: srv or auto, or give the port's number",
            ),
            (
                target is Target.POD and not named and self.discovery == "srv",
                "discovery",
                "srv needs the name of a port",
                "give pod_port the port's name as in the Service's spec.ports",
            ),
            (
                self.fallback == "service" and (target is not Target.POD or named),
                "fallback",
                "service needs a pod_port that is a number",
                "use fallback: none",
            ),
            (
                self.effective_mode == "tcp" and self.balance.startswith(_HTTP_BALANCE),
                "balance",
                f"{self.balance} needs mode: http",
                "use mode: http, or balance: leastconn",
            ),
            (
                self.session_affinity is not None and self.rate_limit is not None,
                "session_affinity",
                "session_affinity and rate_limit each need the section's stick-table",
                "keep one of the two",
            ),
            (
                self.protocol == "h2" and self.tls is None,
                "protocol",
                "h2 needs tls",
                "add tls, or use h2c for HTTP/2 without TLS",
            ),
            (
                self.protocol == "h2c" and self.tls is not None,
                "protocol",
                "h2c is HTTP/2 without TLS",
                "use h2, or leave tls out",
            ),
            *(
                (
                    self.effective_mode == "tcp" and bool(given),
                    field,
                    f"{field} needs mode: http",
                    "use mode: http, or leave it out",
                )
                for field, given in (
                    ("protocol", self.protocol),
                    ("rate_limit", self.rate_limit),
                    ("basic_auth", self.basic_auth),
                    ("sticky", self.sticky),
                    ("redirects", self.redirects),
                    ("rewrite", self.rewrite),
                    ("unavailable_page", self.unavailable_page),
                    ("request_headers", self.request_headers),
                    ("response_headers", self.response_headers),
                )
            ),
        )
        return [
            *((field, message, remedy) for applies, field, message, remedy in rules if applies),
            *site_complaints(self.basic_auth, self.redirects, self.rewrite),
        ]

    def model(self, name: str, origin: Origin) -> ServiceSpec:
        """The service as a value for all later stages; only after `complaints` found nothing."""
        target, port = next(iter(self.ports().items()))
        return ServiceSpec(
            name=name,
            service=self.service or name,
            namespace=self.namespace,
            binds=() if self.frontend else self.binds or (on_loopback(int(port)),),
            mode=self.effective_mode,
            target=target,
            port=port,
            discovery=Discovery(self.discovery),
            slots=self.slots,
            fallback=self.fallback == "service",
            balance=self.balance,
            check=self.check,
            tls=self.tls.model() if self.tls else None,
            protocol=self.protocol,
            proxy_protocol=self.proxy_protocol,
            rate_limit=self.rate_limit.model() if self.rate_limit else None,
            allow=self.allow,
            basic_auth=self.basic_auth.model() if self.basic_auth else None,
            sticky=self.sticky.model() if self.sticky else None,
            redirects=tuple(each.model() for each in self.redirects),
            rewrite=tuple(each.model() for each in self.rewrite),
            unavailable_page=self.unavailable_page,
            session_affinity=self.session_affinity,
            timeout=self.timeout,
            request_headers=self.request_headers,
            response_headers=self.response_headers,
            extra_config=self.extra_config,
            server_options=self.server_options,
            bind_options=self.bind_options,
            frontend=self.frontend,
            routes=self._routes(),
            nodes=tuple(sorted(self.nodes.items())),
            origin=origin,
        )

    def _routes(self) -> tuple[RouteEntry, ...]:
        if self.frontend is None:
            return ()
        if self.sni:
            return sni_routes(self.frontend, self.sni)
        return http_routes(self.frontend, self.hosts, self.paths)
