"""The NixOS module's options become declarations that fc-frontend and HAProxy accept.

Nix itself evaluates the module, with a stand-in for nixpkgs' `lib`: see tests/nixos_module.nix.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.config.declare import load
from fc_frontend.config.schema import CAMEL_CASE, ServiceDeclaration
from fc_frontend.errors import errors_in
from fc_frontend.plan.model import Tls
from tests.conftest import binary_of

pytestmark = pytest.mark.extended

MODULE = Path(__file__).parent / "nixos_module.nix"

SERVICES: dict[str, dict[str, Any]] = {
    "ingress": {"binds": ["127.0.0.1:10443", "[::1]:10443"], "podPort": 443, "mode": "tcp"},
    "shop": {
        "serviceName": "shop-web",
        "namespace": "production",
        "podPort": 8080,
        "maxExpectedPods": 20,
        "sslBackend": True,
        "haproxyExtraConfig": "option httpchk GET /\nhttp-request set-header X-From frontend\n",
        "extraPodTemplateOptions": "maxconn 200\nslowstart 5s\n",
    },
    "redis": {"servicePort": 6379, "mode": "tcp"},
    "legacy": {"lbServicePort": 8081},
}
SETTINGS = {"cluster": {"nameservers": ["10.0.0.254:53"], "nodes": {"node1": "192.0.2.1"}}}


def evaluated(
    tmp_path: Path, services: dict[str, Any], settings: dict[str, Any], **more: Any
) -> subprocess.CompletedProcess[str]:
    """Evaluate the module with Nix, without a store of its own and with JSON input only."""
    program = shutil.which("nix-instantiate")
    if program is None:
        pytest.fail("nix-instantiate is missing: apt install nix-bin")
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"services": services, "settings": settings, **more}))
    expression = f"import {MODULE} (builtins.fromJSON (builtins.readFile {arguments}))"
    return subprocess.run(
        [program, "--store", "dummy://", "--eval", "--strict", "--json", "--expr", expression],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )


def written(
    tmp_path: Path, services: dict[str, Any], settings: dict[str, Any], **more: Any
) -> Path:
    """Return the directory that the module fills, as /etc/fc-frontend."""
    done = evaluated(tmp_path, services, settings, **more)
    assert done.returncode == 0, done.stderr
    for name, text in json.loads(done.stdout)["etc"].items():
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "etc" / "fc-frontend"


def test_the_declarations_are_accepted_by_fc_frontend_and_haproxy(tmp_path: Path) -> None:
    settings = {
        **SETTINGS,
        "haproxy": {"binary": binary_of("2.6-debian")},
        "state_directory": str(tmp_path / "state"),
    }
    directory = written(tmp_path, SERVICES, settings)
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", "check", "--config", str(directory / "config.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "good: 4 services" in done.stdout


def test_the_declarations_say_what_the_options_said(tmp_path: Path) -> None:
    declaration = load(str(written(tmp_path, SERVICES, SETTINGS) / "config.json"))
    assert not errors_in(declaration.problems)
    found = {spec.name: spec for spec in declaration.services}
    assert set(found) == set(SERVICES)
    shop = found["shop"]
    assert (shop.service, shop.namespace, shop.port, shop.slots) == (
        "shop-web",
        "production",
        8080,
        20,
    )
    assert shop.tls == Tls()
    assert shop.extra_config == ("option httpchk GET /", "http-request set-header X-From frontend")
    assert shop.server_options == "maxconn 200 slowstart 5s"
    assert [str(bind) for bind in found["ingress"].binds] == ["127.0.0.1:10443", "[::1]:10443"]
    assert [str(bind) for bind in found["legacy"].binds] == ["127.0.0.1:8081"]
    # The predecessor's default of `mode` differs from fc-frontend's.
    assert {name: spec.mode for name, spec in found.items()} == {
        "ingress": "tcp",
        "shop": "http",
        "redis": "tcp",
        "legacy": "http",
    }
    assert found["ingress"].slots is None


def test_enabling_it_brings_all(tmp_path: Path) -> None:
    """Package, users and directories, and units that agree with the settings on HAProxy's paths."""
    done = evaluated(tmp_path, {}, {})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    settings = json.loads(found["etc"]["fc-frontend/config.json"])["haproxy"]
    assert set(found["users"]) == {"fc-frontend", "haproxy"}
    daemon, haproxy = (found["units"][name]["serviceConfig"] for name in ("fc-frontend", "haproxy"))
    assert daemon["ExecStart"] == "/nix/store/fc-frontend/bin/fc-frontend run"
    assert haproxy["ExecStart"].startswith(
        f"{settings['binary']} -Ws -f {settings['config_file']} "
    )
    assert f"-S {settings['master_socket']}," in haproxy["ExecStart"]
    directory = settings["config_file"].rpartition("/")[0]
    assert daemon["ReadWritePaths"] == [directory]
    assert any(f"d {directory} 0755 fc-frontend" in rule for rule in found["rules"])
    first = found["units"]["fc-frontend-first"]
    assert first["serviceConfig"]["ExecStart"].endswith(
        f"render --output {settings['config_file']}"
    )


