"""The schema of the settings file, except for services and frontends; see `schema`."""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    model_validator,
)

from fc_frontend.config.fields import (
    DNS_LABEL,
    AccountName,
    BindAddress,
    BindAddresses,
    DefaultsLines,
    Domain,
    GlobalLines,
    HostName,
    NameserverAddress,
    NetworkAddress,
    NodeAddresses,
    PoolRange,
    PortNumber,
    SafePath,
    ServiceName,
    Strict,
    UserName,
    error,
    listed,
    matching,
    seconds,
)
from fc_frontend.config.loopback import on_loopback
from fc_frontend.model.load_balancers import (
    DEFAULT_CLASS,
    AddressPool,
    LoadBalancerSettings,
)
from fc_frontend.plan.address_ranges import shared_ranges
from fc_frontend.plan.addresses import (
    SAFE_PATH,
)
from fc_frontend.plan.model import (
    ApiAccessSettings,
    ApiSettings,
    Bind,
    Cluster,
    Haproxy,
    Intervals,
    Settings,
    Trust,
    Untrusted,
)

_QUALIFIED_NAME = re.compile(
    r"(?=.{1,253}/)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)


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
    hard_stop_after: Annotated[float, seconds(1, 7 * 86400)] = 3600.0
    most_old_workers: Annotated[int, Field(ge=1, le=1000)] = 10
    drift: Literal["restore", "adopt"] = "restore"
    take_over: Literal["ask", "always"] = "ask"
    check_timeout: Annotated[float, seconds(1, 600)] = 30.0
    reload_timeout: Annotated[float, seconds(1, 600)] = 30.0
    global_extra: GlobalLines = ()
    defaults_extra: DefaultsLines = ()
    templates: SafePath | None = None

    def model(self) -> Haproxy:
        return Haproxy(**dict(self))


class IntervalsDeclaration(Strict):
    """`intervals:`."""

    resolve: Annotated[float, seconds(0.1, 3600)] = 1.0
    hold: Annotated[float, seconds(0, 86400)] = 30.0
    rescan: Annotated[float, seconds(1, 86400)] = 30.0
    debounce: Annotated[float, seconds(0, 10)] = 0.2
    reload: Annotated[float, seconds(0, 3600)] = 2.0
    removal: Annotated[float, seconds(0, 3600)] = 5.0

    def model(self) -> Intervals:
        return Intervals(**dict(self))


class TrustDeclaration(Strict):
    """`trust:`."""

    users: Annotated[tuple[UserName, ...], BeforeValidator(listed), Field(max_length=100)] = ()


class UntrustedDeclaration(Strict):
    """`untrusted:`, the limits for untrusted files."""

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
    port: PortNumber = 6443

    def model(self) -> ApiAccessSettings:
        return ApiAccessSettings(
            binds=self.binds,
            allow=self.allow,
            nodes=dict(sorted(self.nodes.items())),
            port=self.port,
        )


class SettingsDeclaration(Strict):
    """The settings file, except for its services and frontends."""

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
        """Return the settings for all later stages."""
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
