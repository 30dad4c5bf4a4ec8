"""Locate the declaration of something in haproxy.cfg: the unit, its file and line, its field."""

from __future__ import annotations

from dataclasses import replace

from fc_frontend.errors import Problem
from fc_frontend.model.units import SETTINGS, UnitId, UnitKind
from fc_frontend.plan.model import FrontendSpec, Plan, ServiceSpec
from fc_frontend.render.config import Config
from fc_frontend.syntax.files import named_files
from fc_frontend.syntax.lines import read_line, read_lines
from fc_frontend.syntax.names import defined_names, used_names

RENDERED = "rendered haproxy.cfg"
"""The file of problems in the rendered text.  It has a space, as no fragment's name can."""
_FIELDS = {
    "bind": "bind_options",
    "server": "server_options",
    "server-template": "server_options",
}
"""The field behind a line of a service's section, by keyword; `extra_config` for others."""


class Places:
    """Finds the declarations behind the lines of one configuration."""

    def __init__(self, config: Config, plan: Plan | None = None) -> None:
        """`plan` is the source from which `config` was rendered, if known."""
        self._config = config
        self._plan = plan
        self._fragments = {each.name: each for each in plan.fragments} if plan else {}
        self._services = {each.spec.name: each.spec for each in plan.services} if plan else {}
        self._frontends = {each.name: each for each in plan.frontends} if plan else {}

    def placed(self, problem: Problem, line: int | None, name: str | None = None) -> Problem:
        """Return `problem`, about a line or the section `name`, with its known place added.

        The declaration resolves the line of a service's field.  A problem that concerns no service
        or fragment gets its place in the rendered haproxy.cfg.
        """
        unit = self._config.unit_at(line) if line else None
        if unit is None and name:
            unit = self._config.unit_named(name) or self._definer(name)
        if unit is None:
            if not line:
                return problem
            owner = SETTINGS if self._config.sections else None
            return replace(problem, file=RENDERED, line=line, unit=owner)
        problem = replace(problem, unit=unit, service=unit.name)
        if unit.kind in (UnitKind.SERVICE, UnitKind.FRONTEND):
            return self._in_lines(problem, unit, line) if line else problem
        return self._in_fragment(problem, unit, line)

    def ca_file(self, service: str | None) -> str | None:
        """Return the CA file in the `tls` field of a service."""
        spec = self._services.get(service or "")
        return spec.tls.ca_file if spec and spec.tls else None

    def _definer(self, name: str) -> UnitId | None:
        """Return the fragment that defines a section of this name."""
        for section in self._config.sections:
            is_fragment = section.unit.kind is UnitKind.FRAGMENT
            if is_fragment and name in {each.name for each in defined_names(section.text)}:
                return section.unit
        return None

    def raw_lines(self, unit: UnitId | None) -> frozenset[str]:
        """Return the raw lines that a service or the settings add to the configuration."""
        if unit is None or unit.kind in (UnitKind.SETTINGS, UnitKind.TEMPLATES):
            haproxy = self._plan.settings.haproxy if self._plan else None
            return frozenset((*haproxy.global_extra, *haproxy.defaults_extra) if haproxy else ())
        spec = self._spec(unit)
        return frozenset(spec.extra_config if spec else ())

    def visible_words(self, unit: UnitId | None) -> frozenset[str]:
        """Return the words that a message about a unit may quote.

        These are names, absolute paths of files that its text names, and the words of declared
        fields.  Other text of fragments and templates is excluded: it may come from any file that a
        link leads to.
        """
        text = self.text(unit)
        names = {resource.name for resource in (*defined_names(text), *used_names(text))}
        names |= {place.unit.name for place in self._config.places}
        names |= {named.path for named in named_files(text) if named.path}
        spec = self._spec(unit)
        fields = [*self.raw_lines(unit)]
        if spec:
            fields += [spec.bind_options, *map(str, spec.binds)]
        if isinstance(spec, ServiceSpec):
            fields.append(spec.server_options)
        if ca_file := self.ca_file(unit.name if unit else None):
            fields.append(ca_file)
        return frozenset(names).union(*map(words_of, fields))

    def _spec(self, unit: UnitId | None) -> ServiceSpec | FrontendSpec | None:
        """Return the declaration of a service or frontend."""
        match unit:
            case UnitId(kind=UnitKind.SERVICE):
                return self._services.get(unit.name)
            case UnitId(kind=UnitKind.FRONTEND):
                return self._frontends.get(unit.name)
        return None

    def text(self, unit: UnitId | None) -> str:
        """Return the text of a unit's section."""
        sections = self._config.sections
        return next((s.text for s in sections if s.unit == (unit or SETTINGS)), "")

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
        # A template may add text before and after the fragment; leading blank lines are lost.
        own = line - first - section.count("\n", 0, start)
        lost = len(fragment.text) - len(fragment.text.lstrip("\n"))
        is_inside = 0 <= own < fragment.text.strip("\n").count("\n") + 1
        return replace(problem, line=own + lost + 1) if is_inside else problem

    def _in_lines(self, problem: Problem, unit: UnitId, line: int) -> Problem:
        text = self._config.text.split("\n")[line - 1].strip()
        spec = self._spec(unit)
        if spec is not None and text in spec.extra_config:
            number = spec.extra_config.index(text) + 1
            return replace(problem, field="extra_config", inside=number)
        return replace(problem, field=_FIELDS.get(read_line(text).keyword, "extra_config"))


def words_of(text: str) -> frozenset[str]:
    """Return all words of a text, split as HAProxy does."""
    return frozenset(word.text for line in read_lines(text) for word in line.words)
