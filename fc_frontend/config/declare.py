"""Turn the text of files into declared values, and attribute each error to its unit.

    Sources ─► declare ─► Declaration: settings, services, fragments, templates, faults by unit

Pure, except that it looks up users of this host.  A fault in one unit never hides the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from fc_frontend.balancer.declare import is_of_cluster
from fc_frontend.config import claims, trusted_users
from fc_frontend.config.api_access import with_api_access
from fc_frontend.config.cluster_source import as_raw, merged, running_raws
from fc_frontend.config.document import Document
from fc_frontend.config.fingerprint import consented
from fc_frontend.config.fragments import fragment_of
from fc_frontend.config.loader import Sources, read, read_document_of, template_directory
from fc_frontend.config.raw import (
    NO_DOCUMENT,
    Raw,
    frontend_of,
    place_between,
    placed,
    settings_in,
    untrusted_file,
)
from fc_frontend.config.running import RawDeclaration, RunningDeclarations
from fc_frontend.config.trust import (
    TRUSTED,
    UNTRUSTED_ORIGIN,
    Level,
    Verdict,
    judge,
)
from fc_frontend.desired.changes import Unreadable
from fc_frontend.errors import Cause, Problem, Severity, errors_in
from fc_frontend.model.units import (
    ENVIRONMENT,
    SETTINGS,
    TEMPLATES,
    Resource,
    UnitId,
    UnitKind,
)
from fc_frontend.paths.accounts import user_id
from fc_frontend.plan import untrusted
from fc_frontend.plan.checks import service_problems, settings_problems
from fc_frontend.plan.model import Fragment, FrontendSpec, ServiceSpec, Settings, by_name
from fc_frontend.plurals import counted
from fc_frontend.syntax.endpoints import ListenOptions, read_endpoints
from fc_frontend.syntax.links import service_resource

NOTHING_RUNS = RunningDeclarations()
Faults = dict[UnitId, tuple[Problem, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """The complete declaration.

    `services`, `fragments` and `frontends` contain only units without a fault; `services` are
    sorted by name.  `directory` is services.d; `problems` contains errors and warnings.
    """

    settings: Settings
    services: tuple[ServiceSpec, ...] = ()
    fragments: tuple[Fragment, ...] = ()
    frontends: tuple[FrontendSpec, ...] = ()
    problems: tuple[Problem, ...] = ()
    settings_file: str
    directory: str
    templates: Mapping[str, str] = field(default_factory=dict)
    raw: RunningDeclarations = NOTHING_RUNS
    """The raw declarations from which `services`, `fragments` and the rest were built."""
    faults: Mapping[UnitId, tuple[Problem, ...]] = field(default_factory=dict)
    """The errors in `problems`, by unit."""
    claims: Mapping[UnitId, frozenset[Resource]] = field(default_factory=dict)
    """The resources that units with faults would hold and publish, as far as they are readable."""
    unreadable: tuple[Unreadable, ...] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """The trust level of each accessible file, by path."""
    untrusted: frozenset[str] = frozenset()
    """The names of `services` that are declared in untrusted files."""
    forced: frozenset[UnitId] = frozenset()
    """The units to whose declared form, or removal, an operator has consented."""
    _documents: dict[str, Document] = field(default_factory=dict, compare=False, repr=False)
    """Documents read to locate problems: in a DNS outage, every service may have a problem."""

    def named(self, names: Iterable[str]) -> list[ServiceSpec]:
        """Return the services with these names, sorted by name."""
        return by_name(self.services, names, attrgetter("name"))

    def located(self, problem: Problem) -> Problem:
        """Return `problem` with the location of its service or setting, if it is found."""
        if problem.file or not (problem.service or problem.field):
            return problem
        if not problem.service:
            return self._located_setting(problem)
        origins = [spec.origin for spec in self.named((problem.service,)) if spec.origin]
        if origins:
            file = origins[0].file
            if is_of_cluster(file):
                return replace(problem, file=file)
            return placed(problem, file, self._document(file))
        for fragment in self.fragments:
            if fragment.name == problem.service:
                return replace(problem, file=fragment.origin.file)
        for frontend in self.frontends:
            if frontend.name == problem.service and frontend.origin:
                return placed(
                    problem, frontend.origin.file, self._document(frontend.origin.file), "frontends"
                )
        return problem

    def _document(self, file: str) -> Document:
        if file not in self._documents:
            self._documents[file] = read_document_of(file)
        return self._documents[file]

    def _located_setting(self, problem: Problem) -> Problem:
        file = self.settings_file
        return place_between(problem, {}, self._document(file), file)


def load(settings_file: str) -> Declaration:
    """Load the settings file and the services.d directory beside it.

    Never raises for the content of the files; errors are reported in `problems`.
    """
    return declare(read(settings_file))


def declare(
    sources: Sources,
    running: RunningDeclarations = NOTHING_RUNS,
    kept: AbstractSet[UnitId] = frozenset(),
) -> Declaration:
    """Return the declaration of the sources.

    Units of `ENVIRONMENT` that are in `kept` are taken from `running`.  Never raises for the
    content of the files.
    """
    return _Declarer(sources, running, kept).declaration()


class _Declarer:
    """One pass over the sources."""

    def __init__(
        self, sources: Sources, running: RunningDeclarations, kept: AbstractSet[UnitId]
    ) -> None:
        self._sources = sources
        self._running = running
        self._kept = kept & ENVIRONMENT if running.settings is not None else frozenset[UnitId]()
        self._faults: dict[UnitId, list[Problem]] = {}
        self._warnings: list[Problem] = []
        self._unreadable: dict[str, list[Problem]] = {}
        keeps_settings = SETTINGS in self._kept
        self._raw_settings: Mapping[str, Any] = sources.settings
        self._document = sources.document
        if keeps_settings and running.settings is not None:
            self._raw_settings, self._document = dict(running.settings), NO_DOCUMENT
        self._verdicts = file_verdicts(sources, self._raw_settings)
        self._forced = consented(sources, running.consents)

    def declaration(self) -> Declaration:
        sources = self._sources
        self._sort_source_problems()
        settings = self._settings()
        self._overfull()
        self._emptied(settings)
        raws = self._with_cluster(self._with_api_access(settings), settings)
        specs, doubtful, forms = self._specs(raws)
        fragments = self._fragments()
        of_cluster = [spec for name, spec in specs.items() if is_of_cluster(raws[name].file)]
        for name, violation in (
            *_violations(settings, doubtful, fragments, self._running.services),
            *untrusted.name_violations(of_cluster, fragments).items(),
        ):
            problem = _violation_problem(raws[name], violation, self._verdicts)
            self._blame(self._faulty_unit(raws[name]), problem)
            specs.pop(name, None)
        fragments = self._without_clashes(fragments, specs)
        frontends, frontend_forms = self._frontends({*specs, *(each.name for each in fragments)})
        # Without a document, the networks are defaults that no operator chose.
        host = () if self._document is NO_DOCUMENT else sources.host
        for problem in settings_problems(settings, host):
            self._blame(
                SETTINGS, place_between(problem, raws, self._document, sources.settings_file)
            )
        for problem in service_problems(settings, specs.values()):
            name = problem.service or ""
            unit = UnitId(UnitKind.SERVICE, name)
            if self._is_settings_fault(name, forms[name]):
                unit = SETTINGS
            self._blame(unit, place_between(problem, raws, self._document, sources.settings_file))
            specs.pop(name, None)
        templates = self._templates()
        names = sorted(specs)
        faults = {unit: tuple(dict.fromkeys(found)) for unit, found in self._faults.items()}
        unreadable = tuple(
            Unreadable(path, tuple(found), self._text_of(path), self._is_trusted(path))
            for path, found in self._unreadable.items()
        )
        errors = [
            *(problem for found in faults.values() for problem in found),
            *(problem for file in unreadable for problem in file.problems),
        ]
        return Declaration(
            settings=settings,
            services=tuple(specs[name] for name in names),
            fragments=tuple(fragments),
            frontends=tuple(frontends),
            problems=tuple(dict.fromkeys((*errors, *self._warnings))),
            settings_file=sources.settings_file,
            directory=sources.directory,
            templates=templates,
            raw=RunningDeclarations(
                settings=self._raw_settings,
                services={name: forms[name] for name in names},
                fragments={f.name: RawDeclaration(f.origin.file, f.text) for f in fragments},
                frontends=frontend_forms,
                templates=templates,
            ),
            faults=faults,
            claims={
                unit: _claims(raws[unit.name])
                for unit in faults
                if unit.kind is UnitKind.SERVICE and unit.name in raws
            },
            unreadable=unreadable,
            verdicts=self._verdicts,
            untrusted=frozenset(name for name in doubtful if name in specs),
            forced=self._forced,
        )

    def _is_trusted(self, file: str) -> bool:
        return file in self._verdicts and self._verdicts[file].is_trusted

    def _faulty_unit(self, raw: Raw) -> UnitId:
        """Return the unit to which faults of this service definition are attributed.

        If the file is untrusted and the running service was declared in another, trusted file, the
        faults are attributed to a duplicate: otherwise an untrusted file could keep a service that
        a trusted file removes.
        """
        running = self._running.services.get(raw.name)
        is_foreign = (
            running is not None
            and running.level is Level.TRUSTED
            and running.file != raw.file
            and not self._is_trusted(raw.file)
        )
        if is_foreign:
            return UnitId(UnitKind.DUPLICATE, f"{raw.name} in {raw.file}")
        return UnitId(UnitKind.SERVICE, raw.name)

    def _blame(self, unit: UnitId, *problems: Problem) -> None:
        """Record errors as faults of `unit`, and warnings as warnings."""
        for problem in problems:
            if problem.severity is Severity.WARNING:
                self._warnings.append(problem)
            else:
                self._faults.setdefault(unit, []).append(replace(problem, unit=unit))

    def _sort_source_problems(self) -> None:
        """Attribute the problems found while reading the files to units."""
        sources = self._sources
        for problem in sources.problems:
            if problem.severity is Severity.WARNING:
                self._warnings.append(problem)
            elif problem.service:
                self._blame(UnitId(UnitKind.SERVICE, problem.service), problem)
            elif problem.file in sources.broken:
                found = problem
                if problem.file == sources.settings_file:
                    found = replace(problem, unit=SETTINGS)
                    self._blame(SETTINGS, found)
                self._unreadable.setdefault(problem.file or "", []).append(found)
            else:
                self._blame(TEMPLATES, problem)
        if not sources.has_directory and _any_in(sources.directory, self._running):
            problem = Problem(
                message="does not exist any more",
                remedy="create it again; an empty directory removes its services",
                file=sources.directory,
            )
            self._unreadable.setdefault(sources.directory, []).append(problem)

    def _text_of(self, path: str) -> str:
        file = self._sources.files.get(path)
        return file.text if file else ""

    def _settings(self) -> Settings:
        found: list[Problem] = []
        file = self._sources.settings_file
        settings = settings_in(self._raw_settings, self._document, file, found)
        found += _trust_problems(self._raw_settings, self._document, file)
        self._blame(SETTINGS, *found)
        return settings

    def _overfull(self) -> None:
        """Mark untrusted files that define more services than untrusted files may in total."""
        for path, file in self._sources.files.items():
            if len(file.services) > untrusted.MAX_SERVICES:
                verdict = self._verdicts.get(path, UNTRUSTED_ORIGIN)
                if not verdict.is_trusted:
                    message = f"untrusted files define at most {untrusted.MAX_SERVICES} services"
                    problem = untrusted_file(message, path, verdict)
                    self._unreadable.setdefault(path, []).append(problem)

    def _emptied(self, settings: Settings) -> None:
        """Report that services.d is suddenly empty: a mount may be missing."""
        sources = self._sources
        is_empty = sources.has_directory and sources.files.keys() <= {sources.settings_file}
        if (
            not is_empty
            or sources.believes_empty
            or sources.broken
            or not settings.intervals.removal
        ):
            return
        if sources.document.locate(("services",)) and not sources.services:
            return
        forms = [
            *self._running.services.values(),
            *self._running.fragments.values(),
            *self._running.frontends.values(),
        ]
        count = sum(str(Path(form.file).parent) == sources.directory for form in forms)
        if count:
            minutes = settings.intervals.emptied / 60
            problem = Problem(
                message=f"is suddenly empty; what it had keeps running: {counted(count, 'unit')}",
                remedy="restore the files; or confirm with `fc-frontend apply --force` or "
                f"`services: {{}}` in the settings; the daemon believes it after {minutes:g} min",
                file=sources.directory,
                cause=Cause.EMPTIED,
            )
            self._unreadable.setdefault(sources.directory, []).append(problem)

    def _services(self) -> Mapping[str, Raw]:
        """Return the effective service definitions, by name."""
        sources = self._sources
        if not sources.duplicates and not self._unreadable:
            return sources.services
        found = dict(sources.services)
        trusted = {path for path, verdict in self._verdicts.items() if verdict.is_trusted}
        for name, several in sources.duplicates.items():
            left = [raw for raw in several if raw.file not in self._unreadable]
            if not left:
                continue
            running = self._running.services.get(name)
            found[name], said = claims.settle(left, trusted, running.file if running else None)
            for unit, problems in said.items():
                self._blame(unit, *problems)
        return {name: raw for name, raw in found.items() if raw.file not in self._unreadable}

    def _with_api_access(self, settings: Settings) -> Mapping[str, Raw]:
        file = self._sources.settings_file
        found, faults = with_api_access(self._services(), settings.api_access, file)
        for unit, problem in faults.items():
            self._blame(unit, problem)
        return found

    def _with_cluster(self, services: Mapping[str, Raw], settings: Settings) -> Mapping[str, Raw]:
        """Return `services` and the services of the cluster.

        While the cluster's declarations are not known, those of the running configuration are used.
        """
        if settings.load_balancer is None:
            return services
        cluster = self._sources.cluster
        if cluster is None:
            cluster = running_raws(self._running)
        self._warnings += self._sources.cluster_problems
        found, faults = merged(services, cluster, self._running)
        for unit, problem in faults.items():
            self._blame(unit, problem)
        return found

    def _specs(
        self, raws: Mapping[str, Raw]
    ) -> tuple[dict[str, ServiceSpec], dict[str, ServiceSpec], dict[str, RawDeclaration]]:
        """Return services without faults of their own, services of untrusted files, and raw forms.

        A service of an untrusted file may appear in both of the first two.
        """
        specs: dict[str, ServiceSpec] = {}
        doubtful: dict[str, ServiceSpec] = {}
        forms: dict[str, RawDeclaration] = {}
        levels = {path: verdict.level for path, verdict in self._verdicts.items()}
        failed = self._running.failed
        for name, raw in raws.items():
            if name in failed and UnitId(UnitKind.SERVICE, name) not in self._forced:
                evidence = self._running.has_failed(name, raw.value)
                if evidence:
                    self._blame(self._faulty_unit(raw), _no_server_up(name, evidence.file))
            level = raw.level or levels.get(raw.file, Level.UNTRUSTED)
            spec, problems, form = raw.found.get(level) or raw.judged(level)
            if problems:
                self._blame(self._faulty_unit(raw), *problems)
            if spec is None:
                continue
            forms[name] = form
            if level is Level.UNTRUSTED and not is_of_cluster(raw.file):
                doubtful[name] = spec
            if not self._faults or UnitId(UnitKind.SERVICE, name) not in self._faults:
                specs[name] = spec
        return specs, doubtful, forms

    def _without_clashes(
        self, fragments: list[Fragment], specs: dict[str, ServiceSpec]
    ) -> list[Fragment]:
        """Return the fragments whose names do not clash with a service.

        If two units clash, the running one keeps the name.  Removes refused services from `specs`.
        """
        left: list[Fragment] = []
        for fragment in fragments:
            name = fragment.name
            if name not in specs:
                left.append(fragment)
                continue
            message = f"a fragment and a service are both named {name}"
            if name in self._running.fragments and name not in self._running.services:
                spec = specs.pop(name)
                file = spec.origin.file if spec.origin else None
                problem = Problem(message=message, remedy="rename the service", file=file)
                self._blame(UnitId(UnitKind.SERVICE, name), replace(problem, service=name))
                left.append(fragment)
            else:
                file = fragment.origin.file
                problem = Problem(message=message, remedy="rename the file", file=file)
                self._blame(UnitId(UnitKind.FRAGMENT, name), problem)
        return left

    def _is_settings_fault(self, name: str, form: RawDeclaration) -> bool:
        """Return whether the settings have changed while the service has not."""
        before = self._running.services.get(name)
        return (
            SETTINGS not in self._kept
            and self._running.settings is not None
            and self._running.settings != self._raw_settings
            and before is not None
            and before.value == form.value
        )

    def _fragments(self) -> list[Fragment]:
        """Return the fragments from trusted files, sorted by name."""
        found: list[Fragment] = []
        for fragment in self._sources.fragments:
            path = fragment.origin.file
            if path in self._unreadable:
                continue
            verdict = self._verdicts.get(path, UNTRUSTED_ORIGIN)
            if verdict.is_trusted:
                found.append(fragment)
            else:
                message = "a raw fragment needs a trusted file"
                unit = UnitId(UnitKind.FRAGMENT, fragment.name)
                self._blame(unit, untrusted_file(message, path, verdict))
        return sorted(found, key=lambda fragment: fragment.name)

    def _frontends(
        self, taken: AbstractSet[str]
    ) -> tuple[list[FrontendSpec], dict[str, RawDeclaration]]:
        """Return the frontends from trusted files, and their raw forms.

        `taken` contains the names of other units.
        """
        found: list[FrontendSpec] = []
        forms: dict[str, RawDeclaration] = {}
        for name, several in sorted(self._sources.frontends.items()):
            left = [raw for raw in several if raw.file not in self._unreadable]
            unit = UnitId(UnitKind.FRONTEND, name)
            for raw in left[1:]:
                first = f"{left[0].file}:{left[0].line}"
                fix = "rename one of the two, or remove it"
                self._blame(unit, raw.problem("", f"is also defined in {first}", fix))
            for raw in left[:1]:
                problems: list[Problem] = []
                verdict = self._verdicts.get(raw.file, UNTRUSTED_ORIGIN)
                if not verdict.is_trusted:
                    message = f"a frontend needs a trusted file, but {verdict.reason}"
                    problems.append(raw.problem("", message, verdict.remedy))
                if name in taken:
                    message = f"a service or fragment is named {name} as well"
                    problems.append(raw.problem("", message, "rename one of the two"))
                spec = frontend_of(raw, problems)
                if problems:
                    self._blame(unit, *problems)
                elif spec is not None and unit not in self._faults:
                    found.append(spec)
                    forms[name] = RawDeclaration(raw.file, raw.value)
        return found, forms

    def _has_same_templates(self) -> bool:
        """Return whether the templates were read from the directory in the running settings."""
        running = self._running.settings or {}
        return self._sources.templates is not None and template_directory(
            self._sources.settings
        ) == template_directory(running)

    def _templates(self) -> Mapping[str, str]:
        """Return the operator's templates, which must all be trusted files: they are code."""
        if TEMPLATES in self._kept or (SETTINGS in self._kept and not self._has_same_templates()):
            return self._running.templates
        found = [
            untrusted_file("templates need trusted files", path, self._verdicts[path])
            for path in self._sources.template_access
            if not self._verdicts[path].is_trusted
        ]
        self._blame(TEMPLATES, *found)
        return {} if found else self._sources.templates or {}


