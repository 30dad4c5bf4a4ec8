"""`fc-frontend kubeconfig`: what it creates in the cluster and the file, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.cli import cli
from fc_frontend.errors import FrontendError, Refused, Unavailable
from fc_frontend.kubeconfigs import grants, issue
from fc_frontend.kubeconfigs.grants import (
    NAMESPACE,
    ApiAddress,
    Grant,
    GrantKind,
    Issued,
    address_for,
    covers,
    public_server,
)
from fc_frontend.kubernetes.client import ApiClient, ApiReply
from fc_frontend.kubernetes.kubeconfig import read_kubeconfig
from fc_frontend.plan.model import Bind
from tests.support.access_cluster import AccessCluster, secrets_in
from tests.support.api_cluster import TOKEN
from tests.support.api_objects import ApiError
from tests.support.api_server import Fault
from tests.support.certificates import Certificates

GRANT = Grant(
    user="alice",
    id="alice-x7f3q",
    kind=GrantKind.TOKEN,
    role="view",
    namespaces=("default", "shop"),
    seconds=3600,
)
MADE = ("secrets", "serviceaccounts", "rolebindings", "clusterrolebindings")
REQUESTS = "certificatesigningrequests"


# Arguments


@pytest.mark.parametrize(
    "name",
    ["default", "system:masters", "system:serviceaccount:a:b", "list", "revoke", "", "Alice",
     "max_m", "a.b", "-a", "a-", "../secrets", "a/b", "a%2fb", "a\nb", "ä", "a" * 41, "a b", "."],
)  # fmt: skip
def test_users_that_are_reserved_or_no_names_are_refused(name: str) -> None:
    with pytest.raises(Refused) as refused:
        grants.checked_user(name)
    assert refused.value.problem.remedy


@pytest.mark.parametrize("name", ["a", "alice", "ci-2", "0", "a" * 40])
def test_other_users_are_accepted(name: str) -> None:
    assert grants.checked_user(name) == name


@pytest.mark.parametrize(
    ("role", "namespaces"),
    [
        ("cluster-admin", ("shop",)),
        ("", ("shop",)),
        ("../view", ("shop",)),
        ("a" * 200, ("shop",)),
        ("view", ("Shop",)),
        ("view", ("a/b",)),
        ("view", ("",)),
        ("view", tuple(f"n{number}" for number in range(51))),
        # ServiceAccounts in this namespace may have more rights than the role.
        ("edit", ("kube-system",)),
        ("own-role", ("shop", "kube-system")),
        ("view", (NAMESPACE,)),
    ],
)
def test_rights_beyond_what_they_seem_are_refused(role: str, namespaces: tuple[str, ...]) -> None:
    with pytest.raises(Refused):
        grants.checked_role(role, namespaces, is_admin=False)


def test_usual_rights_are_accepted() -> None:
    for role in ("view", "edit", "admin", "own-role", "example.org:reader"):
        grants.checked_role(role, ("shop", "default"), is_admin=False)
    grants.checked_role("view", ("kube-system",), is_admin=False)
    grants.checked_role("cluster-admin", (), is_admin=True)


@pytest.mark.parametrize(
    ("text", "kind", "seconds"),
    [
        ("10m", GrantKind.TOKEN, 600),
        ("24h", GrantKind.TOKEN, 86400),
        ("365d", GrantKind.TOKEN, 365 * 86400),
        ("7d", GrantKind.CERTIFICATE, 7 * 86400),
        ("3600s", GrantKind.CERTIFICATE, 3600),
        ("9m", GrantKind.TOKEN, None),
        ("366d", GrantKind.TOKEN, None),
        ("8d", GrantKind.CERTIFICATE, None),
        ("24", GrantKind.TOKEN, None),
        ("-24h", GrantKind.TOKEN, None),
        ("1h30m", GrantKind.TOKEN, None),
        ("9999999999999999d", GrantKind.TOKEN, None),
        ("٣h", GrantKind.TOKEN, None),
    ],
)
def test_lifetimes(text: str, kind: GrantKind, seconds: int | None) -> None:
    if seconds is not None:
        assert grants.seconds_in(text, kind) == seconds
        return
    with pytest.raises(Refused):
        grants.seconds_in(text, kind)


# Objects


def test_a_token_is_bound_to_a_secret_without_data() -> None:
    record = grants.record_object(GRANT)
    assert "data" not in record and "stringData" not in record
    request = grants.token_request(GRANT, {"metadata": {"uid": "u"}})
    bound = request["spec"]["boundObjectRef"]
    assert bound == {"apiVersion": "v1", "kind": "Secret", "name": GRANT.id, "uid": "u"}
    assert not grants.account_object(GRANT)["automountServiceAccountToken"]


def test_each_namespace_has_a_binding_for_the_account_alone() -> None:
    found = dict(grants.bindings(GRANT))
    root = "/apis/rbac.authorization.k8s.io/v1/namespaces"
    assert list(found) == [f"{root}/default/rolebindings", f"{root}/shop/rolebindings"]
    for binding in found.values():
        (subject,) = binding["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": GRANT.id, "namespace": NAMESPACE}
        assert binding["roleRef"]["name"] == "view"


def test_what_is_deleted_is_what_was_made() -> None:
    for kind in GrantKind:
        for namespaces in ((), ("default", "shop")):
            grant = Grant(
                user="alice", id="alice-x7f3q", kind=kind, role="view",
                namespaces=namespaces, seconds=600,
            )  # fmt: skip
            (record,) = grants.records_in([grants.record_object(grant)])
            made = [f"{path}/{quoted(item)}" for path, item in grants.bindings(grant)]
            if kind is GrantKind.TOKEN:
                made.append(f"{grants.ACCOUNTS}/{grant.id}")
            # The record is deleted last, so that revoking can be repeated.
            assert grants.made_for(record) == [*made, f"{grants.RECORDS}/{grant.id}"]


def quoted(item: dict[str, Any]) -> str:
    return str(item["metadata"]["name"]).replace(":", "%3A")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["metadata", "labels", "annotations", "name", "user", "expires"]))
def test_secrets_of_others_are_no_records_and_raise_nothing(value: Any, where: str) -> None:
    item = grants.record_object(GRANT)
    metadata = item["metadata"]
    match where:
        case "metadata":
            item["metadata"] = value
        case "labels" | "annotations" | "name":
            metadata[where] = value
        case "user":
            metadata["labels"]["fc-frontend.io/user"] = value
        case "expires":
            metadata["annotations"]["fc-frontend.io/expires"] = value
    for record in grants.records_in([item, value]):
        assert record.id == GRANT.id
        assert all(path.count("..") == 0 for path in grants.made_for(record))


def test_a_damaged_record_is_revoked_as_far_as_it_says() -> None:
    item = grants.record_object(GRANT)
    item["metadata"]["annotations"] = {
        "fc-frontend.io/namespaces": "shop,../kube-system,default/../x",
        "fc-frontend.io/kind": "odd",
        "fc-frontend.io/expires": "9999999999999999999",
    }
    (record,) = grants.records_in([item])
    assert record.namespaces == ("shop",)
    assert record.kind is None
    assert record.expires is None
    assert f"{grants.ACCOUNTS}/{GRANT.id}" in grants.made_for(record)


# The kubeconfig


OWN = ApiAddress(server="https://10.0.0.5:6443", ca=b"ca", proxy="http://proxy:3128")
NAMES = ("kubernetes", "10.0.0.5", "127.0.0.1", "FD00:0:0:0:0:0:0:1")


@pytest.mark.parametrize(
    ("own", "server", "expected"),
    [
        ("https://10.0.0.5:6443", None, ("https://10.0.0.5:6443", None)),
        ("https://10.0.0.5:6443", "https://kubernetes", ("https://kubernetes", None)),
        # The certificate lacks the new address: it is verified against the caller's address.
        (
            "https://10.0.0.5:6443",
            "https://198.51.100.2:6443",
            ("https://198.51.100.2:6443", "10.0.0.5"),
        ),
        ("https://127.0.0.1:6443/k3s", None, ("https://vm1.example.org:6443/k3s", "127.0.0.1")),
        ("https://[::1]:443", None, ("https://vm1.example.org:443", "::1")),
        ("https://localhost:6443", None, ("https://vm1.example.org:6443", "localhost")),
    ],
)
def test_the_address_for_its_holder(
    own: str, server: str | None, expected: tuple[str, str | None]
) -> None:
    found = address_for(ApiAddress(server=own, ca=b"ca"), NAMES, server, "vm1.example.org")
    assert (found.server, found.server_name, found.ca) == (*expected, b"ca")


def test_a_proxy_is_kept_for_the_address_that_it_is_for() -> None:
    assert address_for(OWN, NAMES, None, "vm1") == OWN
    assert address_for(OWN, NAMES, "https://198.51.100.2:6443", "vm1").proxy is None


def test_names_of_certificates() -> None:
    assert covers(NAMES, "Kubernetes")
    assert covers(NAMES, "fd00::1")
    assert not covers(NAMES, "fd00::2")
    assert not covers(("10.0.0.5.example.org",), "10.0.0.5")


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ((), None),
        (("*", "::", "127.0.0.1"), None),
        (("10.0.0.5", "198.51.100.2"), "https://198.51.100.2:6443"),
        (("fd00::1",), "https://[fd00::1]:6443"),
        (("fd00::1", "2a02:238:f030::1000"), "https://[2a02:238:f030::1000]:6443"),
    ],
)
def test_the_bind_for_the_outside(hosts: tuple[str, ...], expected: str | None) -> None:
    assert public_server(Bind("ip", host, 6443) for host in hosts) == expected


def test_secrets_are_not_shown() -> None:
    issued = Issued(1.0, token="TOKEN", certificate=b"CERTIFICATE", key=b"KEY")
    assert repr(issued) == "Issued(expires=1.0)"


# With an API server


@pytest.fixture
def cluster(tmp_path: Path, certificates: Certificates) -> Iterator[AccessCluster]:
    with AccessCluster(tmp_path, certificates) as made:
        yield made


def asked(kubeconfig: Path, path: str) -> ApiReply:
    """Return the API server's reply to a request with a kubeconfig."""

    async def ask() -> ApiReply:
        async with ApiClient(lambda: read_kubeconfig(str(kubeconfig))).connect() as api:
            return await api.request("GET", path)

    return asyncio.run(ask())


