"""contrib/kubernetes-cluster.rst: its settings are accepted, and its commands work as described.

The commands run in sequence in one shell, with the real kubectl and dig, against a frontend with
the tests' cluster.  Parts marked as unchanged on the page belong to the platform and are not
tested.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fc_frontend.config.declare import load
from fc_frontend.demo.dns import KubernetesService
from fc_frontend.errors import errors_in
from fc_frontend.haproxy.runtime import servers_with_address, serving
from fc_frontend.kubernetes.kubeconfig import read_kubeconfig
from tests.support.access_cluster import secrets_in
from tests.support.api_cluster import READY, TOKEN
from tests.support.api_identities import Identities
from tests.support.certificates import Certificates
from tests.test_load_balancers import Balanced

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "contrib" / "kubernetes-cluster.rst").read_text()
HOST = "myhost"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"code-block:: {language}\n\n((?:    .*\n|\n)+)", PAGE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


COMMANDS = [line[2:] for block in blocks("console") for line in block.splitlines() if line]
SETTINGS = [yaml.safe_load(block) for block in blocks("yaml")]


def with_key(key: str) -> dict[str, Any]:
    (found,) = (each for each in SETTINGS if key in each)
    return dict(found)


def accepted(directory: Path, settings: dict[str, Any]) -> None:
    """Fail if the settings contain an error."""
    path = directory / "config.yaml"
    cluster = {"nameservers": ["10.0.0.254:53"], **settings.get("cluster", {})}
    path.write_text(yaml.safe_dump({**settings, "cluster": cluster}))
    assert not errors_in(load(str(path)).problems)


# The text


def test_every_block_is_read() -> None:
    assert PAGE.count("code-block::") == len(blocks("console")) + len(blocks("yaml"))
    assert all(
        line.startswith("$ ") for block in blocks("console") for line in block.split("\n") if line
    )
    assert len(COMMANDS) == 20
    # Each unchanged part of the platform has an end mark.
    marks = re.findall(r"^\.\. (unchanged|changed)$", PAGE, re.MULTILINE)
    assert marks == ["unchanged", "changed"] * (len(marks) // 2)


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"contrib/[a-z./-]+[a-z]", PAGE):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("key", ["services", "load_balancer", "cluster"])
def test_its_settings_are_accepted(tmp_path: Path, key: str) -> None:
    for settings in SETTINGS:
        if key in settings:
            accepted(tmp_path, settings)


def test_its_access_to_the_api_is_accepted(tmp_path: Path) -> None:
    accepted(tmp_path, with_key("api_access"))


# The commands


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[Balanced]:
    """The setup that the page describes: a cluster with nodes and Services, and a frontend."""
    with Balanced(either_binary, certificates) as made:
        made.api.identities = Identities(made.api.objects, certificates, TOKEN)
        made.kube_node("node1", f"127.{made.octet}.150.1")
        (declared,) = with_key("services")["services"].values()
        on_loopback = {"binds": f"{made.host}:8443", "pod_port": 8080, "discovery": "headless"}
        made.settings["services"] = {"ingress": {**declared, **on_loopback}}
        made.scale("ingress", 2)
        made.publish("myapp", made.pods["ingress"].addresses)
        pods = made.scale("web", 1, publish=False)
        made.endpoints("web", dict.fromkeys(pods.addresses, READY), port_names=["http"])
        made.start()
        path = made.settings["haproxy"]["runtime_socket"]
        made.until(lambda: "ingress" in serving(servers_with_address(path)))
        yield made


def run_all(frontend: Balanced, kubectl: Path, directory: Path) -> list[tuple[int, str]]:
    """Return the exit code and output of each command of the page.

    The host is named `localhost`, so that the API server is reachable under that name.
    """
    (directory / "contrib").symlink_to(ROOT / "contrib")
    host, port = frontend.dns.address
    (directory / ".digrc").write_text(f"@{host} -p {port}\n")
    programs = (Path(sys.executable).parent, ROOT / "contrib", kubectl.parent)
    environ = {
        "PATH": ":".join((*map(str, programs), os.environ["PATH"])),
        "PYTHONPATH": str(ROOT),
        "HOME": str(directory),
        "USER": "max",
        "HOST": HOST,
        "LANG": "C.UTF-8",
        "KUBECONFIG": str(frontend.kubeconfig),
        "FC_FRONTEND_CONFIG": str(frontend.config),
    }
    lines = ["umask 077", "hostname localhost"]
    for command in COMMANDS:
        lines += [command, 'printf "\\n@@%d\\n" $?']
    (directory / "commands").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["unshare", "--map-root-user", "--uts", "/bin/sh", "commands"],
        cwd=directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=True,
    )
    parts = re.split(r"\n@@(\d+)\n", done.stdout)
    return [(int(code), text) for text, code in zip(parts[::2], parts[1::2], strict=False)]


@pytest.mark.extended
def test_the_commands_do_what_the_page_says(
    frontend: Balanced, kubectl: Path, tmp_path: Path
) -> None:
    ran = dict(zip(COMMANDS, run_all(frontend, kubectl, tmp_path), strict=True))
    # `doctor` may fail, as this is not a VM of the platform; all others succeed.
    failed = {command: result for command, result in ran.items() if result[0]}
    assert set(failed) <= {"fc-frontend doctor"}, failed

    def said(start: str) -> str:
        (found,) = (text for command, (_, text) in ran.items() if command.startswith(start))
        return found

    assert "control plane" in said("kubectl cluster-info")
    assert "node1" in said("kubectl get nodes")
    assert "ingress" in said("fc-frontend status")
    assert "is ready" in said("fc-frontend doctor")
    assert "role edit in shop" in said("fc-frontend kubeconfig alice --role")
    assert "(8 h)" in said("fc-frontend kubeconfig alice --role")
    (alices,) = tmp_path.glob("alice-*.kubeconfig")
    assert stat.S_IMODE(alices.stat().st_mode) == 0o600
    assert "Different from the former" in said("kubernetes-make-kubeconfig")
    everybodys = tmp_path / f"max-{HOST}.kubeconfig"
    assert read_kubeconfig(str(everybodys)).host == "localhost"
    assert all(each in said("fc-frontend kubeconfig list") for each in ("alice-", "max-"))
    assert "1 kubeconfig revoked: alice-" in said("fc-frontend kubeconfig revoke")
    assert "token: " in said("fc-frontend kubeconfig alice --output")
    assert "deployment.apps/headlamp" in said("kubectl apply -f contrib/kubernetes/dashboard.yaml")
    answer = said("dig ").partition(";; ANSWER SECTION:")[2]
    for address in frontend.pods["ingress"].addresses:
        assert address in answer
    assert "ingress" in said("fc-frontend resolve")
    assert said("fc-frontend check").startswith("good: ")
    assert "ingress" in said("fc-frontend explain ingress")
    # Kubernetes publishes a Service at an address of the pool.
    assert "web" in said("kubectl get service")
    pod = frontend.pods["web"].pods[0].name
    frontend.until(lambda: frontend.ask_at(frontend.address(1)) == pod)
    key = ("services", "default", "web")
    frontend.until(lambda: frontend.api.objects.now[key].get("status", {}).get("loadBalancer"))
    status = frontend.api.objects.now[key]["status"]
    assert status["loadBalancer"]["ingress"][0]["ip"] == frontend.address(1)
    # The output contains no secret, except the one that was requested.
    for path in (alices, everybodys):
        for secret in secrets_in(path):
            assert all(secret not in text for _, text in ran.values())


@pytest.mark.extended
def test_dig_shows_the_cluster_ip_of_a_service_that_is_not_headless(frontend: Balanced) -> None:
    address = f"127.{frontend.octet}.130.9"

    async def publish() -> None:
        service = KubernetesService("vip", ports={"http": 80}, cluster_ip=address)
        frontend.dns.set_service(service)

    frontend.call(publish())
    host, port = frontend.dns.address
    query = ["dig", f"@{host}", "-p", str(port), "+short", "vip.default.svc.cluster.local"]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [address]


@pytest.mark.extended
def test_a_service_whose_address_another_program_holds_affects_no_other(
    frontend: Balanced,
) -> None:
    with socket.create_server((frontend.host, 8444)):
        other = {**frontend.settings["services"]["ingress"], "binds": f"{frontend.host}:8444"}
        frontend.drop("other.json", {"other": {**other, "service": "ingress"}})
        frontend.until(lambda: frontend.status()["withheld"])
        shown = frontend.run("status", check=False).stdout
        assert f"{frontend.host}:8444" in shown
        assert "other" in shown
        path = frontend.settings["haproxy"]["runtime_socket"]
        assert "ingress" in serving(servers_with_address(path))