def running_specs(running: RunningDeclarations) -> dict[str, ServiceSpec]:
    """Return the running services whose declarations are still valid, by name."""
    return {name: spec for name in running.services if (spec := running_spec(running, name))}


def running_spec(running: RunningDeclarations, name: str) -> ServiceSpec | None:
    """Return a running service; None if it does not exist or its declaration is no longer valid."""
    form = running.services.get(name)
    return None if form is None else as_raw(name, form).judged(form.level)[0]


def running_fragments(running: RunningDeclarations) -> dict[str, Fragment]:
    """Return the running fragments that are still valid, by name."""
    found: dict[str, Fragment] = {}
    for name, form in running.fragments.items():
        fragment, _ = fragment_of(form.file, form.value)
        if fragment is not None:
            found[name] = fragment
    return found


def running_frontends(running: RunningDeclarations) -> dict[str, FrontendSpec]:
    """Return the running frontends that are still valid, by name."""
    found: dict[str, FrontendSpec] = {}
    for name, form in running.frontends.items():
        raw = Raw(name, form.value, form.file, NO_DOCUMENT, form.level, group="frontends")
        frontend = frontend_of(raw, [])
        if frontend is not None:
            found[name] = frontend
    return found


def running_settings(running: RunningDeclarations, settings_file: str) -> Settings | None:
    """Return the running settings; None if they are unknown or no longer valid."""
    if running.settings is None:
        return None
    problems: list[Problem] = []
    settings = settings_in(running.settings, NO_DOCUMENT, settings_file, problems)
    return None if errors_in(problems) else settings


