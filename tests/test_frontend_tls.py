"""`tls:` of a frontend, from files to text that real HAProxys accept; reads no certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from fc_frontend.haproxy.validate import validate
from fc_frontend.pipeline import Prepared, haproxy_check, prepare_offline
from fc_frontend.plan.model import CertificateSource
from fc_frontend.syntax.certificates import is_own_list, own_lists
from tests.support.certificates import Certificates
from tests.support.prepared import prepared, withheld

SETTINGS = """
cluster: {nameservers: ["127.0.0.1:53"]}
haproxy: {config_file: /etc/haproxy/haproxy.cfg, log: null}
services: {shop: {frontend: web, hosts: shop.example.org, pod_port: 80}}
"""


def with_tls(directory: Path, tls: str, more: str = "", settings: str = SETTINGS) -> Prepared:
    (directory / "config.yaml").write_text(
        f"{settings}\nfrontends:\n  web:\n    binds: 127.0.0.1:8443\n    tls: {tls}\n{more}"
    )
    return prepared(directory / "config.yaml")


@pytest.mark.parametrize(
    "tls",
    [
        "{certificates: '/var/lib/acme/*/'}",
        "{certificates: /etc/ssl/web.pem, default: /etc/ssl/web.pem}",
        "{certificates: /etc/ssl/web.pem, client_ca: CA}",
        "{certificates: /etc/ssl/web.pem, client_ca: CA, client_certificates: optional}",
        "{certificates: /etc/ssl/web.pem, profile: modern}",
    ],
)
def test_haproxy_accepts_it_without_a_certificate(
    tmp_path: Path, certificates: Certificates, either_binary: str, tls: str
) -> None:
    ca = str(certificates.path("ca.crt"))
    found = with_tls(tmp_path, tls.replace("CA", ca), "    http: {binds: '127.0.0.1:8080'}\n")
    assert not withheld(found)
    assert found.config is not None
    text = found.config.text
    assert "alpn h2,http/1.1" in text
    assert ("strict-sni" in text) is ("default" not in tls)
    assert ("verify required" in text) is ("client_ca: CA}" in tls)
    assert list(own_lists(text)) == ["/var/lib/fc-frontend/fc-frontend-certificates/web.list"]
    verdict = validate(either_binary, text, timeout=30)
    assert verdict.accepted, verdict.output
    assert not [each for each in verdict.warnings if "server state file" not in each.text]


@pytest.mark.parametrize("passes", ["true", "false"])
def test_haproxy_warns_of_nothing_where_challenges_are_forwarded(
    tmp_path: Path, either_binary: str, passes: str
) -> None:
    """Cover rules before and after `use_backend`, with standbys and without."""
    token = tmp_path / "token"
    token.write_text("token")
    more = "    acme: {challenges: '127.0.0.1:8402'}\n    http: {binds: '127.0.0.1:8080'}\n"
    more += "    allow: 127.0.0.0/8\n    extra_config: 'http-request deny if { path /x }'\n"
    tls = f"{{certificates: /c/a.pem, passthrough: {passes}}}"
    api = f'], api: {{server: "https://127.0.0.1:6443", token_file: "{token}"}}}}'
    found = with_tls(tmp_path, tls, more, settings=SETTINGS.replace("]}", api, 1))
    assert not withheld(found)
    assert found.config is not None
    assert "fc_standby" in found.config.text
    verdict = validate(either_binary, found.config.text, timeout=30)
    assert verdict.accepted, verdict.output
    assert not [each for each in verdict.warnings if "server state file" not in each.text]


def test_certificates_are_files_directories_patterns_or_pairs(tmp_path: Path) -> None:
    found = with_tls(
        tmp_path,
        "{certificates: [/a/b.pem, '/a/*/', {certificate: /a/c.crt, key: /a/c.key}]}",
    )
    (frontend,) = found.declaration.frontends
    assert frontend.tls is not None
    assert frontend.tls.certificates == (
        CertificateSource("/a/b.pem"),
        CertificateSource("/a/*/"),
        CertificateSource("/a/c.crt", "/a/c.key"),
    )


@pytest.mark.parametrize(
    ("tls", "field"),
    [
        ("{}", "tls.certificates"),
        ("{certificates: []}", "tls.certificates"),
        ("{certificates: relative.pem}", "tls.certificates.0"),
        ("{certificates: /a/../b.pem}", "tls.certificates.0"),
        ("{certificates: '/a b.pem'}", "tls.certificates.0"),
        ("{certificates: {certificate: /a.pem}}", "tls.certificates.0"),
        ("{certificates: {certificate: '/*.pem', key: /a.key}}", "tls.certificates.0"),
        ("{certificates: /a.pem, default: '/*.pem'}", "tls.default"),
        ("{certificates: /a.pem, client_certificates: required}", "tls"),
        ("{certificates: /a.pem, profile: old}", "tls.profile"),
        ("{certificates: /a.pem, versions: 1}", "tls.versions"),
        ("{certificates: /a.pem}\n    mode: tcp", "tls"),
        ("{certificates: /a.pem}\n    bind_options: ssl crt /b.pem", "bind_options"),
    ],
)
def test_what_is_wrong_is_reported_with_its_field(tmp_path: Path, tls: str, field: str) -> None:
    problems = with_tls(tmp_path, tls).declaration.problems
    found = [each for each in problems if each.service == "web"]
    assert [each.field for each in found] == [field], problems
    assert all(each.line for each in found)


def test_a_missing_client_ca_is_reported_by_the_frontend(tmp_path: Path) -> None:
    with_tls(tmp_path, "{certificates: /a.pem, client_ca: /nowhere/ca.pem}")
    found = prepare_offline(str(tmp_path / "config.yaml"), haproxy_check())
    problems = [problem for each in found.withheld for problem in each.problems]
    (problem,) = [each for each in problems if "/nowhere/ca.pem" in each.message]
    assert str(problem.unit) == "frontend web"


def test_only_our_own_lists_are_exempt() -> None:
    assert is_own_list("/var/lib/x/fc-frontend-certificates/web.list")
    assert not is_own_list("/var/lib/x/fc-frontend-certificates/web.pem")
    assert not is_own_list("/var/lib/x/fc-frontend-certificates/../web.list/x")
    assert not is_own_list("/etc/haproxy/web.list")
