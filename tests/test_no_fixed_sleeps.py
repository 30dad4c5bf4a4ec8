"""Tests wait for conditions: a pause of fixed length is too short on a busy machine.

Reads the argument of each `sleep(...)`; `sleep(0)` only yields to the event loop.  Benchmarks may
sleep, and so may the programs in strings that tests start.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent
ALLOWED = {
    ("conftest.py", "until"): "looks again",
    ("conftest.py", "until_in_loop"): "looks again",
    ("support/clients.py", "web"): "a client pauses between two requests",
    ("support/clients.py", "long"): "a client pauses between two exchanges",
    ("support/clients.py", "watch"): "measures how late the load generator is",
    ("support/contenders.py", "take"): "benchmarks count the requests of this time",
    ("support/knot.py", "_seen"): "looks again, and tells when it saw what it waits for",
    ("faults/test_host.py", "test_a_daemon_that_is_ended_in_a_reload_leaves_nothing_half_done"): (
        "any moment of a reload will do"
    ),
    ("faults/test_kill_anywhere.py", "test_the_daemon_may_be_killed_anywhere"): (
        "kills the daemon at any moment"
    ),
    ("test_http.py", "drip"): "a client that sends a byte now and then",
    ("test_scaling.py", "test_five_hundred_files_in_a_second_take_three_reloads_at_most"): (
        "writes files at an even pace"
    ),
}
"""The functions that may pause, by file, with the reason."""


def pauses(tree: ast.AST, function: str = "") -> Iterator[tuple[str, int]]:
    """Yield the function and line of each call of `sleep` with a nonzero duration."""
    for node in ast.iter_child_nodes(tree):
        inner = function
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                inner = name
            case ast.Call(args=[ast.Constant(value=0)]):
                pass
            case (
                ast.Call(func=ast.Attribute(attr="sleep"), lineno=line)
                | ast.Call(func=ast.Name(id="sleep"), lineno=line)
            ):
                yield function, line
        yield from pauses(node, inner)


def test_no_test_sleeps_for_a_fixed_time() -> None:
    found = {
        (str(path.relative_to(ROOT)), function): line
        for path in sorted(ROOT.rglob("*.py"))
        if "bench" not in path.relative_to(ROOT).parts
        for function, line in pauses(ast.parse(path.read_text()))
    }
    new = [f"{path}:{line}: {name}" for (path, name), line in found.items()]
    assert [text for text, key in zip(new, found, strict=True) if key not in ALLOWED] == []
    assert sorted(ALLOWED.keys() - found.keys()) == [], "no longer needed"
