"""Read and parse the settings file and services.d, and collect all problems.

All problems are reported at once, and a fault in one file or service does not hide the others.  The
loader reads files and this host's resolv.conf and addresses; it uses no network and writes nothing.
`declare` turns the result into values.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fc_frontend.config import host, trusted_users
from fc_frontend.config.document import Document, DocumentError, read_document
from fc_frontend.config.fragments import fragment_of
from fc_frontend.config.raw import (
    MAX_PROBLEMS,
    NO_DOCUMENT,
    UNITS,
    Raw,
    unknown_field,
    untrusted_file,
)
from fc_frontend.config.reading import (
    Look,
    Signature,
    list_directory,
    look,
    look_at_directory,
    read_file,
)
from fc_frontend.config.settings import SettingsDeclaration
from fc_frontend.config.trust import (
    judge,
)
from fc_frontend.errors import LONGEST_PATH, Problem, Severity, errors_in
from fc_frontend.paths.access import WriteAccess
from fc_frontend.paths.walk import Found
from fc_frontend.plan import untrusted
from fc_frontend.plan.addresses import SAFE_PATH
from fc_frontend.plan.model import Address, Fragment
from fc_frontend.text import is_printable, printable

DEFAULT_SETTINGS = ("/etc/fc-frontend/config.yaml", "/etc/fc-frontend/config.json")
SETTINGS_VARIABLE = "FC_FRONTEND_CONFIG"
MAX_SERVICES = 20_000
"""Per file."""


def settings_path(given: str | None) -> str:
    """Return the settings file: `given`, else FC_FRONTEND_CONFIG, else the first existing default.

    If no default exists, the first one is returned.
    """
    if given:
        return given
    if os.environ.get(SETTINGS_VARIABLE):
        return os.environ[SETTINGS_VARIABLE]
    for candidate in DEFAULT_SETTINGS:
        if Path(candidate).exists():
            return candidate
    return DEFAULT_SETTINGS[0]


def services_directory(settings_file: str) -> str:
    """Return the services.d directory beside the settings file."""
    return str(Path(settings_file).parent / "services.d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The content of the files, read once and not yet validated.

    `broken` contains the files, or services.d itself, that could not be read as a whole; `problems`
    contains the reasons, and all other problems found before services are validated.
    """

    settings_file: str
    directory: str
    settings: dict[str, Any]
    document: Document
    services: dict[str, Raw]
    """By name; for a name in `duplicates`, the first definition."""
    duplicates: Mapping[str, tuple[Raw, ...]] = field(default_factory=dict)
    """Services that several files define, in the order of the files."""
    fragments: tuple[Fragment, ...]
    frontends: Mapping[str, tuple[Raw, ...]] = field(default_factory=dict)
    """By name, in the order of the files; more than one is an error."""
    templates: Mapping[str, str] | None
    """None if the operator's templates cannot be read."""
    template_access: Mapping[str, WriteAccess] = field(default_factory=dict)
    """Write access to the templates, by path."""
    broken: frozenset[str]
    has_directory: bool
    problems: tuple[Problem, ...]
    host: tuple[Address, ...]
    cluster: Mapping[str, Raw] | None = None
    """The declarations of Services of type LoadBalancer, by name; None while they are not known."""
    cluster_problems: tuple[Problem, ...] = ()
    """Warnings about such Services."""
    believes_empty: bool = False
    """True if a suddenly empty services.d is accepted as intended."""
    files: Mapping[str, _File] = field(default_factory=dict, compare=False, repr=False)
    """All files that were read, by path."""


