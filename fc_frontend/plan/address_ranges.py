"""Address ranges of pools, in the notation of the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from itertools import combinations

from fc_frontend.model.load_balancers import AddressPool, AddressRange
from fc_frontend.plan.addresses import NotAnAddress, parse_address, parse_network

_UNUSABLE = tuple(
    AddressRange(network[0], network[-1])
    for network in map(ip_network, ("0.0.0.0/32", "224.0.0.0/3", "::/128", "ff00::/8", "fe80::/10"))
)
"""Wildcard, multicast, reserved and link-local addresses."""


def parse_address_range(text: str) -> AddressRange:
    """Parse an address, a network or a range of one family, as `198.51.100.16-198.51.100.31`.

    All addresses of a network count, including the first and the last.  Raises NotAnAddress.
    """
    first_text, dash, last_text = text.partition("-")
    if dash:
        first, last = parse_address(first_text.strip()), parse_address(last_text.strip())
        if first.version != last.version or int(first) > int(last):
            raise NotAnAddress(
                f"{text!r} is not a range of addresses",
                "write the lower address first, such as 198.51.100.16-198.51.100.31",
            )
        found = AddressRange(first, last)
    elif "/" in text:
        network = parse_network(text)
        found = AddressRange(network[0], network[-1])
    else:
        address = parse_address(text)
        found = AddressRange(address, address)
    if any(found.overlaps(each) for each in _UNUSABLE):
        raise NotAnAddress(
            f"{text!r} has addresses that no Service can have",
            "leave out wildcard, multicast, reserved and link-local addresses",
        )
    return found


def shared_ranges(
    pools: Iterable[AddressPool],
) -> tuple[tuple[str, AddressRange], tuple[str, AddressRange]] | None:
    """Return two pools that share an address, each with its range; None if there are none."""
    listed = [(pool.name, each) for pool in pools for each in pool.ranges]
    pairs = combinations(listed, 2)
    return next((pair for pair in pairs if pair[0][1].overlaps(pair[1][1])), None)
