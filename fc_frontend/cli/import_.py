"""`fc-frontend import`: convert a haproxy.cfg written by hand to declarations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import (
    Exit,
    echo_unless_quiet,
    emit,
    fail,
    format_options,
    print_problems,
    say,
    style,
    summary,
)
from fc_frontend.cli.progress import is_quiet, step, volume_options
from fc_frontend.errors import FrontendError, Problem, Refused, Unavailable, errors_in
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.migrate.convert import Imported

EPILOG = """\
\b
Example:
  fc-frontend import /etc/haproxy/haproxy.cfg               look at what would come out
  fc-frontend import /etc/haproxy/haproxy.cfg --output new  write it into ./new, and check it
  fc-frontend --config new/config.yaml render               the haproxy.cfg that follows from it

\b
  listen ingress                                         services:
    bind 198.51.100.2:443                                  ingress:
    server-template pod 20 *.ingress.default.svc.\
    ->      binds: ["198.51.100.2:443"]
      cluster.local:443 check resolvers cluster              slots: 20
      init-addr none                                         pod_port: 443
                                                             discovery: wildcard
"""


@click.command("import", epilog=EPILOG)
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(readable=False)
)
@click.option(
    "--output",
    metavar="DIRECTORY",
    type=click.Path(readable=False),
    help="Write into DIRECTORY, which must be empty or new. Without it everything goes to stdout.",
)
@click.option("--force", is_flag=True, help="Write into a directory that is not empty.")
@volume_options
@format_options("text", "json")
def command(files: tuple[str, ...], output: str | None, force: bool, shape: str) -> None:
    """Convert existing haproxy.cfg files to services, frontends and fragments.

    Reads the files in the order given, as `haproxy -f A -f B` does. Writes a config.yaml and
    services.d: a service for each section whose pods can be found by cluster DNS, a frontend with
    services where a frontend chooses between backends by host, path or SNI, and a raw fragment for
    each other section, so that HAProxy behaves as before. Lists what was not converted and what
    differs, with file, line and what to do. Executes nothing, and writes only to DIRECTORY.

    \b
    0  everything was converted, and HAProxy accepts the result
    1  something was not converted, or HAProxy refuses the result
    2  wrong usage
    3  unknown, for example because haproxy is not installed
    """
    from fc_frontend.migrate.files import files as as_files

    if output is not None:
        _require_usable(output, force)
    try:
        with step("reading and converting"):
            imported = _imported(files)
    except Refused as exc:
        fail(exc.problems, Exit.PROBLEMS)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    texts = as_files(imported)
    if output is None and shape == "text":
        for name, text in texts.items():
            say(style(f"==> {name} <==", "cyan"))
            click.echo(text)
    elif output is not None:
        try:
            _write(output, texts)
        except Unavailable as exc:
            fail(exc.problems, Exit.CANNOT_TELL)
    if shape == "text":
        print_problems(imported.problems)
        _tell(imported, output)
    code = Exit.PROBLEMS if errors_in(imported.problems) else Exit.GOOD
    said: tuple[Problem, ...] = ()
    if output is not None:
        settings_file = f"{output.rstrip('/') or '/'}/config.yaml"
        with step("validating the result with HAProxy"):
            accepted, said = _judged(settings_file)
        if shape == "text":
            _tell_judged(settings_file, accepted, said)
        code = max(code, accepted, key=_weight)
    if shape == "json":
        emit(_document(imported, texts, output, code, (*imported.problems, *said)))
    sys.exit(code)


def _document(
    imported: Imported,
    texts: dict[str, str],
    output: str | None,
    code: Exit,
    problems: tuple[Problem, ...],
) -> dict[str, object]:
    return {
        "version": 1,
        "status": {0: "good", 1: "refused", 3: "unknown"}[code],
        "directory": output,
        "files": [{"name": name, "text": text} for name, text in texts.items()],
        "services": [service.name for service in imported.services],
        "frontends": [frontend.name for frontend in imported.frontends],
        "fragments": [
            {
                "name": each.name,
                "sections": [
                    {"title": s.title, "file": s.file, "line": s.line, "reason": s.reason}
                    for s in each.sections
                ],
            }
            for each in imported.fragments
        ],
        "problems": [problem.as_json() for problem in problems],
    }


def _weight(code: Exit) -> int:
    return {Exit.GOOD: 0, Exit.CANNOT_TELL: 1, Exit.USAGE: 2, Exit.PROBLEMS: 3}[code]


def _require_usable(output: str, force: bool) -> None:
    path = Path(output)
    try:
        if not output or (path.exists() and not path.is_dir()):
            raise click.BadParameter(f"{output!r} is not a directory", param_hint="--output")
        if path.is_dir() and not force and any(path.iterdir()):
            raise click.BadParameter(
                f"{output} is not empty: choose another directory, or add --force to replace the "
                "files of the same names",
                param_hint="--output",
            )
    except (OSError, ValueError) as exc:
        said = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise click.BadParameter(f"{output}: {said}", param_hint="--output") from None


def _imported(files: tuple[str, ...]) -> Imported:
    from fc_frontend.config.reading import read_text
    from fc_frontend.config.templates import templates
    from fc_frontend.migrate.convert import convert
    from fc_frontend.plan.model import Plan, Settings
    from fc_frontend.render.render import render

    problems: list[Problem] = []
    texts: list[tuple[str, str]] = []
    for file in files:
        text = read_text(file, problems, "check the path")
        if text is not None:
            texts.append((file, text))
    if problems:
        raise Refused(*problems)
    own = render(Plan(settings=Settings(), services=()), templates({}))
    return convert(texts, own.text, _address_of)


def _address_of(host: str) -> str | None:
    """Return the first address of a host by the system's resolver, which HAProxy also uses."""
    import socket

    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0]) if found else None


