"""Explain one service step by step, with a verdict for each step.

    declaration → DNS → networks → slots → servers → bind → configuration

Pure: turns facts into text.  A step is bad if it makes requests fail or leaves pods without
traffic.  It is a warning if it should be fixed although the service serves.  The first bad step is
therefore the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from fc_frontend.errors import Cause, Problem, errors_in
from fc_frontend.explain.facts import (
    BindFact,
    Facts,
    Held,
    Listening,
    Server,
    slots_of,
)
from fc_frontend.model.service_state import Health
from fc_frontend.plan import slots
from fc_frontend.plan.model import Answer, Freshness, Kind, Network, ServiceSpec, Target
from fc_frontend.plan.slices import is_of_api_servers
from fc_frontend.plurals import counted
from fc_frontend.text import one_line

_SHOWN = 20
_DETAILS = 40


class StepVerdict(StrEnum):
    """The verdict on a step, best first."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARN = "warn"
    BAD = "bad"


_ORDER = tuple(StepVerdict)


def worst(verdicts: Iterable[StepVerdict]) -> StepVerdict:
    """Return the worst verdict, or unknown if there are none."""
    return max(verdicts, key=_ORDER.index, default=StepVerdict.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step: the result, and the remedy if something is wrong."""

    name: str
    verdict: StepVerdict
    said: str
    remedy: str = ""
    details: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the step in the format of all JSON output."""
        return {
            "step": self.name,
            "verdict": self.verdict.value,
            "said": self.said,
            "remedy": self.remedy,
            "details": list(self.details),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All steps of a service, with a one-line summary."""

    service: str
    steps: tuple[Step, ...]
    serves: bool
    summary: str

    @property
    def verdict(self) -> StepVerdict:
        """The worst verdict of all steps; unknown counts only for the step servers."""
        known = [
            step.verdict
            for step in self.steps
            if step.verdict is not StepVerdict.UNKNOWN or step.name == "servers"
        ]
        return worst(known)

    @property
    def cause(self) -> Step | None:
        """The first bad step."""
        return next((step for step in self.steps if step.verdict is StepVerdict.BAD), None)


def explain(facts: Facts) -> Explanation:
    """Explain at which step the service fails, if at any."""
    is_served = _is_served(facts)
    steps = (
        _declaration(facts),
        _dns(facts, is_served),
        _networks(facts),
        _slots(facts),
        _servers(facts),
        _bind(facts),
        _configuration(facts),
    )
    serves = is_served and all(
        step.verdict is not StepVerdict.BAD for step in steps if step.name == "bind"
    )
    explanation = Explanation(service=facts.name, steps=steps, serves=serves, summary="")
    return replace(explanation, summary=_summary(facts, explanation))


def _is_served(facts: Facts) -> bool:
    return facts.proxy is not None and any(s.health is Health.UP for s in facts.proxy.servers)


def _summary(facts: Facts, explanation: Explanation) -> str:
    name, cause = facts.name, explanation.cause
    if explanation.serves:
        binds = ", ".join(bind.bind for bind in facts.binds)
        said = f"{name} serves: {_up(facts)}" + (f" on {binds}" if binds else "")
        worst = cause or next((s for s in explanation.steps if s.verdict is StepVerdict.WARN), None)
        return f"{said}; but {worst.said}" if worst else said
    if cause is None:
        # Without the state of its servers, it is unknown whether the service serves.
        steps = sorted(explanation.steps, key=lambda step: step.name != "servers")
        unknown = next((step for step in steps if step.verdict is StepVerdict.UNKNOWN), None)
        return f"{name}: {unknown.said}" if unknown else f"{name}: unknown"
    said = f"{name}: {_what_clients_see(facts, explanation)}, because {cause.said}"
    if any(s.name == "declaration" and s.verdict is StepVerdict.WARN for s in explanation.steps):
        # Otherwise, the author of that change would look for the fault in a change not in force.
        said += "; the latest change is withheld: see the step declaration"
    return said


def _what_clients_see(facts: Facts, explanation: Explanation) -> str:
    is_bound = any(
        step.verdict is not StepVerdict.BAD for step in explanation.steps if step.name == "bind"
    )
    if facts.proxy is None or not is_bound:
        return "not served"
    return "503" if facts.spec is None or facts.spec.mode == "http" else "connections are closed"


def _up(facts: Facts) -> str:
    assert facts.proxy is not None
    own = [s for s in facts.proxy.servers if s.health is not Health.FREE and not s.is_backup]
    up = sum(server.health is Health.UP for server in own)
    kind = facts.planned.kind if facts.planned else None
    if kind is Kind.SERVICE:
        return "the cluster IP is up"
    if not up:
        return "the cluster IP takes the place of its pods"
    return f"{up} of {counted(len(own), 'node' if kind is Kind.NODES else 'pod')} up"


# Declaration


def _declaration(facts: Facts) -> Step:
    own = [held for held in facts.withheld if held.kind in ("service", "file")]
    name = "declaration"
    if facts.spec is None:
        if own:
            # The last good form is not visible without access to the state directory.
            is_kept = own[0].is_kept and facts.proxy is not None
            return _held_step(own[0], StepVerdict.WARN if is_kept else StepVerdict.BAD)
        near = f"did you mean {facts.declared[0]}?" if facts.declared else ""
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said=f"no service {one_line(facts.name)[:80]} is declared",
            remedy=near
            or f"declare it in {facts.settings_file}, or in a file in services.d beside it",
        )
    spec = facts.spec
    if facts.withheld:
        # The service's own withheld change takes precedence.
        held = (own or facts.withheld)[0]
        return _held_step(held, StepVerdict.WARN)
    details = [f"Service {spec.service} in namespace {spec.namespace}, {spec.target} {spec.port}"]
    said = f"declared in {facts.place}" if facts.place else "declared"
    return Step(name=name, verdict=StepVerdict.OK, said=said, details=tuple(details))


def _held_step(held: Held, verdict: StepVerdict) -> Step:
    problem = held.problems[0] if held.problems else None
    is_own = held.kind == "service"
    said = "refused"
    if problem:
        said = (replace(problem, service=None) if is_own else problem).statement
    subject = "it is" if is_own else f"the {held} is"
    if held.is_kept:
        subject = f"the latest change{'' if is_own else f' of the {held}'} is"
    remedy = problem.remedy if problem else ""
    more = [_words(other) for other in held.problems[1:]]
    return Step(
        name="declaration",
        verdict=verdict,
        said=f"{subject} withheld ({held.effect}): {one_line(said)}",
        remedy=remedy,
        details=tuple(more[:_SHOWN]),
    )


def _words(problem: Problem) -> str:
    return one_line(replace(problem, remedy=""))


# DNS


def _dns(facts: Facts, is_served: bool) -> Step:
    answer, spec = facts.now, facts.spec
    if spec is None or answer is None:
        return Step(
            name="dns",
            verdict=StepVerdict.UNKNOWN,
            said="DNS not queried: unknown service",
        )
    if answer.kind is Kind.NODES:
        return Step(name="dns", verdict=StepVerdict.OK, said="needs no DNS: the cluster's nodes")
    if answer.kind is Kind.API:
        return _api(facts, answer)
    step = _dns_failed(facts, answer) if answer.freshness is not Freshness.FRESH else None
    step = step or _dns_answered(answer, spec) or _dns_nobody(facts, answer, spec)
    if step.verdict is StepVerdict.BAD and (is_served or _failed_before_dns(facts, answer)):
        # HAProxy keeps its servers: for `hold` seconds, or for a day if DNS does not answer.
        kept = f"HAProxy keeps its servers {_for_how_long(facts, answer)}"
        return replace(step, verdict=StepVerdict.WARN, details=(kept, *step.details))
    return step


def _api(facts: Facts, answer: Answer) -> Step:
    """Judge the Kubernetes API's answer about the endpoints of the Service."""
    name = "api"
    if answer.freshness is not Freshness.FRESH:
        return Step(
            name=name,
            verdict=StepVerdict.WARN if facts.before is not None else StepVerdict.BAD,
            said=one_line(answer.error or "the Kubernetes API gives no answer"),
            remedy="see `fc-frontend doctor`; HAProxy keeps its servers",
        )
    if not answer.endpoints:
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said=one_line(answer.error or "the Kubernetes API shows no ready pods"),
            remedy=one_line(answer.remedy),
        )
    said = f"the Kubernetes API shows {counted(len(answer.endpoints), 'ready pod')}"
    said += f", {counted(len(answer.draining), 'pod')} terminating" if answer.draining else ""
    standby = answer.standby
    details: tuple[str, ...]
    if standby is None:
        details = ("it has no standby: without the daemon, HAProxy keeps the pods it has",)
    elif standby.address is not None:
        details = (f"its standby is the cluster IP {standby.address}, port {standby.port}",)
    else:
        details = (f"its standby is cluster DNS: {standby.name}, port {standby.port}",)
    return Step(name=name, verdict=StepVerdict.OK, said=said, details=details)


def _failed_before_dns(facts: Facts, answer: Answer) -> bool:
    """Return whether the servers went down before cluster DNS stopped answering.

    Cluster DNS is then not the cause.
    """
    if answer.freshness is Freshness.FRESH or facts.age is None or facts.proxy is None:
        return False
    down = [s.seconds for s in facts.proxy.servers if s.health is Health.DOWN]
    return bool(down) and all(seconds is not None and seconds > facts.age for seconds in down)


def _for_how_long(facts: Facts, answer: Answer) -> str:
    return "for a day" if answer.freshness is not Freshness.FRESH else f"for {facts.hold:g} s"


def _dns_failed(facts: Facts, answer: Answer) -> Step:
    error = one_line(answer.error or "no answer")
    servers = " and ".join(str(server) for server in facts.cluster.nameservers[:3])
    query = facts.planned.query if facts.planned else None
    if answer.failure is Cause.SERVFAIL:
        remedy = (
            "CoreDNS has no data: it has not reached the API server, or the domain is not its own; "
            "see `kubectl -n kube-system logs -l k8s-app=kube-dns`, and cluster.domain "
            f"({facts.cluster.domain})"
        )
    elif answer.failure is Cause.REFUSED:
        remedy = (
            f"the nameserver does not answer this host: see CoreDNS's acl, and whether {servers} "
            "are the cluster's"
        )
    elif answer.failure is Cause.UNUSABLE_ANSWER:
        remedy = f"see whether TCP to {servers} is open, and what answers there (`dig +tcp`)"
    else:
        host = facts.cluster.nameservers[0].address if facts.cluster.nameservers else "NAMESERVER"
        port = facts.cluster.nameservers[0].port if facts.cluster.nameservers else 53
        remedy = (
            f"see whether this host reaches it (`dig -p {port} @{host} {query or ''}`): routes, "
            "firewall, and CoreDNS's pods"
        )
    details = []
    if facts.before is not None and facts.before.freshness is not Freshness.UNKNOWN:
        pods = counted(len(facts.before.endpoints), "pod")
        details.append(f"the last good answer{_age(facts)} named {pods}")
    else:
        details.append("it never gave a good answer")
    return Step(
        name="dns",
        verdict=StepVerdict.BAD,
        said=f"cluster DNS gives no answer: {error}",
        remedy=remedy,
        details=tuple(details),
    )


def _age(facts: Facts) -> str:
    return "" if facts.age is None else f", {duration(facts.age)} ago,"


def _dns_answered(answer: Answer, spec: ServiceSpec) -> Step | None:
    found = len(answer.endpoints) + len(answer.rejected)
    if not found:
        return None
    said = f"cluster DNS names {counted(found, 'address', 'addresses')}"
    said += f": {one_line(answer.reason)}" if answer.endpoints else ""
    if answer.cause is Cause.NO_WILDCARDS:
        return Step(
            name="dns",
            verdict=StepVerdict.WARN,
            said=f"wildcards are not supported by this CoreDNS: {one_line(answer.reason)}",
            remedy=one_line(answer.remedy),
            details=_manifest(spec),
        )
    if answer.endpoints and answer.remedy:
        return Step(name="dns", verdict=StepVerdict.WARN, said=said, remedy=one_line(answer.remedy))
    return Step(name="dns", verdict=StepVerdict.OK, said=said)


def _manifest(spec: ServiceSpec) -> tuple[str, ...]:
    return (
        "the Service, made headless:",
        "apiVersion: v1",
        "kind: Service",
        "metadata:",
        f"  name: {spec.service}",
        f"  namespace: {spec.namespace}",
        "spec:",
        "  clusterIP: None",
        "",
        "clusterIP cannot be changed in place: make the Service anew (`kubectl replace --force`),",
        "or add a second, headless one with the same selector and name it in `service:`.",
    )


def _dns_nobody(facts: Facts, answer: Answer, spec: ServiceSpec) -> Step:
    """Explain NXDOMAIN, or a name without addresses."""
    where = f"{spec.service} in namespace {spec.namespace}"
    query = facts.planned.query if facts.planned else None
    look = f"`kubectl -n {spec.namespace} get service,endpointslices,pods`"
    if answer.cause is Cause.NO_WILDCARDS:
        return Step(
            name="dns",
            verdict=StepVerdict.BAD,
            said=f"wildcards are not supported by this CoreDNS: {one_line(answer.error)}",
            remedy=f"{one_line(answer.remedy)} (kube-proxy balances then), or make the Service "
            "headless, as shown",
            details=_manifest(spec),
        )
    said = {
        "domain": f"cluster DNS does not know the domain svc.{facts.cluster.domain}",
        "namespace": f"cluster DNS knows no namespace {spec.namespace}",
        "port": f"{where} has no TCP port named {spec.port}",
    }.get(facts.absent, "no such service, or no ready pods" + (f" ({query})" if query else ""))
    remedy = {
        "domain": "see cluster.domain, and whether these nameservers are the cluster's",
        "namespace": f"correct the service's namespace, or create it; {look}",
        "port": f"name the port in the Service's spec, or give pod_port as a number; {look}",
    }.get(
        facts.absent,
        f"{look}: is there a Service {spec.service}, does its selector match the pods, are they "
        "Ready?",
    )
    details = []
    if not facts.absent:
        details.append(
            f"cluster DNS answers NXDOMAIN both where there is no Service {where}, and where none "
            "of its pods is ready"
        )
    if facts.before is not None and facts.before.endpoints:
        details.append(
            f"it had {counted(len(facts.before.endpoints), 'pod')} when it was last answered"
            f"{_age(facts).rstrip(',')}: most likely none is ready now"
        )
    return Step(
        name="dns", verdict=StepVerdict.BAD, said=said, remedy=remedy, details=tuple(details)
    )


# Networks and slots


def _networks(facts: Facts) -> Step:
    name, answer, spec = "networks", facts.now, facts.spec
    if answer is None or spec is None or not (answer.endpoints or answer.rejected):
        return Step(name=name, verdict=StepVerdict.UNKNOWN, said="no addresses to check")
    if (spec.target is Target.NODE or is_of_api_servers(spec)) and not answer.rejected:
        said = "nodes need not be in the cluster's networks"
        return Step(name=name, verdict=StepVerdict.OK, said=said)
    is_service = answer.kind is Kind.SERVICE
    networks = facts.cluster.service_networks if is_service else facts.cluster.pod_networks
    which = "service network" if is_service else "pod network"
    shown = _listed(networks) or "(none is set)"
    if not answer.rejected:
        return Step(name=name, verdict=StepVerdict.OK, said=f"all in the {which} {shown}")
    field = "cluster.service_network" if is_service else "cluster.pod_network"
    remedy = one_line(answer.remedy) or f"add their network to {field}, if they belong there"
    return Step(
        name=name,
        verdict=StepVerdict.WARN if answer.endpoints else StepVerdict.BAD,
        said=f"{_who(answer)} names addresses outside of the {which} {shown}, which are never "
        f"used: {_listed(answer.rejected)}",
        remedy=remedy,
        details=_manifest(spec) if answer.cause is Cause.CLUSTER_IP else (),
    )


def _who(answer: Answer) -> str:
    return "the Kubernetes API" if answer.kind is Kind.API else "cluster DNS"


def _listed(words: Iterable[Network | str]) -> str:
    found = [str(word) for word in words]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(found[:5]) + more


def _slots(facts: Facts) -> Step:
    name, planned, have = "slots", facts.planned, slots_of(facts)
    if planned is None or have is None:
        return Step(name=name, verdict=StepVerdict.UNKNOWN, said="number of slots unknown")
    if not planned.has_pods:
        return Step(
            name=name, verdict=StepVerdict.OK, said=f"{counted(have, 'server')}, as declared"
        )
    known = facts.now if facts.now is not None and facts.now.endpoints else facts.before
    pods = len(known.endpoints) if known else 0
    said = f"{counted(pods, 'pod')} in {counted(have, 'slot')}"
    if facts.proxy is None:
        return Step(name=name, verdict=StepVerdict.OK, said=f"{said}, as planned")
    short, spec = slots.short(pods, have), planned.spec
    is_fixed = spec.slots is not None or slots.needed(pods) > spec.max_slots
    remedy = slots.remedy(pods, spec.max_slots)
    if not is_fixed:
        remedy = "the daemon gives it more with its next reload"
        if facts.daemon is None:
            remedy = "run `fc-frontend apply`, or the daemon, which gives it more by itself"
    if short:
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said=f"{said}: {counted(short, 'pod')} {'gets' if short == 1 else 'get'} no traffic",
            remedy=remedy,
        )
    if slots.scarce(pods, have):
        return Step(
            name=name, verdict=StepVerdict.WARN, said=f"{said}: little room is left", remedy=remedy
        )
    return Step(name=name, verdict=StepVerdict.OK, said=said)


