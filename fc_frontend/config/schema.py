"""Declarations of services and frontends: turn operators' input into frozen dataclasses.

`settings`, `sites` and `tls` contain the other declarations, `fields` the value types of all of
them.  Pydantic is used only in these modules.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    model_validator,
)

from fc_frontend.config.fields import (
    DNS_LABEL,
    SERVICE_NAME,
    Balance,
    BindAddress,
    Domain,
    Headers,
    HostName,
    NetworkAddress,
    NodeAddresses,
    Port,
    PortNumber,
    RoutePaths,
    SafePath,
    ServiceLines,
    ServiceName,
    Slots,
    Strict,
    Words,
    error,
    listed,
    matching,
    optional_seconds,
    seconds,
    switched_off,
)
from fc_frontend.config.loopback import on_loopback
from fc_frontend.config.sites import (
    BasicAuthField,
    RedirectsField,
    RewriteField,
    StickyField,
    site_complaints,
)
from fc_frontend.config.tls import AcmeDeclaration, FrontendTlsDeclaration
from fc_frontend.plan.model import (
    Discovery,
    FrontendSpec,
    Origin,
    RateLimit,
    ServiceSpec,
    Target,
    Tls,
)
from fc_frontend.syntax.routes import (
    RouteEntry,
    http_routes,
    sni_routes,
)

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
"""The predecessor's names of service fields, and the present names."""
MAX_ROUTES = 10_000
"""Per service: each route is an entry in an HAProxy map."""
_HTTP_BALANCE = ("uri", "url_param", "hdr(")


def _tls(value: Any) -> Any:
    return {"verify": "none"} if value is True else value


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
    hsts: Annotated[float | None, optional_seconds(1, 10 * 366 * 86400)] = None
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
        """Return field, message and remedy of each conflict between this frontend's fields."""
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
        """Return the frontend for all later stages; valid only if `complaints` is empty."""
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
    period: Annotated[float, seconds(1, 3600)] = 10.0

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
    paths: RoutePaths = ()
    sni: Annotated[tuple[HostName, ...], BeforeValidator(listed)] = ()
    mode: Literal["tcp", "http"] | None = None
    pod_port: Port | None = None
    service_port: PortNumber | None = None
    lb_service_port: PortNumber | None = None
    nodes: NodeAddresses = Field(default_factory=dict)
    discovery: Literal["auto", "api", "wildcard", "headless", "srv"] = "auto"
    slots: Slots = None
    fallback: Literal["none", "service"] = "none"
    balance: Balance = "leastconn"
    check: StrictBool = True
    tls: Annotated[TlsDeclaration | None, BeforeValidator(_tls), BeforeValidator(switched_off)] = (
        None
    )
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
    session_affinity: Annotated[float | None, optional_seconds(1, 86400)] = None
    timeout: Annotated[float | None, optional_seconds(0.001, 7 * 86400)] = None
    request_headers: Headers = ()
    response_headers: Headers = ()
    extra_config: ServiceLines = ()
    server_options: Words = ""
    bind_options: Words = ""

    def ports(self) -> dict[Target, int | str]:
        """Return the port fields that are set."""
        given = {
            Target.POD: self.pod_port,
            Target.SERVICE: self.service_port,
            Target.NODE: self.lb_service_port,
        }
        return {target: port for target, port in given.items() if port is not None}

    @property
    def effective_mode(self) -> Literal["tcp", "http"]:
        """The configured mode; by default http for routes by host and path, else tcp."""
        if self.mode is not None:
            return self.mode
        return "http" if self.frontend is not None and not self.sni else "tcp"

    def _route_complaints(self) -> list[tuple[str, str, str]]:
        """Return the conflicts between the fields for routes."""
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
        """Return field, message and remedy of each conflict between this service's fields."""
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
        """Return the service for all later stages; valid only if `complaints` is empty."""
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
