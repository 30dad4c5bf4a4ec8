"""Create, list and revoke kubeconfigs through the API, with the credentials of the caller."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from fc_frontend.errors import Refused, Unavailable
from fc_frontend.kubeconfigs import grants
from fc_frontend.kubeconfigs.grants import ApiAddress, Grant, GrantKind, GrantRecord, Issued
from fc_frontend.kubernetes.access import (
    MAX_PEM_BYTES,
    ApiAccess,
    Credential,
    clean_token,
    read_bounded,
)
from fc_frontend.kubernetes.client import ApiClient, ApiConnection
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind

SIGNING_SECONDS = 30.0
"""How long to wait for the certificate of an approved request.

kube-controller-manager takes one second.
"""
ENDED_SECONDS = 3600.0
"""After this time, a kubeconfig has expired by any clock."""
_BETWEEN_LOOKS = 0.1
"""Seconds."""
_K3S_KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"
"""The administrator's kubeconfig of k3s, which its kubectl uses."""
_REFUSALS = frozenset(
    (
        FailureKind.UNAUTHORIZED,
        FailureKind.FORBIDDEN,
        FailureKind.MISSING,
        FailureKind.CONFLICT,
        FailureKind.UNSUPPORTED,
    )
)
"""Failures with which the API server rejects a request; all others may be temporary."""

Save = Callable[[Issued, ApiAddress], None]


def callers_kubeconfig() -> str:
    """Return the kubeconfig that kubectl would use.  Raises `Refused` and `Unavailable`."""
    named = [each for each in os.environ.get("KUBECONFIG", "").split(":") if each]
    usual = [str(Path("~/.kube/config").expanduser()), _K3S_KUBECONFIG]
    found = [each for each in named or usual if Path(each).is_file()]
    if not found:
        raise Unavailable.of(
            f"there is no kubeconfig at {' or '.join(named or usual)}",
            "name yours with --kubeconfig or KUBECONFIG",
        )
    if named and len(found) > 1:
        raise Refused.of("KUBECONFIG names several files", "name one of them with --kubeconfig")
    return found[0]


async def make(
    read_access: Callable[[], ApiAccess], grant: Grant, server: str | None, save: Save
) -> tuple[Issued, ApiAddress]:
    """Create the objects of `grant` and call `save`; they are deleted again if anything fails.

    `server` is the URL to write instead of the caller's.  Raises `Refused` if the API server
    rejects a request, and `Unavailable`.
    """
    client = ApiClient(read_access)
    created: list[str] = []
    try:
        async with _connected(client) as api:
            where = _address(client.access, api, server)
            issued = await _make(api, grant, created)
            save(issued, where)
            created.clear()
            await _remove_ended(api, grant.user)
            return issued, where
    except BaseException:
        await _undo(client, created)
        raise


async def listed(
    read_access: Callable[[], ApiAccess], user: str | None = None
) -> list[GrantRecord]:
    """Return the kubeconfigs of `user`, or all.  Raises the same errors as `make`."""
    async with _connected(ApiClient(read_access)) as api:
        return await _records(api, user)


async def revoke(read_access: Callable[[], ApiAccess], user: str) -> list[GrantRecord]:
    """Revoke the kubeconfigs of `user` and return them.

    Raises the same errors as `make`; some may be left then, and the call can be repeated.
    """
    async with _connected(ApiClient(read_access)) as api:
        found = await _records(api, user)
        for record in found:
            for path in grants.made_for(record):
                with _refused(f"{path} cannot be deleted"):
                    await _delete(api, path)
        return found


async def _make(api: ApiConnection, grant: Grant, created: list[str]) -> Issued:
    await _require_role(api, grant)
    await _make_namespace(api)
    record = await _create(api, grants.RECORDS, grants.record_object(grant), created)
    if not isinstance(record["metadata"].get("uid"), str):
        raise _unexpected("an object without a uid")
    if grant.kind is GrantKind.TOKEN:
        await _create(api, grants.ACCOUNTS, grants.account_object(grant), created)
    for path, binding in grants.bindings(grant):
        await _create(api, path, binding, created)
    issue = _token if grant.kind is GrantKind.TOKEN else _certificate
    issued = await issue(api, grant, record)
    with _refused("the end of the kubeconfig cannot be recorded"):
        await api.patch(f"{grants.RECORDS}/{grant.id}", grants.expiry_change(issued))
    return issued


