"""The objects in the cluster for a kubeconfig, and its content.  Pure.

A kubeconfig has an ID, USER with a random suffix, which all of its objects share:

- a record, which is a Secret without data, in a dedicated namespace;
- for a token, a ServiceAccount there; the token is bound to the record (TokenRequest API), and the
  API server rejects it once the record or the ServiceAccount is deleted;
- for a certificate, a group with that name in the certificate's subject;
- bindings of the ServiceAccount or the group to a ClusterRole.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import quote, urlsplit

from fc_frontend.errors import Refused
from fc_frontend.plan.model import WILDCARD_HOSTS, Bind
from fc_frontend.text import printable

Json = dict[str, Any]

NAMESPACE = "fc-frontend-users"
CLUSTER_ADMIN = "cluster-admin"
SIGNER = "kubernetes.io/kube-apiserver-client"
RBAC = "rbac.authorization.k8s.io"
RESERVED = ("list", "revoke")
"""Words of the command line, which are not allowed as names of users."""
MIN_SECONDS = 600
"""The minimum that the API server accepts, for tokens and for certificates."""
MAX_SECONDS = {"token": 365 * 86400, "certificate": 7 * 86400}
"""A token can be revoked.  A certificate cannot: only its permissions can be removed."""
MAX_NAMESPACES = 50
MAX_USER = 40
"""Characters: the ID with a prefix is a common name, which has at most 64 (RFC 5280, A.1)."""

_USER = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ROLE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.:_-]{0,125}[A-Za-z0-9])?")
_TIME = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_PRIVATE = tuple(
    ip_network(each)
    for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10")
)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_USER_LABEL = "fc-frontend.io/user"
_MANAGED_BY = {"app.kubernetes.io/managed-by": "fc-frontend"}
_NOTES = "fc-frontend.io/"
"""The prefix of a record's annotations."""


class GrantKind(StrEnum):
    """How the holder of a kubeconfig authenticates."""

    TOKEN = "token"  # noqa: S105 - the name of a kind
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A kubeconfig to create.  Without `namespaces`, the role applies to all of them."""

    user: str
    id: str
    kind: GrantKind
    role: str
    namespaces: tuple[str, ...]
    seconds: int

    @property
    def common_name(self) -> str:
        """The name of the user in a certificate."""
        return f"fc-frontend:{self.user}"

    @property
    def group(self) -> str:
        """The group in a certificate, unique to this grant."""
        return f"fc-frontend:{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRecord:
    """An existing kubeconfig.

    `expires` is in Unix time.  Missing values are empty or None: others may edit records.
    """

    user: str
    id: str
    kind: GrantKind | None = None
    role: str = ""
    namespaces: tuple[str, ...] = ()
    expires: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAddress:
    """The address of the API server for the holder of a kubeconfig."""

    server: str
    ca: bytes | None = None
    server_name: str | None = None
    proxy: str | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """The issued credential: a token, or a certificate for the key.  Times are in Unix time."""

    expires: float
    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)


# Validation of arguments


def checked_user(name: str) -> str:
    """Return `name` if it is valid for a user.  Raises `Refused`."""
    shown = printable(name)
    if name in RESERVED:
        raise Refused.of(
            f"{name} is a word of this command, and no name of a user",
            f"choose another name, such as {name}-user",
        )
    if name == "default" or name.startswith("system:"):
        raise Refused.of(
            f"the user {shown} is reserved by Kubernetes: default is the ServiceAccount of pods, "
            "and names with system: are the cluster's own",
            "name the person or program that gets the kubeconfig",
        )
    if len(name) > MAX_USER or not _USER.fullmatch(name):
        raise Refused.of(
            f"{shown} is not a usable name of a user",
            f"use at most {MAX_USER} lower-case letters, digits and inner dashes",
        )
    return name


def checked_role(role: str, namespaces: Sequence[str], *, is_admin: bool) -> None:
    """Raise `Refused` for permissions that are broader than they seem."""
    if is_admin:
        return
    if role == CLUSTER_ADMIN:
        raise Refused.of(
            "the role cluster-admin has unrestricted access to the cluster",
            "give --cluster-admin if that is wanted, or a role such as view, edit or admin",
        )
    if not _ROLE.fullmatch(role):
        raise Refused.of(
            f"{printable(role)} is not the name of a ClusterRole", "use view, edit or admin"
        )
    if len(namespaces) > MAX_NAMESPACES:
        raise Refused.of(f"more than {MAX_NAMESPACES} namespaces", "make several kubeconfigs")
    for namespace in namespaces:
        if not _LABEL.fullmatch(namespace):
            raise Refused.of(
                f"{printable(namespace)} is not the name of a namespace",
                "use lower-case letters, digits and inner dashes",
            )
        if namespace == NAMESPACE or (namespace == "kube-system" and role != "view"):
            raise Refused.of(
                f"the role {role} in the namespace {namespace} amounts to unrestricted access to "
                "the cluster: ServiceAccounts there have such rights",
                "name another namespace, or give --cluster-admin if that is wanted",
            )


def seconds_in(text: str, kind: GrantKind) -> int:
    """Return the seconds of a duration such as `24h`.  Raises `Refused`."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise Refused.of(f"{printable(text)} is not a time", "write 30m, 24h or 7d")
    seconds = int(match[1]) * _UNITS[match[2]]
    most = MAX_SECONDS[kind]
    if not MIN_SECONDS <= seconds <= most:
        note = ": a certificate cannot be revoked" if kind is GrantKind.CERTIFICATE else ""
        raise Refused.of(
            f"{text} is out of range{note}",
            f"give a time from {MIN_SECONDS // 60}m to {most // 86400}d",
        )
    return seconds