SERVICES = "/api/v1/namespaces/default/services"
ELSEWHERE = "/api/v1/namespaces/kube-system/services"


def left(cluster: AccessCluster) -> list[str]:
    """Return the names of all remaining objects that were created for kubeconfigs."""
    return [name for resource in (*MADE, REQUESTS) for name in cluster.names(resource)]


def test_a_kubeconfig_has_the_rights_that_were_asked_for_until_it_is_revoked(
    cluster: AccessCluster,
) -> None:
    made = cluster.run("alice", "--server", cluster.server, "--for", "1h")
    assert made.returncode == 0, made.stderr
    (path,) = cluster.directory.glob("alice-*.kubeconfig")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"{path.name}: a token for alice" in made.stdout
    assert "role view in default" in made.stdout
    assert "(60 min)" in made.stdout
    (token,) = secrets_in(path)
    assert token not in made.stdout + made.stderr
    assert asked(path, SERVICES).status == 200
    assert asked(path, ELSEWHERE).status == 403
    assert b"cannot list" in asked(path, "/api/v1/namespaces/default/secrets").body

    document = json.loads(cluster.run("list", "--json").stdout)
    (record,) = document["kubeconfigs"]
    assert (record["user"], record["role"], record["namespaces"]) == ("alice", "view", ["default"])
    assert record["expires"] == pytest.approx(time.time() + 3600, abs=60)
    revoked = cluster.run("revoke", "alice")
    assert revoked.returncode == 0, revoked.stderr
    assert record["id"] in revoked.stdout
    assert asked(path, SERVICES).status == 401
    assert left(cluster) == []