async def _require_role(api: ApiConnection, grant: Grant) -> None:
    """Raise `Refused` if the role does not exist; skipped without permission to read roles."""
    try:
        await api.get(grants.path_of("clusterroles", name=grant.role, group=grants.RBAC))
    except ApiFailure as exc:
        if exc.kind is FailureKind.MISSING:
            raise Refused.of(
                f"there is no ClusterRole {grant.role}", "see `kubectl get clusterroles`"
            ) from None
        if exc.kind is not FailureKind.FORBIDDEN:
            raise _failure("the API server does not answer as expected", exc) from None


async def _make_namespace(api: ApiConnection) -> None:
    try:
        await api.post(grants.path_of("namespaces"), grants.namespace_object())
    except ApiFailure as exc:
        # Callers without permission to create it can still use it.
        if exc.kind not in (FailureKind.CONFLICT, FailureKind.FORBIDDEN):
            raise _failure(f"the namespace {grants.NAMESPACE} cannot be created", exc) from None


async def _create(
    api: ApiConnection, path: str, item: dict[str, Any], created: list[str]
) -> dict[str, Any]:
    name = item["metadata"]["name"]
    where = f"{path}/{grants.quoted(name)}"
    # Before the response, which may get lost.
    created.append(where)
    try:
        stored = await api.post(path, item)
    except ApiFailure as exc:
        if exc.kind in _REFUSALS:
            created.remove(where)
        raise _failure(f"the {item['kind']} {name} cannot be created", exc) from None
    if not isinstance(stored.get("metadata"), dict):
        raise _unexpected("an object without metadata")
    return stored


async def _token(api: ApiConnection, grant: Grant, record: dict[str, Any]) -> Issued:
    request = grants.token_request(grant, record)
    with _refused("no token is issued"):
        answer = await api.post(f"{grants.ACCOUNTS}/{grant.id}/token", request)
    status, spec = (
        value if isinstance(value := answer.get(part), dict) else {} for part in ("status", "spec")
    )
    bound = spec.get("boundObjectRef")
    if not isinstance(bound, dict) or bound.get("uid") != record["metadata"]["uid"]:
        raise _unexpected("a token that is not bound to its Secret: it could not be revoked")
    token = clean_token(str(status.get("token") or ""), "the answer of the API server")
    says = Credential(token).until
    until = grants.time_in(status.get("expirationTimestamp"))
    if until is None:
        raise _unexpected("a token without the time when it expires")
    # The expiry in the token is decisive, but it is not guaranteed to be a valid time.
    ends = says if says is not None and 0 < says < until else until
    return _require_time_left(Issued(ends, token=token))


def _require_time_left(issued: Issued) -> Issued:
    if issued.expires <= time.time():
        raise Unavailable.of(
            f"what the API server issued ended at {grants.shown_time(issued.expires)}",
            "compare the clocks of this machine and of the API server",
        )
    return issued


async def _certificate(api: ApiConnection, grant: Grant, _record: dict[str, Any]) -> Issued:
    from fc_frontend.certificates.pem import is_for_key, not_after
    from fc_frontend.certificates.requests import new_request

    key, request = new_request(grant.common_name, grant.group)
    created: list[str] = []
    try:
        signing = grants.signing_request(grant, request)
        stored = await _create(api, grants.REQUESTS, signing, created)
        with _refused("the request for a certificate cannot be approved"):
            await api.put(f"{created[0]}/approval", grants.approved(stored))
        pem = await _signed(api, created[0])
    finally:
        # It is deleted within an hour anyway if this fails.
        with contextlib.suppress(ApiFailure):
            await _delete(api, *created)
    until = not_after(pem)
    if until is None or not is_for_key(pem, key):
        raise _unexpected("a certificate that is not for the key")
    return _require_time_left(Issued(until, certificate=pem, key=key))


