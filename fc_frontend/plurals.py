"""Numbers with the right form of what is counted, and lists of names, for all that people read."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, one: str, many: str = "") -> str:
    """`1 pod`, `3 pods`; `many` is the plural where it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def some(names: Iterable[object], most: int = 4) -> str:
    """The first of `names`, and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
