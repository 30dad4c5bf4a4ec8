"""Numbers with the right form of what is counted, for everything that people read."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """`1 pod`, `3 pods`; `many` is the plural where it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"
