"""Decide the daemon's next action from the observed state.  Pure.

    State ─► decide ─► Nothing, Runtime, Install, Start, Reload, Restore or Refuse

The first rule that matches applies:

    state                                            action
    -----------------------------------------------  ------------------------------------------
    a rollback is held                               run the held configuration, nothing else
    haproxy.cfg is foreign and there is no consent   refuse; HAProxy keeps its configuration
    the running one is refused with every change     refuse; start HAProxy if it does not run
    HAProxy does not run                             start it, or install for its next start
    it runs the desired text, and the file differs   restore the file, or leave it (drift)
    it runs the desired text                         runtime commands, or nothing
    the desired text already failed to reload        nothing, until the text changes
    it runs another text                             reload
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.errors import Problem
from fc_frontend.plan.reasons import Reason
from fc_frontend.render.config import Config


class FileState(StrEnum):
    """The state of haproxy.cfg on disk."""

    MISSING = "missing"
    OURS = "ours"
    """It has a digest of fc-frontend, and the text is unchanged."""
    EDITED = "edited"
    """fc-frontend wrote it, and it has been changed since."""
    FOREIGN = "foreign"
    """fc-frontend did not write it, and it has proxies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The last observed state of HAProxy and its file."""

    is_running: bool
    """Whether a HAProxy answers on one of its sockets."""
    running: str | None = None
    """The digest that the running worker reports; None if it is not one of fc-frontend's."""
    file: FileState = FileState.OURS
    installed: str | None = None
    """The digest of haproxy.cfg if that is `OURS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that determine how HAProxy is handled."""

    supervises: bool = False
    restores_drift: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All inputs of a decision."""

    observed: Observed
    policy: Policy = Policy()
    desired: Config | None = None
    """The composition with all changes that are not withheld; None if there is none."""
    reasons: tuple[Reason, ...] = ()
    refused: tuple[Problem, ...] = ()
    """Why even the running configuration would not be accepted."""
    held: Config | None = None
    """The configuration that a rollback holds."""
    has_consent: bool = True
    """False while a foreign haproxy.cfg must not be replaced."""
    failed: str | None = None
    """The digest of a text whose reload failed."""
    commands: tuple[str, ...] = ()
    """Runtime commands that update the servers of the running worker."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing to do."""

    why: Idle


class Idle(StrEnum):
    """The reason why there is nothing to do."""

    IN_SYNC = "in-sync"
    DRIFT_LEFT = "drift-left"
    INSTALLED = "installed"
    """HAProxy does not run, and loads the desired text when it is started."""
    ALREADY_FAILED = "already-failed"


@dataclass(frozen=True, slots=True)
class Runtime:
    """Send commands to the running worker."""

    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """Write haproxy.cfg for a HAProxy that fc-frontend does not start."""

    config: Config


@dataclass(frozen=True, slots=True)
class Start:
    """Write haproxy.cfg and start the supervised HAProxy."""

    config: Config


@dataclass(frozen=True, slots=True)
class StartInstalled:
    """Start HAProxy with the existing haproxy.cfg: nothing newer is accepted."""

    digest: str


@dataclass(frozen=True, slots=True)
class Reload:
    """Write haproxy.cfg, reload HAProxy and wait until its worker reports the digest."""

    config: Config
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """Write HAProxy's running text back to haproxy.cfg, which was changed or removed."""

    config: Config


class Refusal(StrEnum):
    """The reason why nothing is deployed."""

    FOREIGN_FILE = "foreign-file"
    BASE_REFUSED = "base-refused"
    NOTHING_DECLARED = "nothing-declared"


@dataclass(frozen=True, slots=True)
class Refuse:
    """Deploy nothing, and report the reason."""

    why: Refusal
    problems: tuple[Problem, ...] = ()


Action = Nothing | Runtime | Install | Start | StartInstalled | Reload | Restore | Refuse


def decide(state: State) -> Action:
    """Return the one action to take in `state`."""
    observed, policy = state.observed, state.policy
    target = state.held or state.desired
    if observed.file is FileState.FOREIGN and not state.has_consent:
        return Refuse(Refusal.FOREIGN_FILE)
    if state.held is None and (state.refused or target is None):
        if not observed.is_running and policy.supervises and observed.installed is not None:
            return StartInstalled(observed.installed)
        why = Refusal.BASE_REFUSED if state.refused else Refusal.NOTHING_DECLARED
        return Refuse(why, state.refused)
    assert target is not None
    if not observed.is_running:
        if policy.supervises:
            return Start(target)
        is_installed = observed.file is FileState.OURS and observed.installed == target.hash
        return Nothing(Idle.INSTALLED) if is_installed else Install(target)
    if observed.running == target.hash:
        return _in_sync(state, target)
    if target.hash == state.failed:
        return Nothing(Idle.ALREADY_FAILED)
    return Reload(target, state.reasons)


def _in_sync(state: State, target: Config) -> Action:
    """Return the action to take while HAProxy runs the wanted text."""
    observed = state.observed
    is_installed = observed.file is FileState.OURS and observed.installed == target.hash
    if not is_installed and (
        state.policy.restores_drift or observed.file in (FileState.MISSING, FileState.OURS)
    ):
        return Restore(target)
    if state.commands:
        return Runtime(state.commands)
    return Nothing(Idle.IN_SYNC if is_installed else Idle.DRIFT_LEFT)
