"""The listeners that HAProxy opens for a configuration, section by section."""

from __future__ import annotations

from fc_frontend.model.units import UnitId
from fc_frontend.render.config import Config
from fc_frontend.syntax.binds import BindFlaw, Listeners, Owned, effective, read_listeners

_SPARE = 1000
"""Removed units that may stay in the cache."""

_known: dict[UnitId, tuple[str, Listeners]] = {}
"""The sections that were read last: unchanged sections are not read again."""


def listeners_of(config: Config, host_name: str) -> tuple[list[Owned], list[BindFlaw]]:
    """Return the listeners on the host `host_name`, and the lines whose listeners are unknown.

    Lines are counted from the start of their unit's section.  If only the text of a configuration
    is known, all of it belongs to the settings.
    """
    if not config.sections:
        return effective([read_listeners(config.text)], host_name)
    if len(_known) > 2 * len(config.sections) + _SPARE:
        _known.clear()
    texts = []
    for section in config.sections:
        known = _known.get(section.unit)
        if known is None or known[0] != section.text:
            known = _known[section.unit] = section.text, read_listeners(section.text, section.unit)
        texts.append(known[1])
    return effective(texts, host_name)
