"""From files to values, with all problems reported in one pass."""

from __future__ import annotations

import json
import os
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.config.declare import Declaration, load
from fc_frontend.config.document import read_document
from fc_frontend.errors import Problem, Severity, errors_in, warnings_in
from fc_frontend.plan.checks import settings_problems
from fc_frontend.plan.model import Discovery, Kind, Target, Tls
from fc_frontend.plan.planner import assumed_kind
from tests.support.prepared import prepare

BASE = 'cluster: {nameservers: ["10.0.0.254:53"]}\n'


def declared(tmp_path: Path, text: str, files: dict[str, str] | None = None) -> Declaration:
    config = tmp_path / "config.yaml"
    config.write_text(BASE + text if "cluster:" not in text else text)
    (tmp_path / "services.d").mkdir(exist_ok=True)
    for name, content in (files or {}).items():
        (tmp_path / "services.d" / name).write_text(content)
    return load(str(config))


def only_error(declaration: Declaration) -> Problem:
    (problem,) = errors_in(prepare(declaration, {}).problems)
    return problem


def test_a_service_of_two_lines_gets_sane_defaults(tmp_path: Path) -> None:
    declaration = declared(tmp_path, "services:\n  ingress:\n    pod_port: 443\n")
    assert not declaration.problems
    (spec,) = declaration.services
    assert (spec.name, spec.service, spec.namespace) == ("ingress", "ingress", "default")
    assert [str(bind) for bind in spec.binds] == ["127.0.0.1:443"]
    assert (spec.mode, spec.target, spec.port) == ("tcp", Target.POD, 443)
    assert (spec.discovery, spec.slots, spec.balance) == (Discovery.AUTO, None, "leastconn")
    assert assumed_kind(spec) is Kind.HEADLESS


def test_the_settings_of_the_contract_are_accepted(tmp_path: Path) -> None:
    declaration = declared(
        tmp_path,
        """
cluster:
  domain: cluster.local
  nameservers: ["10.0.0.254:53", "tcp://10.0.0.254:53", "[fd00::a]:53"]
  service_network: 10.0.0.0/24
  pod_network: [10.1.0.0/16, "fd00:1::/64"]
  nodes: {node-a: 192.0.2.1}
haproxy:
  binary: haproxy
  config_file: /etc/haproxy/haproxy.cfg
  master_socket: /run/haproxy/master.sock
  runtime_socket: /run/haproxy/admin.sock
  reload_command: [systemctl, reload, haproxy]
  supervise: false
  stats: 127.0.0.1:8000
  global_extra: ""
  defaults_extra: |
    timeout client 5m
  templates: null
state_directory: /var/lib/fc-frontend
listen: 127.0.0.1:9484
intervals: {resolve: 1s, rescan: 30s, debounce: 200ms, reload: 2s}
""",
    )
    assert not errors_in(declaration.problems)
    settings = declaration.settings
    assert len(settings.cluster.pod_networks) == 2
    assert settings.cluster.nodes == {"node-a": ip_address("192.0.2.1")}
    assert settings.intervals.debounce == 0.2
    assert settings.haproxy.defaults_extra == ("timeout client 5m",)


def test_the_predecessors_declarations_move_over_unchanged(tmp_path: Path) -> None:
    old = {
        "services": {
            "ingress-https": {
                "podPort": 443,
                "lbServicePort": None,
                "servicePort": None,
                "serviceName": "ingress",
                "namespace": "default",
                "maxExpectedPods": 30,
                "sslBackend": True,
                "binds": None,
                "mode": "http",
                "haproxyExtraConfig": "option httpchk GET /\n",
                "extraPodTemplateOptions": "maxconn 100\n",
            }
        }
    }
    declaration = declared(tmp_path, "", {"old.json": json.dumps(old)})
    assert not declaration.problems
    (spec,) = declaration.services
    assert (spec.service, spec.port, spec.slots, spec.mode) == ("ingress", 443, 30, "http")
    assert spec.tls == Tls()
    assert spec.extra_config == ("option httpchk GET /",)
    assert spec.server_options == "maxconn 100"


