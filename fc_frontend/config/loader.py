"""From files to values: settings, services and fragments, and everything that is wrong with them.

All problems are found in one go, and one file's or service's fault does not hide the others.  The
loader reads files and this host's resolv.conf and addresses; it asks no network and writes nothing.
"""

from __future__ import annotations

import difflib
import os
import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from fc_frontend import safe_files
from fc_frontend.config import host
from fc_frontend.config.document import MAX_BYTES, Document, Unreadable, read_document
from fc_frontend.config.fragments import fragment_of
from fc_frontend.config.last_good import Form, LastGood, Piece, Quarantine, Unit
from fc_frontend.config.schema import (
    CAMEL_CASE,
    SERVICE_NAME,
    ServiceDeclaration,
    SettingsDeclaration,
)
from fc_frontend.errors import Problem, Severity, errors_in
from fc_frontend.plan.addresses import SAFE_PATH
from fc_frontend.plan.checks import service_problems, settings_problems
from fc_frontend.plan.model import Address, Fragment, Origin, ServiceSpec, Settings
from fc_frontend.safe_files import Fault, Unsafe

DEFAULT_SETTINGS = ("/etc/fc-frontend/config.yaml", "/etc/fc-frontend/config.json")
SETTINGS_VARIABLE = "FC_FRONTEND_CONFIG"
MOST_FILES = 20_000
_RESERVED = "fc-"
_GRAIN = 2_000_000_000
"""Nanoseconds."""
_SETTINGS = Unit(Piece.SETTINGS)
_TEMPLATES = Unit(Piece.TEMPLATES)
_NOTHING: Mapping[Unit, bool] = MappingProxyType({})
_NO_DOCUMENT = Document({}, (), dict)
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
    forms: LastGood = field(default_factory=LastGood)
    """What `services`, `fragments` and the rest were made of."""
    fresh: frozenset[Unit] = frozenset()
    """The units that are not in their last good form."""
    quarantined: tuple[Quarantine, ...] = ()
    _documents: dict[str, Document] = field(default_factory=dict, compare=False, repr=False)
    """What was read to locate problems: in an outage of DNS each service may have one."""

    def located(self, problem: Problem) -> Problem:
        """`problem` with the place where its service or setting was declared, if it is found."""
        if problem.file or not (problem.service or problem.field):
            return problem
        if not problem.service:
            return self._located_setting(problem)
        at = bisect_left(self.services, problem.service, key=lambda spec: spec.name)
        spec = self.services[at] if at < len(self.services) else None
        if spec and spec.name == problem.service and spec.origin:
            file = spec.origin.file
            if file not in self._documents:
                self._documents[file] = _read(file, [])
            return _placed(problem, file, self._documents[file])
        for fragment in self.fragments:
            if fragment.name == problem.service:
                return replace(problem, file=fragment.origin.file)
        return problem

    def _located_setting(self, problem: Problem) -> Problem:
        file = self.settings_file
        if file not in self._documents:
            self._documents[file] = _read(file, [])
        return _place_between(problem, {}, self._documents[file], file)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What stands in the files, read once and not yet judged.

    `broken` are the files, and services.d itself, that could not be read as a whole; `problems` say
    why, and what else is wrong before a single service is looked at.
    """

    settings_file: str
    directory: str
    settings: dict[str, Any]
    document: Document
    services: dict[str, _Raw]
    fragments: tuple[Fragment, ...]
    templates: Mapping[str, str] | None
    """None if they cannot be read, or if settings that cannot be read say where they are."""
    broken: frozenset[str]
    has_directory: bool
    problems: tuple[Problem, ...]
    host: tuple[Address, ...]
    files: Mapping[str, _File] = field(default_factory=dict, compare=False, repr=False)
    """Each file that was read, by its path."""


def load(settings_file: str) -> Declaration:
    """Everything that the settings file and services.d beside it declare.

    Never raises for what is in the files: `problems` says it.
    """
    return declare(read(settings_file))


def read(
    settings_file: str, before: Sources | None = None, changed: frozenset[str] | None = None
) -> Sources:
    """What the settings file and services.d beside it hold; never raises for what that is.

    A file that is as it was `before` is not read again.  With `changed`, names of files in
    services.d, all others there are taken to be as they were `before`, without a look.
    """
    known = before.files if before and before.settings_file == settings_file else {}
    main = _file(settings_file, known.get(settings_file), _signature(settings_file), is_main=True)
    problems: list[Problem] = list(main.problems)
    broken = {settings_file} if main.is_broken else set()
    directory = services_directory(settings_file)
    listed: list[Problem] = []
    if before is not None and known and changed is not None and directory not in before.broken:
        files = _looked_at(known, settings_file, directory, changed)
    else:
        files = {
            path: _file(path, known.get(path), signature)
            for path, signature in _listing(directory, listed).items()
        }
    if errors_in(listed):
        broken.add(directory)
    problems += listed
    all_files = {settings_file: main, **files}
    services = _with_same_names(before, all_files) if before and known else None
    clashes: dict[str, list[Problem]] = {}
    if services is None:
        services = _merged(all_files, clashes)
    odd = [(path, file) for path, file in files.items() if not file.is_plain or path in clashes]
    for path, file in odd:
        problems += file.problems
        problems += clashes.get(path, ())
        if file.is_broken:
            broken.add(path)
    templates = _template_directory(main.content)
    return Sources(
        settings_file=settings_file,
        directory=directory,
        settings=main.content,
        document=main.document,
        services=services,
        fragments=tuple(file.fragment for _, file in odd if file.fragment is not None),
        templates=_templates(templates, problems) if templates else {},
        broken=frozenset(broken),
        has_directory=Path(directory).is_dir(),
        problems=tuple(dict.fromkeys(problems)),
        host=host.host_addresses(),
        files=all_files,
    )


def is_unchanged(sources: Sources) -> bool:
    """True if every file that `sources` was read from, and the list of them, is as it was then."""
    listed = _listing(sources.directory, [])
    signatures = {sources.settings_file: _signature(sources.settings_file), **listed}
    return signatures.keys() == sources.files.keys() and all(
        signature == sources.files[path].signature for path, signature in signatures.items()
    )


def _looked_at(
    known: Mapping[str, _File], settings_file: str, directory: str, changed: frozenset[str]
) -> dict[str, _File]:
    """The files of services.d, of which only those that are named `changed` are looked at."""
    files = dict(known)
    del files[settings_file]
    for name in sorted(changed):
        path = f"{directory}/{name}"
        if not _is_declared_in(name):
            continue
        signature = _signature(path)
        if signature is None and not os.path.lexists(path):
            files.pop(path, None)
        else:
            files[path] = _file(path, None, signature)
    if files.keys() != known.keys() - {settings_file}:
        return dict(sorted(files.items()))
    return files


def _file(
    path: str, before: _File | None, signature: _Signature | None, *, is_main: bool = False
) -> _File:
    """What a file holds; `before` if it is the same still."""
    if before is not None and signature is not None and before.signature == signature:
        return before
    problems: list[Problem] = []
    services: dict[str, _Raw] = {}
    fragment = None
    document, content = _NO_DOCUMENT, dict[str, Any]()
    if path.endswith(".cfg") and not is_main:
        fragment = _fragment(path, problems)
    elif path.endswith(".yml") and not is_main:
        problems.append(
            Problem(
                message="is not read",
                remedy="name it .yaml",
                severity=Severity.WARNING,
                file=path,
            )
        )
    else:
        document = _read(path, problems, missing_remedy=_MISSING_SETTINGS if is_main else "")
        content = _mapping(document, path, problems)
        inline = content.pop("services", None)
        if not is_main:
            problems += [
                _unknown_field(key, ("services",), path, (key,), document) for key in content
            ]
        services = _collect(inline, document, path, problems, before.services if before else {})
    errors = errors_in(problems)
    is_broken = bool(errors) if is_main else any(problem.service is None for problem in errors)
    is_settled = signature is not None and not is_broken and _is_settled(signature)
    return _File(
        signature=signature if is_settled else None,
        content=content,
        document=document,
        services=services,
        fragment=fragment,
        problems=tuple(problems),
        is_broken=is_broken,
    )


def _signature(path: str) -> _Signature | None:
    try:
        return _signature_of(safe_files.status_listed(path))
    except (OSError, Unsafe):
        return None


def _signature_of(status: os.stat_result) -> _Signature:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _is_settled(signature: _Signature) -> bool:
    """True if a change after the look would have another signature.

    Clocks of file systems have grains of up to 2 s; what was changed within one grain of the look
    may be changed again without any sign.
    """
    return max(signature[3:]) + _GRAIN < time.time_ns()


def _with_same_names(before: Sources, files: Mapping[str, _File]) -> dict[str, _Raw] | None:
    """All services, if files and services are called as they were before, each only once.

    None otherwise.
    """
    if len(files) != len(before.files):
        return None
    changed: dict[str, _Raw] = {}
    count = 0
    for path, file in files.items():
        count += len(file.services)
        former = before.files.get(path)
        if former is file:
            continue
        if former is None or former.services.keys() != file.services.keys():
            return None
        changed.update(file.services)
    return {**before.services, **changed} if count == len(before.services) else None


def _merged(files: Mapping[str, _File], clashes: dict[str, list[Problem]]) -> dict[str, _Raw]:
    """All services; of those with the same name the first, and what is wrong with the others."""
    services: dict[str, _Raw] = {}
    for path, file in files.items():
        if services.keys().isdisjoint(file.services):
            services.update(file.services)
        else:
            clashes[path] = list(_merge(services, file.services))
    return services


def _merge(services: dict[str, _Raw], more: Mapping[str, _Raw]) -> Iterator[Problem]:
    """Add `more`, but for names that are there already: those are problems."""
    for name, raw in more.items():
        first = services.setdefault(name, raw)
        if first is not raw:
            line = (first.document.locate(("services", name)) or (0, 0))[0]
            yield raw.problem(
                "",
                f"is also defined in {first.file}:{line}",
                "rename one of the two, or remove it",
            )


def state_directory(sources: Sources) -> str:
    """Where state is kept: as the settings say, else as systemd does, else the default.

    Settings that cannot be read must not hide what was good before.
    """
    declared = sources.settings.get("state_directory")
    if isinstance(declared, str) and SAFE_PATH.fullmatch(declared):
        return declared
    return os.environ.get("STATE_DIRECTORY", "").split(":")[0] or Settings().state_directory


def declare(
    sources: Sources,
    last_good: LastGood | None = None,
    reverted: Mapping[Unit, bool] = _NOTHING,
) -> Declaration:
    """What the sources declare, with the `reverted` units as they were last good.

    A unit that is reverted to False is left out.  Raises nothing for what is in the files.
    """
    last_good = last_good or LastGood()
    problems = list(sources.problems)
    raw_settings = sources.settings
    document = sources.document
    if reverted.get(_SETTINGS) and last_good.settings is not None:
        raw_settings, document = dict(last_good.settings), _NO_DOCUMENT
    settings = _settings(raw_settings, document, sources.settings_file, problems)
    services = _with_reverted(sources, last_good, reverted)
    built: dict[str, ServiceSpec] = {}
    forms: dict[str, Form] = {}
    for name, raw in services.items():
        spec, said, form = raw.found[0] if raw.found else raw.judged()
        if said:
            problems += said
        if spec is not None:
            built[name] = spec
            forms[name] = form
    fragments = _fragments(sources, last_good, reverted)
    for clash in [fragment for fragment in fragments if fragment.name in built]:
        problems.append(
            Problem(
                message=f"a fragment and a service are both named {clash.name}",
                remedy="rename the file",
                file=clash.origin.file,
            )
        )
        fragments.remove(clash)
    names = sorted(built)
    specs = tuple(built[name] for name in names)
    between = [*settings_problems(settings, sources.host), *service_problems(settings, specs)]
    problems += [
        _place_between(problem, services, document, sources.settings_file) for problem in between
    ]
    own_templates = sources.templates or {}
    if reverted.get(_TEMPLATES) or reverted.get(_SETTINGS):
        own_templates = last_good.templates
    elif _TEMPLATES in reverted:
        own_templates = {}
    all_forms = LastGood(
        settings=raw_settings,
        services=forms,
        fragments={f.name: Form(f.origin.file, f.text) for f in fragments},
        templates=own_templates,
    )
    return Declaration(
        settings=settings,
        services=specs,
        fragments=tuple(fragments),
        problems=tuple(dict.fromkeys(problems)),
        settings_file=sources.settings_file,
        directory=sources.directory,
        templates=own_templates,
        forms=all_forms,
        fresh=all_forms.differing(last_good),
    )


def recall(last_good: LastGood, sources: Sources) -> Declaration | None:
    """What the last good forms declare, None if no settings are among them.

    `sources` says where the settings file is; nothing else of it counts.
    """
    if last_good.settings is None:
        return None
    former = replace(
        sources,
        settings=dict(last_good.settings),
        document=_NO_DOCUMENT,
        services={
            name: _Raw(name, form.value, form.file, _NO_DOCUMENT)
            for name, form in last_good.services.items()
        },
        fragments=tuple(
            fragment
            for form in last_good.fragments.values()
            if (fragment := fragment_of(form.file, form.value)[0]) is not None
        ),
        templates=last_good.templates,
        broken=frozenset(),
        problems=(),
    )
    return declare(former)


def _with_reverted(
    sources: Sources, last_good: LastGood, reverted: Mapping[Unit, bool]
) -> Mapping[str, _Raw]:
    """The services as declared, or as they were last good, or without those to leave out."""
    broken = {unit.name for unit in reverted if unit.piece is Piece.FILE}
    if not reverted:
        return sources.services
    services = {name: raw for name, raw in sources.services.items() if raw.file not in broken}
    for name, form in last_good.services.items() if broken else ():
        is_lost = form.file in broken or str(Path(form.file).parent) in broken
        if is_lost and name not in services:
            services[name] = _Raw(name, form.value, form.file, _NO_DOCUMENT)
    for unit, keeps in reverted.items():
        if unit.piece is not Piece.SERVICE:
            continue
        services.pop(unit.name, None)
        form_kept = last_good.services.get(unit.name)
        if keeps and form_kept is not None:
            services[unit.name] = _Raw(unit.name, form_kept.value, form_kept.file, _NO_DOCUMENT)
    return services


def _fragments(
    sources: Sources, last_good: LastGood, reverted: Mapping[Unit, bool]
) -> list[Fragment]:
    broken = {unit.name for unit in reverted if unit.piece is Piece.FILE}
    fragments = {f.name: f for f in sources.fragments if f.origin.file not in broken}
    for name, form in last_good.fragments.items():
        is_lost = form.file in broken or str(Path(form.file).parent) in broken
        if (is_lost and name not in fragments) or reverted.get(Unit(Piece.FRAGMENT, name)):
            fragments.pop(name, None)
            fragment, _ = fragment_of(form.file, form.value)
            if fragment is not None:
                fragments[name] = fragment
    for unit, keeps in reverted.items():
        if unit.piece is Piece.FRAGMENT and not (keeps and unit.name in last_good.fragments):
            fragments.pop(unit.name, None)
    return [fragments[name] for name in sorted(fragments)]


def _template_directory(raw: Mapping[str, Any]) -> str | None:
    haproxy = raw.get("haproxy")
    directory = haproxy.get("templates") if isinstance(haproxy, dict) else None
    return directory if isinstance(directory, str) and SAFE_PATH.fullmatch(directory) else None


_MISSING_SETTINGS = f"create it, give --config PATH, or set {SETTINGS_VARIABLE}"


_Signature = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of change of content and inode, in ns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file as it was read.  `signature` is None if it is to be read again in any case."""

    signature: _Signature | None
    content: dict[str, Any]
    document: Document
    services: Mapping[str, _Raw]
    fragment: Fragment | None
    problems: tuple[Problem, ...]
    is_broken: bool

    @property
    def is_plain(self) -> bool:
        """True if it holds services and nothing else that counts."""
        return not self.problems and not self.is_broken and self.fragment is None


