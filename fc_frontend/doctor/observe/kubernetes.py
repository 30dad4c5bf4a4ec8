"""Query the API server with the credentials of a kubeconfig or of the settings.

The credentials are never shown, and redirects are not followed.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fc_frontend.config.trusted_users import daemon_user
from fc_frontend.discovery.slices import answer_of
from fc_frontend.doctor.judge.kubernetes import (
    DaemonAccess,
    KubernetesFacts,
    Right,
    ServiceFacts,
)
from fc_frontend.doctor.judge.load_balancers import StatusFacts
from fc_frontend.doctor.observe.load_balancers import observe_statuses
from fc_frontend.haproxy.process import minimal_environment
from fc_frontend.kubernetes.access import ApiAccess, FileCredentials
from fc_frontend.kubernetes.answers import LOOK_SECONDS, key_of
from fc_frontend.kubernetes.client import ApiClient
from fc_frontend.kubernetes.cluster_watch import ClusterWatch, read_access
from fc_frontend.kubernetes.failures import ApiFailure
from fc_frontend.kubernetes.health import ask_health
from fc_frontend.kubernetes.lease import LEASE_NAMESPACE
from fc_frontend.model.load_balancers import LoadBalancerRequest
from fc_frontend.paths.accounts import user_name
from fc_frontend.plan.cluster_health import ApiResponse
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.model import ApiSettings, ServiceSpec, Settings, Target
from fc_frontend.plan.slices import endpoints_from_slices

RESOURCES = (("", "services"), ("discovery.k8s.io", "endpointslices"), ("", "nodes"))
VERBS = ("get", "list", "watch")
_USED_VERBS = ("list", "watch")
BALANCER_RIGHTS = (
    {"group": "", "resource": "services", "subresource": "status", "verb": "patch"},
    {"group": "events.k8s.io", "resource": "events", "verb": "create"},
    *(
        {
            "group": "coordination.k8s.io",
            "resource": "leases",
            "verb": verb,
            "namespace": LEASE_NAMESPACE,
        }
        for verb in ("get", "create", "update")
    ),
)
"""The `resourceAttributes` of the rights needed for the status of Services."""
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_MOST_STANDBYS = 20
"""The number of cluster IPs that are tried."""


def observe_kubernetes(api: ApiSettings, timeout: float) -> KubernetesFacts:
    """Query the API server about itself and its nodes, with `timeout` seconds for each request.

    Raises `Unavailable` if the credentials cannot be used.
    """
    return asyncio.run(_observe(api, timeout))


def observe_api(
    api: ApiSettings, settings: Settings, specs: Iterable[ServiceSpec], timeout: float
) -> KubernetesFacts:
    """As `observe_kubernetes`; also examine the daemon's access to what the services need."""
    return asyncio.run(_observe(api, timeout, settings, tuple(specs)))


async def _observe(
    api: ApiSettings,
    seconds: float,
    settings: Settings | None = None,
    specs: tuple[ServiceSpec, ...] = (),
) -> KubernetesFacts:
    client = ApiClient(lambda: read_access(api))
    access = client.access
    health = await ask_health(client, seconds)
    credential = await access.credentials.get()
    daemon = None
    if settings is not None:
        daemon = await _daemon_access(client, api, settings, specs, seconds, health.ready)
    return KubernetesFacts(
        health=health,
        readable_by_others=any(map(_is_readable_by_others, _secret_files(api, access))),
        verified=access.is_verified,
        credential_days=_days(credential.until),
        daemon=daemon,
    )


def _secret_files(api: ApiSettings, access: ApiAccess) -> list[str]:
    """Return the files that contain the credentials."""
    files = [api.kubeconfig]
    if isinstance(access.credentials, FileCredentials):
        of = access.credentials
        files += [str(path) for path in (of.token_file, of.key_file) if path is not None]
    return [path for path in files if path is not None]