def file_verdicts(sources: Sources, settings: Mapping[str, Any]) -> dict[str, Verdict]:
    """Return the trust verdict of each file of `sources`, by path.

    Files of the users named in `settings` are trusted.
    """
    users = trusted_users.trusted_users(settings)
    verdicts: dict[str, Verdict] = {}
    known: dict[int, Verdict] = {}
    for path, file in sources.files.items():
        access = file.access
        if access is None:
            continue
        # Most files share the access object of their directory.
        verdict = known.get(id(access))
        if verdict is None:
            verdict = known[id(access)] = judge(access, users)
        verdicts[path] = verdict
    main = sources.files.get(sources.settings_file)
    if main is not None and main.access is not None:
        verdicts[sources.settings_file] = judge(main.access, trusted_users.settings_users())
    for path, access in sources.template_access.items():
        verdicts[path] = judge(access, users)
    return verdicts


def _claims(raw: Raw) -> frozenset[Resource]:
    """Return the resources that a faulty service would hold and publish, by its valid fields."""
    spec = raw.without_faulty_fields()
    if spec is None:
        return frozenset((Resource("backend", raw.name),))
    endpoints = (each for bind in spec.binds for each in read_endpoints(str(bind), ListenOptions()))
    return frozenset(
        (
            Resource("backend", spec.name),
            service_resource(spec.service, spec.namespace, spec.port),
            *(Resource("bind", str(each)) for each in endpoints if each is not None),
            *(route.resource for route in spec.routes),
        )
    )


