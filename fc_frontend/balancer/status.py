"""The desired status of a Service of type LoadBalancer.  Pure and deterministic.

An address is added once the running HAProxy has bound it, and is kept while it is assigned to the
Service: an address written by another frontend, or before HAProxy was stopped, is not removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.balancer.assign import PROXY_MODE, AssignedAddress, Assignment
from fc_frontend.balancer.wording import words_of
from fc_frontend.model.load_balancers import (
    IngressAddress,
    IpAddress,
    LoadBalancerRequest,
    PortStatus,
    ServedCondition,
)

MAX_MESSAGE = 500
"""The maximum length of a condition's message; an event takes 1 kB (events.k8s.io/v1, `note`)."""


class PortError(StrEnum):
    """Why a port of a Service is not served (KEP-2087: DOMAIN/CamelCase)."""

    PROTOCOL = "fc-frontend.io/UnsupportedProtocol"
    TAKEN = "fc-frontend.io/PortTaken"
    WITHHELD = "fc-frontend.io/Withheld"


class ServedReason(StrEnum):
    """Reasons of the condition, besides those of `AddressGap`."""

    SERVED = "Served"
    PARTLY = "PartlyServed"
    WITHHELD = "Withheld"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The desired status.  `condition` is None if it is not known to differ."""

    ingress: tuple[IngressAddress, ...] = ()
    condition: ServedCondition | None = None

    def differs_from(self, request: LoadBalancerRequest, *, with_mode: bool = True) -> bool:
        """Return whether the status of the Service has to be written.

        Servers before Kubernetes 1.29 drop `ipMode`: without `with_mode` it is ignored.
        """
        had, has = request.ingress, self.ingress
        if not with_mode:
            had, has = (tuple(each._replace(mode="") for each in side) for side in (had, has))
        return had != has or (self.condition is not None and self.condition != request.condition)


NO_LOAD_BALANCER = ServiceStatus()
"""The status of a Service that is no longer of type LoadBalancer."""


def desired_status(
    request: LoadBalancerRequest,
    assignment: Assignment,
    bound: AbstractSet[tuple[IpAddress, int]],
    withheld: Mapping[int, str],
) -> ServiceStatus:
    """Return the desired status while the running HAProxy has `bound` for the Service.

    `withheld` are the ports whose change is not deployed, with the reason.
    """
    before = {entry.address: entry for entry in request.ingress}
    ingress: list[IngressAddress] = []
    is_served = False
    complaints = [words_of(problem)[0] for problem in assignment.problems]
    pending = False
    for address in assignment.addresses:
        statuses = _port_statuses(request, address, bound, withheld)
        known = before.get(str(address.address))
        if any((address.address, port) in bound for port in address.ports):
            is_served = True
            errors = any(status.error for status in statuses)
            ports = tuple(statuses) if errors else ()
            ingress.append(IngressAddress(str(address.address), PROXY_MODE, ports))
        elif known is not None and known.mode == PROXY_MODE:
            ingress.append(known)
        pending = pending or any(
            (address.address, port) not in bound and port not in withheld for port in address.ports
        )
        complaints += [
            f"port {port} of {address.address} is in use by another Service"
            for port in address.taken
        ]
    complaints += [f"port {port} is not served: {why}" for port, why in sorted(withheld.items())]
    if not assignment.problems:
        complaints += [
            f"{port.number}/{port.protocol} is not served: HAProxy balances TCP only"
            for port in request.ports
            if not port.is_served
        ]
    if pending or (ingress and not is_served):
        # Not decided yet, or served by another frontend: the status describes that.
        return ServiceStatus(tuple(ingress), request.condition)
    condition = _condition(assignment, complaints, withheld, is_served=is_served)
    return ServiceStatus(tuple(ingress), condition)


def _port_statuses(
    request: LoadBalancerRequest,
    address: AssignedAddress,
    bound: AbstractSet[tuple[IpAddress, int]],
    withheld: Mapping[int, str],
) -> list[PortStatus]:
    statuses = []
    for port in request.ports:
        error = ""
        if not port.is_served:
            error = PortError.PROTOCOL.value
        elif port.number in address.taken:
            error = PortError.TAKEN.value
        elif port.number in withheld and (address.address, port.number) not in bound:
            error = PortError.WITHHELD.value
        statuses.append(PortStatus(port.number, port.protocol, error))
    return statuses


def _condition(
    assignment: Assignment,
    complaints: list[str],
    withheld: Mapping[int, str],
    *,
    is_served: bool,
) -> ServedCondition:
    message = "; ".join(complaints)
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 1] + "…"
    if is_served:
        reason = ServedReason.PARTLY if complaints else ServedReason.SERVED
        return ServedCondition(True, reason.value, message or "served by HAProxy")
    if assignment.problems:
        return ServedCondition(False, assignment.problems[0].gap.value, message)
    reason = ServedReason.WITHHELD if withheld else ServedReason.PARTLY
    return ServedCondition(False, reason.value, message)
