"""The state of the watch of the Kubernetes API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

EXPIRY_WARNING: Final = 14 * 86400.0
"""The number of seconds before the expiry of the credentials at which warnings begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiState:
    """A snapshot of the state.

    `age` is the time in seconds since the API server last sent data, None if it never did.  `lists`
    counts complete lists by the kind of failure that made them necessary, `failures` counts
    failures by kind.  `failure` is the current failure, None if there is none.  `held` are the
    services whose last pods are kept although the API lists none; `expires` is the expiry of the
    credentials, in Unix time, if known.
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
        """Return the state in the format of the status document."""
        return {
            "current": self.is_current,
            "age": None if self.age is None else round(self.age, 3),
            "failure": self.failure,
            "held": sorted(self.held),
            "expires": self.expires,
        }
