"""A histogram that accepts thousands of durations at once, one for each query of a sweep."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class DurationCounts:
    """Durations of one label value, counted by bucket."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, durations: Iterable[float]) -> None:
        """Count durations, in seconds."""
        bounds, counts = self._bounds, self._counts
        for duration in durations:
            counts[bisect_left(bounds, duration)] += 1
            self._sum += duration

    def samples(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative buckets, and the sum in seconds."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        counts = map(float, accumulate(self._counts))
        return list(zip(names, counts, strict=True)), self._sum


class Durations(Collector):
    """A Prometheus histogram with one label."""

    def __init__(self, name: str, words: str, label: str, bounds: Sequence[float]) -> None:
        self._name, self._words, self._label = name, words, label
        self._bounds = tuple(bounds)
        self._counts: dict[str, DurationCounts] = {}

    def of(self, value: str) -> DurationCounts:
        """Return the counts for this label value."""
        return self._counts.setdefault(value, DurationCounts(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the histogram for the registry."""
        family = HistogramMetricFamily(self._name, self._words, labels=[self._label])
        # Another thread may add labels meanwhile.
        for value, counts in tuple(self._counts.items()):
            buckets, total = counts.samples()
            family.add_metric([value], buckets, total)
        yield family

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Yield an empty histogram for the registry, which refuses duplicate names."""
        yield HistogramMetricFamily(self._name, self._words, labels=[self._label])
