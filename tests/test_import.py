"""From haproxy.cfg to declarations: the same words, the same sections, the same behaviour.

HAProxy is the reference: it reads the words as the tokenizer does, and serves the same traffic from
the import as from the original.  FC_FRONTEND_IMPORTS sets the number of random texts (300 by
default).
"""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fc_frontend.config.declare import load
from fc_frontend.config.templates import templates
from fc_frontend.errors import Problem, Refused, errors_in
from fc_frontend.haproxy.socket import ask
from fc_frontend.haproxy.validate import validate
from fc_frontend.migrate.convert import Imported, convert
from fc_frontend.migrate.files import files
from fc_frontend.migrate.sections import MOST_SECTIONS, read_sections
from fc_frontend.plan.model import Plan, Settings
from fc_frontend.render.render import render
from fc_frontend.syntax.words import NotWords, quote, split
from tests.conftest import RealHaproxy
from tests.support.imports import DOCUMENTATION

IMPORTS = int(os.environ.get("FC_FRONTEND_IMPORTS", "300"))
OWN = render(Plan(settings=Settings(), services=()), templates({})).text


def imported(text: str) -> Imported:
    return convert([("haproxy.cfg", text)], OWN)


def service(text: str, resolvers: bool = True) -> dict[str, Any]:
    """Convert `text` to its only service, and return the fields of that service."""
    more = "\nresolvers cluster\n  nameserver a 10.0.0.254:53\n" if resolvers else ""
    result = imported(text + more)
    assert not result.fragments, result.fragments
    assert not errors_in(result.problems), result.problems
    (only,) = result.services
    return only.fields


def said(problems: tuple[Problem, ...]) -> str:
    return "\n".join(str(problem) for problem in problems)


