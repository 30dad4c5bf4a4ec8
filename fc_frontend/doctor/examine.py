"""Run all probes concurrently, with a timeout for each and for all together."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fc_frontend.doctor.findings import Finding, Group, Result
from fc_frontend.errors import FrontendError
from fc_frontend.plan.model import (
    ApiAccessSettings,
    ApiSettings,
    Bind,
    Nameserver,
    Plan,
    Settings,
    Untrusted,
)
from fc_frontend.plan.planner import uses_api

MOST_COMPARED = 50
"""The number of services whose answers are compared across nameservers."""

if TYPE_CHECKING:
    from fc_frontend.config.trust import Verdict

TIMEOUT = 2.0
"""Seconds for each query."""
WHOLE = 14.0
"""Seconds for everything; a probe that has not ended by then is reported as unknown."""


_Ended = queue.SimpleQueue[tuple[int, tuple[Finding, ...]]]


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe: `look` observes and judges, and changes nothing."""

    group: str
    check: str
    look: Callable[[], Iterable[Finding]]


def examine(
    probes: Iterable[Probe],
    whole: float = WHOLE,
    told: Callable[[int, tuple[Probe, ...]], None] = lambda _done, _open: None,
) -> tuple[Finding, ...]:
    """Return the findings of all probes in their order, after at most `whole` seconds.

    An unexpected failure of a probe affects only its own findings.  `told` is called regularly
    with the number of completed probes and those that are still running.
    """
    every = tuple(probes)
    done: dict[int, tuple[Finding, ...]] = {}
    ended: _Ended = queue.SimpleQueue()
    for number, probe in enumerate(every):
        # A daemon thread is not joined at exit: a probe that hangs must not block the process.
        threading.Thread(target=partial(_look, number, probe, ended), daemon=True).start()
    deadline = time.monotonic() + whole
    while len(done) < len(every) and (left := deadline - time.monotonic()) > 0:
        try:
            number, findings = ended.get(timeout=min(left, 0.2))
            done[number] = findings
        except queue.Empty:
            pass
        told(len(done), tuple(p for n, p in enumerate(every) if n not in done))
    return tuple(
        finding
        for number, probe in enumerate(every)
        for finding in done.get(number, (_too_slow(probe, whole),))
    )


def _look(number: int, probe: Probe, ended: _Ended) -> None:
    ended.put((number, _looked(probe)))


def _looked(probe: Probe) -> tuple[Finding, ...]:
    try:
        return tuple(probe.look())
    except FrontendError as exc:
        return tuple(
            Finding(probe.group, probe.check, Result.UNKNOWN, problem.message, problem.remedy)
            for problem in exc.problems
        )
    except Exception as exc:
        # The text of the exception may contain secrets.
        return (
            Group(probe.group).unknown(
                probe.check,
                f"it could not be looked at ({type(exc).__name__})",
                "please report this, with `fc-frontend --version`",
            ),
        )


def _too_slow(probe: Probe, whole: float) -> Finding:
    return Group(probe.group).unknown(
        probe.check,
        f"no result within {whole:g} s",
        "see whether this VM is overloaded, and ask again",
    )


