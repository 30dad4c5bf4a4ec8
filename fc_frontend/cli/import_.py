"""`fc-frontend import`: from a haproxy.cfg written by hand to declarations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import Exit, fail, print_problems, style, summary
from fc_frontend.errors import FrontendError, Problem, Refused, Unavailable, errors_in
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.migrate.convert import Imported

EPILOG = """\
\b
Example:
  fc-frontend import /etc/haproxy/haproxy.cfg            look at what would come out
  fc-frontend import /etc/haproxy/haproxy.cfg -o new     write it into ./new, and check it
  fc-frontend --config new/config.yaml render            the haproxy.cfg that follows from it

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
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "-o",
    "--output",
    metavar="DIRECTORY",
    help="Write into DIRECTORY, which must be empty or new. Without it everything goes to stdout.",
)
@click.option("--force", is_flag=True, help="Write into a directory that is not empty.")
def command(files: tuple[str, ...], output: str | None, force: bool) -> None:
    """Turn existing haproxy.cfg files into declarations.

    Reads the files in the order given, as `haproxy -f A -f B` does, and writes a config.yaml and
    services.d: a declaration for each section that is a service with pods found by cluster DNS, and
    a raw fragment for all other sections, so that HAProxy does the same as before. What could not
    be carried over is listed with file, line and what to do. Nothing of the files is executed, and
    nothing but DIRECTORY is changed.

    \b
    0  all was carried over, and the result is accepted
    1  something was not carried over, or the result is refused
    2  wrong usage
    3  cannot tell, e.g. no haproxy found
    """
    from fc_frontend.migrate.files import files as as_files

    if output is not None:
        _require_usable(output, force)
    try:
        imported = _imported(files)
    except Refused as exc:
        fail(exc.problems, Exit.PROBLEMS)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    texts = as_files(imported)
    if output is None:
        for name, text in texts.items():
            click.echo(f"{style(f'==> {name} <==', 'cyan')}\n{text}")
    else:
        try:
            _write(output, texts)
        except Unavailable as exc:
            fail(exc.problems, Exit.CANNOT_TELL)
    print_problems(imported.problems)
    _tell(imported, output)
    code = Exit.PROBLEMS if errors_in(imported.problems) else Exit.GOOD
    if output is not None:
        code = max(code, _check(f"{output.rstrip('/') or '/'}/config.yaml"), key=_weight)
    sys.exit(code)


def _weight(code: Exit) -> int:
    return {Exit.GOOD: 0, Exit.CANNOT_TELL: 1, Exit.USAGE: 2, Exit.PROBLEMS: 3}[code]


def _require_usable(output: str, force: bool) -> None:
    path = Path(output)
    try:
        if not output or (path.exists() and not path.is_dir()):
            raise click.BadParameter(f"{output!r} is not a directory", param_hint="-o")
        if path.is_dir() and not force and any(path.iterdir()):
            raise click.BadParameter(
                f"{output} is not empty: choose another directory, or add --force to replace the "
                "files of the same names",
                param_hint="-o",
            )
    except (OSError, ValueError) as exc:
        said = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise click.BadParameter(f"{output}: {said}", param_hint="-o") from None


def _imported(files: tuple[str, ...]) -> Imported:
    from fc_frontend.config.loader import read_text
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
    return convert(texts, own.text)


def _write(output: str, texts: dict[str, str]) -> None:
    from fc_frontend.haproxy.install import atomic_write

    directory = Path(output)
    try:
        for path in (directory, directory / "services.d"):
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as exc:
        raise Unavailable(
            Problem(
                message=f"cannot be created: {exc.strerror}",
                remedy="see its owner and mode, or choose another directory",
                file=exc.filename,
            )
        ) from None
    for name, text in texts.items():
        atomic_write(str(directory / name), text.encode())


def _tell(imported: Imported, output: str | None) -> None:
    click.echo(
        f"{counted(len(imported.services), 'service')}: "
        + (", ".join(service.name for service in imported.services) or "none"),
        err=True,
    )
    for fragment in imported.fragments:
        click.echo(
            f"{fragment.file}:{fragment.line}: fragment {fragment.name}: {fragment.reason}",
            err=True,
        )
    left = len(errors_in(imported.problems))
    if left:
        click.echo(
            style(
                f"{counted(left, 'thing was', 'things were')} not carried over: see above", "red"
            ),
            err=True,
        )
    if output is None:
        click.echo("nothing was written: add -o DIRECTORY", err=True)


def _check(settings_file: str) -> Exit:
    from fc_frontend.pipeline import judged, prepare_offline

    try:
        prepared = judged(prepare_offline(settings_file))
    except FrontendError as exc:
        print_problems(exc.problems)
        click.echo(f"cannot tell whether HAProxy accepts {settings_file}", err=True)
        return Exit.CANNOT_TELL
    print_problems(prepared.problems)
    if errors_in(prepared.problems):
        click.echo(style(summary(prepared.problems), "red"), err=True)
        return Exit.PROBLEMS
    click.echo(f"{style('good', 'green')}: {settings_file} is accepted by HAProxy")
    return Exit.GOOD