# Words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bind  :80\talpn h2 # comment", ["bind", ":80", "alpn", "h2"]),
        (r"a\ b \#c \\d \'e \"f", ["a b", "#c", "\\d", "'e", '"f']),
        ("'a \\ \"b' \"c 'd\" e'f'\"g\"", ['a \\ "b', "c 'd", "efg"]),
        (r'"a\"b" "\$X" \$Y $Z \1', ['a"b', "$X", "\\$Y", "$Z", "\\1"]),
        (r"\x41\t\n", ["A\t\n"]),
        ('"" x', ["", "x"]),
        ("#only", []),
        ("a#b", ["a"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert [word.text for word in split(line).words] == words


def test_variables_are_told_and_not_expanded() -> None:
    words = split('a "${HOME}/x" \'$HOME\' "${A-b c}" "${L[*]}" "$X"').words
    assert [word.variable for word in words] == [False, True, False, True, True, True]
    assert [word.text for word in words][1:4] == ["${HOME}/x", "$HOME", "${A-b c}"]


@pytest.mark.parametrize(
    "line",
    ['"open', "'open", r"\x4", '"$1"', '"${A"', '"${A b}"', '"$.NO"', "a\0b", "x " * 65],
)
def test_what_haproxy_could_not_read(line: str) -> None:
    with pytest.raises(NotWords):
        split(line)


WORD = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12
) | st.text("'\"\\# \t$x{}041n", max_size=8)


@settings(max_examples=500)
@given(st.lists(WORD, max_size=20))
def test_quoting_and_splitting_gives_the_words_back(words: list[str]) -> None:
    found = split(" ".join(quote(word) for word in words)).words
    assert [word.text for word in found] == words
    assert not any(word.variable for word in found)
    assert [word for w in found for word in split(w.source).words] == list(found)


def test_the_real_haproxy_reads_the_same_words(haproxy: RealHaproxy) -> None:
    """Check random lines of quotes, escapes and comments, each as an environment variable."""
    chance = random.Random(4711)
    letters = ["a", "b", " ", "\\", "'", '"', "#", "x41", "t", "$", "{", "}", "é", "\\'", '\\"']
    lines: dict[str, str] = {}
    refused: list[str] = []
    while len(lines) < 1500 or len(refused) < 160:
        source = "".join(chance.choice(letters) for _ in range(chance.randint(1, 9)))
        line = f"setenv V{len(lines)} {source}"
        try:
            words = split(line).words
        except NotWords:
            refused.append(line.replace(f"V{len(lines)}", "V"))
            continue
        # Keep lines without a variable whose single value can be shown in one line.
        value = words[2] if len(words) == 3 else None
        if value and value.text and value.text.isprintable() and not value.variable:
            lines[line] = value.text
    haproxy.start(haproxy.configuration(settings=tuple(lines)))
    shown = dict(
        entry.split("=", 1)
        for entry in ask(haproxy.runtime_socket, "show env", 10).splitlines()
        if re.match(r"V[0-9]+=", entry)
    )
    assert shown == {f"V{index}": text for index, text in enumerate(lines.values())}
    # HAProxy stops after 50 faults.
    for start in range(0, 160, 40):
        text = "\n".join(["global", *refused[start : start + 40], ""])
        verdict = validate(haproxy.binary, text, timeout=20)
        assert {alert.line for alert in verdict.alerts} >= set(range(2, 42)), verdict.output


# Sections


def test_what_becomes_of_the_documentations_example() -> None:
    result = imported(DOCUMENTATION)
    (only,) = result.services
    assert (only.name, only.fields) == (
        "ingress",
        {
            "binds": ["198.51.100.2:443"],
            "pod_port": 443,
            "discovery": "wildcard",
            "slots": 20,
        },
    )
    assert result.settings["cluster"]["nameservers"] == ["10.43.0.10:53"]
    assert not result.fragments
    (error,) = errors_in(result.problems)
    assert (error.file, error.line) == ("haproxy.cfg", 6)
    assert "[2a02:238:f030::1000]:443" in error.remedy


SERVER = "server-template pod 5 web.default.svc.cluster.local:80 check resolvers cluster"


@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        ((), {"balance": "roundrobin"}),
        (("balance leastconn",), {}),
        (("balance uri depth 3", "mode http"), {"balance": "uri depth 3", "mode": "http"}),
        (
            ("balance hash path", "mode http"),
            {"mode": "http", "extra_config": ["balance hash path"]},
        ),
        (("option httpchk GET /", "balance leastconn"), {"extra_config": ["option httpchk GET /"]}),
        (
            ("balance first", "stick on src # why", "timeout server 3h"),
            {"balance": "first", "extra_config": ["stick on src # why", "timeout server 3h"]},
        ),
    ],
)
def test_only_what_is_not_the_default_is_written(
    lines: tuple[str, ...], fields: dict[str, Any]
) -> None:
    text = "\n".join(["listen web", "  bind :80,[::1]:81", f"  {SERVER}", *lines])
    assert service(text) == {
        "binds": ["*:80", "[::1]:81"],
        "pod_port": 80,
        "discovery": "headless",
        "slots": 5,
        **fields,
    }


