"""Digests of a unit's declaration, used to detect whether it has changed since an earlier check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fc_frontend.config.loader import Sources
from fc_frontend.model.units import UnitId, UnitKind

_GONE = "gone"
"""The fingerprint of a unit that no file declares."""


def digest(value: Any) -> str:
    """Return a short digest of a value that JSON can represent."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def fingerprint(sources: Sources, unit: UnitId) -> str:
    """Return a digest of the declaration of `unit` in the files, whether it is valid or not."""
    match unit.kind:
        case UnitKind.SETTINGS:
            return digest([sources.settings, _text(sources, sources.settings_file)])
        case UnitKind.TEMPLATES:
            return digest(sources.templates)
        case UnitKind.FILE:
            return digest([unit.name in sources.broken, _text(sources, unit.name)])
        case UnitKind.FRAGMENT:
            found = [each.text for each in sources.fragments if each.name == unit.name]
            path = f"{sources.directory}/{unit.name}.cfg"
            return digest([*found, _text(sources, path)]) if path in sources.files else _GONE
        case UnitKind.FRONTEND:
            several = sources.frontends.get(unit.name, ())
            return digest([raw.value for raw in several]) if several else _GONE
        case UnitKind.SERVICE if unit.name in sources.duplicates:
            return digest([raw.value for raw in sources.duplicates[unit.name]])
        case UnitKind.SERVICE:
            raw = sources.services.get(unit.name) or (sources.cluster or {}).get(unit.name)
            return digest(raw.value) if raw else _GONE
        case UnitKind.DUPLICATE:
            name, _, file = unit.name.partition(" in ")
            several = sources.duplicates.get(name, ())
            return digest([raw.value for raw in several if raw.file == file])


def consented(sources: Sources, consents: Mapping[UnitId, str]) -> frozenset[UnitId]:
    """Return the units of `consents` whose declaration has not changed since the consent."""
    return frozenset(
        unit for unit, agreed in consents.items() if fingerprint(sources, unit) == agreed
    )


def _text(sources: Sources, path: str) -> str:
    """Return the text of a file if it is broken, else an empty string."""
    file = sources.files.get(path)
    return file.text if file else ""
