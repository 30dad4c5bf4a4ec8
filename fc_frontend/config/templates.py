"""The packaged templates, each of which an operator's own template may replace."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def packaged_templates() -> Mapping[str, str]:
    """Return the templates that fc-frontend ships: file name → text.  Cached."""
    package = Path(__file__).parent.parent
    directory = package / "templates"
    if not directory.is_dir():
        directory = package.parent / "templates"
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.j2"))}


def templates(own: Mapping[str, str]) -> dict[str, str]:
    """Return the packaged templates; the operator's `own` templates take precedence."""
    return {**packaged_templates(), **own}
