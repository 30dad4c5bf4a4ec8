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
    """What makes a step due."""

    START = "start"
    FILES = "files"
    DNS = "dns"
    SIGHUP = "sighup"
    RESCAN = "rescan"
    HAPROXY = "haproxy"
    CONTENTS = "contents"
    """A file that the configuration names, such as a certificate."""
    RETRY = "retry"
    RESUME = "resume"
    REMOVAL = "removal"
    """What is gone from the files may be believed now."""


NAMED = frozenset((Trigger.FILES, Trigger.DNS, Trigger.HAPROXY, Trigger.CONTENTS))
"""With these alone, it is known which files changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """A deployment, or an attempt at one.  `at` is Unix time in seconds."""

    at: float
    reasons: tuple[Reason, ...]
    deployment: Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonState:
    """Everything that log, metrics and status show of the daemon."""

    declaration: Declaration | None = None
    """The one that HAProxy has."""
    read: Declaration | None = None
    """The last one that was read, with its errors."""
    prepared: Prepared | None = None
    """The last result of files and answers, deployed or not."""
    resolution: Resolution = field(default_factory=dict)
    """The answers for what HAProxy has."""
    deployed: Plan | None = None
    config: Config | None = None
    """What haproxy.cfg should be; None if that is not known, or while another one is held."""
    wanted: str | None = None
    """The digest that HAProxy should run, declared or held; None if refused or not known yet."""
    running: str | None = None
    """The digest that HAProxy's worker reports."""
    held: Hold | None = None
    """While it is there, changes are not deployed."""
    is_drift_left: bool = False
    """True if others changed haproxy.cfg and it is left so."""
    taken: Attempted | None = None
    """The last deployment that was accepted, even if nothing had to be done for it."""
    last_reload: Attempted | None = None
    """The last reload, start or attempt at one."""
    refusal: Deployment | None = None
    """The last deployment that was not accepted."""
    problems: tuple[Problem, ...] = ()
    """The problems of the declarations."""
    withheld: tuple[Withheld, ...] = ()
    waiting: tuple[UnitId, ...] = ()
    """The units that are gone from the files, and that are removed unless they come back."""
    drained: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Service name → addresses of the pods that are drained."""

    @property
    def is_in_sync(self) -> bool:
        """True if the running worker has what is wanted."""
        return self.wanted is not None and self.wanted == self.running
