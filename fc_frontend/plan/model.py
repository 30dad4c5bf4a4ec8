"""The values of each stage of fc-frontend.

    Settings, ServiceSpec, Fragment    the declared configuration
    Answer                             the discovered servers of one service
    ServicePlan, Plan                  the planned configuration of HAProxy

All are frozen: a stage takes values and returns new ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal, TypeVar

from fc_frontend.errors import Cause, Problem
from fc_frontend.model.load_balancers import LoadBalancerSettings
from fc_frontend.plan.sites import BasicAuth, Redirect, Rewrite, Sticky
from fc_frontend.plan.slots import MOST as MAX_SLOTS
from fc_frontend.syntax.routes import Match, RouteEntry

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Family = Literal["ipv4", "ipv6"]
Mode = Literal["tcp", "http"]
S = TypeVar("S")


FREE_ADDRESS = "127.0.0.255"
"""The address of an empty slot, if the runtime API sets the addresses."""


STANDBY_SUFFIX = ".standby"


def standby_name(service: str) -> str:
    """Return the name of the backend used while the slots of `service` are not maintained."""
    return f"{service}{STANDBY_SUFFIX}"


WILDCARD_HOSTS = ("*", "::")
"""Hosts of binds that stand for all addresses."""


class Kind(StrEnum):
    """The source of a service's servers."""

    WILDCARD = "wildcard"
    """A/AAAA of `*.svc.ns.svc.domain`: the pods, on CoreDNS before 1.9."""
    HEADLESS = "headless"
    """A/AAAA of `svc.ns.svc.domain`: the ready pods of a service without cluster IP."""
    SRV = "srv"
    """SRV of `_port._proto.svc.ns.svc.domain`: pods with the number of a named port."""
    SERVICE = "service"
    """A/AAAA of `svc.ns.svc.domain`: the cluster IP, behind which kube-proxy balances."""
    NODES = "nodes"
    """The addresses of `cluster.nodes`: no DNS."""
    API = "api"
    """EndpointSlices of the Kubernetes API: the pods of any Service, set by the daemon."""

    @property
    def names_pods(self) -> bool:
        """Whether cluster DNS lists the ready pods under the service's own name."""
        return self in (Kind.HEADLESS, Kind.SRV)

    @property
    def finds_ports(self) -> bool:
        """Whether cluster DNS returns a port number with each pod."""
        return self is Kind.SRV

    def with_ports_found(self, are_found: bool) -> Kind:
        """Return the kind for pods with or without port numbers in DNS."""
        if are_found:
            return Kind.SRV
        return Kind.HEADLESS if self.finds_ports else self


class Discovery(StrEnum):
    """The declared discovery method; `auto` uses the API if it is configured, else DNS decides."""

    AUTO = "auto"
    API = "api"
    WILDCARD = "wildcard"
    HEADLESS = "headless"
    SRV = "srv"


class Target(StrEnum):
    """The target of a service's port: the port field that was declared."""

    POD = "pod_port"
    SERVICE = "service_port"
    NODE = "lb_service_port"