def read(
    settings_file: str, before: Sources | None = None, changed: frozenset[str] | None = None
) -> Sources:
    """Read the settings file and services.d beside it.  Never raises for their content.

    A file that has not changed since `before` is not read again.  If `changed`, a set of file names
    in services.d, is given, all other files there are assumed to be unchanged.
    """
    known = before.files if before and before.settings_file == settings_file else {}
    place = look_at_directory(str(Path(settings_file).parent))
    seen = look(settings_file, place)
    main = _file(settings_file, place, known.get(settings_file), seen, None)
    trusted_main = _trusted_settings(main, settings_file)
    users = trusted_users.trusted_users(trusted_main.content)
    problems: list[Problem] = list(trusted_main.problems)
    broken = {settings_file} if trusted_main.is_broken else set()
    directory = services_directory(settings_file)
    listed: list[Problem] = []
    if before is not None and known and changed is not None and directory not in before.broken:
        files = _looked_at(known, settings_file, directory, changed, users)
    else:
        place, looks = list_directory(directory, _is_declared_in, listed, _trusts(users))
        files = {
            path: _file(path, place, known.get(path), seen, users) for path, seen in looks.items()
        }
    if errors_in(listed):
        broken.add(directory)
    problems += listed
    all_files = {settings_file: trusted_main, **files}
    services = _with_same_names(before, all_files) if before and known else None
    duplicates: dict[str, tuple[Raw, ...]] = {}
    if services is None:
        services, duplicates = _merged(all_files)
    odd = [(path, file) for path, file in files.items() if not file.is_plain]
    for path, file in odd:
        problems += file.problems
        if file.is_broken:
            broken.add(printable(path, LONGEST_PATH))
    templates = template_directory(trusted_main.content)
    template_access: dict[str, WriteAccess] = {}
    return Sources(
        settings_file=settings_file,
        directory=directory,
        settings=trusted_main.content,
        document=trusted_main.document,
        services=services,
        duplicates=duplicates,
        fragments=tuple(file.fragment for _, file in odd if file.fragment is not None),
        frontends=_frontends(all_files),
        templates=_templates(templates, problems, template_access) if templates else {},
        template_access=template_access,
        broken=frozenset(broken),
        has_directory=Path(directory).is_dir(),
        problems=tuple(dict.fromkeys(problems)),
        host=host.host_addresses(),
        files=all_files,
    )


def is_unchanged(sources: Sources) -> bool:
    """Return whether the files from which `sources` was read, and their list, are unchanged."""
    users = trusted_users.trusted_users(sources.settings)
    listed = list_directory(sources.directory, _is_declared_in, [], _trusts(users)).looks
    place = look_at_directory(str(Path(sources.settings_file).parent))
    looks = {sources.settings_file: look(sources.settings_file, place), **listed}
    return looks.keys() == sources.files.keys() and all(
        seen is not None and seen == (sources.files[path].signature, sources.files[path].access)
        for path, seen in looks.items()
    )


def _trusts(users: frozenset[int]) -> Callable[[WriteAccess], bool]:
    return lambda access: judge(access, users).is_trusted


def _looked_at(
    known: Mapping[str, _File],
    settings_file: str,
    directory: str,
    changed: frozenset[str],
    users: frozenset[int],
) -> dict[str, _File]:
    """Return the files of services.d, of which only those named in `changed` are examined."""
    files = dict(known)
    del files[settings_file]
    place = look_at_directory(directory)
    for name in sorted(changed):
        path = f"{directory}/{name}"
        if not _is_declared_in(name):
            continue
        seen = look(path, place)
        if seen is None and not os.path.lexists(path):
            files.pop(path, None)
        else:
            files[path] = _file(path, place, None, seen, users)
    if files.keys() != known.keys() - {settings_file}:
        return dict(sorted(files.items()))
    return files


def _trusted_settings(main: _File, path: str) -> _File:
    """Return the settings file, without its content if untrusted: it names programs to run."""
    if main.access is None:
        return main
    verdict = judge(main.access, trusted_users.settings_users())
    if verdict.is_trusted:
        return main
    problem = Problem(
        message=f"is not trusted, and settings name programs to run: {verdict.reason}",
        remedy=verdict.change,
        file=path,
    )
    return replace(
        main,
        signature=None,
        content={},
        document=NO_DOCUMENT,
        services={},
        frontends={},
        problems=(problem,),
        is_broken=True,
    )


