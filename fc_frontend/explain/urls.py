"""Follow a URL to the frontend that listens on its port, the route, and the service."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from fc_frontend.certificates.served import Served
from fc_frontend.errors import Unavailable
from fc_frontend.explain.collect import declared
from fc_frontend.model.units import UnitKind
from fc_frontend.plan.model import FrontendSpec
from fc_frontend.render.config import Config
from fc_frontend.syntax.routes import (
    AMBIGUOUS_PATH,
    Match,
    NotARoute,
    RouteEntry,
    is_ambiguous,
    map_entries,
    parse_host,
    route_of,
)

_ACME = "/.well-known/acme-challenge/"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class UrlRoute:
    """The route of a URL.  Without `service`, `answer` describes the response to a client."""

    url: str
    frontend: str | None
    answer: str
    remedy: str = ""
    route: RouteEntry | None = None
    service: str | None = None
    certificate: Served | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the route in the format of all JSON output."""
        return {
            "url": self.url,
            "frontend": self.frontend,
            "route": str(self.route) if self.route else None,
            "service": self.service,
            "answer": self.answer,
            "remedy": self.remedy,
            "certificate": self.certificate.as_json() if self.certificate else None,
        }


def url_route(settings_file: str, url: str) -> UrlRoute:
    """Follow `url` in the running configuration, or in the declared one if that is unknown.

    Raises `Unavailable`, also if `url` is not an http or https URL.
    """
    known = declared(settings_file, judged=False)
    config = known.prepared.base.config or known.prepared.config
    if config is None:
        raise Unavailable.of("there is no configuration to follow", "see `fc-frontend check`")
    found = follow(url, known.declaration.frontends, config)
    served = known.daemon.certificates if known.daemon else ()
    return replace(found, certificate=certificate_of(found, served))


def certificate_of(route: UrlRoute, served: Iterable[Served]) -> Served | None:
    """Return the certificate that a client gets for `route.url`, or None if none is known."""
    parts = urlsplit(route.url)
    if parts.scheme != "https" or route.frontend is None:
        return None
    host = (parts.hostname or "").lower().removesuffix(".")
    those = [each for each in served if each.frontend == route.frontend]
    covering = [each for each in those if each.certificate.covers(host)]
    defaults = [each for each in those if each.is_default]
    # HAProxy prefers an exact name to a wildcard.
    covering.sort(key=lambda each: host not in each.certificate.names)
    return next(iter((*covering, *defaults)), None)


def follow(url: str, frontends: tuple[FrontendSpec, ...], config: Config) -> UrlRoute:
    """Follow `url` in `config`, which has the frontends `frontends`.  Raises `Unavailable`."""
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS[parts.scheme]
        host = "" if ":" in (parts.hostname or "") else parse_host(parts.hostname or "")
    except (ValueError, KeyError) as exc:
        remedy = exc.remedy if isinstance(exc, NotARoute) else "write https://HOST/PATH"
        raise Unavailable.of(f"{url[:100]!r} is not a URL of http or https", remedy) from None
    path = parts.path or "/"
    entries = map_entries(
        (section.unit.name, section.text)
        for section in config.sections
        if section.unit.kind is UnitKind.SERVICE
    )
    if path.startswith(_ACME) and (challenge := _challenge(url, port, frontends)):
        return challenge
    listening = [each for each in frontends if port in {bind.port for bind in each.binds}]
    for frontend in listening:
        is_tcp = frontend.match is Match.SNI
        if frontend.passes_through and parts.scheme == "https":
            passed = route_of(entries, frontend.name, host, None)
            if passed is not None:
                route, service = passed
                answer = f"frontend {frontend.name}, route {route}, TLS passed to service {service}"
                return UrlRoute(url, frontend.name, answer, "", route, service)
        if AMBIGUOUS_PATH in config.section_text(frontend.name) and is_ambiguous(path):
            answer = "400: applications may read the path as another one"
            return UrlRoute(url, frontend.name, answer, "write the plain path")
        found = route_of(entries, frontend.name, host, None if is_tcp else path)
        if found is not None:
            route, service = found
            answer = f"frontend {frontend.name}, route {route}, service {service}"
            if "http_auth" in config.section_text(service):
                answer += ", with a password"
            return UrlRoute(url, frontend.name, answer, "", route, service)
    for frontend in frontends:
        if port in {bind.port for bind in frontend.redirect_binds}:
            return UrlRoute(
                url,
                frontend.name,
                f"308: frontend {frontend.name} redirects to https",
                f"look at https://{parts.hostname}{path}",
            )
    if not listening:
        known = ", ".join(each.name for each in frontends) or "none"
        return UrlRoute(
            url,
            None,
            f"no frontend listens on port {port}",
            f"name the port in the URL; frontends are: {known}",
        )
    names = ", ".join(each.name for each in listening)
    is_tcp = all(each.match is Match.SNI for each in listening)
    said = "the connection is closed" if is_tcp else "404"
    return UrlRoute(
        url,
        listening[0].name,
        f"{said}: no service of {names} has a route for it",
        "add the host, or the path, to a service",
    )


def _challenge(url: str, port: int, frontends: tuple[FrontendSpec, ...]) -> UrlRoute | None:
    """Return the route of an ACME challenge, if a frontend on `port` forwards challenges."""
    for frontend in frontends:
        if frontend.acme and port in {bind.port for bind in frontend.all_binds}:
            answer = f"frontend {frontend.name} passes ACME challenges to {frontend.acme}"
            remedy = "see the ACME client that listens there"
            return UrlRoute(url, frontend.name, answer, remedy)
    return None
