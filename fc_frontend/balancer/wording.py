"""Messages for operators and users of the cluster about Services without an address."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fc_frontend.balancer.assign import Assignment
from fc_frontend.balancer.declare import origin_of
from fc_frontend.balancer.requests import AddressGap, AddressProblem
from fc_frontend.errors import Problem, Severity
from fc_frontend.model.load_balancers import LoadBalancerRequest
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.load_balancer_objects import ADDRESSES_ANNOTATION, POOL_ANNOTATION

_WORDS: Mapping[AddressGap, tuple[str, str]] = {
    AddressGap.NO_PORT: (
        "has no TCP port, and HAProxy balances no other protocol",
        "give it a TCP port, or another loadBalancerClass",
    ),
    AddressGap.NO_POOL: (
        "gets no address: no pool for it ({subject})",
        f"name a pool in the annotation {POOL_ANNOTATION}, or let a pool in "
        "load_balancer.pools have addresses of the family, default: true and the namespace",
    ),
    AddressGap.OUT_OF_ADDRESSES: (
        "gets no address: all {subject} addresses of its pools are in use",
        "add addresses to the pool in load_balancer.pools, or delete Services",
    ),
    AddressGap.NOT_ON_HOST: (
        "{subject} is not an address of this host",
        "add it to an interface, or set net.ipv4.ip_nonlocal_bind or net.ipv6.ip_nonlocal_bind",
    ),
    AddressGap.NOT_IN_POOL: (
        "{subject} is in no pool that it may use",
        "ask for another address, or add this one to load_balancer.pools",
    ),
    AddressGap.IN_USE: (
        "{subject} is in use by another Service",
        "ask for another address, or share it with an equal sharing key and other ports",
    ),
    AddressGap.INVALID_REQUEST: (
        "asks for {subject!r}, which is not an IP address",
        f"correct the annotation {ADDRESSES_ANNOTATION} or spec.loadBalancerIP",
    ),
    AddressGap.CONFLICTING_REQUESTS: (
        "asks for two addresses of one family: {subject}",
        f"give one in the annotation {ADDRESSES_ANNOTATION}, and leave out spec.loadBalancerIP",
    ),
    AddressGap.WRONG_FAMILY: (
        "asks for {subject}, which is not of its ipFamilies",
        "ask for an address of its families, or change spec.ipFamilyPolicy and spec.ipFamilies",
    ),
}


def words_of(problem: AddressProblem) -> tuple[str, str]:
    """Return the message and the remedy for a problem with the address of a Service."""
    message, remedy = _WORDS[problem.gap]
    return message.format(subject=problem.subject), remedy


def problems_of(
    services: Mapping[ObjectKey, LoadBalancerRequest], assignments: Mapping[ObjectKey, Assignment]
) -> tuple[Problem, ...]:
    """Return warnings for Services that are not served, or not at all ports."""
    return tuple(
        Problem(
            message if field else f"Service {message}",
            remedy,
            severity=Severity.WARNING,
            file=origin_of(key),
            field=field,
        )
        for key, assignment in assignments.items()
        for field, message, remedy in _complaints(services[key], assignment)
    )


def _complaints(
    request: LoadBalancerRequest, assignment: Assignment
) -> Iterator[tuple[str | None, str, str]]:
    for problem in assignment.problems:
        yield None, *words_of(problem)
    if request.served_ports:
        for port in request.ports:
            if not port.is_served:
                message = f"{port.number}/{port.protocol} is not served: HAProxy balances TCP only"
                yield "spec.ports", message, "use another load balancer for it"
    for address in assignment.addresses:
        for number in address.taken:
            message = f"port {number} of {address.address} is used by a Service that shares it"
            yield "spec.ports", message, "give one of the two another port or address"
