"""Fragments: whole sections of HAProxy text from services.d/NAME.cfg."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from fc_frontend.errors import Problem
from fc_frontend.plan.model import Fragment, Origin
from fc_frontend.render.config import MARK, has_mark
from fc_frontend.syntax.units import fragment_faults

_MAX_FAULTS = 20
"""Faults reported per fragment."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def fragment_of(path: str, text: str) -> tuple[Fragment | None, tuple[Problem, ...]]:
    """Return the fragment in the file `path` with content `text`, or None and its problems."""
    name = Path(path).name.removesuffix(".cfg")
    if not _NAME.fullmatch(name):
        return None, (
            Problem(
                "has a name that HAProxy could not take", "use letters, digits and ._-", file=path
            ),
        )
    text = text.replace("\r\n", "\n").rstrip("\n") + "\n"
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.replace("\t", "").isprintable():
            problem = Problem("has a control character", "remove it", file=path, line=number)
            return None, (problem,)
    if has_mark(text):
        return None, (
            Problem(
                f"has a comment that begins with `{MARK.strip()}`",
                "write it in another way: fc-frontend finds its own sections by it",
                file=path,
            ),
        )
    problems = tuple(
        Problem(fault.message, fault.remedy, file=path, line=fault.line)
        for fault in islice(fragment_faults(text), _MAX_FAULTS)
    )
    if problems:
        return None, problems
    return Fragment(name, text, Origin(path)), ()
