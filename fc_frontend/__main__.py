"""The entry point of the program: `fc-frontend`, or `python -m fc_frontend`."""

from __future__ import annotations

import io
import sys

USAGE = 2


def main() -> None:
    """Run the command line and exit with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # If the locale is not UTF-8, characters that it lacks are escaped.
            stream.reconfigure(errors="backslashreplace")
    if sys.argv[1:] == ["--version"]:
        # Handled before the command line is built, because scripts call it often.
        from fc_frontend import __version__

        sys.stdout.write(f"fc-frontend {__version__}\n")
        return
    from fc_frontend.text import is_printable, printable

    wrong = next((argument for argument in sys.argv[1:] if not is_printable(argument)), None)
    if wrong is not None:
        sys.stderr.write(
            f"fc-frontend: argument {printable(wrong)} has characters that are not printable\n"
        )
        sys.exit(USAGE)
    from fc_frontend.cli import cli

    cli(prog_name="fc-frontend")


if __name__ == "__main__":
    main()
