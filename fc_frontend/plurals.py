"""Counted nouns in singular or plural, and lists of names, for texts that people read."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, one: str, many: str = "") -> str:
    """Return `1 pod`, `3 pods`; `many` is the plural if it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def some(names: Iterable[object], most: int = 4) -> str:
    """Return the first of `names`, and the number of the others."""
    every = [str(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