MISTAKES: list[tuple[str, str, str, str]] = [
    # declaration of service `shop`, field, message, remedy
    ("pod_prt: 443", "pod_prt", "unknown field", "did you mean pod_port?"),
    ("poddPort: 443", "poddPort", "unknown field", "did you mean podPort?"),
    ("pod_port: 70000", "pod_port", "not a port", "1 to 65535"),
    ("pod_port: 0", "pod_port", "not a port", "1 to 65535"),
    ("pod_port: true", "pod_port", "not a port", "1 to 65535"),
    ("pod_port: Not_A_Name", "pod_port", "not a port", "spec.ports"),
    ("service_port: https", "service_port", "not a number", "pod_port"),
    ("{}", "", "set one of", "pod_port: 443"),
    ("{pod_port: 1, service_port: 2}", "service_port", "set one of", "keep pod_port"),
    ("{pod_port: 1, podPort: 2}", "podPort", "means the same", "keep one"),
    ("{pod_port: https}", "binds", "no default for binds", "add binds"),
    ("{pod_port: 1, namespace: My_NS}", "namespace", "DNS-1123", "lower-case"),
    ("{pod_port: 1, service: -shop}", "service", "DNS-1123", "lower-case"),
    ("{pod_port: 1, service: 12}", "service", "not a string", "quotes"),
    ("{pod_port: 1, slots: 0}", "slots", "not a number of slots", "auto"),
    ("{pod_port: 1, slots: many}", "slots", "not a number of slots", "auto"),
    ("{pod_port: 1, mode: udp}", "mode", "should be 'tcp' or 'http'", ""),
    ("{pod_port: 1, balance: fastest}", "balance", "not a balance", "leastconn"),
    ("{pod_port: 1, balance: uri}", "balance", "needs mode: http", "http"),
    ("{pod_port: 1, discovery: srv}", "discovery", "name of a port", "spec.ports"),
    ("{service_port: 1, discovery: srv}", "discovery", "no meaning", "pod_port"),
    ("{pod_port: http, binds: '*:80', discovery: wildcard}", "discovery", "cannot find", "srv"),
    ("{pod_port: http, binds: '*:80', fallback: service}", "fallback", "needs", "none"),
    ("{pod_port: 1, binds: []}", "binds", "no bind", "leave binds out"),
    ("{pod_port: 1, tls: {verify: required}}", "tls", "no ca_file", "verify: none"),
    ("{pod_port: 1, tls: {ca: /x}}", "tls.ca", "unknown field", "ca_file"),
    ("{pod_port: 1, check: maybe}", "check", "valid boolean", ""),
    (
        "{pod_port: 1, extra_config: 'listen evil'}",
        "extra_config",
        "begins a section",
        "services.d",
    ),
    ("{pod_port: 1, extra_config: '.if defined(X)'}", "extra_config", "directive", "services.d"),
    ('{pod_port: 1, extra_config: "a\\x07"}', "extra_config", "control character", "leave"),
    ('{pod_port: 1, server_options: "a\\x00"}', "server_options", "control character", "leave"),
    ("{lb_service_port: 80}", "lb_service_port", "nodes", "cluster.nodes"),
    ("{pod_port: 1, binds: '127.0.0.1:9484'}", "binds.0", "fc-frontend itself", "listen"),
    ("{pod_port: 1, binds: '*:8000'}", "binds.0", "fc-frontend itself", "haproxy.stats"),
    ("{pod_port: 1, binds: ['*:80', '*:80']}", "binds.1", "twice", "keep one"),
    ("{pod_port: 1, binds: ['unix@/run/haproxy/admin.sock']}", "binds.0", "controls", "another"),
    ("just text", "", "no fields", "pod_port"),
]


@pytest.mark.parametrize(("text", "field", "message", "remedy"), MISTAKES)
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_mistake_is_named_with_place_field_and_remedy(
    tmp_path: Path, text: str, field: str, message: str, remedy: str, ending: str
) -> None:
    if ending == "json":
        value = read_document(text, is_json=False).value
        content = json.dumps({"services": {"shop": value}}, indent=2)
    else:
        content = f"services:\n  shop:\n    {text}"
    declaration = declared(tmp_path, "", {f"shop.{ending}": content})
    problem = only_error(declaration)
    assert problem.service == "shop"
    assert (problem.field or "").split(".")[0] == field.split(".", maxsplit=1)[0]
    assert message in problem.message
    assert remedy in problem.remedy
    assert problem.file == str(tmp_path / "services.d" / f"shop.{ending}")
    in_field = field and problem.field in (field, field.split(".", maxsplit=1)[0])
    there = content.split("\n")[(problem.line or 0) - 1][(problem.column or 0) - 1 :]
    last = field.rsplit(".", 1)[-1]
    if in_field and not last.isdigit() and last in content:
        assert there.lstrip('"').startswith(last)
    else:
        assert there