@pytest.mark.parametrize(
    ("server", "fields"),
    [
        (f"{SERVER} init-addr none resolve-prefer ipv4", {}),
        (f"{SERVER} maxconn 50 send-proxy", {"server_options": "maxconn 50 send-proxy"}),
        (f"{SERVER} resolve-prefer ipv6", {"server_options": "resolve-prefer ipv6"}),
        (f"{SERVER} ssl verify none", {"tls": True}),
        (
            f"{SERVER} ssl verify required ca-file /ca.pem sni str(a.example) verifyhost a.example",
            {"tls": {"ca_file": "/ca.pem", "sni": "a.example"}},
        ),
        (
            f"{SERVER} ssl verify required ca-file @system-ca",
            {"server_options": "ssl verify required ca-file @system-ca"},
        ),
        (f"{SERVER} no-check", {"check": False}),
        (f"{SERVER} cookie check weight 5", {"server_options": "cookie check weight 5"}),
        (f"default-server inter 5s no-check\n  {SERVER}", {"server_options": "inter 5s"}),
        (f"{SERVER}\n  default-server inter 5s", {}),
        (SERVER.replace("web.default", "*.web.default"), {"discovery": "wildcard"}),
        (SERVER.replace("web.default", "other.prod"), {"service": "other", "namespace": "prod"}),
        (
            SERVER.replace("web.default", "_http._tcp.web.default"),
            {"pod_port": "http", "discovery": None},
        ),
        (
            "server service web.default.svc.cluster.local:80 check resolvers cluster",
            {"service_port": 80, "pod_port": None, "discovery": None, "slots": None},
        ),
        (
            SERVER.replace("web.default", "*.web.default")
            + "\n  server service web.default.svc.cluster.local:80 check backup resolvers cluster",
            {"discovery": "wildcard", "fallback": "service"},
        ),
        (
            f"{SERVER}\n  server node 192.0.2.1:30080 check backup",
            {"extra_config": ["server node 192.0.2.1:30080 check backup"]},
        ),
        (
            "server n1 192.0.2.1:30080 check\n  server n2 192.0.2.2:30080 check",
            {"lb_service_port": 30080, "pod_port": None, "discovery": None, "slots": None},
        ),
    ],
)
def test_servers(server: str, fields: dict[str, Any]) -> None:
    expected = {
        "binds": ["192.0.2.9:80"],
        "pod_port": 80,
        "discovery": "headless",
        "slots": 5,
        **fields,
    }
    text = f"listen web\n  bind 192.0.2.9:80\n  balance leastconn\n  {server}"
    assert service(text) == {key: value for key, value in expected.items() if value is not None}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"listen web\n  bind fd@3\n  {SERVER}", "unknown prefix"),
        (f"listen web\n  bind :80\n  bind :81 ssl crt /x\n  {SERVER}", "binds differ"),
        (f'listen web\n  bind "$ADDRESS:80"\n  {SERVER}', "a variable"),
        (f"listen web\n  .if defined(X)\n  bind :80\n  .endif\n  {SERVER}", "conditions"),
        (f"listen web\n  {SERVER}", "no bind"),
        ("listen web\n  bind :80\n  server a web.default.svc.cluster.local:80", "no `resolvers`"),
        ("listen web\n  bind :80\n  server db 192.0.2.1:5432", "no server is a name"),
        (f"listen web\n  bind :80\n  {SERVER}\n  use_backend x if TRUE", "use_backend"),
        (f"listen _web\n  bind :80\n  {SERVER}", "its name"),
        (f"listen web\n  bind :80\n  mode health\n  {SERVER}", "mode health"),
        (
            f"listen web\n  bind :80\n  {SERVER.replace('pod', 'x')}\n  use-server x1 if TRUE",
            "use-server",
        ),
        (f"listen web\n  bind :80\n  {SERVER.replace('cluster.local', 'y.z')}x", "resolvers"),
        (f"listen web\n  bind :80\n  {SERVER.replace(' 5 ', ' 3-7 ')}", "numbered"),
    ],
)
def test_what_stays_a_fragment_and_why(text: str, reason: str) -> None:
    result = imported(f"{text}\nresolvers cluster\n  nameserver a 10.0.0.254:53\n")
    assert not result.services
    (fragment,) = result.fragments
    assert reason in fragment.sections[0].reason
    assert [line.strip() for line in text.split("\n")[1:]] == [
        line.strip() for line in fragment.text.strip().split("\n")[-text.count("\n") :]
    ]


def test_sections_that_refer_to_each_other_stay_together() -> None:
    result = imported(
        f"""
resolvers cluster
  nameserver a 10.0.0.254:53
defaults
  mode http
  timeout client 10s
userlist people
  user a insecure-password b
frontend routed
  bind :80
  acl shop path /shop
  use_backend shop if shop
  default_backend web
# the shop
backend shop
  {SERVER}
backend web
  {SERVER}
  http-request auth unless {{ http_auth(people) }}
listen other
  bind :81
  mode tcp
  {SERVER}
cache unused
  total-max-size 4
defaults
  mode tcp
peers near
  peer me 127.0.0.1:10000
listen sticky
  bind :82
  stick-table type ip size 1m peers near
  {SERVER}
"""
    )
    assert [s.name for s in result.services] == ["other"]
    assert {f.name: re.findall(r"^[a-z].*", f.text, re.MULTILINE) for f in result.fragments} == {
        "routed": [
            "userlist people",
            "defaults routed-defaults",
            "frontend routed from routed-defaults",
            "backend shop from routed-defaults",
            "backend web from routed-defaults",
        ],
        "unused": ["cache unused"],
        "sticky": ["peers near", "defaults sticky-defaults", "listen sticky from sticky-defaults"],
    }
    assert "# the shop\nbackend shop" in result.fragments[0].text


