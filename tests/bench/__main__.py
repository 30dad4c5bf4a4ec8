"""Run benchmarks by name and print one table for each."""

from __future__ import annotations

import argparse
import importlib
import json
import os

from tests.bench.options import Options
from tests.conftest import BINARIES

NAMES = (
    "startup", "changes", "sweep", "footprint", "growth", "convergence", "soak", "reaction",
    "reloads", "scaling", "faults", "endpoints", "api_scale", "routes", "route_changes",
    "certificates", "load_balancers",
)  # fmt: skip
LONG = ("soak",)
"""Run only if named."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--versions", help=f"HAProxys, of {','.join(BINARIES)}")
    parser.add_argument("--reloads", type=int, help="reloads of a scenario (100)")
    parser.add_argument("--clients", type=int, help="clients of a scenario (200)")
    parser.add_argument("--services", help="numbers of services (each bench has its own)")
    parser.add_argument(
        "--seconds", type=float, help="longest load of a scenario (300), or idle time (60)"
    )
    parser.add_argument("--changes", type=int, help="changes in DNS of a scenario (200)")
    parser.add_argument("--minutes", type=float, help="how long the soak takes (60)")
    given = parser.parse_args()
    options = options_of(given)
    for name in given.names or [name for name in NAMES if name not in LONG]:
        module = importlib.import_module(f"tests.bench.{name}")
        load = os.getloadavg()[0]
        rows: list[dict[str, object]] = module.rows(options)
        if given.json:
            print(json.dumps({"bench": name, "load": load, "rows": rows}), flush=True)
            continue
        print(f"\n{name} ({(module.__doc__ or '').splitlines()[0]}; load {load:.1f})")
        columns = list(rows[0])
        cells = [[str(row[column]) for column in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for line in (columns, *cells):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
        if plot := getattr(module, "plot", None):
            print(f"\n{plot(rows)}")


def options_of(given: argparse.Namespace) -> Options:
    """Return the given options, completed by the defaults or those of the short form."""
    short = Options(
        quick=True,
        reloads=8,
        clients=60,
        services=(1, 100),
        seconds=30.0,
        changes=40,
        minutes=2.0,
    )
    base = short if given.quick else Options()
    services = (
        tuple(int(number) for number in given.services.split(",")) if given.services else None
    )
    return Options(
        quick=given.quick,
        versions=tuple(given.versions.split(",")) if given.versions else base.versions,
        reloads=base.reloads if given.reloads is None else given.reloads,
        clients=base.clients if given.clients is None else given.clients,
        services=services or base.services,
        seconds=base.seconds if given.seconds is None else given.seconds,
        given_services=services,
        given_seconds=given.seconds,
        changes=base.changes if given.changes is None else given.changes,
        minutes=base.minutes if given.minutes is None else given.minutes,
    )


if __name__ == "__main__":
    main()
