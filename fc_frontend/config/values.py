"""What fields of several declarations are made of; see `schema`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from fc_frontend.plan.addresses import SAFE_PATH
from fc_frontend.syntax.routes import NotARoute, Path, parse_path

_MAX_ITEMS = 1000
"""Of a list.  Each of its items is judged for itself."""


def error(message: str, remedy: str) -> PydanticCustomError:
    """What a validator raises."""
    return PydanticCustomError("fc_frontend", "{text}", {"text": message, "remedy": remedy})


def short(value: Any) -> str:
    """A value as messages quote it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def matching(pattern: re.Pattern[str], what: str, remedy: str) -> Any:
    """A validator of strings that match as a whole."""

    def validate(value: Any) -> str:
        if not isinstance(value, str):
            raise error(f"{short(value)} is not a string", f"put it in quotes: {remedy}")
        if not pattern.fullmatch(value):
            raise error(f"{short(value)} is not {what}", remedy)
        return value

    return BeforeValidator(validate)


def listed(value: Any) -> Any:
    """A list; a single string may be written in its place."""
    if isinstance(value, list) and len(value) > _MAX_ITEMS:
        raise error(f"more than {_MAX_ITEMS} items", "use fewer items")
    return [value] if isinstance(value, str) else value


def _path(value: Any) -> Path:
    is_exact = isinstance(value, dict)
    if isinstance(value, dict):
        if value.keys() != {"exact"}:
            raise error(f"{short(value)} is not a path", "write /prefix, or {exact: /path}")
        value = value["exact"]
    try:
        return parse_path(value, is_exact=is_exact)
    except NotARoute as exc:
        raise error(str(exc), exc.remedy) from None


RoutePath = Annotated[Path, BeforeValidator(_path)]
SafePath = Annotated[
    str,
    matching(SAFE_PATH, "a usable path", "give an absolute path of letters, digits and ._+@=~/-"),
]


class Strict(BaseModel):
    """A mapping without other fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True
    )
