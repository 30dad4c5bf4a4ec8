"""Stored answers: they are read back as written, and no file can do harm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fc_frontend.discovery.store import VERSION, dump_answers, load_answers
from fc_frontend.plan import slots
from fc_frontend.plan.model import Answer, Endpoint, Freshness, Kind
from fc_frontend.text import is_printable

LARGEST = 16 * 1024 * 1024
"""Bytes; a larger file is not read."""

by_examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

ANSWER = Answer(
    kind=Kind.SRV,
    reason="a reason → with “quotes” and ünïcode",
    endpoints=(Endpoint("10.1.0.3", 8080, "pod.web"), Endpoint("fd00::3", 8080)),
    freshness=Freshness.FRESH,
    slots=20,
)
ENTRY: dict[str, Any] = {
    "kind": "headless",
    "reason": "why",
    "slots": 10,
    "endpoints": [["10.1.0.3", 8080, ""]],
}
GOOD = Answer(
    kind=Kind.HEADLESS,
    reason="why",
    endpoints=(Endpoint("10.1.0.3", 8080),),
    freshness=Freshness.STALE,
    slots=10,
)

addresses = st.builds(
    str,
    st.builds(IPv4Address, st.integers(0, 2**32 - 1))
    | st.builds(IPv6Address, st.integers(0, 2**128 - 1)),
)
endpoints = st.builds(
    Endpoint,
    address=addresses,
    port=st.integers(1, 65535),
    name=st.from_regex(r"[A-Za-z0-9._-]{0,253}", fullmatch=True),
)
answers = st.builds(
    Answer,
    kind=st.sampled_from(Kind),
    reason=st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=300).filter(
        is_printable
    ),
    endpoints=st.frozensets(endpoints, max_size=6).map(lambda found: tuple(sorted(found))),
    freshness=st.sampled_from(Freshness),
    rejected=st.tuples(addresses),
    error=st.none() | st.text(),
    remedy=st.text(),
    slots=st.integers(0, slots.MOST),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def stored(tmp_path: Path, content: bytes) -> dict[str, Answer]:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    return load_answers(str(path))


def document(**entries: Any) -> bytes:
    return json.dumps({"version": VERSION, "answers": entries}).encode()


def changed(**fields: Any) -> dict[str, Any]:
    return ENTRY | fields


@given(known=st.dictionaries(st.text(max_size=30), answers, max_size=5))
@by_examples
def test_what_was_stored_is_loaded_as_stale(tmp_path: Path, known: dict[str, Answer]) -> None:
    loaded = stored(tmp_path, dump_answers(known))
    assert loaded == {
        key: Answer(
            kind=answer.kind,
            reason=answer.reason,
            endpoints=answer.endpoints,
            freshness=Freshness.STALE,
            slots=answer.slots,
        )
        for key, answer in known.items()
    }
    assert dump_answers(loaded) == dump_answers(known)


def test_equal_answers_give_equal_bytes_in_any_order() -> None:
    one = {"a": ANSWER, "b": GOOD}
    other = {"b": GOOD, "a": ANSWER}
    assert dump_answers(one) == dump_answers(other)
    assert dump_answers(one).isascii()
    assert dump_answers(one).endswith(b"}\n")


def test_a_missing_file_a_directory_and_an_impossible_path_are_nothing(tmp_path: Path) -> None:
    assert load_answers(str(tmp_path / "none")) == {}
    assert load_answers(str(tmp_path)) == {}
    assert load_answers("a\0b") == {}
    assert load_answers(str(tmp_path / ("x" * 5000))) == {}


def test_a_file_that_is_no_regular_one_is_nothing_and_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    os.mkfifo(path)
    assert load_answers(str(path)) == {}
    assert load_answers("/dev/zero") == {}


@pytest.mark.parametrize("length", [0, 1, 10, 40, 100])
def test_a_file_that_was_cut_is_nothing(tmp_path: Path, length: int) -> None:
    assert stored(tmp_path, dump_answers({"web": ANSWER})[:length]) == {}


@given(place=st.integers(0, 200), value=st.integers(0, 255))
@by_examples
def test_a_changed_byte_raises_nothing(tmp_path: Path, place: int, value: int) -> None:
    content = bytearray(dump_answers({"web": ANSWER}))
    content[place % len(content)] = value
    for answer in stored(tmp_path, bytes(content)).values():
        assert_sane(answer)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00\xd8",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b"null",
        b"[]",
        b'"version"',
        b"{}",
        b'{"version":1}',
        b'{"version":1,"answers":[]}',
        b'{"version":1,"answers":{"web":null}}',
        b'{"version":2,"answers":{}}',
        b'{"version":NaN,"answers":{}}',
        json.dumps({"version": VERSION + 1, "answers": {"web": ENTRY}}).encode(),
        json.dumps({"version": str(VERSION), "answers": {"web": ENTRY}}).encode(),
        json.dumps({"version": [VERSION], "answers": {"web": ENTRY}}).encode(),
        json.dumps({"answers": {"web": ENTRY}}).encode(),
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)
def test_foreign_content_is_nothing(tmp_path: Path, content: bytes) -> None:
    assert stored(tmp_path, content) == {}


def test_a_file_larger_than_16_mib_is_nothing(tmp_path: Path) -> None:
    content = document(web=ENTRY)
    assert stored(tmp_path, content.ljust(LARGEST)) == {"web": GOOD}
    assert stored(tmp_path, content.ljust(LARGEST + 1)) == {}


HOSTILE: dict[str, Any] = {
    "no object": ["kind"],
    "a text": "kind reason slots endpoints",
    "an empty object": {},
    "an unknown kind": changed(kind="root"),
    "a kind that is a list": changed(kind=["headless"]),
    "no kind": {key: value for key, value in ENTRY.items() if key != "kind"},
    "a reason that is a number": changed(reason=7),
    "no slots": changed(slots=None),
    "negative slots": changed(slots=-1),
    "too many slots": changed(slots=slots.MOST + 1),
    "slots as a truth value": changed(slots=True),
    "slots as a fraction": changed(slots=1.5),
    "endpoints as a number": changed(endpoints=7),
    "endpoints as a text": changed(endpoints="10.1.0.3"),
    "an endpoint as a text": changed(endpoints=["abc"]),
    "an endpoint as a number": changed(endpoints=[7]),
    "an endpoint that is too short": changed(endpoints=[["10.1.0.3", 80]]),
    "an endpoint that is too long": changed(endpoints=[["10.1.0.3", 80, "", ""]]),
    "an address with a newline": changed(endpoints=[["10.1.0.3\n  acl", 80, ""]]),
    "an address with a space": changed(endpoints=[["10.1.0.3 ", 80, ""]]),
    "an address with a scope": changed(endpoints=[["fe80::1%eth0", 80, ""]]),
    "an address as a number": changed(endpoints=[[167837955, 80, ""]]),
    "a short address": changed(endpoints=[["10.1", 80, ""]]),
    "an octal address": changed(endpoints=[["010.1.0.3", 80, ""]]),
    "a name as address": changed(endpoints=[["localhost", 80, ""]]),
    "port 0": changed(endpoints=[["10.1.0.3", 0, ""]]),
    "port 65536": changed(endpoints=[["10.1.0.3", 65536, ""]]),
    "a port as text": changed(endpoints=[["10.1.0.3", "80", ""]]),
    "a port as a truth value": changed(endpoints=[["10.1.0.3", True, ""]]),
    "a name with a newline": changed(endpoints=[["10.1.0.3", 80, "a\nb"]]),
    "a name with a space": changed(endpoints=[["10.1.0.3", 80, "a b"]]),
    "a name in Cyrillic": changed(endpoints=[["10.1.0.3", 80, "рod"]]),
    "a name as a number": changed(endpoints=[["10.1.0.3", 80, 7]]),
    "too many endpoints": changed(endpoints=[["10.1.0.3", 80, ""]] * 65537),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_that_makes_no_sense_is_left_out_alone(tmp_path: Path, name: str) -> None:
    assert stored(tmp_path, document(bad=HOSTILE[name], good=ENTRY)) == {"good": GOOD}


def test_a_reason_loses_what_could_deceive_a_terminal(tmp_path: Path) -> None:
    entry = changed(reason="a\x1b[31mb\nc\u202ed\ud800" + "x" * 1000)
    reason = stored(tmp_path, document(web=entry))["web"].reason
    assert reason.startswith(r"a\x1b[31mb c\u202ed\ud800x")
    assert len(reason) == 300


def test_addresses_are_loaded_in_canonical_form_sorted_and_once(tmp_path: Path) -> None:
    entry = changed(endpoints=[["FD00:0::3", 80, ""], ["10.1.0.3", 80, ""], ["fd00::3", 80, ""]])
    assert stored(tmp_path, document(web=entry))["web"].endpoints == (
        Endpoint("10.1.0.3", 80),
        Endpoint("fd00::3", 80),
    )


def mixed(draw: st.DrawFn) -> dict[str, Any]:
    return {key: draw(st.just(value) | anything) for key, value in ENTRY.items()}


@given(entries=st.dictionaries(st.text(max_size=5), st.composite(mixed)() | anything, max_size=4))
@by_examples
def test_hostile_values_raise_nothing_and_give_only_sane_answers(
    tmp_path: Path, entries: dict[str, Any]
) -> None:
    for answer in stored(
        tmp_path, json.dumps({"version": VERSION, "answers": entries}).encode()
    ).values():
        assert_sane(answer)


def assert_sane(answer: Answer) -> None:
    """Check that any part of `answer` may appear in a configuration or on a terminal."""
    checks: list[Callable[[Answer], bool]] = [
        lambda a: isinstance(a.kind, Kind),
        lambda a: a.freshness is Freshness.STALE,
        lambda a: a.reason.isprintable() and len(a.reason) <= 300,
        lambda a: 0 <= a.slots <= slots.MOST,
        lambda a: list(a.endpoints) == sorted(set(a.endpoints)),
        lambda a: all(1 <= e.port <= 65535 for e in a.endpoints),
        lambda a: all(e.name.isascii() and e.name.isprintable() for e in a.endpoints),
        lambda a: all(" " not in e.name and len(e.name) <= 253 for e in a.endpoints),
    ]
    assert all(check(answer) for check in checks)
