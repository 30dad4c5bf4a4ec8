"""Incremental work gives the same result as computing everything anew, for any objects."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.model.memo import Memo
from fc_frontend.plan.model import Answer, Bind, Freshness, Kind, Origin, ServiceSpec, Settings
from fc_frontend.plan.planner import PlanMemo, plan

ROUNDS = st.lists(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 3))))


@given(rounds=ROUNDS)
def test_it_is_the_same_as_all_anew(rounds: list[dict[str, list[int]]]) -> None:
    memo: Memo[int] = Memo()
    for sources in rounds:
        found = {
            # Equal, but never the same object.
            name: memo.of(name, (copy.copy(source),), partial(sum, source))
            for name, source in sources.items()
        }
        memo.keep(sources)
        assert found == {name: sum(source) for name, source in sources.items()}
        assert {name for name, _ in memo.sources()} == set(sources)


def test_what_is_equal_is_not_computed_again() -> None:
    memo: Memo[list[int]] = Memo()
    first = memo.of("a", (1, "x"), lambda: [1])
    assert memo.of("a", (1, "x"), lambda: [2]) is first
    assert memo.of("a", (2, "x"), lambda: [2]) == [2]


def test_what_fails_is_computed_again() -> None:
    memo: Memo[int] = Memo()

    def fail() -> int:
        raise ValueError

    with pytest.raises(ValueError):
        memo.of("a", 1, fail)
    assert memo.of("a", 1, lambda: 5) == 5


def test_a_service_that_moved_to_another_file_is_planned_with_that_file() -> None:
    """Comparisons of specs ignore the file."""
    spec = ServiceSpec(
        name="shop",
        service="shop",
        binds=(Bind("ip", "127.0.0.1", 80),),
        port=80,
        origin=Origin("/a.yaml"),
    )
    moved = replace(spec, origin=Origin("/b.yaml"))
    assert spec == moved
    answers = {"shop": Answer(kind=Kind.HEADLESS, reason="pods", freshness=Freshness.FRESH)}
    memo = PlanMemo()
    for each in (spec, moved, copy.deepcopy(spec)):
        (planned,) = plan(Settings(), [each], [], answers, memo=memo).services
        assert planned.spec.origin == each.origin