def test_the_documentations_bad_ipv6_address_is_explained(tmp_path: Path) -> None:
    declaration = declared(
        tmp_path,
        "services:\n  ingress:\n    pod_port: 443\n    binds:\n      - 198.51.100.2:443\n"
        '      - "[2a02:238:f030:::1000]:443"\n',
    )
    problem = only_error(declaration)
    assert "not a valid IPv6 address: it has three colons in a row" in problem.message
    assert problem.remedy == "write [2a02:238:f030::1000]:443"
    assert (problem.line, problem.column) == (7, 9)


def test_all_mistakes_come_in_one_go_and_hide_no_good_service(tmp_path: Path) -> None:
    declaration = declared(
        tmp_path,
        "haproxy: {stast: 1, check_timeout: 9y}\n"
        "services: {a: {pod_port: 0}, good: {pod_port: 81}}",
        {"b.yaml": "services: {b: {mode: x, pod_port: y y}}", "c.json": "{", "d.yml": ""},
    )
    places = {(p.file or "").rsplit("/", 1)[-1] for p in errors_in(declaration.problems)}
    assert places == {"config.yaml", "b.yaml", "c.json"}
    assert len(errors_in(declaration.problems)) == 6
    assert [spec.name for spec in declaration.services] == ["good"]
    (warning,) = warnings_in(declaration.problems)
    assert warning.remedy == "name it .yaml"


def test_a_service_defined_twice_names_both_places(tmp_path: Path) -> None:
    declaration = declared(
        tmp_path,
        "services:\n  shop: {pod_port: 80}\n",
        {"a.yaml": "services:\n\n  shop: {pod_port: 80}\n"},
    )
    problem = only_error(declaration)
    assert "is also defined in " in problem.message
    assert problem.message.endswith("config.yaml:3")
    assert (problem.file or "").endswith("a.yaml")
    assert problem.line == 3


def test_two_services_on_one_bind(tmp_path: Path) -> None:
    text = 'services: {a: {pod_port: 80, binds: "[::1]:80"}, b: {pod_port: 80, binds: "[0::1]:80"}}'
    problem = only_error(declared(tmp_path, text))
    assert problem.service == "b"
    assert "[::1]:80 is taken by service a" in problem.message


def test_a_wildcard_over_anothers_address_is_a_warning(tmp_path: Path) -> None:
    text = 'services: {a: {pod_port: 80, binds: "*:80"}, b: {pod_port: 80, binds: "192.0.2.1:80"}}'
    declaration = declared(tmp_path, text)
    (problem,) = (p for p in prepare(declaration, {}).problems if p.field == "binds.0")
    assert problem.severity is Severity.WARNING
    assert "*:80 also covers 192.0.2.1:80 of service b" in problem.message


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ("service_network: 10.1.2.0/24", "cluster.service_network", "overlap"),
        ("pod_network: 10.1.0.1/16", "cluster.pod_network.0", "not a network"),
        ("domain: cluster.local.", "cluster.domain", "not a domain name"),
        ("nameservers: [dns]", "cluster.nameservers.0", "not an IP address"),
        ("nodes: {'a b': 192.0.2.1}", "cluster.nodes.a b", "not a node's name"),
        ("nodes: {a: node-a.example}", "cluster.nodes.a", "not an IP address"),
        ("domian: x", "cluster.domian", "unknown field"),
    ],
)
def test_mistakes_in_settings(tmp_path: Path, settings: str, field: str, message: str) -> None:
    nameservers = "" if "nameservers" in settings else '  nameservers: ["10.0.0.254:53"]\n'
    declaration = declared(tmp_path, f"cluster:\n{nameservers}  {settings}\n")
    problem = only_error(declaration)
    assert problem.field == field
    assert message in problem.message
    assert problem.line == (2 if not nameservers else 3)


def test_own_listeners_on_one_address(tmp_path: Path) -> None:
    problem = only_error(declared(tmp_path, "listen: 127.0.0.1:8000\n"))
    assert problem.field == "listen"
    assert "haproxy.stats" in problem.message


def test_a_network_that_contains_this_hosts_address_is_a_warning(tmp_path: Path) -> None:
    declaration = declared(tmp_path, "")
    problems = settings_problems(declaration.settings, [ip_address("10.1.0.5")])
    assert [p.severity for p in problems] == [Severity.WARNING]
    assert "10.1.0.0/16 contains 10.1.0.5, an address of this host" in problems[0].message