@dataclass(frozen=True, slots=True)
class _Raw:
    """A service as it stands in its file."""

    name: str
    value: Any
    file: str
    document: Document
    found: list[tuple[ServiceSpec | None, tuple[Problem, ...], Form]] = field(
        default_factory=list, compare=False, repr=False
    )
    """What `judged` found out, if it was asked."""

    def judged(self) -> tuple[ServiceSpec | None, tuple[Problem, ...], Form]:
        """What it declares, None if that is wrong; what is wrong; its form.  Found out once."""
        if not self.found:
            problems: list[Problem] = []
            spec = _service(self, problems)
            self.found.append((spec, tuple(problems), Form(self.file, self.value)))
        return self.found[0]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with it."""
        return self.judged()[1]

    def problem(
        self, field: str, message: str, remedy: str, inside: _Inside | None = None
    ) -> Problem:
        path: tuple[str | int, ...] = ("services", self.name)
        for part in field.split(".") if field else ():
            path += (int(part) if part.isdigit() else part,)
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


def _read(path: str, problems: list[Problem], *, missing_remedy: str = "") -> Document:
    text = read_text(path, problems, missing_remedy)
    if text is None:
        return _NO_DOCUMENT
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
        return _NO_DOCUMENT
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

    try:
        content = safe_files.read_listed(path, MAX_BYTES)
    except Unsafe as exc:
        remedy = missing_remedy if exc.fault is Fault.MISSING else exc.remedy
        problems.append(Problem(message=exc.message, remedy=remedy, file=path))
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


def _listing(directory: str, problems: list[Problem]) -> dict[str, _Signature | None]:
    """The files of a directory that may declare something, in order, and what they look like."""
    found: dict[str, _Signature | None] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if _is_declared_in(entry.name):
                    found[f"{directory}/{entry.name}"] = _entry_signature(entry)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        problems.append(
            Problem(
                message=f"cannot be listed: {exc.strerror}",
                remedy="see its owner and mode",
                file=directory,
            )
        )
        return {}
    if len(found) > MOST_FILES:
        problems.append(
            Problem(
                message=f"has more than {MOST_FILES} files",
                remedy="put several services into one file",
                file=directory,
            )
        )
    return dict(sorted(found.items())[:MOST_FILES])


def _is_declared_in(name: str) -> bool:
    return not name.startswith((".", "#")) and name.endswith((".yaml", ".json", ".cfg", ".yml"))


def _entry_signature(entry: os.DirEntry[str]) -> _Signature | None:
    if entry.is_symlink():
        return _signature(entry.path)
    try:
        return _signature_of(entry.stat())
    except OSError:
        return None


def _names(directory: str) -> list[str]:
    return sorted(entry.name for entry in Path(directory).iterdir())


def _fragment(path: str, problems: list[Problem]) -> Fragment | None:
    text = read_text(path, problems)
    if text is None:
        return None
    fragment, found = fragment_of(path, text)
    problems += found
    return fragment


def _collect(
    value: Any,
    document: Document,
    file: str,
    problems: list[Problem],
    before: Mapping[str, _Raw],
) -> dict[str, _Raw]:
    """The services of one file, as they were `before` where they are the same."""
    if value is None:
        return {}
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
        return {}
    services: dict[str, _Raw] = {}
    for name, content in value.items():
        known = before.get(name)
        if known is not None and known.value == content and not known.problems:
            # Its lines may be others now, and nothing of it names a line.
            services[name] = replace(known, document=document)
        else:
            services[name] = _Raw(name, content, file, document)
    return services


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
            problems.append(
                raw.problem(problem.field or "", problem.message, problem.remedy, _inside(error))
            )
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
    """Where in a field's text an error is: the item, if it is a list of texts, and the line."""

    item: int | None
    line: int


