"""`fc-frontend drain`: no new traffic for a pod, or for a whole service."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import Exit, config_option, fail, print_problems
from fc_frontend.errors import Problem, Refused, Severity, Unavailable, errors_in
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.config.loader import Declaration
    from fc_frontend.haproxy.drain import Drained
    from fc_frontend.haproxy.drain_record import Held
    from fc_frontend.haproxy.runtime import ServerState
    from fc_frontend.plan.model import Endpoint

_LOOK_EVERY = 0.2
_LONGEST_WAIT = 7 * 24 * 3600


@click.command("drain")
@config_option
@click.option(
    "--wait",
    type=click.IntRange(0, _LONGEST_WAIT),
    metavar="SECONDS",
    help="Wait until no connection is left, at most this long; exit code 1 if some are.",
)
@click.argument("service")
@click.argument("pod", required=False)
def command(config: str, wait: int | None, service: str, pod: str | None) -> None:
    """Let POD of SERVICE, or all of SERVICE, end what it has and get nothing new.

    POD is a pod's address, its slot in HAProxy (pod3) or its name in an SRV record, whole or up to
    the first dot; for lb_service_port, a node's name. Without POD, the pods that come later are
    drained as well.

    It takes effect at once, with or without the daemon, and lasts over reloads and restarts until
    `undrain`. The pod is meant, not its slot: one that gets its slot is served. A pod that has left
    cluster DNS, deleted or not ready, is forgotten: its address may come back as another pod's.
    That, and slots that change hands, is the daemon's work.

    \b
    0  drained; with --wait, no connection is left
    1  no such service or pod; with --wait, connections are left
    3  HAProxy does not answer, or the record cannot be written: nothing was drained
    """
    from dataclasses import replace

    from fc_frontend.haproxy import drain_record
    from fc_frontend.haproxy.drain import pod_address

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
        held = drain_record.change(declaration.settings, changed, [service])
        print_problems(held.problems)
        left = _report(declaration, held, service, chosen)
        _warn(held, service)
        if wait is not None:
            left = _wait(declaration, service, chosen, wait)
    except Refused as exc:
        fail(exc.problems, Exit.PROBLEMS)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    sys.exit(Exit.PROBLEMS if wait is not None and left else Exit.GOOD)


def declared(config: str) -> Declaration:
    """What is declared; ends with 3 if the settings cannot be read."""
    from fc_frontend.config.loader import load

    declaration = load(config)
    # Another file's mistake must not keep anybody from draining.
    unreadable = [
        problem
        for problem in errors_in(declaration.problems)
        if problem.file == declaration.settings_file and problem.service is None
    ]
    if unreadable:
        fail(unreadable, Exit.CANNOT_TELL)
    return declaration


def known(declaration: Declaration, service: str) -> None:
    """Ends with 1 if `service` is neither declared nor served by HAProxy, with 3 if it is mute."""
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
        problem = Problem(
            message=f"there is no service {service[:80]!r}", remedy=f"there are: {there}"
        )
        fail([problem], Exit.PROBLEMS)


def stored_endpoints(declaration: Declaration, service: str) -> tuple[Endpoint, ...]:
    """The pods of `service` that cluster DNS named last."""
    from fc_frontend.pipeline import stored_answers

    answer = stored_answers(declaration).get(service)
    return answer.endpoints if answer else ()


def _report(declaration: Declaration, held: Held, service: str, chosen: list[str]) -> int:
    """Print what is drained; the number of connections that are left."""
    from fc_frontend.haproxy.connections import connections
    from fc_frontend.haproxy.drain import canonical

    left = connections(declaration.settings.haproxy, service)
    total = 0
    found = False
    for server in held.servers:
        if server.proxy != service or not server.address:
            continue
        address = canonical(server.address)
        if chosen and address not in chosen:
            continue
        found = True
        total += left[address]
        admin = server.admin or 0
        state = "in maintenance" if admin & 1 else "draining" if admin & 8 else "not drained yet"
        click.echo(
            f"{server.server} {address} of {service}: {state}, "
            f"{counted(left[address], 'connection')} left"
        )
    if not found and chosen:
        click.echo(
            f"{chosen[0]} of {service}: has no slot now, will be drained in any that it gets"
        )
    elif not found:
        click.echo(f"{service}: has no pods now, those that come will be drained")
    return total


def _warn(held: Held, service: str) -> None:
    if any(server.proxy == service and server.up and server.address for server in held.servers):
        return
    problem = Problem(
        message=f"no server of {service} takes new requests now: they will get 503, or be closed",
        remedy=f"undo it with `fc-frontend undrain {service}`",
        severity=Severity.WARNING,
    )
    print_problems([problem])


def _wait(declaration: Declaration, service: str, chosen: list[str], seconds: int) -> int:
    """Wait until no connection is left; how many are, once time is up."""
    from fc_frontend.haproxy.connections import connections

    deadline = time.monotonic() + seconds
    while True:
        found = connections(declaration.settings.haproxy, service)
        left = sum(found[address] for address in (chosen or found))
        subject = f"{chosen[0]} of {service}" if chosen else service
        if not left:
            click.echo(f"{subject}: no connection is left")
            return 0
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            message = f"{subject}: {counted(left, 'connection')} left after {seconds} s"
            print_problems([Problem(message=message, remedy="it stays drained; wait longer")])
            return left
        time.sleep(min(_LOOK_EVERY, remaining))
