"""Options, output of problems, and exit codes that all commands share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from fc_frontend.cli.progress import is_quiet, volume_options
from fc_frontend.errors import Problem, Severity, errors_in, warnings_in
from fc_frontend.plurals import counted
from fc_frontend.text import is_printable, json_text, one_line, printable

if TYPE_CHECKING:
    from fc_frontend.haproxy.deploy import Deployment
    from fc_frontend.plan.model import Settings

F = TypeVar("F", bound=Callable[..., Any])
_STYLES = re.compile(r"(\x1b\[(?:0|1|3[0-7])m)")
"""The sequences that `style` adds; after a split, every other part is the text between them."""
_SHAPE = "fc_frontend.shape"
_JSON = "fc_frontend.json"


class Exit(IntEnum):
    """The exit codes of all commands; `--format nagios` uses those of Nagios instead.

    2 is click's code for wrong usage.
    """

    GOOD = 0
    PROBLEMS = 1
    USAGE = 2
    CANNOT_TELL = 3


def common_options(function: F) -> F:
    """Add the options of every command that reads a configuration; the command gets `config`.

    All of them are also accepted before the command's name.
    """

    def chosen(ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
        from fc_frontend.config.loader import settings_path

        path = settings_path(value or config_before(ctx))
        if not is_printable(path):
            raise click.UsageError(
                f"{printable(path)} is not a usable path of a settings file", ctx
            )
        return path

    return click.option(
        "-c",
        "--config",
        metavar="PATH",
        type=click.Path(readable=False),
        callback=chosen,
        help="The settings file [default: $FC_FRONTEND_CONFIG, else /etc/fc-frontend/config.yaml]",
    )(volume_options(function))


def config_before(ctx: click.Context) -> str | None:
    """Return the value of --config before the command's name, if given."""
    given = ctx.parent.params.get("config") if ctx.parent else None
    return given if isinstance(given, str) else None


_SHAPES = {
    "text": "text for people",
    "table": "a table for people",
    "wide": "a table with all columns",
    "json": "json or yaml for scripts",
    "yaml": "",
    "nagios": "nagios for Sensu, Nagios and Icinga",
}
_FOR_PEOPLE = frozenset(("text", "table", "wide"))


