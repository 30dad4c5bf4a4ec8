"""No code branches on text written for people: it uses `cause`, an enum or a flag instead.

HAProxy's output is parsed in `fc_frontend.haproxy`, from values that have none of these names.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fc_frontend

PACKAGE = Path(fc_frontend.__file__).parent
PROSE = frozenset("message remedy effect reason said error evidence".split())
"""Attributes whose values are sentences or parts of sentences."""
STRING_TESTS = frozenset(
    "startswith endswith find rfind index rindex count partition rpartition removeprefix "
    "removesuffix isdigit isupper islower casefold".split()
)
MATCHES = frozenset("match search fullmatch findall finditer sub subn split".split())


def decisions(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each expression that inspects a sentence."""
    for scope in ast.walk(ast.parse(source)):
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names = frozenset(sentences_in(scope))
            for node in ast.walk(scope):
                if isinstance(node, ast.expr | ast.stmt) and looks_into(node, names):
                    yield node.lineno, ast.unparse(node)


def sentences_in(scope: ast.AST) -> Iterator[str]:
    """Yield the local names that are assigned a sentence."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.NamedExpr):
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and is_sentence(node.value, frozenset()):
            yield target.id


def is_sentence(node: ast.AST, names: frozenset[str]) -> bool:
    """Return whether `node` is an attribute such as `problem.message`, or is derived from one."""
    match node:
        case ast.Attribute(attr=attribute):
            return attribute in PROSE
        case ast.Name(id=name):
            return name in names
        case ast.BoolOp(values=values):
            return any(is_sentence(value, names) for value in values)
        case ast.IfExp(body=body, orelse=other):
            return is_sentence(body, names) or is_sentence(other, names)
        case ast.Call(func=ast.Name(id="one_line" | "str" | "printable"), args=[first, *_]):
            return is_sentence(first, names)
        case ast.Call(func=ast.Attribute(value=text, attr="lower" | "upper" | "strip")):
            return is_sentence(text, names)
    return False


def looks_into(node: ast.AST, names: frozenset[str]) -> bool:
    """Return whether `node` inspects a sentence; comparing two sentences is allowed."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [left, *comparators]
            for number, operator in enumerate(ops):
                one, other = sides[number], sides[number + 1]
                if isinstance(operator, ast.In | ast.NotIn):
                    if is_sentence(one, names) or is_sentence(other, names):
                        return True
                elif isinstance(operator, ast.Eq | ast.NotEq) and (
                    (is_sentence(one, names) and not is_sentence(other, names))
                    or (is_sentence(other, names) and not is_sentence(one, names))
                ):
                    return True
        case ast.Call(func=ast.Attribute(value=text, attr=method), args=arguments):
            if method in STRING_TESTS and is_sentence(text, names):
                return True
            return method in MATCHES and any(is_sentence(each, names) for each in arguments)
        case ast.Match(subject=subject):
            return is_sentence(subject, names)
    return False


@pytest.mark.parametrize(
    "expression",
    [
        "'Permission denied' in problem.message",
        "held.effect != 'it is left out'",
        "'it is left out' == held.effect",
        "problem.message.startswith('HAProxy')",
        "problem.message.lower().endswith('x')",
        "one_line(answer.error or '').partition(':')",
        "re.sub('[0-9]+', '', problem.message)",
        "PATTERN.search(step.said)",
        "answer.error in ('timeout', 'refused')",
        "(error := answer.error) and 'SERVFAIL' in error",
    ],
)
def test_a_decision_on_words_is_found(expression: str) -> None:
    assert list(decisions(f"def f():\n    return {expression}\n"))


@pytest.mark.parametrize(
    "expression",
    [
        "problem.cause is Cause.FORBIDDEN",
        "change.effect is Effect.RELOAD",
        "answer.error is None",
        "old.error == new.error",
        "' '.join(problem.message.split())",
        "f'{problem.message}: {problem.remedy}'",
    ],
)
def test_other_uses_of_words_are_none(expression: str) -> None:
    assert not list(decisions(f"def f():\n    return {expression}\n"))


def test_no_code_decides_on_words() -> None:
    found = {
        f"{file.relative_to(PACKAGE)}:{line}: {text}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for line, text in decisions(file.read_text())
    }
    assert not found
