"""Incremental work: what follows from the same as before is not worked out again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class Memo(Generic[V]):
    """Values by name, each with what it was computed from.

    Sources are compared by value, so a result never depends on which object was given.  They must
    be immutable, and those that are equal must mean the same: a field that takes no part in
    comparisons is a source of its own, and YAML's values are none, where 1 equals true.  It costs
    next to nothing where nothing has changed: in a tuple, Python takes the same object for equal
    without comparing it.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, V]] = {}

    def of(self, name: str, source: object, compute: Callable[[], V]) -> V:
        """The value for `source`, computed unless it is known.  Raises what `compute` raises."""
        known = self._known.get(name)
        if known is None or (known[0] is not source and known[0] != source):
            known = self._known[name] = (source, compute())
        return known[1]

    def keep(self, names: Collection[str]) -> None:
        """Forget all values but those of `names`."""
        if len(self._known) > len(names):
            for name in self._known.keys() - set(names):
                del self._known[name]

    def sources(self) -> Iterator[tuple[str, object]]:
        """Each name, with what its value was computed from."""
        return ((name, source) for name, (source, _) in list(self._known.items()))
