"""Run a test function as root, directly or in a separate user namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DAEMON = 4321
"""The user and group of the daemon in tests; no other file has this owner."""

_INSIDE = ["unshare", "--map-root-user", "--map-auto"]


def as_root(function: Callable[[Path], None], directory: Path) -> None:
    """Call the module-level `function` with `directory` as root, and fail if it fails."""
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
    """Return whether the test was run as root in a user namespace, as this user is not root."""
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
    """Return the command prefix that runs `python …` as the daemon's user.

    That user must be able to start the same Python again.  It cannot if this Python is in root's
    home directory; the prefix then selects /usr/bin/python3.
    """
    user = ("setpriv", f"--reuid={DAEMON}", f"--regid={DAEMON}", "--clear-groups")
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    done = subprocess.run([*user, sys.executable, "-c", again], capture_output=True, check=False)
    if done.returncode == 0:
        return user
    path = f"PYTHONPATH={':'.join(path for path in sys.path if path)}"
    return (*user, "env", path, "sh", "-c", 'shift; exec /usr/bin/python3 "$@"', "sh")


def given(path: Path, uid: int = DAEMON) -> Path:
    """Change the owner of `path` to `uid`, without following a symbolic link, and return `path`."""
    os.chown(path, uid, uid, follow_symlinks=False)
    return path
