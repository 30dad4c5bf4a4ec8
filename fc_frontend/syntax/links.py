"""Dependencies between units' sections: names, addresses, routes, and Kubernetes Services."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from fc_frontend.model.units import Resource
from fc_frontend.syntax.binds import read_listeners
from fc_frontend.syntax.lines import LineKind, notable_lines
from fc_frontend.syntax.names import defined_names, used_names
from fc_frontend.syntax.routes import routes_in

_MAX_TEXTS = 65_536
"""Sections whose links are cached: reading one takes about 0.2 ms, and most never change."""
_TARGET = re.compile(
    r"(?:\*\.|_(?P<name>[^.]+)\._[a-z]+\.)?(?P<service>[^.*_]+\.[^.]+)\.svc\..*:(?P<port>\d+)"
)
_NOT_EXCLUSIVE = frozenset(("table",))
"""Kinds of names that are derived from other names."""


class Links(NamedTuple):
    """The resources of a unit's section.

    `holds` contains the binds, routes and names that it defines, `uses` the names that other units
    must define, and `publishes` the Kubernetes Services and ports that it resolves by cluster DNS.
    """

    holds: frozenset[Resource]
    uses: frozenset[Resource]
    publishes: frozenset[Resource]


@lru_cache(maxsize=_MAX_TEXTS)
def links_in(text: str) -> Links:
    """Return the links of a unit's section."""
    holds = {name for name in defined_names(text) if name.kind not in _NOT_EXCLUSIVE}
    holds |= {
        Resource("bind", str(each.listener.endpoint)) for each in read_listeners(text).listeners
    }
    routes = routes_in(text)
    holds |= {route.resource for route in routes}
    uses = used_names(text) | {Resource("frontend", route.frontend) for route in routes}
    return Links(frozenset(holds), uses, frozenset(_published(text)))


def service_resource(service: str, namespace: str, port: int | str) -> Resource:
    """Return the resource for a Kubernetes Service and port, in the form used by `links_in`."""
    return Resource("service", f"{service}.{namespace}:{port}")


def _published(text: str) -> Iterator[Resource]:
    for line in notable_lines(text, frozenset(("server", "server-template"))):
        if line.kind is not LineKind.STATEMENT:
            continue
        for word in line.arguments[1:3]:
            if match := _TARGET.fullmatch(word):
                yield Resource("service", f"{match['service']}:{match['name'] or match['port']}")
