"""The documents described in contrib/json.rst match what the commands print, completely."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.cli import COMMANDS
from tests.conftest import binary_of
from tests.support.access_cluster import AccessCluster
from tests.support.api_cluster import ApiFrontend
from tests.support.certificates import Certificates
from tests.support.frontend import Frontend
from tests.test_cli import fc, help_of
from tests.test_status import publish

DOCUMENTED = (Path(__file__).parent.parent / "contrib" / "json.rst").read_text()
_ROW = re.compile(
    r"^(\S+) +((?:string|integer|number|boolean|list|object|problem|change|hold|step|certificate"
    r"|frontend|balancer|explain)"
    r"(?: or null)?) +(\S.*)$"
)
_PYTHON = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "list": list,
    "object": dict,
}
OLD = """\
resolvers cluster
  nameserver a 10.0.0.254:53
listen shop
  bind 127.0.0.1:80
  mode http
  server-template pod 5 shop.default.svc.cluster.local:80 check resolvers cluster init-addr none
frontend other
  bind 127.0.0.1:81
  default_backend other
backend other
  server a 192.0.2.1:80
frontend sites
  mode http
  bind 127.0.0.1:82
  use_backend blog if { hdr(host) blog.example.org }
backend blog
  mode http
  server-template pod 5 blog.default.svc.cluster.local:80 check resolvers cluster init-addr none
"""
_WITHOUT = {"render", "run", "demo", "completion", "man"}
"""Commands whose output is not a document: input for other programs, or a narrative."""


def tables() -> dict[str, dict[str, str]]:
    """Return the type of each field, by section."""
    found = {}
    for title, body in re.findall(
        r"^(\S.*)\n-+\n\n((?:.*\n)*?)(?=\S.*\n---|\Z)", DOCUMENTED, re.MULTILINE
    ):
        rows = [_ROW.match(line) for line in body.splitlines()]
        fields = {row[1]: row[2] for row in rows if row}
        found[title] = fields
    return found


def expanded(title: str) -> dict[str, str]:
    """Return the fields of a section, including those of the sections it refers to."""
    found = {}
    for path, kind in TABLES[title].items():
        shared = kind.removesuffix(" or null")
        if shared in TABLES:
            found[path] = kind.replace(shared, "object")
            found |= {f"{path}.{rest}": other for rest, other in expanded(shared).items()}
        else:
            found[path] = kind
    return found


TABLES = tables()


def prefixes(path: str) -> Iterator[str]:
    """Return the paths of all containers of `path`: for `a.b[].c`, `a`, `a.b` and `a.b[]`."""
    return (path[: found.start()] for found in re.finditer(r"\.|\[\]", path))


def parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value below `value` with its path, in the notation of contrib/json.rst."""
    if isinstance(value, dict):
        for key, item in value.items():
            name = "NAME" if path == "services" else key
            below = f"{path}.{name}" if path else name
            yield below, item
            yield from parts(item, below)
    elif isinstance(value, list):
        for item in value:
            yield f"{path}[]", item
            yield from parts(item, f"{path}[]")


def fits(value: Any, kind: str) -> bool:
    """Return whether `value` has the documented type."""
    if value is None:
        return kind.endswith(" or null")
    name = kind.removesuffix(" or null")
    is_boolean = isinstance(value, bool)
    return isinstance(value, _PYTHON[name]) and (name == "boolean" or not is_boolean)  # type: ignore[arg-type]


