"""Frontends that choose between backends become frontends and services."""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.config.templates import templates
from fc_frontend.errors import errors_in
from fc_frontend.migrate.convert import Imported, convert
from fc_frontend.migrate.files import files
from fc_frontend.plan.model import Plan, Settings
from fc_frontend.render.render import render
from tests.conftest import RealHaproxy
from tests.support.imports import text_for

OWN = render(Plan(settings=Settings(), services=()), templates({})).text
DEFAULTS = """\
defaults
    mode http
    timeout connect 5s
    timeout client 50s
    timeout server 50s
"""
RESOLVERS = "resolvers k8s\n    nameserver a 10.0.0.10:53\n"


def backend(name: str, *lines: str) -> str:
    server = f"server-template pod 4 {name}.default.svc.cluster.local:8080 check resolvers k8s"
    more = "".join(f"    {line}\n" for line in lines)
    return f"backend {name}\n{more}    {server} init-addr none\n"


def imported(text: str, *names: str, defaults: str = DEFAULTS) -> Imported:
    """Convert `text`, with a backend for each of `names`."""
    whole = defaults + text + "".join(backend(name) for name in names) + RESOLVERS
    return convert([("haproxy.cfg", whole)], OWN)


def routes(result: Imported) -> dict[str, Any]:
    """Return the route fields of each service by name."""
    assert not result.fragments, result.fragments
    assert not errors_in(result.problems), result.problems
    fields = ("hosts", "paths", "sni")
    return {
        each.name: {name: each.fields[name] for name in fields if name in each.fields}
        for each in result.services
    }


def said(result: Imported) -> str:
    return "\n".join(str(problem) for problem in result.problems)


def reason(result: Imported) -> str:
    """Return why the first section of the only fragment was not converted."""
    (fragment,) = result.fragments
    assert not result.services
    return fragment.sections[0].reason


TWO_HOSTS = """\
frontend web
    bind 198.51.100.2:80
    acl is_shop hdr(host) -i shop.example.org
    acl is_blog hdr(host) -i blog.example.org
    use_backend shop if is_shop
    use_backend blog if is_blog
"""