# Servers


def _servers(facts: Facts) -> Step:
    name = "servers"
    if facts.worker is None:
        problem = facts.worker_problem
        is_hidden = problem is None or problem.cause is Cause.FORBIDDEN
        said = problem.message if problem else "HAProxy is unknown"
        return Step(
            name=name,
            verdict=StepVerdict.UNKNOWN if is_hidden else StepVerdict.BAD,
            said=said if is_hidden else f"HAProxy does not answer: {said}",
            remedy=problem.remedy if problem else "",
        )
    if facts.proxy is None:
        refused = errors_in(facts.refused)
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said="HAProxy does not run a section of this name",
            remedy=one_line(refused[0].remedy)
            if refused and refused[0].remedy
            else "fix the steps above; then the daemon or `fc-frontend apply` deploys it",
            details=tuple(_words(problem) for problem in refused[:_SHOWN]),
        )
    servers = [server for server in facts.proxy.servers if server.health is not Health.FREE]
    details = _server_lines(servers)
    if not servers:
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said="HAProxy has no pod in any slot",
            remedy=_no_address(facts),
        )
    by_health: dict[Health, list[Server]] = {}
    for server in servers:
        by_health.setdefault(server.health, []).append(server)
    down = by_health.get(Health.DOWN, [])
    drained = by_health.get(Health.DRAINED, [])
    resting = by_health.get(Health.MAINTENANCE, [])
    up = by_health.get(Health.UP, [])
    said = f"{len(up)} of {counted(len(servers), 'server')} up"
    faults = [
        *([f"{counted(len(down), 'server')} down ({_checks(down)})"] if down else []),
        *([f"{len(drained)} drained"] if drained else []),
        *([f"{len(resting)} in maintenance"] if resting else []),
    ]
    if not faults:
        missing = _missing(facts, servers)
        if missing:
            return Step(
                name=name,
                verdict=StepVerdict.WARN,
                said=f"{said}, but HAProxy has not yet {_listed(missing)}",
                remedy=_no_address(facts),
                details=details,
            )
        return Step(name=name, verdict=StepVerdict.OK, said=said, details=details)
    return Step(
        name=name,
        verdict=StepVerdict.WARN if up else StepVerdict.BAD,
        said=f"{'' if up else 'no server is up: '}{said + ': ' if up else ''}{', '.join(faults)}",
        remedy="; ".join(_server_remedies(facts, down, drained, resting)),
        details=details,
    )


