"""`fc-frontend drain`: stop new traffic to a pod, or to a whole service."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from fc_frontend.cli import completion
from fc_frontend.cli.common import (
    Exit,
    common_options,
    echo_unless_quiet,
    emit,
    fail,
    format_options,
    print_problems,
)
from fc_frontend.cli.progress import step
from fc_frontend.errors import Problem, Refused, Severity, Unavailable, errors_in
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.config.declare import Declaration
    from fc_frontend.haproxy.drain import Drained
    from fc_frontend.haproxy.drain_record import DrainOutcome
    from fc_frontend.haproxy.runtime import ServerState
    from fc_frontend.plan.model import Endpoint

_LOOK_EVERY = 0.2
_LONGEST_WAIT = 7 * 24 * 3600

EPILOG = """\
\b
Examples:
  fc-frontend drain shop           no new traffic for shop
  fc-frontend drain shop 10.1.0.7  for one of its pods
  fc-frontend undrain shop         new traffic again
"""


@click.command("drain", epilog=EPILOG)
@common_options
@click.option(
    "--wait",
    type=click.IntRange(0, _LONGEST_WAIT),
    metavar="SECONDS",
    help="Wait at most this long until no connection is open; exit 1 if some still are.",
)
@format_options("text", "json")
@click.argument("service", shell_complete=completion.service)
@click.argument("pod", required=False, shell_complete=completion.pod)
def command(config: str, wait: int | None, shape: str, service: str, pod: str | None) -> None:
    """Drain POD of SERVICE, or all of SERVICE: finish open connections, accept no new ones.

    POD is a pod's address, its slot in HAProxy (pod3), its name in an SRV record (whole or up to
    the first dot), or for lb_service_port a node's name. Without POD, new pods of SERVICE are
    drained as well.

    A drain takes effect at once, with or without the daemon, and lasts over reloads and restarts
    until `undrain`. It belongs to the pod, not to its slot: another pod in that slot gets traffic.
    The daemon forgets the drain of a pod that has left cluster DNS, because another pod may get
    its address.

    \b
    0  drained; with --wait, no connection is open
    1  no such service or pod; with --wait, connections are still open
    3  HAProxy does not answer, or the drain cannot be saved: nothing was drained
    """
    from dataclasses import replace

    from fc_frontend.haproxy import drain_record
    from fc_frontend.haproxy.connections import connections
    from fc_frontend.haproxy.drain import pod_address

    with step("reading the configuration"):
        declaration = declared(config)
    known(declaration, service)
    endpoints = stored_endpoints(declaration, service)
    chosen: list[str] = []

    def changed(before: Drained, servers: tuple[ServerState, ...]) -> Drained:
        if pod is None:
            return replace(before, services=before.services | {service})
        chosen.append(pod_address(service, pod, servers, endpoints, before))
        return replace(before, pods=before.pods | {(service, chosen[-1])})

    try:
        with step("sending commands to HAProxy"):
            held = drain_record.change(declaration.settings, changed, [service])
        problems = [*held.problems, *_none_left(held, service)]
        found = connections(declaration.settings.haproxy, service)
        servers = _servers(held, service, chosen)
        if shape == "text":
            print_problems(held.problems)
            _tell(servers, service, chosen, found)
            print_problems(problems[len(held.problems) :])
        if wait is not None:
            found, late = _wait(declaration, service, chosen, wait)
            problems += late
            if shape == "text":
                print_problems(late)
                _tell_end(service, chosen, late)
    except Refused as exc:
        fail(exc.problems, Exit.PROBLEMS)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    left = _left(found, chosen)
    if shape == "json":
        emit(_document(service, chosen, servers, found, problems))
    sys.exit(Exit.PROBLEMS if wait is not None and left else Exit.GOOD)


def declared(config: str) -> Declaration:
    """Return the declaration; exit with 3 if the settings cannot be read."""
    from fc_frontend.config.declare import load

    declaration = load(config)
    # An error in another file must not prevent draining.
    unreadable = [
        problem
        for problem in errors_in(declaration.problems)
        if problem.file == declaration.settings_file and problem.service is None
    ]
    if unreadable:
        fail(unreadable, Exit.CANNOT_TELL)
    return declaration


def known(declaration: Declaration, service: str) -> None:
    """Exit with 1 if `service` is neither declared nor served by HAProxy.

    Exit with 3 if it is not declared and HAProxy does not answer.
    """
    from fc_frontend.haproxy import runtime

    names = {spec.name for spec in declaration.services}
    if service in names:
        return
    try:
        served = runtime.servers(declaration.settings.haproxy.runtime_socket)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    names |= {server.proxy for server in served}
    if service not in names:
        shown = sorted(names)[:50]
        more = f" and {len(names) - 50} more" if len(names) > 50 else ""
        there = ", ".join(shown) + more or "none"
        problem = Problem(f"there is no service {service[:80]!r}", f"there are: {there}")
        fail([problem], Exit.PROBLEMS)


def stored_endpoints(declaration: Declaration, service: str) -> tuple[Endpoint, ...]:
    """Return the pods of `service` in the last stored answer."""
    from fc_frontend.stored import stored_answers

    answer = stored_answers(declaration.settings, declaration.services).get(service)
    return answer.endpoints if answer else ()


def _servers(held: DrainOutcome, service: str, chosen: list[str]) -> list[ServerState]:
    """Return the servers of `service` with a pod, or only those with a chosen one."""
    from fc_frontend.haproxy.drain import canonical

    return [
        server
        for server in held.servers
        if server.proxy == service
        and server.address
        and (not chosen or canonical(server.address) in chosen)
    ]


def _state(server: ServerState) -> str:
    admin = server.admin or 0
    return "in maintenance" if admin & 1 else "draining" if admin & 8 else "not drained yet"


def _tell(servers: list[ServerState], service: str, chosen: list[str], found: Counter[str]) -> None:
    from fc_frontend.haproxy.drain import canonical

    for server in servers:
        address = canonical(server.address or "")
        left = counted(found[address], "connection")
        echo_unless_quiet(f"{server.server} {address} of {service}: {_state(server)}, {left} left")
    if not servers and chosen:
        echo_unless_quiet(
            f"{chosen[0]} of {service}: no slot now; it will be drained in any that it gets"
        )
    elif not servers:
        echo_unless_quiet(f"{service}: has no pods now; new pods will be drained")


def _tell_end(service: str, chosen: list[str], late: list[Problem]) -> None:
    if not late:
        echo_unless_quiet(f"{_subject(service, chosen)}: no connections left")


def _document(
    service: str,
    chosen: list[str],
    servers: list[ServerState],
    found: Counter[str],
    problems: list[Problem],
) -> dict[str, object]:
    from fc_frontend.haproxy.drain import canonical

    addresses = [canonical(server.address or "") for server in servers]
    return {
        "version": 1,
        "status": "late" if errors_in(problems) else "good",
        "service": service,
        "pod": chosen[0] if chosen else None,
        "servers": [
            {
                "server": server.server,
                "address": address,
                "state": _state(server),
                "connections": found[address],
            }
            for server, address in zip(servers, addresses, strict=True)
        ],
        "connections": _left(found, chosen),
        "problems": [problem.as_json() for problem in problems],
    }


def _none_left(held: DrainOutcome, service: str) -> list[Problem]:
    """Return a warning if no server of `service` is up any more."""
    if any(server.proxy == service and server.up and server.address for server in held.servers):
        return []
    problem = Problem(
        f"no server of {service} takes new requests now: they will get 503, or be closed",
        f"undo it with `fc-frontend undrain {service}`",
        severity=Severity.WARNING,
    )
    return [problem]


def _wait(
    declaration: Declaration, service: str, chosen: list[str], seconds: int
) -> tuple[Counter[str], list[Problem]]:
    """Wait until no connection is left; return the remaining ones, and a problem on timeout."""
    from fc_frontend.haproxy.connections import connections

    deadline = time.monotonic() + seconds
    with step(f"waiting for the connections of {_subject(service, chosen)}") as waiting:
        while True:
            found = connections(declaration.settings.haproxy, service)
            left = _left(found, chosen)
            if not left:
                return found, []
            words = f"{_subject(service, chosen)}: {counted(left, 'connection')} left"
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                remedy = "it stays drained; wait longer"
                return found, [Problem(f"{words} after {seconds} s", remedy)]
            waiting.say(words)
            time.sleep(min(_LOOK_EVERY, remaining))


def _subject(service: str, chosen: list[str]) -> str:
    return f"{chosen[0]} of {service}" if chosen else service


def _left(found: Counter[str], chosen: list[str]) -> int:
    return sum(found[address] for address in (chosen or found))
