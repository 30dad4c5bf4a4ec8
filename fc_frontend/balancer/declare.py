"""Convert assignments of Services to declarations in the format of files.  Pure.

Each served port of a Service becomes a service of its own, `svc.NAMESPACE.NAME.PORT`.  Its fields
are plain values, and are validated like those in files: an invalid value of a Service,
such as a source range, is an error of that service and is never left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Any, NamedTuple

from fc_frontend.balancer.assign import Assignment
from fc_frontend.model.load_balancers import IpAddress, LoadBalancerRequest
from fc_frontend.plan.addresses import NotAnAddress, parse_address, parse_bind
from fc_frontend.plan.cluster_objects import ObjectKey

MAX_DECLARATIONS = 2000
"""The maximum number of ports of all Services: each is a listener and a backend with checks."""
_ORIGIN = "kubernetes:"
_MAX_NAME = 63
_DIGEST_LENGTH = 10


class BalancedDeclaration(NamedTuple):
    """The fields of a service in the format of a file, and the Service that they belong to."""

    key: ObjectKey
    fields: dict[str, Any]


def origin_of(key: ObjectKey) -> str:
    """Return the identifier that replaces the file name for a Service."""
    return f"{_ORIGIN}{key.namespace}/{key.name}"


def is_of_cluster(file: str) -> bool:
    """Return whether `file` is an `origin_of` a Service; no file of a frontend has such a path."""
    return file.startswith(_ORIGIN)


def key_of_origin(file: str) -> ObjectKey | None:
    """Return the Service whose origin is `file`; None for a file."""
    if not is_of_cluster(file):
        return None
    namespace, _, name = file.removeprefix(_ORIGIN).partition("/")
    return ObjectKey(namespace, name)


def unit_name(key: ObjectKey, port: int) -> str:
    """Return the name of a port's service in HAProxy; long names are cut, with a digest."""
    name = f"svc.{key.namespace}.{key.name}.{port}"
    if len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_LENGTH]
    kept = f"svc.{key.namespace}.{key.name}"[: _MAX_NAME - _DIGEST_LENGTH - len(f"..{port}")]
    return f"{kept}.{digest}.{port}"


def declarations(
    services: Mapping[ObjectKey, LoadBalancerRequest],
    assignments: Mapping[ObjectKey, Assignment],
    first: Iterable[str] = (),
) -> dict[str, BalancedDeclaration]:
    """Return the declarations by name: at most `MAX_DECLARATIONS`, preferably those in `first`."""
    found: dict[str, BalancedDeclaration] = {}
    for key, assignment in assignments.items():
        request = services[key]
        for port in request.served_ports:
            binds = [_bind(a.address, port) for a in assignment.addresses if port in a.ports]
            if binds:
                fields = _fields(key, request, port, binds)
                found[unit_name(key, port)] = BalancedDeclaration(key, fields)
    known = set(first)
    order = sorted(found, key=lambda name: (name not in known, name))
    return {name: found[name] for name in sorted(order[:MAX_DECLARATIONS])}


def _fields(
    key: ObjectKey, request: LoadBalancerRequest, port: int, binds: list[str]
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "service": key.name,
        "namespace": key.namespace,
        "binds": binds,
        "service_port": port,
        "discovery": "api",
    }
    if request.source_ranges:
        fields["allow"] = [_network(text) for text in request.source_ranges]
    if request.affinity is not None:
        fields["session_affinity"] = request.affinity
    if request.proxy_protocol:
        fields["proxy_protocol"] = request.proxy_protocol
    return fields


def _bind(address: IpAddress, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _network(text: str) -> str:
    """Return the network without host bits, which Kubernetes ignores.

    Any other text is returned unchanged, so that validation rejects it.
    """
    try:
        return str(ip_network(text, strict=False)) if "/" in text and "%" not in text else text
    except ValueError:
        return text


def place_of(text: Any) -> tuple[IpAddress, int] | None:
    """Return the address and port of a bind; None for any other text."""
    try:
        bind = parse_bind(text)
        address = parse_address(bind.host)
    except (NotAnAddress, AttributeError):
        return None
    return None if bind.port is None else (address, bind.port)


def served_at(
    declared: Iterable[tuple[str, Any]],
) -> dict[ObjectKey, frozenset[tuple[IpAddress, int]]]:
    """Return the addresses and ports of Services in the running origins and fields.

    Fields that `declarations` cannot produce are ignored.
    """
    found: dict[ObjectKey, set[tuple[IpAddress, int]]] = {}
    for file, fields in declared:
        key = key_of_origin(file)
        binds = fields.get("binds") if isinstance(fields, dict) else None
        if key is None or not isinstance(binds, list):
            continue
        places = {place for text in binds if (place := place_of(text)) is not None}
        found.setdefault(key, set()).update(places)
    return {key: frozenset(places) for key, places in found.items()}
