"""If two units define the same name, the unit that was added later is reported."""

from __future__ import annotations

import pytest

from fc_frontend.model.units import SETTINGS, Section, UnitId, UnitKind
from fc_frontend.render.config import BLANK_DESCRIPTION, assemble
from fc_frontend.render.names import name_problems

HEAD = Section(
    SETTINGS,
    f"global\n  description {BLANK_DESCRIPTION}\nresolvers cluster\ndefaults fc-tcp\n",
)
CART = Section(UnitId(UnitKind.SERVICE, "cart"), "listen cart from fc-tcp\n  bind :80")


def fragment(name: str, text: str) -> Section:
    return Section(UnitId(UnitKind.FRAGMENT, name), f"defaults fc-fragment-{name}\n{text}")


@pytest.mark.parametrize(
    "text",
    [
        "listen cart\n  bind :81",
        "frontend cart",
        "backend cart",
        'lis"ten" "ca"rt',
        "resolvers cluster",
        "defaults fc-tcp",
    ],
)
def test_a_new_fragment_is_to_blame(text: str) -> None:
    raw = fragment("hand", text)
    (problem,) = name_problems(assemble([HEAD, CART, raw]), {raw.unit})
    assert problem.unit == raw.unit
    assert "already defined by" in problem.message


def test_a_new_service_is_to_blame_for_the_name_of_a_running_fragment() -> None:
    raw = fragment("hand", "backend cart")
    (problem,) = name_problems(assemble([HEAD, CART, raw]), {CART.unit})
    assert problem.unit == CART.unit
    assert problem.message.endswith("is already defined by fragment hand")


def test_between_two_new_units_the_service_comes_first() -> None:
    raw = fragment("hand", "backend cart")
    (problem,) = name_problems(assemble([HEAD, CART, raw]), {CART.unit, raw.unit})
    assert problem.unit == raw.unit


def test_a_frontend_and_a_backend_may_have_the_same_name() -> None:
    one, other = fragment("one", "frontend web"), fragment("two", "backend web")
    assert not name_problems(assemble([HEAD, one, other]), {one.unit, other.unit})
