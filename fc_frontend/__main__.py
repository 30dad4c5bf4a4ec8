"""The program's entry: `fc-frontend`, or `python -m fc_frontend`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    if sys.argv[1:] == ["--version"]:
        # Answered before the command line is built: scripts ask for it often.
        from fc_frontend import __version__

        sys.stdout.write(f"fc-frontend {__version__}\n")
        return
    from fc_frontend.cli import cli

    cli(prog_name="fc-frontend")


if __name__ == "__main__":
    main()
