"""Isolation of changes: rules of the base, conflicts, removals, groups and blame.

No HAProxy is involved: a trial is a function of the composed sections.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.desired.changes import Unreadable
from fc_frontend.desired.isolate import Declared, Isolated, isolate
from fc_frontend.errors import Problem
from fc_frontend.model.units import (
    SETTINGS,
    TEMPLATES,
    ChangeKind,
    Resource,
    Section,
    UnitId,
    UnitKind,
)
from fc_frontend.syntax.links import links_in

SERVICES = "/etc/fc-frontend/services.d"
TYPO = (Problem(message="unknown field", remedy="did you mean pod_port?"),)

Trial = Callable[[Sequence[Section]], tuple[Problem, ...]]


def unit(name: str) -> UnitId:
    return UnitId(UnitKind.SERVICE, name)


def section(
    name: str,
    text: str = "first form",
    *,
    binds: Iterable[str] = (),
    defines: Iterable[str] = (),
    uses: Iterable[str] = (),
    publishes: Iterable[str] = (),
    file: str = "",
) -> Section:
    lines = [
        f"listen {name}",
        f"    # {text}",
        *(f"    bind {bind}" for bind in binds),
        *(f"    use_backend {each} if TRUE" for each in uses),
        *(f"    server-template pod 10 {each}" for each in publishes),
        *(f"backend {each}" for each in defines),
    ]
    return Section(
        unit(name),
        "\n".join(lines),
        declaration=text,
        file=file or f"{SERVICES}/{name}.yaml",
    )


def by_unit(*sections: Section) -> dict[UnitId, Section]:
    return {each.unit: each for each in sections}


def refusing(*texts: str, named: bool = True) -> Trial:
    """Return a trial that refuses sections containing one of `texts`, by name or as a whole."""

    def trial(sections: Sequence[Section]) -> tuple[Problem, ...]:
        found = [s for s in sections if any(text in s.text for text in texts)]
        if not found:
            return ()
        if not named:
            return (Problem(message="fatal errors"),)
        return tuple(Problem(message="nonsense", unit=s.unit) for s in found)

    return trial


def accepting(sections: Sequence[Section]) -> tuple[Problem, ...]:
    return ()


def all_of(trial: Trial) -> Callable[[Sequence[Section], AbstractSet[UnitId]], tuple[Problem, ...]]:
    """Return `trial` with the signature that `isolate` calls."""
    return lambda sections, _withheld: trial(sections)


def isolated(
    running: Mapping[UnitId, Section],
    declared: Declared | Mapping[UnitId, Section],
    trial: Trial = accepting,
    **limits: float,
) -> Isolated:
    what = declared if isinstance(declared, Declared) else Declared(declared)
    ticks = itertools.count()

    def check(sections: Sequence[Section], _withheld: AbstractSet[UnitId]) -> tuple[Problem, ...]:
        return taken_binds(running, sections) or trial(sections)

    return isolate(running, lambda _: what, check, clock=lambda: next(ticks) / 1000, **limits)  # type: ignore[arg-type]


def taken_binds(
    running: Mapping[UnitId, Section], sections: Sequence[Section]
) -> tuple[Problem, ...]:
    """Report binds declared by two units; as in the real trial, the running unit keeps the bind."""
    holders: dict[Resource, UnitId] = {}
    return tuple(
        Problem(f"{bind} is taken by {holders[bind]}", unit=each.unit)
        for each in sorted(sections, key=lambda each: running.get(each.unit) != each)
        for bind in links_in(each.text).holds
        if bind.kind == "bind" and holders.setdefault(bind, each.unit) != each.unit
    )


def shown(each: Section) -> str:
    """Return `NAME: FORM` for a service, or the text of another unit."""
    if each.unit.kind is not UnitKind.SERVICE:
        return each.text
    return f"{each.unit.name}: {each.text.splitlines()[1].strip(' #')}"


def texts(result: Isolated) -> list[str]:
    return [shown(each) for each in result.sections]


def withheld(result: Isolated) -> dict[str, ChangeKind]:
    return {each.unit.name: each.kind for each in result.withheld}


def test_without_changes_the_running_sections_are_the_result() -> None:
    running = by_unit(section("blog"), section("shop"))
    result = isolated(running, running)
    assert texts(result) == ["blog: first form", "shop: first form"]
    assert not result.withheld


def test_added_edited_and_removed_units_are_applied() -> None:
    running = by_unit(section("blog"), section("shop"))
    result = isolated(running, by_unit(section("shop", "second form"), section("wiki")))
    assert texts(result) == ["shop: second form", "wiki: first form"]
    assert not result.withheld


def test_a_refused_edit_keeps_the_running_text_and_costs_nobody_else() -> None:
    running = by_unit(section("blog"), section("shop"))
    declared = by_unit(section("blog", "nonsense"), section("shop", "second form"))
    result = isolated(running, declared, refusing("nonsense"))
    assert texts(result) == ["blog: first form", "shop: second form"]
    assert withheld(result) == {"blog": ChangeKind.EDITED}


def test_a_refused_addition_is_absent() -> None:
    result = isolated({}, by_unit(section("blog", "nonsense"), section("shop")), refusing("non"))
    assert texts(result) == ["shop: first form"]
    assert withheld(result) == {"blog": ChangeKind.ADDED}


def test_a_faulty_declaration_is_not_a_removal() -> None:
    running = by_unit(section("blog"), section("shop"))
    declared = Declared(by_unit(section("shop")), faulty={unit("blog"): TYPO})
    result = isolated(running, declared)
    assert texts(result) == ["blog: first form", "shop: first form"]
    assert result.withheld[0].problems == TYPO


def test_nothing_in_an_unreadable_file_counts_as_removed() -> None:
    running = by_unit(section("blog"), section("shop"), section("wiki"))
    declared = Declared(
        by_unit(section("wiki")),
        unreadable=(Unreadable(f"{SERVICES}/blog.yaml", TYPO),),
    )
    result = isolated(running, declared)
    assert texts(result) == ["blog: first form", "wiki: first form"]


def test_nothing_in_a_missing_directory_counts_as_removed() -> None:
    running = by_unit(section("blog"), section("shop"))
    result = isolated(running, Declared({}, unreadable=(Unreadable(SERVICES, TYPO),)))
    assert texts(result) == ["blog: first form", "shop: first form"]


def test_a_renamed_service_with_a_typo_keeps_its_old_name() -> None:
    running = by_unit(section("blog", publishes=["blog.default.svc.cluster.local:80"]))
    declared = Declared(
        {},
        faulty={unit("weblog"): TYPO},
        claims={unit("weblog"): frozenset([Resource("service", "blog.default:80")])},
    )
    assert texts(isolated(running, declared)) == ["blog: first form"]


def test_a_renamed_service_whose_new_form_is_refused_keeps_its_old_name() -> None:
    running = by_unit(section("blog", binds=["*:80"]))
    declared = by_unit(section("weblog", "nonsense", binds=["*:80"]))
    result = isolated(running, declared, refusing("nonsense"))
    assert texts(result) == ["blog: first form"]
    assert withheld(result) == {"blog": ChangeKind.REMOVED, "weblog": ChangeKind.ADDED}


def test_a_renamed_service_that_is_accepted_replaces_the_old_one() -> None:
    running = by_unit(section("blog", binds=["*:80"]))
    result = isolated(running, by_unit(section("weblog", binds=["*:80"])))
    assert texts(result) == ["weblog: first form"]


def test_a_service_half_moved_to_another_file_stays() -> None:
    running = by_unit(section("blog"), section("shop"))
    half_written = Unreadable(f"{SERVICES}/new.yaml", TYPO, text="services:\n  blog:\n    pod_po")
    result = isolated(running, Declared(by_unit(section("shop")), unreadable=(half_written,)))
    assert texts(result) == ["blog: first form", "shop: first form"]


def test_what_a_running_unit_uses_is_not_removed() -> None:
    running = by_unit(section("blog"), section("edge", uses=["blog"]))
    result = isolated(running, by_unit(section("edge", uses=["blog"])))
    assert texts(result) == ["blog: first form", "edge: first form"]
    assert "still used by service edge" in result.withheld[0].problems[0].message


def test_what_is_no_longer_used_is_removed_in_the_same_step() -> None:
    running = by_unit(section("blog"), section("edge", uses=["blog"]))
    result = isolated(running, by_unit(section("edge", "second form")))
    assert texts(result) == ["edge: second form"]


def test_a_user_that_is_withheld_keeps_what_it_uses() -> None:
    running = by_unit(section("blog"), section("edge", uses=["blog"]))
    result = isolated(running, by_unit(section("edge", "nonsense")), refusing("nonsense"))
    assert texts(result) == ["blog: first form", "edge: first form"]


def test_a_change_that_needs_a_withheld_one_is_withheld_with_it() -> None:
    running = by_unit(section("edge"))
    declared = by_unit(section("edge", "second form", uses=["wiki"]), section("wiki", "nonsense"))
    result = isolated(running, declared, refusing("nonsense"))
    assert texts(result) == ["edge: first form"]
    assert set(withheld(result)) == {"edge", "wiki"}


def test_the_running_unit_wins_a_bind() -> None:
    running = by_unit(section("shop", binds=["*:80"]))
    declared = by_unit(section("blog", binds=["*:80"]), section("shop", binds=["*:80"]))
    result = isolated(running, declared)
    assert texts(result) == ["shop: first form"]
    assert "bind *:80 is taken by service shop" in result.withheld[0].problems[0].message


def test_between_two_new_units_the_first_by_name_gets_the_bind() -> None:
    result = isolated({}, by_unit(section("shop", binds=["*:80"]), section("blog", binds=["*:80"])))
    assert texts(result) == ["blog: first form"]


def test_two_services_may_swap_their_binds() -> None:
    running = by_unit(section("blog", binds=["*:80"]), section("shop", binds=["*:81"]))
    declared = by_unit(section("blog", "2", binds=["*:81"]), section("shop", "2", binds=["*:80"]))
    assert texts(isolated(running, declared)) == ["blog: 2", "shop: 2"]


def test_half_of_a_swap_is_not_applied() -> None:
    running = by_unit(section("blog", binds=["*:80"]), section("shop", binds=["*:81"]))
    declared = by_unit(
        section("blog", "nonsense", binds=["*:81"]), section("shop", "2", binds=["*:80"])
    )
    result = isolated(running, declared, refusing("nonsense"))
    assert texts(result) == ["blog: first form", "shop: first form"]


def test_two_changes_that_are_valid_only_together_are_applied_together() -> None:
    running = by_unit(section("edge"), section("pods"))
    declared = by_unit(
        section("edge", "new", uses=["pods"]), section("pods", "new"), section("wiki", "nonsense")
    )

    def trial(sections: Sequence[Section]) -> tuple[Problem, ...]:
        found = " ".join(map(shown, sections))
        is_half = ("edge: new" in found) != ("pods: new" in found)
        return (Problem(message="fatal"),) if is_half or "nonsense" in found else ()

    result = isolated(running, declared, trial)
    assert texts(result) == ["edge: new", "pods: new"]
    assert set(withheld(result)) == {"wiki"}


def test_a_template_that_breaks_unchanged_services_is_blamed_itself() -> None:
    old, new = Section(TEMPLATES, "old"), Section(TEMPLATES, "new", declaration="new")
    running = {**by_unit(section("blog"), section("shop")), TEMPLATES: old}
    rerendered = {
        each.unit: Section(each.unit, f"{each.text} nonsense", declaration=each.declaration)
        for each in by_unit(section("blog"), section("shop")).values()
    }

    def declare(kept: frozenset[UnitId]) -> Declared:
        return Declared(running if TEMPLATES in kept else {**rerendered, TEMPLATES: new})

    result = isolate(running, declare, all_of(refusing("nonsense")), clock=lambda: 0.0)
    assert texts(result) == ["old", "blog: first form", "shop: first form"]
    assert [each.unit for each in result.withheld] == [TEMPLATES]


def test_a_template_that_breaks_every_service_does_not_withhold_a_new_one() -> None:
    """HAProxy also names the new service, although its own declaration is valid."""
    old, new = Section(TEMPLATES, "old"), Section(TEMPLATES, "new", declaration="new")
    running = {**by_unit(section("blog")), TEMPLATES: old}
    good = by_unit(section("blog"), section("shop"))
    broken = {
        each.unit: Section(each.unit, f"{each.text} nonsense", declaration=each.declaration)
        for each in good.values()
    }

    def declare(kept: frozenset[UnitId]) -> Declared:
        return Declared(
            {**good, TEMPLATES: old} if TEMPLATES in kept else {**broken, TEMPLATES: new}
        )

    result = isolate(running, declare, all_of(refusing("nonsense")), clock=lambda: 0.0)
    assert texts(result) == ["old", "blog: first form", "shop: first form"]
    assert [each.unit for each in result.withheld] == [TEMPLATES]


def test_faulty_settings_leave_the_running_ones_and_services_change() -> None:
    old = Section(SETTINGS, "global old")
    running = {**by_unit(section("blog")), SETTINGS: old}

    def declare(kept: frozenset[UnitId]) -> Declared:
        services = by_unit(section("blog", "second form"))
        if SETTINGS in kept:
            return Declared({**services, SETTINGS: old}, faulty={SETTINGS: TYPO})
        return Declared({}, faulty={SETTINGS: TYPO})

    result = isolate(running, declare, all_of(accepting), clock=lambda: 0.0)
    assert texts(result) == ["global old", "blog: second form"]
    assert [each.unit for each in result.withheld] == [SETTINGS]


def test_where_the_base_itself_is_refused_nobody_is_blamed() -> None:
    running = by_unit(section("blog", "nonsense"))
    declared = by_unit(section("blog", "nonsense"), section("shop"))
    result = isolated(running, declared, refusing("nonsense", named=False))
    assert not result.accepted
    assert not result.withheld
    assert texts(result) == ["blog: nonsense"]


def test_what_the_budget_leaves_untried_is_not_deployed() -> None:
    bad = [f"nonsense{number}" for number in range(4)]
    declared = by_unit(*(section(f"s{n:02}", bad[n] if n < 4 else "good") for n in range(30)))
    result = isolated({}, declared, refusing(*bad, named=False), max_trials=5)
    assert not result.is_complete
    assert all("nonsense" not in text for text in texts(result))


NAMES = [f"s{number:02}" for number in range(12)]


@given(
    bad=st.sets(st.sampled_from(NAMES), max_size=4),
    old=st.sets(st.sampled_from(NAMES)),
    named=st.booleans(),
)
def test_exactly_the_bad_changes_are_withheld(
    bad: Collection[str], old: Collection[str], named: bool
) -> None:
    running = by_unit(*(section(name) for name in sorted(old)))
    declared = by_unit(
        *(section(name, "nonsense" if name in bad else "second form") for name in NAMES)
    )
    result = isolated(running, declared, refusing("nonsense", named=named), max_trials=100)
    assert result.accepted
    assert set(withheld(result)) == set(bad)
    assert texts(result) == [
        f"{name}: {'first form' if name in bad else 'second form'}"
        for name in NAMES
        if name not in bad or name in old
    ]
