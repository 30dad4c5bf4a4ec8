"""Check the API server, its nodes, the daemon's access, and the networks in the settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from fc_frontend.doctor.findings import Finding, Group
from fc_frontend.doctor.judge.load_balancers import StatusFacts, judge_statuses
from fc_frontend.doctor.judge.machine import judge_date
from fc_frontend.model.api_state import EXPIRY_WARNING
from fc_frontend.plan.cluster_health import ApiResponse, ClusterHealth, Node
from fc_frontend.plan.model import Cluster, Standby
from fc_frontend.plan.slices import SliceGap
from fc_frontend.plurals import counted, some

_GROUP = Group("Kubernetes API")
_RBAC = "kubectl apply -f contrib/kubernetes/rbac.yaml"
_BALANCER_RBAC = "kubectl apply -f contrib/kubernetes/rbac-load-balancer.yaml"
_NEW = "make new ones: contrib/kubernetes/kubeconfig"
_MAX_SHOWN = 5
"""The number of findings of one kind that are shown; the others are counted."""
_PASSES = (SliceGap.NO_ENDPOINTS, SliceGap.NOT_READY)
"""Gaps that the declaration does not cause, and that may disappear by themselves."""


@dataclass(frozen=True, slots=True)
class Right:
    """Whether the daemon's credentials permit something; `allowed` is None if unknown.

    Without a right that is not needed, only `doctor` reports less.
    """

    verb: str
    resource: str
    allowed: bool | None
    is_needed: bool = True


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """The API's data about the declared service `name`, as the daemon sees it.

    `gap` is why it has no pods; `error` and `remedy` describe it.  `is_reached` is whether this
    host reaches the cluster IP of its standby, or None if that was not tried.
    """

    name: str
    gap: SliceGap | None = None
    error: str | None = None
    remedy: str = ""
    standby: Standby | None = None
    is_reached: bool | None = None
    is_checked: bool = True


@dataclass(frozen=True, slots=True)
class DaemonAccess:
    """The daemon's access to the API.

    `user` is the user it runs as, `unreadable` lists the files that this user may not read.
    `failure` is why the API cannot be watched, or None.
    """

    user: str
    unreadable: tuple[str, ...] = ()
    rights: tuple[Right, ...] = ()
    services: tuple[ServiceFacts, ...] = ()
    failure: str | None = None
    balancer_rights: tuple[Right, ...] = ()
    statuses: tuple[StatusFacts, ...] = ()
    """The statuses of Services of type LoadBalancer that other programs have written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesFacts:
    """The API server's answers, and the properties of the access to it."""

    health: ClusterHealth
    readable_by_others: bool = False
    verified: bool = True
    credential_days: float | None = None
    """The days until the token or client certificate expires, if known."""
    daemon: DaemonAccess | None = None
    """The daemon's access, or None if another access was used."""


def judge_kubernetes(cluster: Cluster, facts: KubernetesFacts) -> tuple[Finding, ...]:
    """Judge the API, its nodes, the access to it, and whether the settings have its networks."""
    return tuple(_kubernetes(cluster, facts))


def _kubernetes(cluster: Cluster, facts: KubernetesFacts) -> Iterator[Finding]:
    if facts.readable_by_others:
        yield _GROUP.warning(
            "kubeconfig",
            "other users may read the file, which gives access to the cluster",
            "chmod 600 the file",
        )
    if facts.daemon is not None and facts.daemon.unreadable:
        yield _GROUP.problem(
            "credentials file",
            f"the daemon's user {facts.daemon.user} may not read {some(facts.daemon.unreadable)}",
            f"change the owner: chown {facts.daemon.user}",
        )
    yield _ready(facts)
    if facts.health.ready.status is None:
        return
    if not facts.verified:
        yield _GROUP.warning(
            "certificate",
            "not verified (insecure-skip-tls-verify): anybody could pose as the API",
            "use a kubeconfig with the cluster's certificate-authority-data",
        )
    elif (left := facts.health.certificate_days) is not None and left < 14:
        yield _GROUP.warning(
            "certificate",
            f"the API's certificate expires in {counted(round(left), 'day')}",
            "renew it on the control plane",
        )
    if facts.health.ready.ahead is not None:
        yield judge_date("the API server", facts.health.ready.ahead)
    if (days := facts.credential_days) is not None and days * 86400 < EXPIRY_WARNING:
        ends = "has expired" if days <= 0 else f"expires in {counted(round(days), 'day')}"
        result = _GROUP.problem if days <= 0 else _GROUP.warning
        yield result("credentials", f"the token or client certificate {ends}", _NEW)
    if facts.daemon is not None:
        yield from _rights("rights", facts.daemon.rights, _RBAC)
        yield from _rights("rights of load_balancer", facts.daemon.balancer_rights, _BALANCER_RBAC)
        yield from _watched(facts.daemon)
        yield from judge_statuses(facts.daemon.statuses, is_k3s=facts.health.is_k3s)
    if facts.health.nodes is not None:
        yield _nodes(facts.health)
        yield from _networks(cluster, facts.health.nodes)
    elif facts.daemon is None or facts.health.listed.status not in (401, 403):
        yield _refusal("nodes", facts.health.listed)


def _rights(check: str, rights: tuple[Right, ...], remedy: str) -> Iterator[Finding]:
    for is_needed, result in ((True, _GROUP.problem), (False, _GROUP.warning)):
        missing = [
            f"{right.verb} {right.resource}"
            for right in rights
            if right.allowed is False and right.is_needed is is_needed
        ]
        if missing:
            yield result(check, f"the credentials may not {some(missing, len(rights))}", remedy)
    if any(right.allowed is None for right in rights):
        yield _GROUP.unknown(
            check, "the API server does not list all rights", "see `kubectl auth can-i --list`"
        )
    elif rights and all(right.allowed for right in rights):
        yield _GROUP.ok(check, "all required rights")


