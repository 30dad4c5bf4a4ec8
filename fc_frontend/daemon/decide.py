"""What the daemon's looks at files and HAProxy amount to.  Pure, as `fc_frontend.decide` is."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from fc_frontend.daemon.state import DaemonState
from fc_frontend.haproxy.hold import Hold
from fc_frontend.pipeline import Prepared


class Drift(StrEnum):
    """What to do about haproxy.cfg, which should be as the daemon wrote it."""

    NONE = "none"
    LEAVE = "leave"
    """Until the configuration changes."""
    RESTORE = "restore"


def after_hold(state: DaemonState, found: Hold | None) -> DaemonState:
    """`state` once the record of a hold is `found`, None if there is no such record.

    What cannot be read holds what HAProxy has, whichever that is.
    """
    if found is not None and found == state.held:
        return replace(state, wanted=found.hash or state.running)
    if found is not None:
        wanted = found.hash or state.running
        return replace(state, held=found, wanted=wanted, config=None, is_drift_left=False)
    return state if state.held is None else replace(state, held=None, wanted=None)


def drift(state: DaemonState, file: bytes | None) -> Drift:
    """What to do while haproxy.cfg is `file`, None if there is none."""
    if state.config is None or state.deployed is None or state.held is not None:
        return Drift.NONE
    if file == state.config.text.encode("utf-8", "surrogateescape"):
        return Drift.NONE
    adopts = state.deployed.settings.haproxy.drift == "adopt"
    return Drift.LEAVE if adopts and file is not None else Drift.RESTORE


def leaves_drift(state: DaemonState, base: str | None) -> bool:
    """True if HAProxy may have what others wrote to haproxy.cfg, and is left so.

    `base` is the digest of the base of changes.
    """
    return (
        state.is_drift_left
        and state.deployed is not None
        and state.deployed.settings.haproxy.drift == "adopt"
        and base == state.wanted
    )


def is_settled(state: DaemonState, prepared: Prepared, *, is_suspect: bool) -> bool:
    """True if HAProxy runs what `prepared` has, as far as is known without a look at it.

    With `is_suspect`, a look at HAProxy showed something else.
    """
    if prepared.config is None or not prepared.ok or prepared.config.hash != state.wanted:
        return False
    # A file that others changed, and that is left so, may be what HAProxy has now.
    if state.is_drift_left and prepared.plan.settings.haproxy.drift == "adopt":
        return True
    base = prepared.base.config
    # Routes are no part of the digest.
    has_routes = base is None or base.text == prepared.config.text
    return state.wanted == state.running and has_routes and not is_suspect


def is_amiss(state: DaemonState, *, supervises: bool) -> bool:
    """True if HAProxy should run something else than it does."""
    if state.running is None:
        return supervises
    return state.wanted is not None and state.running != state.wanted
