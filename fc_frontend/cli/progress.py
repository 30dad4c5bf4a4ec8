"""Progress on standard error.

on a terminal   a line that appears after a second and is erased at the end
--verbose       one line per completed step, with its duration
--quiet         nothing

Not `rich.status`: it would save 12 lines, but hides the cursor, which stays hidden when the command
is terminated by a signal; it also takes 35 ms to import.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import click

from fc_frontend.text import printable

F = TypeVar("F", bound=Callable[..., Any])
PATIENCE = 1.0
"""Seconds until the line appears."""
_EVERY = 0.1
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII_FRAMES = "|/-\\"
_ERASE = "\r\033[K"


class step:  # noqa: N801 - it is used like a function: `with step("..."):`
    """A context manager that shows the progress of a slow operation, described by `text`.

    Nothing may be printed inside of the context.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if _is_watched():
            self._thread = threading.Thread(target=self._draw, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
        if is_verbose():
            seconds = time.monotonic() - self._started
            end = "" if kind is None else ", in vain"
            click.echo(printable(f"{self._text}: {seconds:.2f} s{end}"), err=True)

    def say(self, text: str) -> None:
        """Change the text of the line."""
        self._text = text

    def _draw(self) -> None:
        if self._ended.wait(PATIENCE):
            return
        is_utf8 = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
        frames = _FRAMES if is_utf8 else _ASCII_FRAMES
        turn = 0
        try:
            while True:
                seconds = int(time.monotonic() - self._started)
                # One column is left free: a full line would wrap, and could not be erased.
                columns = shutil.get_terminal_size().columns - 1
                line = f"{frames[turn % len(frames)]} {self._text} ({seconds} s)"
                sys.stderr.write(_ERASE + printable(line, max(1, columns)))
                sys.stderr.flush()
                if self._ended.wait(_EVERY):
                    break
                turn += 1
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # the terminal has gone


def volume() -> int:
    """Return -1 with --quiet, 1 with --verbose, else 0."""
    context = click.get_current_context(silent=True)
    found = context.meta.get(__name__, 0) if context else 0
    return int(found)


def volume_options(function: F) -> F:
    """Add the options --quiet and --verbose, before the command's name or after it."""

    def heard(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            level = -1 if param.name == "quiet" else 1
            if volume() == -level:
                raise click.UsageError("--quiet and --verbose exclude each other", ctx)
            ctx.meta[__name__] = level

    def option(short: str, name: str, text: str) -> Callable[[F], F]:
        return click.option(
            short, f"--{name}", is_flag=True, expose_value=False, callback=heard, help=text
        )

    quiet = option("-q", "quiet", "Print only problems and results.")
    verbose = option("-v", "verbose", "Print each step and its duration to standard error.")
    return quiet(verbose(function))


def is_quiet() -> bool:
    """Return whether --quiet is given."""
    return volume() < 0


def is_verbose() -> bool:
    """Return whether --verbose is given."""
    return volume() > 0


def _is_watched() -> bool:
    return not is_quiet() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
