"""Check whether the binds of `api_access` lead to an API server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fc_frontend.doctor.findings import Finding, Group

_GROUP = Group("Kubernetes API")
_ANSWERS = (200, 401, 403)
"""Accepted statuses of `/readyz`: k3s refuses anonymous requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAccessFacts:
    """The result of a connection to a bind of `api_access`.

    `status` is that of `/readyz`, or None if there was no answer; `said` is then the reason.
    `names` are those in the server's certificate, or None without one.  `is_allowed` is False if
    `allow` does not include this host.
    """

    bind: str
    host: str | None
    """The address of the bind, or None for all addresses."""
    status: int | None
    said: str = ""
    names: frozenset[str] | None = None
    is_allowed: bool = True


def judge_api_access(facts: ApiAccessFacts) -> Iterator[Finding]:
    """Judge whether clients reach the API through a bind, and by its address."""
    check = f"api_access {facts.bind}"
    if facts.status is None and not facts.is_allowed:
        yield _GROUP.unknown(
            check,
            f"{facts.bind} cannot be tried: api_access.allow does not include this host",
            "try it from a host in api_access.allow: `curl -k https://ADDRESS:PORT/readyz`",
        )
    elif facts.status is None:
        yield _GROUP.problem(
            check,
            f"no API server answers through {facts.bind}: {facts.said}",
            "see `fc-frontend explain kubernetes-api`",
        )
    elif facts.status not in _ANSWERS:
        yield _GROUP.problem(
            check,
            f"through {facts.bind}, /readyz has status {facts.status}",
            "see whether an API server is behind it: `fc-frontend explain kubernetes-api`",
        )
    else:
        yield _GROUP.ok(check, f"{facts.bind} leads to an API server")
    if facts.names is not None and facts.host is not None and facts.host not in facts.names:
        yield _GROUP.warning(
            f"{check} certificate",
            f"the API server's certificate does not have {facts.host}",
            "add it to the certificate (tls-san in k3s), or use kubeconfigs with tls-server-name: "
            "`fc-frontend kubeconfig` writes them",
        )
