"""Command line options of all benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conftest import BINARIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The extent of measurements; each benchmark uses the options that apply to it."""

    quick: bool = False
    versions: tuple[str, ...] = tuple(BINARIES)
    reloads: int = 100
    clients: int = 200
    services: tuple[int, ...] = (1, 1000)
    seconds: float = 300.0
    """The maximum time under load of one scenario."""
    given_services: tuple[int, ...] | None = None
    given_seconds: float | None = None
    changes: int = 200
    """The number of DNS changes of a scenario."""
    minutes: float = 60.0
    """The duration of the soak."""

    def services_or(self, usual: tuple[int, ...], *, quick: tuple[int, ...]) -> tuple[int, ...]:
        """Return the given numbers of services, or the benchmark's defaults."""
        return self.given_services or (quick if self.quick else usual)

    def seconds_or(self, usual: float, *, quick: float) -> float:
        """Return the given time, or the benchmark's default."""
        return self.given_seconds or (quick if self.quick else usual)
