"""The basic health of the cluster in `status`: the API server and its nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.errors import Cause, Problem
from fc_frontend.explain.facts import Daemon
from fc_frontend.explain.overview import Seen, StatusLevel, overview
from fc_frontend.model.api_state import ApiState
from fc_frontend.model.service_state import HaproxyState
from fc_frontend.plan.cluster_health import ApiResponse, ClusterHealth, Node, parse_nodes
from tests.support.api_cluster import ApiFrontend
from tests.support.api_objects import ApiError
from tests.support.api_server import Fault
from tests.support.certificates import Certificates

SERVER = "https://192.0.2.1:6443"
ONE, TWO = Node("n1", ready=True), Node("n2", ready=False, reason="KubeletNotReady")


def health(status: int | None = 200, said: str = "", *nodes: Node) -> ClusterHealth:
    answer = ApiResponse(status, said)
    return ClusterHealth(
        server=SERVER, ready=answer, listed=ApiResponse(200), nodes=nodes or (ONE,)
    )


def daemon(api: ApiState) -> Daemon:
    return Daemon(
        version="1",
        in_sync=True,
        wanted_hash=None,
        running_hash=None,
        problems=(),
        withheld=(),
        last_reload=None,
        haproxy=HaproxyState.RUNNING,
        services=(),
        api=api,
    )


@pytest.mark.parametrize(
    ("cluster", "level", "message"),
    [
        (None, "OK", ""),
        (health(), "OK", ""),
        (health(403), "OK", ""),
        (health(None, "it timed out"), "WARNING", f"no answer from {SERVER}: it timed out"),
        (health(401), "WARNING", f"{SERVER} does not accept the credentials (401)"),
        (health(500, "etcd failed"), "WARNING", f"{SERVER} is not ready (500): etcd failed"),
        (health(200, "", ONE, TWO), "WARNING", "1 of 2 ready; not ready: n2 (KubeletNotReady)"),
        (health(200, "", TWO), "CRITICAL", "not ready: n2 (KubeletNotReady)"),
        (Problem("no such file"), "WARNING", "no such file"),
        (Problem("may not", cause=Cause.FORBIDDEN), "OK", ""),
    ],
)
def test_findings(cluster: ClusterHealth | Problem | None, level: str, message: str) -> None:
    found = overview(Seen(haproxy=HaproxyState.RUNNING, cluster=cluster))
    assert found.level.name == level
    assert [each.message for each in found.findings] == ([message] if message else [])


def test_no_node_at_all_is_critical() -> None:
    answer = ApiResponse(200)
    cluster = ClusterHealth(server=SERVER, ready=answer, listed=answer, nodes=())
    (finding,) = overview(Seen(haproxy=HaproxyState.RUNNING, cluster=cluster)).findings
    assert (finding.level, finding.message) == (StatusLevel.CRITICAL, "the cluster has none")


def test_what_the_daemon_reports_is_not_repeated() -> None:
    state = ApiState(is_current=False, failure="connection refused")
    seen = Seen(haproxy=HaproxyState.RUNNING, daemon=daemon(state), cluster=health(None, "refused"))
    (finding,) = overview(seen).findings
    assert finding.message == "cannot be watched: connection refused"


def test_credentials_that_only_the_daemon_uses_are_no_finding_while_it_runs() -> None:
    state = ApiState(is_current=True)
    seen = Seen(haproxy=HaproxyState.RUNNING, daemon=daemon(state), cluster=Problem("no such file"))
    assert not overview(seen).findings


def test_nodes_as_the_api_lists_them() -> None:
    def node(name: str, *conditions: dict[str, str]) -> dict[str, Any]:
        return {"metadata": {"name": name}, "status": {"conditions": list(conditions)}}

    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    unknown = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
    found = parse_nodes([node("a", {"type": "DiskPressure"}, ready), node("b", unknown), node("c")])
    assert [(each.name, each.ready, each.reason) for each in found] == [
        ("a", True, "KubeletReady"),
        ("b", False, "NodeStatusUnknown"),
        ("c", False, "no Ready condition"),
    ]


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[ApiFrontend]:
    with ApiFrontend(either_binary, certificates) as made:
        yield made


def status_of(frontend: ApiFrontend) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(frontend.run("status", "--json", check=False).stdout)
    return document


@pytest.mark.extended
def test_nodes_and_readiness_with_and_without_the_daemon(frontend: ApiFrontend) -> None:
    for number in range(1200):
        frontend.kube_node(f"node{number}", "192.0.2.1")
    frontend.start()
    frontend.until(lambda: status_of(frontend)["status"] == "ok")
    shown = frontend.run("status").stdout
    assert f"API server     https://127.0.0.1:{frontend.api.port} is ready\n" in shown
    assert "nodes          1200 of 1200 ready\n" in shown
    nagios = frontend.run("status", "--format", "nagios").stdout
    assert nagios.rstrip().endswith(" nodes=1200 nodes_ready=1200")
    frontend.kube_node("node7", "192.0.2.1", ready=False)
    document = status_of(frontend)
    assert document["status"] == "warning"
    assert document["cluster"]["ready"] is True
    unready = {"name": "node7", "ready": False, "reason": "KubeletNotReady"}
    assert unready in document["cluster"]["nodes"]
    warned = frontend.run("status", "--format", "nagios", check=False)
    assert warned.returncode == 1
    assert "nodes: 1199 of 1200 ready; not ready: node7 (KubeletNotReady)" in warned.stdout
    frontend.stop_daemon()
    assert "1199 of 1200 ready" in frontend.run("status", check=False).stdout
    frontend.api.denied = {("list", "nodes")}
    assert status_of(frontend)["cluster"]["nodes"] is None
    assert "cannot be listed (403)" in frontend.run("status", check=False).stdout
    frontend.api.errors = [ApiError(500, "InternalError", "etcd failed")]
    assert "is not ready (500)" in frontend.run("status", check=False).stdout


@pytest.mark.extended
def test_an_api_server_that_is_silent_keeps_nobody_waiting(frontend: ApiFrontend) -> None:
    frontend.start()
    frontend.api.fault = Fault.MUTE
    document = status_of(frontend)
    assert document["cluster"] == {
        "server": f"https://127.0.0.1:{frontend.api.port}",
        "ready": False,
        "said": f"no answer from https://127.0.0.1:{frontend.api.port}: it timed out",
        "nodes": None,
    }


@pytest.mark.extended
def test_a_user_who_may_not_read_the_credentials(frontend: ApiFrontend) -> None:
    frontend.start()
    frontend.kubeconfig.chmod(0)
    command = ["unshare", "--user", "--map-user=1000", sys.executable, "-m", "fc_frontend"]
    done = subprocess.run(
        [*command, "status", "--json", "--config", str(frontend.config)],
        capture_output=True,
        check=False,
    )
    document = json.loads(done.stdout)
    assert document["cluster"]["ready"] is None
    assert "Permission denied" in document["cluster"]["said"]
    assert not [each for each in document["findings"] if each["subject"] == "Kubernetes API"]