def _is_readable_by_others(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return bool(stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077)


def _days(until: float | None) -> float | None:
    return None if until is None else (until - time.time()) / 86400


async def _daemon_access(
    client: ApiClient,
    api: ApiSettings,
    settings: Settings,
    specs: tuple[ServiceSpec, ...],
    seconds: float,
    ready: ApiResponse,
) -> DaemonAccess:
    user = daemon_user(settings.state_directory)
    files = _secret_files(api, client.access)
    if client.access.ca_file is not None:
        files.append(str(client.access.ca_file))
    unreadable = [path for path in files if not await asyncio.to_thread(_may_read, user, path)]
    access = DaemonAccess(user_name(user), tuple(unreadable))
    if ready.status in (None, 401):
        return access
    with_nodes = any(spec.target is Target.NODE for spec in specs)
    balancer = settings.load_balancer
    rights, of_balancer, watched = await asyncio.gather(
        _rights(client, seconds, with_nodes=with_nodes),
        _balancer_rights(client, seconds) if balancer is not None else _nothing(),
        _services(api, settings, specs, seconds),
    )
    statuses: tuple[StatusFacts, ...] = ()
    if balancer is not None:
        statuses = await observe_statuses(client, balancer, watched.load_balancers, seconds)
    return replace(
        access,
        rights=rights,
        services=watched.services,
        failure=watched.failure,
        balancer_rights=of_balancer,
        statuses=statuses,
    )


async def _nothing() -> tuple[Right, ...]:
    return ()


def _may_read(user: int, path: str) -> bool:
    """Return whether `user` may read the file; True if unknown, as only root can check it."""
    program = shutil.which("test")
    if os.geteuid() != 0 or user == 0 or program is None:
        return True
    try:
        account = pwd.getpwuid(user)
        group, groups = account.pw_gid, os.getgrouplist(account.pw_name, account.pw_gid)
    except KeyError:
        group, groups = user, []
    done = subprocess.run(
        [program, "-r", path],
        user=user,
        group=group,
        extra_groups=groups,
        cwd="/",
        env=minimal_environment(),
        check=False,
    )
    return done.returncode == 0


async def _rights(client: ApiClient, seconds: float, *, with_nodes: bool) -> tuple[Right, ...]:
    """Return which rights of contrib/kubernetes/rbac.yaml the credentials have."""
    asked = [
        _right(
            client,
            seconds,
            {"group": group, "resource": resource, "verb": verb},
            is_needed=verb in _USED_VERBS and (with_nodes or resource != "nodes"),
        )
        for group, resource in RESOURCES
        for verb in VERBS
    ]
    return tuple(await asyncio.gather(*asked))


async def _balancer_rights(client: ApiClient, seconds: float) -> tuple[Right, ...]:
    """Return which rights of contrib/kubernetes/rbac-load-balancer.yaml the credentials have."""
    return tuple(await asyncio.gather(*(_right(client, seconds, r) for r in BALANCER_RIGHTS)))


async def _right(
    client: ApiClient, seconds: float, attributes: Mapping[str, str], *, is_needed: bool = True
) -> Right:
    """Check one right, by a SelfSubjectAccessReview of these `resourceAttributes`."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": dict(attributes)},
    }
    allowed: bool | None = None
    try:
        async with asyncio.timeout(seconds), client.connect() as connection:
            answer = await connection.post(_REVIEWS, review)
        status = answer.get("status")
        if isinstance(status, dict):
            allowed = status.get("allowed") is True
    except (TimeoutError, ApiFailure):
        pass
    named = f"{attributes['resource']}.{attributes['group']}".rstrip(".")
    if "subresource" in attributes:
        named += f"/{attributes['subresource']}"
    if "namespace" in attributes:
        named += f" in namespace {attributes['namespace']}"
    return Right(attributes["verb"], named, allowed, is_needed=is_needed)


@dataclass(frozen=True, slots=True)
class _Watched:
    """The services that the daemon sees, or why it sees none."""

    services: tuple[ServiceFacts, ...] = ()
    failure: str | None = None
    load_balancers: Mapping[ObjectKey, LoadBalancerRequest] = field(default_factory=dict)


async def _services(
    api: ApiSettings, settings: Settings, specs: tuple[ServiceSpec, ...], seconds: float
) -> _Watched:
    """Watch the services of `specs` and those of type LoadBalancer as the daemon does."""
    cluster = settings.cluster
    families = cluster.families(cluster.pod_networks)
    watch = ClusterWatch(api)
    watch.start()
    try:
        if not await watch.synced(LOOK_SECONDS):
            failure = watch.failure
            said = failure.message if failure else "it does not answer in time"
            return _Watched(failure=said)
        known = watch.load_balancers
        found = []
        for spec in [each for each in specs if each.target is not Target.NODE]:
            key = key_of(spec)
            service, slices = watch.service(key), watch.slices(key)
            networks = cluster.pod_networks
            gap = endpoints_from_slices(spec, service, slices, networks, families).gap
            answer = answer_of(spec, service, slices, cluster, None)
            facts = ServiceFacts(
                spec.name, gap, answer.error, answer.remedy, answer.standby, is_checked=spec.check
            )
            found.append(facts)
    finally:
        await watch.ended()
    tried = [each for each in found if each.standby and each.standby.address]
    # Those with pods first: a cluster IP without pods may not answer.
    tried = sorted(tried, key=lambda each: each.gap is not None)[:_MOST_STANDBYS]
    reached = await asyncio.gather(*(_connects(each, min(seconds, 2.0)) for each in tried))
    is_reached = dict(zip((each.name for each in tried), reached, strict=True))
    services = tuple(replace(each, is_reached=is_reached.get(each.name)) for each in found)
    return _Watched(services, load_balancers=known.services if known else {})


async def _connects(service: ServiceFacts, seconds: float) -> bool:
    """Return whether a TCP connection is accepted or refused: both prove that packets arrive."""
    assert service.standby is not None
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(service.standby.address, service.standby.port)
        writer.transport.abort()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
