"""What the commands share: options, the way problems are printed, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from fc_frontend.errors import Problem, Severity, errors_in, warnings_in

if TYPE_CHECKING:
    from fc_frontend.plan.model import Settings

F = TypeVar("F", bound=Callable[..., Any])


class Exit(IntEnum):
    """Exit codes of commands that judge (2, usage, is click's)."""

    GOOD = 0
    PROBLEMS = 1
    USAGE = 2
    CANNOT_TELL = 3


def config_option(function: F) -> F:
    """The option `--config`, here or before the command's name; the command gets `config`."""

    def chosen(ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
        from fc_frontend.config.loader import settings_path

        given = value or ctx.obj
        return settings_path(given if isinstance(given, str) else None)

    return click.option(
        "-c",
        "--config",
        metavar="PATH",
        callback=chosen,
        help="The settings file [default: $FC_FRONTEND_CONFIG, else /etc/fc-frontend/config.yaml]",
    )(function)


def settings_in_force(config: str) -> Settings:
    """The settings, in their last good form, with a warning, if what is declared is wrong.

    For commands that must work just when a declaration does not.
    """
    from fc_frontend.config.last_good import Piece
    from fc_frontend.config.loader import read, state_directory
    from fc_frontend.config.quarantine import tolerate
    from fc_frontend.pipeline import stored_last_good

    sources = read(config)
    declaration = tolerate(sources, stored_last_good(state_directory(sources)))
    if any(held.unit.piece is Piece.SETTINGS for held in declaration.quarantined):
        warning = Problem(
            message="the settings are wrong: their last good form counts",
            remedy="see fc-frontend check",
            severity=Severity.WARNING,
            file=config,
        )
        print_problems([warning])
    return declaration.settings


def style(text: str, color: str) -> str:
    """`text` in colour; click takes the colour away where the output is no terminal."""
    import os

    return text if os.environ.get("NO_COLOR") else click.style(text, fg=color, bold=True)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows below a header: drawn on a terminal, else in columns for grep and awk."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*header, box=None, header_style="bold")
        for row in rows:
            # Brackets are no markup: an IPv6 address has them.
            drawn.add_row(*(Text(cell) for cell in row))
        Console().print(drawn)
        return
    last = len(header) - 1
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(last)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join((*cells, row[last])).rstrip())


def print_problems(problems: Iterable[Problem], *, to_stderr: bool = True) -> None:
    """One line a problem, errors first, then a line with its remedy."""
    found = tuple(problems)
    for problem in (*errors_in(found), *warnings_in(found)):
        color = "red" if problem.severity is Severity.ERROR else "yellow"
        where = f"{problem.location}: " if problem.location else ""
        subject = ": ".join(
            part
            for part in (problem.service and f"service {problem.service}", problem.field)
            if part
        )
        click.echo(
            f"{where}{style(problem.severity, color)}: "
            f"{subject + ': ' if subject else ''}{problem.message}",
            err=to_stderr,
        )
        if problem.remedy:
            click.echo(f"    → {problem.remedy}", err=to_stderr)


def summary(problems: Iterable[Problem]) -> str:
    """Why it is refused, in one line; empty if there is no error."""
    errors = errors_in(problems)
    if not errors:
        return ""
    first = errors[0]
    said = str(replace(first, remedy="")).replace("error: ", "", 1)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"refused: {' '.join(said.split())}{more}"


def fail(problems: Iterable[Problem], code: Exit) -> NoReturn:
    """Print problems and end with `code`."""
    print_problems(problems)
    sys.exit(code)
