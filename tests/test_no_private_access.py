"""Tests use public interfaces only: no test accesses names that begin with an underscore."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent
PRIVATE = re.compile(r"_[A-Za-z]\w*")
PATCHED = re.compile(r"fc_frontend(\.\w+)*\._[A-Za-z]\w*")
OURS = ("self", "cls")
NAMED_TUPLES = ("_replace", "_asdict", "_fields")
"""The attributes of every named tuple; the underscore distinguishes them from fields."""


def private(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner)) if owner in OURS:
                continue
            case ast.Attribute(attr=name) if name in NAMED_TUPLES:
                continue
            case ast.Attribute(attr=name, lineno=line) if PRIVATE.fullmatch(name):
                yield line, ast.unparse(node)
            case ast.ImportFrom(module=str(module), names=names, lineno=line):
                for each in names:
                    if module.startswith("fc_frontend") and PRIVATE.fullmatch(each.name):
                        yield line, f"{module}.{each.name}"
            case ast.Constant(value=str(text), lineno=line) if PATCHED.fullmatch(text):
                yield line, text


def test_no_test_uses_what_is_private() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted(ROOT.rglob("*.py"))
        for line, what in private(ast.parse(path.read_text()))
    ]
    assert found == []