def test_a_frontend_with_its_only_backend_is_a_service() -> None:
    fields = service(
        f"""
frontend web
  bind 192.0.2.9:443
  maxconn 100
  default_backend web
backend web
  balance leastconn
  {SERVER}
"""
    )
    assert fields == {
        "binds": ["192.0.2.9:443"],
        "pod_port": 80,
        "discovery": "headless",
        "slots": 5,
        "extra_config": ["maxconn 100"],
    }


def test_named_defaults_and_those_that_build_on_others() -> None:
    result = imported(
        f"""
defaults base
  timeout client 10s
  timeout server 20s
defaults web from base
  mode http
  timeout client 30s
listen a from web
  bind :80
  {SERVER}
listen plain from base
  bind :81
  server x 127.0.0.1:1
resolvers cluster
  nameserver a 10.0.0.254:53
"""
    )
    assert result.services[0].fields["mode"] == "http"
    assert result.settings["haproxy"]["defaults_extra"] == [
        "timeout server 20s",
        "timeout client 30s",
    ] or result.settings["haproxy"]["defaults_extra"] == [
        "timeout client 30s",
        "timeout server 20s",
    ]
    assert "defaults plain-defaults\n    timeout client 10s" in result.fragments[0].text
    assert "listen plain from plain-defaults\n" in result.fragments[0].text


def test_lines_of_defaults_stand_once_or_where_they_are_needed() -> None:
    listens = "\n".join(f"listen l{n}\n  bind :{n + 80}\n  {SERVER}" for n in range(3))
    result = imported(
        "defaults\n  timeout client 7s\n  retries 3\n  option httpclose\n  rate-limit sessions 5\n"
        f"{listens}\n  timeout client 8s\nlisten h\n  mode http\n  bind :99\n  {SERVER}\n"
        "resolvers cluster\n  nameserver a 10.0.0.254:53\n"
    )
    assert result.settings["haproxy"]["defaults_extra"] == ["timeout client 7s"]
    extra = {s.name: s.fields.get("extra_config") for s in result.services}
    assert extra == {
        "l0": ["rate-limit sessions 5"],
        "l1": ["rate-limit sessions 5"],
        "l2": ["rate-limit sessions 5", "timeout client 8s"],
        "h": ["rate-limit sessions 5", "option httpclose"],
    }


def test_global_lines() -> None:
    result = imported(
        """
global
  daemon
  user haproxy
  maxconn 2000
  tune.bufsize 32768
  hard-stop-after 30m
  lua-load /etc/evil.lua
  insecure-fork-wanted
  zero-warning
  no such-thing
  stats socket /run/other.sock level admin
  log 192.0.2.1 local2
  .if defined(X)
  nbthread 4
  .endif
listen a
  bind :80
  server x 127.0.0.1:1
"""
    )
    assert result.settings["haproxy"] == {
        "user": "haproxy",
        "hard_stop_after": "30m",
        "runtime_socket": "/run/other.sock",
        "global_extra": [
            "maxconn 2000",
            "tune.bufsize 32768",
            "no log",
            "log 192.0.2.1 local2",
        ],
    }
    left = {problem.line for problem in errors_in(result.problems)}
    assert left == {8, 9, 10, 11, 14, 15, 16}
    assert "daemon" in said(result.problems)


def test_spaces_in_the_quotes_of_options_are_kept() -> None:
    result = imported(
        f"listen web\n  bind :80 name 'a  b'\n  {SERVER} sni 'a   b'\n"
        "resolvers cluster\n  nameserver a 10.0.0.254:53\n"
    )
    (service,) = result.services
    assert service.fields["bind_options"] == "name 'a  b'"
    assert service.fields["server_options"] == "sni 'a   b'"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("resetenv", "environment"),
        ('"daemon"', "foreground"),
        ("setenv HAPROXY_PROCESSES x", "reload"),
        ("unix-bind prefix /x", "unix sockets"),
    ],
)
def test_lines_of_global_that_fc_frontend_relies_on_are_left_out(line: str, reason: str) -> None:
    result = imported(f"global\n  {line}\n")
    assert "global_extra" not in result.settings.get("haproxy", {})
    assert any(reason in problem.message + problem.remedy for problem in result.problems)


