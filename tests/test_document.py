"""YAML and JSON as plain values, with positions."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.config.document import DocumentError, read_document

SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(0, 3))
def test_json_is_read_as_the_standard_library_reads_it(value: Any, indent: int) -> None:
    text = json.dumps(value, indent=indent or None)
    assert read_document(text, is_json=True).value == value


@given(VALUES, st.integers(0, 3))
def test_every_place_in_json_is_found(value: Any, indent: int) -> None:
    text = json.dumps(value, indent=indent or None)
    document = read_document(text, is_json=True)
    lines = text.split("\n")

    def visit(value: Any, path: tuple[str | int, ...]) -> None:
        if path:
            line, column = document.locate(path) or (0, 0)
            there = lines[line - 1][column - 1 :]
            expected = json.dumps(path[-1]) if isinstance(path[-1], str) else json.dumps(value)[0]
            assert there.startswith(expected)
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, (*path, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                visit(inner, (*path, index))

    visit(value, ())


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(
            st.characters(min_codepoint=32, max_codepoint=0xFFFD, exclude_categories=["Cs", "Cc"]),
            max_size=20,
        ),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["a", "b", "on", "1"]), inner, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_yaml_is_read_back_as_it_was_written(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True, default_style=None)
    # A float without a dot, such as 0E0, is not a float in YAML 1.1.
    is_other = re.search(r"[0-9][eE][-+]?[0-9]", text) is not None
    if is_other or any(word in text for word in ("0o", "_", ":")) or "y" in text.lower():
        # YAML 1.1 writes some strings unquoted that 1.2 reads as other values, and vice versa.
        text = json.dumps(value)
    assert read_document(text, is_json=False).value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("12:30:45", "12:30:45"),
        ("0o17", 15),
        ("017", 17),
        ("0x1f", 31),
        ("1e3", 1000.0),
        ("~", None),
        ("", None),
        ("True", True),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("'443'", "443"),
        ("!!str 443", "443"),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
    ],
)
def test_yaml_has_the_rules_of_its_version_1_2(text: str, value: Any) -> None:
    assert read_document(text, is_json=False).value == value


@pytest.mark.parametrize("is_json", [True, False])
def test_duplicate_keys_are_flaws_with_both_places(is_json: bool) -> None:
    document = read_document('{"a": 1,\n "b": {"c": 1,\n  "c": 2}}', is_json=is_json)
    (flaw,) = document.flaws
    assert "a key is twice" in flaw.message
    assert "line 2" in flaw.message
    assert (flaw.line, flaw.column) == (3, 3)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "\n".join(" " * depth + "a:" for depth in range(1000)),
        '{"a":' * 100_000,
        "[" * 60 + "]" * 60,
    ],
)
@pytest.mark.parametrize("is_json", [True, False])
def test_deep_nesting_is_refused_and_ends_nothing(text: str, is_json: bool) -> None:
    with pytest.raises(DocumentError):
        read_document(text, is_json=is_json)


def test_deep_json_has_places() -> None:
    text = '{"a": ' + "[" * 900 + "]" * 900 + ', "a": 1}'
    document = read_document(text, is_json=True)
    assert document.flaws[0].line == 1
    assert document.locate(("a", *(0,) * 400)) == (1, 407)


def test_an_alias_is_the_same_object_again() -> None:
    document = read_document("a: &a [x, y]\nb: [*a, *a]\n", is_json=False)
    assert document.value == {"a": ["x", "y"], "b": [["x", "y"], ["x", "y"]]}
    assert document.value["b"][0] is document.value["a"]


@pytest.mark.parametrize("width", [2, 10])
def test_aliases_that_stand_for_too_much_are_refused(width: int) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, 40)]
    with pytest.raises(DocumentError, match="too many values"):
        read_document("\n".join(lines), is_json=False)
    text = "x" * 100_000
    with pytest.raises(DocumentError, match="too many values"):
        read_document(f"a: &a {text}\nb: [{', '.join(['*a'] * 100)}]\n", is_json=False)


@pytest.mark.parametrize(
    ("text", "is_json", "message"),
    [
        ("[" + "1," * 300_001 + "1]", True, "too many values"),
        ("[" + "1," * 300_001 + "1]", False, "too many values"),
        ("[" * 51 + "]" * 51, True, "nested too deeply"),
        ("[" * 51 + "]" * 51, False, "nested too deeply"),
        ("[" * 100_000, True, "JSON"),
        ("[" * 100_000, False, "depth"),
        (r'["\\ud800 \ud83d\ude00", "\ud800"]', True, "an escape is half a character"),
        (r'{"\udc00\ud800": 1}', True, "half a character"),
        (r'["\ud800"]', False, "invalid Unicode character"),
    ],
)
def test_documents_that_could_hurt_are_refused(text: str, is_json: bool, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_document(text, is_json=is_json)
    assert message in caught.value.flaw.message


@pytest.mark.parametrize("is_json", [True, False])
def test_of_many_flaws_the_first_are_reported(is_json: bool) -> None:
    text = "{" + ", ".join(['"a": 1'] * 1000) + "}"
    assert len(read_document(text, is_json=is_json).flaws) == 20


@pytest.mark.parametrize(
    ("text", "line", "remedy"),
    [
        ("a:\n\tb: 1", 2, "spaces, not tabs"),
        ("a: [1\n", 2, "close what is open"),
        ("a: *nowhere", 1, "define"),
        ("a: 1\n---\nb: 2", 2, "own file"),
    ],
)
def test_yaml_errors_have_a_place_and_a_remedy(text: str, line: int, remedy: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_document(text, is_json=False)
    assert caught.value.flaw.line == line
    assert remedy in caught.value.flaw.remedy


@given(st.text(max_size=200), st.booleans())
def test_any_text_is_read_or_refused(text: str, is_json: bool) -> None:
    try:
        document = read_document(text, is_json=is_json)
    except DocumentError:
        return
    document.locate(("a", 0, "b"))


def test_unknown_tags_are_flaws_and_run_nothing() -> None:
    document = read_document("a: !!python/object/apply:os.getcwd []", is_json=False)
    assert document.value == {"a": []}
    assert "unknown tag" in document.flaws[0].message
