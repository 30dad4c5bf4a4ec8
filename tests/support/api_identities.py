"""Authentication and RBAC of a small API server: tokens, certificates, bindings.

Behaves like kube-apiserver 1.36 (tests/recorded): each request with a token of the TokenRequest API
is checked against the ServiceAccount and the Secret to which the token is bound; the real server
caches a successful check for ten seconds.  The test's authority signs CertificateSigningRequests.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.api_objects import RESOURCES, ApiError, Json, Key, Objects, invalid
from tests.support.certificates import Certificates

ADMINS = "system:masters"
DEFAULT_ROLES: dict[str, list[Json]] = {
    "cluster-admin": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
    "view": [
        {
            "apiGroups": ["", "discovery.k8s.io"],
            "resources": ["services", "endpointslices", "serviceaccounts"],
            "verbs": ["get", "list", "watch"],
        }
    ],
    "edit": [
        {
            "apiGroups": ["", "discovery.k8s.io"],
            "resources": ["services", "endpointslices", "serviceaccounts", "secrets"],
            "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
        }
    ],
}
"""The rules of the default cluster roles that concern this server's resources."""


@dataclass(frozen=True)
class Identity:
    """A user with groups, as in a SelfSubjectReview."""

    name: str
    groups: tuple[str, ...]
    uid: str = ""


ANONYMOUS = Identity("system:anonymous", ("system:unauthenticated",))