def test_the_plain_file_with_two_hosts_gives_two_services() -> None:
    result = imported(TWO_HOSTS, "shop", "blog")
    assert routes(result) == {
        "shop": {"hosts": ["shop.example.org"]},
        "blog": {"hosts": ["blog.example.org"]},
    }
    (frontend,) = result.frontends
    assert (frontend.name, frontend.fields) == ("web", {"binds": ["198.51.100.2:80"]})
    assert [each.fields["frontend"] for each in result.services] == ["web", "web"]
    texts = files(result)
    assert "frontends:\n  web:\n    binds: " in texts["services.d/web.yaml"]
    assert said(result).count("any port and with a final dot") == 1
    assert "404 instead of 503" in said(result)


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        # Several hosts in one acl, and in several lines of the same name.
        (
            "acl h req.hdr(host),lower,field(1,:) a.test b.test\nacl h hdr(host) c.test\n"
            "use_backend one if h",
            {"one": {"hosts": ["a.test", "b.test", "c.test"]}},
        ),
        # Hosts and paths together, the most specific rule first.
        (
            "use_backend one if { hdr(host) a.test } { path_beg /api }\n"
            "use_backend two if { hdr(host) a.test }\ndefault_backend three",
            {
                "one": {"hosts": ["a.test"], "paths": ["/api"]},
                "two": {"hosts": ["a.test"]},
                "three": {},
            },
        ),
        # `or` with several terms on either side.
        (
            "use_backend one if { hdr(host) a.test } { path /x } || { hdr(host) b.test }",
            {
                "one": {"hosts": ["a.test"], "paths": [{"exact": "/x"}]},
                "one-2": {"hosts": ["b.test"]},
            },
        ),
        # A rule for all hosts comes first: it takes the path from the host as well.
        (
            "use_backend one if { path_beg /api }\nuse_backend two if { hdr(host) a.test }",
            {
                "one": {"paths": ["/api"]},
                "one-2": {"hosts": ["a.test"], "paths": ["/api"]},
                "two": {"hosts": ["a.test"]},
            },
        ),
        # The longer path comes last and is never reached.
        (
            "use_backend one if { path_beg /a }\nuse_backend two if { path_beg /a/b }\n"
            "default_backend three",
            {"one": {"paths": ["/a"]}, "three": {}},
        ),
        # The host comes last and is reached for other paths only.
        (
            "use_backend one if { path / }\nuse_backend two if { hdr(host) a.test }",
            {
                "one": {"paths": [{"exact": "/"}]},
                "one-2": {"hosts": ["a.test"], "paths": [{"exact": "/"}]},
                "two": {"hosts": ["a.test"]},
            },
        ),
        # Two hosts never match together.
        (
            "acl a hdr(host) a.test\nacl b hdr(host) b.test\nuse_backend one if a b\n"
            "use_backend two if a",
            {"two": {"hosts": ["a.test"]}},
        ),
        # On a frontend without TLS, `ssl_fc` never matches.
        (
            "use_backend one if { ssl_fc } { hdr(host) a.test }\nuse_backend two if !{ ssl_fc }",
            {"two": {}},
        ),
    ],
)
def test_rules_become_routes(rules: str, found: dict[str, Any]) -> None:
    names = dict.fromkeys(re.findall(r"_backend (\w+)", rules))
    result = imported(f"frontend web\n bind :80\n{rules}\n", *sorted(names))
    left = [fragment.name for fragment in result.fragments]
    assert left == sorted(names.keys() - found.keys())
    for name in left:
        assert f"no request reaches backend {name}" in said(result)
    assert {
        each.name: {n: each.fields[n] for n in ("hosts", "paths") if n in each.fields}
        for each in result.services
    } == found
    assert all(
        each.fields.get("service", each.name) == re.sub(r"-2$", "", each.name)
        for each in result.services
    )


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("use_backend one if { hdr_end(host) -i .test }", "it chooses by hdr_end(host)"),
        ("use_backend one if { hdr_dom(host) -i test }", "it chooses by hdr_dom(host)"),
        ("use_backend one if { hdr(host) -m end .test }", "it chooses by hdr(host) -m end"),
        ("use_backend one if { hdr(host) -i -f /etc/hosts.lst }", "the flag -f"),
        ("use_backend one if { hdr(host) *.test }", "compared letter by letter"),
        ("use_backend one if { hdr(host) a.test:8080 }", "has a port"),
        ("use_backend one if { path_reg ^/a }", "it chooses by path_reg"),
        ("use_backend one if { path_end .php }", "it chooses by path_end"),
        ("use_backend one if { path_beg /a/../b }", "has a dot segment"),
        ("use_backend one if { src 192.0.2.0/24 }", "it chooses by src"),
        ("use_backend one if { ssl_fc_sni a.test }", "it chooses by ssl_fc_sni"),
        ("use_backend one if !{ hdr(host) a.test }", "has a negation"),
        ("use_backend one unless { hdr(host) a.test }", "no condition with `if`"),
        ("use_backend one if { path_beg /a } { path_beg /a/b }", "looks at the path twice"),
        ("use_backend one if unknown", "unknown is not an acl"),
        ("use_backend one if TRUE", "TRUE is not an acl"),
        ("use_backend %[req.hdr(host),map(/m,one)]", "computes the backend's name"),
        ("use_backend one if { path_beg /a }\nhttp-request set-path /b", "http-request stays"),
        (
            "use_backend one if { path_beg /a }\nhttp-request set-header Host x",
            "http-request stays",
        ),
        (
            "use_backend one if { path_beg /a }\nhttp-request use-service lua.x",
            "http-request stays",
        ),
        ("use_backend one if { path_beg /a }\nfilter trace", "filter stays"),
        (
            "use_backend one if { path_beg /a }\n"
            "http-request deny if !{ hdr(X-Forwarded-Proto) https }",
            "headers of a proxy before it",
        ),
        ("use_backend one if { path_beg /a }\nredirect scheme https", "chooses between backends"),
        (
            "use_backend one if { path_beg /a }\nredirect scheme https if { path /b }",
            "redirects for a reason of its own",
        ),
        ("use_backend missing if { path_beg /a }", "missing is not a backend"),
        ("use_backend web if { path_beg /a }\nbackend web\n server a 10.0.0.1:80", "cannot be"),
    ],
)
def test_what_routes_cannot_say_stays_text(rule: str, words: str) -> None:
    result = imported(f"frontend front\n bind :80\n{rule}\n", "one")
    assert not result.services
    reasons = [section.reason for each in result.fragments for section in each.sections]
    assert any(words in each for each in reasons), reasons


