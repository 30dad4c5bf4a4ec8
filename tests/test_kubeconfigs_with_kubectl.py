"""The kubeconfigs of `fc-frontend kubeconfig`, used by the real kubectl."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.access_cluster import AccessCluster, kubectl_with, secrets_in
from tests.support.certificates import Certificates

pytestmark = pytest.mark.extended
CONTRIB = Path(__file__).parent.parent / "contrib"


@pytest.fixture
def cluster(tmp_path: Path, certificates: Certificates) -> Iterator[AccessCluster]:
    with AccessCluster(tmp_path, certificates) as made:
        yield made


def said(kubectl: Path, kubeconfig: Path, *arguments: str) -> str:
    """Return kubectl's output; kubectl must succeed."""
    done = kubectl_with(kubectl, kubeconfig, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(kubectl: Path, kubeconfig: Path, *arguments: str) -> str:
    """Return kubectl's error output; kubectl must fail."""
    done = kubectl_with(kubectl, kubeconfig, *arguments)
    assert done.returncode != 0, done.stdout
    return done.stderr


def account(directory: Path) -> str:
    """Write a manifest of a ServiceAccount; return its path."""
    path = directory / "account.yaml"
    path.write_text("{apiVersion: v1, kind: ServiceAccount, metadata: {name: more}}\n")
    return str(path)


@pytest.mark.parametrize("kind", ["--for=1h", "--certificate"])
def test_view_reads_its_namespace_and_nothing_else(
    cluster: AccessCluster, kubectl: Path, kind: str
) -> None:
    path = cluster.made("alice", "-n", "shop", kind)
    assert said(kubectl, path, "config", "current-context").strip() == "alice"
    # The context's namespace is the requested one.
    said(kubectl, path, "get", "serviceaccounts")
    assert "cannot list" in refused(kubectl, path, "get", "services", "-n", "default")
    assert "cannot create" in refused(kubectl, path, "create", "-f", account(cluster.directory))


def test_edit_changes_its_namespace_until_it_is_revoked(
    cluster: AccessCluster, kubectl: Path
) -> None:
    path = cluster.made("ci", "--role", "edit", "-n", "shop")
    said(kubectl, path, "create", "-f", account(cluster.directory))
    assert "more" in said(kubectl, path, "get", "serviceaccounts", "-o", "name")
    assert cluster.run("revoke", "ci").returncode == 0
    assert "Unauthorized" in refused(kubectl, path, "get", "serviceaccounts")


def test_a_certificate_without_rights_is_still_a_name(
    cluster: AccessCluster, kubectl: Path
) -> None:
    path = cluster.made("ci", "--certificate", "--role", "edit", "-n", "shop")
    said(kubectl, path, "get", "serviceaccounts")
    cluster.run("revoke", "ci")
    assert 'User "fc-frontend:ci" cannot list' in refused(kubectl, path, "get", "serviceaccounts")
    assert "fc-frontend:ci" in said(kubectl, path, "auth", "whoami")


def test_the_documented_command_works(cluster: AccessCluster, kubectl: Path) -> None:
    """`kubernetes-make-kubeconfig > $USER-$HOST.kubeconfig` works as the page documents."""
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{CONTRIB}:{os.environ['PATH']}",
        "KUBECONFIG": str(cluster.kubeconfig),
        "USER": "Max_M",
        "HOST": "vm1",
        "SERVER": cluster.server,
    }
    environ.pop("SUDO_USER", None)

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=cluster.directory,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    done = shell("umask 077; kubernetes-make-kubeconfig > $USER-$HOST.kubeconfig")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    path = cluster.directory / "Max_M-vm1.kubeconfig"
    (token,) = secrets_in(path)
    assert token not in done.stderr
    for word in ("role cluster-admin in all namespaces", "after 24 hours", "revoke max-m"):
        assert word in done.stderr
    # The caller's address belongs to this machine and is replaced; use the test's address.
    kubectl_with(kubectl, path, "config", "set-cluster", "cluster", f"--server={cluster.server}")
    said(kubectl, path, "get", "namespaces")
    said(kubectl, path, "cluster-info")
    done = shell("kubernetes-make-kubeconfig --role view --server $SERVER > other.kubeconfig")
    assert done.returncode == 0, done.stderr
    assert "role view in default" in done.stderr
    other = cluster.directory / "other.kubeconfig"
    assert "cannot list" in refused(kubectl, other, "get", "namespaces")
    listed = cluster.run("list").stdout
    assert listed.count("max-m-") == 2
    # A refused user leaves no file that looks like a kubeconfig.
    done = shell("kubernetes-make-kubeconfig default > refused.kubeconfig")
    assert done.returncode == 1
    assert "reserved by Kubernetes" in done.stderr
    assert not (cluster.directory / "refused.kubeconfig").read_text()


def test_kubectl_applies_the_dashboard(cluster: AccessCluster, kubectl: Path) -> None:
    manifest = str(CONTRIB / "kubernetes" / "dashboard.yaml")
    path = cluster.kubeconfig
    said(kubectl, path, "apply", "-f", manifest)
    assert cluster.names("deployments") == cluster.names("networkpolicies") == ["headlamp"]
    # Its ServiceAccount may read nothing.
    account = ("serviceaccounts", "headlamp", "headlamp")
    token = cluster.identities.token(account, {"spec": {}})["status"]["token"]
    cluster.write_kubeconfig({"token": token})
    assert "cannot list" in refused(kubectl, path, "get", "services", "-n", "headlamp")
