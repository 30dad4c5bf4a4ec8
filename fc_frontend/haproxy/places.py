"""Where something in haproxy.cfg was declared: the unit, its file and line, its field."""

from __future__ import annotations

from dataclasses import replace

from fc_frontend.errors import Problem
from fc_frontend.model.units import UnitId, UnitKind
from fc_frontend.plan.model import Plan
from fc_frontend.render.config import Config
from fc_frontend.syntax.lines import read_line

_FIELDS = {
    "bind": "bind_options",
    "server": "server_options",
    "server-template": "server_options",
}
"""What a line of a service's section is made of, by its keyword; others are `extra_config`."""


class Places:
    """Finds the declarations behind the lines of one configuration."""

    def __init__(self, config: Config, plan: Plan | None = None) -> None:
        """`plan` is what `config` was rendered from, where that is known."""
        self._config = config
        self._fragments = {each.name: each for each in plan.fragments} if plan else {}
        self._services = {each.spec.name: each.spec for each in plan.services} if plan else {}

    def placed(self, problem: Problem, line: int | None, name: str | None = None) -> Problem:
        """`problem`, which is about a line or about the section `name`, with all that is known.

        The line of a service's field is for the declaration to find.
        """
        unit = self._config.unit_at(line) if line else None
        if unit is None and name:
            unit = self._config.unit_named(name)
        if unit is None:
            return problem
        problem = replace(problem, unit=unit, service=unit.name)
        if unit.kind is UnitKind.SERVICE:
            return replace(problem, field=self._field(line)) if line else problem
        return self._in_fragment(problem, unit, line)

    def ca_file(self, service: str | None) -> str | None:
        """The CA file in the `tls` field of a service."""
        spec = self._services.get(service or "")
        return spec.tls.ca_file if spec and spec.tls else None

    def _in_fragment(self, problem: Problem, unit: UnitId, line: int | None) -> Problem:
        fragment = self._fragments.get(unit.name)
        if fragment is None:
            return problem
        problem = replace(problem, file=fragment.origin.file)
        section = self._config.section_text(unit.name)
        start = section.find(fragment.text.strip("\n"))
        first = next((p.first for p in self._config.places if p.unit == unit), None)
        if line is None or first is None or start < 0:
            return problem
        # A template may print something before and after it; blank lines at its head are lost.
        own = line - first - section.count("\n", 0, start)
        lost = len(fragment.text) - len(fragment.text.lstrip("\n"))
        is_inside = 0 <= own < fragment.text.strip("\n").count("\n") + 1
        return replace(problem, line=own + lost + 1) if is_inside else problem

    def _field(self, line: int) -> str:
        keyword = read_line(self._config.text.split("\n")[line - 1]).keyword
        return _FIELDS.get(keyword, "extra_config")