def test_a_certificate_has_its_rights_by_a_group_of_its_own(cluster: AccessCluster) -> None:
    path = cluster.made("alice", "--certificate", "--for", "10m")
    other = cluster.made("alice", "--certificate")
    assert asked(path, SERVICES).status == asked(other, SERVICES).status == 200
    assert asked(path, ELSEWHERE).status == 403
    assert cluster.names("serviceaccounts") == cluster.names(REQUESTS) == []
    groups = {
        cluster.item("rolebindings", "default", name)["subjects"][0]["name"]
        for name in cluster.names("rolebindings")
    }
    assert len(groups) == 2
    revoked = cluster.run("revoke", "alice")
    assert "has no rights any more" in revoked.stderr
    refused = asked(path, SERVICES)
    assert refused.status == 403
    assert b'User \\"fc-frontend:alice\\" cannot list' in refused.body


@pytest.mark.extended
def test_the_deletion_of_the_secret_alone_revokes_a_token(cluster: AccessCluster) -> None:
    path = cluster.made("alice")
    (name,) = cluster.names("secrets")

    async def delete() -> None:
        cluster.api.objects.delete(("secrets", NAMESPACE, name))

    assert asked(path, SERVICES).status == 200
    cluster.call(delete())
    assert asked(path, SERVICES).status == 401


