"""`api_access`: the API servers behind an address of the frontend, with real kubectl."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.config.declare import load
from fc_frontend.discovery.slices import answer_of
from fc_frontend.doctor.findings import Result
from fc_frontend.doctor.judge.api_access import ApiAccessFacts, judge_api_access
from fc_frontend.errors import errors_in
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.validate import validate
from fc_frontend.plan.cluster_objects import (
    Condition,
    KubeService,
    ObjectKey,
    ServicePort,
    Slice,
    SliceEndpoint,
    SlicePort,
)
from fc_frontend.plan.model import Answer, Bind, Cluster, Discovery, ServiceSpec, Target, Untrusted
from fc_frontend.plan.untrusted import Needs, violations
from tests.conftest import RealHaproxy, loopback, until
from tests.support.access_cluster import kubectl_with
from tests.support.api_cluster import READY, TOKEN, ApiFrontend
from tests.support.api_identities import Identities
from tests.support.api_server import ApiServer
from tests.support.certificates import Certificates
from tests.support.prepared import prepared, running, withheld
from tests.test_cli import fc

PORT = 6443
SETTINGS = """
cluster: {nameservers: ["127.0.0.1:53"]}
haproxy: {log: null}
"""
ACCESS = """
api_access:
  binds: 127.0.0.1:7443
  allow: [203.0.113.0/24]
  nodes: {cp2: "2001:db8::2", cp1: 192.0.2.1}
