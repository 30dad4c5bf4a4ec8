"""Locate a listener's declaration: a setting, a service field, or a line of a fragment."""

from __future__ import annotations

from dataclasses import replace

from fc_frontend.errors import Problem, Severity
from fc_frontend.haproxy.places import Places
from fc_frontend.model.units import SETTINGS, UnitId, UnitKind
from fc_frontend.plan.model import FrontendSpec, Plan, ServiceSpec
from fc_frontend.render.config import Config
from fc_frontend.syntax.binds import Owned
from fc_frontend.syntax.endpoints import Family, ListenEndpoint


class ListenerPlaces:
    """Locates the declarations of listeners."""

    def __init__(self, plan: Plan, config: Config) -> None:
        self._specs: dict[str, ServiceSpec | FrontendSpec] = {
            service.spec.name: service.spec for service in plan.services
        }
        self._specs.update({frontend.name: frontend for frontend in plan.frontends})
        self._fragments = {fragment.name: fragment for fragment in plan.fragments}
        self._config = config
        self._lines = Places(config, plan)
        haproxy = plan.settings.haproxy
        self._settings = {
            f"{Family.UNIX}@{haproxy.master_socket}": "haproxy.master_socket",
            f"{Family.UNIX}@{haproxy.runtime_socket}": "haproxy.runtime_socket",
            str(haproxy.stats): "haproxy.stats",
            str(plan.settings.listen): "listen",
        }
        self._raw = "haproxy.global_extra" if haproxy.global_extra else "haproxy.templates"

    def setting(self, endpoint: ListenEndpoint | None) -> str:
        """Return the setting that makes HAProxy, or fc-frontend, listen on an endpoint."""
        return self._settings.get(str(endpoint), self._raw)

    def file(self, owner: UnitId) -> str | None:
        """Return the file that declares a service or fragment."""
        if owner.kind is UnitKind.FRAGMENT and owner.name in self._fragments:
            return self._fragments[owner.name].origin.file
        spec = self._specs.get(owner.name)
        return spec.origin.file if spec and spec.origin else None

    def about(
        self, claim: Owned, message: str, remedy: str, severity: Severity = Severity.ERROR
    ) -> Problem:
        """Return a problem with a listener."""
        listener = claim.listener
        problem = self.problem(claim.owner, listener.line, listener.endpoint, message, remedy)
        return replace(problem, severity=severity)

    def problem(
        self, owner: UnitId, line: int, endpoint: ListenEndpoint | None, message: str, remedy: str
    ) -> Problem:
        """Return a problem with a line of a unit's section; `endpoint` is None if it is unknown."""
        problem = Problem(message, remedy, service=owner.name or None, unit=owner)
        if owner == SETTINGS:
            return replace(problem, field=self.setting(endpoint))
        if owner.kind is UnitKind.FRAGMENT:
            first = next((each.first for each in self._config.places if each.unit == owner), 1)
            return self._lines.placed(problem, first + line - 1)
        if spec := self._specs.get(owner.name):
            binds = [str(bind) for bind in spec.binds]
            if str(endpoint) in binds:
                number = len(binds) - 1 - binds[::-1].index(str(endpoint))
                return replace(problem, field=f"binds.{number}")
            if spec.extra_config:
                return replace(problem, field="extra_config")
        return problem
