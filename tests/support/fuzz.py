"""`python -m tests.support.fuzz --count N`: run all fuzz targets, with N inputs in total.

One line for each target shows its number of inputs and its seconds.  Targets with slow inputs get
fewer.  The first failure ends the run, and shows the seed and the input.
"""

from __future__ import annotations

import argparse
import os
import sys

import pytest

WEIGHTS = 6.4
"""The total number of inputs of all targets, for each input of a target of ordinary cost."""


def main() -> int:
    """Run the targets; return pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs in all [default: 10000]")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers [default: 1]")
    given = parser.parse_args()
    os.environ["FC_FRONTEND_INPUTS"] = str(max(1, round(given.count / WEIGHTS)))
    os.environ["FC_FRONTEND_SEED"] = str(given.seed)
    return int(pytest.main(["-q", "-s", "-x", "tests/test_fuzz.py"]))


if __name__ == "__main__":
    sys.exit(main())
