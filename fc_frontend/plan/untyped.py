"""Access to unvalidated values of a JSON document; a value of another type counts as absent."""

from __future__ import annotations

from typing import Any, TypeGuard


def as_text(value: Any) -> str:
    """Return the string, or an empty one."""
    return value if isinstance(value, str) else ""


def as_mapping(value: Any) -> dict[str, Any]:
    """Return the mapping, or an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return the list, or an empty one."""
    return value if isinstance(value, list) else []


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether the value is a string."""
    return isinstance(value, str)


def is_port(value: Any) -> TypeGuard[int]:
    """Return whether the value is a port number."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535
