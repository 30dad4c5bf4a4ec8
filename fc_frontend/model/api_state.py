"""How the watch of the Kubernetes API is doing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

EXPIRY_WARNING: Final = 14 * 86400.0
"""Seconds before the credentials expire from which on operators are warned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiState:
    """One look at it.

    `age` is how many seconds ago the API server last said anything, None if it never did.  `lists`
    counts complete lists by what made them necessary, `failures` what went wrong, by kind.
    `failure` is what is wrong now, None while all is well.  `held` are the services whose last pods
    are kept although the API shows none; `expires` is when the credentials do, in Unix time, where
    that is known.
    """

    is_synced: bool = False
    is_current: bool = False
    age: float | None = None
    events: int = 0
    lists: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    failure: str | None = None
    held: frozenset[str] = frozenset()
    expires: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What the status document has of it."""
        return {
            "current": self.is_current,
            "age": None if self.age is None else round(self.age, 3),
            "failure": self.failure,
            "held": sorted(self.held),
            "expires": self.expires,
        }
