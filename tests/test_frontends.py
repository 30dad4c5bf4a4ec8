"""Several services on one address: frontends, from files to the traffic a real HAProxy serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from fc_frontend.config.declare import load
from fc_frontend.config.loader import read
from fc_frontend.errors import Unavailable
from fc_frontend.explain.urls import follow
from fc_frontend.haproxy.validate import validate
from fc_frontend.pipeline import Prepared
from fc_frontend.render.config import config_hash, maps_in
from tests.support.prepared import prepared, running, withheld

SETTINGS = """
cluster: {nameservers: ["127.0.0.1:53"]}
haproxy: {config_file: /etc/haproxy/haproxy.cfg, log: null}
"""
WEB = """
frontends:
  web:
    binds: ["127.0.0.1:8443"]
"""
TWO = (
    WEB
    + """
services:
  shop: {frontend: web, hosts: [Shop.example.org], pod_port: http}
  api:
    frontend: web
    hosts: shop.example.org
    paths: [/api/, {exact: /health}]
    pod_port: 8080
"""
)


@pytest.fixture
def declare(tmp_path: Path) -> Path:
    (tmp_path / "services.d").mkdir()
    (tmp_path / "config.yaml").write_text(SETTINGS)
    return tmp_path


def put(directory: Path, text: str, name: str = "a.yaml") -> Prepared:
    (directory / "services.d" / name).write_text(text)
    return prepared(directory / "config.yaml")


def after(directory: Path, before: Prepared, text: str, name: str = "a.yaml") -> Prepared:
    (directory / "services.d" / name).write_text(text)
    return prepared(directory / "config.yaml", running(before))


def test_services_share_a_frontend_by_maps(declare: Path, haproxy_binary: str) -> None:
    found = put(declare, TWO)
    assert not withheld(found)
    assert found.config is not None
    assert maps_in("/etc/haproxy/haproxy.cfg", found.config.text) == {
        "/etc/haproxy/fc-frontend-maps/web.exact.map": "shop.example.org/health api\n",
        "/etc/haproxy/fc-frontend-maps/web.prefix.map": (
            "shop.example.org/ shop\nshop.example.org/api/ api\n"
        ),
    }
    verdict = validate(haproxy_binary, found.config.text, timeout=30)
    assert verdict.accepted, verdict.output
    assert not [each for each in verdict.warnings if "server state file" not in each.text]


def test_all_fields_of_a_frontend_are_accepted_by_haproxy(
    declare: Path, haproxy_binary: str
) -> None:
    many = [f"10.{number}.0.0/16" for number in range(150)]
    found = put(
        declare,
        f"""
frontends:
  web:
    binds: ["127.0.0.1:8443", "[::1]:8443"]
    http: {{binds: "127.0.0.1:8080", redirect: https}}
    hsts: 365d
    allow: {many}
    trusted_proxies: [192.0.2.0/24, "2001:db8::/32"]
    proxy_protocol_from: [192.0.2.0/24]
    bind_options: alpn h2,http/1.1
    extra_config: ["http-request set-header X-Test yes"]
  tls:
    binds: "127.0.0.1:9443"
    mode: tcp
    allow: 10.0.0.0/8
    proxy_protocol_from: [192.0.2.0/24]
services:
  grpc: {{frontend: web, hosts: a.org, pod_port: 80, protocol: h2c, proxy_protocol: v2}}
  safe: {{frontend: web, hosts: b.org, pod_port: 80, protocol: h2, tls: true, proxy_protocol: v1}}
  mail: {{frontend: tls, sni: [mail.example.org, "*.mail.example.org"], pod_port: 8443}}
  shop:
    frontend: web
    pod_port: 80
    timeout: 30s
    rate_limit: {{requests: 100}}
    request_headers: {{X-A: "%[env(HOME)]'", X-B: null}}
    response_headers: {{X-A: 'b\\', "X-#": "#"}}
