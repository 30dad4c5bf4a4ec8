"""What the command line says of all benches."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conftest import BINARIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured; a bench takes what it needs of this."""

    quick: bool = False
    versions: tuple[str, ...] = tuple(BINARIES)
    reloads: int = 100
    clients: int = 200
    services: tuple[int, ...] = (1, 1000)
    seconds: float = 300.0
    """The longest time under load of one scenario."""
    given_services: tuple[int, ...] | None = None
    given_seconds: float | None = None
    changes: int = 200
    """Changes in DNS of a scenario."""
    minutes: float = 60.0
    """How long the soak takes."""

    def services_or(self, usual: tuple[int, ...], *, quick: tuple[int, ...]) -> tuple[int, ...]:
        """The numbers of services that were given, else a bench's own."""
        return self.given_services or (quick if self.quick else usual)

    def seconds_or(self, usual: float, *, quick: float) -> float:
        """The time that was given, else a bench's own."""
        return self.given_seconds or (quick if self.quick else usual)
