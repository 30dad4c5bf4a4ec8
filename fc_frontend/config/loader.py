"""From files to values: settings, services and fragments, and everything that is wrong with them.

All problems are found in one go, and one file's or service's fault does not hide the others.  The
loader reads files and this host's resolv.conf and addresses; it asks no network and writes nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fc_frontend.config import host
from fc_frontend.config.document import MAX_BYTES, Document, Unreadable, read_document
from fc_frontend.config.schema import (
    CAMEL_CASE,
    SERVICE_NAME,
    ServiceDeclaration,
    SettingsDeclaration,
)
from fc_frontend.errors import Problem, Severity
from fc_frontend.plan.checks import service_problems, settings_problems
from fc_frontend.plan.model import Fragment, Origin, ServiceSpec, Settings

DEFAULT_SETTINGS = ("/etc/fc-frontend/config.yaml", "/etc/fc-frontend/config.json")
SETTINGS_VARIABLE = "FC_FRONTEND_CONFIG"
MOST_FILES = 20_000
_RESERVED = "fc-"
_FRAGMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SNAKE_TO_CAMEL = {snake: camel for camel, snake in CAMEL_CASE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """All that was declared.  `services` and `fragments` are those without a fault of their own.

    `services` are sorted by name.  `directory` is services.d; `problems` has errors and warnings.
    """

    settings: Settings
    services: tuple[ServiceSpec, ...] = ()
    fragments: tuple[Fragment, ...] = ()
    problems: tuple[Problem, ...] = ()
    settings_file: str
    directory: str
    templates: Mapping[str, str] = field(default_factory=dict)

    def located(self, problem: Problem) -> Problem:
        """`problem` with the place where its service was declared, if that can be found."""
        if problem.file or not problem.service:
            return problem
        for spec in self.services:
            if spec.name == problem.service and spec.origin:
                return _placed(problem, spec.origin.file)
        for fragment in self.fragments:
            if fragment.name == problem.service:
                return replace(problem, file=fragment.origin.file)
        return problem


def settings_path(given: str | None) -> str:
    """The settings file: as given, else FC_FRONTEND_CONFIG, else the first default that exists."""
    if given:
        return given
    if os.environ.get(SETTINGS_VARIABLE):
        return os.environ[SETTINGS_VARIABLE]
    for candidate in DEFAULT_SETTINGS:
        if Path(candidate).exists():
            return candidate
    return DEFAULT_SETTINGS[0]


def services_directory(settings_file: str) -> str:
    """services.d beside the settings file."""
    return str(Path(settings_file).parent / "services.d")


def load(settings_file: str) -> Declaration:
    """Everything that the settings file and services.d beside it declare.

    Never raises for what is in the files: `problems` says it.
    """
    problems: list[Problem] = []
    document = _read(settings_file, problems, missing_remedy=_MISSING_SETTINGS)
    raw = _mapping(document, settings_file, problems)
    services: dict[str, _Raw] = {}
    inline = raw.pop("services", None)
    settings = _settings(raw, document, settings_file, problems)
    _collect(inline, document, settings_file, services, problems)

    directory = services_directory(settings_file)
    fragments: list[Fragment] = []
    for path in _listing(directory, problems):
        if path.endswith(".cfg"):
            fragment = _fragment(path, problems)
            fragments += [fragment] if fragment else []
            continue
        file_document = _read(path, problems)
        content = _mapping(file_document, path, problems)
        unknown = [key for key in content if key != "services"]
        problems += [
            _unknown_field(key, ("services",), path, (key,), file_document) for key in unknown
        ]
        _collect(content.get("services"), file_document, path, services, problems)

    specs = [spec for raw in services.values() if (spec := _service(raw, problems))]
    specs.sort(key=lambda spec: spec.name)
    names = {spec.name for spec in specs}
    for clash in [fragment for fragment in fragments if fragment.name in names]:
        problems.append(
            Problem(
                message=f"a fragment and a service are both named {clash.name}",
                remedy="rename the file",
                file=clash.origin.file,
            )
        )
        fragments.remove(clash)
    between = [
        *settings_problems(settings, host.host_addresses()),
        *service_problems(settings, specs),
    ]
    problems += [_place_between(problem, services, document, settings_file) for problem in between]
    return Declaration(
        settings=settings,
        services=tuple(specs),
        fragments=tuple(fragments),
        problems=tuple(dict.fromkeys(problems)),
        settings_file=settings_file,
        directory=directory,
        templates=_templates(settings.haproxy.templates, problems),
    )


def fingerprint(settings_file: str) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when any declared file does: path, inode, size and time of change of each."""
    paths = [settings_file]
    directory = services_directory(settings_file)
    with contextlib.suppress(OSError):
        paths += [f"{directory}/{name}" for name in _names(directory)]
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = Path(path).stat()
            found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


