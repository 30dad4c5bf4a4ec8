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