@pytest.mark.extended
def test_lifetimes_that_the_server_shortens_are_reported(cluster: AccessCluster) -> None:
    cluster.identities.longest_token = 1200
    done = cluster.run("alice", "--output", "one", "--server", cluster.server)
    assert "granted 20 min instead of 24 h" in done.stderr
    assert "(20 min)" in done.stdout
    cluster.identities.longest_certificate = 1800
    arguments = ("bob", "--certificate", "--output", "two", "--server", cluster.server, "--json")
    document = json.loads(cluster.run(*arguments).stdout)
    assert "granted 30 min instead of 24 h" in document["problems"][0]["message"]
    assert document["kubeconfigs"][0]["expires"] == pytest.approx(time.time() + 1800, abs=60)


def test_the_output_is_the_kubeconfig_alone_if_that_is_asked_for(cluster: AccessCluster) -> None:
    done = cluster.run("alice", "--output", "-", "--server", "https://198.51.100.2:6443")
    document = yaml.safe_load(done.stdout)
    (entry,) = document["clusters"]
    assert entry["cluster"]["server"] == "https://198.51.100.2:6443"
    # The server's certificate does not contain this address.
    assert entry["cluster"]["tls-server-name"] == "127.0.0.1"
    assert document["users"][0]["user"]["token"] not in done.stderr
    assert "role view in default" in done.stderr


@pytest.mark.extended
def test_unrestricted_access_takes_its_own_option(cluster: AccessCluster) -> None:
    refused = cluster.run("alice", "--role", "cluster-admin")
    assert refused.returncode == 1
    assert "give --cluster-admin" in refused.stderr
    assert cluster.run("alice", "--role", "view", "--cluster-admin").returncode == 2
    path = cluster.made("alice", "--cluster-admin", "--for", "10m")
    assert asked(path, "/api/v1/secrets").status == 200
    assert cluster.run("revoke", "alice").returncode == 0
    assert left(cluster) == []


def test_an_existing_file_stays_and_nothing_is_made(cluster: AccessCluster) -> None:
    (cluster.directory / "kept").write_text("mine")
    (cluster.directory / "link").symlink_to("nowhere")
    for name in ("kept", "link"):
        done = cluster.run("alice", "--output", name)
        assert done.returncode == 1
        assert f"{name} exists" in done.stderr
    assert (cluster.directory / "kept").read_text() == "mine"
    assert not cluster.api.requests


# Failures


def make(cluster: AccessCluster, grant: Grant, save: issue.Save | None = None) -> Issued:
    """Issue a kubeconfig in this process and return it."""
    path = str(cluster.kubeconfig)
    work = issue.make(lambda: read_kubeconfig(path), grant, None, save or (lambda *_: None))
    return asyncio.run(work)[0]


CERTIFICATE = Grant(
    user="bob", id="bob-x7f3q", kind=GrantKind.CERTIFICATE, role="edit", namespaces=("shop",),
    seconds=600,
)  # fmt: skip


@pytest.mark.parametrize(
    ("grant", "denied"),
    [
        (GRANT, ("create", "secrets")),
        (GRANT, ("create", "serviceaccounts")),
        (GRANT, ("create", "rolebindings")),
        (GRANT, ("create", "serviceaccounts/token")),
        (GRANT, ("patch", "secrets")),
        (CERTIFICATE, ("create", REQUESTS)),
        (CERTIFICATE, ("update", f"{REQUESTS}/approval")),
    ],
)
def test_who_lacks_a_right_makes_nothing(
    cluster: AccessCluster, grant: Grant, denied: tuple[str, str]
) -> None:
    cluster.api.denied = {denied}
    with pytest.raises(Refused) as refused:
        make(cluster, grant)
    assert "is forbidden" in refused.value.problem.message
    assert "administrator" in refused.value.problem.remedy
    assert left(cluster) == []


