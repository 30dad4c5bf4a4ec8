"""The base of changes: the running configuration or, without one, that of HAProxy's next start."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fc_frontend.config.declare import (
    Declaration,
    declare,
    running_fragments,
    running_frontends,
    running_settings,
    running_specs,
)
from fc_frontend.config.fingerprint import digest
from fc_frontend.config.loader import Sources, state_directory
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.config.templates import templates
from fc_frontend.config.trust import Level
from fc_frontend.errors import Problem, Refused, Unavailable
from fc_frontend.haproxy import history, install, kept_files, runtime
from fc_frontend.haproxy.contents import Contents
from fc_frontend.haproxy.server_state import servers_in
from fc_frontend.model.units import ENVIRONMENT, SETTINGS, TEMPLATES, Section, UnitId, UnitKind
from fc_frontend.pipeline.site_files import SiteFileReader
from fc_frontend.plan.model import Kind, Plan, Resolution, ServicePlan, Settings
from fc_frontend.plan.planner import plan
from fc_frontend.render.config import Config, config_hash, sections_in
from fc_frontend.render.file_marks import digests_in, without_digests
from fc_frontend.render.render import render_sections
from fc_frontend.stored import stored_answers, stored_pending, stored_running
from fc_frontend.syntax.binds import read_listeners
from fc_frontend.syntax.files import base_lines
from fc_frontend.syntax.routes import routes_in


class BaseOrigin(StrEnum):
    """The origin of the base of changes."""

    RUNNING = "running"
    """HAProxy's worker reports it."""
    INSTALLED = "installed"
    """HAProxy does not answer: the base is the installed file, or the last deployment."""
    NONE = "none"
    """fc-frontend has not deployed anything yet."""
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Base:
    """The configuration that changes are compared with: the running one, or that of the next start.

    `config` is its text with its sections, None if there is none.  `declarations` are those it was
    made from, as far as they are known.
    """

    origin: BaseOrigin = BaseOrigin.NONE
    config: Config | None = None
    declarations: RunningDeclarations = field(default_factory=RunningDeclarations)
    sections: Mapping[UnitId, Section] = field(default_factory=dict)
    """The sections by unit, with copies in place of files that have changed since."""
    is_substituted: bool = False
    is_reverted: bool = False
    """True if `sections` has an earlier form of services that lost all their servers, or lacks
    some of the running sections.
    """

    @property
    def hash(self) -> str | None:
        """The digest of the text."""
        return self.config.hash if self.config else None

    def without(self, units: AbstractSet[UnitId]) -> Base:
        """Return the base in which `units` do not run, so that they need not be kept."""
        left = {unit: each for unit, each in self.sections.items() if unit not in units}
        return replace(self, sections=left, is_reverted=self.is_reverted or bool(units))


def find_base(
    settings: Settings,
    declarations: RunningDeclarations,
    pending: RunningDeclarations | None,
    running: str | None,
    contents: Contents | None = None,
) -> Base:
    """Return the base of changes, while HAProxy's worker reports the digest `running`.

    Without a worker it is haproxy.cfg, if fc-frontend wrote it and it is unedited.  Otherwise it
    is the last deployment, from the history.  `pending` is the deployment during which fc-frontend
    was killed.  `contents` has the former digests of named files, if they are known.
    """
    directory = settings.state_directory
    origin = BaseOrigin.RUNNING if running else BaseOrigin.INSTALLED
    unknown = BaseOrigin.NONE
    try:
        data = install.read(settings.haproxy.config_file)
    except Unavailable:
        data, unknown = None, BaseOrigin.UNREADABLE
    installed = data.decode("utf-8", "surrogateescape") if data else ""
    digest = config_hash(installed)
    text: str | None = installed
    if digest is None or (running is not None and digest != running):
        digest = running or declarations.hash
        text = _from_history(directory, digest)
        if text is None and running is not None and declarations.hash != running:
            # fc-frontend did not write the text that the worker runs.
            digest = declarations.hash
            text = _from_history(directory, digest)
    if text is None or digest is None:
        return Base(unknown, declarations=declarations)
    if pending is not None and pending.hash == digest:
        declarations = pending
    config = _with_declarations(Config(text, digest, sections_in(text)), declarations)
    by_unit = {section.unit: section for section in config.sections}
    by_unit[TEMPLATES] = templates_section(declarations.templates)
    sections = _with_copies(by_unit, directory, declarations.files, contents or Contents())
    return Base(origin, config, declarations, sections, is_substituted=sections != by_unit)


def _with_copies(
    sections: Mapping[UnitId, Section],
    state_directory: str,
    kept: Mapping[str, str],
    contents: Contents,
) -> Mapping[UnitId, Section]:
    """Return `sections` with copies in place of the files that have changed since."""
    bases = base_lines(sections[SETTINGS].text) if SETTINGS in sections else ""
    found = dict(sections)
    for unit, section in sections.items():
        digests = digests_in(section.text)
        if not digests:
            continue
        own = "" if unit == SETTINGS else bases
        text = without_digests(section.text)
        if digests_in(contents.marked(text, own, section.text)) != digests:
            copied = kept_files.with_copies(text, state_directory, kept, own)
            found[unit] = replace(section, text=contents.marked(copied, own, section.text))
    return found


def stored_base(sources: Sources) -> Base:
    """Return the base of changes, for commands."""
    directory = state_directory(sources)
    declarations, pending = stored_running(directory), stored_pending(directory)
    settings = settings_now(sources, declarations)
    running = None
    with contextlib.suppress(Unavailable):
        running = runtime.running_hash(settings.haproxy.runtime_socket)
    return find_base(settings, declarations, pending, running)


