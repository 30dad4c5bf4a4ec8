"""Convert the sections of a configuration to settings, services and fragments.

section                                  becomes
---------------------------------------  --------------------------------------------------
resolvers                                cluster.nameservers
global                                   haproxy.*, global_extra for safe lines
defaults                                 defaults_extra, or a service's extra_config
a page like fc-frontend's own statistics haproxy.stats
listen, or frontend with one backend,    a service
  with pods found by cluster DNS
frontend that chooses by host, path or   a frontend, and a service for each backend
  SNI between such backends
frontend that redirects to https         that of the frontend with TLS
all others                               a fragment, with all sections that it refers to
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fc_frontend.errors import Problem, Severity
from fc_frontend.migrate.fragments import References, fragment_name, fragment_text, together
from fc_frontend.migrate.frontends import (
    RoutedFrontend,
    has_tls,
    is_routed,
    only_redirects,
    routed,
)
from fc_frontend.migrate.proxies import (
    ConvertedSection,
    NotAService,
    Role,
    accepted,
    declared,
    hoisted,
    meaning_of,
    own_defaults,
)
from fc_frontend.migrate.sections import OldSection, read_sections
from fc_frontend.migrate.settings import (
    FoundSettings,
    stats_bind,
    take_global,
    take_resolvers,
    unset_notice,
)
from fc_frontend.plan.addresses import NotAnAddress, normal_bind, parse_bind
from fc_frontend.plan.model import Bind
from fc_frontend.syntax.sections import PROXIES
from fc_frontend.syntax.units import fragment_faults

_OWN_STATS = Bind("ip", "127.0.0.1", 8000)
_OWN_LISTEN = Bind("ip", "127.0.0.1", 9484)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedProxy:
    """The fields of a service or frontend, and its original section."""

    name: str
    fields: dict[str, Any]
    file: str
    line: int
    comment: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSection:
    """A section that is kept as HAProxy text, and the reason."""

    title: str
    """Its kind and name, such as `frontend web`."""
    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedFragment:
    """A fragment's text and its sections."""

    name: str
    text: str
    sections: tuple[KeptSection, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The result of an import.

    `settings` is the settings file as a mapping.  Errors in `problems` are about parts that were
    not imported, warnings about differences.
    """

    settings: dict[str, Any]
    services: tuple[ImportedProxy, ...] = ()
    frontends: tuple[ImportedProxy, ...] = ()
    fragments: tuple[ImportedFragment, ...] = ()
    problems: tuple[Problem, ...] = ()


def convert(
    texts: Iterable[tuple[str, str]],
    own: str,
    address_of: Callable[[str], str | None] = lambda _host: None,
) -> Imported:
    """Return the result for the configurations, given as (file, text).

    `own` is a configuration that fc-frontend renders without services: its lines need not be
    imported.  `address_of` returns the address of a nameserver given by host name, as
    HAProxy looks it up when it starts, or None.  Raises `Refused` if the texts are too large.
    """
    sections, problems = read_sections(texts)
    own_sections, _ = read_sections([("fc-frontend", own)])
    return _Conversion(sections, problems, own_sections, address_of).result()


@dataclass(slots=True)
class _Conversion:
    """An import in progress."""

    sections: list[OldSection]
    problems: list[Problem]
    own_sections: list[OldSection]
    address_of: Callable[[str], str | None]
    found: FoundSettings = field(default_factory=FoundSettings)
    reasons: dict[int, str] = field(default_factory=dict)
    references: References = field(default_factory=lambda: References([]))

    def result(self) -> Imported:
        self._take_global()
        self._leave_out()
        usable = [s for s in self.sections if not s.broken and s.kind not in ("global", "defaults")]
        self.references = References(usable)
        candidates = self._candidates(usable)
        routed = self._routed(usable)
        candidates += [member for each in routed for member in each.members]
        resolvers = self._choose_resolvers(usable, candidates)
        candidates = self._whole(self._settled(usable, candidates, resolvers), routed)
        taken = {id(part) for service in candidates for part in service.sections}
        rest = [s for s in usable if id(s) not in taken]
        rest = self._take_stats(rest)
        if resolvers is not None:
            take_resolvers(self.found, resolvers, self.address_of)
            kept = {id(section) for section in rest}
            is_needed = resolvers.name != "cluster" and any(
                id(user) in kept for user in self.references.users(resolvers)
            )
            rest = [s for s in rest if s is not resolvers or is_needed]
        services, frontends = self._declarations(candidates)
        fragments = self._fragments(rest, [service.name for service in candidates])
        self._own_listeners()
        self.problems += self.found.problems
        return Imported(
            settings=self._settings(candidates),
            services=tuple(services),
            frontends=tuple(frontends),
            fragments=tuple(fragments),
            problems=tuple(self.problems),
        )

    def _take_global(self) -> None:
        own_log = next(
            (
                meaning_of(line)
                for section in self.own_sections
                if section.kind == "global"
                for line in section.statements
                if line.keyword == "log"
            ),
            (),
        )
        usable = [s for s in self.sections if s.kind == "global" and not s.broken]
        take_global(self.found, usable, own_log)

    def _leave_out(self) -> None:
        for section in self.sections:
            if section.name.startswith("fc-") and section.kind != "defaults" and not section.broken:
                section.broken = True
                self.problems.append(
                    _left(section, "names beginning with fc- are fc-frontend's own", "rename it")
                )
            elif section.kind == "program" and not section.broken:
                section.broken = True
                self.problems.append(
                    _left(
                        section,
                        "it runs a program, and an import carries over nothing that runs code",
                        f"put it into services.d/{section.name}.cfg yourself if it is needed",
                    )
                )
            elif section.broken:
                self.problems.append(
                    _left(
                        section,
                        "something in it, or that it relies on, could not be read",
                        "fix its error and import again",
                    )
                )

    def _candidates(self, usable: Sequence[OldSection]) -> list[ConvertedSection]:
        """Return the sections that could be services, each checked on its own."""
        own = own_defaults(self.own_sections)
        backends = {s.name: s for s in usable if s.kind == "backend"}
        found: list[ConvertedSection] = []
        for section in usable:
            backend = None
            if section.kind == "frontend":
                try:
                    backend = self._only_backend(section, backends)
                except NotAService as exc:
                    self.reasons[id(section)] = str(exc)
                    continue
            elif section.kind != "listen":
                continue
            try:
                candidate = declared(section, backend, own)
            except NotAService as exc:
                self.reasons[id(section)] = str(exc)
                continue
            if accepted(candidate):
                found.append(candidate)
            else:
                self.reasons[id(section)] = "a declaration has no fields for what it sets"
        return found

    def _routed(self, usable: Sequence[OldSection]) -> list[RoutedFrontend]:
        """Return the frontends that choose between backends, each with these backends."""
        own = own_defaults(self.own_sections)
        backends = {s.name: s for s in usable if s.kind == "backend"}
        redirecting = [section for section in usable if only_redirects(section)]
        sections = [s for s in usable if is_routed(s) and not only_redirects(s)]
        with_tls = [section for section in sections if has_tls(section)]
        found: list[RoutedFrontend] = []
        for section in sections:
            # If several frontends have TLS, the target of a redirect is unknown.
            others = redirecting if with_tls == [section] else []
            try:
                made = routed(section, backends, others, own, self._crt_base())
            except NotAService as exc:
                self.reasons[id(section)] = str(exc)
                continue
            found.append(made)
            for unreached in made.unreached:
                self.reasons[id(unreached)] = f"no rule of {_title(section)} reaches it"
        return found

    def _crt_base(self) -> str:
        lines = [s.statements for s in self.sections if s.kind == "global" and not s.broken]
        found = [
            line.arguments[0]
            for each in lines
            for line in each
            if line.keyword == "crt-base" and line.arguments
        ]
        return found[-1] if found else ""

    def _whole(
        self, candidates: Sequence[ConvertedSection], routed: Sequence[RoutedFrontend]
    ) -> list[ConvertedSection]:
        """Return the candidates without frontends of which a part is missing."""
        kept = {id(candidate) for candidate in candidates}
        for each in routed:
            missing = [member for member in each.members if id(member) not in kept]
            if missing:
                kept -= {id(member) for member in each.members}
                first, frontend = missing[0], each.frontend
                if first is not frontend:
                    reason = self.reasons[id(first.section)]
                    self.reasons[id(frontend.section)] = f"of its backend {first.name}, {reason}"
        return [candidate for candidate in candidates if id(candidate) in kept]

    def _only_backend(self, section: OldSection, backends: dict[str, OldSection]) -> OldSection:
        """Return the backend of a frontend that has only this one.  Raises NotAService."""
        if any(line.keyword == "use_backend" for line in section.statements):
            raise NotAService("it chooses between backends (use_backend)")
        found = [line for line in section.statements if line.keyword == "default_backend"]
        if len(found) != 1 or len(found[0].arguments) != 1:
            raise NotAService("it has no default_backend of its own")
        name = found[0].arguments[0]
        if found[0].words[-1].variable or name not in backends:
            raise NotAService("its default_backend is not a backend in these files")
        backend = backends[name]
        others = [user for user in self.references.users(backend) if user is not section]
        others += self.references.possible_users(backend)
        if others:
            raise NotAService(f"backend {name} is also used by {_titles(others)}")
        return backend

    def _choose_resolvers(
        self, usable: Sequence[OldSection], candidates: Sequence[ConvertedSection]
    ) -> OldSection | None:
        """Return the `resolvers` to import: `cluster`, else the one that most services use."""
        known = {s.name: s for s in usable if s.kind == "resolvers"}
        if "cluster" in known or not known:
            return known.get("cluster")
        uses = Counter(c.resolvers for c in candidates if c.resolvers in known)
        return known[uses.most_common(1)[0][0]] if uses else None

    def _settled(
        self,
        usable: Sequence[OldSection],
        candidates: list[ConvertedSection],
        resolvers: OldSection | None,
    ) -> list[ConvertedSection]:
        """Return the candidates that are consistent, and to which no other section refers."""
        name = resolvers.name if resolvers else ""
        domains = Counter(c.domain for c in candidates if c.domain)
        domain = domains.most_common(1)[0][0] if domains else "cluster.local"
        if domain != "cluster.local":
            self.found.cluster["domain"] = domain
        nodes = Counter(tuple(sorted(c.nodes.items())) for c in candidates if c.nodes)
        node_set = dict(nodes.most_common(1)[0][0]) if nodes else {}
        kept: list[ConvertedSection] = []
        for candidate in candidates:
            reason = ""
            if candidate.role is Role.FRONTEND:
                pass
            elif candidate.nodes:
                reason = "" if candidate.nodes == node_set else "its servers are not the nodes"
            elif candidate.resolvers != name:
                reason = f"it is resolved by `resolvers {candidate.resolvers}`"
            elif candidate.domain != domain:
                reason = f"its names are below {candidate.domain}, not {domain}"
            if reason:
                self.reasons[id(candidate.section)] = reason
            else:
                kept.append(candidate)
        return self._unrelated(usable, kept, resolvers)

    def _unrelated(
        self,
        usable: Sequence[OldSection],
        candidates: list[ConvertedSection],
        resolvers: OldSection | None,
    ) -> list[ConvertedSection]:
        proxies: dict[str, list[OldSection]] = {}
        for section in usable:
            if section.kind in PROXIES:
                proxies.setdefault(section.name, []).append(section)
        kept: list[ConvertedSection] = []
        for candidate in candidates:
            parts = candidate.group or candidate.sections

            def is_outside(section: OldSection, parts: tuple[OldSection, ...] = parts) -> bool:
                return section is not resolvers and not any(section is part for part in parts)

            named = [s for part in parts for s in self.references.named(part) if is_outside(s)]
            users = [s for part in parts for s in self.references.users(part) if is_outside(s)]
            users += [s for part in parts for s in self.references.possible_users(part)]
            same = [s for s in proxies.get(candidate.name, ()) if is_outside(s)]
            if named:
                reason = f"it refers to {_titles(named)}"
            elif users:
                reason = f"{_titles(users)} {'refers' if len(users) == 1 else 'refer'} to it"
            elif same:
                reason = f"{_titles(same)} has the same name"
            else:
                kept.append(candidate)
                continue
            self.reasons[id(candidate.section)] = reason
        return kept

    def _take_stats(self, rest: list[OldSection]) -> list[OldSection]:
        for section in rest:
            if section.kind not in ("listen", "frontend") or section.conditional:
                continue
            bind = stats_bind(section)
            if bind is None:
                continue
            if bind != str(_OWN_STATS):
                self.found.haproxy["stats"] = bind
            else:
                self.found.haproxy.setdefault("stats", str(_OWN_STATS))
            self.found.problems.append(
                Problem(
                    f"{section.kind} {section.name} becomes fc-frontend's own page, "
                    "fc-stats, which serves Prometheus metrics as well",
                    remedy="nothing to do",
                    severity=Severity.WARNING,
                    file=section.file,
                    line=section.header.number,
                )
            )
            return [s for s in rest if s is not section]
        return rest

    def _declarations(
        self, candidates: list[ConvertedSection]
    ) -> tuple[list[ImportedProxy], list[ImportedProxy]]:
        """Return the services and the frontends."""
        shared = hoisted(candidates)
        self.found.haproxy["defaults_extra"] = [line.source for line in shared]
        logs = [_logs(c, self.found.has_log) for c in candidates]
        if candidates and not any(logs) and not self.found.has_log:
            # Nothing is logged: no service has a log target, and neither has `global`.
            self.found.haproxy["log"] = None
        services: list[ImportedProxy] = []
        frontends: list[ImportedProxy] = []
        for candidate, said in zip(candidates, logs, strict=True):
            extra = candidate.own_lines
            if "log" not in self.found.haproxy and said != [("global",)]:
                kept = said[1:] if said[:1] == [("global",)] else said
                extra += [] if kept != said else ["no log"]
                extra += [f"log {' '.join(words)}" for words in kept]
            extra += candidate.extra
            fields = dict(candidate.fields)
            if extra:
                fields["extra_config"] = extra
            self.problems += candidate.problems
            (frontends if candidate.role is Role.FRONTEND else services).append(
                ImportedProxy(
                    name=candidate.name,
                    fields=fields,
                    file=candidate.section.file,
                    line=candidate.section.header.number,
                    comment=_comment(candidate),
                )
            )
        return services, frontends

    def _fragments(self, rest: list[OldSection], taken: list[str]) -> list[ImportedFragment]:
        fragments: list[ImportedFragment] = []
        used = list(taken)
        for group in together(rest, self.references):
            name = fragment_name(group, used)
            used.append(name)
            text = fragment_text(name, group)
            faults = tuple(fragment_faults(text))
            if faults:
                self.problems += [
                    _left(group[0], f"not usable as a fragment: {fault.message}", fault.remedy)
                    for fault in faults
                ]
                continue
            sections = tuple(
                KeptSection(
                    title=_title(section),
                    file=section.file,
                    line=section.header.number,
                    reason=self._reason(section),
                )
                for section in group
            )
            fragments.append(ImportedFragment(name=name, text=text, sections=sections))
        return fragments

    def _reason(self, section: OldSection) -> str:
        """Return why a section is not a declaration."""
        reason = self.reasons.get(id(section))
        if reason is not None:
            return reason
        users = self.references.users(section)
        if section.kind != "backend":
            return f"it is used by {_titles(users)}" if users else "only HAProxy text can say it"
        if not users:
            return "no frontend uses it"
        return f"it is a backend of {_titles(users)}"

    def _own_listeners(self) -> None:
        """Keep fc-frontend's own listeners from using an address that was in use."""
        binds = list(_binds(self.sections))
        if "stats" not in self.found.haproxy:
            for section, bind in binds:
                if bind.overlaps(_OWN_STATS):
                    self.found.haproxy["stats"] = None
                    self.found.problems.append(
                        Problem(
                            f"{bind} is taken by {section.kind} {section.name}, so "
                            "fc-frontend's own page is off (haproxy.stats: null)",
                            remedy="set haproxy.stats to a free address for the page and "
                            "Prometheus metrics",
                            severity=Severity.WARNING,
                            file=section.file,
                            line=section.header.number,
                        )
                    )
                    break
        elif self.found.haproxy["stats"] == str(_OWN_STATS):
            del self.found.haproxy["stats"]
        for section, bind in binds:
            if bind.overlaps(_OWN_LISTEN):
                self.found.problems.append(
                    Problem(
                        f"{bind} of {section.kind} {section.name} is where fc-frontend's "
                        "own metrics and status are served",
                        remedy="set `listen` in config.yaml to another address",
                        file=section.file,
                        line=section.header.number,
                    )
                )

    def _settings(self, candidates: Sequence[ConvertedSection]) -> dict[str, Any]:
        found = self.found
        cluster = {**found.cluster}
        self.problems.append(_UNKNOWN_NETWORKS)
        nodes = next((c.nodes for c in candidates if c.nodes), {})
        if nodes:
            cluster["nodes"] = nodes
        haproxy = {key: value for key, value in found.haproxy.items() if value != []}
        if haproxy.get("runtime_socket") == "/run/haproxy/admin.sock":
            del haproxy["runtime_socket"]
        if found.global_extra:
            haproxy["global_extra"] = found.global_extra
        settings: dict[str, Any] = {"cluster": cluster}
        if haproxy:
            settings["haproxy"] = haproxy
        if found.intervals:
            settings["intervals"] = found.intervals
        unset = [(c.mode, c.unset) for c in candidates]
        found_notice = unset_notice(unset, has_fragments=bool(self.reasons))
        self.problems += found_notice
        return settings


_UNKNOWN_NETWORKS = Problem(
    "haproxy.cfg does not contain the cluster's networks: addresses outside of 10.1.0.0/16 (pods) "
    "and 10.0.0.0/24 (Services) get no traffic unless other networks are set",
    "set cluster.pod_network and cluster.service_network; `kubectl get nodes -o "
    "jsonpath='{.items[*].spec.podCIDR}'` shows the first, `fc-frontend resolve` what is left out",
    severity=Severity.WARNING,
    field="cluster.pod_network",
)


def _logs(service: ConvertedSection, has_global: bool) -> list[tuple[str, ...]]:
    """Return the log targets of a service; `global` counts only if it has a target."""
    return [words for words in service.logs if has_global or words != ("global",)]


def _title(section: OldSection) -> str:
    return f"{section.kind} {section.name}".strip()


def _titles(sections: Iterable[OldSection]) -> str:
    return ", ".join(dict.fromkeys(_title(section) for section in sections))


def _binds(sections: Iterable[OldSection]) -> Iterable[tuple[OldSection, Bind]]:
    for section in sections:
        if section.broken or section.kind not in PROXIES:
            continue
        for line in section.statements:
            if line.keyword != "bind" or not line.arguments:
                continue
            for text in line.arguments[0].split(","):
                try:
                    yield section, parse_bind(normal_bind(text))
                except NotAnAddress:
                    continue


def _comment(service: ConvertedSection) -> tuple[str, ...]:
    """Return the comments in and above a service's sections."""
    return tuple(
        text
        for part in service.sections
        for text in (*part.comment, *(line.source for line in part.lines if not line.words))
        if text
    )


def _left(section: OldSection, reason: str, remedy: str) -> Problem:
    return Problem(
        f"{_title(section)} is not carried over: {reason}",
        remedy,
        file=section.file,
        line=section.header.number,
    )