def test_who_may_not_read_roles_or_create_namespaces_can_use_them(cluster: AccessCluster) -> None:
    make(cluster, GRANT)
    cluster.api.denied = {("get", "clusterroles"), ("create", "namespaces")}
    assert make(cluster, CERTIFICATE).certificate


@pytest.mark.extended
def test_roles_and_namespaces_that_are_missing_are_named(cluster: AccessCluster) -> None:
    done = cluster.run("alice", "--role", "nobody")
    assert "there is no ClusterRole nobody" in done.stderr
    done = cluster.run("alice", "-n", "default", "-n", "nowhere")
    assert 'namespaces "nowhere" not found' in done.stderr
    assert left(cluster) == []


@pytest.mark.extended
def test_a_file_that_cannot_be_written_leaves_nothing_in_the_cluster(
    cluster: AccessCluster,
) -> None:
    done = cluster.run("alice", "--output", "missing/file", "--server", cluster.server)
    assert done.returncode == 3
    assert "missing/file" in done.stderr
    assert left(cluster) == []


def test_a_token_that_could_not_be_revoked_is_not_handed_out(cluster: AccessCluster) -> None:
    cluster.identities.ignores_binding = True
    with pytest.raises(Unavailable) as failed:
        make(cluster, GRANT)
    assert "could not be revoked" in failed.value.problem.message
    assert left(cluster) == []


ISSUED: dict[str, Any] = {
    "spec": {"boundObjectRef": {"uid": "UID"}},
    "status": {"token": "a.b.c", "expirationTimestamp": "2099-01-01T00:00:00Z"},
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("spec", None),
        ("spec", {"boundObjectRef": []}),
        ("spec", {"boundObjectRef": {"uid": "another"}}),
        ("status", "odd"),
        ("status", {**ISSUED["status"], "token": None}),
        ("status", {**ISSUED["status"], "token": "two\r\nlines"}),
        ("status", {**ISSUED["status"], "token": "x" * 10 + "\u202e"}),
        ("status", {**ISSUED["status"], "expirationTimestamp": None}),
        ("status", {**ISSUED["status"], "expirationTimestamp": "2099-01-01"}),
        ("status", {**ISSUED["status"], "expirationTimestamp": 10**30}),
        ("status", {**ISSUED["status"], "expirationTimestamp": "2020-01-01T00:00:00Z"}),
    ],
)
def test_odd_answers_to_the_request_for_a_token_are_refused(
    cluster: AccessCluster, monkeypatch: pytest.MonkeyPatch, part: str, value: Any
) -> None:
    def answer(key: Any, request: Any) -> Any:
        bound = request["spec"]["boundObjectRef"]
        return json.loads(json.dumps({**ISSUED, part: value}).replace("UID", bound["uid"]))

    monkeypatch.setattr(cluster.identities, "token", answer)
    with pytest.raises(Unavailable):
        make(cluster, GRANT)
    assert left(cluster) == []


@pytest.mark.parametrize("ends", ["-1e300", "1e300", "NaN", "[]", '"x"'])
def test_what_a_token_says_of_itself_need_not_be_a_time(
    cluster: AccessCluster, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    claims = base64.urlsafe_b64encode(f'{{"exp": {ends}}}'.encode()).decode()

    def answer(key: Any, request: Any) -> Any:
        status = {**ISSUED["status"], "token": f"a.{claims}.c"}
        return {"spec": request["spec"], "status": status}

    monkeypatch.setattr(cluster.identities, "token", answer)
    assert grants.shown_time(make(cluster, GRANT).expires) == "2099-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "status",
    [
        {"certificate": 1},
        {"certificate": "no base64!"},
        {"certificate": "bm8gUEVN"},
        {"certificate": "OTHER"},
        {"conditions": [{"type": "Denied", "message": "not \x1b[31m here"}]},
        {"conditions": 5},
        {"conditions": [None, 1]},
        [],
    ],
)
def test_odd_answers_to_the_request_for_a_certificate_are_refused(
    cluster: AccessCluster,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    status: Any,
) -> None:
    if isinstance(status, dict) and status.get("certificate") == "OTHER":
        status = {"certificate": certificates.data("client.crt")}
    monkeypatch.setattr(issue, "SIGNING_SECONDS", 0.3)
    objects = cluster.api.objects

    def approve(key: Any, item: Any) -> Any:
        return objects.update(key, {**objects.get(key), "status": status})

    monkeypatch.setattr(cluster.identities, "approve", approve)
    with pytest.raises(FrontendError) as failed:
        make(cluster, CERTIFICATE)
    assert "\x1b" not in str(failed.value)
    assert left(cluster) == []


