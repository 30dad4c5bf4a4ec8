"""The daemon's state: frozen, and replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fc_frontend.config.declare import Declaration
from fc_frontend.desired.isolate import Withheld
from fc_frontend.errors import Problem
from fc_frontend.haproxy.deploy import Deployment
from fc_frontend.haproxy.hold import Hold
from fc_frontend.model.units import UnitId
from fc_frontend.pipeline import Prepared
from fc_frontend.plan.model import Plan, Resolution
from fc_frontend.plan.reasons import Reason
from fc_frontend.render.config import Config


class Trigger(StrEnum):
    """A cause for a step."""

    START = "start"
    FILES = "files"
    DNS = "dns"
    SIGHUP = "sighup"
    RESCAN = "rescan"
    HAPROXY = "haproxy"
    CONTENTS = "contents"
    """A file named in the configuration, such as a certificate, changed."""
    RETRY = "retry"
    RESUME = "resume"
    REMOVAL = "removal"
    """A waiting removal may take effect now."""


NAMED = frozenset((Trigger.FILES, Trigger.DNS, Trigger.HAPROXY, Trigger.CONTENTS))
"""Triggers for which the changed files are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """A deployment, or an attempt at one.  `at` is Unix time in seconds."""

    at: float
    reasons: tuple[Reason, ...]
    deployment: Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonState:
    """The state shown by log, metrics and status."""

    declaration: Declaration | None = None
    """The declaration that HAProxy runs."""
    read: Declaration | None = None
    """The last declaration read, with its errors."""
    prepared: Prepared | None = None
    """The last result for files and answers, deployed or not."""
    resolution: Resolution = field(default_factory=dict)
    """The answers for the services of HAProxy."""
    deployed: Plan | None = None
    config: Config | None = None
    """The intended haproxy.cfg; None if it is unknown, or while another one is held."""
    wanted: str | None = None
    """The digest that HAProxy should run, declared or held; None if refused or not yet known."""
    running: str | None = None
    """The digest that HAProxy's worker reports."""
    held: Hold | None = None
    """The current hold; while there is one, changes are not deployed."""
    is_drift_left: bool = False
    """True if others changed haproxy.cfg and the change is kept."""
    taken: Attempted | None = None
    """The last accepted deployment, even if HAProxy had that configuration already."""
    last_reload: Attempted | None = None
    """The last reload or start, or attempt at one."""
    refusal: Deployment | None = None
    """The last deployment that was refused or failed."""
    problems: tuple[Problem, ...] = ()
    """The problems of the declarations."""
    withheld: tuple[Withheld, ...] = ()
    waiting: tuple[UnitId, ...] = ()
    """The units that are gone from the files, and will be removed unless they reappear."""
    drained: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Service name → addresses of the drained pods."""

    @property
    def is_in_sync(self) -> bool:
        """Whether the running worker has the wanted configuration."""
        return self.wanted is not None and self.wanted == self.running