"""


def test_control_plane_nodes_as_declared(tmp_path: Path, haproxy_binary: str) -> None:
    (tmp_path / "config.yaml").write_text(SETTINGS + ACCESS)
    found = prepared(tmp_path / "config.yaml")
    assert not withheld(found)
    assert found.config is not None
    text = found.config.text
    section = text.partition("listen kubernetes-api ")[2]
    assert "server cp1 192.0.2.1:6443 check check-ssl verify none" in section
    assert "server cp2 [2001:db8::2]:6443 check check-ssl verify none" in section
    assert "# fc-frontend allow: 203.0.113.0/24" in section
    # TLS passes through: HAProxy uses its own TLS for checks only.
    assert " ssl " not in section
    verdict = validate(haproxy_binary, text, timeout=30)
    assert verdict.accepted, verdict.output
    assert not [each for each in verdict.warnings if "server state file" not in each.text]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("api_access: {binds: '127.0.0.1:7443'}", "api_access knows no API server"),
        ("api_access: {nodes: {a: 192.0.2.1}}", "binds"),
        ("api_access: {binds: [], nodes: {a: 192.0.2.1}}", "binds"),
        ("api_access: {binds: '127.0.0.1:7443', nodes: {a: name}}", "nodes.a"),
        ("api_access: {binds: '127.0.0.1:7443', nodes: {a: 192.0.2.1}, port: 0}", "port"),
        (
            "api_access: {binds: '192.0.2.1:6443', nodes: {a: 192.0.2.1}}",
            "node a has the address and port of the bind 192.0.2.1:6443",
        ),
        (
            ACCESS + "services: {kubernetes-api: {pod_port: 80}}",
            "makes a service of this name",
        ),
        (
            "services: {a: {pod_port: 80, nodes: {a: 192.0.2.1}}}",
            "nodes have no meaning with pod_port",
        ),
    ],
)
def test_mistakes(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{SETTINGS}{text}\n")
    problems = errors_in(load(str(path)).problems)
    assert any(words in f"{each.field}: {each.message}" for each in problems), problems


def test_a_mistake_leaves_the_access_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(SETTINGS + ACCESS)
    before = prepared(path)
    path.write_text(SETTINGS + ACCESS.replace("7443", "bad"))
    after = prepared(path, running(before))
    assert withheld(after)
    assert after.config is not None
    assert before.config is not None
    assert after.config.hash == before.config.hash


def test_api_servers_are_nodes_and_never_this_host() -> None:
    """The node network is unknown; a slice must not direct HAProxy to its own host."""
    spec = ServiceSpec(
        name="kubernetes-api",
        service="kubernetes",
        binds=(),
        port="https",
        discovery=Discovery.API,
    )
    cluster = Cluster(pod_networks=(IPv4Network("10.1.0.0/16"),))
    key = ObjectKey("default", "kubernetes")
    ports = (ServicePort("https", 443, PORT),)
    service = KubeService(key, "ClusterIP", False, ("10.0.0.1",), ports)
    addresses = ("192.0.2.1", "127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "nonsense")
    endpoints = tuple(SliceEndpoint(address, Condition.READY, "") for address in addresses)
    listed = Slice(key, "kubernetes", "ipv4", (SlicePort("https", PORT, ""),), endpoints)
    answer = answer_of(spec, service, [listed], cluster, None)
    assert [each.address for each in answer.endpoints] == ["192.0.2.1"]
    assert set(answer.rejected) == {*addresses[1:]}
    # Pods of other Services are still limited to the pod network.
    other = ServiceSpec(name="a", service="a", binds=(), port="https", discovery=Discovery.API)
    assert not answer_of(other, service, [listed], cluster, None).endpoints


def test_api_servers_at_the_bind_itself_are_never_used() -> None:
    """HAProxy would connect to itself if API servers advertise the frontend's address."""
    spec = ServiceSpec(
        name="kubernetes-api",
        service="kubernetes",
        binds=(Bind("ip", "198.51.100.2", PORT),),
        port="https",
        discovery=Discovery.API,
    )
    key = ObjectKey("default", "kubernetes")
    ports = (ServicePort("https", 443, PORT),)
    service = KubeService(key, "ClusterIP", False, ("10.0.0.1",), ports)

    def found(*addresses: str) -> Answer:
        endpoints = tuple(SliceEndpoint(each, Condition.READY, "") for each in addresses)
        listed = Slice(key, "kubernetes", "ipv4", (SlicePort("https", PORT, ""),), endpoints)
        return answer_of(spec, service, [listed], cluster, None)

    cluster = Cluster(pod_networks=(IPv4Network("10.1.0.0/16"),))
    both = found("198.51.100.2", "192.0.2.1")
    assert [each.address for each in both.endpoints] == ["192.0.2.1"]
    alone = found("198.51.100.2")
    assert not alone.endpoints
    assert alone.error == "all endpoints of the Service kubernetes are this service's own binds"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"service": "kubernetes", "port": "https"}, "service"),
        ({"target": Target.NODE, "nodes": (("a", IPv4Address("192.0.2.1")),)}, "nodes"),
    ],
)
def test_untrusted_files_name_no_addresses_and_publish_no_api_servers(
    fields: dict[str, Any], field: str
) -> None:
    spec = ServiceSpec(**{"name": "a", "service": "a", "binds": (), "port": 80, **fields})
    found = [(each.field, each.needs) for each in violations(spec, Untrusted())]
    assert found == [(field, Needs.TRUST)]


def published(**facts: Any) -> list[tuple[Result, str]]:
    made = ApiAccessFacts(**{"bind": "192.0.2.1:6443", "host": "192.0.2.1", "status": 200, **facts})
    return [(each.result, each.message) for each in judge_api_access(made)]


def test_what_doctor_says_of_the_way_to_the_api() -> None:
    ok = [(Result.OK, "192.0.2.1:6443 leads to an API server")]
    assert published() == ok
    assert published(status=401, names=frozenset(("192.0.2.1", "kubernetes"))) == ok
    missing = (Result.WARNING, "the API server's certificate does not have 192.0.2.1")
    assert published(names=frozenset(("kubernetes",))) == [*ok, missing]
    assert published(names=frozenset(), host=None) == ok
    ((result, message),) = published(status=None, said="Connection refused")
    assert (result, message) == (
        Result.PROBLEM,
        "no API server answers through 192.0.2.1:6443: Connection refused",
    )
    assert published(status=502)[0][0] is Result.PROBLEM
    ((result, message),) = published(status=None, is_allowed=False)
    assert (result, "does not include this host" in message) == (Result.UNKNOWN, True)


