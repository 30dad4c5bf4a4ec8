"""Replaces the daemon's state, and updates log and metrics with the difference."""

from __future__ import annotations

from collections.abc import Iterable

from fc_frontend.daemon.state import DaemonState
from fc_frontend.daemon.transitions import Event, transitions
from fc_frontend.errors import errors_in, warnings_in
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics


class Tracker:
    """Holds the daemon's state."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self.state = DaemonState()
        self._log = log
        self._metrics = metrics

    def become(self, state: DaemonState) -> None:
        """Replace the state."""
        before, self.state = self.state, state
        self.log(transitions(before, state))
        metrics = self._metrics
        metrics.synced(state.wanted, state.running)
        if before.held != state.held:
            metrics.held(state.held is not None)
        if before.is_drift_left != state.is_drift_left:
            metrics.drifted(state.is_drift_left)
        if before.withheld is not state.withheld:
            metrics.withheld([(held.unit.kind, held.unit.name) for held in state.withheld])
        if before.withheld is not state.withheld or before.problems is not state.problems:
            held = sum(len(change.problems) for change in state.withheld)
            errors, warnings = errors_in(state.problems), warnings_in(state.problems)
            metrics.problems(len(errors) + held, len(warnings))
        if before.drained != state.drained:
            metrics.drained({name: len(found) for name, found in state.drained.items()})

    def log(self, events: Iterable[Event]) -> None:
        """Log `events`."""
        for event in events:
            log = self._log
            if event.limit is not None:
                log = log.limited(event.limit, burst=event.burst)
            write = {"info": log.info, "warning": log.warning, "error": log.error}[event.level]
            write(event.name, **event.fields)