def _missing(facts: Facts, servers: Sequence[Server]) -> list[str]:
    """Return the addresses in DNS that HAProxy has no server for, although slots are free."""
    if facts.now is None or facts.proxy is None or facts.now.freshness is not Freshness.FRESH:
        return []
    if not any(server.health is Health.FREE for server in facts.proxy.servers):
        return []
    have = {server.address for server in servers}
    return [e.address for e in facts.now.endpoints if e.address not in have]


def _no_address(facts: Facts) -> str:
    if facts.now is not None and facts.now.rejected and not facts.now.endpoints:
        return "see the step networks: none of the addresses may be used"
    if facts.now is None or not facts.now.endpoints:
        return "see the step dns: there is no pod to be had"
    if facts.planned is not None and facts.planned.by_runtime:
        return "the daemon gives it its pods: see that it runs, and its log"
    return (
        "HAProxy's own resolver takes them within seconds; if not, see `show resolvers` on its "
        "runtime socket, and whether HAProxy's host reaches the nameservers over UDP and TCP"
    )


def _server_lines(servers: Sequence[Server]) -> tuple[str, ...]:
    worst_first = sorted(servers, key=lambda server: server.health is Health.UP)
    lines = []
    for server in worst_first[:_DETAILS]:
        since = f" for {duration(server.seconds)}" if server.seconds is not None else ""
        check = f": {server.check}" if server.check else ""
        backup = " (backup)" if server.is_backup else ""
        lines.append(f"{server.name} {server.place or '-'} {server.health}{since}{backup}{check}")
    more = len(servers) - _DETAILS
    return (*lines, *([f"and {more} more"] if more > 0 else []))


