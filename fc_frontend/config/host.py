"""Properties of this host that affect a declaration: its resolv.conf and bindable addresses."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from itertools import chain, islice
from pathlib import Path

from fc_frontend.balancer.assign import HostAddresses
from fc_frontend.model.load_balancers import AddressRange, IpAddress, IpFamily
from fc_frontend.plan.addresses import NotAnAddress, parse_address
from fc_frontend.plan.model import Address, Nameserver

MAX_PROBED = 4096
"""Pool addresses that are probed one by one; each takes about 5 µs."""
_NOBODYS: dict[IpFamily, IpAddress] = {
    "ipv4": ip_address("192.0.2.1"),
    "ipv6": ip_address("2001:db8::1"),
}
"""Documentation addresses, which no host has (RFC 5737, RFC 3849)."""


def system_nameservers(resolv_conf: str = "/etc/resolv.conf") -> tuple[Nameserver, ...]:
    """Return the nameservers of resolv.conf(5), in order; none if it cannot be read."""
    try:
        text = Path(resolv_conf).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found: dict[Nameserver, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found[Nameserver(parse_address(words[1]))] = None
            except NotAnAddress:
                continue
    return tuple(found)


def host_addresses() -> tuple[Address, ...]:
    """Return the addresses of this host's interfaces, except loopback and link-local ones."""
    import psutil

    found: dict[Address, None] = {}
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            try:
                address = parse_address(entry.address.partition("%")[0])
            except NotAnAddress:
                continue
            if not (address.is_loopback or address.is_link_local):
                found[address] = None
    return tuple(sorted(found, key=lambda a: (isinstance(a, IPv6Address), int(a))))


def bindable_addresses(ranges: Iterable[AddressRange], own: Iterable[Address]) -> HostAddresses:
    """Return the addresses of `ranges` that this host can bind.

    `own` contains the addresses of its interfaces.  The first `MAX_PROBED` addresses are also
    probed, because a host can bind others too: through `ip route add local` and the sysctl
    ip_nonlocal_bind.
    """
    listed = list(ranges)
    nonlocal_bind = frozenset(family for family, each in _NOBODYS.items() if _can_bind(each))
    probed = islice(
        chain.from_iterable(each for each in listed if each.family not in nonlocal_bind),
        MAX_PROBED,
    )
    found = {address for address in own if any(address in each for each in listed)}
    found.update(address for address in probed if _can_bind(address))
    return HostAddresses(frozenset(found), nonlocal_bind)


def _can_bind(address: IpAddress) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