_MISSING_SETTINGS = f"create it, give --config PATH, or set {SETTINGS_VARIABLE}"


@dataclass(frozen=True, slots=True)
class _Raw:
    """A service as it stands in its file."""

    name: str
    value: Any
    file: str
    document: Document

    def problem(self, field: str, message: str, remedy: str) -> Problem:
        path: tuple[str | int, ...] = ("services", self.name)
        for part in field.split(".") if field else ():
            path += (int(part) if part.isdigit() else part,)
        position = self.document.locate(path)
        if len(path) > 2 and position == self.document.locate(path[:2]):
            camel = _SNAKE_TO_CAMEL.get(str(path[2]))
            position = (camel and self.document.locate((*path[:2], camel, *path[3:]))) or position
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


def _read(path: str, problems: list[Problem], *, missing_remedy: str = "") -> Document:
    text = read_text(path, problems, missing_remedy)
    if text is None:
        return Document({}, (), dict)
    try:
        document = read_document(text, is_json=path.endswith(".json"))
    except Unreadable as exc:
        problems.append(
            Problem(
                message=exc.flaw.message,
                remedy=exc.flaw.remedy,
                file=path,
                line=exc.flaw.line,
                column=exc.flaw.column,
            )
        )
        return Document({}, (), dict)
    problems += [
        Problem(
            message=flaw.message,
            remedy=flaw.remedy,
            file=path,
            line=flaw.line,
            column=flaw.column,
        )
        for flaw in document.flaws
    ]
    return document


def read_text(path: str, problems: list[Problem], missing_remedy: str = "") -> str | None:
    """The text of a file that an operator names; None, and a problem, if it cannot be had."""

    def refuse(message: str, remedy: str) -> None:
        problems.append(Problem(message=message, remedy=remedy, file=path))

    try:
        # Opening a pipe for reading would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                refuse("is not a regular file", "put a file there")
                return None
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                content = stream.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as exc:
        remedy = "see its owner and mode" if isinstance(exc, PermissionError) else missing_remedy
        refuse(f"cannot be read: {exc.strerror}", remedy)
        return None
    if len(content) > MAX_BYTES:
        refuse(f"is larger than {MAX_BYTES} bytes", "split it into several files")
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        problems.append(
            Problem(message="is not UTF-8", remedy="save it as UTF-8", file=path, line=line)
        )
        return None


def _mapping(document: Document, file: str, problems: list[Problem]) -> dict[str, Any]:
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        problems.append(
            Problem(
                message="is not a mapping",
                remedy="begin with `services:` and names indented below it",
                file=file,
                line=1,
                column=1,
            )
        )
        return {}
    return dict(document.value)


def _listing(directory: str, problems: list[Problem]) -> list[str]:
    try:
        names = _names(directory)
    except FileNotFoundError:
        return []
    except OSError as exc:
        problems.append(
            Problem(
                message=f"cannot be listed: {exc.strerror}",
                remedy="see its owner and mode",
                file=directory,
            )
        )
        return []
    found: list[str] = []
    for name in names:
        path = f"{directory}/{name}"
        if name.startswith((".", "#")) or not name.endswith((".yaml", ".json", ".cfg", ".yml")):
            continue
        if name.endswith(".yml"):
            problems.append(
                Problem(
                    message="is not read",
                    remedy="name it .yaml",
                    severity=Severity.WARNING,
                    file=path,
                )
            )
            continue
        found.append(path)
    if len(found) > MOST_FILES:
        problems.append(
            Problem(
                message=f"has more than {MOST_FILES} files",
                remedy="put several services into one file",
                file=directory,
            )
        )
    return found[:MOST_FILES]


def _names(directory: str) -> list[str]:
    return sorted(entry.name for entry in Path(directory).iterdir())