async def _signed(api: ApiConnection, path: str) -> bytes:
    """Return the certificate of an approved request, once it is issued."""
    try:
        async with asyncio.timeout(SIGNING_SECONDS):
            while True:
                with _refused("the request for a certificate cannot be read"):
                    status = (await api.get(path)).get("status")
                status = status if isinstance(status, dict) else {}
                if text := status.get("certificate"):
                    return _decoded(text)
                conditions = status.get("conditions")
                for condition in conditions if isinstance(conditions, list) else ():
                    if isinstance(condition, dict) and condition.get("type") in _ENDS:
                        raise Refused.of(
                            f"no certificate is issued: {condition.get('message')}",
                            f"see which signer the cluster has for {grants.SIGNER}",
                        )
                await asyncio.sleep(_BETWEEN_LOOKS)
    except TimeoutError:
        raise Unavailable.of(
            f"no certificate is issued within {SIGNING_SECONDS:g} s",
            f"see whether kube-controller-manager runs, and signs for {grants.SIGNER}",
        ) from None


_ENDS = ("Denied", "Failed")
"""Conditions of a request that will never have a certificate."""


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise _unexpected("a certificate that is not base64") from None


async def _records(api: ApiConnection, user: str | None) -> list[GrantRecord]:
    with _refused("the kubeconfigs cannot be listed"):
        answer = await api.get(grants.RECORDS, {"labelSelector": grants.selector(user)})
    items = answer.get("items")
    return grants.records_in(items if isinstance(items, list) else ())


async def _remove_ended(api: ApiConnection, user: str) -> None:
    """Delete expired kubeconfigs of `user`, as far as permissions allow."""
    with contextlib.suppress(Refused, Unavailable, ApiFailure):
        for record in await _records(api, user):
            if record.expires is not None and record.expires < time.time() - ENDED_SECONDS:
                await _delete(api, *grants.made_for(record))


async def _delete(api: ApiConnection, *paths: str) -> None:
    """Delete objects that may already be gone.  Raises `ApiFailure`."""
    for path in paths:
        try:
            await api.delete(path)
        except ApiFailure as exc:
            if exc.kind is not FailureKind.MISSING:
                raise


async def _undo(client: ApiClient, created: list[str]) -> None:
    """Delete the created objects over a new connection.

    Errors are ignored: no credentials exist for the objects that remain.
    """
    if created:
        with contextlib.suppress(ApiFailure):
            async with client.connect() as api:
                for path in reversed(created):
                    with contextlib.suppress(ApiFailure):
                        await _delete(api, path)


@contextlib.asynccontextmanager
async def _connected(client: ApiClient) -> AsyncIterator[ApiConnection]:
    async with contextlib.AsyncExitStack() as stack:
        with _refused(f"{client.access.server} cannot be reached"):
            api = await stack.enter_async_context(client.connect())
        yield api


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Raise `Refused` or `Unavailable` for an `ApiFailure`; `what` is the failed action."""
    try:
        yield
    except ApiFailure as exc:
        raise _failure(what, exc) from None


def _failure(what: str, exc: ApiFailure) -> Refused | Unavailable:
    message = f"{what}: {exc.message}"
    if exc.kind not in _REFUSALS:
        return Unavailable.of(message, "see whether kubectl works with the same kubeconfig")
    remedies = {
        FailureKind.UNAUTHORIZED: "use credentials that the API server accepts",
        FailureKind.FORBIDDEN: "use the credentials of an administrator of the cluster",
    }
    return Refused.of(message, remedies.get(exc.kind, "correct what the API server names"))


def _unexpected(what: str) -> Unavailable:
    return Unavailable.of(
        f"the API server answered {what}", "see whether the server is a Kubernetes API server"
    )


def _address(access: ApiAccess, api: ApiConnection, server: str | None) -> ApiAddress:
    if not access.is_verified:
        raise Refused.of(
            "your kubeconfig has insecure-skip-tls-verify: anybody could pose as the API server",
            "put the cluster's certificate-authority-data there instead",
        )
    ca = access.ca if access.ca_file is None else read_bounded(access.ca_file, MAX_PEM_BYTES)
    own = ApiAddress(
        server=access.server, ca=ca, server_name=access.server_name, proxy=access.proxy
    )
    this_host = socket.gethostname()
    if server is None and grants.is_loopback(access.host):
        named = socket.getfqdn()
        this_host = this_host if grants.is_loopback(named) else named
    return grants.address_for(own, api.names, server, this_host)
