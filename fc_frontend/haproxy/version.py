"""The version of HAProxy, and the differences between versions.

All knowledge of version differences is here: callers query a property by its meaning and never
compare numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.process import run

_NUMBERS = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})(?:\.([0-9]{1,6})|-dev([0-9]+))?\S*")
_SAID = re.compile(r"^(?:HA-?Proxy version |Version: ?)(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A version of HAProxy.  Compared by its numbers; `text` is its full name."""

    major: int
    minor: int
    patch: int = 0
    text: str = ""

    def __str__(self) -> str:
        return self.text or f"{self.major}.{self.minor}.{self.patch}"

    @property
    def supported(self) -> bool:
        """Whether fc-frontend supports it: 2.6, the oldest tested version, and later."""
        return (self.major, self.minor) >= (2, 6)

    @property
    def reload_answers(self) -> bool:
        """Whether `reload` on the master socket waits and returns `Success=1` or `Success=0`.

        From 2.7 on (Management Guide 9.4, `reload`).  Before, the answer is empty and the socket
        refuses connections until the new master has started.
        """
        return (self.major, self.minor) >= (2, 7)


def parse_version(text: str) -> Version:
    """Parse a version from `haproxy -v`, from `show info`, or on its own (`2.6.12-1`).

    Raises `Unavailable` if there is none.
    """
    said = _SAID.search(text)
    name = said[1] if said else text.strip()
    numbers = _NUMBERS.match(name)
    if numbers is None:
        first = text.strip().splitlines()[0][:80] if text.strip() else "nothing"
        raise Unavailable.of(
            f"not a HAProxy version: {first!r}",
            "check that haproxy.binary and the sockets belong to HAProxy 2.6 or later",
        )
    return Version(int(numbers[1]), int(numbers[2]), int(numbers[3] or 0), numbers[0])


def binary_version(binary: str, timeout: float = 10.0) -> Version:
    """Return the version of the executable `binary`; it is run again only when the file changes.

    Raises `Unavailable` if it cannot be run, or does not answer as HAProxy within `timeout`
    seconds.
    """
    try:
        changed = Path(binary).stat().st_mtime_ns
    except OSError:
        changed = 0
    return _asked(binary, changed, timeout)


@lru_cache(maxsize=8)
def _asked(binary: str, _changed: int, timeout: float) -> Version:
    finished = run([binary, "-v"], timeout=timeout, limit=4096)
    if finished.status != 0:
        raise Unavailable.of(
            f"`{binary} -v` {finished.ending}",
            "run it by hand; set haproxy.binary to a HAProxy 2.6 or later",
            field="haproxy.binary",
        )
    return parse_version(finished.output)
