"""Turn `api_access:` of the settings into a service that exposes the Kubernetes API servers.

TLS is passed through, so that client certificates and tokens reach the API server without HAProxy
seeing them.  The servers are the endpoints of the Service `kubernetes`, which the API servers
maintain themselves, or the declared control-plane nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fc_frontend.config.raw import NO_DOCUMENT, Raw
from fc_frontend.config.trust import Level
from fc_frontend.errors import Problem
from fc_frontend.model.units import UnitId, UnitKind
from fc_frontend.plan.model import ApiAccessSettings
from fc_frontend.plan.slices import API_NAMESPACE, API_SERVICE

SERVICE = "kubernetes-api"
"""The name of the generated service."""
_CHECKS = (
    "option httpchk",
    "http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host kubernetes",
    # k3s refuses anonymous requests: 401 and 403 show that the API server responds.
    "http-check expect status 200,401,403",
)


def with_api_access(
    services: Mapping[str, Raw], access: ApiAccessSettings | None, settings_file: str
) -> tuple[Mapping[str, Raw], dict[UnitId, Problem]]:
    """Return `services` with the service for `access`, and the problem of another of that name."""
    if access is None:
        return services, {}
    faults: dict[UnitId, Problem] = {}
    other = services.get(SERVICE)
    if other is not None:
        unit = UnitId(UnitKind.DUPLICATE, f"{SERVICE} in {other.file}")
        message = f"api_access of {settings_file} makes a service of this name"
        faults[unit] = other.problem("", message, "rename the service")
    raw = Raw(SERVICE, _fields(access), settings_file, NO_DOCUMENT, Level.TRUSTED)
    return {**services, SERVICE: raw}, faults


def _fields(access: ApiAccessSettings) -> dict[str, Any]:
    servers: dict[str, Any] = {"pod_port": "https", "discovery": "api"}
    if access.nodes:
        nodes = {name: str(address) for name, address in access.nodes.items()}
        servers = {"lb_service_port": access.port, "nodes": nodes}
    fields: dict[str, Any] = {
        "service": API_SERVICE,
        "namespace": API_NAMESPACE,
        "binds": [str(bind) for bind in access.binds],
        **servers,
        "server_options": "check-ssl verify none",
        "extra_config": list(_CHECKS),
    }
    if access.allow is not None:
        fields["allow"] = [str(network) for network in access.allow]
    return fields
