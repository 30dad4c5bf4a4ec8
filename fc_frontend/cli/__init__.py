"""The command line: one module per command, imported only when that command runs."""

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
    "check": "Validate the configuration, offline and without changes.",
    "diff": "Show what `apply` would change, and whether it takes a reload.",
    "render": "Print the generated haproxy.cfg.",
    "apply": "Deploy once: validate, install, reload, confirm.",
    "run": "Run the daemon: deploy every change of files and pods.",
    "resolve": "Query cluster DNS or the API for each service.",
    "status": "Show the overall status: HAProxy, services, problems.",
    "explain": "Trace why a service is not served, and what to do.",
    "drain": "Drain a pod or service: finish open connections, accept no new ones.",
    "undrain": "Send new connections to a drained pod or service again.",
    "certificates": "Bring renewed certificates to HAProxy, or list them.",
    "history": "Show the deployment history.",
    "rollback": "Restore an earlier haproxy.cfg and pause deployments.",
    "resume": "Resume normal deployments after a rollback.",
    "doctor": "Check this host's prerequisites: networks, DNS, HAProxy, permissions, clock.",
    "kubeconfig": "Give people access to the cluster: make, list and revoke kubeconfigs.",
    "import": "Convert an existing haproxy.cfg to services and fragments.",
    "demo": "See it work on loopback, without any setup.",
    "completion": "Print the completion script for bash, zsh or fish.",
    "man": "Show the manual, or write its pages to a directory.",
}


class LazyGroup(click.Group):
    """A group that lists its commands by name, and imports a command only when it is called."""

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

        # click's own method would import every command to check whether it is hidden.
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name]) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


EPILOG = """\
Settings live in /etc/fc-frontend/config.yaml (or .json), unless --config or FC_FRONTEND_CONFIG
names another file. Services go under `services:` in that file, or into services.d/*.yaml, *.json
and *.cfg beside it.
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

    Declare services in a few lines. fc-frontend finds their pods by cluster DNS or the Kubernetes
    API, generates haproxy.cfg, validates it with HAProxy and reloads without losing a request.
    HAProxy keeps serving when fc-frontend is stopped.

    \b
    First steps:
      fc-frontend demo      see it work on loopback, without any setup
      fc-frontend doctor    check this host's prerequisites
      fc-frontend check     validate /etc/fc-frontend/config.yaml
      fc-frontend run       run the daemon
    """