@contextlib.contextmanager
def answering(address: str, port: int, status: int, context: ssl.SSLContext) -> Iterator[None]:
    """Run an HTTPS server that answers each request with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 418)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((address, port), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.extended
def test_api_servers_that_refuse_anonymous_requests_are_up(
    haproxy: RealHaproxy, certificates: Certificates, tmp_path: Path
) -> None:
    host = loopback()
    prefix = host.rpartition(".")[0]
    statuses = {"ok": 200, "k3s": 401, "forbidden": 403, "failing": 500, "other": 404}
    nodes = {name: f"{prefix}.{number}" for number, name in enumerate(statuses, 101)}
    access = {"binds": f"{host}:7443", "nodes": nodes, "port": PORT}
    settings = {
        "cluster": {"nameservers": ["127.0.0.1:53"]},
        "haproxy": {"log": None, "runtime_socket": haproxy.runtime_socket, "stats": None},
        "api_access": access,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    found = prepared(tmp_path / "config.yaml")
    assert found.config is not None
    context = certificates.server_context()
    with contextlib.ExitStack() as stack:
        for name, status in statuses.items():
            stack.enter_context(answering(nodes[name], PORT, status, context))
        haproxy.start(found.config.text)

        def states() -> dict[str, bool]:
            servers = runtime.servers_of(haproxy.runtime_socket, "kubernetes-api")
            return {each.server: each.operational == 2 for each in servers}

        wanted = {name: status in (200, 401, 403) for name, status in statuses.items()}
        until(lambda: states() == wanted)
        haproxy.end()


class ControlPlane(ApiFrontend):
    """Three API servers of one cluster: one for the daemon, two behind the frontend.

    They are in the pod network, because loopback addresses outside it are never used.
    """

    def __enter__(self) -> ControlPlane:
        super().__enter__()
        self.api.identities = Identities(self.api.objects, self.certificates, TOKEN)
        self.addresses = [f"127.{self.octet}.120.{number}" for number in (1, 2)]
        self.stacks: dict[str, contextlib.AsyncExitStack] = {}
        for address in self.addresses:
            self.begin(address)
        vip, _ = self.cluster_ip("kubernetes")
        self.kube_service("kubernetes", cluster_ip=vip, port=443, target=PORT, port_name="https")
        ready = dict.fromkeys(self.addresses, READY)
        self.endpoints("kubernetes", ready, port=PORT, port_names=("https",))
        self.kube_node("node1", "192.0.2.1")
        self.settings["api_access"] = {"binds": f"{self.host}:{PORT}"}
        return self

    def __exit__(self, *exc: object) -> None:
        for address in list(self.stacks):
            self.end(address)
        super().__exit__(*exc)

    def begin(self, address: str) -> None:
        """Start an API server that requests client certificates but does not require them."""
        context = self.certificates.server_context()
        context.load_verify_locations(self.certificates.path("ca.crt"))
        context.verify_mode = ssl.CERT_OPTIONAL
        server = ApiServer(self.api.objects, identities=self.api.identities)
        stack = self.stacks[address] = contextlib.AsyncExitStack()
        self.call(stack.enter_async_context(server.serving(context, PORT, address)))

    def end(self, address: str) -> None:
        """Stop an API server and close all of its connections."""
        self.call(self.stacks.pop(address).aclose())


@pytest.fixture
def plane(either_binary: str, certificates: Certificates) -> Iterator[ControlPlane]:
    with ControlPlane(either_binary, certificates) as made:
        yield made


@pytest.fixture
def admin(plane: ControlPlane, tmp_path: Path) -> Path:
    """Return a kubeconfig with a client certificate, for the address of the frontend."""
    path = tmp_path / "admin.kubeconfig"
    done = fc(
        *("kubeconfig", "root", "--certificate", "--cluster-admin", "--for", "1h"),
        *("--server", f"https://{plane.host}:{PORT}", "--output", str(path)),
        KUBECONFIG=str(plane.kubeconfig),
    )
    assert done.returncode == 0, done.stderr
    return path


def up(plane: ControlPlane) -> int:
    (service,) = [each for each in plane.status()["services"] if each["name"] == "kubernetes-api"]
    return int((service["servers"] or {}).get("up", 0))


@pytest.mark.extended
def test_kubectl_through_the_frontend(plane: ControlPlane, admin: Path, kubectl: Path) -> None:
    plane.start()
    plane.until(lambda: up(plane) == 2)

    def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
        return kubectl_with(kubectl, admin, "--request-timeout=10s", *arguments)

    # The client certificate reaches the API server.
    done = asked("auth", "whoami", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"]["userInfo"]["username"] == "fc-frontend:root"
    # An API server restarts: no `get` fails if it is retried once.
    reloads = plane.metric("fc_frontend_reloads_total")
    for address in plane.addresses:
        plane.end(address)
        for _ in range(15):
            assert any(asked("get", "nodes", "-o", "name").stdout for _ in range(2))
        plane.begin(address)
        plane.until(lambda: up(plane) == 2)
    # One control-plane node is added, and another is removed.
    third = f"127.{plane.octet}.120.3"
    plane.begin(third)
    states = dict.fromkeys((plane.addresses[1], third), READY)
    plane.endpoints("kubernetes", states, port=PORT, port_names=("https",))
    plane.until(lambda: {a for a, _ in plane.slots("kubernetes-api").values()} == set(states))
    plane.end(plane.addresses[0])
    assert asked("get", "nodes", "-o", "name").stdout == "node/node1\n"
    assert plane.metric("fc_frontend_reloads_total") == reloads
    shown = plane.run("explain", "kubernetes-api", check=False).stdout
    assert f"{plane.host}:{PORT}" in shown
    assert "nodes need not be in the cluster's networks" in shown
    said = plane.run("doctor", check=False).stdout
    assert f"{plane.host}:{PORT} leads to an API server" in said
    assert f"the API server's certificate does not have {plane.host}" in said
    # Addresses that are not allowed are rejected from now on.
    for allowed, code in (("192.0.2.0/24", 1), (f"127.{plane.octet}.0.0/16, 127.0.0.0/8", 0)):
        plane.settings["api_access"]["allow"] = allowed.split(", ")
        plane.write()
        plane.until(lambda code=code: min(asked("get", "nodes").returncode, 1) == code)
        assert up(plane) == 2
    assert plane.metric("fc_frontend_reloads_total") == reloads + 1


@pytest.mark.extended
def test_a_watch_lives_through_reloads(plane: ControlPlane, admin: Path, kubectl: Path) -> None:
    plane.start()
    plane.until(lambda: up(plane) == 2)
    reloads = plane.metric("fc_frontend_reloads_total")
    with subprocess.Popen(
        [kubectl, "get", "nodes", "--watch", "-o", "name"],
        env={"HOME": str(admin.parent), "KUBECONFIG": str(admin)},
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        try:
            assert watching.stdout is not None
            assert watching.stdout.readline() == "node/node1\n"
            plane.scale("web", 1)
            for number in range(3):
                service = plane.service("web", 8080 + number, discovery="headless")
                plane.settings["services"][f"web{number}"] = service
                plane.write()
                plane.until(partial(plane.serves, 8080 + number, plane.pods["web"]))
            plane.until(lambda: plane.metric("fc_frontend_reloads_total") == reloads + 3)
            plane.kube_node("node2", "192.0.2.2")
            assert watching.stdout.readline() == "node/node2\n"
            assert watching.poll() is None
        finally:
            watching.kill()


@pytest.mark.extended
def test_api_servers_as_declared_need_no_api(
    plane: ControlPlane, admin: Path, kubectl: Path
) -> None:
    del plane.settings["cluster"]["api"]
    nodes = {f"cp{number}": address for number, address in enumerate(plane.addresses)}
    plane.settings["api_access"]["nodes"] = nodes
    plane.start()
    plane.until(lambda: up(plane) == 2)
    plane.end(plane.addresses[0])
    until(lambda: up(plane) == 1)
    done = kubectl_with(kubectl, admin, "get", "nodes", "-o", "name")
    assert done.stdout == "node/node1\n", done.stderr