@pytest.mark.parametrize("is_list", [True, False])
def test_networks_and_nameservers_are_one_or_a_list(tmp_path: Path, is_list: bool) -> None:
    options: dict[str, Any] = {
        "clusterDns": ["fd00:10:96::a", "10.0.0.254"],
        "podCidr": ["fd00:10:1::/56", "10.1.0.0/16"],
        "serviceCidr": ["fd00:10:96::/112", "10.0.0.0/24"],
    }
    if not is_list:
        options = {name: values[0] for name, values in options.items()}
    directory = written(tmp_path, {"web": {"podPort": 80}}, {}, options=options)
    declaration = load(str(directory / "config.json"))
    assert not errors_in(declaration.problems)
    cluster = json.loads((directory / "config.json").read_text())["cluster"]
    assert cluster == {
        field: value if is_list else [value]
        for field, value in zip(
            ("nameservers", "pod_network", "service_network"), options.values(), strict=True
        )
    }


def test_the_platforms_options_are_services_as_well(tmp_path: Path) -> None:
    directory = written(
        tmp_path, {"web": {"podPort": 80}}, SETTINGS, platform={"redis": {"servicePort": 6379}}
    )
    document = json.loads((directory / "services.d" / "nixos.json").read_text())
    assert set(document["services"]) == {"web", "redis"}


def test_every_name_of_the_predecessor_is_an_option(tmp_path: Path) -> None:
    used = {name for service in SERVICES.values() for name in service}
    assert set(CAMEL_CASE) <= used


def test_each_field_of_a_service_is_an_option(tmp_path: Path) -> None:
    fields = ServiceDeclaration.model_fields.keys() - set(CAMEL_CASE.values())
    value = {"binds": ["127.0.0.1:80"], "mode": "tcp", "namespace": "default"}
    services = {
        f"s{number}": {"podPort": 80, name: value.get(name, True)}
        for number, name in enumerate(sorted(fields))
    }
    done = evaluated(tmp_path, services, SETTINGS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({"podPort": 80, "servicePort": 80}, "set exactly one of podPort, servicePort"),
        ({}, "set exactly one of podPort, servicePort"),
        ({"podPort": "http"}, "frontend.bad.podPort is not of type null or port"),
        ({"podPort": 80, "mode": "udp"}, "frontend.bad.mode is not of type one of"),
        ({"podPrt": 80}, "frontend.bad.podPrt does not exist"),
    ],
)
def test_a_mistake_is_refused_by_nix(tmp_path: Path, service: dict[str, Any], said: str) -> None:
    done = evaluated(tmp_path, {"bad": service}, SETTINGS)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize("text", ['"; bind :1', "${builtins.abort}", "''", "\\n", "é\u2028"])
def test_no_text_ends_its_field(tmp_path: Path, text: str) -> None:
    services = {"shop": {"podPort": 80, "extraPodTemplateOptions": text}}
    directory = written(tmp_path, services, SETTINGS)
    document = json.loads((directory / "services.d" / "nixos.json").read_text())
    assert document["services"]["shop"]["extraPodTemplateOptions"] == text


def test_the_module_for_acme_declares_a_frontend(tmp_path: Path) -> None:
    """contrib/acme/security-acme.nix, and the options that it sets in NixOS's own module."""
    program = shutil.which("nix-instantiate")
    if program is None:
        pytest.fail("nix-instantiate is missing: apt install nix-bin")
    module = Path(__file__).parent.parent / "contrib" / "acme" / "security-acme.nix"
    done = subprocess.run(
        [program, "--store", "dummy://", "--eval", "--strict", "--json", "--expr",
         f"import {module} {{ config = {{ }}; }}"],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    frontends = found["services"]["fc-frontend"]["settings"]["frontends"]
    assert (
        found["security"]["acme"]["defaults"]["listenHTTP"]
        == (frontends["web"]["acme"]["challenges"])
    )
    services = {"shop": {"frontend": "web", "hosts": ["shop.example.org"], "podPort": 80}}
    directory = written(tmp_path, services, {**SETTINGS, "frontends": frontends})
    declaration = load(str(directory / "config.json"))
    assert not errors_in(declaration.problems)
    (frontend,) = declaration.frontends
    assert frontend.tls is not None
    assert [each.path for each in frontend.tls.certificates] == ["/var/lib/acme/*/"]
