"""Check whether the cluster's networks overlap with those of this VM, and have routes.

According to the platform's documentation, the networks of services and pods must not overlap with
existing networks.  The cluster's own interfaces on this VM are in them, and are recognized by name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network

from fc_frontend.doctor.findings import Finding, Group
from fc_frontend.plan.model import Address, Cluster, Nameserver, Network
from fc_frontend.plurals import some

_GROUP = Group("network")
_UP, _GATEWAY, _REJECT = 0x1, 0x2, 0x200
_ANYCAST, _LOCAL = 0x100000, 0x80000000

CLUSTER_INTERFACE = re.compile(
    r"(cni|flannel|cali|tunl|vxlan\.calico|cilium|lxc|weave|kube-|kube-ipvs|nodelocaldns|genev"
    r"|antrea|ovn|veth|wireguard\.cali)[A-Za-z0-9_.@-]*"
)
"""The names of interfaces that network plugins and kube-proxy create."""

_OTHERS_INTERFACE = re.compile(r"(docker|br-|virbr|lxdbr|podman|tun|tap|wg|ppp)[A-Za-z0-9_.@-]*")
"""Interfaces of container engines and VPNs, whose networks are not the cluster's."""


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of this VM with its network."""

    interface: str
    address: IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table; `refuses` if it is unreachable, prohibit or blackhole."""

    network: Network
    interface: str
    gateway: Address | None = None
    refuses: bool = False

    @property
    def is_default(self) -> bool:
        """Whether it is a default route, or one half of two as VPNs set them."""
        return self.network.prefixlen <= 1

    def __str__(self) -> str:
        by = f" by {self.gateway}" if self.gateway else ""
        return f"{self.network}{by} on {self.interface}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """The facts that this VM's kernel reports.

    `sources` maps each network to the source address of a packet into it, or to None without a
    route; routes of other tables are included.  `kube_proxy` is set if kube-proxy runs here.
    """

    addresses: tuple[HostAddress, ...]
    routes: tuple[Route, ...]
    sources: Mapping[Network, Address | None]
    kube_proxy: bool = False


def judge_networks(cluster: Cluster, facts: NetworkFacts) -> tuple[Finding, ...]:
    """Judge overlaps and routes of the cluster's networks, and where its fixed addresses are."""
    named = [
        *(("service network", network) for network in cluster.service_networks),
        *(("pod network", network) for network in cluster.pod_networks),
    ]
    found: list[Finding] = []
    for kind in ("service network", "pod network"):
        if kind not in [name for name, _ in named]:
            field = f"cluster.{kind.replace(' ', '_')}"
            found.append(
                _GROUP.unknown(kind, f"no {kind} is declared", f"set {field} to the cluster's")
            )
    for kind, network in named:
        found.append(_overlaps(kind, network, cluster, facts))
        found.append(_route(kind, network, facts))
    found += _declared_overlaps(cluster)
    found += _fixed(cluster)
    return tuple(found)


def _overlaps(kind: str, network: Network, cluster: Cluster, facts: NetworkFacts) -> Finding:
    check = f"overlap of {kind} {network}"
    own = [
        str(entry.address.ip)
        for entry in facts.addresses
        if entry.interface == "lo" and contained(entry.address.ip, (network,))
    ]
    existing = [
        f"{entry.address} on {entry.interface}"
        for entry in facts.addresses
        if entry.interface != "lo"
        and not CLUSTER_INTERFACE.fullmatch(entry.interface)
        and overlap(entry.address.network, network)
    ]
    if existing:
        return _GROUP.problem(
            check,
            f"this host has in the same range: {some(existing)}",
            "if the cluster has another range, correct the settings; otherwise renumber one of the "
            "two networks (the cluster's cannot change after its installation)",
        )
    strange = [str(route) for route in facts.routes if _is_strange(route, network, cluster)]
    if strange:
        return _GROUP.warning(
            check,
            f"routes of this host lead elsewhere for parts of it: {some(strange)}",
            "if these are not the cluster's, the networks overlap: renumber one of them; if they "
            "are, name their gateways in cluster.nodes",
        )
    if own:
        return _GROUP.warning(
            check,
            f"this host has {some(own)} on its loopback interface: no other host and no pod can be "
            "reached at this address",
            "remove the address, unless it belongs to node-local DNS",
        )
    return _GROUP.ok(check, "no address or other network of this host is in it")


def _is_strange(route: Route, network: Network, cluster: Cluster) -> bool:
    """Return whether a route into `network` does not look like the cluster's own.

    Network plugins add routes to each node's part of the pod network, through their own interfaces
    or the nodes' addresses.
    """
    if (
        route.refuses
        or route.is_default
        or route.interface == "lo"
        or not overlap(route.network, network)
        or _covers(route.network, network)
        or CLUSTER_INTERFACE.fullmatch(route.interface)
    ):
        return False
    if route.gateway is None or _OTHERS_INTERFACE.fullmatch(route.interface):
        return True
    nodes = set(cluster.nodes.values())
    return bool(nodes) and route.gateway not in nodes


