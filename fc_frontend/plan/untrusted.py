"""Check untrusted files: they may declare plain values, within the setting `untrusted`.

Pure.  The limits prevent such a file from harming services of other files: contrib/trust.rst,
"Who may write what", describes them for operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from fc_frontend.plan.model import Fragment, ServiceSpec, Target, Untrusted
from fc_frontend.plan.slices import is_of_api_servers
from fc_frontend.syntax import safe
from fc_frontend.syntax.names import defined_names
from fc_frontend.syntax.routes import covers_host

MAX_LENGTH = 256 * 1024
"""The maximum length of an untrusted file, in characters."""
MAX_BINDS = 16
"""The maximum number of binds of a service.  Each is a listener in HAProxy."""
MAX_ROUTES = 100
"""The maximum number of routes of a service.  Each is an entry in a map of HAProxy."""
MAX_SERVICES = 200
"""The maximum number of services in all untrusted files."""
MAX_SLOTS = 160
"""The maximum number of slots of a service.

Each is checked, and takes memory and a file descriptor of HAProxy.
"""

_PROXIES = ("frontend", "backend")


class Needs(Enum):
    """What a service needs to be accepted."""

    TRUST = "trust"
    """A trusted file."""
    CHANGE = "change"
    """Another value, or another setting."""


class Violation(NamedTuple):
    """A declaration that is not allowed in an untrusted file."""

    field: str
    message: str
    remedy: str
    needs: Needs = Needs.CHANGE


TOO_MANY = Violation(
    "",
    f"untrusted files may not define more than {MAX_SERVICES} services in all",
    "remove services, or move them to a trusted file",
)


def violations(spec: ServiceSpec, limits: Untrusted) -> Iterator[Violation]:
    """Yield the declarations in `spec` that are not plain values or exceed `limits`."""
    yield from _raw_violations(spec, limits)
    for field, path in _paths(spec):
        if path is not None:
            yield Violation(field, "a path needs a trusted file", "", Needs.TRUST)
    for number, bind in enumerate(spec.binds):
        if bind.kind != "ip":
            yield Violation(
                f"binds.{number}", f"the socket {bind} needs a trusted file", "", Needs.TRUST
            )
        elif limits.binds is not None and not any(each.covers(bind) for each in limits.binds):
            allowed = ", ".join(map(str, limits.binds)) or "nothing"
            yield Violation(
                f"binds.{number}",
                f"untrusted files may not bind {bind}",
                f"use an address and port in untrusted.binds ({allowed})",
            )
    if len(spec.binds) > MAX_BINDS:
        yield Violation(
            "binds", f"untrusted files set at most {MAX_BINDS} binds", "use fewer binds"
        )
    if is_of_api_servers(spec) and spec.target is Target.POD:
        yield Violation("service", "the API servers need a trusted file", "", Needs.TRUST)
    if spec.nodes:
        message = "addresses of nodes need a trusted file"
        yield Violation("nodes", message, "", Needs.TRUST)
    yield from _target_violations(spec, limits)
    yield from _route_violations(spec, limits)
    if spec.slots is not None and spec.slots > MAX_SLOTS:
        yield Violation(
            "slots",
            f"untrusted files may not set more than {MAX_SLOTS} slots",
            "use slots: auto, which follows the number of pods",
        )


def _paths(spec: ServiceSpec) -> Iterator[tuple[str, str | None]]:
    """Yield the fields that contain paths."""
    yield "tls.ca_file", spec.tls.ca_file if spec.tls else None
    yield "basic_auth.users", spec.basic_auth.users if spec.basic_auth else None
    yield "basic_auth.groups", spec.basic_auth.groups if spec.basic_auth else None
    yield "unavailable_page", spec.unavailable_page


def _raw_violations(spec: ServiceSpec, limits: Untrusted) -> Iterator[Violation]:
    """Yield the raw lines that are not allowed, one violation for each field."""
    texts = (
        ("extra_config", spec.extra_config, safe.refused_in_line),
        ("server_options", (spec.server_options,), safe.refused_in_server_options),
        ("bind_options", (spec.bind_options,), safe.refused_in_bind_options),
    )
    for field, lines, refused_in in texts:
        if not any(lines):
            continue
        if len(lines) > safe.MAX_LINES:
            message = f"more than {safe.MAX_LINES} raw lines need a trusted file"
            yield Violation(field, message, "", Needs.TRUST)
            continue
        refused = next((word for word in map(refused_in, lines) if word is not None), None)
        if limits.raw_lines == "none":
            message = "raw lines need a trusted file"
            remedy = "set untrusted.raw_lines: safe" if refused is None else ""
            yield Violation(field, message, remedy, Needs.TRUST)
        elif refused is not None:
            message = f"`{refused}` is not on the list of harmless words: it needs a trusted file"
            yield Violation(field, message, "", Needs.TRUST)


def _route_violations(spec: ServiceSpec, limits: Untrusted) -> Iterator[Violation]:
    field = "sni" if spec.mode == "tcp" else "hosts"
    if len(spec.routes) > MAX_ROUTES:
        yield Violation(
            field,
            f"untrusted files set at most {MAX_ROUTES} routes for a service",
            "use fewer hosts or paths",
        )
    if limits.hosts is None:
        return
    allowed = ", ".join(limits.hosts) or "none"
    hosts = dict.fromkeys(route.key.partition("/")[0] for route in spec.routes)
    for host in hosts:
        if not any(covers_host(pattern, host) for pattern in limits.hosts):
            yield Violation(
                field,
                f"untrusted files may not publish {host or 'all hosts'}",
                f"use a host in untrusted.hosts ({allowed})",
            )
            return


def _target_violations(spec: ServiceSpec, limits: Untrusted) -> Iterator[Violation]:
    if limits.namespaces is None:
        return
    allowed = ", ".join(limits.namespaces) or "none"
    if spec.namespace not in limits.namespaces:
        yield Violation(
            "namespace",
            f"untrusted files may not publish services of namespace {spec.namespace}",
            f"use a namespace in untrusted.namespaces ({allowed})",
        )
    if spec.target is Target.NODE:
        yield Violation(
            "lb_service_port",
            "untrusted files may not publish ports of nodes while untrusted.namespaces is set: "
            "they belong to any namespace",
            "use pod_port or service_port",
        )


def name_violations(
    specs: Iterable[ServiceSpec], fragments: Sequence[Fragment]
) -> dict[str, Violation]:
    """Return the services whose names are taken by a fragment or by one of its proxies.

    HAProxy would otherwise reject the fragment.
    """
    taken: dict[str, str] = {}
    for fragment in fragments:
        for resource in defined_names(fragment.text):
            if resource.kind in _PROXIES:
                taken.setdefault(resource.name, fragment.origin.file)
        taken[fragment.name] = fragment.origin.file
    return {
        spec.name: Violation("", f"{taken[spec.name]} defines {spec.name} as well", "rename it")
        for spec in specs
        if spec.name in taken
    }
