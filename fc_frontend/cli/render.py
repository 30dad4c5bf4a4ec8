"""`fc-frontend render`: print the generated haproxy.cfg."""

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
    """Print the generated haproxy.cfg.

    Uses the pods that the daemon saw last and queries nothing. HAProxy does not validate the
    result: use `check` for that. If the configuration has errors, prints nothing and exits 1.
    """
    from fc_frontend.pipeline import Base, prepare_offline

    with step("reading and rendering the configuration"):
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
