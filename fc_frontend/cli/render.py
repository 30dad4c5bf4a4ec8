"""`fc-frontend render`: haproxy.cfg, to be looked at."""

from __future__ import annotations

import click

from fc_frontend.cli.common import Exit, common_options, fail, print_problems, refuse
from fc_frontend.cli.progress import step
from fc_frontend.errors import Unavailable, errors_in


@click.command("render")
@common_options
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(readable=False),
    help="Write to FILE, atomically, instead of stdout.",
)
def command(config: str, output: str | None) -> None:
    """Print the haproxy.cfg that follows from the configuration.

    Uses the last answers that the daemon had from cluster DNS, if there are any, and asks nobody
    now. HAProxy does not judge it: that is what `check` is for. Exits with 1 if the configuration
    has errors, and prints nothing then.
    """
    from fc_frontend.pipeline import Base, prepare_offline

    with step("reading and rendering what is declared"):
        prepared = prepare_offline(config, base=Base())
    withheld = tuple(problem for each in prepared.withheld for problem in each.problems)
    problems = tuple(dict.fromkeys((*withheld, *prepared.problems)))
    if prepared.config is None or errors_in(problems):
        refuse(problems)
    print_problems(prepared.problems)
    if output is None:
        click.echo(prepared.config.text, nl=False)
        return
    from fc_frontend import files

    try:
        files.write(output, prepared.config.text.encode())
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