def _checks(servers: Sequence[Server]) -> str:
    """Return HAProxy's distinct messages about the last checks."""
    said = list(dict.fromkeys(server.check for server in servers if server.check))
    return "; ".join(said[:3]) + ("; …" if len(said) > 3 else "") or "no check has said why"


def _server_remedies(
    facts: Facts, down: list[Server], drained: list[Server], resting: list[Server]
) -> list[str]:
    is_service = facts.planned is not None and facts.planned.kind is Kind.SERVICE
    found = list(dict.fromkeys(_check_remedy(server, is_service) for server in down))[:2]
    name = facts.name
    if drained:
        one = f" {drained[0].address}" if len(drained) == 1 else ""
        found.append(f"to end the drain: `fc-frontend undrain {name}{one}`")
    if resting:
        found.append(
            "maintenance was set by hand; to end it, on HAProxy's runtime socket: "
            f"`set server {name}/{resting[0].name} state ready`"
        )
    return found


def _check_remedy(server: Server, is_service: bool) -> str:
    code = server.code
    if is_service and code.startswith("L4"):
        return (
            f"the cluster IP does not take port {server.port}: is it a port of the Service, are "
            "any of its pods ready, does kube-proxy run where the way there leads?"
        )
    if "route" in server.check or "unreachable" in server.check:
        return f"there is no route to the pods: `ip route get {server.address}`"
    if code.startswith("L4CON"):
        return (
            f"nothing listens on port {server.port} there: compare the declared port with the "
            "pods' containerPort, and see their logs"
        )
    if code.startswith("L4TOUT"):
        return (
            f"no answer: see the way there (`ip route get {server.address}`), firewalls, "
            "NetworkPolicies, and whether the pods hang"
        )
    if code.startswith("L6"):
        return (
            "the TLS handshake fails: see tls (ca_file, sni) in the declaration, and whether the "
            "pods speak TLS on this port"
        )
    if code.startswith("L7"):
        return "the pods answer the check, but not well: see their logs and the check's request"
    return "see HAProxy's log and the pods'"


