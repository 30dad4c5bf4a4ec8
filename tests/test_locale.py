"""Programs whose output is parsed run under the C locale."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fc_frontend.haproxy.process import run

ROOT = Path(__file__).parent.parent / "fc_frontend"
STARTERS = frozenset(("Popen", "run", "check_output", "create_subprocess_exec", "posix_spawn"))
NOT_PARSED = {
    "cli/man.py": "man shows the page to the user, in the user's language",
    "demo/story.py": "the daemon of the demo, which is fc-frontend",
}


def test_programs_run_under_the_c_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANG", "LC_ALL", "LC_MESSAGES", "LANGUAGE"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    finished = run(["locale"], timeout=60, limit=10_000)
    values = {line.partition("=")[2].strip('"') for line in finished.output.splitlines()}
    assert values == {"", "C.UTF-8"}


def test_no_other_module_starts_programs_with_the_locale_of_the_user() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _starts_a_program(node.func):
                arguments = [*node.args, *(each.value for each in node.keywords)]
                if not any("environment" in ast.unparse(each) for each in arguments):
                    found.add(str(path.relative_to(ROOT)))
    assert found == set(NOT_PARSED)


def _starts_a_program(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in STARTERS
        and isinstance(function.value, ast.Name)
        and function.value.id in ("subprocess", "asyncio", "os")
        and ast.unparse(function) != "asyncio.run"
    )
