"""Services that a reload changed: what had servers up must not be without one for it.

`haproxy -c` cannot see that nobody listens on a port.  Pure state, without a clock of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

WATCH_FOR = 15.0
"""Seconds after a reload in which a service that it changed must not lose its last server.

Three checks of a pod that does not answer take 12 s, of one that refuses 3 s.
"""
LOOKS_DOWN = 2
"""Looks in a row without a server up after which a service is lost."""


@dataclass(slots=True)
class _Watched:
    until: float
    looks_down: int = 0


class Guard:
    """The services that are watched."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    @property
    def watched(self) -> Collection[str]:
        """Their names."""
        return self._watched.keys()

    def clear(self) -> None:
        """Watch nothing any more."""
        self._watched.clear()

    def watch(self, changed: Collection[str], had_up: Collection[str], now: float) -> None:
        """A reload changed services; those that had a server up, or are watched, are watched."""
        until = now + WATCH_FOR
        self._watched = {
            name: self._watched.get(name) or _Watched(until)
            for name in changed
            if name in had_up or name in self._watched
        }

    def look(self, up: Collection[str], with_pods: Collection[str], now: float) -> tuple[str, ...]:
        """The services that are lost: they have pods, and none of their servers is up.

        `up` are the proxies with a server up, `with_pods` the services that DNS names pods of.
        Lost and proven ones are watched no longer.
        """
        lost: list[str] = []
        for name, watched in list(self._watched.items()):
            is_down = name not in up and name in with_pods
            watched.looks_down = watched.looks_down + 1 if is_down else 0
            if watched.looks_down >= LOOKS_DOWN:
                lost.append(name)
            if watched.looks_down >= LOOKS_DOWN or now >= watched.until:
                del self._watched[name]
        return tuple(lost)
