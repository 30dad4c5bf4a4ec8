"""The addresses that a Service requests by its annotation or by `spec.loadBalancerIP`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from fc_frontend.model.load_balancers import (
    FamilyPolicy,
    IpAddress,
    IpFamily,
    LoadBalancerRequest,
    family_of,
)
from fc_frontend.plan.addresses import NotAnAddress, parse_address


class AddressGap(StrEnum):
    """Why a Service lacks an address, or does not have the one that it requests.

    The values are reasons of a Kubernetes condition.
    """

    NO_PORT = "NoServedPort"
    """It has no TCP port, and HAProxy serves no other protocol."""
    NO_POOL = "NoPool"
    """No pool that it may use has addresses of the family."""
    OUT_OF_ADDRESSES = "OutOfAddresses"
    """All addresses that it may use are taken."""
    NOT_ON_HOST = "AddressNotOnHost"
    """This host does not have the address, or any of the free ones."""
    NOT_IN_POOL = "AddressNotInPool"
    """The address is in no pool that the Service may use."""
    IN_USE = "AddressInUse"
    """Another Service has the address, and does not share it."""
    INVALID_REQUEST = "InvalidAddress"
    """The requested text is not an IP address."""
    CONFLICTING_REQUESTS = "ConflictingRequests"
    """It requests two addresses of one family."""
    WRONG_FAMILY = "WrongAddressFamily"
    """It requests an address of a family that it does not have."""


class AddressProblem(NamedTuple):
    """A problem with an address.  `subject` is the address, family, pool or text concerned."""

    gap: AddressGap
    subject: str = ""


@dataclass(frozen=True, slots=True)
class AddressWish:
    """The address that a Service requests in each family, and the problems with the request."""

    addresses: dict[IpFamily, IpAddress]
    problems: tuple[AddressProblem, ...] = ()


def wanted_families(request: LoadBalancerRequest) -> tuple[IpFamily, ...]:
    """Return the families in which the Service gets an address, in its order (KEP-563)."""
    if request.policy is FamilyPolicy.SINGLE:
        return request.families[:1]
    return request.families


def wish_of(request: LoadBalancerRequest) -> AddressWish:
    """Return the requested addresses; none of them if there are problems."""
    annotated = [part.strip() for part in request.requested.split(",") if part.strip()]
    texts = annotated + ([request.load_balancer_ip] if request.load_balancer_ip else [])
    families = wanted_families(request)
    addresses: dict[IpFamily, IpAddress] = {}
    problems: list[AddressProblem] = []
    for text in texts:
        try:
            address = parse_address(text)
        except NotAnAddress:
            problems.append(AddressProblem(AddressGap.INVALID_REQUEST, text))
            continue
        family = family_of(address)
        if family not in families:
            problems.append(AddressProblem(AddressGap.WRONG_FAMILY, str(address)))
        elif addresses.setdefault(family, address) != address:
            both = f"{addresses[family]} and {address}"
            problems.append(AddressProblem(AddressGap.CONFLICTING_REQUESTS, both))
    return AddressWish({} if problems else addresses, tuple(dict.fromkeys(problems)))