def _no_server_up(name: str, evidence: str) -> Problem:
    return Problem(
        message=f"no server is up after the change: {evidence}",
        remedy="fix pod_port, tls or the checks of the service; its next change is deployed",
        service=name,
    )


def _any_in(path: str, running: RunningDeclarations) -> bool:
    forms = [
        *running.services.values(),
        *running.fragments.values(),
        *running.frontends.values(),
    ]
    return any(str(Path(form.file).parent) == path for form in forms)


def _trust_problems(
    settings: Mapping[str, Any], document: Document, file: str
) -> Iterator[Problem]:
    """Report nonexistent users in `trust.users` and a state directory writable by others."""
    for number, name in enumerate(trusted_users.named_users(settings)):
        if user_id(name) is None:
            line, column = document.locate(("trust", "users", number)) or (None, None)
            yield Problem(
                message=f"there is no user {name} on this host",
                remedy="correct the name, or remove it",
                severity=Severity.WARNING,
                file=file,
                line=line,
                column=column,
                field=f"trust.users.{number}",
            )
    directory = trusted_users.state_directory(settings)
    verdict = trusted_users.state_verdict(directory)
    if verdict is not None and not verdict.is_trusted:
        line, column = document.locate(("state_directory",)) or (None, None)
        yield Problem(
            message=f"{directory} is not trusted, and holds earlier settings: {verdict.reason}",
            remedy=verdict.change,
            file=file,
            line=line,
            column=column,
            field="state_directory",
        )