class Transport(StrEnum):
    """The transport of DNS queries."""

    UDP = "udp"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class Bind:
    """An address that a service listens on, in HAProxy's notation (manual 5.1, `bind`).

    `kind` is "ip", "unix" or "abns".  For "ip", `host` is a canonical address or `*`.
    """

    kind: Literal["ip", "unix", "abns"]
    host: str
    port: int | None = None

    def __str__(self) -> str:
        if self.kind != "ip":
            return f"{self.kind}@{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local_host(self) -> str:
        """The address at which this host itself can connect to it."""
        return {"*": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    def is_at(self, address: str, port: int) -> bool:
        """Return whether connections to a canonical address and port certainly reach this bind."""
        return (self.kind, self.host, self.port) == ("ip", address, port)

    def overlaps(self, other: Bind) -> bool:
        """Return whether a connection can match both: the same address, or a wildcard over it.

        `[::]` accepts IPv4 as well on Linux (net.ipv6.bindv6only=0, `v6only` in manual 5.1).
        """
        if self == other:
            return True
        if self.kind != "ip" or other.kind != "ip" or self.port != other.port:
            return False
        return self._covers(other) or other._covers(self)

    def _covers(self, other: Bind) -> bool:
        return self.host == "::" or (self.host == "*" and ":" not in other.host)


@dataclass(frozen=True, slots=True)
class Nameserver:
    """A cluster DNS server and the transports to use for it."""

    address: Address
    port: int = 53
    transports: tuple[Transport, ...] = (Transport.UDP, Transport.TCP)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        scheme = f"{self.transports[0]}://" if len(self.transports) == 1 else ""
        return f"{scheme}{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Access to the Kubernetes API: by `kubeconfig`, or by `server` and files."""

    kubeconfig: str | None = None
    context: str | None = None
    server: str | None = None
    ca_file: str | None = None
    token_file: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    proxy_url: str | None = None
    tls_server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The cluster behind this frontend.  With `api`, pods are discovered through EndpointSlices."""

    domain: str = "cluster.local"
    nameservers: tuple[Nameserver, ...] = ()
    service_networks: tuple[Network, ...] = ()
    pod_networks: tuple[Network, ...] = ()
    nodes: Mapping[str, Address] = field(default_factory=dict)
    sudden_loss: float = 0.5
    api: ApiSettings | None = None

    def families(self, networks: tuple[Network, ...]) -> tuple[Family, ...]:
        """Return the address families of `networks`, in their order."""
        order = [("ipv4" if network.version == 4 else "ipv6") for network in networks]
        return tuple(dict.fromkeys(order))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Haproxy:
    """How to access HAProxy, and the settings of its global section.  Times are in seconds."""

    binary: str = "haproxy"
    config_file: str = "/etc/haproxy/haproxy.cfg"
    master_socket: str = "/run/haproxy/master.sock"
    runtime_socket: str = "/run/haproxy/admin.sock"
    reload_command: tuple[str, ...] | None = None
    supervise: bool = False
    stats: Bind | None = None
    user: str | None = None
    group: str | None = None
    log: str | None = "/dev/log"
    hard_stop_after: float = 3600.0
    most_old_workers: int = 10
    drift: Literal["restore", "adopt"] = "restore"
    take_over: Literal["ask", "always"] = "ask"
    check_timeout: float = 30.0
    reload_timeout: float = 30.0
    global_extra: tuple[str, ...] = ()
    defaults_extra: tuple[str, ...] = ()
    templates: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Intervals and delays, in seconds."""

    resolve: float = 1.0
    hold: float = 30.0
    rescan: float = 30.0
    debounce: float = 0.2
    reload: float = 2.0
    removal: float = 5.0

    @property
    def emptied(self) -> float:
        """Seconds for which a services.d that is suddenly empty is ignored."""
        return self.removal * 120


@dataclass(frozen=True, slots=True)
class BindRange:
    """IP addresses and ports that binds may use.  `network` is None for all, wildcards included."""

    network: Network | None
    first_port: int
    last_port: int

    def __str__(self) -> str:
        host = "*" if self.network is None else str(self.network)
        host = f"[{host}]" if ":" in host else host
        more = f"-{self.last_port}" if self.last_port != self.first_port else ""
        return f"{host}:{self.first_port}{more}"

    def covers(self, bind: Bind) -> bool:
        """Return whether `bind` is an IP bind within these addresses and ports."""
        if bind.port is None or not self.first_port <= bind.port <= self.last_port:
            return False
        if self.network is None:
            return True
        return bind.host not in WILDCARD_HOSTS and ip_address(bind.host) in self.network


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Names or IDs of users whose files are trusted, besides root and the daemon's user."""

    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Untrusted:
    """The limits for untrusted files.  None means no limit."""

    namespaces: tuple[str, ...] | None = None
    binds: tuple[BindRange, ...] | None = None
    hosts: tuple[str, ...] | None = None
    raw_lines: Literal["none", "safe"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAccessSettings:
    """Access to the Kubernetes API through the frontend, for clients in `allow`; None means all.

    The API servers are `nodes`, by name, at `port`; without nodes, the endpoints that the API
    lists.
    """

    binds: tuple[Bind, ...]
    allow: tuple[Network, ...] | None = None
    nodes: Mapping[str, Address] = field(default_factory=dict)
    port: int = 6443


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings apart from services."""

    cluster: Cluster = field(default_factory=Cluster)
    haproxy: Haproxy = field(default_factory=Haproxy)
    state_directory: str = "/var/lib/fc-frontend"
    listen: Bind | None = None
    intervals: Intervals = field(default_factory=Intervals)
    trust: Trust = field(default_factory=Trust)
    untrusted: Untrusted = field(default_factory=Untrusted)
    load_balancer: LoadBalancerSettings | None = None
    api_access: ApiAccessSettings | None = None

    @property
    def server_state_file(self) -> str:
        """The file from which HAProxy reads the last addresses of its servers at each start."""
        return f"{self.state_directory}/server-state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS to the pods.  Their certificates are verified if there is a `ca_file`."""

    ca_file: str | None = None
    sni: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The place of a declaration.  `line` and `column` start at 1."""

    file: str
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True, slots=True)
class CertificateSource:
    """The path of certificates: a file, directory or pattern; with a `key`, a single file."""

    path: str
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendTls:
    """TLS that a frontend terminates.

    With `client_ca`, clients need a certificate issued by it, unless that is optional.  Without a
    `default`, handshakes for hosts without a certificate fail.  With `passthrough`, services may
    have routes by SNI as well, and receive TLS unchanged.
    """

    certificates: tuple[CertificateSource, ...]
    default: CertificateSource | None = None
    client_ca: str | None = None
    is_client_optional: bool = False
    profile: Literal["intermediate", "modern"] = "intermediate"
    passthrough: bool = False


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The number of requests per client address in `period` seconds; further ones receive 429."""

    requests: int
    period: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendSpec:
    """Binds that several services share, by host and path, or by SNI with `mode` tcp.

    ACME challenges of all hosts are sent to `acme`.  Requests at `redirect_binds` are redirected to
    https.  `hsts` is in seconds.  Clients outside of `allow` receive 403; None means no limit.
    Forwarded headers are accepted from `trusted_proxies` only.  Connections from
    `proxy_protocol_from` begin with a PROXY header.
    """

    name: str
    binds: tuple[Bind, ...]
    mode: Mode = "http"
    tls: FrontendTls | None = None
    acme: Bind | None = None
    redirect_binds: tuple[Bind, ...] = ()
    hsts: float | None = None
    allow: tuple[Network, ...] | None = None
    trusted_proxies: tuple[Network, ...] = ()
    proxy_protocol_from: tuple[Network, ...] = ()
    bind_options: str = ""
    extra_config: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, compare=False)

    @property
    def match(self) -> Match:
        """The match type of routes, except for exact paths."""
        return Match.SNI if self.mode == "tcp" else Match.PREFIX

    @property
    def passes_through(self) -> bool:
        """Whether TLS is terminated for some services and passed through for others."""
        return self.tls is not None and self.tls.passthrough

    @property
    def all_binds(self) -> tuple[Bind, ...]:
        """All binds of the frontend."""
        return self.binds + self.redirect_binds


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A declared service.

    `name` is that of the HAProxy proxy, `service` that of the Kubernetes Service.  With a
    `frontend`, it has `routes` there, and no binds of its own.  `slots` is None for `auto`, which
    allocates at most `max_slots`.  Clients outside of `allow` are rejected; None means no limit.  A
    client keeps its pod for `session_affinity` seconds after its last connection; None disables
    this.  `timeout`, in seconds, applies to the response of a pod.  Headers are set, or removed if
    the value is None.  `unavailable_page` is an HTML file for 503.  `nodes` serve its
    `lb_service_port` instead of the cluster's nodes.  `origin` is excluded from comparisons: moving
    a declaration to another file changes nothing.
    """

    name: str
    service: str
    namespace: str = "default"
    binds: tuple[Bind, ...]
    mode: Mode = "tcp"
    target: Target = Target.POD
    port: int | str
    discovery: Discovery = Discovery.AUTO
    slots: int | None = None
    max_slots: int = MAX_SLOTS
    fallback: bool = False
    balance: str = "leastconn"
    check: bool = True
    tls: Tls | None = None
    protocol: Literal["http1", "h2", "h2c"] | None = None
    proxy_protocol: Literal["v1", "v2"] | None = None
    rate_limit: RateLimit | None = None
    allow: tuple[Network, ...] | None = None
    basic_auth: BasicAuth | None = None
    sticky: Sticky | None = None
    redirects: tuple[Redirect, ...] = ()
    rewrite: tuple[Rewrite, ...] = ()
    unavailable_page: str | None = None
    session_affinity: float | None = None
    timeout: float | None = None
    request_headers: tuple[tuple[str, str | None], ...] = ()
    response_headers: tuple[tuple[str, str | None], ...] = ()
    extra_config: tuple[str, ...] = ()
    server_options: str = ""
    bind_options: str = ""
    frontend: str | None = None
    routes: tuple[RouteEntry, ...] = ()
    nodes: tuple[tuple[str, Address], ...] = ()
    origin: Origin | None = field(default=None, compare=False)

    @property
    def places(self) -> tuple[str, ...]:
        """Its binds, or its routes with their frontend, for display."""
        return tuple(map(str, self.binds)) + tuple(map(str, self.routes))


def nodes_of(spec: ServiceSpec, cluster: Cluster) -> Mapping[str, Address]:
    """Return the nodes for `lb_service_port` of `spec`, by name: its own, else the cluster's."""
    return dict(spec.nodes) if spec.nodes else cluster.nodes


@dataclass(frozen=True, slots=True)
class Fragment:
    """A raw part of the HAProxy configuration: `name` is the name of its file without `.cfg`."""

    name: str
    text: str
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """A pod, cluster IP or node that receives traffic: a canonical address and a port.

    `name` is the target of its SRV record, else empty.
    """

    address: str
    port: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Standby:
    """The standby of a service, used while the daemon that fills its slots is not running.

    `address` is a cluster IP; None for a headless Service, whose `name` cluster DNS resolves.
    """

    name: str
    port: int
    address: str | None = None


class Freshness(StrEnum):
    """How current an answer is."""

    FRESH = "fresh"
    """From the last query of cluster DNS, or from an open watch of the API."""
    STALE = "stale"
    """The last good answer; later queries failed."""
    UNKNOWN = "unknown"
    """There was no query, or never a good answer."""


class LookupLimit(StrEnum):
    """The limits of a service's lookups in a sweep."""

    QUERIES = "queries"
    SECONDS = "seconds"
    RECORDS = "records"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The servers discovered for a service, and the reason for its kind.

    `rejected` are addresses outside the pod and service networks: they are reported, never used.
    `error` is the last error of DNS, `failure` its cause; `remedy` is for `cause`.  `slots` is the
    number of slots that the running configuration has for it, 0 if unknown.  `is_cut` means that
    there are more records than HAProxy can receive by DNS; `by_runtime` that the running
    configuration has no resolver for it.  With `lost_at`, on the monotonic clock, DNS lists none of
    `endpoints` any more, or suddenly few, and this is ignored for now.  `exceeded` is the limit
    that its lookups exceeded: then the last good answer is kept.  Only the API reports `draining`
    endpoints, which complete their connections, `is_h2c`, and the `standby`.
    """

    kind: Kind
    reason: str
    endpoints: tuple[Endpoint, ...] = ()
    freshness: Freshness = Freshness.UNKNOWN
    rejected: tuple[str, ...] = ()
    error: str | None = None
    failure: Cause | None = None
    remedy: str = ""
    cause: Cause | None = None
    slots: int = 0
    is_cut: bool = False
    by_runtime: bool = False
    lost_at: float | None = None
    exceeded: LookupLimit | None = None
    draining: tuple[Endpoint, ...] = ()
    is_h2c: bool = False
    standby: Standby | None = None


Resolution = Mapping[str, Answer]
"""Answers by service name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """The planned configuration of a service in HAProxy.

    `query` is the DNS name that HAProxy resolves, None for nodes.  `slots` is the number of servers
    in the template.  `fallback_query` resolves to the cluster IP that serves as backup. With
    `by_runtime`, the servers' addresses are set through the runtime API, and `draining` endpoints
    keep their slots.  `standby` serves while the slots are not maintained.  With `is_h2c`, servers
    use HTTP/2 without TLS.
    """

    spec: ServiceSpec
    kind: Kind
    reason: str
    query: str | None
    slots: int
    prefer: Family
    endpoints: tuple[Endpoint, ...] = ()
    fallback_query: str | None = None
    by_runtime: bool = False
    draining: tuple[Endpoint, ...] = ()
    is_h2c: bool = False
    standby: Standby | None = None

    @property
    def standby_name(self) -> str | None:
        """The name of the backend of its standby; None without one."""
        return standby_name(self.spec.name) if self.standby else None

    @property
    def has_pods(self) -> bool:
        """Whether its servers are pods, whose number changes."""
        return self.kind not in (Kind.SERVICE, Kind.NODES)


def by_name(services: Sequence[S], names: Iterable[str], name_of: Callable[[S], str]) -> list[S]:
    """Return those of `services`, which are sorted by name, that have one of `names`, in order.

    An event affects one of 1,000 services: a scan of all of them took a third of its time.
    """
    found = []
    for name in sorted(names):
        at = bisect_left(services, name, key=name_of)
        if at < len(services) and name_of(services[at]) == name:
            found.append(services[at])
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The planned configuration of HAProxy, and the problems to report.

    `services`, `fragments` and `frontends` are sorted by name.
    """

    settings: Settings
    services: tuple[ServicePlan, ...]
    fragments: tuple[Fragment, ...] = ()
    frontends: tuple[FrontendSpec, ...] = ()
    problems: tuple[Problem, ...] = ()

    def named(self, names: Iterable[str]) -> list[ServicePlan]:
        """Return the services with these names, sorted by name."""
        return by_name(self.services, names, lambda service: service.spec.name)

    @property
    def slot_count(self) -> int:
        """The number of servers that HAProxy has for the declared services."""
        return sum(
            service.slots
            + bool(service.fallback_query)
            + (0 if service.standby is None else 1 if service.standby.address else service.slots)
            for service in self.services
        )