class Seen:
    """The documents printed so far: each matches its documentation and is complete."""

    def __init__(self) -> None:
        self.paths: dict[str, set[str]] = {}

    def take(self, title: str, document: dict[str, Any]) -> dict[str, Any]:
        fields = expanded(title)
        found = list(parts(document, ""))
        containers = {above for path in fields for above in prefixes(path)}
        for path, value in found:
            if path in fields:
                assert fits(value, fields[path]), (title, path, value)
            else:
                assert path in containers, (title, path)
                assert isinstance(value, (dict, list)), (title, path, value)
        self.complete(fields, document, title)
        self.paths.setdefault(title, set()).update(path for path, _ in found)
        return document

    def complete(self, fields: dict[str, str], document: dict[str, Any], title: str) -> None:
        """Check that no object lacks a documented key."""

        def look(value: Any, path: str) -> None:
            if isinstance(value, list):
                for item in value:
                    look(item, f"{path}[]")
            elif isinstance(value, dict) and path != "services":
                below = f"{path}." if path else ""
                keys = {
                    re.split(r"[.\[]", other[len(below) :])[0]
                    for other in fields
                    if other.startswith(below)
                }
                assert set(value) == keys, (title, path)
                for key, item in value.items():
                    look(item, f"{below}{key}")
            elif isinstance(value, dict):
                for item in value.values():
                    look(item, "services.NAME")

        look(document, "")


@pytest.fixture
def frontend(certificates: Certificates) -> Iterator[Frontend]:
    with ApiFrontend(binary_of("2.6-debian"), certificates) as made:
        made.scale("shop", 3)
        made.settings["services"]["shop"] = made.service("shop", 8080, discovery="headless")
        pair = {
            "certificate": str(made.directory / "live.crt"),
            "key": str(made.directory / "live.key"),
        }
        for path in pair.values():
            shutil.copy(certificates.path(f"server.{path[-3:]}"), path)
        made.settings["frontends"] = {
            "web": {
                "binds": f"{made.host}:8443",
                "http": {"binds": f"{made.host}:8490"},
                "tls": {"certificates": [pair]},
            }
        }
        made.settings["services"]["site"] = {
            "frontend": "web",
            "hosts": "kubernetes",
            "pod_port": 8080,
            "service": "shop",
            "discovery": "headless",
        }
        made.settings["intervals"].update(hold="1s")
        pool = {"addresses": f"127.{made.octet}.201.1", "default": True}
        made.settings["load_balancer"] = {"pools": {"public": pool}}
        for name in ("first", "second"):
            made.balanced_service(name)
        made.kube_node("node1", "192.0.2.1")
        yield made


def test_every_command_with_a_document_is_documented() -> None:
    commands = set(COMMANDS) - _WITHOUT
    assert commands <= set(TABLES)
    for name in COMMANDS:
        said = help_of(name)
        assert ("--json" in said) == (name in commands), name
        assert ("--format" in said) == (name in commands), name