def _inside(error: Any) -> _Inside | None:
    context: dict[str, Any] = error.get("ctx", {})
    return _Inside(context.get("item"), context["line"]) if "line" in context else None


def _locate(
    document: Document, path: tuple[str | int, ...], inside: _Inside | None
) -> tuple[int, int] | None:
    """The place of a value, or of the line in it."""
    if inside is not None:
        path = path if inside.item is None else (*path, inside.item)
        found = document.locate_line(path, inside.line)
        if found:
            return found
    return document.locate(path)


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
        return replace(placed, severity=problem.severity, unit=problem.unit)
    line, column = document.locate(tuple((problem.field or "").split("."))) or (None, None)
    return replace(problem, file=file, line=line, column=column)


def _placed(problem: Problem, file: str, document: Document) -> Problem:
    raw = _Raw(problem.service or "", None, file, document)
    placed = raw.problem(problem.field or "", problem.message, problem.remedy)
    return replace(placed, severity=problem.severity, unit=problem.unit)


def _templates(directory: str, problems: list[Problem]) -> dict[str, str] | None:
    """The operator's own templates: file name → text; None if they cannot be read."""
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
        return None
    texts: dict[str, str] = {}
    for name in names:
        text = read_text(f"{directory}/{name}", problems)
        if text is None:
            return None
        texts[name] = text
    return texts
