"""Ask the API and cluster DNS about services once, for commands."""

from __future__ import annotations

from fc_frontend.config.declare import Declaration
from fc_frontend.pipeline.base import Base, is_same_cluster
from fc_frontend.plan.model import Answer, Resolution
from fc_frontend.stored import stored_answers


async def resolve(
    declaration: Declaration,
    previous: Resolution | None = None,
    *,
    base: Base | None = None,
    hold: bool = True,
) -> dict[str, Answer]:
    """Return the answers of the API and cluster DNS for every service; never raises for failures.

    `previous` are the answers that remain valid if DNS fails: by default the stored ones, unless
    `base`, the running configuration, has pods of another cluster.  With `hold`, they also remain
    valid if DNS suddenly lists no pods, because a single look does not show for how long.
    """
    from fc_frontend.discovery.once import resolve_once
    from fc_frontend.kubernetes.answers import ask_api

    cluster = declaration.settings.cluster
    if previous is None:
        settings, file = declaration.settings, declaration.settings_file
        is_same = base is None or is_same_cluster(base, settings, file)
        previous = stored_answers(settings, declaration.services) if is_same else {}
    answers = await ask_api(declaration.services, cluster, previous)
    others = [spec for spec in declaration.services if spec.name not in answers]
    wait = declaration.settings.intervals.hold if hold else 0.0
    return answers | await resolve_once(others, cluster, previous, wait)
