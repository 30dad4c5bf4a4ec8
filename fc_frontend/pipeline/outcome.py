"""The recorded and reported results of a deployment: the history, and lost settings."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from fc_frontend.errors import Problem, Refused
from fc_frontend.haproxy import history, install
from fc_frontend.haproxy.foreign import FileOrigin
from fc_frontend.migrate import lost
from fc_frontend.pipeline.candidate import Prepared

if TYPE_CHECKING:
    from fc_frontend.haproxy.deploy import Deployment


def record(
    prepared: Prepared, deployment: Deployment, reasons: tuple[str, ...], *, by: str = ""
) -> None:
    """Record the outcome of a deployment of `prepared` in the history, if it did anything.

    `by` is the user who ran the command.  Raises `Unavailable`.
    """
    assert prepared.config is not None
    if deployment.outcome.value in ("in-sync", "held", "needs-consent"):
        return
    entry = history.Entry(
        at=time.time(),
        hash=prepared.config.hash,
        outcome=deployment.outcome.value,
        reasons=reasons,
        services=len(prepared.plan.services),
        slots=prepared.plan.slot_count,
        seconds=round(deployment.duration, 3),
        by=by,
        files=prepared.changed_files,
    )
    settings = prepared.plan.settings
    mode = install.mode_of_copies(settings.haproxy.config_file)
    history.record(settings.state_directory, entry, prepared.config.text, mode=mode)


def lost_settings(prepared: Prepared, deployment: Deployment) -> tuple[Problem, ...]:
    """Return warnings about `global` and `defaults` settings of a replaced foreign haproxy.cfg."""
    replaced = deployment.replaced
    is_foreign = replaced is not None and replaced.found.origin in (
        FileOrigin.BARE,
        FileOrigin.FOREIGN,
    )
    if replaced is None or replaced.content is None or not is_foreign or not deployment.ok:
        return ()
    assert prepared.config is not None
    text = replaced.content.data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(Refused):
        return lost.lost_settings(text, prepared.plan.settings.haproxy, prepared.config.text)
    return ()
