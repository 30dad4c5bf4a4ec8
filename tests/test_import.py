"""From a haproxy.cfg to declarations: the same words, the same sections, the same HAProxy.

The last word has HAProxy: it reads what the tokenizer reads, and serves from the import what it
served from the original.  FC_FRONTEND_IMPORTS sets how many random texts are tried (300 by
default).
"""

from __future__ import annotations

import csv
import io
import os
import random
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fc_frontend.config.declare import load
from fc_frontend.config.templates import templates
from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.demo.pods import PodSet
from fc_frontend.errors import Problem, Refused, errors_in
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.socket import ask
from fc_frontend.haproxy.validate import validate
from fc_frontend.migrate.convert import Imported, convert
from fc_frontend.migrate.files import files
from fc_frontend.migrate.sections import MOST_SECTIONS, read_sections
from fc_frontend.pipeline import Base, prepare_offline
from fc_frontend.plan.model import Plan, Settings
from fc_frontend.render.render import render
from fc_frontend.syntax.words import NotWords, quote, split
from tests.conftest import RealHaproxy, until
from tests.support.frontend import Frontend

IMPORTS = int(os.environ.get("FC_FRONTEND_IMPORTS", "300"))
OWN = render(Plan(settings=Settings(), services=()), templates({})).text

DOCUMENTATION = """\
defaults
    balance leastconn

listen ingress
    bind 198.51.100.2:443
    bind [2a02:238:f030:::1000]:443
    server-template pod 20 *.ingress.default.svc.cluster.local:443 check resolvers cluster \
init-addr none

resolvers cluster
    nameserver coredns 10.43.0.10:53
    accepted_payload_size 8192 # allow larger DNS payloads
"""


def imported(text: str) -> Imported:
    return convert([("haproxy.cfg", text)], OWN)


def service(text: str, resolvers: bool = True) -> dict[str, Any]:
    """The fields of the only service that `text` becomes."""
    more = "\nresolvers cluster\n  nameserver a 10.0.0.254:53\n" if resolvers else ""
    result = imported(text + more)
    assert not result.fragments, result.fragments
    assert not errors_in(result.problems), result.problems
    (only,) = result.services
    return only.fields


def said(problems: tuple[Problem, ...]) -> str:
    return "\n".join(str(problem) for problem in problems)


def command(*arguments: str, binary: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = dict(os.environ)
    if binary is not None:
        environ["PATH"] = f"{binary}:{environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def on_path(directory: Path, binary: str) -> str:
    """A directory in which `haproxy` is the given one."""
    (directory / "bin").mkdir()
    (directory / "bin" / "haproxy").symlink_to(binary)
    return str(directory / "bin")


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
    """Random lines of quotes, escapes and comments, each as an environment variable."""
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
        # Without a variable, and with one word that can be shown in a line.
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
    # HAProxy gives up after 50 faults.
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
    # Another section relies on it under its own name.
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
    # One more listener than before must not take what another one has.
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


# Anything

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
    """The loader's problems with the files of an import."""
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
    # Nothing is invented, and no line is lost: each ends in a file or is told of.
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
    # A directory in PATH that is asked first, with a haproxy that does not run.
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


# The same HAProxy

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
    """What HAProxy says of itself, but for fc-frontend's own sections."""
    rows = csv.DictReader(io.StringIO(ask(real.runtime_socket, "show stat", 10).lstrip("# ")))
    stats = {
        (row["pxname"], row["svname"], row["type"], row["mode"], row["algo"], row["slim"])
        for row in rows
        if not row["pxname"].startswith("fc-")
    }
    servers: dict[str, set[tuple[str | None, int | None]]] = {}
    for state in runtime.servers(real.runtime_socket):
        if not state.proxy.startswith("fc-"):
            # An empty slot of a SRV service has port 1 for us, and none else.
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
    """True if each proxy has as many servers up as there are pods."""
    up: dict[str, int] = dict.fromkeys(expected, 0)
    for state in runtime.servers(real.runtime_socket):
        # A server that an SRV record named has 64 in `admin`, and takes traffic.
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
    with (new / "config.yaml").open("a") as settings_file:
        settings_file.write(f"state_directory: {tmp_path}/state\n")
    prepared = prepare_offline(str(new / "config.yaml"), base=Base())
    assert prepared.config is not None
    # fc-frontend's own page is one listener more than before.
    after, answered_after = observed(prepared.config.text)
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
