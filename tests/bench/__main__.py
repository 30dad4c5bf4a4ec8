"""Runs benchmarks by name and prints one table each."""

from __future__ import annotations

import argparse
import importlib
import json
import os

NAMES = ("startup", "footprint", "reaction", "reloads")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    for name in options.names or NAMES:
        module = importlib.import_module(f"tests.bench.{name}")
        load = os.getloadavg()[0]
        rows: list[dict[str, object]] = module.rows(quick=options.quick)
        if options.json:
            print(json.dumps({"bench": name, "load": load, "rows": rows}))
            continue
        print(f"\n{name} ({(module.__doc__ or '').splitlines()[0]}; load {load:.1f})")
        columns = list(rows[0])
        cells = [[str(row[column]) for column in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for line in (columns, *cells):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