def with_ways_back(base: Base, settings_file: str, answers: Resolution) -> Base:
    """Return `base` with an earlier form of the services that lost all their servers as they run.

    Withheld changes then fall back to that form.
    """
    running = base.declarations
    back = {
        name: form
        for name, form in running.ways_back().items()
        if UnitId(UnitKind.SERVICE, name) in base.sections
    }
    settings = running_settings(running, settings_file) if back else None
    if settings is None:
        return base
    former = replace(running, services=back)
    specs = running_specs(former)
    planned = plan(settings, specs.values(), (), answers)
    refused: list[Problem] = []
    sections = dict(base.sections)
    site_files, _ = SiteFileReader().of(specs.values())
    texts = templates(running.templates)
    for section in render_sections(planned, texts, refused, files=site_files):
        if section.unit.kind is UnitKind.SERVICE:
            form = back[section.unit.name]
            sections[section.unit] = replace(
                section,
                declaration=digest(form.value),
                file=form.file,
                is_trusted=form.level is Level.TRUSTED,
            )
    declarations = replace(running, services={**running.services, **back})
    return replace(base, declarations=declarations, sections=sections, is_reverted=True)


def _from_history(directory: str, digest: str | None) -> str | None:
    if digest is None:
        return None
    for entry in reversed(history.entries(directory)):
        if entry.hash == digest and entry.has_text:
            with contextlib.suppress(Unavailable, Refused):
                return history.text(directory, entry)
    return None


def _with_declarations(config: Config, declarations: RunningDeclarations) -> Config:
    """Return `config` whose sections refer to their declarations, as far as these are known."""
    sections = []
    for section in config.sections:
        unit, raw = section.unit, None
        if unit == SETTINGS:
            known = digest(declarations.settings) if declarations.settings is not None else ""
            sections.append(replace(section, declaration=known))
            continue
        if unit.kind is UnitKind.SERVICE:
            raw = declarations.services.get(unit.name)
        elif unit.kind is UnitKind.FRAGMENT:
            raw = declarations.fragments.get(unit.name)
        elif unit.kind is UnitKind.FRONTEND:
            raw = declarations.frontends.get(unit.name)
        if raw is None:
            sections.append(section)
        else:
            is_trusted = raw.level is Level.TRUSTED
            sections.append(
                replace(
                    section,
                    declaration=digest(raw.value),
                    file=raw.file,
                    is_trusted=is_trusted,
                )
            )
    return replace(config, sections=tuple(sections))


def templates_section(texts: Mapping[str, str]) -> Section:
    text = json.dumps(dict(sorted(texts.items())))
    return Section(TEMPLATES, text, declaration=text)


def is_same_cluster(base: Base, settings: Settings, settings_file: str) -> bool:
    """Return whether HAProxy has pods of the cluster in `settings`, as far as is known."""
    running = running_settings(base.declarations, settings_file)
    return running is None or running.cluster == settings.cluster


def settings_now(sources: Sources, declarations: RunningDeclarations) -> Settings:
    """Return the declared settings, or the running ones if the declared ones have errors."""
    declaration = declare(sources, declarations)
    if SETTINGS in declaration.faults:
        former = running_settings(declarations, sources.settings_file)
        return former or declaration.settings
    return declaration.settings


def declared_now(sources: Sources, base: Base) -> Declaration:
    """Return the declaration, with the running settings if the declared ones have errors."""
    declaration = declare(sources, base.declarations)
    if SETTINGS in declaration.faults:
        declaration = declare(sources, base.declarations, ENVIRONMENT)
    return declaration


def running_plan(base: Base, settings_file: str) -> Plan | None:
    """Return the plan of the running configuration; None if its declarations are unknown."""
    settings = running_settings(base.declarations, settings_file)
    if settings is None or base.config is None:
        return None
    specs = running_specs(base.declarations)
    planned = plan(settings, specs.values(), (), stored_answers(settings, specs.values()))
    texts = {section.unit: section.text for section in base.config.sections}
    services = [
        as_in_text(each, texts[unit])
        for each in planned.services
        if (unit := UnitId(UnitKind.SERVICE, each.spec.name)) in texts
    ]
    fragments = running_fragments(base.declarations)
    frontends = running_frontends(base.declarations)
    return replace(
        planned,
        services=tuple(services),
        frontends=tuple(frontends[name] for name in sorted(frontends)),
        fragments=tuple(fragments[name] for name in sorted(fragments)),
    )


def as_in_text(planned: ServicePlan, text: str) -> ServicePlan:
    """Return `planned` with the servers of the section `text`, which may be older."""
    made = servers_in(text).get(planned.spec.name, ())
    if not made or planned.query is None:
        return planned
    first = made[0]
    if first.names == ("service",):
        return replace(planned, kind=Kind.SERVICE, query=first.target, slots=1, by_runtime=False)
    kind = planned.kind if planned.has_pods else Kind.HEADLESS
    if kind is Kind.API and not first.is_disabled:
        kind = Kind.HEADLESS
    kind = kind.with_ports_found(first.port is None)
    return replace(
        planned,
        kind=kind,
        query=first.target,
        slots=len(first.names),
        by_runtime=first.is_disabled,
        standby=planned.standby if kind is Kind.API else None,
    )


def served_binds(base: Base) -> dict[str, tuple[str, ...]]:
    """Return the binds, or the routes, of each service as HAProxy runs it, by name."""
    sections = base.config.sections if base.config else ()
    return {
        section.unit.name: tuple(
            str(found.endpoint) for _, found in read_listeners(section.text).listeners
        )
        + tuple(map(str, routes_in(section.text)))
        for section in sections
        if section.unit.kind is UnitKind.SERVICE
    }
