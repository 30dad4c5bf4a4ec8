"""The packaged templates, with the operator's own ones in their place, one file at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def packaged_templates() -> Mapping[str, str]:
    """File name → text of the templates that fc-frontend ships; read once."""
    package = Path(__file__).parent.parent
    directory = package / "templates"
    if not directory.is_dir():
        directory = package.parent / "templates"
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.j2"))}


def templates(own: Mapping[str, str]) -> dict[str, str]:
    """The packaged templates, where the operator's `own` take precedence."""
    return {**packaged_templates(), **own}
