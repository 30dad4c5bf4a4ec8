"""`fc-frontend completion SHELL`: print the script that completes commands, options and names.

The script queries fc-frontend through click's own protocol (`_FC_FRONTEND_COMPLETE`), so it is
always up to date.  The completion functions are below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import ShellComplete, get_completion_class

from fc_frontend.cli.progress import volume_options

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_FC_FRONTEND_COMPLETE"


@click.command("completion")
@volume_options
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the script that completes commands, options, services and pods in SHELL.

    The Debian package includes these scripts. To install them by hand:

    \b
    bash  fc-frontend completion bash >/usr/share/bash-completion/completions/fc-frontend
    zsh   fc-frontend completion zsh >/usr/local/share/zsh/site-functions/_fc-frontend
    fish  fc-frontend completion fish >/etc/fish/completions/fc-frontend.fish

    For the current shell only: eval "$(fc-frontend completion bash)".
    """
    click.echo(script(shell))


def script(shell: str) -> str:
    """Return the completion script for one of `SHELLS`."""
    from fc_frontend.cli import cli

    maker = get_completion_class(shell)
    assert maker is not None
    # The class for bash would start bash, which may not exist, to query its version.
    text = ShellComplete.source(maker(cli, {}, "fc-frontend", VARIABLE)).strip()
    if shell == "zsh":
        # A function that is loaded from a file must have the file's name.  Otherwise only the
        # first completion of a session works.
        return text.replace("_fc_frontend_completion", "_fc-frontend")
    # click's script for fish would cut the description of a completion at its first comma.
    return text.replace('string split "," $', 'string split --max 1 "," $')


Names = Callable[[click.Context, click.Parameter, str], list[str]]


def safely(names: Callable[[click.Context], Iterable[str]]) -> Names:
    """Return a function that completes to matching `names`, or to nothing on any error."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        try:
            found = sorted(name for name in names(ctx) if name.startswith(incomplete))
        # An error must not be printed into the command line being typed.
        except Exception:
            return []
        # Names may originate from files and from the network, and the shell prints them.
        return [name for name in found if name.isprintable() and " " not in name]

    return complete


@safely
def service(ctx: click.Context) -> Iterable[str]:
    """Complete the declared services."""
    from fc_frontend.config.declare import load

    given = set(ctx.params.get("services") or ())
    return (spec.name for spec in load(_config(ctx)).services if spec.name not in given)


@safely
def pod(ctx: click.Context) -> Iterable[str]:
    """Complete the addresses of the service's pods in the last stored answer."""
    from fc_frontend.config.declare import load
    from fc_frontend.stored import stored_answers

    declaration = load(_config(ctx))
    answers = stored_answers(declaration.settings, declaration.services)
    answer = answers.get(ctx.params["service"])
    return (endpoint.address for endpoint in answer.endpoints) if answer else ()


@safely
def entry(ctx: click.Context) -> Iterable[str]:
    """Complete the entries of the history."""
    from fc_frontend.cli.common import settings_in_force
    from fc_frontend.haproxy import history

    entries = history.entries(settings_in_force(_config(ctx)).state_directory)
    return (str(each.id) for each in entries)


def _config(ctx: click.Context) -> str:
    from fc_frontend.cli.common import config_before
    from fc_frontend.config.loader import settings_path

    return settings_path(ctx.params.get("config") or config_before(ctx))


@safely
def command_names(_ctx: click.Context) -> Iterable[str]:
    """Complete the commands."""
    from fc_frontend.cli import COMMANDS

    return COMMANDS
