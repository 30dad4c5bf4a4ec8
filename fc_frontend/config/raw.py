"""Raw declarations as written in a file, and their validation with located problems."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from fc_frontend.config import host
from fc_frontend.config.document import Document
from fc_frontend.config.fields import SERVICE_NAME
from fc_frontend.config.running import RawDeclaration
from fc_frontend.config.schema import CAMEL_CASE, FrontendDeclaration, ServiceDeclaration
from fc_frontend.config.settings import SettingsDeclaration
from fc_frontend.config.trust import (
    Level,
    Verdict,
)
from fc_frontend.errors import Problem
from fc_frontend.plan import untrusted
from fc_frontend.plan.model import FrontendSpec, Origin, ServiceSpec, Settings
from fc_frontend.text import whole_number

MAX_PROBLEMS = 20
"""Of one kind, per service or file: only the first ones are reported."""
_LONGEST_GUESS = 50
"""Characters of an unknown field's name that are compared with the known fields."""
_RESERVED = "fc-"
UNITS = ("frontends", "services")
"""The fields of a file that hold units by name."""
NO_DOCUMENT = Document({}, (), dict)
_SNAKE_TO_CAMEL = {snake: camel for camel, snake in CAMEL_CASE.items()}


@dataclass(frozen=True, slots=True)
class Raw:
    """A service or frontend as written in its file."""

    name: str
    value: Any
    file: str
    document: Document
    level: Level | None = None
    """The trust level, which a last good form keeps; None for a service that was just read."""
    key: str = ""
    """The name as written, if that is not printable."""
    group: str = "services"
    """The field of the file that contains it."""
    found: dict[Level, tuple[ServiceSpec | None, tuple[Problem, ...], RawDeclaration]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """The cached results of `judged`, by level."""

    def judged(
        self, level: Level
    ) -> tuple[ServiceSpec | None, tuple[Problem, ...], RawDeclaration]:
        """Return the service or None if it is invalid, its problems, and its raw form.  Cached."""
        known = self.found.get(level)
        if known is None:
            problems: list[Problem] = []
            spec = _service(self, problems)
            if spec is not None and level is Level.UNTRUSTED:
                spec = replace(spec, max_slots=untrusted.MAX_SLOTS)
            known = spec, tuple(problems), RawDeclaration(self.file, self.value, level)
            self.found[level] = known
        return known

    def without_faulty_fields(self) -> ServiceSpec | None:
        """Return the service without its invalid fields; None if it cannot be built."""
        faulty = {(problem.field or "").partition(".")[0] for problem in self.problems}
        if not isinstance(self.value, dict) or faulty <= {""}:
            return None
        rest = {key: value for key, value in self.value.items() if str(key) not in faulty}
        return _service(replace(self, value=rest, found={}), [])

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Its problems, which do not depend on the level."""
        return (next(iter(self.found.values()), None) or self.judged(Level.TRUSTED))[1]

    @property
    def line(self) -> int:
        """The line where it begins in its file, from 1; 0 if unknown."""
        return (self.document.locate((self.group, self.name)) or (0, 0))[0]

    def problem(
        self, field: str, message: str, remedy: str, inside: _Inside | None = None
    ) -> Problem:
        path: tuple[str | int, ...] = (self.group, self.key or self.name)
        for part in field.split(".") if field else ():
            index = whole_number(part)
            path += (part if index is None else index,)
        position = _locate(self.document, path, inside)
        if len(path) > 2 and position == self.document.locate(path[:2]):
            camel = _SNAKE_TO_CAMEL.get(str(path[2]))
            position = (
                camel and _locate(self.document, (*path[:2], camel, *path[3:]), inside)
            ) or position
        line, column = position or (None, None)
        return Problem(
            message=message,
            remedy=remedy,
            file=self.file,
            line=line,
            column=column,
            service=self.name,
            field=field or None,
        )


def settings_in(
    raw: Mapping[str, Any], document: Document, file: str, problems: list[Problem]
) -> Settings:
    """Return the settings of a file; if it has errors, add them to `problems` and use defaults."""
    found: list[Problem] = []
    try:
        declared = SettingsDeclaration.model_validate(dict(raw))
        settings = declared.model()
    except ValidationError as exc:
        found = [
            _from_pydantic(error, SettingsDeclaration, (), document, file)
            for error in exc.errors(include_url=False)[:MAX_PROBLEMS]
        ]
        settings = SettingsDeclaration().model()
    if not settings.cluster.nameservers:
        nameservers = host.system_nameservers()
        settings = replace(settings, cluster=replace(settings.cluster, nameservers=nameservers))
        if not nameservers and not found:
            found.append(
                Problem(
                    message="no nameserver is set, and resolv.conf names none",
                    remedy='set cluster.nameservers, such as ["10.0.0.254:53"]',
                    file=file,
                    field="cluster.nameservers",
                )
            )
    problems += found
    return settings


def _service(raw: Raw, problems: list[Problem]) -> ServiceSpec | None:
    def refuse(field: str, message: str, remedy: str) -> None:
        problems.append(raw.problem(field, message, remedy))

    has_name = False
    if not SERVICE_NAME.fullmatch(raw.name):
        refuse("", "is not a usable name", "use up to 63 letters, digits and inner ._-")
    elif raw.name.startswith(_RESERVED):
        refuse("", f"names beginning with {_RESERVED} are fc-frontend's own", "choose another name")
    else:
        has_name = True
    if not isinstance(raw.value, dict):
        refuse("", "has no fields", "write at least `pod_port: 443` below it")
        return None
    fields: dict[str, Any] = {}
    for key, value in raw.value.items():
        name = CAMEL_CASE.get(key) or str(key)
        if value is None:
            continue
        if name in fields:
            refuse(key, f"means the same as {name}, which is given as well", "keep one of the two")
            return None
        fields[name] = value
    try:
        declared = ServiceDeclaration.model_validate(fields)
    except ValidationError as exc:
        path = ("services", raw.name)
        for error in exc.errors(include_url=False)[:MAX_PROBLEMS]:
            problem = _from_pydantic(error, ServiceDeclaration, path, raw.document, raw.file)
            problems.append(
                raw.problem(problem.field or "", problem.message, problem.remedy, _inside(error))
            )
        return None
    if not has_name:
        return None
    complaints = declared.complaints(raw.name)
    for complaint in complaints:
        refuse(*complaint)
    return None if complaints else declared.model(raw.name, Origin(raw.file))


def frontend_of(raw: Raw, problems: list[Problem]) -> FrontendSpec | None:
    """Return a declared frontend; if it is invalid, return None and add to `problems`."""
    found: list[Problem] = []
    if not SERVICE_NAME.fullmatch(raw.name):
        remedy = "use up to 63 letters, digits and inner ._-"
        found.append(raw.problem("", "is not a usable name", remedy))
    elif raw.name.startswith(_RESERVED):
        message = f"names beginning with {_RESERVED} are fc-frontend's own"
        found.append(raw.problem("", message, "choose another name"))
    spec = None
    if not isinstance(raw.value, dict):
        found.append(raw.problem("", "has no fields", "write at least `binds: [ADDRESS:PORT]`"))
    else:
        fields = {str(key): value for key, value in raw.value.items() if value is not None}
        try:
            declared = FrontendDeclaration.model_validate(fields)
        except ValidationError as exc:
            for error in exc.errors(include_url=False)[:MAX_PROBLEMS]:
                place = ("frontends", raw.name)
                problem = _from_pydantic(error, FrontendDeclaration, place, raw.document, raw.file)
                field = (problem.field or "").removeprefix(f"frontends.{raw.name}.")
                inside = _inside(error)
                found.append(raw.problem(field, problem.message, problem.remedy, inside))
        else:
            found += [raw.problem(*complaint) for complaint in declared.complaints()]
            spec = declared.model(raw.name, Origin(raw.file))
    problems += found
    return None if found else spec


def _from_pydantic(
    error: Any,
    model: type[BaseModel],
    base: tuple[str | int, ...],
    document: Document,
    file: str,
) -> Problem:
    place: tuple[str | int, ...] = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_fields(model, place[:-1])
        return unknown_field(str(place[-1]), known, file, (*base, *place), document)
    context: dict[str, Any] = error.get("ctx", {})
    if error["type"] == "fc_frontend":
        message, remedy = str(context["text"]), str(context["remedy"])
    else:
        message, remedy = _plain_words(error["msg"], error["type"]), ""
    shown = tuple(part for part in place if part != "[key]")
    line, column = _locate(document, (*base, *shown), _inside(error)) or (None, None)
    return Problem(
        message=message,
        remedy=remedy,
        file=file,
        line=line,
        column=column,
        field=".".join(str(part) for part in shown) or None,
    )


class _Inside(NamedTuple):
    """The place of an error in a field's text: the item, for a list of strings, and the line."""

    item: int | None
    line: int


def _inside(error: Any) -> _Inside | None:
    context: dict[str, Any] = error.get("ctx", {})
    return _Inside(context.get("item"), context["line"]) if "line" in context else None


def _locate(
    document: Document, path: tuple[str | int, ...], inside: _Inside | None
) -> tuple[int, int] | None:
    """Return the position of a value, or of a line inside it."""
    if inside is not None:
        path = path if inside.item is None else (*path, inside.item)
        found = document.locate_line(path, inside.line)
        if found is None and inside.item is None:
            # The lines may be written as a list.
            found = document.locate((*path, inside.line - 1))
        if found:
            return found
    return document.locate(path)


def _plain_words(message: str, kind: str) -> str:
    """Return pydantic's message in the terms of a configuration file."""
    said = message.replace("Input should be", "should be").replace("a valid string", "a string")
    said = said.replace("valid dictionary or instance of", "mapping for").replace("tuple", "list")
    said = re.sub(r"mapping for \w+Declaration", "mapping", said)
    return said[:1].lower() + said[1:] if kind != "fc_frontend" else said


def _known_fields(model: type[BaseModel], place: Iterable[str | int]) -> tuple[str, ...]:
    known = dict(model.model_fields)
    for part in place:
        inner = known[str(part)].annotation if str(part) in known else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                known = dict(candidate.model_fields)
    names = tuple(field.alias or name for name, field in known.items())
    if model is ServiceDeclaration:
        names += tuple(CAMEL_CASE)
    return (*names, *UNITS) if model is SettingsDeclaration and not tuple(place) else names


def unknown_field(
    name: str,
    known: Iterable[str],
    file: str,
    path: tuple[str | int, ...],
    document: Document,
) -> Problem:
    """Return the problem for an unknown field; suggest a similar field of `known`, if any."""
    known = tuple(known)
    near = difflib.get_close_matches(name[:_LONGEST_GUESS], known, n=1, cutoff=0.6)
    remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    line, column = document.locate(path) or (None, None)
    dotted = path[2:] if path[0] in UNITS and len(path) > 2 else path
    return Problem(
        message="unknown field",
        remedy=remedy,
        file=file,
        line=line,
        column=column,
        field=".".join(str(part) for part in dotted),
    )


def place_between(
    problem: Problem, services: Mapping[str, Raw], document: Document, file: str
) -> Problem:
    """Return a problem of a service or setting, located in the service's file or in `file`."""
    if problem.service and problem.service in services:
        inside = _Inside(None, problem.inside) if problem.inside is not None else None
        placed = services[problem.service].problem(
            problem.field or "", problem.message, problem.remedy, inside
        )
        return replace(placed, severity=problem.severity, unit=problem.unit, cause=problem.cause)
    line, column = document.locate(tuple((problem.field or "").split("."))) or (None, None)
    return replace(problem, file=file, line=line, column=column)


def placed(problem: Problem, file: str, document: Document, group: str = "services") -> Problem:
    """Return the problem of a service, or of another unit of `group`, located in `file`."""
    raw = Raw(problem.service or "", None, file, document, group=group)
    inside = _Inside(None, problem.inside) if problem.inside is not None else None
    placed = raw.problem(problem.field or "", problem.message, problem.remedy, inside)
    return replace(placed, severity=problem.severity, unit=problem.unit, cause=problem.cause)


def untrusted_file(message: str, path: str, verdict: Verdict) -> Problem:
    """Return the problem for a file that must be trusted and is not."""
    return Problem(message=f"{message}, but {verdict.reason}", remedy=verdict.remedy, file=path)