def _file(
    path: str,
    place: Found | None,
    before: _File | None,
    seen: Look | None,
    users: frozenset[int] | None,
) -> _File:
    """Return the parsed file, or `before` if it is unchanged.

    `users` are the trusted users, None for the settings file.  A large untrusted file is not
    parsed, because that would delay everything else.
    """
    if before is not None and seen is not None and before.signature == seen.signature:
        return before if before.access == seen.access else replace(before, access=seen.access)
    is_main = users is None
    problems: list[Problem] = []
    services: dict[str, Raw] = {}
    frontends: dict[str, Raw] = {}
    fragment = None
    document, content = NO_DOCUMENT, dict[str, Any]()
    text: str | None = None
    has_odd_name = not is_main and not is_printable(path)
    if is_main or not (has_odd_name or path.endswith(".yml")):
        missing_remedy = _MISSING_SETTINGS if is_main else ""
        text, seen = read_file(path, place, problems, missing_remedy)
    if text is not None and users is not None and seen is not None:
        verdict = judge(seen.access, users)
        if not verdict.is_trusted and len(text) > untrusted.MAX_LENGTH:
            message = f"untrusted files have at most {untrusted.MAX_LENGTH} characters"
            problems.append(untrusted_file(message, path, verdict))
            text = None
    if has_odd_name:
        problems.append(
            Problem(
                message="has a name with characters that are not printable",
                remedy="rename it: use letters, digits and ._-",
                file=path,
            )
        )
    elif path.endswith(".cfg") and not is_main:
        if text is not None:
            fragment, found = fragment_of(path, text)
            problems += found
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
        document = _document(path, text, problems)
        known = (*SettingsDeclaration.model_fields, *UNITS) if is_main else UNITS
        content = _mapping(document, path, known, problems)
        inline = content.pop("services", None)
        shared = content.pop("frontends", None)
        if not is_main:
            problems += [
                unknown_field(key, UNITS, path, (key,), document)
                for key in islice(content, MAX_PROBLEMS)
            ]
        services = _collect(inline, document, path, problems, before.services if before else {})
        frontends = _collect(shared, document, path, problems, {}, "frontends")
    errors = errors_in(problems)
    is_broken = bool(errors) if is_main else any(problem.service is None for problem in errors)
    is_settled = seen is not None and not is_broken and seen.is_settled
    return _File(
        signature=seen.signature if seen and is_settled else None,
        access=seen.access if seen else None,
        content=content,
        document=document,
        services=services,
        frontends=frontends,
        fragment=fragment,
        problems=tuple(problems),
        is_broken=is_broken,
        text=(text or "") if is_broken else "",
    )


def _with_same_names(before: Sources, files: Mapping[str, _File]) -> dict[str, Raw] | None:
    """Return all services if the names of files and services are unchanged and unique.

    Return None otherwise.
    """
    if len(files) != len(before.files):
        return None
    changed: dict[str, Raw] = {}
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


def _frontends(files: Mapping[str, _File]) -> dict[str, tuple[Raw, ...]]:
    """Return all definitions of each frontend, in the order of the files."""
    found: dict[str, tuple[Raw, ...]] = {}
    for file in files.values():
        for name, raw in file.frontends.items():
            found[name] = (*found.get(name, ()), raw)
    return found


def _merged(
    files: Mapping[str, _File],
) -> tuple[dict[str, Raw], dict[str, tuple[Raw, ...]]]:
    """Return all services, and the definitions of those that several files define.

    Both are in the order of the files.
    """
    services: dict[str, Raw] = {}
    duplicates: dict[str, tuple[Raw, ...]] = {}
    for file in files.values():
        if services.keys().isdisjoint(file.services):
            services.update(file.services)
            continue
        for name, raw in file.services.items():
            first = services.setdefault(name, raw)
            if first is not raw:
                duplicates[name] = (*duplicates.get(name, (first,)), raw)
    return services, duplicates


def state_directory(sources: Sources) -> str:
    """Return the state directory: from the settings, else from systemd, else the default.

    Unreadable settings must not hide the last good state.
    """
    return trusted_users.state_directory(sources.settings)


def template_directory(raw: Mapping[str, Any]) -> str | None:
    """Return the directory of the operator's templates, if the settings name one."""
    haproxy = raw.get("haproxy")
    directory = haproxy.get("templates") if isinstance(haproxy, dict) else None
    return directory if isinstance(directory, str) and SAFE_PATH.fullmatch(directory) else None


