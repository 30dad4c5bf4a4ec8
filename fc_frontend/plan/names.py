"""The names of a service in cluster DNS (Kubernetes DNS-based service discovery, 1.1).

No name ends with a dot: HAProxy uses names as they are written, without search domains.
"""

from __future__ import annotations

from fc_frontend.plan.model import Kind, ServiceSpec


def headless_name(spec: ServiceSpec, domain: str) -> str:
    """Return the service's own name: its ready pods if it is headless, else its cluster IP."""
    return f"{spec.service}.{spec.namespace}.svc.{domain}"


def wildcard_name(spec: ServiceSpec, domain: str) -> str:
    """Return the name below the service for which CoreDNS before 1.9 returns all of its pods."""
    return f"*.{headless_name(spec, domain)}"


def srv_name(spec: ServiceSpec, domain: str) -> str:
    """Return the name of the service's named TCP port (RFC 2782)."""
    return f"_{spec.port}._tcp.{headless_name(spec, domain)}"


def query_name(spec: ServiceSpec, kind: Kind, domain: str) -> str | None:
    """Return the name that resolves to the servers of `spec`; None for nodes, which need no DNS."""
    match kind:
        case Kind.NODES:
            return None
        case Kind.SRV:
            return srv_name(spec, domain)
        case Kind.WILDCARD:
            return wildcard_name(spec, domain)
        case Kind.HEADLESS | Kind.SERVICE | Kind.API:
            return headless_name(spec, domain)
