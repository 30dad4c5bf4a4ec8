"""`fc-frontend undrain`: send new traffic to a drained pod or service again."""

from __future__ import annotations

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
from fc_frontend.errors import Refused, Unavailable

if TYPE_CHECKING:
    from fc_frontend.haproxy.drain import Drained
    from fc_frontend.haproxy.runtime import ServerState


@click.command("undrain")
@common_options
@format_options("text", "json")
@click.argument("service", shell_complete=completion.service)
@click.argument("pod", required=False, shell_complete=completion.pod)
def command(config: str, shape: str, service: str, pod: str | None) -> None:
    """Send new connections to POD of SERVICE, or to all of SERVICE, again.

    POD is named as for `drain`. Without POD, all drains of SERVICE end, also those made through
    HAProxy's runtime socket. Servers in maintenance stay in maintenance.

    \b
    0  nothing named is drained any more
    1  no such service or pod, or a pod of a service that is drained as a whole
    3  HAProxy does not answer, or the drain cannot be saved: nothing was changed
    """
    from dataclasses import replace

    from fc_frontend.cli.drain import declared, known, stored_endpoints
    from fc_frontend.haproxy import drain_record
    from fc_frontend.haproxy.drain import canonical, pod_address

    declaration = declared(config)
    known(declaration, service)
    endpoints = stored_endpoints(declaration, service)

    def changed(before: Drained, servers: tuple[ServerState, ...]) -> Drained:
        chosen = pod_address(service, pod, servers, endpoints, before) if pod else None
        if chosen and service in before.services:
            raise Refused.of(
                f"{service} is drained as a whole",
                f"use `fc-frontend undrain {service}`, then drain single pods",
            )
        named = {
            (server.proxy, server.server)
            for server in servers
            if server.proxy == service
            and (not chosen or (server.address and canonical(server.address) == chosen))
        }
        freed = {
            (name, address)
            for name, address in before.pods
            if name == service and chosen in (None, address)
        }
        # Claim these slots, whoever drained them: only drains of claimed slots are ended.
        return replace(
            before,
            pods=before.pods - freed,
            services=before.services - {service},
            slots=before.slots | named,
        )

    try:
        with step("sending commands to HAProxy"):
            held = drain_record.change(declaration.settings, changed, [service])
    except Refused as exc:
        fail(exc.problems, Exit.PROBLEMS)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    sent = set(held.sent)
    freed = [
        server
        for server in held.servers
        if f"set server {server.proxy}/{server.server} state ready" in sent and server.address
    ]
    if shape == "json":
        document: dict[str, object] = {
            "version": 1,
            "status": "good",
            "service": service,
            "freed": [{"server": each.server, "address": each.address} for each in freed],
            "problems": [problem.as_json() for problem in held.problems],
        }
        emit(document)
        return
    print_problems(held.problems)
    for server in freed:
        echo_unless_quiet(
            f"{server.server} {server.address} of {service}: gets new connections again"
        )
    if not freed:
        echo_unless_quiet(
            f"{service}: nothing else is drained" if held.sent else f"{service}: not drained"
        )