def _route(kind: str, network: Network, facts: NetworkFacts) -> Finding:
    check = f"route to {kind} {network}"
    over = [route for route in facts.routes if _covers(route.network, network)]
    inside = [
        route
        for route in facts.routes
        if overlap(route.network, network) and not _covers(route.network, network)
    ]
    leading = [route for route in inside if not route.refuses]
    best = max(over, key=lambda route: route.network.prefixlen, default=None)
    if leading and (best is None or best.is_default):
        return _GROUP.ok(check, f"routes to {len(leading)} parts of it: {some(leading, 3)}")
    remedy = f"add a route into the cluster: `ip route add {network} via NODE`"
    if best is not None and best.refuses:
        return _GROUP.problem(check, f"the route {best} refuses it", remedy)
    if best is not None and not best.is_default:
        return _wider(check, network, best)
    if facts.sources.get(network) is None:
        return _GROUP.problem(check, "no route", remedy)
    if best is None:
        return _GROUP.ok(check, "routed by another table than main (`ip rule`)")
    if kind == "service network" and facts.kube_proxy:
        return _GROUP.ok(check, f"kube-proxy runs on this host and translates it; {best} is enough")
    return _GROUP.warning(
        check,
        f"only the default route ({best}): works only if the gateway can route it",
        remedy,
    )


def _wider(check: str, network: Network, best: Route) -> Finding:
    if best.network == network or best.gateway is None:
        return _GROUP.ok(check, f"{best}")
    return _GROUP.warning(
        check,
        f"the route {best} is for a wider network than {network}",
        f"make sure that {best.gateway} routes into the cluster and not into another network, "
        "or add a route",
    )


def _declared_overlaps(cluster: Cluster) -> Iterator[Finding]:
    pairs = [
        f"{service} and {pod}"
        for service in cluster.service_networks
        for pod in cluster.pod_networks
        if overlap(service, pod)
    ]
    if pairs:
        yield _GROUP.problem(
            "services and pods",
            f"service and pod network overlap: {some(pairs)}",
            "set each to the cluster's own range (--service-cluster-ip-range and --cluster-cidr)",
        )


def _fixed(cluster: Cluster) -> Iterator[Finding]:
    inside = [
        f"{name} ({address})"
        for name, address in cluster.nodes.items()
        if contained(address, (*cluster.pod_networks, *cluster.service_networks))
    ]
    if inside:
        yield _GROUP.problem(
            "addresses of nodes",
            f"nodes have addresses in the cluster's own networks: {some(inside)}",
            "correct cluster.nodes: the nodes' network must not overlap with these",
        )
    for nameserver in cluster.nameservers:
        if contained(nameserver.address, cluster.pod_networks):
            yield _moving(nameserver)


def _moving(nameserver: Nameserver) -> Finding:
    return _GROUP.warning(
        f"address of nameserver {nameserver}",
        "this is a pod's address, which changes with the pod",
        "set cluster.nameservers to the cluster IP of the cluster's DNS service",
    )


def contained(address: Address, networks: Iterable[Network]) -> bool:
    """Return whether `address` is in one of `networks`."""
    return any(address.version == network.version and address in network for network in networks)


def overlap(one: Network, other: Network) -> bool:
    """Return whether both have an address in common."""
    return one.version == other.version and one.overlaps(other)


def _covers(wide: Network, narrow: Network) -> bool:
    return (
        wide.version == narrow.version
        and wide.prefixlen <= narrow.prefixlen
        and narrow.network_address in wide
    )


def parse_routes(text: str) -> tuple[Route, ...]:
    """Parse /proc/net/route, which lists the main table, with addresses in host byte order."""

    def address(word: str) -> IPv4Address:
        return IPv4Address(int(word, 16).to_bytes(4, sys.byteorder))

    routes = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 8 or not int(words[3], 16) & _UP:
            continue
        flags = int(words[3], 16)
        routes.append(
            Route(
                ip_network(f"{address(words[1])}/{address(words[7])}", strict=False),
                words[0],
                address(words[2]) if flags & _GATEWAY else None,
                # A blackhole has neither a flag of its own nor an interface.
                bool(flags & _REJECT) or words[0] == "*",
            )
        )
    return tuple(routes)


def parse_routes6(text: str) -> tuple[Route, ...]:
    """Parse /proc/net/ipv6_route, without routes to this VM's own addresses and multicast."""
    routes = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 10:
            continue
        flags = int(words[8], 16)
        network = ip_network((bytes.fromhex(words[0]), int(words[1], 16)), strict=False)
        if (
            flags & (_LOCAL | _ANYCAST)
            or network.is_multicast
            or network.is_link_local
            or not flags & (_UP | _REJECT)
            # The kernel's own fallback entry, if there is no route.
            or (network.prefixlen == 0 and flags & _REJECT and words[9] == "lo")
        ):
            continue
        gateway = IPv6Address(bytes.fromhex(words[4])) if flags & _GATEWAY else None
        routes.append(Route(network, words[9], gateway, bool(flags & _REJECT)))
    return tuple(routes)
