"""Explain how a configuration differs from the previous one: each reload has a reason, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from fc_frontend.plan.model import Plan, ServicePlan


class ReloadCause(StrEnum):
    """The kind of a change; the values are labels of a metric."""

    SERVICE_ADDED = "service-added"
    SERVICE_REMOVED = "service-removed"
    SERVICE_CHANGED = "service-changed"
    SLOTS = "slots"
    DISCOVERY = "discovery"
    FRAGMENT = "fragment"
    FRONTEND = "frontend"
    SETTINGS = "settings"
    TEMPLATES = "templates"
    FILE_CHANGED = "file-changed"
    """The content of a file that the configuration refers to, such as a certificate, changed."""
    RESUMED = "resumed"
    """A hold by an operator has ended: normal deployments resume."""
    HAPROXY = "haproxy"
    """HAProxy does not run the configuration, which has not changed."""
    START = "start"
    """The previous configuration is unknown."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A cause, and the service or detail that it refers to."""

    cause: ReloadCause
    subject: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.cause, self.subject, self.detail) if part)


def reasons(
    before: Plan | None, after: Plan, files: Iterable[str] = (), *, is_same_text: bool = False
) -> tuple[Reason, ...]:
    """Return the reasons why `after` replaces `before`.

    `files` are those whose content has changed.  Without any other explanation, the reason is
    `templates`, or `haproxy` if `is_same_text`: then HAProxy does not run the expected
    configuration.
    """
    if before is None:
        return (Reason(ReloadCause.START),)
    found: list[Reason] = []
    old = {service.spec.name: service for service in before.services}
    new = {service.spec.name: service for service in after.services}
    found += [Reason(ReloadCause.SERVICE_ADDED, name) for name in new if name not in old]
    found += [Reason(ReloadCause.SERVICE_REMOVED, name) for name in old if name not in new]
    for name, service in new.items():
        # Most are the same object: planning caches them.
        if (former := old.get(name)) is not None and former is not service:
            found += _service_reasons(former, service)
    fragments = {fragment.name: fragment for fragment in before.fragments}
    for fragment in after.fragments:
        if fragments.pop(fragment.name, None) != fragment:
            found.append(Reason(ReloadCause.FRAGMENT, fragment.name))
    found += [Reason(ReloadCause.FRAGMENT, name, "removed") for name in fragments]
    frontends = {frontend.name: frontend for frontend in before.frontends}
    for frontend in after.frontends:
        if frontends.pop(frontend.name, None) != frontend:
            found.append(Reason(ReloadCause.FRONTEND, frontend.name))
    found += [Reason(ReloadCause.FRONTEND, name, "removed") for name in frontends]
    if before.settings != after.settings:
        found.append(Reason(ReloadCause.SETTINGS))
    found += [Reason(ReloadCause.FILE_CHANGED, path) for path in files]
    unexplained = ReloadCause.HAPROXY if is_same_text else ReloadCause.TEMPLATES
    return tuple(found) or (Reason(unexplained),)


def _service_reasons(old: ServicePlan, new: ServicePlan) -> list[Reason]:
    name = new.spec.name
    if old.spec is not new.spec and replace(old.spec, slots=None) != replace(new.spec, slots=None):
        return [Reason(ReloadCause.SERVICE_CHANGED, name)]
    if old.kind is not new.kind or old.query != new.query or old.prefer != new.prefer:
        return [Reason(ReloadCause.DISCOVERY, name, f"{old.kind}→{new.kind}")]
    if old.by_runtime != new.by_runtime:
        detail = "by the runtime API" if new.by_runtime else "by HAProxy's resolver"
        return [Reason(ReloadCause.DISCOVERY, name, detail)]
    if (old.standby, old.is_h2c) != (new.standby, new.is_h2c):
        return [Reason(ReloadCause.DISCOVERY, name, "its Kubernetes Service changed")]
    if old.slots != new.slots:
        return [Reason(ReloadCause.SLOTS, name, f"{old.slots}→{new.slots}")]
    return []