@pytest.mark.parametrize(
    "text",
    [
        'listen a\n  "$KEYWORD" x\n',
        "listen fc-stats\n",
        '"" listen a\n',
        "[x]\n",
        "listen a\n \\x00\n",
    ],
)
def test_what_no_fragment_may_hold_is_reported(text: str) -> None:
    result = imported(text)
    assert not result.fragments
    assert errors_in(result.problems)


@pytest.mark.parametrize(
    ("section", "logs", "extra"),
    [
        ("log global", "log /dev/log local0 info", None),
        ("", "log /dev/log local0 info", ["no log"]),
        ("log global", "", "null"),
        ("log 192.0.2.1 local0", "", ["no log", "log 192.0.2.1 local0"]),
        ("log global\n  log 192.0.2.1 local0", "log a b", ["log 192.0.2.1 local0"]),
    ],
)
def test_where_logs_go(section: str, logs: str, extra: Any) -> None:
    result = imported(
        f"global\n  {logs}\ndefaults\n  {section}\nlisten web\n  bind :80\n  {SERVER}\n"
        "resolvers cluster\n  nameserver a 10.0.0.254:53\n"
    )
    haproxy = result.settings.get("haproxy", {})
    if extra == "null":
        assert haproxy["log"] is None
        return
    assert "log" not in haproxy
    assert result.services[0].fields.get("extra_config") == extra


def test_resolvers() -> None:
    result = imported(
        f"""
resolvers other
  nameserver a 192.0.2.1:53
resolvers k8s
  nameserver a 10.0.0.254:53
  nameserver b tcp@10.0.0.254:53
  nameserver c tcp@[2001:db8::1]:5353
  nameserver d /run/dns.sock
  timeout resolve 500
  hold valid 10s
listen web
  bind :80
  {SERVER.replace("cluster", "k8s").replace("k8s.local", "corp.example")}
listen raw
  bind :81
  server x web.default.svc.corp.example:80 resolvers k8s weight 3
  server y other.default.svc.corp.example:80 resolvers k8s
"""
    )
    assert [s.name for s in result.services] == ["web"]
    assert result.settings["cluster"]["domain"] == "corp.example"
    assert result.settings["cluster"]["nameservers"] == [
        "10.0.0.254:53",
        "tcp://[2001:db8::1]:5353",
    ]
    assert result.settings["intervals"] == {"resolve": "500ms"}
    # Another section refers to it by its original name.
    texts = {fragment.name: fragment.text for fragment in result.fragments}
    assert set(texts) == {"raw", "other"}
    assert "resolvers k8s\n" in texts["raw"]
    assert [problem.line for problem in errors_in(result.problems)] == [8]
    assert "hold valid 10s" in said(result.problems)


