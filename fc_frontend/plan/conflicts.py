"""Find listeners of one configuration that take connections from each other.

HAProxy binds with SO_REUSEPORT: two listeners on one address are accepted, and share its
connections at random.  Pure: the targets of paths are passed as values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

from fc_frontend.syntax.binds import Owned
from fc_frontend.syntax.endpoints import Family, ListenEndpoint

_Key = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """`claim` takes a place that `holder`, an earlier claim, already has.

    `port` is the first port of both, 0 without ports.
    """

    claim: Owned
    holder: Owned
    port: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """`wide` also covers the places of `covered`, which receive the connections there."""

    wide: Owned
    covered: tuple[Owned, ...]


def conflicts(claims: Iterable[Owned], place: Callable[[str], Hashable]) -> tuple[Conflict, ...]:
    """Return the claims on a place that an earlier claim has, one for each pair.

    Different interfaces are different places; a claim with an interface conflicts with one without.
    `place` returns equal values for paths of the same directory entry.
    """
    taken: dict[_Key, dict[str, Owned]] = {}
    found: dict[tuple[int, int], Conflict] = {}
    for claim in claims:
        endpoint = claim.listener.endpoint
        for port, key in _keys(endpoint, place):
            holders = taken.get(key)
            if holders is None:
                taken[key] = {endpoint.interface: claim}
                continue
            for interface, holder in holders.items():
                is_apart = interface and endpoint.interface and interface != endpoint.interface
                if not is_apart and not _excludes(holder, claim):
                    found.setdefault((id(holder), id(claim)), Conflict(claim, holder, port))
                    break
            holders.setdefault(endpoint.interface, claim)
    return tuple(found.values())


def overlaps(claims: Iterable[Owned]) -> tuple[Overlap, ...]:
    """Return the claims that also cover the places of others; equal places are `conflicts`."""
    known = [claim for claim in claims if claim.listener.endpoint.family is Family.IP]
    special = [
        claim
        for claim in known
        if _is_wildcard(claim.listener.endpoint) or claim.listener.endpoint.interface
    ]
    ports = {port for claim in special for port in claim.listener.endpoint.ports}
    at: dict[int, list[Owned]] = {}
    for claim in known if special else ():
        for port in claim.listener.endpoint.ports:
            if port in ports:
                at.setdefault(port, []).append(claim)
    found: dict[int, tuple[Owned, dict[int, Owned]]] = {}
    for claim in special:
        near = {id(other): other for port in claim.listener.endpoint.ports for other in at[port]}
        del near[id(claim)]
        for other in near.values():
            wide = wider(claim.listener.endpoint, other.listener.endpoint)
            if wide is None or _excludes(claim, other):
                continue
            loser, winner = (claim, other) if wide is claim.listener.endpoint else (other, claim)
            found.setdefault(id(loser), (loser, {}))[1][id(winner)] = winner
    return tuple(Overlap(wide, tuple(covered.values())) for wide, covered in found.values())


def wider(one: ListenEndpoint, other: ListenEndpoint) -> ListenEndpoint | None:
    """Return the endpoint that Linux does not choose for a connection that matches both.

    None if no connection matches both.  A socket with the address is preferred to a wildcard, then
    one of the connection's own family (`*` to `::`), then one that is bound to the interface,
    except for IPv6, where the first one is preferred (measured on Linux 6.18; `compute_score`
    there).
    """
    if (one.is_datagram, one.namespace) != (other.is_datagram, other.namespace):
        return None
    if one.last_port < other.port or other.last_port < one.port:
        return None
    if one.interface and other.interface and one.interface != other.interface:
        return None
    for mine, theirs, everything in ((one.ipv4, other.ipv4, "*"), (one.ipv6, other.ipv6, "::")):
        if mine is None or theirs is None:
            continue
        if mine == theirs or everything in (mine, theirs):
            ranks = [
                (address != everything, each.host == address, bool(each.interface))
                for address, each in ((mine, one), (theirs, other))
            ]
            return one if ranks[0] <= ranks[1] else other
    return None


def _is_wildcard(endpoint: ListenEndpoint) -> bool:
    return endpoint.ipv4 == "*" or endpoint.ipv6 == "::"


def _excludes(one: Owned, other: Owned) -> bool:
    return one.owner == other.owner and one.listener.excludes(other.listener)


def _keys(endpoint: ListenEndpoint, place: Callable[[str], Hashable]) -> Iterator[tuple[int, _Key]]:
    """Yield the places that an endpoint takes exclusively, each with its port."""
    if endpoint.family is Family.UNIX:
        yield 0, (Family.UNIX, place(endpoint.host))
    elif endpoint.family is not Family.IP:
        yield 0, (endpoint.family, endpoint.is_datagram, endpoint.host)
    else:
        # `[::]` without v6only accepts IPv4 as well, but an IPv4 socket takes precedence.
        address = endpoint.ipv6 or endpoint.ipv4
        for port in endpoint.ports:
            yield port, (endpoint.is_datagram, endpoint.namespace, address, port)