# Objects


def path_of(resource: str, namespace: str = "", name: str = "", group: str = "") -> str:
    """Return the path of an object, or of a whole resource; version v1."""
    root = f"/apis/{group}/v1" if group else "/api/v1"
    where = f"/namespaces/{quoted(namespace)}" if namespace else ""
    which = f"/{quoted(name)}" if name else ""
    return f"{root}{where}/{resource}{which}"


def quoted(name: str) -> str:
    """Return a name quoted for a path."""
    return quote(name, safe="")


RECORDS = path_of("secrets", NAMESPACE)
ACCOUNTS = path_of("serviceaccounts", NAMESPACE)
REQUESTS = path_of("certificatesigningrequests", group="certificates.k8s.io")


def namespace_object() -> Json:
    """Return the namespace of the records and ServiceAccounts."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": _MANAGED_BY},
    }


def record_object(grant: Grant) -> Json:
    """Return the record of a kubeconfig.  It has no data: nothing in it is secret."""
    notes = {
        "kind": grant.kind.value,
        "role": grant.role,
        "namespaces": ",".join(grant.namespaces),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            **_metadata(grant),
            "namespace": NAMESPACE,
            "annotations": {_NOTES + name: text for name, text in notes.items()},
        },
    }


def expiry_change(issued: Issued) -> Json:
    """Return the patch of a record after the credential was issued."""
    return {"metadata": {"annotations": {f"{_NOTES}expires": shown_time(issued.expires)}}}


def account_object(grant: Grant) -> Json:
    """Return the ServiceAccount of a token.  It is not mounted into pods."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {**_metadata(grant), "namespace": NAMESPACE},
        "automountServiceAccountToken": False,
    }


def bindings(grant: Grant) -> list[tuple[str, Json]]:
    """Return the bindings, each with the path at which to create it."""
    subject: Json = (
        {"kind": "ServiceAccount", "name": grant.id, "namespace": NAMESPACE}
        if grant.kind is GrantKind.TOKEN
        else {"kind": "Group", "name": grant.group, "apiGroup": RBAC}
    )
    found = []
    for namespace in grant.namespaces or ("",):
        kind = "RoleBinding" if namespace else "ClusterRoleBinding"
        item = {
            "apiVersion": f"{RBAC}/v1",
            "kind": kind,
            "metadata": {
                **_metadata(grant),
                "name": f"fc-frontend:{grant.id}",
                **({"namespace": namespace} if namespace else {}),
            },
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": grant.role},
            "subjects": [subject],
        }
        found.append((path_of(f"{kind.lower()}s", namespace, group=RBAC), item))
    return found


def token_request(grant: Grant, record: Mapping[str, Any]) -> Json:
    """Return the request for a token bound to `record`, as the API server stored it."""
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "expirationSeconds": grant.seconds,
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Secret",
                "name": grant.id,
                "uid": record["metadata"]["uid"],
            },
        },
    }


def signing_request(grant: Grant, request: bytes) -> Json:
    """Return the CertificateSigningRequest for `request`, which is PEM."""
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {**_metadata(grant), "name": f"fc-frontend-{grant.id}"},
        "spec": {
            "request": base64.b64encode(request).decode("ascii"),
            "signerName": SIGNER,
            "expirationSeconds": grant.seconds,
            "usages": ["client auth"],
        },
    }


def approved(request: Mapping[str, Any]) -> Json:
    """Return a stored CertificateSigningRequest with the approval added."""
    condition = {
        "type": "Approved",
        "status": "True",
        "reason": "Kubeconfig",
        "message": "approved by fc-frontend kubeconfig",
    }
    return {**request, "status": {"conditions": [condition]}}


def _metadata(grant: Grant) -> Json:
    return {"name": grant.id, "labels": {**_MANAGED_BY, _USER_LABEL: grant.user}}


# Records


def selector(user: str | None) -> str:
    """Return the label selector of the records: those of a user, or all."""
    return _USER_LABEL if user is None else f"{_USER_LABEL}={user}"


def records_in(items: Iterable[Any]) -> list[GrantRecord]:
    """Return the records in a list of Secrets, by user and ID; other Secrets are left out."""
    found = [record for item in items if (record := _record(item)) is not None]
    return sorted(found, key=lambda record: (record.user, record.id))