def _violations(
    settings: Settings,
    doubtful: Mapping[str, ServiceSpec],
    fragments: Sequence[Fragment],
    running: Mapping[str, RawDeclaration],
) -> list[tuple[str, untrusted.Violation]]:
    """Return the violations of services from untrusted files, with the name of each service.

    If there are too many services, `running` ones are accepted first.
    """
    if not doubtful:
        return []
    order = sorted(doubtful, key=lambda name: (name not in running, name))
    found = [
        (name, violation)
        for name in order
        for violation in untrusted.violations(doubtful[name], settings.untrusted)
    ]
    found += untrusted.name_violations(doubtful.values(), fragments).items()
    found += [(name, untrusted.TOO_MANY) for name in order[untrusted.MAX_SERVICES :]]
    return found


def _violation_problem(
    raw: Raw, violation: untrusted.Violation, verdicts: Mapping[str, Verdict]
) -> Problem:
    message, remedy = violation.message, violation.remedy
    if violation.needs is untrusted.Needs.TRUST:
        verdict = _verdict(raw, verdicts)
        message = f"{message}, but {verdict.reason}"
        fixes = (verdict.remedy, "move the service to a trusted file", violation.remedy)
        remedy = ", or ".join(fix for fix in fixes if fix)
    return raw.problem(violation.field, message, remedy)


def _verdict(raw: Raw, verdicts: Mapping[str, Verdict]) -> Verdict:
    if raw.level is None:
        return verdicts.get(raw.file, UNTRUSTED_ORIGIN)
    return TRUSTED if raw.level is Level.TRUSTED else UNTRUSTED_ORIGIN
