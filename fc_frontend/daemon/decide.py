"""Decisions that follow from looks at files and HAProxy.  Pure, as `fc_frontend.decide` is."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from fc_frontend.daemon.state import DaemonState
from fc_frontend.haproxy.hold import Hold
from fc_frontend.pipeline import Prepared


class Drift(StrEnum):
    """What to do about a haproxy.cfg that differs from the one the daemon wrote."""

    NONE = "none"
    LEAVE = "leave"
    """Keep the file until the configuration changes."""
    RESTORE = "restore"


def after_hold(state: DaemonState, found: Hold | None) -> DaemonState:
    """Return `state` after reading the record of a hold as `found`; None if there is no record.

    An unreadable record holds the configuration that HAProxy has, whichever that is.
    """
    if found is not None and found == state.held:
        return replace(state, wanted=found.hash or state.running)
    if found is not None:
        wanted = found.hash or state.running
        return replace(state, held=found, wanted=wanted, config=None, is_drift_left=False)
    return state if state.held is None else replace(state, held=None, wanted=None)


def drift(state: DaemonState, file: bytes | None) -> Drift:
    """Return what to do while haproxy.cfg is `file`; None if there is no file."""
    if state.config is None or state.deployed is None or state.held is not None:
        return Drift.NONE
    if file == state.config.text.encode("utf-8", "surrogateescape"):
        return Drift.NONE
    adopts = state.deployed.settings.haproxy.drift == "adopt"
    return Drift.LEAVE if adopts and file is not None else Drift.RESTORE


def leaves_drift(state: DaemonState, base: str | None) -> bool:
    """Return whether HAProxy may have a haproxy.cfg that others changed and that is kept.

    `base` is the digest of the base of changes.
    """
    return (
        state.is_drift_left
        and state.deployed is not None
        and state.deployed.settings.haproxy.drift == "adopt"
        and base == state.wanted
    )


def is_settled(state: DaemonState, prepared: Prepared, *, is_suspect: bool) -> bool:
    """Return whether HAProxy runs `prepared`, as far as is known without looking at it.

    With `is_suspect`, a look at HAProxy showed another configuration.
    """
    if prepared.config is None or not prepared.ok or prepared.config.hash != state.wanted:
        return False
    # HAProxy may now have the file that others changed and that is kept.
    if state.is_drift_left and prepared.plan.settings.haproxy.drift == "adopt":
        return True
    base = prepared.base.config
    # The digest does not cover routes.
    has_routes = base is None or base.text == prepared.config.text
    return state.wanted == state.running and has_routes and not is_suspect


def is_amiss(state: DaemonState, *, supervises: bool) -> bool:
    """Return whether HAProxy should run another configuration than it does."""
    if state.running is None:
        return supervises
    return state.wanted is not None and state.running != state.wanted