def _record(item: Any) -> GrantRecord | None:
    metadata = item.get("metadata") if isinstance(item, dict) else None
    metadata = metadata if isinstance(metadata, dict) else {}
    name, user = metadata.get("name"), _texts(metadata.get("labels")).get(_USER_LABEL, "")
    # Both become parts of paths, and of the names of other objects.
    if not isinstance(name, str) or not _LABEL.fullmatch(name) or not _USER.fullmatch(user):
        return None
    if not name.startswith(f"{user}-") or metadata.get("namespace") != NAMESPACE:
        return None
    notes = _texts(metadata.get("annotations"))
    kind = notes.get(f"{_NOTES}kind", "")
    role = notes.get(f"{_NOTES}role", "")
    namespaces = notes.get(f"{_NOTES}namespaces", "").split(",")[:MAX_NAMESPACES]
    return GrantRecord(
        user=user,
        id=name,
        kind=GrantKind(kind) if kind in list(GrantKind) else None,
        role=role if _ROLE.fullmatch(role) else "",
        namespaces=tuple(each for each in namespaces if _LABEL.fullmatch(each)),
        expires=time_in(notes.get(f"{_NOTES}expires")),
    )


def _texts(value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}


def made_for(record: GrantRecord) -> list[str]:
    """Return the paths of all objects of a kubeconfig, in the order of deletion.

    Permissions are deleted first.  The record is deleted last: until then, revoking can be
    repeated.
    """
    name = f"fc-frontend:{record.id}"
    found = [path_of("rolebindings", each, name, RBAC) for each in record.namespaces]
    if not record.namespaces:
        found.append(path_of("clusterrolebindings", name=name, group=RBAC))
    if record.kind is not GrantKind.CERTIFICATE:
        found.append(f"{ACCOUNTS}/{record.id}")
    return [*found, f"{RECORDS}/{record.id}"]


# The kubeconfig


def address_for(
    own: ApiAddress, names: Sequence[str], server: str | None, this_host: str
) -> ApiAddress:
    """Return the address for a holder on another machine.

    `own` is the caller's.  `names` are those in the certificate of the API server, `server` is the
    URL to write instead of the caller's, if any.  A loopback address is replaced by
    `this_host`.  If the certificate does not contain the new name, it is verified by the
    caller's.
    """
    parts = urlsplit(own.server)
    host = parts.hostname or ""
    if server is None and is_loopback(host):
        server = parts._replace(netloc=f"{bracketed(this_host)}:{parts.port or 443}").geturl()
    if server is None:
        return own
    name = None if covers(names, urlsplit(server).hostname or "") else own.server_name or host
    return ApiAddress(server=server, ca=own.ca, server_name=name)


def public_server(binds: Iterable[Bind]) -> str | None:
    """Return the URL of the bind that others can most likely reach; None if there is none.

    A public address is preferred to one of RFC 1918 or RFC 4193; wildcards and loopback are
    ignored.
    """
    usable = [each for each in binds if each.kind == "ip" and each.host not in WILDCARD_HOSTS]
    found = [each for each in usable if not is_loopback(each.host)]
    found.sort(key=lambda bind: any(ip_address(bind.host) in net for net in _PRIVATE))
    return f"https://{found[0]}" if found else None


def covers(names: Sequence[str], host: str) -> bool:
    """Return whether a certificate for `names` is valid for `host`, without wildcards."""
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower() in (name.lower() for name in names)
    for name in names:
        try:
            if ip_address(name) == address:
                return True
        except ValueError:
            continue
    return False


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback address or `localhost`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def bracketed(host: str) -> str:
    """Return a host in the notation of URLs."""
    return f"[{host}]" if ":" in host else host


def kubeconfig(grant: Grant, where: ApiAddress, issued: Issued) -> Json:
    """Return the document of a kubeconfig with one context."""
    cluster: Json = {"server": where.server}
    if where.ca is not None:
        cluster["certificate-authority-data"] = _encoded(where.ca)
    if where.server_name is not None:
        cluster["tls-server-name"] = where.server_name
    if where.proxy is not None:
        cluster["proxy-url"] = where.proxy
    user: Json = {}
    if issued.token is not None:
        user["token"] = issued.token
    if issued.certificate is not None and issued.key is not None:
        user["client-certificate-data"] = _encoded(issued.certificate)
        user["client-key-data"] = _encoded(issued.key)
    context: Json = {"cluster": "cluster", "user": grant.id}
    if grant.namespaces:
        context["namespace"] = grant.namespaces[0]
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": grant.user,
        "contexts": [{"name": grant.user, "context": context}],
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": grant.id, "user": user}],
    }


def _encoded(pem: bytes) -> str:
    return base64.b64encode(pem).decode("ascii")


def shown_time(seconds: float) -> str:
    """Return a Unix time in the notation of Kubernetes (RFC 3339, UTC)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_in(text: Any) -> float | None:
    """Return the Unix time of a time in the notation of Kubernetes; None if it is invalid."""
    try:
        found = datetime.fromisoformat(text)
        return found.timestamp() if found.tzinfo else None
    except (TypeError, ValueError, OverflowError):
        return None
