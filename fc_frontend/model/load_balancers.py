"""Address pools, and the requests of Services of type LoadBalancer.

Imports nothing of fc-frontend's own.  Texts of a Service are unvalidated: treat them as hostile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NamedTuple

IpAddress = IPv4Address | IPv6Address
IpFamily = Literal["ipv4", "ipv6"]

SERVED = "fc-frontend.io/Served"
"""The type of the condition in the status of Services."""
DEFAULT_CLASS = "fc-frontend.io/haproxy"
"""The `loadBalancerClass` of Services that get their address here, unless the settings differ."""


def family_of(address: IpAddress) -> IpFamily:
    """Return the family of an address."""
    return "ipv4" if address.version == 4 else "ipv6"


@dataclass(frozen=True, slots=True)
class AddressRange:
    """The addresses from `first` to `last`, both of one family.  It may be too large to list."""

    first: IpAddress
    last: IpAddress

    @property
    def family(self) -> IpFamily:
        """The family of its addresses."""
        return family_of(self.first)

    @property
    def size(self) -> int:
        """The number of its addresses."""
        return int(self.last) - int(self.first) + 1

    def __contains__(self, address: IpAddress) -> bool:
        return address.version == self.first.version and int(self.first) <= int(address) <= int(
            self.last
        )

    def __iter__(self) -> Iterator[IpAddress]:
        kind = type(self.first)
        return (kind(number) for number in range(int(self.first), int(self.last) + 1))

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def overlaps(self, other: AddressRange) -> bool:
        """Return whether both have an address in common."""
        return self.first in other or other.first in self


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPool:
    """Addresses for Services of type LoadBalancer.

    A pool with `is_default` serves Services that request no pool.  `namespaces` are those whose
    Services may use it, None for all.
    """

    name: str
    ranges: tuple[AddressRange, ...]
    is_default: bool = False
    namespaces: tuple[str, ...] | None = None

    def has(self, address: IpAddress) -> bool:
        """Return whether `address` is in one of its ranges."""
        return any(address in each for each in self.ranges)

    def admits(self, namespace: str) -> bool:
        """Return whether Services of `namespace` may use it."""
        return self.namespaces is None or namespace in self.namespaces


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerSettings:
    """The Services of type LoadBalancer that get an address here, and the pools for it.

    With `is_default`, this includes Services without `loadBalancerClass`.
    """

    class_name: str = DEFAULT_CLASS
    is_default: bool = False
    pools: tuple[AddressPool, ...] = ()

    def owns(self, service: LoadBalancerRequest) -> bool:
        """Return whether this load balancer is responsible for the Service (KEP-1959)."""
        if service.has_left:
            return False
        if service.class_name is None:
            return self.is_default
        return service.class_name == self.class_name


class FamilyPolicy(StrEnum):
    """`ipFamilyPolicy` of a Service (KEP-563)."""

    SINGLE = "SingleStack"
    PREFER_DUAL = "PreferDualStack"
    REQUIRE_DUAL = "RequireDualStack"


class BalancedPort(NamedTuple):
    """A port of a Service, of any protocol."""

    number: int
    protocol: str
    name: str

    @property
    def is_served(self) -> bool:
        """Whether HAProxy can serve it: it does not balance UDP or SCTP."""
        return self.protocol == "TCP"


class PortStatus(NamedTuple):
    """A port in the status of a Service.  `error` is a reason, empty if it is served."""

    number: int
    protocol: str
    error: str


class IngressAddress(NamedTuple):
    """An entry of `status.loadBalancer.ingress`.  `mode` is its `ipMode`, empty without one."""

    address: str
    mode: str
    ports: tuple[PortStatus, ...] = ()


class ServedCondition(NamedTuple):
    """The condition `SERVED` of a Service: whether any port is served, and why not all of them.

    `cause` is its `reason`, one word.
    """

    is_served: bool
    cause: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerRequest:
    """The request of a Service of type LoadBalancer, and its status.

    `created` is its creationTimestamp, which sorts as text.  `requested` are the addresses of the
    annotation, and `load_balancer_ip` is the deprecated field for one.  `affinity` is how many
    seconds a client keeps its pod, None without sessionAffinity.  With `has_left`, it has changed
    to another type, but its status is still that of a load balancer.
    """

    created: str = ""
    class_name: str | None = None
    ports: tuple[BalancedPort, ...] = ()
    families: tuple[IpFamily, ...] = ("ipv4",)
    policy: FamilyPolicy = FamilyPolicy.SINGLE
    requested: str = ""
    load_balancer_ip: str = ""
    pool: str = ""
    sharing_key: str = ""
    source_ranges: tuple[str, ...] = ()
    affinity: int | None = None
    proxy_protocol: str = ""
    ingress: tuple[IngressAddress, ...] = ()
    condition: ServedCondition | None = None
    has_left: bool = False

    @property
    def served_ports(self) -> tuple[int, ...]:
        """The numbers of the ports that HAProxy can serve."""
        return tuple(dict.fromkeys(port.number for port in self.ports if port.is_served))
