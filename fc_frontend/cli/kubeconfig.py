"""`fc-frontend kubeconfig`: make, list and revoke kubeconfigs for people and programs."""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import sys
import time
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    echo_unless_quiet,
    emit,
    fail,
    format_options,
    print_problems,
    say,
    table,
)
from fc_frontend.cli.progress import is_quiet, step
from fc_frontend.errors import Problem, Refused, Severity, Unavailable
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.kubeconfigs.grants import ApiAddress, Grant, GrantRecord, Issued
    from fc_frontend.kubernetes.access import ApiAccess

T = TypeVar("T")

_STANDARD_OUTPUT = "-"
_ID_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""The alphabet of Kubernetes for random names, which cannot form words."""
_ID_LETTERS = 5
_SHORTER_SECONDS = 60
"""A granted lifetime is reported if it is shorter than requested by more than this."""

EPILOG = """\
\b
Examples:
  fc-frontend kubeconfig alice                    read the namespace default for 24 hours
  fc-frontend kubeconfig ci --role edit -n shop   change what runs in shop
  fc-frontend kubeconfig alice --certificate --for 8h
  fc-frontend kubeconfig root-alice --cluster-admin --for 1h
  fc-frontend kubeconfig list
  fc-frontend kubeconfig revoke alice
"""


def _complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from fc_frontend.kubeconfigs.grants import RESERVED

    is_first = not ctx.params.get("words")
    return [word for word in RESERVED if is_first and word.startswith(incomplete)]


@click.command("kubeconfig", epilog=EPILOG)
@common_options
@format_options("text", "json")
@click.option(
    "--kubeconfig",
    "own",
    metavar="FILE",
    type=click.Path(readable=False),
    help="Your own kubeconfig [default: $KUBECONFIG, else ~/.kube/config, else that of k3s]",
)
@click.option("--context", metavar="NAME", help="The context in your kubeconfig.")
@click.option(
    "--role",
    metavar="NAME",
    help="The ClusterRole, such as view, edit or admin [default: view]",
)
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    metavar="NAME",
    multiple=True,
    help="Where the role counts; can be given several times [default: default]",
)
@click.option("--cluster-admin", is_flag=True, help="Give unrestricted access to the cluster.")
@click.option(
    "--for",
    "lifetime",
    metavar="TIME",
    default="24h",
    show_default=True,
    help="How long the kubeconfig is valid: 30m, 24h, 7d.",
)
@click.option(
    "--certificate",
    is_flag=True,
    help="Use a client certificate, at most for 7 days, instead of a token.",
)
@click.option(
    "--server",
    metavar="URL",
    help="The API server for its holder [default: a bind of api_access, else as in yours]",
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(readable=False, allow_dash=True),
    help="The file to write, or - for standard output [default: USER-HOST.kubeconfig]",
)
@click.argument("words", nargs=-1, metavar="USER | list | revoke USER", shell_complete=_complete)
def command(
    config: str,
    shape: str,
    own: str | None,
    context: str | None,
    words: tuple[str, ...],
    **options: Any,
) -> None:
    """Make a kubeconfig for USER, list all, or revoke those of USER.

    Uses the credentials of your own kubeconfig, as kubectl does, never those of the daemon. USER
    gets a role in namespaces, and a token that ends after --for. All kubeconfigs are independent: a
    second one for the same USER changes nothing about the first. The API server may grant a shorter
    time; what it granted is printed.

    `revoke` deletes the ServiceAccount, the bindings and the Secret to which a token is bound: the
    API server refuses it within seconds. A certificate cannot be revoked: it loses its rights at
    once, and remains a proof of identity without rights until it ends.

    The file has mode 0600 and is never overwritten. `list` and `revoke` are no names for USER, nor
    are `default` and names with `system:`.

    \b
    0  done
    1  refused, by the API server or for the names or times that were given
    3  no answer of the API server, no usable kubeconfig, or the file cannot be written
    """
    from fc_frontend.kubernetes.kubeconfig import read_kubeconfig

    def access() -> ApiAccess:
        from fc_frontend.kubeconfigs.issue import callers_kubeconfig

        return read_kubeconfig(own or callers_kubeconfig(), context)

    if words[:1] in (("list",), ("revoke",)):
        _require_no_options(words[0], options)
    try:
        match words:
            case ["list"]:
                _list(access, shape)
            case ["revoke", user]:
                _revoke(access, user, shape)
            case [user] if user != "revoke":
                _make(access, config, user, shape, options)
            case _:
                raise click.UsageError("give a USER, or list, or revoke and a USER")
    except Refused as exc:
        fail(exc.problems, Exit.PROBLEMS)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)


def _require_no_options(word: str, options: Iterable[str]) -> None:
    """Raise a usage error for options that only apply to making a kubeconfig."""
    context = click.get_current_context()
    commandline = click.core.ParameterSource.COMMANDLINE
    given = {name for name in options if context.get_parameter_source(name) is commandline}
    for parameter in context.command.params:
        if parameter.name in given:
            raise click.UsageError(f"{word} does not take {parameter.opts[-1]}")


def _make(access: Any, config: str, user: str, shape: str, options: dict[str, Any]) -> None:
    import yaml

    from fc_frontend import files
    from fc_frontend.kubeconfigs import grants
    from fc_frontend.kubeconfigs.issue import make

    grant = _grant(user, options)
    output = options["output"] or _file_name(user)
    is_printed = output == _STANDARD_OUTPUT
    if is_printed and shape == "json":
        raise click.UsageError("--output - prints the kubeconfig: leave --json out")
    if not is_printed:
        _require_new(output)
    server = _server(options["server"], config)

    def save(issued: Issued, where: ApiAddress) -> None:
        text = yaml.safe_dump(grants.kubeconfig(grant, where, issued), sort_keys=False)
        if is_printed:
            click.echo(text, nl=False)
        elif not files.replace(output, text.encode(), mode=0o600, expected=lambda now: now is None):
            _require_new(output)

    with step("making the kubeconfig"):
        issued, where = _run(make(access, grant, server, save))
    problems = _shortened(grant, issued)
    if shape == "json":
        made = grants.GrantRecord(
            user=user, id=grant.id, kind=grant.kind, role=grant.role,
            namespaces=grant.namespaces, expires=issued.expires,
        )  # fmt: skip
        emit(_document([made], problems, file=str(Path(output).absolute()), server=where.server))
        return
    print_problems(problems)
    if is_quiet():
        return
    place = "in all namespaces" if not grant.namespaces else f"in {', '.join(grant.namespaces)}"
    kind = "client certificate" if grant.kind is grants.GrantKind.CERTIFICATE else "token"
    until = grants.shown_time(issued.expires)
    lines = [
        f"{'standard output' if is_printed else output}: a {kind} for {user} ({grant.id})",
        f"role {grant.role} {place}, until {until} ({_shown(issued.expires - time.time())})",
        f"API server {where.server}",
        f"revoke with: fc-frontend kubeconfig revoke {user}",
    ]
    for line in lines:
        say(line, err=is_printed)


def _grant(user: str, options: dict[str, Any]) -> Grant:
    from fc_frontend.kubeconfigs import grants

    is_admin = options["cluster_admin"]
    if is_admin and (options["role"] or options["namespaces"]):
        raise click.UsageError("--cluster-admin counts everywhere: leave --role and -n out")
    kind = grants.GrantKind.CERTIFICATE if options["certificate"] else grants.GrantKind.TOKEN
    role = grants.CLUSTER_ADMIN if is_admin else options["role"] or "view"
    namespaces = () if is_admin else tuple(dict.fromkeys(options["namespaces"])) or ("default",)
    grants.checked_user(user)
    grants.checked_role(role, namespaces, is_admin=is_admin)
    ending = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LETTERS))
    return grants.Grant(
        user=user,
        id=f"{user}-{ending}",
        kind=kind,
        role=role,
        namespaces=namespaces,
        seconds=grants.seconds_in(options["lifetime"], kind),
    )


def _file_name(user: str) -> str:
    host = re.sub(r"[^A-Za-z0-9_-]", "", socket.gethostname().partition(".")[0]) or "host"
    return f"{user}-{host}.kubeconfig"


def _require_new(output: str) -> None:
    if Path(output).exists() or Path(output).is_symlink():
        raise Refused.of(
            f"{output} exists", "remove it, or name another file with --output", file=output
        )


def _server(given: str | None, config: str) -> str | None:
    """Return the URL for the holder: as given, else from a bind of the setting api_access."""
    from fc_frontend.config.declare import load
    from fc_frontend.kubeconfigs.grants import public_server
    from fc_frontend.kubernetes.kubeconfig import parse_server

    if given is not None:
        parse_server(given, given)
        return given
    if not Path(config).is_file():
        return None
    api_access = load(config).settings.api_access
    return public_server(api_access.binds) if api_access is not None else None


def _shortened(grant: Grant, issued: Issued) -> list[Problem]:
    left = issued.expires - time.time()
    if left > grant.seconds - _SHORTER_SECONDS:
        return []
    return [
        Problem(
            f"the API server granted {_shown(left)} instead of {_shown(grant.seconds)}",
            "it has a limit for the lifetime of tokens and certificates",
            severity=Severity.WARNING,
        )
    ]


def _list(access: Any, shape: str) -> None:
    from fc_frontend.kubeconfigs.issue import listed

    found = _run(listed(access))
    if shape == "json":
        emit(_document(found))
    elif found:
        rows = [
            (each.user, each.id, each.kind or "?", each.role or "?", _where(each), _until(each))
            for each in found
        ]
        table(("USER", "ID", "KIND", "ROLE", "NAMESPACES", "UNTIL"), rows)
    else:
        echo_unless_quiet("there is no kubeconfig")


def _revoke(access: Any, user: str, shape: str) -> None:
    from fc_frontend.kubeconfigs.grants import GrantKind, checked_user
    from fc_frontend.kubeconfigs.issue import revoke

    checked_user(user)
    with step("revoking"):
        found = _run(revoke(access, user))
    if not found:
        raise Refused.of(f"there is no kubeconfig for {user}", "see `fc-frontend kubeconfig list`")
    problems = [
        Problem(
            f"the certificate of {each.id} has no rights any more, and ends {_until(each)}",
            "until then, the API server accepts it as a proof of identity",
            severity=Severity.WARNING,
        )
        for each in found
        if each.kind is GrantKind.CERTIFICATE and (each.expires or time.time()) >= time.time()
    ]
    if shape == "json":
        emit(_document(found, problems))
        return
    print_problems(problems)
    ids = ", ".join(each.id for each in found)
    echo_unless_quiet(f"{counted(len(found), 'kubeconfig')} revoked: {ids}")


def _where(record: GrantRecord) -> str:
    return ",".join(record.namespaces) or "all"


def _until(record: GrantRecord) -> str:
    from fc_frontend.kubeconfigs.grants import shown_time

    if record.expires is None:
        return "?"
    is_over = record.expires < time.time()
    return shown_time(record.expires) + (" (ended)" if is_over else "")


def _shown(seconds: float) -> str:
    from fc_frontend.explain.steps import duration

    return duration(seconds)


def _document(
    records: Sequence[GrantRecord],
    problems: Sequence[Problem] = (),
    *,
    file: str | None = None,
    server: str | None = None,
) -> dict[str, object]:
    return {
        "version": 1,
        "status": "good",
        "kubeconfigs": [
            {
                "user": each.user,
                "id": each.id,
                "kind": each.kind,
                "role": each.role,
                "namespaces": list(each.namespaces),
                "expires": each.expires,
            }
            for each in records
        ],
        "file": file,
        "server": server,
        "problems": [each.as_json() for each in problems],
    }


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(130)
