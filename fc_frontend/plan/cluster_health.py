"""The basic health of a cluster: the readiness of its API server, and its nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fc_frontend.plan.untyped import as_list, as_mapping, as_text
from fc_frontend.plurals import some
from fc_frontend.text import one_line


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """The response of the API server to a request.

    Without a response, `status` is None, and `said` is the reason.
    """

    status: int | None
    said: str = ""
    ahead: float | None = None
    """Seconds that its clock is ahead of the local one."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the API; `reason` is that of its Ready condition."""

    name: str
    ready: bool
    reason: str = ""
    addresses: tuple[str, ...] = ()
    pod_networks: tuple[str, ...] = ()
    version: str = ""
    """The version of its kubelet, such as `v1.33.1+k3s1`."""

    def as_json(self) -> dict[str, Any]:
        """Return the node in the format of the JSON output."""
        return {"name": self.name, "ready": self.ready, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterHealth:
    """The responses of the API server: `ready` to GET /readyz, `listed` to the list of nodes.

    `nodes` is None if they could not be listed.
    """

    server: str
    ready: ApiResponse
    listed: ApiResponse
    nodes: tuple[Node, ...] | None = None
    certificate_days: float | None = None
    """The days until the server's certificate expires."""

    @property
    def is_ready(self) -> bool | None:
        """Whether the API server is ready; None if these credentials lack the permission (403)."""
        return None if self.ready.status == 403 else self.ready.status == 200

    @property
    def is_k3s(self) -> bool:
        """Whether the kubelet version of a node is that of k3s."""
        return any("+k3s" in node.version for node in self.nodes or ())

    @property
    def ready_nodes(self) -> tuple[str, ...]:
        """The names of the nodes that are ready."""
        return tuple(node.name for node in self.nodes or () if node.ready)

    @property
    def unready_nodes(self) -> str:
        """The first nodes that are not ready, with their reasons; empty if all are ready."""
        return some(f"{node.name} ({node.reason})" for node in self.nodes or () if not node.ready)


def parse_nodes(items: Iterable[Any]) -> tuple[Node, ...]:
    """Return the nodes in the items of lists; malformed items are left out."""
    return tuple(node for item in items if (node := _node(item)) is not None)


def _node(item: Any) -> Node | None:
    document = as_mapping(item)
    name = one_line(as_text(as_mapping(document.get("metadata")).get("name")))
    if not name:
        return None
    spec, status = as_mapping(document.get("spec")), as_mapping(document.get("status"))
    conditions = map(as_mapping, as_list(status.get("conditions")))
    ready = next((each for each in conditions if each.get("type") == "Ready"), None)
    reason = "no Ready condition" if ready is None else as_text(ready.get("reason"))
    networks = as_list(spec.get("podCIDRs")) or [spec.get("podCIDR")]
    addresses = [
        as_text(each.get("address"))
        for each in map(as_mapping, as_list(status.get("addresses")))
        if each.get("type") == "InternalIP"
    ]
    return Node(
        name,
        ready is not None and ready.get("status") == "True",
        one_line(reason),
        tuple(addresses),
        tuple(text for each in networks if (text := as_text(each))),
        one_line(as_text(as_mapping(status.get("nodeInfo")).get("kubeletVersion"))),
    )
