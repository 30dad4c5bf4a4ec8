"""`fc-frontend man`: the manual, generated from the text of --help."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time

import click

from fc_frontend import __version__
from fc_frontend.cli.common import Exit, fail
from fc_frontend.cli.completion import command_names
from fc_frontend.cli.progress import volume_options
from fc_frontend.errors import Unavailable


@click.command("man")
@volume_options
@click.option(
    "--output",
    metavar="DIRECTORY",
    type=click.Path(file_okay=False, readable=False),
    help="Write all pages into DIRECTORY, as fc-frontend.1, fc-frontend-check.1 and so on.",
)
@click.argument("name", metavar="[COMMAND]", required=False, shell_complete=command_names)
def command(output: str | None, name: str | None) -> None:
    """Show the manual of fc-frontend, or of COMMAND.

    On a terminal it is shown by man(1); otherwise its source is printed, for `man -l FILE`.
    Packages install what --output writes. $SOURCE_DATE_EPOCH, if set, is the date of the pages.
    """
    from fc_frontend.cli import COMMANDS, cli
    from fc_frontend.cli.manual import PROGRAM, pages

    if name is not None and name not in COMMANDS:
        raise click.UsageError(f"no command {name!r}; there are: {', '.join(COMMANDS)}")
    if name is not None and output is not None:
        raise click.UsageError("--output writes all pages: leave COMMAND out")
    found = pages(cli, COMMANDS, __version__, _date())
    if output is not None:
        _write(output, found)
        return
    page = found[f"{PROGRAM}-{name}.1" if name else f"{PROGRAM}.1"]
    viewer = shutil.which("man") if sys.stdout.isatty() else None
    if viewer is None:
        click.echo(page, nl=False)
        return
    # There are two programs named man, and only one reads its standard input.
    with tempfile.NamedTemporaryFile(suffix=".1") as file:
        file.write(page.encode())
        file.flush()
        done = subprocess.run([viewer, "-l", file.name], check=False)
    sys.exit(done.returncode)


def _date() -> str:
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    at = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else time.time()
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _write(directory: str, found: dict[str, str]) -> None:
    from fc_frontend import files

    try:
        files.make_directory(directory, mode=0o755)
        for file, page in found.items():
            files.write(f"{directory}/{file}", page.encode(), mode=0o644)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