@dataclass
class Identities:
    """Authentication and authorization by `objects`; `admin_token` may do everything.

    `longest_token` and `longest_certificate` are the server's limits, in seconds.  Without
    `signs`, approved requests get no certificate.
    """

    objects: Objects
    certificates: Certificates
    admin_token: str
    longest_token: int = 365 * 86400
    longest_certificate: int = 365 * 86400
    signs: bool = True
    ignores_binding: bool = False
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def __post_init__(self) -> None:
        for name, rules in DEFAULT_ROLES.items():
            item = {"metadata": {"name": name}, "rules": rules}
            self.objects.create("clusterroles", stamped(item))
        for name in ("default", "shop", "kube-system"):
            self.objects.create("namespaces", stamped({"metadata": {"name": name}}))

    # Authentication

    def identity(self, token: str | None, peer: Any) -> Identity:
        """Return the identity of a bearer token, or of `peer`, as from ssl.getpeercert.

        Raises a 401 error for an invalid token.
        """
        if peer:
            subject = {name: value for ((name, value),) in peer["subject"]}
            groups = tuple(v for ((n, v),) in peer["subject"] if n == "organizationName")
            return Identity(subject["commonName"], (*groups, "system:authenticated"))
        if token is None:
            return ANONYMOUS
        if token == self.admin_token:
            return Identity("admin", (ADMINS, "system:authenticated"))
        return self._of_account(token)

    def _of_account(self, token: str) -> Identity:
        unauthorized = ApiError(401, "Unauthorized", "Unauthorized")
        signed, _, signature = token.rpartition(".")
        if signature != self._signature(signed):
            raise unauthorized
        claims = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        about = claims["kubernetes.io"]
        namespace, account = about["namespace"], about["serviceaccount"]
        bound = [("serviceaccounts", account)]
        if "secret" in about:
            bound.append(("secrets", about["secret"]))
        for resource, reference in bound:
            item = self.objects.now.get((resource, namespace, reference["name"]))
            if item is None or item["metadata"]["uid"] != reference["uid"]:
                raise unauthorized
        if claims["exp"] < time.time():
            raise unauthorized
        groups = (
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        )
        name = f"system:serviceaccount:{namespace}:{account['name']}"
        return Identity(name, groups, account["uid"])

    # Authorization

    def may(self, who: Identity, verb: str, resource: str, namespace: str) -> bool:
        """Return whether RBAC allows the request; `resource` may include a subresource."""
        if ADMINS in who.groups:
            return True
        bindings = [
            item
            for (kind, where, _), item in self.objects.now.items()
            if kind == "clusterrolebindings" or (kind == "rolebindings" and where == namespace)
        ]
        return any(
            self._grants(binding, verb, resource)
            for binding in bindings
            if any(_is_subject(who, subject) for subject in binding["subjects"])
        )

    def _grants(self, binding: Json, verb: str, resource: str) -> bool:
        reference = binding["roleRef"]
        kind, where = "clusterroles", ""
        if reference["kind"] == "Role":
            kind, where = "roles", binding["metadata"]["namespace"]
        role = self.objects.now.get((kind, where, reference["name"]))
        group = RESOURCES[resource.partition("/")[0]][0]
        return any(
            {"*", group} & set(rule["apiGroups"])
            and {"*", resource} & set(rule["resources"])
            and {"*", verb} & set(rule["verbs"])
            for rule in (role or {}).get("rules", ())
        )

    # Tokens and certificates

    def token(self, key: Key, request: Json) -> Json:
        """Return the response to a TokenRequest for the ServiceAccount `key`."""
        account = self.objects.get(key)
        seconds = request["spec"].get("expirationSeconds", 3600)
        if seconds < 600:
            rule = "may not specify a duration less than 10 minutes"
            kind = ("TokenRequest", "authentication.k8s.io")
            where = "spec.expirationSeconds"
            raise invalid(*kind, "", where, "Invalid", f"Invalid value: {seconds}: {rule}")
        seconds = min(seconds, self.longest_token)
        bound = request["spec"].get("boundObjectRef")
        about: Json = {
            "namespace": key[1],
            "serviceaccount": {"name": key[2], "uid": account["metadata"]["uid"]},
        }
        if self.ignores_binding:
            bound = None
        if bound is not None:
            secret = self.objects.get(("secrets", key[1], bound["name"]))
            if secret["metadata"]["uid"] != bound["uid"]:
                message = f"the UID in the bound object reference ({bound['uid']}) does not match"
                raise ApiError(409, "Conflict", message)
            about["secret"] = {"name": bound["name"], "uid": bound["uid"]}
        expires = int(time.time()) + seconds
        parts = ({"alg": "HS256"}, {"exp": expires, "kubernetes.io": about})
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
        audiences = ["https://kubernetes.default.svc"]
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": key[2], "namespace": key[1], "creationTimestamp": _now()},
            "spec": {
                "audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": bound,
            },
            "status": {
                "token": f"{signed}.{self._signature(signed)}",
                "expirationTimestamp": _shown(datetime.fromtimestamp(expires, UTC)),
            },
        }  # fmt: skip

    def check_request(self, item: Json, who: Identity) -> None:
        """Check a CertificateSigningRequest and add the requesting user.

        Raises a 422 error if `spec.request` contains no certificate request.
        """
        spec = item["spec"]
        data = base64.b64decode(spec["request"])
        if not data.startswith(b"-----BEGIN CERTIFICATE REQUEST-----"):
            rule = "PEM block type must be CERTIFICATE REQUEST"
            message = f'Invalid value: "{spec["request"]}": {rule}'
            kind = ("CertificateSigningRequest", "certificates.k8s.io")
            raise invalid(*kind, item["metadata"]["name"], "spec.request", "Invalid", message)
        spec["username"], spec["groups"] = who.name, list(who.groups)
        item["status"] = {}

    def approve(self, key: Key, item: Json) -> Json:
        """Store the approval of a request; a little later it is signed, as by another process."""
        current = self.objects.get(key)
        conditions = [
            {**each, "lastUpdateTime": _now(), "lastTransitionTime": _now()}
            for each in item["status"]["conditions"]
        ]
        changed = {**current, "status": {**current["status"], "conditions": conditions}}
        changed["metadata"] = {**changed["metadata"], **_version_of(item)}
        stored = self.objects.update(key, changed)
        if self.signs and any(each["type"] == "Approved" for each in conditions):
            asyncio.get_running_loop().call_later(0.05, self._sign, key)
        return stored

    def _sign(self, key: Key) -> None:
        item = self.objects.now.get(key)
        if item is None:
            return
        request = x509.load_pem_x509_csr(base64.b64decode(item["spec"]["request"]))
        organizations = {
            str(each.value)
            for each in request.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
        }
        seconds = min(item["spec"].get("expirationSeconds", 86400 * 365), self.longest_certificate)
        authority = x509.load_pem_x509_certificate(self.certificates.path("ca.crt").read_bytes())
        signer = load_pem_private_key(self.certificates.path("ca.key").read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        assert ADMINS not in organizations, "admission refuses it earlier"
        now = datetime.now(UTC).replace(microsecond=0)
        signed = (
            x509.CertificateBuilder()
            .subject_name(request.subject)
            .issuer_name(authority.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(seconds=seconds))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(signer, hashes.SHA256())
        )
        pem = base64.b64encode(signed.public_bytes(Encoding.PEM)).decode()
        self.objects.update(key, {**item, "status": {**item["status"], "certificate": pem}})

    def _signature(self, text: str) -> str:
        return _encoded(hmac.digest(self._key, text.encode(), hashlib.sha256))


def self_review(who: Identity) -> Json:
    """Return the response to a SelfSubjectReview."""
    info: Json = {"username": who.name, "groups": list(who.groups)}
    if who.uid:
        info["uid"] = who.uid
    return {
        "kind": "SelfSubjectReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": _now()},
        "status": {"userInfo": info},
    }


def stamped(item: Json) -> Json:
    """Return an object with the fields that a server adds on creation."""
    uid = "-".join(secrets.token_hex(size) for size in (4, 2, 2, 2, 6))
    added = {"uid": uid, "creationTimestamp": _now()}
    return {**item, "metadata": {**item["metadata"], **added}}


def _is_subject(who: Identity, subject: Json) -> bool:
    match subject["kind"]:
        case "ServiceAccount":
            name = f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
            return bool(who.name == name)
        case "Group":
            return subject["name"] in who.groups
        case _:
            return bool(who.name == subject["name"])


def _version_of(item: Json) -> Json:
    version = item["metadata"].get("resourceVersion")
    return {"resourceVersion": version} if version else {}


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _now() -> str:
    return _shown(datetime.now(UTC))


def _shown(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