def test_a_backend_that_others_use_keeps_all_of_them_text() -> None:
    text = TWO_HOSTS + "frontend other\n    bind :81\n    default_backend shop\n"
    result = imported(text, "shop", "blog")
    assert not result.services
    assert "refers to it" in str(result.fragments)


def test_a_backend_that_is_no_service_keeps_all_of_them_text() -> None:
    text = TWO_HOSTS + "backend blog\n    server a 10.0.0.1:80 check\n"
    result = imported(text, "shop")
    assert "its backend blog cannot be a service" in reason(result)


WITH_TLS = """\
global
    crt-base /etc/ssl/private
    log /dev/log local0

defaults
    mode http
    log global
    option httplog
    option forwardfor
    timeout connect 5s
    timeout client 30s
    timeout server 30s

frontend http
    bind 198.51.100.2:80
    acl challenge path_beg /.well-known/acme-challenge/
    use_backend acme if challenge
    http-request redirect scheme https code 301 unless challenge

frontend https
    bind 198.51.100.2:443 ssl crt site.pem crt /etc/ssl/more/ alpn h2,http/1.1 no-sslv3
    bind [2001:db8::2]:443 ssl crt site.pem crt /etc/ssl/more/ alpn h2,http/1.1 no-sslv3
    http-response set-header Strict-Transport-Security "max-age=63072000"
    acl bad src -f /etc/haproxy/bad.lst
    http-request deny if bad
    redirect prefix https://www.example.org code 301 if { hdr(host) -i example.org }
    acl www hdr(host) -i www.example.org
    use_backend site if www

backend acme
    server certbot 127.0.0.1:8402
"""


def test_tls_redirects_and_challenges() -> None:
    result = imported(WITH_TLS, "site", defaults="")
    assert routes(result) == {"site": {"hosts": ["www.example.org"]}}
    (frontend,) = result.frontends
    assert frontend.fields == {
        "binds": ["198.51.100.2:443", "[2001:db8::2]:443"],
        "tls": {
            "certificates": ["/etc/ssl/private/site.pem", "/etc/ssl/more/"],
            "default": "/etc/ssl/private/site.pem",
        },
        "acme": {"challenges": "127.0.0.1:8402"},
        "http": {"binds": ["198.51.100.2:80"]},
        "extra_config": [
            'http-response set-header Strict-Transport-Security "max-age=63072000"',
            "acl bad src -f /etc/haproxy/bad.lst",
            "http-request deny if bad",
            "http-request redirect prefix https://www.example.org code 301 "
            "if { hdr(host) -i example.org }",
        ],
    }
    assert "status 308 instead of 301" in said(result)
    assert "timeout client 30s" in result.settings["haproxy"]["defaults_extra"]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ("ssl crt /c/a.pem strict-sni", {"certificates": ["/c/a.pem"]}),
        (
            "ssl crt /c/ strict-sni ca-file /c/ca.crt verify optional",
            {
                "certificates": ["/c/"],
                "client_ca": "/c/ca.crt",
                "client_certificates": "optional",
            },
        ),
    ],
)
def test_options_of_tls(options: str, fields: dict[str, Any]) -> None:
    rule = "use_backend one if { hdr(host) a.test }"
    result = imported(f"frontend web\n bind :443 {options}\n {rule}\n", "one")
    assert result.frontends[0].fields["tls"] == fields


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("ssl crt-list /c/list", "in a crt-list"),
        ("ssl crt a.pem", "there is no crt-base"),
        ("ssl", "ssl and no crt"),
        ("ssl crt /c/a.pem ca-file /c/ca verify none", "verify clients in another way"),
        ('ssl crt "$CERT"', "a variable"),
        ("crt /c/a.pem", "without ssl"),
    ],
)
def test_options_of_tls_that_have_no_field(options: str, words: str) -> None:
    rule = "use_backend one if { hdr(host) a.test }"
    assert words in reason(imported(f"frontend web\n bind :443 {options}\n {rule}\n", "one"))


