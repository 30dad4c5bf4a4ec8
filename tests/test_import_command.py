"""`fc-frontend import` as users run it; HAProxy serves the same traffic as before the import."""

from __future__ import annotations

import csv
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.demo.pods import PodSet
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.socket import ask
from tests.conftest import RealHaproxy, until
from tests.support.frontend import Frontend
from tests.support.imports import DOCUMENTATION, command, on_path, text_for

# The command


def write_original(tmp_path: Path, text: str = DOCUMENTATION) -> str:
    path = tmp_path / "haproxy.cfg"
    path.write_text(text)
    return str(path)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    original = write_original(tmp_path)
    done = command("import", original)
    assert done.returncode == 1
    assert "==> services.d/ingress.yaml <==" in done.stdout
    assert f"{original}:6: error: bind [2a02" in done.stderr
    assert "nothing was written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["haproxy.cfg"]
    mended = write_original(tmp_path, DOCUMENTATION.replace(":::", "::"))
    assert command("import", mended).returncode == 0


def test_what_is_written_is_checked(tmp_path: Path, either_binary: str) -> None:
    binary = on_path(tmp_path, either_binary)
    original = write_original(tmp_path, DOCUMENTATION.replace(":::", "::"))
    new = tmp_path / "new"
    done = command("import", original, "--output", str(new), binary=binary)
    assert done.returncode == 0, done.stderr
    assert "is accepted by HAProxy" in done.stdout
    for path in (new / "config.yaml", new / "services.d" / "ingress.yaml"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    again = command("import", original, "--output", str(new), binary=binary)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    (new / "config.yaml").write_text("mine")
    forced = command("import", original, "--output", str(new), "--force", binary=binary)
    assert forced.returncode == 0
    assert (new / "config.yaml").read_text() != "mine"


def test_what_haproxy_refuses_is_1(tmp_path: Path) -> None:
    original = write_original(tmp_path, "listen a\n  bind :80\n  nonsense here\n")
    done = command("import", original, "--output", str(tmp_path / "new"))
    assert done.returncode == 1
    assert "unknown keyword '…' in 'listen' section" in done.stderr
    assert "refused" in done.stderr


def test_without_haproxy_it_cannot_tell(tmp_path: Path) -> None:
    original = write_original(tmp_path, "global\n  maxconn 5\n")
    new = tmp_path / "new"
    # This directory is first in PATH and contains a haproxy that does not run.
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "haproxy"
    broken.write_text("#!/nonexistent\n")
    broken.chmod(0o755)
    done = command("import", original, "--output", str(new), binary=str(tmp_path / "bin"))
    assert done.returncode == 3, done.stderr
    assert "cannot tell" in done.stderr
    assert (new / "config.yaml").exists()


def test_wrong_usage_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert command("import").returncode == 2
    original = write_original(tmp_path)
    assert command("import", original, "--output", original).returncode == 2
    missing = command("import", str(tmp_path / "missing.cfg"))
    assert missing.returncode == 1
    assert "missing.cfg: error: cannot be read" in missing.stderr
    (tmp_path / "bytes.cfg").write_bytes(b"global\n  \xff\n")
    done = command("import", str(tmp_path / "bytes.cfg"))
    assert done.returncode == 1
    assert "bytes.cfg:2: error: is not UTF-8" in done.stderr
    assert "not a regular file" in command("import", "/dev/zero").stderr


def test_the_help_shows_an_example() -> None:
    done = command("import", "--help")
    assert "fc-frontend import /etc/haproxy/haproxy.cfg --output new" in done.stdout


# HAProxy's behaviour

ORIGINAL = """global
    maxconn 500
    stats socket {directory}/admin.sock mode 600 level admin

defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    balance leastconn

listen stats
    mode http
    bind {host}:8000
    stats uri /
    stats refresh 5s
    stats admin if LOCALHOST

listen ingress
    bind {host}:8443
    bind {host}:8444
    server-template pod 20 {ingress} check resolvers cluster init-addr none

listen web
    mode http
    bind {host}:8080
    balance roundrobin
    server-template pod 10 web.default.svc.cluster.local:8080 check resolvers cluster init-addr none
    option httpchk GET /

frontend pair
    bind {host}:8081
    default_backend pair
backend pair
    balance random(2)
    server-template pod 4 {srv} check resolvers cluster init-addr none

listen virtual
    bind {host}:8082
    server service virtual.default.svc.cluster.local:8080 check resolvers cluster init-addr none

listen nodeport
    mode http
    bind {host}:8083
    balance source
    server node1 {node1}:8080 check
    server node2 {node2}:8080 check

userlist people
    user somebody insecure-password secret

frontend routed
    mode http
    bind {host}:8084
    acl is_web path_beg /web
    use_backend shop if is_web
    default_backend rest

backend shop
    mode http
    server-template shop 3 web.default.svc.cluster.local:8080 check resolvers cluster init-addr none
    http-request deny if {{ src 192.0.2.1 }} {{ http_auth(people) }}

backend rest
    mode http
    server-template rest 3 *.ingress.default.svc.cluster.local:8080 resolvers cluster init-addr none

resolvers cluster
    nameserver coredns {nameserver}
    accepted_payload_size 8192 # allow larger DNS payloads
"""

PORTS = {
    8443: "ingress",
    8444: "ingress",
    8080: "web",
    8081: "web",
    8082: "virtual",
    8083: "node",
    8084: "ingress",
}


@pytest.fixture
def cluster(either_binary: str) -> Iterator[Frontend]:
    frontend = Frontend(either_binary)
    frontend.dns = ClusterDns(address=f"127.{frontend.octet}.255.53", wildcards=True)
    with frontend:
        yield frontend


def facts(real: RealHaproxy) -> dict[str, Any]:
    """Return what HAProxy reports about itself, without fc-frontend's own sections."""
    rows = csv.DictReader(io.StringIO(ask(real.runtime_socket, "show stat", 10).lstrip("# ")))
    stats = {
        (row["pxname"], row["svname"], row["type"], row["mode"], row["algo"], row["slim"])
        for row in rows
        if not row["pxname"].startswith("fc-")
    }
    servers: dict[str, set[tuple[str | None, int | None]]] = {}
    for state in runtime.servers(real.runtime_socket):
        if not state.proxy.startswith("fc-"):
            # Ignore the ports of empty slots: fc-frontend renders port 1 for those of SRV services.
            port = state.port if state.address else None
            servers.setdefault(state.proxy, set()).add((state.address, port))
    assert real.pid is not None
    listening = {
        connection.laddr
        for process in psutil.Process(real.pid).children()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    return {"stats": stats, "servers": servers, "listening": listening}


def resolved(real: RealHaproxy, expected: dict[str, int]) -> bool:
    """Return whether each proxy has as many servers up as there are pods."""
    up: dict[str, int] = dict.fromkeys(expected, 0)
    for state in runtime.servers(real.runtime_socket):
        # A server named by an SRV record has `admin` 64, and takes traffic.
        if state.proxy in up and state.address and state.operational == 2:
            up[state.proxy] += 1
    return up == expected


def test_haproxy_serves_from_the_import_what_it_served_from_the_original(
    cluster: Frontend, haproxy: RealHaproxy, tmp_path: Path
) -> None:
    cluster.scale("ingress", 3)
    cluster.scale("web", 2)
    virtual = f"127.{cluster.octet}.128.9"
    cluster.pods["virtual"] = PodSet("virtual", network=f"{virtual}/32", port=8080)
    cluster.pods["node"] = PodSet("node", network=f"127.{cluster.octet}.201.0/29", port=8080)
    cluster.call(cluster.pods["virtual"].scale(1))
    cluster.call(cluster.pods["node"].scale(2))

    async def publish() -> None:
        cluster.dns.set_service(KubernetesService("virtual", cluster_ip=virtual))

    cluster.call(publish())
    node1, node2 = cluster.pods["node"].addresses
    dns_host, dns_port = cluster.dns.address
    text = ORIGINAL.format(
        directory=haproxy.directory,
        host=cluster.host,
        node1=node1,
        node2=node2,
        nameserver=f"{dns_host}:{dns_port}",
        ingress="*.ingress.default.svc.cluster.local:8080",
        srv="_http._tcp.web.default.svc.cluster.local",
    )
    expected = {
        "ingress": 3,
        "web": 2,
        "pair": 2,
        "virtual": 1,
        "nodeport": 2,
        "shop": 2,
        "rest": 3,
    }

    def observed(configuration: str) -> tuple[dict[str, Any], dict[int, set[str]]]:
        haproxy.start(configuration)
        until(lambda: resolved(haproxy, expected))
        seen = facts(haproxy)
        answering = {port: set(cluster.answers(port, 24)) for port in PORTS}
        haproxy.end()
        return seen, answering

    before, answered_before = observed(text)

    original = write_original(tmp_path, text)
    new = tmp_path / "new"
    binary = on_path(tmp_path, haproxy.binary)
    done = command("import", original, "--output", str(new), binary=binary)
    assert done.returncode == 0, done.stderr
    assert "5 services: ingress, web, pair, virtual, nodeport" in done.stderr
    assert sorted(path.name for path in (new / "services.d").glob("*.cfg")) == [
        "routed.cfg",
        "stats.cfg",
    ]
    # fc-frontend's statistics page is one listener more than before.
    after, answered_after = observed(text_for(new, haproxy.directory))
    after["listening"] -= {("127.0.0.1", 8000)}
    assert after == before
    for port, name in PORTS.items():
        pods = {pod.name for pod in cluster.pods[name].pods}
        assert answered_before[port] <= pods
        assert answered_after[port] <= pods
        if port != 8083:  # by source: one of them
            assert answered_before[port] == answered_after[port] == pods
        else:
            assert answered_before[port] == answered_after[port]