def test_the_statistics_page() -> None:
    page = "listen stats\n  mode http\n  bind 127.0.0.1:9000\n  stats enable\n  stats uri /\n"
    result = imported(page)
    assert result.settings["haproxy"]["stats"] == "127.0.0.1:9000"
    assert not result.fragments
    result = imported(f"{page}  stats admin if LOCALHOST\n")
    assert "stats" not in result.settings.get("haproxy", {})
    assert [fragment.name for fragment in result.fragments] == ["stats"]
    # An additional listener must not take an address that another one uses.
    result = imported(page.replace("9000", "8000") + "  stats auth a:b\n")
    assert result.settings["haproxy"]["stats"] is None
    assert [f.name for f in result.fragments] == ["stats"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("bind :80\n", 1, "stands in no section"),
        ("listen\n", 1, "has no name"),
        ("listen a b\n", 1, "after the name"),
        ("listen a from b\n", 1, "no `defaults b`"),
        ("listen a\n  bind 'x\nlisten b\n", 2, "never closed"),
        ("listen a\n  bind :80\x1b[31m\n", 2, "control character"),
        ("listen a\nbackend a\n", 2, "has the name of the listen"),
        ("listen fc-a\n  bind :80\n", 1, "fc-frontend's own"),
        (".if 1\nlisten a\n.endif\n", 1, "stands in no section"),
        ("listen a\n.if 1\nlisten b\n.endif\n", 1, "does not end in the section"),
        ('listen "$A"\n', 1, "variable in a section's name"),
        ("listen a\n  " + "x " * 70 + "\n", 2, "more than 64 words"),
        ("listen a\n  " + "x" * 70000 + "\n", 2, "characters in a line"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(text: str, line: int, words: str) -> None:
    result = imported(text)
    assert any(
        problem.file == "haproxy.cfg" and problem.line == line and words in problem.message
        for problem in errors_in(result.problems)
    ), said(result.problems)
    assert all(problem.remedy for problem in result.problems)


def test_sizes_are_bounded() -> None:
    with pytest.raises(Refused):
        imported("# x\n" * 2_000_000)
    with pytest.raises(Refused):
        imported("listen a\n" * (MOST_SECTIONS + 1))
    chain = "defaults d0\n" + "".join(f"defaults d{n} from d{n - 1}\n" for n in range(1, 2000))
    result = imported(chain + "listen a from d1999\n  bind :1\n")
    assert not result.fragments and not result.services
    many = "".join(f"listen l{n}\n  bind :80\n  {SERVER}\n" for n in range(MOST_SECTIONS - 1))
    result = imported(many + "resolvers cluster\n  nameserver a 10.0.0.254:53\n")
    assert len(result.services) == MOST_SECTIONS - 1


# Arbitrary text

HOSTILE = st.sampled_from(
    [
        *("global", "defaults", "defaults d", "listen a", "listen b from d", "frontend f"),
        *("backend b", "resolvers cluster", "userlist u", "cache c", "program p", "  bind :80"),
        *("  bind 127.0.0.1:8000", "  bind [::1]:80 ssl crt /x", "  mode http", "  mode tcp"),
        *("  balance leastconn", f"  {SERVER}", "  server x 127.0.0.1:1 track b/x"),
        *("  default_backend b", "  use_backend %[path]", "  nameserver a 10.0.0.254:53"),
        *("  log global", "  no log", "  timeout client 5s", "  option httplog", "  .if 1"),
        *("  .endif", "  default-server check", "  stats uri /", "# x", "  no", "  bind", "  mode"),
        *("  http-request set-header X 'a b'", '  description "$HOME"', "  stats socket", "  user"),
        *("  acl x hdr(host) -i a", "  server-template pod 5", "  timeout", "  server"),
        *("  description {{ 7 * 7 }}", "  description \x85 \u2028", "  maxconn 5 # listen evil"),
    ]
)
LINES = st.lists(HOSTILE | st.text(max_size=30), max_size=30).map("\n".join)


def written(directory: Path, result: Imported) -> list[Problem]:
    """Write the files of an import, and return the loader's problems with them."""
    (directory / "services.d").mkdir(parents=True)
    for name, text in files(result).items():
        (directory / name).write_text(text)
    return list(load(str(directory / "config.yaml")).problems)


@settings(
    max_examples=IMPORTS,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(LINES)
@example("listen a\n  bind :80\n  " + SERVER)
def test_any_text_is_imported_or_refused_and_the_loader_takes_what_comes_out(
    tmp_path: Path, text: str
) -> None:
    result = imported(text)
    directory = tmp_path / "import"
    shutil.rmtree(directory, ignore_errors=True)
    problems = written(directory, result)
    ours = ("is taken by", "is used by fc-frontend", "is bound twice", "no nameserver is set")
    wrong = [
        problem
        for problem in errors_in(tuple(problems))
        if not any(words in problem.message for words in ours)
    ]
    assert not wrong, text
    # Nothing is invented and no line is lost: each ends up in a file or is reported.
    names = {s.name for s in result.services}
    assert names <= set(re.findall(r"^(?:listen|frontend) (\S+)", text, re.MULTILINE))
    for name, made in files(result).items():
        if name.endswith(".yaml"):
            assert isinstance(yaml.safe_load(made), dict)


@settings(max_examples=IMPORTS)
@given(st.binary(max_size=300))
def test_any_bytes_are_words_or_refused(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    sections, problems = read_sections([("x", text)])
    assert all(problem.remedy for problem in problems)
    imported(raw.decode("latin-1"))
    assert len(sections) <= text.count("\n") + 1
