"""The command line: one module a command, imported only when that command is run."""

from __future__ import annotations

import importlib
import keyword
from typing import TYPE_CHECKING

import click

from fc_frontend import __version__
from fc_frontend.cli.progress import volume_options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "check": "Judge the configuration; changes nothing and needs no network.",
    "diff": "Show what `apply` would change, by service, and whether it takes a reload.",
    "render": "Print the haproxy.cfg that follows from the configuration.",
    "apply": "Ask cluster DNS, check, install, reload and confirm, once.",
    "run": "Run the daemon: keep HAProxy in step with files and cluster DNS.",
    "resolve": "Show what cluster DNS says now of each service.",
    "status": "Show how the frontend is: HAProxy, services, what is wrong.",
    "explain": "Say where a service's way is interrupted, and what to do.",
    "drain": "Let a pod, or a whole service, end what it has and get nothing new.",
    "undrain": "Let a drained pod or service take new traffic again.",
    "history": "List what HAProxy was given, when, why, and what became of it.",
    "rollback": "Go back to a former haproxy.cfg, and hold it.",
    "resume": "End what rollback began: what is declared is deployed again.",
    "doctor": "Look whether this VM is fit: networks, routes, DNS, HAProxy, permissions, clock.",
    "import": "Turn an existing haproxy.cfg into declarations.",
    "demo": "Show the whole thing on loopback, with nothing set up.",
    "completion": "Print what lets bash, zsh or fish complete commands and names.",
    "man": "Print the manual, or write its pages into a directory.",
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        module = importlib.import_module(f"fc_frontend.cli.{name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1) if args else []
            if not near or args[0] in COMMANDS:
                raise
            raise click.UsageError(f"{exc.message} Did you mean {near[0]}?", ctx) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        # click's own would import every command to see whether it is hidden.
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name]) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


EPILOG = """\
Settings are read from /etc/fc-frontend/config.yaml (or .json), else from --config or
FC_FRONTEND_CONFIG; services from there and from services.d/*.yaml, *.json and *.cfg beside it.
"""


@click.command(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="fc-frontend %(version)s")
@click.option(
    "-c",
    "--config",
    metavar="PATH",
    type=click.Path(readable=False),
    help="The settings file. Also an option of each command.",
)
@volume_options
def cli(config: str | None) -> None:
    """HAProxy in front of a Kubernetes cluster.

    Declare services in a few lines; fc-frontend finds their pods by cluster DNS, writes
    haproxy.cfg, lets HAProxy check it, and reloads without losing a request. HAProxy serves on
    without it.

    \b
    First steps:
      fc-frontend demo      see it work, on loopback, with nothing set up
      fc-frontend doctor    is this VM fit to be a frontend?
      fc-frontend check     judge /etc/fc-frontend/config.yaml
      fc-frontend run       the daemon
    """
