"""The objects of a small API server, with resource versions, a history and the real errors."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs

Json = dict[str, Any]
Key = tuple[str, str, str]
"""Resource, namespace, name."""

RESOURCES = {
    "namespaces": ("", "v1", "Namespace"),
    "nodes": ("", "v1", "Node"),
    "secrets": ("", "v1", "Secret"),
    "serviceaccounts": ("", "v1", "ServiceAccount"),
    "services": ("", "v1", "Service"),
    "deployments": ("apps", "v1", "Deployment"),
    "networkpolicies": ("networking.k8s.io", "v1", "NetworkPolicy"),
    "endpointslices": ("discovery.k8s.io", "v1", "EndpointSlice"),
    "leases": ("coordination.k8s.io", "v1", "Lease"),
    "events": ("events.k8s.io", "v1", "Event"),
    "roles": ("rbac.authorization.k8s.io", "v1", "Role"),
    "rolebindings": ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
    "clusterroles": ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    "clusterrolebindings": ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    "certificatesigningrequests": ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
}
"""Resource → API group, version and kind."""
_WITHOUT_NAMESPACE = ("namespaces", "nodes", "clusterroles", "clusterrolebindings",
                      "certificatesigningrequests")  # fmt: skip


def described(path: str) -> Json | None:
    """Return the discovery documents that clients such as kubectl request first."""
    match path.strip("/").split("/"):
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            versions = sorted({(group, version) for group, version, _ in RESOURCES.values()})
            groups = [_group(group, version) for group, version in versions if group]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        case ["api", "v1"]:
            return _resources("", "v1")
        case ["apis", group, version]:
            return _resources(group, version)
        case ["openapi", "v3"]:
            places = {_place(group, version) for group, version, _ in RESOURCES.values()}
            paths = {each: {"serverRelativeURL": f"/openapi/v3/{each}"} for each in sorted(places)}
            return {"paths": paths}
        case ["openapi", "v3", *parts]:
            return _openapi("/".join(parts))
    return None


def _place(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _openapi(place: str) -> Json | None:
    """Return the OpenAPI document that kubectl needs before it relies on server-side validation."""
    paths = {}
    for name, (group, version, kind) in RESOURCES.items():
        if _place(group, version) == place:
            named = {"group": group, "version": version, "kind": kind}
            paths[f"/{place}/{name}/{{name}}"] = {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "responses": {},
                    "x-kubernetes-group-version-kind": named,
                }
            }
    if not paths:
        return None
    info = {"title": "Kubernetes", "version": "v1.36.0"}
    return {"openapi": "3.0.0", "info": info, "paths": paths}


def _group(group: str, version: str) -> Json:
    preferred = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [preferred], "preferredVersion": preferred}


def _resources(group: str, version: str) -> Json | None:
    resources = [
        {
            "name": name,
            "singularName": kind.lower(),
            "namespaced": name not in _WITHOUT_NAMESPACE,
            "kind": kind,
            "verbs": ["create", "get", "list", "patch", "watch"],
        }
        for name, (of_group, of_version, kind) in RESOURCES.items()
        if (of_group, of_version) == (group, version)
    ]
    name = f"{group}/{version}" if group else version
    return (
        {"kind": "APIResourceList", "groupVersion": name, "resources": resources}
        if resources
        else None
    )


class ApiError(Exception):
    """A Status response with HTTP status `code`."""

    def __init__(self, code: int, reason: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after: int | None = more.pop("retry_after", None)
        self.status: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": more.pop("metadata", {}),
            "status": "Failure",
            "message": message,
            "reason": reason,
            **more,
            "code": code,
        }


@dataclass(frozen=True)
class Event:
    """A change: the object before it, if it existed, and after it."""

    version: int
    key: Key
    before: Json | None
    after: Json | None
    last: Json
    """The object of a DELETED event: the last state, with the version of the deletion."""


@dataclass
class Objects:
    """All objects, and the events since `oldest`, the oldest version a watch can start from."""

    version: int = 100
    oldest: int = 100
    now: dict[Key, Json] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    listeners: list[Callable[[], None]] = field(default_factory=list)

    def create(self, resource: str, item: Json) -> Json:
        """Create an object.  Raises a 409 error if it exists."""
        namespace = item["metadata"].get("namespace", "")
        prefix = item["metadata"].get("generateName")
        if prefix and not item["metadata"].get("name"):
            item["metadata"]["name"] = f"{prefix}{self.version:05x}"
        check_times(resource, item)
        key = (resource, namespace, item["metadata"]["name"])
        if key in self.now:
            raise ApiError(
                409,
                "AlreadyExists",
                f'{qualified(resource)} "{key[2]}" already exists',
                details=_details(resource, key[2]),
            )
        return self._store(key, item)

    def update(self, key: Key, item: Json) -> Json:
        """Replace an object.  Raises a 409 error if `item` has an outdated resourceVersion."""
        current = self.get(key)
        wanted = item["metadata"].get("resourceVersion")
        if wanted not in (None, current["metadata"]["resourceVersion"]):
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {qualified(key[0])} "{key[2]}": the object has '
                "been modified; please apply your changes to the latest version and try again",
                details=_details(key[0], key[2]),
            )
        check_times(key[0], item)
        if _without_version(item) == _without_version(current):
            return current
        return self._store(key, item)

    def patch(self, key: Key, change: Json, subresource: str = "", manager: str = "") -> Json:
        """Apply a merge patch (RFC 7396).

        A patch of a subresource changes only the subresource; no other patch changes it.
        `manager` becomes the field manager of `status.loadBalancer` unless that is empty.
        """
        current = self.get(key)
        merged: Json = _merged(current, change)
        if subresource:
            kept = {**copy.deepcopy(current), subresource: merged.get(subresource)}
            kept["metadata"]["resourceVersion"] = merged["metadata"]["resourceVersion"]
            merged = kept
            check_ingress(key, merged)
            if manager and merged.get("status") != current.get("status"):
                merged["metadata"]["managedFields"] = _managed(merged, manager)
        elif "status" in current:
            merged["status"] = current["status"]
        return self.update(key, merged)

    def delete(self, key: Key) -> Json:
        """Delete an object.  Raises a 404 error if it does not exist."""
        before = self.get(key)
        del self.now[key]
        self.version += 1
        last = copy.deepcopy(before)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._note(Event(self.version, key, before, None, last))
        return before

    def get(self, key: Key) -> Json:
        """Return an object.  Raises a 404 error if it does not exist."""
        if key not in self.now:
            raise ApiError(
                404,
                "NotFound",
                f'{qualified(key[0])} "{key[2]}" not found',
                details=_details(key[0], key[2]),
            )
        return self.now[key]

    def forget(self) -> None:
        """Compact the history: no watch or list can start before the current version."""
        self.oldest = self.version
        self.events.clear()

    def restore(self, versions: int) -> None:
        """Reset the version, as a restored etcd does: it is lower than the clients' versions.

        Only the version numbers go back; the objects are kept.
        """
        self.version -= versions
        self.oldest = min(self.oldest, self.version)
        self.events.clear()

    def _store(self, key: Key, item: Json) -> Json:
        self.version += 1
        before = self.now.get(key)
        after = copy.deepcopy(item)
        after["metadata"]["resourceVersion"] = str(self.version)
        self.now[key] = after
        self._note(Event(self.version, key, before, after, after))
        return after

    def _note(self, event: Event) -> None:
        self.events.append(event)
        for listener in list(self.listeners):
            listener()


class Query:
    """The parameters of a list or watch, validated as by a real API server."""

    def __init__(self, resource: str, namespace: str, text: str) -> None:
        given = {name: values[0] for name, values in parse_qs(text).items()}
        self.resource, self.namespace = resource, namespace
        self.is_watch = given.get("watch") in ("1", "true")
        self.bookmarks = given.get("allowWatchBookmarks") == "true"
        self.initial = given.get("sendInitialEvents") == "true"
        self.match = given.get("resourceVersionMatch")
        self.timeout = float(given.get("timeoutSeconds", 1800))
        self.limit = _number(given.get("limit"))
        self.version = _version(given.get("resourceVersion"))
        self.start, self.snapshot = _position(given.get("continue"))
        self._selector = _selector(given.get("labelSelector", ""))
        if self.initial and self.match != "NotOlderThan":
            message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            raise ApiError(
                422,
                "Invalid",
                'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: '
                + message,
                details={
                    "group": "meta.k8s.io",
                    "kind": "ListOptions",
                    "causes": [
                        {
                            "reason": "FieldValueForbidden",
                            "message": f"Forbidden: {message}",
                            "field": "resourceVersionMatch",
                        }
                    ],
                },
            )

    def has(self, key: Key, item: Json | None) -> bool:
        """Return whether the query selects the object."""
        if item is None or key[0] != self.resource or self.namespace not in ("", key[1]):
            return False
        labels = item["metadata"].get("labels") or {}
        return all(
            labels.get(name) in values if values else name in labels
            for name, values in self._selector.items()
        )

    def found(self, objects: Objects) -> list[tuple[Key, Json]]:
        """Return all selected objects, in order."""
        return [(key, item) for key, item in sorted(objects.now.items()) if self.has(key, item)]

    def page(self, objects: Objects) -> Json:
        """Return the response to a list."""
        if self.version > objects.version:
            raise ApiError(
                504,
                "Timeout",
                f"Timeout: Too large resource version: {self.version}, current: {objects.version}",
                retry_after=1,
                details={
                    "causes": [
                        {
                            "reason": "ResourceVersionTooLarge",
                            "message": "Too large resource version",
                        }
                    ],
                    "retryAfterSeconds": 1,
                },
            )
        if self.snapshot and self.snapshot < objects.oldest:
            raise ApiError(
                410,
                "Expired",
                "The provided continue parameter is too old to display a consistent list result.",
            )
        if self.match == "Exact" and self.version < objects.oldest:
            message = "The resourceVersion for the provided list is too old."
            raise ApiError(410, "Expired", message)
        found = [pair for pair in self.found(objects) if not self.start or pair[0] > self.start]
        shown, left = found, 0
        if self.limit:
            shown, left = found[: self.limit], len(found) - self.limit
        group, version, kind = RESOURCES[self.resource]
        metadata: Json = {"resourceVersion": str(self.snapshot or objects.version)}
        if left > 0:
            token = [self.snapshot or objects.version, *shown[-1][0]]
            metadata["continue"] = base64.urlsafe_b64encode(json.dumps(token).encode()).decode()
            metadata["remainingItemCount"] = left
        return {
            "kind": f"{kind}List",
            "apiVersion": f"{group}/{version}" if group else version,
            "metadata": metadata,
            "items": [item for _, item in shown],
        }

    def changes(self, event: Event) -> Iterator[tuple[str, Json]]:
        """Yield the type and object of the watch event for a change, if there is one."""
        had, has = self.has(event.key, event.before), self.has(event.key, event.after)
        if has:
            yield ("MODIFIED" if had else "ADDED"), typed(event.key[0], event.last)
        elif had:
            yield "DELETED", typed(event.key[0], event.last)


_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")


def check_times(resource: str, item: Json) -> None:
    """Raise a 422 error for a Lease with times that are not MicroTime values."""
    if resource != "leases":
        return
    for name in ("acquireTime", "renewTime"):
        text = item.get("spec", {}).get(name)
        if text is not None and not _MICRO_TIME.fullmatch(text):
            message = f'parsing time "{text}" as "2006-01-02T15:04:05.000000Z07:00"'
            raise ApiError(422, "Invalid", message)


def check_ingress(key: Key, item: Json) -> None:
    """Raise a 422 error for the status of a Service with invalid or unexpected addresses."""
    ingress = item.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    if key[0] != "services" or not ingress:
        return
    if item["spec"].get("type") != "LoadBalancer":
        rule = "may only be used when `spec.type` is 'LoadBalancer'"
        raise _invalid(key, "status.loadBalancer.ingress", "Forbidden", f"Forbidden: {rule}")
    for number, entry in enumerate(ingress):
        try:
            ip_address(entry["ip"])
        except ValueError:
            rule = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            message = f'Invalid value: "{entry["ip"]}": {rule}'
            where = f"status.loadBalancer.ingress[{number}].ip"
            raise _invalid(key, where, "Invalid", message) from None


def _invalid(key: Key, where: str, kind: str, message: str) -> ApiError:
    return invalid(RESOURCES[key[0]][2], "", key[2], where, kind, message)


def invalid(of_kind: str, group: str, name: str, where: str, kind: str, message: str) -> ApiError:
    """Return a 422 error for the field `where` of an object; `message` describes the problem."""
    cause = {"reason": f"FieldValue{kind}", "message": message, "field": where}
    qualified_kind = f"{of_kind}.{group}" if group else of_kind
    return ApiError(
        422,
        "Invalid",
        f'{qualified_kind} "{name}" is invalid: {where}: {message}',
        details={
            **({"name": name} if name else {}),
            **({"group": group} if group else {}),
            "kind": of_kind,
            "causes": [cause],
        },
    )


def typed(resource: str, item: Json) -> Json:
    """Return the object with its kind, which lists omit and watches include."""
    group, version, kind = RESOURCES[resource]
    return {"kind": kind, "apiVersion": f"{group}/{version}" if group else version, **item}


def deleted(key: Key, item: Json) -> Json:
    """Return the Status response to a deletion."""
    uid = item["metadata"].get("uid")
    details = {**_details(key[0], key[2]), **({"uid": uid} if uid else {})}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    }


def bookmark(resource: str, version: int, *, is_end: bool = False) -> Json:
    """Return the object of a BOOKMARK event."""
    metadata: Json = {"resourceVersion": str(version)}
    if is_end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return typed(resource, {"metadata": metadata})


def expired(version: int, current: int) -> ApiError:
    """Return the error for a watch from a version that is too old."""
    return ApiError(410, "Expired", f"too old resource version: {version} ({current})")


def qualified(resource: str) -> str:
    """Return the name of a resource with its API group, as used in messages."""
    group = RESOURCES[resource][0]
    return f"{resource}.{group}" if group else resource


def _details(resource: str, name: str) -> Json:
    group = RESOURCES[resource][0]
    return {"name": name, **({"group": group} if group else {}), "kind": resource}


def _without_version(item: Json) -> Json:
    metadata = {
        name: value for name, value in item["metadata"].items() if name != "resourceVersion"
    }
    return {**item, "metadata": metadata}


def _managed(item: Json, manager: str) -> list[Json]:
    """Return `metadata.managedFields` after `manager` has written the status."""
    own = [m for m in item["metadata"].get("managedFields", ()) if "subresource" not in m]
    if not item["status"].get("loadBalancer", {}).get("ingress"):
        return own
    entry = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:status": {"f:loadBalancer": {"f:ingress": {}}}},
        "subresource": "status",
    }
    return [*own, entry]


def _merged(item: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    merged = copy.deepcopy(item) if isinstance(item, dict) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


def _number(text: str | None) -> int:
    if text is not None and not text.isdecimal():
        message = f'strconv.ParseInt: parsing "{text}": invalid syntax'
        raise ApiError(400, "BadRequest", message)
    return int(text or 0)


def _version(text: str | None) -> int:
    if text and not text.isdecimal():
        raise ApiError(
            400,
            "BadRequest",
            f'invalid resource version: resourceVersion: Invalid value: "{text}": '
            f'strconv.ParseUint: parsing "{text}": invalid syntax',
        )
    return int(text or 0)


def _position(token: str | None) -> tuple[Key | None, int]:
    if not token:
        return None, 0
    try:
        version, resource, namespace, name = json.loads(base64.urlsafe_b64decode(token))
    except ValueError:
        message = "invalid continue token: continue key is not valid"
        raise ApiError(400, "BadRequest", message) from None
    return (resource, namespace, name), version


def _selector(text: str) -> Mapping[str, tuple[str, ...]]:
    """Parse `a`, `a=b` and `a in (b,c)`, separated by commas; `a` alone has no values."""
    wanted: dict[str, tuple[str, ...]] = {}
    while text:
        name, separator, rest = text.partition(" in (")
        if separator and "=" not in name:
            values, _, text = rest.partition(")")
            wanted[name] = tuple(values.split(","))
        else:
            first, _, text = text.partition(",")
            name, equals, value = first.partition("=")
            wanted[name] = (value.removeprefix("="),) if equals else ()
        text = text.lstrip(",")
    return wanted