def probes(
    plan: Plan,
    text: str | None,
    *,
    verdicts: Mapping[str, Verdict] | None = None,
    kubeconfig: str | None = None,
    timeout: float = TIMEOUT,
) -> tuple[Probe, ...]:
    """Return the probes for a plan and the `haproxy.cfg` rendered from it.

    `text` is None if none could be rendered: then the binds are not checked.
    """
    settings = plan.settings
    found = [
        Probe("network", "networks", lambda: _network(settings, timeout)),
        *(
            Probe(
                "cluster DNS",
                f"{nameserver} {kind}",
                partial(look, plan, nameserver, timeout),
            )
            for nameserver in settings.cluster.nameservers
            for kind, look in (("transports", _nameserver), ("names", _names))
        ),
        *(
            [Probe("cluster DNS", "agreement", partial(_agreement, plan, timeout))]
            if len(settings.cluster.nameservers) > 1
            else []
        ),
        Probe("HAProxy", "binary", lambda: _build(plan, timeout)),
        Probe("HAProxy", "running", lambda: _running(plan, text, timeout)),
        Probe("files", "directories", lambda: _places(settings)),
        Probe("files", "trust", lambda: _trust(settings, verdicts or {}, text)),
        Probe("clock", "time", lambda: _clock(settings)),
    ]
    if text is not None:
        found.append(Probe("network", "packet filter", partial(_packets, text, timeout)))
    if any(frontend.tls for frontend in plan.frontends):
        found.append(Probe("files", "certificates", lambda: _certificates(plan)))
    if settings.cluster.api is not None:
        found.append(
            Probe(
                "Kubernetes API", "cluster.api", partial(_api, plan, settings.cluster.api, timeout)
            )
        )
    if (access := settings.api_access) is not None:
        found += [
            Probe(
                "Kubernetes API", f"api_access {bind}", partial(_api_access, access, bind, timeout)
            )
            for bind in access.binds
            if bind.kind == "ip"
        ]
    if kubeconfig is not None:
        found.append(
            Probe(
                "Kubernetes API", "kubeconfig", lambda: _kubernetes(settings, kubeconfig, timeout)
            )
        )
    return tuple(found)


