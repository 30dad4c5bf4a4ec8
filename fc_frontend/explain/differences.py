"""Compare two configurations piece by piece, and determine whether HAProxy must reload.

Pure.  Texts are compared section by section, which works with any templates.  If the plan of the
installed text is known, the differing fields are named as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from fc_frontend.plan.model import Plan, ServicePlan, ServiceSpec
from fc_frontend.plan.reasons import Reason, ReloadCause, reasons
from fc_frontend.render.config import BLANK_DESCRIPTION, Config, sections_in
from fc_frontend.render.file_marks import FILE_MARK, changed_files
from fc_frontend.syntax.lines import LineKind, read_line, read_lines
from fc_frontend.syntax.routes import without_routes

_SECRETS = frozenset(("password", "insecure-password", "dynamic-cookie-key"))
"""Keywords that are followed by a secret."""
Key = tuple[str, str]
"""The kind of a section, such as `service`, `fragment` or `settings`, and its name."""


class Effect(StrEnum):
    """What is needed to apply a change to HAProxy."""

    RELOAD = "reload"
    RUNTIME = "runtime only"
    START = "at its start"
    """HAProxy does not run, and applies the change when it is started."""
    FILE = "file only"
    """HAProxy already has the change."""
    DAEMON = "daemon only"
    """The change concerns fc-frontend itself."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field that differs.  A value is empty if the field is not set."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name}: {self.before or '(none)'} → {self.after or '(none)'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One piece that differs; `how` is added, removed or changed.

    `lines` are the lines of haproxy.cfg that are removed (`-`) or added (`+`).  `binds` are the
    binds that are opened (`+`) or closed (`-`).
    """

    what: str
    name: str
    how: str
    effect: Effect
    because: str = ""
    fields: tuple[FieldChange, ...] = ()
    binds: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the change in the format of all JSON output."""
        return {
            "what": self.what,
            "name": self.name,
            "how": self.how,
            "effect": self.effect.value,
            "because": self.because,
            "fields": [
                {"name": field.name, "before": field.before, "after": field.after}
                for field in self.fields
            ],
            "opened": [bind[1:] for bind in self.binds if bind.startswith("+")],
            "closed": [bind[1:] for bind in self.binds if bind.startswith("-")],
            "lines": list(self.lines),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """The pods that HAProxy has for a service, and the number of free slots."""

    addresses: frozenset[str]
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The installed and the running configuration.

    `text` is haproxy.cfg, or None if it does not exist.  `plan` is the plan it was rendered from,
    or None if that is not certain.  `is_running` is set if HAProxy answers: then `running_hash` is
    the hash of its configuration, None if that is not fc-frontend's own, and `pods` lists its pods
    by service.
    """

    text: str | None
    plan: Plan | None = None
    is_running: bool = False
    running_hash: str | None = None
    pods: Mapping[str, Pods] | None = None


def differences(installed: Installed, wanted: Plan, config: Config) -> tuple[Difference, ...]:
    """Return what `config`, rendered from `wanted`, would change in the installed configuration."""
    effect = Effect.RELOAD
    if not installed.is_running:
        effect = Effect.START
    elif installed.running_hash == config.hash:
        effect = Effect.FILE
    services = {service.spec.name for service in wanted.services}
    services |= {s.spec.name for s in installed.plan.services} if installed.plan else set()
    before = sections(installed.text or "", services)
    after = sections(config.text, services)
    why = _reasons(installed.plan, wanted)
    found = [
        _change(key, before.get(key), after.get(key), installed.plan, wanted, effect, why)
        for key in sorted(before.keys() | after.keys(), key=_order)
        if before.get(key) != after.get(key)
    ]
    found = [*_settings(installed.plan, wanted, found, effect), *found]
    if not found and installed.text != config.text:
        found = [
            Difference(
                what="file",
                name="haproxy.cfg",
                how="changed",
                effect=effect,
                because="comments, the order of sections or blank lines changed",
            )
        ]
    elif not found and installed.is_running and installed.running_hash != config.hash:
        has = installed.running_hash or "a foreign configuration"
        found = [
            Difference(
                what="haproxy",
                name="running configuration",
                how="changed",
                effect=effect,
                because=f"HAProxy runs {has}, not the installed file",
            )
        ]
    return (*found, *_pods(installed, wanted, {change.name for change in found}))


def sections(text: str, services: Iterable[str] = ()) -> dict[Key, tuple[str, ...]]:
    """Return the non-blank lines of a configuration, by the unit they belong to.

    Lines outside any service or fragment are grouped by HAProxy's sections.  A section named after
    one of `services` also counts as a service.  A comment directly above a section belongs to it.
    """
    head, *units = sections_in(text)
    found: dict[Key, tuple[str, ...]] = _head_sections(head.text, set(services))
    for section in units:
        lines = (line.source.strip() for line in read_lines(section.text))
        key = (section.unit.kind.value, section.unit.name)
        found[key] = (*found.get(key, ()), *filter(None, lines))
    return found


def _head_sections(text: str, services: set[str]) -> dict[Key, tuple[str, ...]]:
    found: dict[Key, list[str]] = {}
    key: Key = ("settings", "")
    comments: list[str] = []
    for line in read_lines(text):
        source = line.source.strip()
        if line.kind is LineKind.SECTION:
            name = " ".join((line.keyword, *line.arguments[:1]))
            is_service = line.arguments and line.arguments[0] in services
            key = ("service", line.arguments[0]) if is_service else ("settings", name)
        elif line.kind is LineKind.BLANK:
            comments += [source] if source else []
            continue
        if source != f"description {BLANK_DESCRIPTION}":
            found.setdefault(key, []).extend([*comments, source])
        comments = []
    if comments:
        found.setdefault(key, []).extend(comments)
    return {key: tuple(lines) for key, lines in found.items()}


def _order(key: Key) -> tuple[int, str]:
    return ("settings", "frontend", "service", "fragment").index(key[0]), key[1]


def _reasons(before: Plan | None, after: Plan) -> dict[str, Reason]:
    return {reason.subject: reason for reason in reasons(before, after)} if before else {}


def _change(
    key: Key,
    before: tuple[str, ...] | None,
    after: tuple[str, ...] | None,
    old: Plan | None,
    new: Plan,
    effect: Effect,
    why: Mapping[str, Reason],
) -> Difference:
    what, name = key
    how = "added" if before is None else "removed" if after is None else "changed"
    lines = _lines(before or (), after or ())
    differing: tuple[FieldChange, ...] = ()
    if what == "service":
        differing = (*_slots(before, after), *_service_fields(name, old, new))
        reason = why.get(name) or Reason(ReloadCause(f"service-{how}"), name)
        if how == "changed" and name not in why and old is not None:
            reason = Reason(ReloadCause.TEMPLATES, name)
    elif what in ("fragment", "frontend"):
        reason = Reason(ReloadCause(what), name, how)
    else:
        is_settings = old is None or old.settings != new.settings
        reason = Reason(ReloadCause.SETTINGS if is_settings else ReloadCause.TEMPLATES, name)
    changed = changed_files("\n".join(before or ()), "\n".join(after or ()))
    if changed and all(FILE_MARK in line for line in lines):
        reason = Reason(ReloadCause.FILE_CHANGED, ", ".join(changed))
    if effect is not Effect.START and lines and not any(without_routes(line[1:]) for line in lines):
        effect = Effect.RUNTIME
    return Difference(
        what=what,
        name=name,
        how=how,
        effect=effect,
        because=str(reason),
        fields=tuple({change.name: change for change in differing}.values()),
        binds=_binds(before or (), after or ()),
        lines=tuple(line[0] + without_secrets(line[1:]) for line in lines),
    )


def _lines(before: tuple[str, ...], after: tuple[str, ...]) -> list[str]:
    gone, come = Counter(before), Counter(after)
    return [
        *(f"-{line}" for line in (gone - come).elements()),
        *(f"+{line}" for line in (come - gone).elements()),
    ]


def without_secrets(source: str) -> str:
    """Return a line of HAProxy's configuration with secrets, such as passwords, masked."""
    words = read_line(source).words
    for before, word in pairwise(words):
        if before.text in _SECRETS:
            source = source.replace(word.source, "***")
    return source


def _binds(before: tuple[str, ...], after: tuple[str, ...]) -> tuple[str, ...]:
    old, new = dict.fromkeys(_addresses(before)), dict.fromkeys(_addresses(after))
    return (
        *(f"-{bind}" for bind in old if bind not in new),
        *(f"+{bind}" for bind in new if bind not in old),
    )


def _addresses(lines: tuple[str, ...]) -> Iterator[str]:
    """Yield the addresses of the `bind` lines among `lines`."""
    for line in map(read_line, lines):
        if line.keyword == "bind" and line.arguments:
            yield line.arguments[0]


def _slots(
    before: tuple[str, ...] | None, after: tuple[str, ...] | None
) -> tuple[FieldChange, ...]:
    old, new = _slot_count(before or ()), _slot_count(after or ())
    return (FieldChange("slots", old, new),) if old != new and before and after else ()


def _slot_count(lines: tuple[str, ...]) -> str:
    """Return the number of servers in the first `server-template` among `lines`."""
    for line in map(read_line, lines):
        if line.keyword == "server-template" and len(line.arguments) > 1:
            return line.arguments[1]
    return ""


def _service_fields(name: str, old: Plan | None, new: Plan) -> Iterator[FieldChange]:
    before = _service(old, name)
    after = _service(new, name)
    if before is None or after is None:
        return
    for field in fields(ServiceSpec):
        if field.name in ("name", "origin", "slots"):
            continue
        one, other = getattr(before.spec, field.name), getattr(after.spec, field.name)
        if one != other:
            # Here, pod_port and similar fields are one field: a target and a port.
            label = after.spec.target.value if field.name == "port" else field.name
            yield FieldChange(label, _shown(one), _shown(other))
    if before.kind is not after.kind:
        yield FieldChange("servers by", before.kind.value, after.kind.value)
    if before.by_runtime != after.by_runtime:
        by = ("HAProxy's resolver", "the runtime API")
        yield FieldChange("addresses by", by[before.by_runtime], by[after.by_runtime])


def _service(plan: Plan | None, name: str) -> ServicePlan | None:
    if plan is None:
        return None
    return next((service for service in plan.services if service.spec.name == name), None)


def _settings(
    old: Plan | None, new: Plan, found: list[Difference], effect: Effect
) -> Iterator[Difference]:
    """Yield the settings whose values differ, if the old ones are known."""
    if old is None or old.settings == new.settings:
        return
    is_in_text = any(change.what == "settings" for change in found)
    differing = tuple(_value_changes(old.settings, new.settings, ""))
    if differing:
        yield Difference(
            what="settings",
            name="",
            how="changed",
            effect=effect if is_in_text else Effect.DAEMON,
            because=str(Reason(ReloadCause.SETTINGS)) if is_in_text else "",
            fields=differing,
        )


def _value_changes(old: Any, new: Any, prefix: str) -> Iterator[FieldChange]:
    for field in fields(old):
        one, other = getattr(old, field.name), getattr(new, field.name)
        name = f"{prefix}{field.name}"
        if one == other:
            continue
        if is_dataclass(one) and type(one) is type(other) and field.name != "stats":
            yield from _value_changes(one, other, f"{name}.")
        else:
            yield FieldChange(name, _shown(one), _shown(other))


def _shown(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, tuple):
        return ", ".join(without_secrets(str(item)) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if is_dataclass(value) and type(value).__str__ is object.__str__:
        return ", ".join(
            f"{field.name} {_shown(getattr(value, field.name))}".strip() for field in fields(value)
        )
    return str(value)


def _pods(installed: Installed, wanted: Plan, changed: set[str]) -> Iterator[Difference]:
    """Yield the pods added or removed without a reload, in otherwise unchanged services."""
    for service in wanted.services:
        name = service.spec.name
        have = (installed.pods or {}).get(name)
        if have is None or service.query is None or name in changed:
            continue
        named = {endpoint.address for endpoint in service.endpoints}
        went = sorted(have.addresses - named)
        came = sorted(named - have.addresses)[: have.free + len(went)]
        if came or went:
            by = "the daemon" if service.by_runtime else "HAProxy's own resolver"
            yield Difference(
                what="service",
                name=name,
                how="changed",
                effect=Effect.RUNTIME,
                because=f"{by} adds and removes pods",
                fields=(FieldChange("pods", ", ".join(went), ", ".join(came)),),
            )
