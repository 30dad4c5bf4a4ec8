"""Explain a Kubernetes Service step by step: its address, and the services for its ports.

Service → address → status → the explanation of each of its services
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fc_frontend.balancer.declare import unit_name
from fc_frontend.errors import Problem, Unavailable
from fc_frontend.explain.collect import declared, facts_of
from fc_frontend.explain.facts import Facts
from fc_frontend.explain.steps import Step, StepVerdict
from fc_frontend.kubernetes.health import find_service
from fc_frontend.model.load_balancer_state import BalancedService, LoadBalancerView
from fc_frontend.model.load_balancers import LoadBalancerRequest, LoadBalancerSettings
from fc_frontend.plan.cluster_objects import KubeService, ObjectKey
from fc_frontend.plan.model import ApiSettings
from fc_frontend.text import one_line

PREFIX = "svc/"
_SECONDS = 2.0
_RBAC = "kubectl apply -f contrib/kubernetes/rbac-load-balancer.yaml"


@dataclass(frozen=True, slots=True)
class KubeServiceFacts:
    """The facts about a Service: its own `steps`, and the `services` that serve its ports."""

    name: str
    steps: tuple[Step, ...]
    services: tuple[Facts, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the Service in the format of all JSON output."""
        return {"name": self.name, "steps": [each.as_json() for each in self.steps]}


def key_of(text: str) -> ObjectKey:
    """Parse `svc/NAMESPACE/NAME`.  Raises `Unavailable`."""
    match text.removeprefix(PREFIX).split("/"):
        case [namespace, name] if namespace and name:
            return ObjectKey(namespace, name)
    raise Unavailable.of(f"{text[:100]!r} names no Service", "write svc/NAMESPACE/NAME")


def collect_service(settings_file: str, text: str) -> KubeServiceFacts:
    """Collect the facts about the Service `text`, in a few seconds.  Raises `Unavailable`."""
    key = key_of(text)
    known = declared(settings_file, judged=True)
    settings = known.declaration.settings
    found = _found(settings.cluster.api, key)
    request = found.load_balancer if isinstance(found, KubeService) else None
    owned = bool(settings.load_balancer and request and settings.load_balancer.owns(request))
    names = {
        spec.name for spec in known.declaration.services if (spec.namespace, spec.service) == key
    }
    # Ports with a withheld change have no service yet.
    names |= {unit_name(key, port) for port in request.served_ports} if request and owned else set()
    services = tuple(facts_of(settings_file, name, known, known.prepared) for name in sorted(names))
    view = known.daemon.load_balancers if known.daemon else None
    others = [each for each in services if each.spec is not None]
    steps = [_service(key, found, settings.load_balancer, others)]
    if owned and request is not None:
        steps += balancer_steps(key, request, view)
    return KubeServiceFacts(f"{PREFIX}{key.namespace}/{key.name}", tuple(steps), services)


def _found(api: ApiSettings | None, key: ObjectKey) -> KubeService | Problem | None:
    """Return the Service from the API server, None without one, or why the query failed."""
    if api is None:
        return Problem("the Kubernetes API is not asked", "set cluster.api")
    try:
        return asyncio.run(find_service(api, key, _SECONDS))
    except Unavailable as exc:
        return exc.problem


def _service(
    key: ObjectKey,
    found: KubeService | Problem | None,
    balancer: LoadBalancerSettings | None,
    services: Iterable[Facts],
) -> Step:
    """Judge whether the Service exists, and whether this frontend serves it."""
    is_declared = any(True for _ in services)
    if isinstance(found, Problem):
        return Step(
            name="Service",
            verdict=StepVerdict.UNKNOWN if is_declared else StepVerdict.BAD,
            said=found.message,
            remedy=found.remedy,
        )
    if found is None:
        return Step(
            name="Service",
            verdict=StepVerdict.BAD,
            said=f"the Kubernetes API has no Service {key.name} in namespace {key.namespace}",
            remedy="create it, or correct the name",
        )
    ports = ", ".join(str(port.number) for port in found.ports) or "none"
    said = f"type {found.type}, TCP ports: {ports}"
    why, remedy = _left_alone(found, balancer)
    if why and is_declared:
        return Step(name="Service", verdict=StepVerdict.OK, said=f"{said}; declared in a file")
    if why:
        return Step(name="Service", verdict=StepVerdict.BAD, said=f"{said}; {why}", remedy=remedy)
    return Step(name="Service", verdict=StepVerdict.OK, said=f"{said}; gets its address here")