def test_without_a_signer_the_request_is_withdrawn(
    cluster: AccessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issue, "SIGNING_SECONDS", 0.3)
    cluster.identities.signs = False
    with pytest.raises(Unavailable) as failed:
        make(cluster, CERTIFICATE)
    assert "no certificate is issued" in failed.value.problem.message
    assert left(cluster) == []


@pytest.mark.parametrize("fault", [Fault.KILL, Fault.GARBAGE])
def test_a_server_that_fails_is_unknown(cluster: AccessCluster, fault: Fault) -> None:
    cluster.api.fault = fault
    for grant in (GRANT, CERTIFICATE):
        with pytest.raises(Unavailable):
            make(cluster, grant)
    with pytest.raises(Unavailable):
        asyncio.run(issue.listed(lambda: read_kubeconfig(str(cluster.kubeconfig))))


def test_an_error_in_the_middle_leaves_nothing(cluster: AccessCluster) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    for grant in (GRANT, CERTIFICATE):
        with pytest.raises(KeyboardInterrupt):
            make(cluster, grant, fail)
        assert left(cluster) == []


@pytest.mark.extended
def test_revoking_can_be_repeated_after_a_failure(cluster: AccessCluster) -> None:
    path = cluster.made("alice")
    cluster.api.denied = {("delete", "serviceaccounts")}
    done = cluster.run("revoke", "alice")
    assert done.returncode == 1
    # The rights were removed first.
    assert asked(path, SERVICES).status == 403
    cluster.api.denied = set()
    assert cluster.run("revoke", "alice").returncode == 0
    assert left(cluster) == []
    again = cluster.run("revoke", "alice")
    assert again.returncode == 1
    assert "there is no kubeconfig for alice" in again.stderr


def test_what_is_left_of_kubeconfigs_that_ended_is_removed(cluster: AccessCluster) -> None:
    def ended(ago: int, user: str) -> None:
        """Create a kubeconfig that expired `ago` seconds ago."""
        make(cluster, replace(GRANT, user=user, id=f"{user}-{ago}"))
        item = cluster.item("secrets", NAMESPACE, f"{user}-{ago}")
        notes = item["metadata"]["annotations"]
        notes["fc-frontend.io/expires"] = grants.shown_time(time.time() - ago)

    for ago, user in ((7200, "alice"), (60, "alice"), (7200, "bob")):
        ended(ago, user)
    make(cluster, GRANT)
    assert cluster.names("serviceaccounts") == ["alice-60", GRANT.id, "bob-7200"]
    assert cluster.names("secrets") == ["alice-60", GRANT.id, "bob-7200"]
    cluster.api.denied = {("list", "secrets")}
    make(cluster, replace(GRANT, id="alice-more"))


@pytest.mark.extended
def test_one_user_is_revoked_and_no_other(cluster: AccessCluster) -> None:
    alice, bob = cluster.made("alice"), cluster.made("alice-b")
    assert cluster.run("revoke", "alice").returncode == 0
    assert (asked(alice, SERVICES).status, asked(bob, SERVICES).status) == (401, 200)


def test_answers_that_are_no_answers_raise_no_error_of_python(cluster: AccessCluster) -> None:
    odd: list[Any] = [{}, {"items": 1}, {"items": [None, 1, {"metadata": []}]}, {"items": {}}]
    for answer in odd:
        assert (
            grants.records_in(answer.get("items") if isinstance(answer.get("items"), list) else ())
            == []
        )
    cluster.api.errors = [ApiError(500, "InternalError", "token \x1b[31m\nred")]
    done = cluster.run("list")
    assert done.returncode == 3
    assert "\x1b[31m" not in done.stderr


