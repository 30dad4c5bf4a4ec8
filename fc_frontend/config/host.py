"""What this host adds to a declaration: its resolv.conf and its own addresses."""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path

from fc_frontend.plan.addresses import NotAnAddress, parse_address
from fc_frontend.plan.model import Address, Nameserver


def system_nameservers(resolv_conf: str = "/etc/resolv.conf") -> tuple[Nameserver, ...]:
    """The nameservers of resolv.conf(5), in its order; none if it cannot be read."""
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
    """The addresses of this host's interfaces, without loopback and link-local ones."""
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