def test_plain_and_tls_binds_with_a_redirect_between_them() -> None:
    text = """\
frontend web
    bind :80
    bind :443 ssl crt /c/a.pem ciphers ALL alpn http/1.1
    redirect scheme https if !{ ssl_fc }
    use_backend one if { hdr(host) a.test }
"""
    result = imported(text, "one")
    (frontend,) = result.frontends
    assert frontend.fields["binds"] == ["*:443"]
    assert frontend.fields["http"] == {"binds": ["*:80"]}
    assert "its TLS settings (ciphers) become Mozilla's intermediate profile" in said(result)
    assert "HTTP/2 is offered" in said(result)
    without = text.replace("    redirect scheme https if !{ ssl_fc }\n", "")
    assert "plain and TLS connections alike" in reason(imported(without, "one"))


PASSTHROUGH = """\
frontend tls
    mode tcp
    bind :443
    tcp-request inspect-delay 5s
    tcp-request content accept if { req_ssl_hello_type 1 }
    use_backend mail if { req.ssl_sni -i mail.example.org }
    use_backend imap if { req_ssl_sni imap.example.org }
"""


def test_tls_that_is_passed_through_by_sni() -> None:
    defaults = DEFAULTS.replace("mode http", "mode tcp")
    result = imported(PASSTHROUGH, "mail", "imap", defaults=defaults)
    assert routes(result) == {
        "mail": {"sni": ["mail.example.org"]},
        "imap": {"sni": ["imap.example.org"]},
    }
    assert result.frontends[0].fields == {"binds": ["*:443"], "mode": "tcp"}
    text = PASSTHROUGH + "    default_backend imap\n"
    assert "no sni can say" in reason(imported(text, "mail", "imap", defaults=defaults))


def test_lines_of_defaults_go_where_they_hold() -> None:
    text = TWO_HOSTS + "listen alone\n    bind :81\n    timeout client 1s\n    timeout server 1s\n"
    text += "    server-template pod 4 alone.default.svc.cluster.local:80 check resolvers k8s\n"
    defaults = "defaults\n    mode http\n    retries 9\ndefaults two\n    timeout client 7s\n"
    other = "defaults three\n    mode http\n    timeout client 50s\n    timeout server 50s\n"
    other += "    timeout connect 5s\n"
    result = imported(other + TWO_HOSTS, "shop", "blog", defaults=defaults)
    assert routes(result).keys() == {"shop", "blog"}
    mixed = convert(
        [("haproxy.cfg", other + TWO_HOSTS + backend("shop") + backend("blog") + "defaults\n"
          + text.removeprefix(TWO_HOSTS) + RESOLVERS)], OWN,
    )  # fmt: skip
    assert {each.name for each in mixed.services} == {"shop", "blog", "alone"}
    lines = {
        each.name: each.fields.get("extra_config", [])
        for each in (*mixed.services, *mixed.frontends)
    }
    assert "timeout client 50s" in lines["web"]
    assert "timeout server 50s" not in lines["web"]
    assert "timeout server 50s" in lines["shop"]
    assert "timeout client 50s" not in lines["shop"]


# HAProxy's behaviour

HOSTS = ["a.test", "b.test", "c.d.test"]
PATHS = ["/", "/a", "/a/b", "/a/b/c", "/b", "/c%20d", "/e.f"]
ASKED_HOSTS = [*HOSTS, "other.test", "x.a.test"]
ASKED_PATHS = [path + more for path in PATHS for more in ("", "/", "/x", "?q=/a")]