def _fragment(path: str, problems: list[Problem]) -> Fragment | None:
    name = Path(path).name.removesuffix(".cfg")
    if not _FRAGMENT_NAME.fullmatch(name):
        problems.append(
            Problem(
                message="has a name that HAProxy could not take",
                remedy="use letters, digits and ._-",
                file=path,
            )
        )
        return None
    text = read_text(path, problems)
    if text is None:
        return None
    text = text.replace("\r\n", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if any(not letter.isprintable() and letter != "\t" for letter in line):
            problems.append(
                Problem(
                    message="has a control character",
                    remedy="leave it out",
                    file=path,
                    line=number,
                )
            )
            return None
    return Fragment(name, text.rstrip("\n") + "\n", Origin(path))


def _collect(
    value: Any,
    document: Document,
    file: str,
    services: dict[str, _Raw],
    problems: list[Problem],
) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        line, column = document.locate(("services",)) or (None, None)
        problems.append(
            Problem(
                message="services is not a mapping",
                remedy="write names of services below it, each with its fields",
                file=file,
                line=line,
                column=column,
                field="services",
            )
        )
        return
    for name, content in value.items():
        raw = _Raw(name, content, file, document)
        if name in services:
            first = services[name]
            line = (first.document.locate(("services", name)) or (0, 0))[0]
            problems.append(
                raw.problem(
                    "",
                    f"is also defined in {first.file}:{line}",
                    "rename one of the two, or remove it",
                )
            )
        else:
            services[name] = raw


def _settings(
    raw: dict[str, Any], document: Document, file: str, problems: list[Problem]
) -> Settings:
    found: list[Problem] = []
    try:
        declared = SettingsDeclaration.model_validate(raw)
        settings = declared.model()
    except ValidationError as exc:
        found = [
            _from_pydantic(error, SettingsDeclaration, (), document, file)
            for error in exc.errors(include_url=False)
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


def _service(raw: _Raw, problems: list[Problem]) -> ServiceSpec | None:
    def refuse(field: str, message: str, remedy: str) -> None:
        problems.append(raw.problem(field, message, remedy))

    if not SERVICE_NAME.fullmatch(raw.name):
        refuse("", "is not a usable name", "use up to 63 letters, digits and inner ._-")
        return None
    if raw.name.startswith(_RESERVED):
        refuse("", f"names beginning with {_RESERVED} are fc-frontend's own", "choose another name")
        return None
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
        for error in exc.errors(include_url=False):
            problem = _from_pydantic(error, ServiceDeclaration, path, raw.document, raw.file)
            problems.append(raw.problem(problem.field or "", problem.message, problem.remedy))
        return None
    complaints = declared.complaints(raw.name)
    for complaint in complaints:
        refuse(*complaint)
    return None if complaints else declared.model(raw.name, Origin(raw.file))


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
        return _unknown_field(str(place[-1]), known, file, (*base, *place), document)
    context: dict[str, Any] = error.get("ctx", {})
    if error["type"] == "fc_frontend":
        message, remedy = str(context["text"]), str(context["remedy"])
    else:
        message, remedy = _plain_words(error["msg"], error["type"]), ""
    shown = tuple(part for part in place if part != "[key]")
    line, column = document.locate((*base, *shown)) or (None, None)
    return Problem(
        message=message,
        remedy=remedy,
        file=file,
        line=line,
        column=column,
        field=".".join(str(part) for part in shown) or None,
    )


def _plain_words(message: str, kind: str) -> str:
    """pydantic's message in the words of a configuration file."""
    said = message.replace("Input should be", "should be").replace("a valid string", "a text")
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
    names = tuple(known)
    if model is ServiceDeclaration:
        names += tuple(CAMEL_CASE)
    return (*names, "services") if model is SettingsDeclaration and not tuple(place) else names


def _unknown_field(
    name: str,
    known: Iterable[str],
    file: str,
    path: tuple[str | int, ...],
    document: Document,
) -> Problem:
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    line, column = document.locate(path) or (None, None)
    dotted = path[2:] if path[:1] == ("services",) and len(path) > 2 else path
    return Problem(
        message="unknown field",
        remedy=remedy,
        file=file,
        line=line,
        column=column,
        field=".".join(str(part) for part in dotted),
    )


def _place_between(
    problem: Problem, services: Mapping[str, _Raw], document: Document, file: str
) -> Problem:
    if problem.service and problem.service in services:
        placed = services[problem.service].problem(
            problem.field or "", problem.message, problem.remedy
        )
        return replace(placed, severity=problem.severity)
    line, column = document.locate(tuple((problem.field or "").split("."))) or (None, None)
    return replace(problem, file=file, line=line, column=column)


def _placed(problem: Problem, file: str) -> Problem:
    ignored: list[Problem] = []
    raw = _Raw(problem.service or "", None, file, _read(file, ignored))
    placed = raw.problem(problem.field or "", problem.message, problem.remedy)
    return replace(placed, severity=problem.severity)


def _templates(directory: str | None, problems: list[Problem]) -> dict[str, str]:
    """The operator's own templates: file name → text."""
    if directory is None:
        return {}
    try:
        names = [name for name in _names(directory) if name.endswith(".j2")]
    except OSError as exc:
        problems.append(
            Problem(
                message=f"cannot be listed: {exc.strerror}",
                remedy="create it, or set haproxy.templates to null",
                file=directory,
                field="haproxy.templates",
            )
        )
        return {}
    texts: dict[str, str] = {}
    for name in names:
        text = read_text(f"{directory}/{name}", problems)
        if text is not None:
            texts[name] = text
    return texts