def test_a_missing_settings_file_is_said_with_a_remedy(tmp_path: Path) -> None:
    problems = errors_in(load(str(tmp_path / "none.yaml")).problems)
    assert "cannot be read: No such file" in problems[0].message
    assert "FC_FRONTEND_CONFIG" in problems[0].remedy


def test_files_that_are_no_files(tmp_path: Path) -> None:
    declared(tmp_path, "")
    os.mkfifo(tmp_path / "services.d" / "pipe.yaml")
    (tmp_path / "services.d" / "dir.yaml").mkdir()
    (tmp_path / "services.d" / "latin.yaml").write_bytes(b"services: {\xe4: {pod_port: 1}}")
    (tmp_path / "services.d" / "big.yaml").write_bytes(b"#" * (5 * 1024 * 1024))
    (tmp_path / "services.d" / "gone.yaml").symlink_to("/nonexistent")
    declaration = load(str(tmp_path / "config.yaml"))
    said = {(p.file or "").rsplit("/", 1)[-1]: p.message for p in errors_in(declaration.problems)}
    assert said["pipe.yaml"] == "is not a regular file"
    assert said["dir.yaml"] == "is not a regular file"
    assert said["latin.yaml"] == "is not UTF-8"
    assert said["big.yaml"].startswith("is larger than")
    assert said["gone.yaml"].startswith("cannot be read")


def test_editors_files_are_not_read(tmp_path: Path) -> None:
    broken = dict.fromkeys((".#a.yaml", "#a.yaml#", "a.yaml~", ".a.yaml.swp", "a.yaml.bak"), "{")
    assert not declared(tmp_path, "", broken).problems


def test_fragments_are_taken_verbatim(tmp_path: Path) -> None:
    text = 'listen raw\n\tbind 127.0.0.1:99\n  # comment "quoted"\n'
    declaration = declared(tmp_path, "", {"raw.cfg": text})
    assert [f.text for f in declaration.fragments] == [text]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a b.cfg", "", "name that HAProxy could not take"),
        ("a\n.cfg", "", "characters that are not printable"),
        ("a.cfg", "x\x00y", "control character"),
        ("a.cfg", "x\ry", "control character"),
    ],
)
def test_hostile_fragments(tmp_path: Path, name: str, text: str, message: str) -> None:
    assert message in only_error(declared(tmp_path, "", {name: text})).message


@pytest.mark.parametrize(
    "content", ["[]", "services: []", "services: text", "3", "services: {shop: [1]}"]
)
def test_other_shapes_than_expected(tmp_path: Path, content: str) -> None:
    assert only_error(declared(tmp_path, "", {"a.yaml": content})).remedy


@pytest.mark.parametrize("content", ["", "services:", "services: {}", "# nothing"])
def test_empty_files_are_fine(tmp_path: Path, content: str) -> None:
    assert not declared(tmp_path, "", {"a.yaml": content}).problems


@pytest.mark.parametrize("name", ["fc-stats", "a b", "a/b", "-a", "", "a" * 64, "ä", "a\nb"])
def test_service_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    document: dict[str, Any] = {"services": {name: {"pod_port": 1, "service": "a"}}}
    declared(tmp_path, "", {"a.json": json.dumps(document)})
    assert only_error(load(str(tmp_path / "config.yaml"))).service == name.replace("\n", r"\n")


def test_names_that_are_no_dns_label_need_a_service(tmp_path: Path) -> None:
    assert only_error(declared(tmp_path, "services: {my_app: {pod_port: 1}}")).remedy
    good = declared(tmp_path, "services: {my_app: {pod_port: 1, service: my-app}}")
    assert not good.problems


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_problem_of_each_of_many_services_is_located_in_a_moment(
    tmp_path: Path, suffix: str
) -> None:
    """An outage of DNS causes this.  Reading the file for each problem took minutes."""
    names = [f"s{number}" for number in range(2000)]
    text = json.dumps({"services": {name: {"pod_port": 80} for name in names}}, indent=1)
    declaration = declared(tmp_path, "", {f"many.{suffix}": text})
    assert len(declaration.services) == len(names)
    started = time.process_time()
    for name in names:
        located = declaration.located(Problem(message="stale", service=name, remedy=""))
        line = text.splitlines()[(located.line or 0) - 1]
        assert line.strip().startswith(f'"{name}":')
    assert time.process_time() - started < 10