# The caller


def test_the_callers_kubeconfig_is_the_one_of_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    usual = tmp_path / ".kube" / "config"
    usual.parent.mkdir()
    usual.write_text("{}")
    assert issue.callers_kubeconfig() == str(usual)
    named = [tmp_path / "a", tmp_path / "b"]
    monkeypatch.setenv("KUBECONFIG", f":{named[0]}:{named[1]}")
    with pytest.raises(Unavailable):
        issue.callers_kubeconfig()
    named[1].write_text("{}")
    assert issue.callers_kubeconfig() == str(named[1])
    named[0].write_text("{}")
    with pytest.raises(Refused):
        issue.callers_kubeconfig()


def test_a_caller_who_does_not_verify_the_server_makes_nothing(cluster: AccessCluster) -> None:
    cluster.write_kubeconfig({"token": TOKEN}, **{"insecure-skip-tls-verify": True})
    with pytest.raises(FrontendError, match="anybody could pose"):
        make(cluster, GRANT)
    assert left(cluster) == []


def test_the_daemons_credentials_are_never_used(cluster: AccessCluster, tmp_path: Path) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text(f"cluster: {{api: {{kubeconfig: {cluster.kubeconfig}}}}}\n")
    done = cluster.run("list", "-c", str(settings), HOME=str(tmp_path), KUBECONFIG="/none")
    assert done.returncode == 3
    assert "there is no kubeconfig at /none" in done.stderr
    assert not cluster.api.requests


@pytest.mark.extended
def test_the_callers_client_certificate_and_plugin_work(
    cluster: AccessCluster, certificates: Certificates
) -> None:
    admin = cluster.made("root", "--certificate", "--cluster-admin", "--for", "10m")
    done = cluster.run("list", "--kubeconfig", str(admin))
    assert "root-" in done.stdout, done.stderr
    output = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": TOKEN},
    }
    plugin = cluster.directory / "plugin"
    plugin.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(output)}\nEND\n")
    plugin.chmod(0o700)
    command = {"apiVersion": output["apiVersion"], "command": str(plugin)}
    cluster.write_kubeconfig({"exec": command})
    assert "root-" in cluster.run("list").stdout


@pytest.mark.parametrize(
    "words", [(), ("a", "b"), ("list", "a"), ("revoke",), ("revoke", "a", "b")]
)
def test_other_words_are_wrong_usage(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, ["kubeconfig", *words])
    assert done.exit_code == 2
    assert "give a USER, or list, or revoke and a USER" in done.output


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("list", "--output", "-"), "--output"),
        (("revoke", "alice", "-n", "shop"), "--namespace"),
        (("list", "--cluster-admin"), "--cluster-admin"),
    ],
)
def test_options_for_making_are_no_options_of_other_words(
    words: tuple[str, ...], option: str
) -> None:
    done = CliRunner().invoke(cli, ["kubeconfig", *words])
    assert done.exit_code == 2
    assert f"{words[0]} does not take {option}" in done.output


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff", b"[]", b"users: [{name: 1}]", b"{a: &x [*x]}"]
)
def test_a_kubeconfig_of_the_caller_that_is_none_is_unknown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    done = CliRunner().invoke(cli, ["kubeconfig", "list", "--kubeconfig", str(path)])
    assert done.exit_code == 3
    assert f"no access to the API by {path}" in done.output


@pytest.mark.extended
def test_the_address_is_that_of_the_frontend_for_the_api(
    cluster: AccessCluster, tmp_path: Path
) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text(
        "cluster: {nameservers: ['127.0.0.1:53']}\n"
        "api_access: {binds: ['10.0.0.5:6443', '198.51.100.2:6443'], nodes: {a: 192.0.2.1}}\n"
    )
    done = cluster.run("alice", "--output", "-", "-c", str(settings))
    (entry,) = yaml.safe_load(done.stdout)["clusters"]
    assert entry["cluster"]["server"] == "https://198.51.100.2:6443"