# Bind


def _bind(facts: Facts) -> Step:
    name = "bind"
    if facts.spec is None or not facts.binds:
        return Step(name=name, verdict=StepVerdict.UNKNOWN, said="bind unknown")
    if facts.proxy is not None and facts.proxy.status not in ("OPEN", ""):
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said=f"its frontend is {facts.proxy.status}: it was stopped by hand",
            remedy=f"on HAProxy's runtime socket: `enable frontend {facts.name}`",
        )
    if facts.proxy is not None and 0 < facts.proxy.most_sessions <= facts.proxy.sessions:
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said=f"all {facts.proxy.most_sessions} connections that it may have are in use",
            remedy="raise maxconn in extra_config or haproxy.global_extra, or find who has them",
        )
    steps = [_one_bind(facts, bind) for bind in facts.binds]
    worst = max(steps, key=lambda step: _ORDER.index(step.verdict))
    said = "; ".join(dict.fromkeys(s.said for s in steps if s.verdict is worst.verdict))
    if worst.verdict is StepVerdict.OK:
        said = f"HAProxy listens on {', '.join(bind.bind for bind in facts.binds[:_SHOWN])}"
    return replace(worst, said=said)


def _one_bind(facts: Facts, bind: BindFact) -> Step:
    name = "bind"
    if bind.listening is Listening.HAPROXY and not bind.who:
        return Step(name=name, verdict=StepVerdict.OK, said=bind.bind)
    if bind.listening is Listening.HAPROXY:
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said=f"{bind.bind} is shared with {bind.who}, which takes part of the connections",
            remedy=f"stop {bind.who}",
        )
    if bind.listening is Listening.OTHER:
        return Step(
            name=name,
            verdict=StepVerdict.BAD,
            said=f"{bind.bind} is in use by {bind.who}, not by HAProxy",
            remedy=f"stop {bind.who}, or let this service bind another address or port",
        )
    if bind.listening is Listening.HIDDEN:
        return Step(
            name=name,
            verdict=StepVerdict.UNKNOWN,
            said=f"{bind.bind} is in use; owner hidden",
            remedy="run as root to see it",
        )
    problem = bind.problem
    return Step(
        name=name,
        verdict=StepVerdict.BAD,
        said=problem.message if problem else f"nothing listens on {bind.bind}",
        remedy=problem.remedy
        if problem
        else ("start HAProxy" if facts.worker is None else "see the step configuration"),
    )