def _left_alone(found: KubeService, balancer: LoadBalancerSettings | None) -> tuple[str, str]:
    """Return why the Service gets no address here, and the remedy; empty if it gets one."""
    request = found.load_balancer
    if found.type != "LoadBalancer" or request is None:
        return (
            "no service of this frontend leads to it",
            "give it type LoadBalancer, or declare a service in services.d",
        )
    if balancer is None:
        return "load_balancer is not set", "set load_balancer with a pool"
    if balancer.owns(request):
        return "", ""
    if request.class_name is None:
        return (
            "it has no loadBalancerClass, and load_balancer.default is false",
            f"create it with loadBalancerClass: {balancer.class_name}, or set default: true",
        )
    return (
        f"its loadBalancerClass is {one_line(request.class_name, 100)}",
        f"the class of this frontend is {balancer.class_name}; a class cannot be changed",
    )


def balancer_steps(
    key: ObjectKey, request: LoadBalancerRequest, view: LoadBalancerView | None
) -> Iterator[Step]:
    """Yield the steps about the address of a Service and about its status."""
    if view is None:
        yield Step(
            name="address",
            verdict=StepVerdict.UNKNOWN,
            said="the daemon does not say: it assigns addresses",
            remedy="see `fc-frontend status`",
        )
        return
    balanced = next((s for s in view.services if (s.namespace, s.name) == key), None)
    if balanced is None:
        yield Step(
            name="address",
            verdict=StepVerdict.WARN,
            said="the daemon does not know the Service yet",
            remedy="ask again; see whether the API is watched: `fc-frontend status`",
        )
        return
    yield _address(balanced)
    yield _status(balanced, request, view)


def _address(balanced: BalancedService) -> Step:
    addresses = ", ".join(balanced.addresses)
    details = tuple(f"{message} → {remedy}" for message, remedy in balanced.problems[1:])
    if not balanced.problems:
        return Step(name="address", verdict=StepVerdict.OK, said=addresses or "none is needed")
    message, remedy = balanced.problems[0]
    return Step(
        name="address",
        verdict=StepVerdict.WARN if addresses else StepVerdict.BAD,
        said=f"{addresses}; but it {message}" if addresses else f"it {message}",
        remedy=remedy,
        details=details,
    )


def _status(
    balanced: BalancedService, request: LoadBalancerRequest, view: LoadBalancerView
) -> Step:
    """Judge whether the status in the cluster lists the addresses, and report who writes it."""
    published = tuple(one_line(each.address) for each in request.ingress)
    said = ", ".join(published) or "no address"
    if request.condition is not None:
        said += f" ({one_line(request.condition.cause)})"
    writer = "this frontend" if view.is_leader else view.holder
    if set(published) == set(balanced.addresses):
        verdict, remedy = StepVerdict.OK, ""
    elif writer:
        verdict = StepVerdict.WARN
        remedy = f"{writer} writes it once HAProxy has the address bound: see the log there"
    else:
        verdict, remedy = StepVerdict.WARN, f"nobody holds the Lease: {_RBAC}"
    if balanced.overwritten:
        verdict = StepVerdict.WARN
        said += f"; others have overwritten it {balanced.overwritten} times"
        remedy = "see who: `fc-frontend doctor`"
    return Step(
        name="status",
        verdict=verdict,
        said=f"{said}, written by {writer or 'nobody'}",
        remedy=remedy,
    )