def _watched(daemon: DaemonAccess) -> Iterator[Finding]:
    """Judge the declared services as the daemon sees them, and what serves them without it."""
    if daemon.failure is not None:
        yield _GROUP.problem(
            "watch", f"cannot be watched: {daemon.failure}", "see the other findings"
        )
    failed = sorted((s for s in daemon.services if s.error), key=lambda s: s.gap in _PASSES)
    for service in failed[:_MAX_SHOWN]:
        result = _GROUP.warning if service.gap in _PASSES else _GROUP.problem
        yield result("services", f"{service.name}: {service.error}", service.remedy)
    if len(failed) > _MAX_SHOWN:
        more = counted(len(failed) - _MAX_SHOWN, "more service")
        yield _GROUP.warning(
            "services", f"{more} without pods", "`fc-frontend status` names all of them"
        )
    if daemon.services and not failed:
        yield _GROUP.ok("services", f"all {len(daemon.services)} have ready pods")
    yield from _standbys(daemon.services)
    if unchecked := [service.name for service in daemon.services if not service.is_checked]:
        yield _GROUP.warning(
            "health checks",
            f"{some(unchecked)}: without them, a dead pod gets requests while the daemon or the "
            "API does not answer",
            "use check: true",
        )


def _standbys(services: tuple[ServiceFacts, ...]) -> Iterator[Finding]:
    without = [each.name for each in services if not each.standby and each.gap is None]
    if without:
        yield _GROUP.warning(
            "standby",
            f"{some(without)}: no standby replaces pods that leave while the daemon is stopped",
            "the Kubernetes Service needs a port that leads to the pods' port, and a cluster IP "
            "in cluster.service_network",
        )
    unreached = [
        f"{each.standby.address} ({each.name})"
        for each in services
        if each.standby and each.is_reached is False
    ]
    if unreached:
        yield _GROUP.warning(
            "cluster IPs",
            f"this host cannot reach {some(unreached)}, which serve while the daemon is stopped",
            "add a route for cluster.service_network via a node",
        )
    elif any(each.is_reached for each in services):
        yield _GROUP.ok("cluster IPs", "this host reaches them")


def _ready(facts: KubernetesFacts) -> Finding:
    status = facts.health.ready.status
    if status == 200:
        return _GROUP.ok("readyz", f"{facts.health.server} is ready")
    if status is None:
        return _GROUP.problem(
            "readyz",
            f"{facts.health.server} cannot be reached: {facts.health.ready.said}",
            "check its address, the route to it and its certificates; HAProxy "
            "keeps serving without the API, but does not follow changes of the cluster",
        )
    if status == 401 and facts.daemon is not None:
        return _GROUP.problem(
            "readyz", f"{facts.health.server} does not accept the daemon's credentials (401)", _NEW
        )
    if status in (401, 403):
        return _refusal("readyz", facts.health.ready)
    return _GROUP.problem(
        "readyz",
        f"{facts.health.server} answers {status}: {facts.health.ready.said}",
        "`kubectl get --raw '/readyz?verbose'` names the check that fails",
    )


def _refusal(check: str, response: ApiResponse) -> Finding:
    if response.status == 401:
        return _GROUP.unknown(
            check,
            "the API server does not accept the certificate or token (401)",
            "make a new kubeconfig: contrib/kubernetes/kubeconfig",
        )
    if response.status == 403:
        return _GROUP.unknown(
            check,
            "these credentials do not permit it (403)",
            "use credentials that may get /readyz and list nodes",
        )
    said = f"{response.status}: {response.said}" if response.status else response.said
    return _GROUP.unknown(check, said or "no valid answer", "try `kubectl get nodes`")


def _nodes(health: ClusterHealth) -> Finding:
    ready, unready = health.ready_nodes, health.unready_nodes
    if not ready:
        return _GROUP.problem(
            "nodes",
            f"none is ready: {unready}" if health.nodes else "the cluster has none",
            "see `kubectl describe node`",
        )
    if unready:
        return _GROUP.warning(
            "nodes",
            f"{len(ready)} of {len(health.nodes or ())} are ready; not ready: {unready}",
            "see `kubectl describe node`",
        )
    return _GROUP.ok("nodes", f"{len(ready)} are ready: {some(ready)}")


def _networks(cluster: Cluster, nodes: tuple[Node, ...]) -> Iterator[Finding]:
    outside = [
        f"{text} ({node.name})"
        for node in nodes
        for text in node.pod_networks
        if not _inside(text, cluster)
    ]
    if outside:
        yield _GROUP.problem(
            "pod network",
            f"pods of nodes are in {some(outside)}, outside of cluster.pod_network "
            f"({some(cluster.pod_networks)})",
            "correct cluster.pod_network: addresses outside of it get no traffic",
        )
    elif any(node.pod_networks for node in nodes):
        yield _GROUP.ok("pod network", "all nodes' pods lie in cluster.pod_network")
    known = {text for node in nodes for text in node.addresses}
    strange = [
        f"{name} ({address})"
        for name, address in cluster.nodes.items()
        if str(address) not in known
    ]
    if known and strange:
        yield _GROUP.problem(
            "cluster.nodes",
            f"no node has the address of {some(strange)}",
            "correct cluster.nodes; `kubectl get nodes -o wide` shows their addresses",
        )


def _inside(text: str, cluster: Cluster) -> bool:
    try:
        network = ip_network(text)
    except ValueError:
        return True
    return any(
        network.version == own.version
        and network.network_address in own
        and network.prefixlen >= own.prefixlen
        for own in cluster.pod_networks
    )