""",
    )
    assert not withheld(found)
    assert found.config is not None
    verdict = validate(haproxy_binary, found.config.text, timeout=30)
    assert verdict.accepted, verdict.output
    assert not [each for each in verdict.warnings if "server state file" not in each.text]
    maps = maps_in("/etc/haproxy/haproxy.cfg", found.config.text)
    assert maps["/etc/haproxy/fc-frontend-maps/tls.sni.map"] == (
        "*.mail.example.org mail\nmail.example.org mail\n"
    )


def test_a_frontend_with_standbys_is_accepted_by_haproxy(
    declare: Path, haproxy_binary: str
) -> None:
    (declare / "config.yaml").write_text(
        SETTINGS.replace("cluster: {", "cluster: {api: {kubeconfig: /root/kubeconfig}, ")
    )
    found = put(declare, TWO + "  mail: {frontend: tls, sni: [a.org], pod_port: 1}\n")
    assert set(withheld(found)) == {"service mail"}
    assert found.config is not None
    assert "nbsrv" in found.config.text
    verdict = validate(haproxy_binary, found.config.text, timeout=30)
    assert verdict.accepted, verdict.output


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ("{pod_port: 1, mode: http, request_headers: {'a b': x}}", "request_headers"),
        ('{pod_port: 1, mode: http, request_headers: {A: "x\\ny"}}', "request_headers"),
        ("{pod_port: 1, mode: http, response_headers: {A: é}}", "response_headers"),
        ("{pod_port: 1, mode: http, response_headers: {A: 1, a: 2}}", "response_headers"),
        ("{pod_port: 1, mode: http, response_headers: [A]}", "response_headers"),
        ("{pod_port: 1, request_headers: {A: x}}", "request_headers"),
        ("{pod_port: 1, timeout: 0}", "timeout"),
        ("{pod_port: 1, mode: http, protocol: h2}", "protocol"),
        ("{pod_port: 1, mode: http, protocol: h2c, tls: true}", "protocol"),
        ("{pod_port: 1, protocol: h2c}", "protocol"),
        ("{pod_port: 1, timeout: soon}", "timeout"),
        ("{pod_port: 1, rate_limit: {requests: 1}}", "rate_limit"),
    ],
)
def test_values_of_fields_that_make_no_sense_are_refused(
    declare: Path, fields: str, field: str
) -> None:
    (problem,) = withheld(put(declare, f"services:\n  shop: {fields}\n"))["service shop"]
    assert problem.field == field
    assert problem.remedy


def test_a_service_needs_a_frontend_that_exists(declare: Path) -> None:
    found = put(declare, TWO.replace("shop: {frontend: web", "shop: {frontend: wbe"))
    (problem,) = withheld(found)["service shop"]
    assert "no frontend wbe" in problem.message
    assert problem.line == 7
    assert problem.field == "frontend"
    assert problem.remedy
    assert found.config is not None
    assert "backend api" in found.config.text


def test_the_same_host_and_path_twice_goes_to_the_first_by_name(declare: Path) -> None:
    found = put(declare, TWO + "  zoo: {frontend: web, hosts: SHOP.example.org., pod_port: 1}\n")
    (problem,) = withheld(found)["service zoo"]
    assert "the route web shop.example.org/ belongs to service shop" in problem.message


def test_what_serves_keeps_its_route(declare: Path) -> None:
    before = put(declare, TWO)
    rival = TWO + "  aaa: {frontend: web, hosts: shop.example.org, pod_port: 1}\n"
    found = after(declare, before, rival)
    assert set(withheld(found)) == {"service aaa"}


def test_a_route_moves_from_one_service_to_another_in_one_step(declare: Path) -> None:
    before = put(declare, TWO)
    found = after(declare, before, TWO.replace("shop:", "store:"))
    assert not withheld(found)
    assert found.config is not None
    maps = maps_in("/etc/haproxy/haproxy.cfg", found.config.text)
    assert "shop.example.org/ store\n" in "".join(maps.values())


def test_a_change_of_routes_alone_keeps_the_digest(declare: Path) -> None:
    before = put(declare, TWO)
    found = after(declare, before, TWO.replace("paths: [/api/,", "paths: [/v2,"))
    assert found.config is not None
    assert before.config is not None
    assert found.config.text != before.config.text
    assert found.config.hash == before.config.hash == config_hash(found.config.text)
    found = after(declare, before, TWO.replace("pod_port: 8080", "pod_port: 8081"))
    assert found.config is not None
    assert found.config.hash != before.config.hash


def test_a_typo_in_a_renamed_service_keeps_its_routes(declare: Path) -> None:
    before = put(declare, TWO)
    renamed = TWO.replace("shop: {frontend: web,", "store: {frontend: web, blance: x,")
    found = after(declare, before, renamed)
    assert set(withheld(found)) == {"service shop", "service store"}
    assert found.config is not None
    assert "backend shop " in found.config.text


def test_a_frontend_that_services_use_is_not_removed(declare: Path) -> None:
    before = put(declare, TWO)
    found = after(declare, before, TWO.replace(WEB, ""))
    (problem,) = withheld(found)["frontend web"]
    assert "still used by service" in problem.message
    assert found.config is not None
    assert "frontend web " in found.config.text


def test_a_frontend_goes_with_its_services(declare: Path) -> None:
    before = put(declare, TWO)
    found = after(declare, before, "services: {other: {pod_port: 80}}")
    assert not withheld(found)
    assert found.config is not None
    assert "frontend web " not in found.config.text


def test_a_faulty_frontend_keeps_running_with_its_services(declare: Path) -> None:
    before = put(declare, TWO)
    found = after(declare, before, TWO.replace("8443", "99999"))
    (problem,) = withheld(found)["frontend web"]
    assert problem.line == 4
    assert found.config is not None
    assert "bind 127.0.0.1:8443" in found.config.text
    assert found.config.hash == (before.config and before.config.hash)


def test_a_new_faulty_frontend_costs_its_services_only(declare: Path) -> None:
    found = put(declare, TWO.replace("8443", "99999") + "  own: {pod_port: 81}\n")
    assert set(withheld(found)) == {"frontend web", "service shop", "service api"}
    assert found.config is not None
    assert "listen own" in found.config.text


def test_the_mode_of_a_frontend_in_use_does_not_change(declare: Path) -> None:
    before = put(declare, TWO)
    found = after(declare, before, TWO.replace("  web:\n", "  web:\n    mode: tcp\n"))
    (problem,) = withheld(found)["frontend web"]
    assert problem.line == 4
    assert problem.field == "mode"


@pytest.mark.parametrize(
    ("service", "field"),
    [
        ("{hosts: [a.org], pod_port: 1}", "hosts"),
        ("{paths: /x, pod_port: 1}", "paths"),
        ("{sni: [a.org], pod_port: 1}", "sni"),
        ("{frontend: web, binds: '127.0.0.1:1', pod_port: 1}", "binds"),
        ("{frontend: web, bind_options: defer-accept, pod_port: 1}", "bind_options"),
        ("{frontend: web, hosts: [a.org], sni: [a.org], pod_port: 1}", "sni"),
        ("{frontend: web, mode: tcp, pod_port: 1}", "mode"),
        ("{frontend: web, mode: http, sni: [a.org], pod_port: 1}", "mode"),
        ("{frontend: web, sni: [a.org], pod_port: 1}", "sni"),
        ("{frontend: web, hosts: ['a b'], pod_port: 1}", "hosts.0"),
        ("{frontend: web, hosts: [a.org, 'a.org:80'], pod_port: 1}", "hosts.1"),
        ("{frontend: web, paths: ['/a', \"/b\\nweb\"], pod_port: 1}", "paths.1"),
        ("{frontend: web, paths: [{exact: api}], pod_port: 1}", "paths.0"),
        ("{frontend: web, paths: [{prefix: /api}], pod_port: 1}", "paths.0"),
        ("{frontend: 'w b', pod_port: 1}", "frontend"),
        ("{frontend: web, pod_port: 1, extra_config: '# fc-frontend route: web prefix x/'}",
         "extra_config"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(declare: Path, service: str, field: str) -> None:
    found = put(declare, f"{WEB}\nservices:\n  shop: {service}\n")
    (problem,) = withheld(found)["service shop"]
    assert problem.field == field
    assert problem.line is not None
    assert problem.remedy


def test_two_definitions_and_taken_names_are_refused(declare: Path) -> None:
    put(declare, WEB, "b.yaml")
    found = put(declare, TWO)
    (problem,) = withheld(found)["frontend web"]
    assert "also defined" in problem.message
    put(declare, "services: {}", "b.yaml")
    found = put(declare, TWO.replace("shop: {", "web: {"))
    assert "frontend web" in withheld(found)


def test_binds_of_frontends_conflict_as_those_of_services(declare: Path) -> None:
    found = put(declare, TWO + "  own: {binds: '127.0.0.1:8443', pod_port: 1}\n")
    assert set(withheld(found)) in (
        {"service own"},
        {"frontend web", "service shop", "service api"},
    )


def test_files_that_are_not_trusted_publish_only_their_hosts(declare: Path) -> None:
    (declare / "config.yaml").write_text(
        SETTINGS + "untrusted: {hosts: ['*.a.example.org', b.example.org]}\n" + WEB
    )
    text = """