# Configuration


def _configuration(facts: Facts) -> Step:
    name = "configuration"
    running = facts.worker.hash if facts.worker else None
    if facts.worker is None:
        return Step(name=name, verdict=StepVerdict.UNKNOWN, said="no answer from HAProxy")
    is_hurt = facts.section_differs is True or facts.proxy is None
    verdict = StepVerdict.BAD if is_hurt else StepVerdict.WARN
    if facts.held_id is not None:
        return Step(
            name=name,
            verdict=StepVerdict.WARN,
            said=f"rolled back to #{facts.held_id} by {one_line(facts.held_by)}; deployments are "
            "paused",
            remedy="`fc-frontend resume` resumes normal deployments",
        )
    refused = errors_in(facts.refused)
    if facts.wanted_hash is None:
        return Step(
            name=name,
            verdict=verdict,
            said="the declared configuration is refused; HAProxy keeps the one that it runs"
            + (f": {_words(refused[0])}" if refused else ""),
            remedy=one_line(refused[0].remedy) if refused else "run `fc-frontend check`",
        )
    if running != facts.wanted_hash:
        has = f"has {running}" if running else "has a configuration that is not fc-frontend's"
        remedy = "see the daemon's log (`reload-failed`, `config-refused`)"
        if facts.daemon is None:
            remedy = "start the daemon, or run `fc-frontend apply`"
        return Step(
            name=name,
            verdict=verdict,
            said=f"HAProxy {has}, and {facts.wanted_hash} is wanted",
            remedy=remedy,
            details=tuple(_words(problem) for problem in refused[:_SHOWN]),
        )
    if facts.daemon is None and facts.daemon_problem is not None:
        return Step(
            name=name,
            verdict=StepVerdict.WARN,
            said=f"HAProxy runs the declared configuration, but {facts.daemon_problem.message}",
            remedy=facts.daemon_problem.remedy,
        )
    return Step(
        name=name,
        verdict=StepVerdict.OK,
        said=f"HAProxy runs the declared configuration ({running})",
    )


def duration(seconds: float) -> str:
    """Format a duration in the largest unit that it contains at least twice, or in seconds."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