def condition(chance: random.Random) -> str:
    """Return a random condition for hosts, for paths, or for both."""
    terms = []
    if chance.random() < 0.7:
        hosts = " ".join(chance.sample(HOSTS, chance.randint(1, 2)))
        terms.append(f"{{ hdr(host) -i {hosts} }}")
    if chance.random() < 0.6 or not terms:
        kind = chance.choice(("path", "path_beg"))
        # `path_beg /` matches everything, and /a matches /ab, which is not requested.
        paths = " ".join(chance.sample(PATHS, chance.randint(1, 2)))
        terms.append(f"{{ {kind} {paths} }}")
    return " ".join(terms)


def frontends(chance: random.Random, count: int, directory: Path) -> str:
    """Return frontends with random rules, each with backends of its own."""
    text = ""
    for number in range(count):
        names = [f"t{number}s{each}" for each in range(4)]
        rules = []
        for _ in range(chance.randint(1, 6)):
            alternatives = " or ".join(condition(chance) for _ in range(chance.randint(1, 2)))
            rules.append(f"    use_backend {chance.choice(names)} if {alternatives}\n")
        if chance.random() < 0.5:
            rules.append(f"    default_backend {chance.choice(names)}\n")
        text += f"frontend t{number}\n    bind unix@{directory}/t{number}.sock\n{''.join(rules)}"
        used = dict.fromkeys(re.findall(r"_backend (\w+)", "".join(rules)))
        text += "".join(backend(name) for name in used)
    return text


def answering(text: str) -> str:
    """Return `text` with backends that answer with their names instead of using pods."""
    text = re.sub(r"^ *server-template .*\n", "", text, flags=re.MULTILINE)
    return re.sub(
        r"^(backend (\S+).*\n)",
        r"\1    http-request return status 200 hdr x-service \2\n",
        text,
        flags=re.MULTILINE,
    )


def asked(path: Path, requests: list[tuple[str, str]]) -> list[str]:
    """Return the backend that answers each request; an empty string if none does."""
    found = []
    for host, target in requests:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(path))
            head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            answer = b""
            while more := connection.recv(65536):
                answer += more
        match = re.search(rb"x-service: (\S+)", answer)
        found.append(match[1].decode() if match else "")
        assert match or answer.split()[1] in (b"404", b"503"), answer
    return found


def compare(haproxy: RealHaproxy, tmp_path: Path, tables: int, requests: int, seed: int) -> None:
    """Compare HAProxy's decisions by the original rules with those by the imported routes."""
    chance = random.Random(f"{tables} {requests} {seed}")
    directory = haproxy.directory
    sockets = f"global\n    stats socket {haproxy.runtime_socket} level admin\n"
    text = sockets + DEFAULTS + frontends(chance, tables, directory) + RESOLVERS
    requested = {
        number: [(chance.choice(ASKED_HOSTS), chance.choice(ASKED_PATHS)) for _ in range(requests)]
        for number in range(tables)
    }

    def decided(configuration: str) -> dict[int, list[str]]:
        haproxy.start(answering(configuration))
        found = {
            number: asked(directory / f"t{number}.sock", several)
            for number, several in requested.items()
        }
        haproxy.end()
        return found

    before = decided(text)
    result = convert([("haproxy.cfg", text)], OWN)
    reasons = {s.title: s.reason for each in result.fragments for s in each.sections}
    assert len(result.frontends) == tables, reasons
    for name, content in files(result).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    after = decided(text_for(tmp_path, directory))
    for number, several in requested.items():
        services = [re.sub(r"-\d+$", "", name) for name in after[number]]
        assert list(zip(several, services, strict=True)) == list(
            zip(several, before[number], strict=True)
        ), f"t{number}: {text}"


def test_haproxy_decides_by_the_import_as_by_the_original(
    haproxy: RealHaproxy, tmp_path: Path
) -> None:
    compare(haproxy, tmp_path, tables=30, requests=40, seed=0)


@pytest.mark.extended
@pytest.mark.parametrize("seed", range(8))
def test_haproxy_decides_in_1_000_imports_as_by_the_originals(
    haproxy: RealHaproxy, tmp_path: Path, seed: int
) -> None:
    compare(haproxy, tmp_path, tables=120, requests=60, seed=seed + 1)