services:
  good: {frontend: web, hosts: [x.y.a.example.org, b.example.org], pod_port: 1}
  any: {frontend: web, pod_port: 1}
  bad: {frontend: web, hosts: [a.example.org], pod_port: 1}
"""
    put(declare, text)
    (declare / "services.d" / "a.yaml").chmod(0o666)
    found = prepared(declare / "config.yaml")
    assert set(withheld(found)) == {"service any", "service bad"}
    put(declare, "frontends: {own: {binds: '127.0.0.1:1'}}", "b.yaml")
    (declare / "services.d" / "b.yaml").chmod(0o666)
    found = prepared(declare / "config.yaml")
    (problem,) = withheld(found)["frontend own"]
    assert "trusted" in problem.message


def test_settings_may_declare_frontends(declare: Path) -> None:
    (declare / "config.yaml").write_text(SETTINGS + WEB)
    declared = load(str(declare / "config.yaml"))
    assert [frontend.name for frontend in declared.frontends] == ["web"]
    assert not declared.problems
    assert set(read(str(declare / "config.yaml")).frontends) == {"web"}


@pytest.mark.parametrize(
    ("url", "service", "answer"),
    [
        ("https://shop.example.org:8443/api/x?q", "api", "route web shop.example.org/api"),
        ("https://SHOP.example.org:8443", "shop", "route web shop.example.org/"),
        ("https://other.example.org:8443/", None, "404"),
        ("https://shop.example.org/", None, "no frontend listens on port 443"),
        ("http://shop.example.org:8080/", None, "308"),
        ("https://shop.example.org:8443/a/../b", None, "400"),
        ("https://mail.example.org:9443/", "mail", "route tls mail.example.org"),
        ("https://x.example.org:9443/", None, "the connection is closed"),
    ],
)
def test_a_url_leads_to_its_service(
    declare: Path, url: str, service: str | None, answer: str
) -> None:
    found = put(
        declare,
        TWO.replace(
            "  web:\n", "  web:\n    allow: '0.0.0.0/0'\n    http: {binds: '*:8080'}\n"
        ).replace("services:", "  tls: {binds: '*:9443', mode: tcp}\nservices:")
        + "  mail: {frontend: tls, sni: mail.example.org, pod_port: 1}\n",
    )
    assert not withheld(found)
    assert found.config is not None
    led = follow(url, found.declaration.frontends, found.config)
    assert led.service == service
    assert answer in led.answer
    assert led.service or led.remedy


@pytest.mark.parametrize("url", ["ftp://a.org/", "https://", "https://a b/", "https://a:b/"])
def test_what_is_no_url_is_refused(declare: Path, url: str) -> None:
    found = put(declare, TWO)
    assert found.config is not None
    with pytest.raises(Unavailable):
        follow(url, found.declaration.frontends, found.config)