@pytest.mark.extended
def test_documents_are_as_documented(
    frontend: Frontend, tmp_path: Path, certificates: Certificates
) -> None:
    seen = Seen()

    def take(command: str, *arguments: str, title: str = "") -> dict[str, Any]:
        done = frontend.run(command, "--json", *arguments, check=False)
        return seen.take(title or command, json.loads(done.stdout))

    frontend.write()
    # Nothing is running yet.
    take("status")
    take("explain", "shop")
    take("diff")
    take("history")
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
    seen.take("/status.json", frontend.status())
    take("status")
    take("explain", "shop")
    take("apply")
    frontend.until(lambda: frontend.status()["certificates"])
    seen.take("/status.json", frontend.status())
    take("status")
    assert take("explain", "https://kubernetes:8443/")["route"]["certificate"]
    assert take("explain", "svc/default/first", title="explain svc/NAMESPACE/NAME")["services"]
    take("certificates", "list")
    take("doctor")
    # Cover pods drained, declared anew, invalid, and outside of the cluster.
    pod = frontend.pods["shop"].addresses[0]
    assert take("drain", "shop", pod)["pod"] == pod
    frontend.until(lambda: frontend.status()["services"][0]["drained"])
    seen.take("/status.json", frontend.status())
    assert take("undrain", "shop")["freed"]
    publish(frontend, "shop", (*frontend.pods["shop"].addresses, "192.0.2.1"))
    frontend.until(lambda: frontend.status()["services"][0]["rejected"])
    frontend.drop("bad.json", {"bad": {"pod_port": 80, "mode": "x"}})
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    frontend.until(lambda: frontend.status()["withheld"])
    frontend.until(lambda: "more" in {s["name"] for s in frontend.status()["services"]})
    frontend.until(frontend.ready)
    seen.take("/status.json", frontend.status())
    take("status")
    assert take("check")["withheld"]
    take("diff")
    take("resolve")
    take("explain", "shop")
    take("explain", "bad")
    gone = frontend.service("gone", 8083, discovery="headless")
    frontend.drop("gone.json", {"gone": gone})
    assert take("explain", "gone")["cause"]["details"]
    (frontend.services_d / "gone.json").unlink()
    (frontend.services_d / "bad.json").unlink()
    (frontend.services_d / "more.json").unlink()
    frontend.until(lambda: not frontend.status()["withheld"])
    frontend.until(frontend.ready)
    frontend.until(lambda: len(take("history")["entries"]) >= 2)
    take("rollback")
    assert take("history")["held"]
    frontend.until(lambda: frontend.status()["held"])
    seen.take("/status.json", frontend.status())
    assert take("status")["held"]
    assert take("resume")["was_held"]
    assert take("resume")["was_held"] is None
    frontend.until(lambda: frontend.ready() and not frontend.status()["held"])
    # haproxy.cfg is replaced by hand.
    ours = frontend.haproxy_cfg.read_text()
    frontend.haproxy_cfg.write_text("listen site\n    bind 127.0.0.1:1\n")
    frontend.until(lambda: frontend.status()["take_over"])
    seen.take("/status.json", frontend.status())
    frontend.haproxy_cfg.write_text(ours)
    frontend.until(lambda: frontend.status()["take_over"] is None)
    frontend.stop_daemon()
    for ending in ("crt", "key"):
        shutil.copy(certificates.path(f"client.{ending}"), frontend.directory / f"live.{ending}")
    assert take("certificates", "sync")["swapped"]
    frontend.drop("more.json", {"more": frontend.service("shop", 8082)})
    frontend.settings["services"]["shop"].update(balance="source", binds=f"{frontend.host}:8084")
    frontend.write()
    assert take("diff")["changes"]
    installed = tmp_path / "old.cfg"
    installed.write_text(OLD)
    done = fc("import", "--json", str(installed), "--output", str(tmp_path / "new"))
    seen.take("import", json.loads(done.stdout))
    (tmp_path / "users").mkdir()
    with AccessCluster(tmp_path / "users", certificates) as cluster:
        for arguments in (("alice", "--server", cluster.server), ("list",)):
            done = cluster.run(*arguments, "--json")
            assert seen.take("kubeconfig", json.loads(done.stdout))["kubeconfigs"]
    missing = {
        title: sorted(expanded(title).keys() - seen.paths.get(title, set()))
        for title in TABLES
        if title in seen.paths
    }
    # These containers are always empty here; their possible contents are documented elsewhere.
    excused = {"problems[]", "withheld[]", "api.held[]"}
    # `explain` of a service covers these fields.
    missing["explain svc/NAMESPACE/NAME"] = []
    left = {
        title: [path for path in paths if not any(path.startswith(e) for e in excused)]
        for title, paths in missing.items()
    }
    assert not any(left.values()), left
    assert set(COMMANDS) - _WITHOUT - set(seen.paths) == set()


def test_a_failure_is_a_document_as_well(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("haproxy: {binary: /nonexistent/haproxy}\nservices: {shop: {pod_port: 80}}\n")
    for command, code in (("apply", 3), ("rollback", 3)):
        done = fc(command, "--json", "--config", str(config))
        document = Seen().take("Failure of any command", json.loads(done.stdout))
        assert (done.returncode, document["status"], done.stderr) == (code, "unknown", "")
        assert document["problems"][0]["remedy"]
    config.write_text(
        f"state_directory: {tmp_path}/state\n"
        f"haproxy: {{config_file: {tmp_path}/haproxy.cfg}}\n"
        "services: {shop: {pod_port: 99999}}\n"
    )
    done = fc("apply", "--format", "json", "--config", str(config))
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["status"] == "withheld"
    assert document["withheld"][0]["problems"][0]["field"] == "pod_port"


def test_json_and_another_format_exclude_each_other() -> None:
    done = fc("check", "--json", "--format", "nagios")
    assert done.returncode == 2
    assert "exclude each other" in done.stderr
