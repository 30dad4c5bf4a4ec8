"""A cache for incremental work: results of unchanged sources are not computed again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class Memo(Generic[V]):
    """Values by name, each with the source that it was computed from.

    Sources are compared by value, so a result does not depend on the identity of an object.  They
    must be immutable, and equal ones must be equivalent: pass a field that is excluded from
    comparisons as a source of its own, and do not pass YAML values, where 1 equals true.  The cost
    is negligible if nothing has changed: in a tuple, Python treats the same object as equal without
    comparing it.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, V]] = {}

    def of(self, name: str, source: object, compute: Callable[[], V]) -> V:
        """Return the value for `source`, computed unless it is cached.

        Raises what `compute` raises.
        """
        known = self._known.get(name)
        if known is None or (known[0] is not source and known[0] != source):
            known = self._known[name] = (source, compute())
        return known[1]

    def keep(self, names: Collection[str]) -> None:
        """Remove all values except those of `names`."""
        if len(self._known) > len(names):
            for name in self._known.keys() - set(names):
                del self._known[name]

    def sources(self) -> Iterator[tuple[str, object]]:
        """Return each name, with the source of its value."""
        return ((name, source) for name, (source, _) in list(self._known.items()))
