"""Assign addresses to Services of type LoadBalancer.  Pure and deterministic.

    statuses, addresses served here ─► claims ─► requested addresses ─► new addresses

A Service keeps the address of its status, or else the one at which this frontend serves it, even if
the pools have changed.  New addresses are assigned only after all claims, so `assign` takes all
Services at once; do not call it before the list of Services is complete (metallb#2443).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fc_frontend.balancer.requests import (
    AddressGap,
    AddressProblem,
    AddressWish,
    wanted_families,
    wish_of,
)
from fc_frontend.model.load_balancers import (
    AddressPool,
    FamilyPolicy,
    IngressAddress,
    IpAddress,
    IpFamily,
    LoadBalancerRequest,
    family_of,
)
from fc_frontend.plan.addresses import NotAnAddress, parse_address
from fc_frontend.plan.cluster_objects import ObjectKey

PROXY_MODE = "Proxy"
"""The `ipMode` that this program writes (KEP-1860); load balancers on nodes write VIP or none."""

Served = Mapping[ObjectKey, frozenset[tuple[IpAddress, int]]]
"""The addresses and ports at which this frontend currently serves each Service."""


@dataclass(frozen=True, slots=True)
class LoadBalancers:
    """All Services of type LoadBalancer, of any load balancer class.

    `version` changes with each change.
    """

    version: int
    services: Mapping[ObjectKey, LoadBalancerRequest]


@dataclass(frozen=True, slots=True)
class HostAddresses:
    """The addresses that this host can bind: its own, and all of the families in `nonlocal_bind`.

    Linux binds other addresses with `net.ipv4.ip_nonlocal_bind`, which VRRP requires.
    """

    addresses: frozenset[IpAddress] = frozenset()
    nonlocal_bind: frozenset[IpFamily] = frozenset()

    def has(self, address: IpAddress) -> bool:
        """Return whether this host can bind `address`."""
        return address in self.addresses or family_of(address) in self.nonlocal_bind


@dataclass(frozen=True, slots=True)
class AssignedAddress:
    """An address of a Service.

    `ports` are those served there; `taken` ones belong to Services that share the address.
    Both are empty if the address must not be bound here.
    """

    address: IpAddress
    ports: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """The addresses of a Service, at most one for each of its families, and the problems."""

    addresses: tuple[AssignedAddress, ...] = ()
    problems: tuple[AddressProblem, ...] = ()


def assign(
    services: Mapping[ObjectKey, LoadBalancerRequest],
    pools: Iterable[AddressPool],
    statuses: Mapping[ObjectKey, Sequence[IngressAddress]],
    *,
    host: HostAddresses,
    served: Served | None = None,
) -> dict[ObjectKey, Assignment]:
    """Return the assignment of each of `services`, which are all that this load balancer owns.

    `statuses` are the `status.loadBalancer.ingress` of each.  The order of the mappings does not
    matter.  If two Services request the same address, the one that is already served takes
    precedence, then the one that was created first, then the name.
    """
    assigner = _Assigner(services, tuple(pools), host, served or {})
    assigner.claim(statuses)
    assigner.fulfil_wishes()
    assigner.allocate()
    return {key: assigner.assignment(key) for key in sorted(services)}


@dataclass(slots=True)
class _Holding:
    """The addresses of a Service during assignment; `extern` ones are not bound."""

    key: ObjectKey
    request: LoadBalancerRequest
    families: tuple[IpFamily, ...]
    wish: AddressWish
    addresses: dict[IpFamily, IpAddress] = field(default_factory=dict)
    extern: set[IpAddress] = field(default_factory=set)
    claimed: frozenset[IpFamily] = frozenset()
    problems: list[AddressProblem] = field(default_factory=list)

    @property
    def ports(self) -> frozenset[int]:
        return frozenset(self.request.served_ports)


class _Assigner:
    """Assigns addresses in the order: claims, requests, new ones."""

    def __init__(
        self,
        services: Mapping[ObjectKey, LoadBalancerRequest],
        pools: tuple[AddressPool, ...],
        host: HostAddresses,
        served: Served,
    ) -> None:
        self._pools = tuple(sorted(pools, key=lambda pool: pool.name))
        self._host = host
        self._served = served
        self._holdings = [
            _Holding(key, request, wanted_families(request), wish_of(request))
            for key, request in sorted(
                services.items(), key=lambda item: (item[1].created, item[0])
            )
        ]
        self._by_key = {holding.key: holding for holding in self._holdings}
        self._uses: dict[IpAddress, dict[ObjectKey, frozenset[int]]] = {}
        """The ports of each Service at an address."""

    def claim(self, statuses: Mapping[ObjectKey, Sequence[IngressAddress]]) -> None:
        """Let every Service keep its addresses: first those served, then those of its status."""
        able = [holding for holding in self._holdings if holding.ports]
        for holding in able:
            for address in self._served_addresses(holding, statuses):
                ports = {p for a, p in self._served[holding.key] if a == address}
                self._keep(holding, address, holding.ports & ports)
        for holding in able:
            for address in self._served_addresses(holding, statuses):
                # None of its ports is still served.
                self._keep(holding, address, holding.ports)
            for entry in statuses.get(holding.key, ()):
                self._claim_status(holding, entry)
        for holding in able:
            # Ports added since then follow those that are served.
            for address in holding.addresses.values():
                if address not in holding.extern:
                    free = holding.ports - self._taken(holding, address)
                    self._uses[address][holding.key] = free
            holding.claimed = frozenset(holding.addresses)

    def _served_addresses(
        self, holding: _Holding, statuses: Mapping[ObjectKey, Sequence[IngressAddress]]
    ) -> list[IpAddress]:
        """Return the addresses at which the Service is served, those of its status first."""
        listed = {entry.address for entry in statuses.get(holding.key, ())}
        addresses = {address for address, _ in self._served.get(holding.key, ())}
        return sorted(addresses, key=lambda each: (str(each) not in listed, int(each)))

    def _claim_status(self, holding: _Holding, entry: IngressAddress) -> None:
        try:
            address = parse_address(entry.address)
        except NotAnAddress:
            return
        if self._is_admitted(holding, address):
            self._keep(holding, address, holding.ports)
        elif entry.mode == PROXY_MODE and family_of(address) in self._lacking(holding):
            # Written here or by another frontend, from a pool at that time: it is never replaced,
            # but only addresses of pools are bound because of a status.
            holding.addresses[family_of(address)] = address
            holding.extern.add(address)

    def _keep(self, holding: _Holding, address: IpAddress, ports: frozenset[int]) -> None:
        """Assign `address` if the Service needs one of its family and the address is free."""
        if family_of(address) not in self._lacking(holding) or not self._shares(holding, address):
            return
        free = ports - self._taken(holding, address)
        if free:
            self._take(holding, address, free)

    def fulfil_wishes(self) -> None:
        """Assign the addresses that Services request, until no more of them are free."""
        while sum(map(self._fulfil, self._holdings)):
            # An address that one Service has released may be requested by another.
            pass
        for holding in self._holdings:
            holding.problems += holding.wish.problems if holding.ports else ()
            for family, address in holding.wish.addresses.items():
                if holding.ports and holding.addresses.get(family) != address:
                    holding.problems.append(self._obstacle(holding, address))

    def _fulfil(self, holding: _Holding) -> bool:
        """Assign requested addresses to a Service; return whether there was a change."""
        is_moved = False
        if not self._can_be_complete(holding):
            return False
        for family, address in holding.wish.addresses.items():
            before = holding.addresses.get(family)
            if before == address or not self._is_usable(holding, address):
                continue
            if before is not None:
                self._release(holding, family)
            self._take(holding, address, holding.ports)
            is_moved = True
        return is_moved

    def _can_be_complete(self, holding: _Holding) -> bool:
        """Return whether a Service can get both families if it requires them."""
        return holding.request.policy is not FamilyPolicy.REQUIRE_DUAL or all(
            self._is_usable(holding, wish)
            if (wish := holding.wish.addresses.get(family)) is not None
            else next(self._candidates(holding, family), None) is not None
            for family in self._lacking(holding)
        )

    def _obstacle(self, holding: _Holding, address: IpAddress) -> AddressProblem:
        if not self._is_admitted(holding, address):
            gap = AddressGap.NOT_IN_POOL
        elif not self._host.has(address):
            gap = AddressGap.NOT_ON_HOST
        else:
            gap = AddressGap.IN_USE
        return AddressProblem(gap, str(address))

    def allocate(self) -> None:
        """Assign addresses to Services that still lack one, and record why some get none."""
        able = [holding for holding in self._holdings if holding.ports]
        for holding in able:
            if not holding.wish.problems:
                self._allocate(holding)
        for holding in self._holdings:
            if not holding.ports:
                holding.problems.append(AddressProblem(AddressGap.NO_PORT))
            elif not holding.wish.problems:
                holding.problems += self._gaps(holding)

    def _allocate(self, holding: _Holding) -> None:
        for family in self._lacking(holding):
            # A requested address that is not free is not replaced by another.
            if family not in holding.wish.addresses:
                address = next(self._candidates(holding, family), None)
                if address is not None:
                    self._take(holding, address, holding.ports)
        if holding.request.policy is FamilyPolicy.REQUIRE_DUAL and self._lacking(holding):
            # Both or nothing; but addresses that it already had are kept.
            for family in [each for each in holding.addresses if each not in holding.claimed]:
                self._release(holding, family)

    def _gaps(self, holding: _Holding) -> list[AddressProblem]:
        """Return why the Service lacks addresses, apart from those that it requests."""
        lacking = [each for each in self._lacking(holding) if each not in holding.wish.addresses]
        if holding.request.policy is FamilyPolicy.PREFER_DUAL:
            lacking = [] if holding.addresses else lacking[:1]
        return [
            self._gap(holding, family)
            for family in lacking
            if next(self._candidates(holding, family), None) is None
        ]

    def _candidates(self, holding: _Holding, family: IpFamily) -> Iterator[IpAddress]:
        """Yield the addresses available to the Service: shared ones, then those of the pools."""
        pools = self._pools_of(holding)
        if holding.request.sharing_key:
            for address in sorted(self._uses, key=int):
                is_of_pool = any(pool.has(address) for pool in pools)
                is_shared = family_of(address) == family and bool(self._uses[address])
                if is_shared and is_of_pool and self._is_usable(holding, address):
                    yield address
        for each in (each for pool in pools for each in pool.ranges if each.family == family):
            addresses: Iterable[IpAddress] = each
            if family not in self._host.nonlocal_bind:
                addresses = sorted((a for a in self._host.addresses if a in each), key=int)
            yield from (address for address in addresses if not self._uses.get(address))

    def _gap(self, holding: _Holding, family: IpFamily) -> AddressProblem:
        """Return why there is no candidate."""
        ranges = [
            each
            for pool in self._pools_of(holding)
            for each in pool.ranges
            if each.family == family
        ]
        if not ranges:
            return AddressProblem(AddressGap.NO_POOL, holding.request.pool or family)
        for each in ranges:
            used = sum(bool(self._uses.get(a)) for a in self._uses if a in each)
            if used < each.size:
                free = (a for a in each if not self._uses.get(a))
                first = next(islice(free, 1))
                return AddressProblem(AddressGap.NOT_ON_HOST, str(first))
        return AddressProblem(AddressGap.OUT_OF_ADDRESSES, family)

    def _pools_of(self, holding: _Holding) -> list[AddressPool]:
        """Return the pools from which a Service gets new addresses."""
        name = holding.request.pool
        return [
            pool
            for pool in self._pools
            if pool.admits(holding.key.namespace)
            and (pool.name == name if name else pool.is_default)
        ]

    def _lacking(self, holding: _Holding) -> list[IpFamily]:
        return [family for family in holding.families if family not in holding.addresses]

    def _is_admitted(self, holding: _Holding, address: IpAddress) -> bool:
        return any(pool.has(address) and pool.admits(holding.key.namespace) for pool in self._pools)

    def _is_usable(self, holding: _Holding, address: IpAddress) -> bool:
        """Return whether the Service can get `address` for all of its ports."""
        return (
            bool(holding.ports)
            and self._host.has(address)
            and self._is_admitted(holding, address)
            and self._shares(holding, address)
            and not holding.ports & self._taken(holding, address)
        )

    def _shares(self, holding: _Holding, address: IpAddress) -> bool:
        """Return whether `address` is free, or used only by Services with the same sharing key."""
        key = holding.request.sharing_key
        return all(
            other == holding.key or (key and self._by_key[other].request.sharing_key == key)
            for other in self._uses.get(address, ())
        )

    def _taken(self, holding: _Holding, address: IpAddress) -> frozenset[int]:
        """Return the ports that other Services have at `address`."""
        uses = self._uses.get(address, {})
        return frozenset(
            port for other, ports in uses.items() if other != holding.key for port in ports
        )

    def _take(self, holding: _Holding, address: IpAddress, ports: frozenset[int]) -> None:
        holding.addresses[family_of(address)] = address
        self._uses.setdefault(address, {})[holding.key] = ports

    def _release(self, holding: _Holding, family: IpFamily) -> None:
        address = holding.addresses.pop(family)
        holding.extern.discard(address)
        self._uses.get(address, {}).pop(holding.key, None)

    def assignment(self, key: ObjectKey) -> Assignment:
        """Return the resulting assignment of a Service."""
        holding = self._by_key[key]
        problems = list(holding.problems)
        addresses = []
        served = {address for address, _ in self._served.get(key, ())}
        for family in holding.families:
            address = holding.addresses.get(family)
            if address is None:
                continue
            is_on_host = self._host.has(address)
            if address in holding.extern:
                problems.append(AddressProblem(AddressGap.NOT_IN_POOL, str(address)))
            elif not is_on_host:
                problems.append(AddressProblem(AddressGap.NOT_ON_HOST, str(address)))
            if address in holding.extern or not (is_on_host or address in served):
                addresses.append(AssignedAddress(address))
                continue
            ports = self._uses[address][key]
            taken = holding.ports - ports
            addresses.append(AssignedAddress(address, tuple(sorted(ports)), tuple(sorted(taken))))
        return Assignment(tuple(addresses), tuple(dict.fromkeys(problems)))