_MISSING_SETTINGS = f"create it, give --config PATH, or set {SETTINGS_VARIABLE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file that was read.

    `signature` is None if the file must be read again, `access` if it could not be opened.
    """

    signature: Signature | None
    access: WriteAccess | None
    content: dict[str, Any]
    document: Document
    services: Mapping[str, Raw]
    frontends: Mapping[str, Raw] = field(default_factory=dict)
    fragment: Fragment | None
    problems: tuple[Problem, ...]
    is_broken: bool
    text: str = ""
    """The text of the file if it is broken, else empty."""

    @property
    def is_plain(self) -> bool:
        """Whether the file has no problems and no fragment."""
        return not self.problems and not self.is_broken and self.fragment is None


def read_document_of(path: str) -> Document:
    """Return the document in a file; an empty one if it cannot be read."""
    problems: list[Problem] = []
    return _document(path, read_file(path, None, problems)[0], problems)


def _document(path: str, text: str | None, problems: list[Problem]) -> Document:
    """Parse the text of a file as a document; return an empty one if that fails."""
    if text is None:
        return NO_DOCUMENT
    try:
        document = read_document(text, is_json=path.endswith(".json"))
    except DocumentError as exc:
        problems.append(
            Problem(
                message=exc.flaw.message,
                remedy=exc.flaw.remedy,
                file=path,
                line=exc.flaw.line,
                column=exc.flaw.column,
            )
        )
        return NO_DOCUMENT
    problems += [
        Problem(
            message=flaw.message,
            remedy=flaw.remedy,
            file=path,
            line=flaw.line,
            column=flaw.column,
        )
        for flaw in document.flaws[:MAX_PROBLEMS]
    ]
    return document


def _mapping(
    document: Document, file: str, known: Collection[str], problems: list[Problem]
) -> dict[str, Any]:
    """Return the fields of a file, of which at least one must be `known`.

    Nothing of any other file is shown, not even its field names: it may not be a declaration.
    """
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
    if document.value and not any(key in known for key in document.value):
        key = next(iter(document.value))
        line, column = document.locate((key,)) or (None, None)
        near = [*difflib.get_close_matches(key, known, n=1, cutoff=0.6), ""][0]
        problems.append(
            Problem(
                message="has no field that is known",
                remedy=f"did you mean {near}?" if near else "begin with `services:`",
                file=file,
                line=line,
                column=column,
            )
        )
        return {}
    return dict(document.value)


def _is_declared_in(name: str) -> bool:
    return not name.startswith((".", "#")) and name.endswith((".yaml", ".json", ".cfg", ".yml"))


def _collect(
    value: Any,
    document: Document,
    file: str,
    problems: list[Problem],
    before: Mapping[str, Raw],
    group: str = "services",
) -> dict[str, Raw]:
    """Return the services or frontends of one file, reusing unchanged ones from `before`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        line, column = document.locate((group,)) or (None, None)
        problems.append(
            Problem(
                message=f"{group} is not a mapping",
                remedy=f"write names of {group} below it, each with its fields",
                file=file,
                line=line,
                column=column,
                field=group,
            )
        )
        return {}
    if len(value) > MAX_SERVICES:
        problems.append(
            Problem(
                message=f"has more than {MAX_SERVICES} {group}",
                remedy="split it into several files",
                file=file,
            )
        )
        return {}
    services: dict[str, Raw] = {}
    for key, content in value.items():
        name = printable(key)
        known = before.get(name)
        if known is not None and known.value == content and not known.problems:
            # Its line numbers may have changed; without problems, it contains none.
            services[name] = replace(known, document=document)
        else:
            written = key if key != name else ""
            services[name] = Raw(name, content, file, document, key=written, group=group)
    return services


def _is_template(name: str) -> bool:
    return name.endswith(".j2") and is_printable(name)


def _templates(
    directory: str, problems: list[Problem], access: dict[str, WriteAccess]
) -> dict[str, str] | None:
    """Return the operator's own templates, file name → text; None if they cannot be read.

    Adds the write access of each template to `access`, by path.
    """
    found: list[Problem] = []
    place, looks = list_directory(directory, _is_template, found, lambda _: True)
    if place is None:
        remedy = "create it, or set haproxy.templates to null"
        message = found[0].message if found else "does not exist"
        problems.append(
            Problem(message=message, remedy=remedy, file=directory, field="haproxy.templates")
        )
        return None
    texts: dict[str, str] = {}
    for path in looks:
        text, seen = read_file(path, place, problems)
        if seen is not None:
            access[path] = seen.access
        if text is None:
            return None
        texts[Path(path).name] = text
    return texts
