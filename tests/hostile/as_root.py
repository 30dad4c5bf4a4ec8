"""Run a test's function as root: as we are, or in a user namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DAEMON = 4321
"""The user and group of the daemon: nobody else's in a test."""

_INSIDE = ["unshare", "--map-root-user", "--map-auto"]


def as_root(function: Callable[[Path], None], directory: Path) -> None:
    """Call a module's `function` with `directory`, and fail if it fails."""
    if os.geteuid() == 0:
        function(directory)
        return
    script = f"from {function.__module__} import {function.__name__} as function, Path"
    call = f"function(Path({str(directory)!r}))"
    done = subprocess.run(
        [*_INSIDE, sys.executable, "-c", f"{script}; {call}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def again_as_root(request: pytest.FixtureRequest) -> bool:
    """True if this test ran as root in a user namespace, because we are not root."""
    if os.geteuid() == 0:
        return False
    done = subprocess.run(
        [*_INSIDE, sys.executable, "-m", "pytest", "-q", request.node.nodeid],
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def as_daemon() -> tuple[str, ...]:
    """What to put before `python …` to run it as the daemon's user.

    That user may start the same Python again, which it may not where this one is in root's home.
    """
    user = ("setpriv", f"--reuid={DAEMON}", f"--regid={DAEMON}", "--clear-groups")
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    done = subprocess.run([*user, sys.executable, "-c", again], capture_output=True, check=False)
    if done.returncode == 0:
        return user
    path = f"PYTHONPATH={':'.join(path for path in sys.path if path)}"
    return (*user, "env", path, "sh", "-c", 'shift; exec /usr/bin/python3 "$@"', "sh")


def given(path: Path, uid: int = DAEMON) -> Path:
    """`path` itself, a link as such, belongs to `uid` from now on."""
    os.chown(path, uid, uid, follow_symlinks=False)
    return path
