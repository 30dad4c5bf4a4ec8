"""`fc-frontend demo`: run a demonstration on loopback."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable

import click

from fc_frontend.cli.common import Exit, fail, style


@click.command("demo")
@click.option("--keep", is_flag=True, help="Keep everything running until Ctrl-C.")
def command(keep: bool) -> None:
    """See it work on loopback, as an ordinary user, without any setup.

    Starts a cluster DNS, pods, the daemon and a real HAProxy. Scales the pods, kills one, adds a
    service and breaks a file, while it sends requests and counts failures. Takes about 15 seconds,
    listens on loopback addresses only and leaves nothing behind.

    Exits 0 only if every step succeeded.
    """
    from fc_frontend.demo.story import DemoStepFailed, Story, stage
    from fc_frontend.errors import Unavailable
    from fc_frontend.haproxy.binary import find_binary

    try:
        find_binary()
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)

    async def tell() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        with stage() as place:
            story = asyncio.create_task(Story(place, _teller()).tell(stop.wait if keep else None))

            def end() -> None:
                # With --keep, Ctrl-C ends the demo regularly; otherwise it cancels it.
                stop.set()
                if not keep:
                    story.cancel()

            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, end)
            await story

    try:
        asyncio.run(tell())
    except DemoStepFailed as exc:
        click.echo(f"{style('not true', 'red')}: {exc}", err=True)
        sys.exit(Exit.PROBLEMS)
    except asyncio.CancelledError:
        click.echo("broken off", err=True)
        sys.exit(Exit.PROBLEMS)


def _teller() -> Callable[[str, str], None]:
    """Return the function that prints the story: rich on a terminal, else in plain lines."""
    if not sys.stdout.isatty():
        marks = {"title": "\n== ", "text": "   ", "good": "ok ", "bad": "!! ", "file": ""}

        def plain(kind: str, line: str) -> None:
            if kind == "file":
                name, _, text = line.partition("\n")
                line = f"   {name}:\n" + "".join(f"   | {row}\n" for row in text.splitlines())
                click.echo(line, nl=False)
            else:
                click.echo(f"{marks[kind]}{line}")

        return plain

    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel
    from rich.rule import Rule
    from rich.syntax import Syntax

    console = Console()

    def rich(kind: str, line: str) -> None:
        if kind == "title":
            console.print(Rule(f"[bold]{escape(line)}", align="left"))
        elif kind == "file":
            name, _, text = line.partition("\n")
            syntax = Syntax(text, "yaml", background_color="default")
            console.print(Panel(syntax, title=escape(name), title_align="left", expand=False))
        else:
            mark = {"good": "[green]✓[/] ", "bad": "[red]✗[/] "}.get(kind, "  ")
            console.print(mark + escape(line), highlight=False)

    return rich
