"""`doctor` on the Kubernetes API.

No Kubernetes runs here: an HTTPS server answers /readyz and /api/v1/nodes as the API server does.
"""

from __future__ import annotations

import email.utils
import http.server
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.doctor.findings import Finding, Result, worst
from fc_frontend.doctor.judge.kubernetes import (
    DaemonAccess,
    KubernetesFacts,
    ServiceFacts,
    judge_kubernetes,
)
from fc_frontend.doctor.observe.kubernetes import observe_kubernetes
from fc_frontend.errors import Unavailable
from fc_frontend.kubernetes.kubeconfig import read_kubeconfig
from fc_frontend.plan.cluster_health import ApiResponse, ClusterHealth, Node, parse_nodes
from fc_frontend.plan.model import (
    ApiSettings,
    Cluster,
    Standby,
)
from tests.support.api_cluster import NOT_READY, ApiFrontend, token_until
from tests.support.api_server import Fault
from tests.support.certificates import Certificates
from tests.support.doctor import CLUSTER, SECRET, result_of, said
from tests.support.frontend import Frontend

NOBODY = 65534


class ApiServer(http.server.ThreadingHTTPServer):
    """A stand-in for a Kubernetes API server: two paths, by certificate or token."""

    daemon_threads = True
    ready = 200
    status = 200
    ahead = 0.0
    nodes: object = None
    raw: bytes | None = None
    redirect: str | None = None
    asked: list[tuple[str, str | None]]

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that distrusts the server and hangs up."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, *_arguments: object) -> None:
        """Log nothing: the test reads `asked`."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return email.utils.formatdate(time.time() + self.server.ahead, usegmt=True)

    def do_GET(self) -> None:
        server, authorization = self.server, self.headers["Authorization"]
        server.asked.append((self.path, authorization))
        peer = self.connection.getpeercert()
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
        elif not peer and authorization != f"Bearer {SECRET}":
            self._answer(401, b'{"message": "Unauthorized"}')
        elif self.path == "/readyz":
            self._answer(server.ready, b"ok" if server.ready == 200 else b"[-]etcd failed\x1b[2J")
        elif self.path.startswith("/api/v1/nodes"):
            body = server.raw if server.raw is not None else json.dumps(server.nodes).encode()
            self._answer(server.status, body)
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def node(name: str, *, ready: bool = True, network: str = "10.1.0.0/24") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"podCIDR": network, "podCIDRs": [network]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.10"}],
            "conditions": [
                {"type": "DiskPressure", "status": "False"},
                {"type": "Ready", "status": str(ready), "reason": "KubeletNotReady"},
            ],
        },
    }


@pytest.fixture
def api(certificates: Certificates) -> Iterator[ApiServer]:
    server = ApiServer(("127.0.0.1", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        certificates.directory / "server.crt", certificates.directory / "server.key"
    )
    context.load_verify_locations(certificates.directory / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.asked = []
    server.nodes = {"items": [node("node1"), node("node2", network="10.1.1.0/24")]}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def kubeconfig(api: ApiServer, certificates: Certificates, tmp_path: Path) -> KubeConfig:
    return KubeConfig(tmp_path / "kubeconfig", api, certificates)


class KubeConfig:
    """A kubeconfig with a client certificate, as `kubernetes-make-kubeconfig` writes it."""

    def __init__(self, path: Path, api: ApiServer, certificates: Certificates) -> None:
        self.path = path
        self.cluster: dict[str, Any] = {
            "server": f"https://127.0.0.1:{api.server_address[1]}",
            "certificate-authority-data": certificates.data("ca.crt"),
        }
        self.user: dict[str, Any] = {
            "client-certificate-data": certificates.data("client.crt"),
            "client-key-data": certificates.data("client.key"),
        }
        self.write()

    def write(self, text: str | None = None) -> str:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [
                {"name": "there", "context": {"cluster": "x", "user": "y"}},
                {"name": "here", "context": {"cluster": "c", "user": "u"}},
            ],
            "clusters": [{"name": "c", "cluster": self.cluster}],
            "users": [{"name": "u", "user": self.user}],
        }
        self.path.write_text(text if text is not None else yaml.safe_dump(document))
        self.path.chmod(0o600)
        return str(self.path)

    def judged(self, cluster: Cluster = CLUSTER) -> tuple[Finding, ...]:
        api = ApiSettings(kubeconfig=str(self.path))
        return judge_kubernetes(cluster, observe_kubernetes(api, 5.0))


def test_the_api_by_certificate(kubeconfig: KubeConfig, api: ApiServer) -> None:
    found = kubeconfig.judged()
    assert worst(found) is Result.OK, said(found)
    assert "2 are ready: node1, node2" in said(found)
    assert "within 1 s of it" in said(found)
    assert [path for path, _ in api.asked] == ["/readyz", "/api/v1/nodes?limit=500"]
    assert {token for _, token in api.asked} == {None}


@pytest.mark.extended
def test_the_api_by_token_which_is_never_shown(
    kubeconfig: KubeConfig, api: ApiServer, frontend: Frontend
) -> None:
    kubeconfig.user = {"token": SECRET}
    kubeconfig.write()
    frontend.write()
    for shape in ("text", "json", "nagios"):
        done = frontend.run(
            *("doctor", "--kubeconfig", str(kubeconfig.path), "--format", shape), check=False
        )
        assert SECRET not in done.stdout + done.stderr
    assert (
        "is ready"
        in frontend.run("doctor", "--kubeconfig", str(kubeconfig.path), check=False).stdout
    )
    assert {token for _, token in api.asked} == {f"Bearer {SECRET}"}
    assert SECRET not in repr(read_kubeconfig(str(kubeconfig.path)))
    token_file = kubeconfig.path.with_name("token")
    token_file.write_text(f"{SECRET}\n")
    kubeconfig.user = {"tokenFile": "token"}
    kubeconfig.write()
    token_file.chmod(0o644)
    assert result_of(kubeconfig.judged(), "kubeconfig") == "warning"
    token_file.chmod(0o600)
    assert worst(kubeconfig.judged()) is Result.OK
    kubeconfig.user = {"token": "wrong"}
    kubeconfig.write()
    found = kubeconfig.judged()
    assert worst(found) is Result.UNKNOWN
    assert "does not accept the certificate or token" in said(found)


def test_nodes_and_readiness(kubeconfig: KubeConfig, api: ApiServer) -> None:
    api.nodes = {"items": [node("node1"), node("node2", ready=False)]}
    found = kubeconfig.judged()
    assert result_of(found, "nodes") == "warning"
    assert "node2 (KubeletNotReady)" in said(found)
    api.nodes = {"items": [node("node1", ready=False)]}
    assert result_of(kubeconfig.judged(), "nodes") == "problem"
    api.nodes = {"items": [node("node1", network="10.77.0.0/24")]}
    assert result_of(kubeconfig.judged(), "pod network") == "problem"
    assert "10.77.0.0/24 (node1)" in said(kubeconfig.judged())
    strange = replace(CLUSTER, nodes={"a": ip_address("192.0.2.10"), "b": ip_address("192.0.2.99")})
    assert "no node has the address of b (192.0.2.99)" in said(kubeconfig.judged(strange))
    api.ready, api.ahead = 500, 600
    found = kubeconfig.judged()
    assert result_of(found, "readyz") == "problem"
    assert "etcd failed" in said(found)
    assert "behind it" in said(found)
    assert all(f.as_json()["message"].isprintable() for f in found)
    api.status = 403
    assert "do not permit it (403)" in said(kubeconfig.judged())


def test_an_api_that_answers_strangely(kubeconfig: KubeConfig, api: ApiServer) -> None:
    api.raw = b"[[["
    assert result_of(kubeconfig.judged(), "nodes") == "unknown"
    api.raw = b"[" * 100_000
    assert result_of(kubeconfig.judged(), "nodes") == "unknown"
    api.raw = b"null"
    assert result_of(kubeconfig.judged(), "nodes") == "problem"
    # A redirect is not followed: the token would be sent along.
    api.redirect = "https://127.0.0.1:1/elsewhere"
    found = kubeconfig.judged()
    assert "answers 302" in said(found)


def test_an_api_that_is_not_trusted_or_not_there(
    kubeconfig: KubeConfig, api: ApiServer, certificates: Certificates
) -> None:
    kubeconfig.cluster["certificate-authority-data"] = certificates.data("other.crt")
    kubeconfig.write()
    found = kubeconfig.judged()
    assert worst(found) is Result.PROBLEM
    assert "certificate is not good" in said(found)
    assert not api.asked
    kubeconfig.cluster["insecure-skip-tls-verify"] = True
    kubeconfig.path.chmod(0o644)
    kubeconfig.write()
    kubeconfig.path.chmod(0o644)
    found = kubeconfig.judged()
    assert result_of(found, "kubeconfig") == "warning"
    assert result_of(found, "certificate") == "warning"
    assert result_of(found, "nodes") == "ok"
    del kubeconfig.cluster["insecure-skip-tls-verify"]
    kubeconfig.cluster["certificate-authority-data"] = certificates.data("ca.crt")
    kubeconfig.cluster["tls-server-name"] = "kubernetes"
    kubeconfig.write()
    assert worst(kubeconfig.judged()) is Result.OK
    kubeconfig.cluster["tls-server-name"] = "another"
    kubeconfig.write()
    assert "certificate is not good" in said(kubeconfig.judged())
    del kubeconfig.cluster["tls-server-name"]
    kubeconfig.cluster["server"] = "https://127.0.0.1:1"
    kubeconfig.write()
    assert "connection refused" in said(kubeconfig.judged()).lower()


def test_a_certificate_that_ends_soon() -> None:
    seen = KubernetesFacts(
        health=ClusterHealth(
            server="https://api",
            ready=ApiResponse(200),
            listed=ApiResponse(200),
            nodes=(Node("n", True),),
            certificate_days=3.0,
        )
    )
    assert result_of(judge_kubernetes(CLUSTER, seen), "certificate") == "warning"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": "{"}, "not YAML"),
        ({"server": "http://127.0.0.1"}, "not an https URL"),
        ({"user": {}}, "no certificate, token or exec"),
        ({"user": {"token": f"{SECRET}\r\nX-Evil: 1"}}, "has no token"),
        ({"user": {"client-certificate-data": "LS0tLS1CRUdJTiBYLS0tLS0K"}}, "cannot be used"),
    ],
)
def test_kubeconfigs_that_cannot_be_used(
    kubeconfig: KubeConfig, change: dict[str, Any], words: str
) -> None:
    """The tests of `fc_frontend.kubernetes` cover all of them."""
    text = change.pop("text", None)
    if "user" in change:
        kubeconfig.user = change.pop("user")
    kubeconfig.cluster.update(change)
    kubeconfig.write(text)
    with pytest.raises(Unavailable) as caught:
        kubeconfig.judged()
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.problems[0].remedy


# The access of cluster.api


@pytest.fixture
def cluster(either_binary: str, certificates: Certificates) -> Iterator[ApiFrontend]:
    with ApiFrontend(either_binary, certificates) as made:
        made.settings["services"]["shop"] = made.service("shop", 8080)
        yield made


def found_of(frontend: ApiFrontend) -> list[dict[str, str]]:
    """Return the results of `doctor` for the API."""
    frontend.write()
    done = frontend.run("doctor", "--format", "json", check=False)
    findings = json.loads(done.stdout)["findings"]
    return [each for each in findings if each["group"] == "Kubernetes API"]


def checks(frontend: ApiFrontend) -> dict[str, dict[str, str]]:
    """Return the same results, by check."""
    return {each["check"]: each for each in found_of(frontend)}


def serve(frontend: ApiFrontend) -> None:
    """Give the declared service a Kubernetes Service with a cluster IP and pods."""
    address, _ = frontend.cluster_ip("shop")
    frontend.kube_service("shop", cluster_ip=address)
    frontend.ready_endpoints("shop", frontend.scale("shop", 2).addresses)


def test_the_access_of_the_daemon_is_enough(cluster: ApiFrontend) -> None:
    serve(cluster)
    found = checks(cluster)
    for check in ("readyz", "rights", "services", "cluster IPs"):
        assert found[check]["result"] == "ok", found[check]
    assert not {"watch", "standby", "health checks", "credentials file"} & set(found)
    asked = {line for line in cluster.api.requests if line.startswith("POST")}
    assert asked == {"POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"}


def test_rights_that_are_missing_are_named(cluster: ApiFrontend) -> None:
    serve(cluster)
    cluster.api.denied = {("watch", "endpointslices"), ("get", "services"), ("list", "nodes")}
    rights = {each["result"]: each for each in found_of(cluster) if each["check"] == "rights"}
    assert rights["problem"]["message"].endswith("may not watch endpointslices.discovery.k8s.io")
    assert rights["warning"]["message"].endswith("may not get services, list nodes")
    assert all("rbac.yaml" in each["remedy"] for each in rights.values())
    assert "cannot watch resource" in checks(cluster)["watch"]["message"]


@pytest.mark.extended
def test_nodes_are_needed_where_a_service_is_of_nodes(cluster: ApiFrontend) -> None:
    shop = cluster.settings["services"]["shop"]
    del shop["pod_port"]
    shop["lb_service_port"] = 30080
    cluster.settings["cluster"].pop("nodes", None)
    cluster.api.denied = {("list", "nodes")}
    found = checks(cluster)["rights"]
    assert (found["result"], "list nodes" in found["message"]) == ("problem", True)


def test_a_service_that_the_cluster_does_not_have_is_named(cluster: ApiFrontend) -> None:
    found = checks(cluster)["services"]
    assert found["result"] == "problem"
    assert "no Service shop in namespace default" in found["message"]


@pytest.mark.extended
def test_a_port_that_the_kubernetes_service_does_not_have_is_named(cluster: ApiFrontend) -> None:
    serve(cluster)
    shop = cluster.settings["services"]["shop"]
    del shop["pod_port"]
    shop["service_port"] = 81
    found = checks(cluster)["services"]
    assert found["result"] == "problem"
    assert "no TCP port 81" in found["message"]


@pytest.mark.extended
def test_a_service_without_ready_pods_is_a_warning(cluster: ApiFrontend) -> None:
    serve(cluster)
    cluster.endpoints("shop", dict.fromkeys(cluster.pods["shop"].addresses, NOT_READY))
    found = checks(cluster)["services"]
    assert found["result"] == "warning"
    assert "is ready" in found["message"]


@pytest.mark.extended
def test_what_serves_without_the_daemon_is_judged(cluster: ApiFrontend) -> None:
    serve(cluster)
    shop = cluster.settings["services"]["shop"]
    shop["pod_port"], shop["check"] = 9090, False
    found = checks(cluster)
    assert found["standby"]["result"] == "warning"
    assert found["health checks"]["result"] == "warning"
    assert "cluster IPs" not in found


def test_a_cluster_ip_that_is_not_reached_is_a_warning() -> None:
    standby = Standby("shop", 80, "10.0.0.9")
    services = (ServiceFacts("shop", standby=standby, is_reached=False),)
    facts = KubernetesFacts(
        health=ClusterHealth(
            server="https://api",
            ready=ApiResponse(200),
            listed=ApiResponse(200),
            nodes=(Node("n", True),),
        ),
        daemon=DaemonAccess("root", services=services),
    )
    found = judge_kubernetes(CLUSTER, facts)
    assert result_of(found, "cluster IPs") == "warning"
    assert "10.0.0.9 (shop)" in said(found)


@pytest.mark.extended
def test_an_api_server_that_is_silent_costs_a_bounded_time(cluster: ApiFrontend) -> None:
    cluster.api.fault = Fault.MUTE
    found = checks(cluster)
    assert set(found) == {"readyz"}
    assert "timed out" in found["readyz"]["message"]


@pytest.mark.extended
def test_credentials_that_are_not_accepted_are_a_problem(cluster: ApiFrontend) -> None:
    cluster.api.token = "another"
    found = checks(cluster)
    assert found["readyz"]["result"] == "problem"
    assert "(401)" in found["readyz"]["message"]
    assert not {"rights", "watch", "services"} & set(found)


@pytest.mark.extended
def test_credentials_that_expire_soon_are_a_warning(cluster: ApiFrontend) -> None:
    cluster.write_kubeconfig(token_until(int(time.time()) + 3 * 86400))
    assert checks(cluster)["credentials"]["result"] == "warning"


@pytest.mark.extended
def test_a_client_certificate_that_has_expired_is_a_problem(cluster: ApiFrontend) -> None:
    cluster.settings["cluster"]["api"] = {
        "server": f"https://127.0.0.1:{cluster.api.port}",
        "ca_file": str(cluster.certificates.path("ca.crt")),
        "client_certificate": str(cluster.certificates.path("expired.crt")),
        "client_key": str(cluster.certificates.path("expired.key")),
    }
    found = checks(cluster)["credentials"]
    assert found["result"] == "problem"
    assert "has expired" in found["message"]


@pytest.mark.extended
def test_credentials_that_others_may_read_or_nobody_can(cluster: ApiFrontend) -> None:
    cluster.kubeconfig.chmod(0o644)
    assert checks(cluster)["kubeconfig"]["result"] == "warning"
    cluster.kubeconfig.unlink()
    assert checks(cluster)["cluster.api"]["result"] == "problem"


@pytest.mark.extended
def test_credentials_that_the_daemons_user_may_not_read(cluster: ApiFrontend) -> None:
    """A user other than root checks with its own rights, and could not have read them."""
    is_root = os.geteuid() == 0
    if is_root:
        state = Path(cluster.settings["state_directory"])
        state.mkdir(exist_ok=True)
        os.chown(state, NOBODY, NOBODY)
    found = checks(cluster)
    assert ("credentials file" in found) is is_root
    if is_root:
        assert str(cluster.kubeconfig) in found["credentials file"]["message"]


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["items", "metadata", "name", "status", "conditions", "type", "spec", "podCIDRs"]
            ),
            inner,
        )
    ),
)


@given(st.lists(_ANY))
def test_any_list_of_nodes_can_be_judged(items: list[Any]) -> None:
    health = ClusterHealth(
        server="s", ready=ApiResponse(200), listed=ApiResponse(200), nodes=parse_nodes(items)
    )
    assert judge_kubernetes(CLUSTER, KubernetesFacts(health=health))