def format_options(*shapes: str) -> Callable[[F], F]:
    """Add the options -o/--format, with `shapes`, and --json; the command gets `shape`.

    The first shape is the default.  YAML has the same contents as JSON.
    """
    choices = [*shapes]
    if "json" in choices:
        choices.insert(choices.index("json") + 1, "yaml")

    def chosen(ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
        if ctx.meta.get(_JSON):
            if value not in (None, "json"):
                raise click.UsageError(f"--json and --format {value} exclude each other", ctx)
            value = "json"
        ctx.meta[_SHAPE] = value or shapes[0]
        # The document is the same; `emit` writes it in the requested format.
        return "json" if value == "yaml" else value or shapes[0]

    def as_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        ctx.meta[_JSON] = value

    def both(function: F) -> F:
        function = click.option(
            "--json",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=as_json,
            help="The same as -o json.",
        )(function)
        words = ", ".join(_SHAPES[shape] for shape in choices if _SHAPES[shape])
        return click.option(
            "-o",
            "--format",
            "shape",
            type=click.Choice(choices),
            callback=chosen,
            help=f"{words} [default: {shapes[0]}]",
        )(function)

    return both


def say(line: str = "", *, err: bool = False) -> None:
    """Print one line, without terminal control sequences other than those of `style`.

    All output of commands for people and for Nagios uses this function.  The contents of whole
    files are printed unchanged.
    """
    parts = _STYLES.split(line)
    parts[::2] = [printable(part, sys.maxsize) for part in parts[::2]]
    click.echo("".join(parts), err=err)


def emit(document: dict[str, object]) -> None:
    """Print a document for scripts.  contrib/json.rst describes each."""
    import json

    if shape_asked_for() == "yaml":
        import yaml

        # Through JSON, whose text contains no terminal control characters.
        click.echo(yaml.safe_dump(json.loads(json_text(document)), sort_keys=False), nl=False)
        return
    text = json_text(document)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    click.echo(text)


def settings_in_force(config: str) -> Settings:
    """Return the settings; if the declared ones are invalid, warn and return the last good ones.

    For commands that must work even if the declared configuration is invalid.
    """
    from fc_frontend.config.declare import declare
    from fc_frontend.config.loader import read, state_directory
    from fc_frontend.model.units import ENVIRONMENT, SETTINGS
    from fc_frontend.stored import stored_running

    sources = read(config)
    running = stored_running(state_directory(sources))
    declaration = declare(sources, running)
    if SETTINGS in declaration.faults and running.settings is not None:
        declaration = declare(sources, running, ENVIRONMENT)
        warning = Problem(
            "the settings are wrong: their last good form counts",
            "see fc-frontend check",
            severity=Severity.WARNING,
            file=config,
        )
        print_problems([warning])
    return declaration.settings


def deployed(deployment: Deployment, problems: Iterable[Problem]) -> dict[str, object]:
    """Return the result of a deployment, in the format of all JSON output."""
    replaced = deployment.replaced
    return {
        "version": 1,
        "status": "good",
        "outcome": deployment.outcome.value,
        "hash": deployment.hash,
        "seconds": round(deployment.duration, 3),
        "kept_entry": replaced.entry.id if replaced and replaced.entry else None,
        "problems": [problem.as_json() for problem in problems],
    }


def style(text: str, color: str | None = None) -> str:
    """Return `text` bold and in colour; click removes that if the output is not a terminal."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain else click.style(text, fg=color, bold=True)


def user() -> str:
    """Return who runs this command: the user before sudo, if known, else the current one."""
    import pwd

    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def echo_unless_quiet(text: str) -> None:
    """Print a result, unless --quiet is given."""
    if not is_quiet():
        say(text)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows below a header: as a table on a terminal, else in columns for grep and awk."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*header, box=None, header_style="bold")
        for row in rows:
            # Text, not markup: an IPv6 address contains brackets.
            drawn.add_row(*(Text(printable(cell, sys.maxsize)) for cell in row))
        Console().print(drawn)
        return
    last = len(header) - 1
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(last)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join((*cells, row[last])).rstrip())


def print_problems(problems: Iterable[Problem], *, to_stderr: bool = True) -> None:
    """Print one line for each problem, errors first, followed by a line with its remedy."""
    found = tuple(problems)
    for problem in (*errors_in(found), *warnings_in(found)):
        color = "red" if problem.severity is Severity.ERROR else "yellow"
        parts = (problem.location, style(problem.severity, color), problem.subject, problem.message)
        say(": ".join(part for part in parts if part), err=to_stderr)
        if problem.remedy:
            say(f"    → {problem.remedy}", err=to_stderr)


def summary(problems: Iterable[Problem]) -> str:
    """Return the reason of a refusal in one line; empty if there is no error."""
    errors = errors_in(problems)
    if not errors:
        return ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"refused: {errors[0].statement}{more}"


def refused_line(problems: Iterable[Problem]) -> str:
    """Return the line that is printed above the problems of a refusal."""
    return f"refused: {counted(len(errors_in(problems)), 'error')}"


def refuse(problems: Iterable[Problem], code: int = Exit.PROBLEMS) -> NoReturn:
    """Exit as `fail` does, with `refused_line` above the problems."""
    found = tuple(problems)
    if shape_asked_for() in _FOR_PEOPLE:
        say(style(refused_line(found), "red"), err=True)
    fail(found, code)


def fail(problems: Iterable[Problem], code: int) -> NoReturn:
    """Print problems in the requested format, and exit with `code`, or for Nagios with its own."""
    found = tuple(problems)
    shape, is_unknown = shape_asked_for(), code == Exit.CANNOT_TELL
    if shape in ("json", "yaml"):
        status = "unknown" if is_unknown else "refused"
        emit({"version": 1, "status": status, "problems": [p.as_json() for p in found]})
    elif shape == "nagios":
        word, code = ("UNKNOWN", 3) if is_unknown else ("CRITICAL", 2)
        lines = [str(problem) for problem in found]
        nagios(word, lines[0] if lines else "", lines=lines[1:])
    else:
        print_problems(found)
    sys.exit(code)


def nagios(
    word: str, summary: str, figures: str = "", lines: Sequence[str] = (), most: int = 50
) -> None:
    """Print the output for Nagios: state, summary, performance data, and `most` lines at most."""
    say(f"FC-FRONTEND {word} - {_without_bar(summary)}{f' | {figures}' if figures else ''}")
    for line in lines[:most]:
        say(_without_bar(line))
    if len(lines) > most:
        say(f"and {len(lines) - most} more")


def _without_bar(text: str) -> str:
    """Replace `|`, which separates the performance data in Nagios' output."""
    return one_line(text.replace("|", "/"))


def shape_asked_for() -> str:
    """Return the format requested by --format or --json; text if the command has neither."""
    context = click.get_current_context(silent=True)
    return str(context.meta.get(_SHAPE, "text")) if context else "text"
