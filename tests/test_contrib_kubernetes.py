"""contrib/kubernetes grants exactly the rights that are used."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fc_frontend.doctor.observe.kubernetes import RESOURCES, VERBS
from fc_frontend.kubernetes.cluster_watch import NODES, SERVICES, SLICES
from fc_frontend.kubernetes.kubeconfig import read_kubeconfig
from tests.support.api_cluster import ApiFrontend
from tests.support.certificates import Certificates
from tests.test_load_balancers import Balanced

CONTRIB = Path(__file__).parent.parent / "contrib" / "kubernetes"
MANIFEST = list(yaml.safe_load_all((CONTRIB / "rbac.yaml").read_text()))
BALANCER = list(yaml.safe_load_all((CONTRIB / "rbac-load-balancer.yaml").read_text()))


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (item for item in MANIFEST if item["kind"] == kind)
    return dict(found)


def test_the_role_has_the_rights_that_are_used_and_no_others() -> None:
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in of_kind("ClusterRole")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    watched = {
        ("", SERVICES.path.rpartition("/")[2]),
        ("", NODES.path.rpartition("/")[2]),
        ("discovery.k8s.io", SLICES.path.rpartition("/")[2]),
    }
    assert set(granted) == watched == set(RESOURCES)
    assert "secrets" not in {resource for _, resource in granted}
    assert all(verbs == set(VERBS) for verbs in granted.values())


def test_the_binding_is_of_the_service_account() -> None:
    account = of_kind("ServiceAccount")["metadata"]
    binding = of_kind("ClusterRoleBinding")
    assert binding["roleRef"]["name"] == of_kind("ClusterRole")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]
    secret = of_kind("Secret")
    assert (
        secret["metadata"]["namespace"]
        == account["namespace"]
        == (of_kind("Namespace")["metadata"]["name"])
    )
    annotations = secret["metadata"]["annotations"]
    assert annotations == {"kubernetes.io/service-account.name": account["name"]}


def test_the_rights_for_statuses_are_those_that_are_used_and_no_others(
    either_binary: str, certificates: Certificates
) -> None:
    with Balanced(either_binary, certificates) as frontend:
        frontend.start()
        frontend.balanced_service("web")
        frontend.until(lambda: any("/events" in each for each in frontend.api.requests))
        renewal = "PUT /apis/coordination.k8s.io/v1/namespaces/fc-frontend/leases/"
        frontend.until(lambda: any(each.startswith(renewal) for each in frontend.api.requests))
        used = {right_of(each) for each in frontend.api.requests}
    granted = {
        (verb, resource)
        for item in BALANCER
        for rule in item.get("rules", ())
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    read = {(verb, resource) for _, resource in RESOURCES for verb in VERBS}
    assert used - read == granted
    assert granted <= used


def right_of(request: str) -> tuple[str, str]:
    """Return the verb and resource of a request, in a namespace or for all namespaces."""
    method, target = request.split(" ")
    path, _, query = target.partition("?")
    parts = path.split("/")
    parts = parts[3:] if parts[1] == "api" else parts[4:]
    if parts[0] == "namespaces":
        parts = parts[2:]
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch"}
    read = "get" if len(parts) > 1 else "watch" if "watch=true" in query else "list"
    return verbs.get(method, read), "/".join((parts[0], *parts[2:]))


def test_all_rights_are_those_of_the_same_account() -> None:
    account = of_kind("ServiceAccount")["metadata"]
    roles = {(item["kind"], item["metadata"]["name"]) for item in BALANCER if "rules" in item}
    for item in BALANCER:
        assert item["metadata"].get("namespace", account["namespace"]) == account["namespace"]
        if "subjects" in item:
            assert item["subjects"] == [{"kind": "ServiceAccount", **account}]
            roles.remove((item["roleRef"]["kind"], item["roleRef"]["name"]))
    assert not roles, "each role is bound"


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[ApiFrontend]:
    with ApiFrontend(either_binary, certificates) as made:
        yield made


def ran(frontend: ApiFrontend, kubectl: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command with `kubectl` in PATH and access to the frontend's API server."""
    path = f"{kubectl.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(frontend.kubeconfig)}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.extended
def test_kubectl_applies_the_manifest_as_it_is_written(
    frontend: ApiFrontend, kubectl: Path
) -> None:
    for name in ("rbac.yaml", "rbac-load-balancer.yaml"):
        manifest = str(CONTRIB / name)
        done = ran(frontend, kubectl, "kubectl", "apply", "-f", manifest)
        assert done.returncode == 0, done.stderr
    stored = []
    for key, item in frontend.api.objects.now.items():
        if key[0] == "nodes":  # the cluster had them before
            continue
        metadata = item["metadata"]
        annotations = metadata["annotations"]
        del annotations["kubectl.kubernetes.io/last-applied-configuration"]
        if not annotations:
            del metadata["annotations"]
        del metadata["resourceVersion"]
        stored.append(item)

    def rank(item: dict[str, Any]) -> tuple[str, str]:
        return str(item["kind"]), str(item["metadata"]["name"])

    assert sorted(stored, key=rank) == sorted([*MANIFEST, *BALANCER], key=rank)


@pytest.mark.extended
def test_kubectl_applies_the_example_of_a_load_balancer(
    either_binary: str, certificates: Certificates, kubectl: Path
) -> None:
    with Balanced(either_binary, certificates) as frontend:
        frontend.start()
        example = str(CONTRIB.parent / "examples" / "load-balancer.yaml")
        done = ran(frontend, kubectl, "kubectl", "apply", "-f", example)
        assert done.returncode == 0, done.stderr
        key = ("services", "default", "web")
        frontend.until(lambda: frontend.api.objects.now[key].get("status", {}).get("loadBalancer"))


@pytest.mark.extended
def test_kubectl_makes_a_kubeconfig_that_is_usable(
    frontend: ApiFrontend, kubectl: Path, tmp_path: Path
) -> None:
    """The server accepts the Secret's token."""
    script = str(CONTRIB / "kubeconfig")
    frontend.token_secret("fc-frontend", "frontend-token")
    refused = ran(frontend, kubectl, script)
    assert refused.returncode == 1
    assert "is of this machine" in refused.stderr
    assert not refused.stdout
    done = ran(frontend, kubectl, script, f"https://127.0.0.1:{frontend.api.port}")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "kubeconfig"
    made.write_text(done.stdout)
    made.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert read_kubeconfig(str(made)).port == frontend.api.port
    frontend.settings["cluster"]["api"] = {"kubeconfig": str(made)}
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.kube_service("shop")
    frontend.write()
    said = frontend.run("doctor", check=False).stdout
    assert "is ready" in said
    assert "all required rights" in said