def _write(output: str, texts: dict[str, str]) -> None:
    from fc_frontend import files

    directory = Path(output)
    try:
        for path in (directory, directory / "services.d"):
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as exc:
        raise Unavailable.of(
            f"cannot be created: {exc.strerror}",
            "see its owner and mode, or choose another directory",
            file=exc.filename,
        ) from None
    for name, text in texts.items():
        files.write(str(directory / name), text.encode())


def _tell(imported: Imported, output: str | None) -> None:
    if not is_quiet():
        _tell_what(imported)
    left = len(errors_in(imported.problems))
    if left:
        say(
            style(
                f"{counted(left, 'thing was', 'things were')} not carried over: see above", "red"
            ),
            err=True,
        )
    if output is None and not is_quiet():
        say("nothing was written: add -o DIRECTORY", err=True)


def _tell_what(imported: Imported) -> None:
    names = ", ".join(service.name for service in imported.services) or "none"
    say(f"{counted(len(imported.services), 'service')}: {names}", err=True)
    if imported.frontends:
        names = ", ".join(frontend.name for frontend in imported.frontends)
        say(f"{counted(len(imported.frontends), 'frontend')}: {names}", err=True)
    for each in imported.fragments:
        say(f"fragment services.d/{each.name}.cfg:", err=True)
        for section in each.sections:
            place = f"{section.file}:{section.line}"
            say(f"  {place}: {section.title}: {section.reason}", err=True)


def _judged(settings_file: str) -> tuple[Exit, tuple[Problem, ...]]:
    from fc_frontend.pipeline import Base, haproxy_check, prepare_offline

    try:
        prepared = prepare_offline(settings_file, haproxy_check(), base=Base())
        withheld = (problem for each in prepared.withheld for problem in each.problems)
        problems = (*withheld, *prepared.problems)
    except FrontendError as exc:
        return Exit.CANNOT_TELL, exc.problems
    return Exit.PROBLEMS if errors_in(problems) else Exit.GOOD, problems


def _tell_judged(settings_file: str, code: Exit, problems: tuple[Problem, ...]) -> None:
    print_problems(problems)
    if code is Exit.CANNOT_TELL:
        say(f"cannot tell whether HAProxy accepts {settings_file}", err=True)
    elif code is Exit.PROBLEMS:
        say(style(summary(problems), "red"), err=True)
    else:
        echo_unless_quiet(f"{style('good', 'green')}: {settings_file} is accepted by HAProxy")
