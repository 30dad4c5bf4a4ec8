"""Read this VM's addresses and routes from the kernel; nothing is sent into the cluster."""

from __future__ import annotations

import http.client
import socket
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from pathlib import Path

from fc_frontend.doctor.judge.network import (
    HostAddress,
    NetworkFacts,
    Route,
    parse_routes,
    parse_routes6,
)
from fc_frontend.plan.model import Address, Cluster, Network

KUBE_PROXY_HEALTH = ("127.0.0.1", 10256)
"""The default address of kube-proxy's health check (`healthzBindAddress`)."""
_HIGH_PORT = 65000


def observe_network(cluster: Cluster, timeout: float) -> NetworkFacts:
    """Return facts about the networks of `cluster`.  Raises OSError if the kernel reports none."""
    networks = (*cluster.service_networks, *cluster.pod_networks)
    return NetworkFacts(
        addresses=observe_addresses(),
        routes=_routes(),
        sources={network: _source(network) for network in networks},
        kube_proxy=_kube_proxy(timeout),
    )


def observe_addresses() -> tuple[HostAddress, ...]:
    """Return this host's addresses, except loopback and link-local ones."""
    import psutil

    found = []
    for interface, entries in psutil.net_if_addrs().items():
        for entry in entries:
            address = _interface(entry.address, entry.netmask)
            if address is not None and not (address.is_loopback or address.is_link_local):
                found.append(HostAddress(interface, address))
    return tuple(found)


def _interface(address: str, netmask: str | None) -> IPv4Interface | IPv6Interface | None:
    try:
        ip = ip_address(address.partition("%")[0])
        if netmask is None:
            return ip_interface(ip)
        bits = int(ip_address(netmask)).bit_count()
        return ip_interface(f"{ip}/{bits}")
    except ValueError:  # a link-layer address
        return None


def _routes() -> tuple[Route, ...]:
    routes = parse_routes(Path("/proc/net/route").read_text(errors="replace"))
    path = Path("/proc/net/ipv6_route")
    return (*routes, *parse_routes6(path.read_text(errors="replace"))) if path.exists() else routes


def _source(network: Network) -> Address | None:
    """Return the source address of a packet into `network`; connecting UDP sends nothing."""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    target = network.network_address + (1 if network.num_addresses > 1 else 0)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(target), _HIGH_PORT))
            return ip_address(probe.getsockname()[0])
    except OSError:
        return None


def _kube_proxy(timeout: float) -> bool:
    connection = http.client.HTTPConnection(*KUBE_PROXY_HEALTH, timeout=timeout)
    try:
        connection.request("GET", "/healthz")
        return b"lastUpdated" in connection.getresponse().read(4096)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
