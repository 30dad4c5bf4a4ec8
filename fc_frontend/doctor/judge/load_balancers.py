"""Check whether other programs write the status of Services of type LoadBalancer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fc_frontend.doctor.findings import Finding, Group
from fc_frontend.plurals import some

_GROUP = Group("Kubernetes API")
_MOST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """A status that differs from what this frontend writes.

    `foreign` lists addresses with another `ipMode` than this frontend writes; it is empty if the
    status was emptied.  `managers` are its writers, according to the API server's record
    (metadata.managedFields).
    """

    service: str
    foreign: tuple[str, ...] = ()
    managers: tuple[str, ...] = ()


def judge_statuses(statuses: tuple[StatusFacts, ...], *, is_k3s: bool) -> Iterator[Finding]:
    """Report which other programs write the status of Services that get their address here."""
    remedy = "let one program write it: stop the other one, or give it another loadBalancerClass"
    if is_k3s:
        remedy = "ServiceLB of k3s does so for every Service: start k3s with --disable=servicelb"
    for status in statuses[:_MOST_SHOWN]:
        by = f" by {some(status.managers)}" if status.managers else " by another program"
        done = f"set to {some(status.foreign)}" if status.foreign else "emptied"
        yield _GROUP.warning("status of Services", f"{status.service}: {done}{by}", remedy)
    if len(statuses) > _MOST_SHOWN:
        more = len(statuses) - _MOST_SHOWN
        yield _GROUP.warning("status of Services", f"{more} more like these", remedy)