def _network(settings: Settings, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.network import judge_networks
    from fc_frontend.doctor.observe.network import observe_network

    return judge_networks(settings.cluster, observe_network(settings.cluster, timeout))


def _packets(text: str, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.packets import judge_packets
    from fc_frontend.doctor.observe.packets import observe_connections, observe_packets

    connections = observe_connections(text)
    return judge_packets(connections, observe_packets(timeout)) if connections else ()


def _certificates(plan: Plan) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.certificates import judge_certificates
    from fc_frontend.doctor.observe.certificates import observe_certificates

    return judge_certificates(*observe_certificates(plan.settings, plan.frontends))


def _nameserver(plan: Plan, nameserver: Nameserver, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.cluster_dns import judge_nameserver
    from fc_frontend.doctor.judge.machine import judge_serial
    from fc_frontend.doctor.observe.cluster_dns import observe_nameserver

    cluster = plan.settings.cluster
    facts = observe_nameserver(nameserver, cluster.domain, timeout)
    return (
        *judge_nameserver(cluster, facts),
        *judge_serial(str(nameserver), facts.serial, time.time()),
    )


def _names(plan: Plan, nameserver: Nameserver, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.cluster_dns import judge_names
    from fc_frontend.doctor.observe.cluster_dns import observe_names

    cluster = plan.settings.cluster
    specs = tuple(service.spec for service in plan.services)
    return judge_names(cluster, specs, observe_names(nameserver, cluster, specs, timeout))


def _agreement(plan: Plan, timeout: float) -> Iterable[Finding]:
    import asyncio

    from fc_frontend.discovery.agreement import ask_each

    cluster = plan.settings.cluster
    specs = [service.spec for service in plan.services if not uses_api(service.spec, cluster)]
    found = asyncio.run(ask_each(specs[:MOST_COMPARED], cluster, timeout))
    group = Group("cluster DNS")
    if not found:
        return (group.ok("agreement", "all nameservers say the same of the services"),)
    return tuple(
        group.warning("agreement", f"{name}: {problem.message}", problem.remedy)
        for name, each in sorted(found.items())
        if (problem := each.problem(name))
    )


def _build(plan: Plan, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.haproxy import judge_build
    from fc_frontend.doctor.observe.haproxy import observe_build
    from fc_frontend.errors import Unavailable

    try:
        build = observe_build(plan.settings.haproxy, timeout)
    except Unavailable as exc:
        problem = exc.problem
        return (Group("HAProxy").problem("version", problem.message, problem.remedy),)
    return judge_build(
        build,
        datetime.now(UTC).date(),
        with_tls=any(
            service.spec.tls or " ssl" in f" {service.spec.bind_options}"
            for service in plan.services
        ),
        with_stats=plan.settings.haproxy.stats is not None,
    )


def _running(plan: Plan, text: str | None, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge import haproxy as judge
    from fc_frontend.doctor.observe import haproxy as observe
    from fc_frontend.errors import Unavailable
    from fc_frontend.haproxy.binary import find_binary
    from fc_frontend.haproxy.version import binary_version

    haproxy = plan.settings.haproxy
    binary = None
    with contextlib.suppress(Unavailable):  # reported by `_build`
        binary = str(binary_version(find_binary(haproxy.binary), timeout))
    runtime, master, now = observe.observe_sockets(haproxy, timeout)
    found = [*judge.judge_sockets(haproxy, runtime, master, binary)]
    if text is None:
        return found
    wanted, taken, hidden = observe.observe_binds(haproxy, text, now)
    binds = tuple(each for each in wanted if each.host != haproxy.runtime_socket)
    listen = plan.settings.listen
    held = observe.held_listen(listen)
    ours = held is not None and listen is not None and observe.answers_health(listen, timeout)
    return (
        *found,
        *judge.judge_binds(binds, taken, hidden, held, ours),
        judge.judge_low_ports(binds, observe.observe_privilege(haproxy, now)),
        judge.judge_descriptors(*observe.descriptors(text, wanted, now)),
    )


def _places(settings: Settings) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.haproxy import judge_config_file
    from fc_frontend.doctor.judge.machine import judge_place
    from fc_frontend.doctor.observe.machine import observe_place
    from fc_frontend.haproxy.take_over import missing_consent

    # The file may be a symbolic link, as on NixOS: its target is replaced.
    config = Path(settings.haproxy.config_file).resolve().parent
    return (
        judge_config_file(settings.haproxy.config_file, missing_consent(settings)),
        *judge_place(observe_place("directory of haproxy.cfg", str(config))),
        *judge_place(observe_place("state directory", settings.state_directory)),
    )


def _trust(
    settings: Settings, verdicts: Mapping[str, Verdict], text: str | None
) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.trust import judge_declaring, judge_named
    from fc_frontend.doctor.observe.trust import levels, observe_named

    is_limited = settings.untrusted != Untrusted()
    return (
        *judge_declaring(levels(verdicts), is_limited=is_limited),
        *judge_named(observe_named(settings, text or "")),
    )


def _clock(settings: Settings) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.machine import judge_clock
    from fc_frontend.doctor.observe.machine import observe_clock

    return judge_clock(observe_clock(settings.state_directory))


def _kubernetes(settings: Settings, path: str, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.kubernetes import judge_kubernetes
    from fc_frontend.doctor.observe.kubernetes import observe_kubernetes

    facts = observe_kubernetes(ApiSettings(kubeconfig=path), timeout)
    return judge_kubernetes(settings.cluster, facts)


def _api_access(access: ApiAccessSettings, bind: Bind, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.api_access import judge_api_access
    from fc_frontend.doctor.observe.api_access import observe_api_access

    return judge_api_access(observe_api_access(access, bind, timeout))


def _api(plan: Plan, api: ApiSettings, timeout: float) -> Iterable[Finding]:
    from fc_frontend.doctor.judge.kubernetes import judge_kubernetes
    from fc_frontend.doctor.observe.kubernetes import observe_api
    from fc_frontend.errors import Unavailable

    cluster = plan.settings.cluster
    specs = [each.spec for each in plan.services if uses_api(each.spec, cluster)]
    try:
        return judge_kubernetes(cluster, observe_api(api, plan.settings, specs, timeout))
    except Unavailable as exc:
        return (
            Group("Kubernetes API").problem("cluster.api", exc.problem.message, exc.problem.remedy),
        )
