"""Values of a JSON document that nobody has checked; what has another type counts as absent."""

from __future__ import annotations

from typing import Any, TypeGuard


def as_text(value: Any) -> str:
    """The text, or an empty one."""
    return value if isinstance(value, str) else ""


def as_mapping(value: Any) -> dict[str, Any]:
    """The mapping, or an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The list, or an empty one."""
    return value if isinstance(value, list) else []


def is_text(value: Any) -> TypeGuard[str]:
    """True for a text."""
    return isinstance(value, str)


def is_port(value: Any) -> TypeGuard[int]:
    """True for the number of a port."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535
