"""`untrusted.raw_lines: safe`: accepted lines are harmless, and HAProxy accepts them."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.syntax import safe
from fc_frontend.syntax.safe import (
    BIND,
    FLAGS,
    KINDS,
    LINES,
    SERVER,
    Argument,
    Item,
    Literal,
    Optional,
    parse_grammar,
    refused_in_bind_options,
    refused_in_line,
    refused_in_server_options,
)
from fc_frontend.syntax.samples import CONVERTERS, CRITERIA, FETCHES, is_expression
from fc_frontend.syntax.words import split

ACCEPTED = """
option httpchk GET /healthz
option httpchk
http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host shop.example.org
http-check expect status 200-399
option forwardfor except 127.0.0.0/8
timeout server 5m
timeout tunnel 1h
maxconn 500
http-request set-header X-Forwarded-Proto https if { ssl_fc }
http-request set-header X-Forwarded-For %[src]
http-request add-header X-Host "%{+Q}[req.hdr(host),field(1,:),lower]"
http-request deny deny_status 403 unless { src 192.0.2.0/24 2001:db8::/32 }
http-request deny if { path_beg -i /admin /internal } !{ src 10.0.0.0/8 }
http-request redirect scheme https code 301 if !{ ssl_fc }
http-request redirect location "https://%[req.hdr(host),lower]%[pathq]" code 302
http-request set-var(txn.path) path
http-request return status 200 content-type text/plain string ok if { path /ping }
http-response set-header Strict-Transport-Security "max-age=31536000; includeSubDomains"
http-response del-header Server
acl is_api path_beg /api
acl is_admin req.hdr(X-Role) -m str -i admin
acl dash path -- -f
acl busy sc_http_req_rate(0) gt 100
http-request track-sc0 src
stick-table type ip size 10k expire 30m store http_req_rate(10s),gpc0
stick on src
cookie SERVERID insert indirect nocache httponly secure
compression algo gzip
compression type text/html text/css
retry-on conn-failure empty-response 503
no option http-server-close
default-server inter 2s fall 3 rise 2 slowstart 30s
http-error status 503 content-type text/html lf-string "<h1>%[req.hdr(host)]</h1> 100%%"
tcp-request connection reject if { src 203.0.113.0/24 }
'http-request' "set-header" X-Quoted 'a "b" c'
""".strip().split("\n")

REFUSED = """
acl x path -f /etc/shadow | -f
acl x path -i -f /etc/shadow | -f
acl x path "-f" /etc/shadow | "-f"
acl x path '-'f /etc/shadow | '-'f
acl x path -M -f /etc/shadow | -M
acl x path /x -f /etc/shadow | -f
acl x path -m str -f /etc/shadow | -f
acl x path,map(/etc/shadow) -m found | path,map(/etc/shadow)
acl x path,map_beg(/dev/zero,x) -m found | path,map_beg(/dev/zero,x)
acl x lua.run -m found | lua.run
acl x path,lua.run -m found | path,lua.run
acl x env(HOME) -m found | env(HOME)
acl x var(proc.x) -m found | var(proc.x)
acl x http_auth(users) | http_auth(users)
acl x nbsrv(other) gt 0 | nbsrv(other)
acl x be_conn(other) gt 0 | be_conn(other)
acl x src,in_table(other) | src,in_table(other)
acl x sc_http_req_rate(0,other) gt 1 | sc_http_req_rate(0,other)
acl x src_http_req_rate(other) gt 1 | src_http_req_rate(other)
acl x path_reg (a+)+$ | $
acl x path_reg (a+)+ | path_reg
acl x path -m reg (a+)+ | reg
acl x path,regsub(a,b) x | path,regsub(a,b)
acl x src evil.example.org | evil.example.org
acl x src dead.beef | dead.beef
acl x req.hdr(x) -m ip evil.example.org | evil.example.org
acl x src,ipmask(24) evil.example.org | evil.example.org
acl x hostname -m found | hostname
acl x path,debug x | path,debug
acl x path,set-var(proc.x) x | path,set-var(proc.x)
acl x path,concat(,proc.x) x | path,concat(,proc.x)
acl x path,jwt_verify(x,/etc/shadow) x | path,jwt_verify(x,/etc/shadow)
bind :80 | bind
server a 192.0.2.1:80 | server
server-template a 3 192.0.2.1:80 | server-template
use_backend other | use_backend
"use_backend" other | "use_backend"
default_backend other | default_backend
use-server a if TRUE | use-server
dispatch 192.0.2.1:80 | dispatch
option transparent | transparent
option http_proxy | http_proxy
option external-check | external-check
external-check command /bin/sh | external-check
filter spoe engine x config /etc/x | filter
filter trace | filter
source 192.0.2.1 | source
stats enable | stats
stats socket /run/x | stats
errorfile 503 /etc/shadow | errorfile
errorfiles x | errorfiles
http-error status 503 content-type text/html file /etc/shadow | file
http-error status 503 errorfile /etc/shadow | errorfile
http-request return status 200 content-type text/html file /etc/shadow | file
http-request return status 200 content-type text/html lf-file /etc/shadow | lf-file
http-request return status 200 errorfile /etc/shadow | errorfile
log 192.0.2.1:514 local0 | log
log stdout format raw local0 | log
log global | log
no log | log
log-format %[env(HOME)] | log-format
unique-id-format %[env(HOME)] | unique-id-format
email-alert mailers x | email-alert
http-request use-service lua.x | use-service
http-request use-service prometheus-exporter | use-service
http-request lua.x | lua.x
http-request set-dst str(192.0.2.1) | set-dst
http-request set-dst-port int(22) | set-dst-port
http-request set-src str(192.0.2.1) | set-src
http-request do-resolve(txn.x,cluster,ipv4) str(a.example) | do-resolve(txn.x,cluster,ipv4)
http-request set-var(proc.x) path | set-var(proc.x)
http-request set-var(txn.x) env(HOME) | env(HOME)
http-request set-header X %[env(HOME)] | %[env(HOME)]
http-request set-header X '%[env(HOME)]' | '%[env(HOME)]'
http-request set-header X "a%[src]b%[path,map(/x)]" | "a%[src]b%[path,map(/x)]"
http-request set-header X %H | %H
http-request set-header X %{+Q}o | %{+Q}o
http-request set-header X "$HOME" | $
http-request set-header X ${HOME} | $
http-request set-header X %[src if | %[src
http-request set-header X a if { path -f /etc/shadow } | -f
http-request set-header X a if { path /x } { lua.run } | lua.run
http-request set-header X a if { path /x | {
http-request track-sc0 src table other | table
http-request set-map(/etc/x) a b | set-map(/etc/x)
http-request add-acl(/etc/x) a | add-acl(/etc/x)
http-request cache-use x | cache-use
http-request capture path len 1000000 | capture
http-request set-log-level silent | set-log-level
http-request auth unless { http_auth(x) } | auth
http-request tarpit | tarpit
http-request wait-for-handshake | wait-for-handshake
http-request replace-path (a+)+ b | replace-path
http-request normalize-uri x | normalize-uri
http-response replace-header X (a+)+ b | replace-header
http-response lua.x | lua.x
tcp-request content lua.x | lua.x
tcp-request content use-service lua.x | use-service
tcp-request content do-resolve(txn.x,cluster) src | do-resolve(txn.x,cluster)
tcp-request content set-dst str(192.0.2.1) | set-dst
tcp-request content track-sc0 src table other | table
tcp-request connection expect-proxy layer4 | expect-proxy
tcp-check connect addr 192.0.2.1 port 22 | connect
tcp-check expect rstring (a+)+ | rstring
tcp-check send-lf %[env(HOME)] | send-lf
http-check connect addr 192.0.2.1 | connect
http-check send hdr X %[env(HOME)] | %[env(HOME)]
http-check send uri-lf %[env(HOME)] | uri-lf
http-check expect rstatus (a+)+ | rstatus
http-check set-var(proc.x) str(a) | set-var(proc.x)
stick-table type ip size 100m | 100m
stick-table type ip size 1k peers other | peers
stick-table type ip size 1k write-to other | write-to
stick-table type string len 100000 size 1k | 100000
stick on src table other | table
stick match lua.x | lua.x
default-server resolvers other | resolvers
default-server ca-file /etc/shadow | ca-file
default-server inter 1ms | 1ms
declare capture request len 10000 | declare
id 1 | id
disabled | disabled
description fc-frontend:0123456789abcdef | fc-frontend
http-request set-header X fc-frontend:0000000000000000 | fc-frontend
timeout client 0 | 0
timeout client 99d | 99d
global | global
"global" | "global"
.if 0 | .if
lua-load /x.lua | lua-load
load-server-state-from-file local | load-server-state-from-file
persist rdp-cookie | persist
capture request header X len 1000000 | capture
rate-limit sessions -1 | -1
option httpchk GET /x HTTP/1.1\\r\\nHost:x | \\
maxconn 5 # comment | #
maxconn | maxconn (incomplete)
http-request deny "" if TRUE | ""
http-request deny if | http-request deny if (incomplete)
option httplog clf | clf
mode http | mode
balance hash path,map(/x) | hash
balance url_param x check_post | url_param
hash-type consistent sdbm avalanche x | x
http-send-name-header X-Host | http-send-name-header
transparent | transparent
grace 1h | grace
""".strip().split("\n")


@pytest.mark.parametrize("line", ACCEPTED)
def test_a_harmless_line_is_accepted(line: str) -> None:
    assert refused_in_line(line) is None


@pytest.mark.parametrize("entry", REFUSED)
def test_another_line_is_refused_with_the_word(entry: str) -> None:
    line, word = entry.rsplit(" | ", 1)
    assert refused_in_line(line) == word


@pytest.mark.parametrize(
    "options",
    [
        "track other/a",
        "addr 192.0.2.1",
        "port 22",
        "agent-check agent-port 1",
        "agent-addr 192.0.2.1",
        "ca-file /etc/shadow",
        "crt /etc/ssl/x.pem",
        "crl-file /etc/shadow",
        "redir https://evil.example",
        "socks4 192.0.2.1:1080",
        "source 192.0.2.1",
        "resolvers other",
        "resolve-opts allow-dup-ip",
        "sni env(HOME)",
        "sni str(x)",
        "ssl verify none",
        "verifyhost x",
        "init-addr libc",
        "cookie x",
        "id 5",
        "namespace x",
        "interface eth0",
        "tls-tickets",
        "proxy-v2-options crc32c",
        "inter 100ms",
        "weight 257",
        "log-proto octet-count",
        "set-proxy-v2-tlv-fmt(0x20) %[env(HOME)]",
        "check-via-socks4",
        "check-sni x",
        "on-error mark-down x",
        "weight",
        'weight "$X"',
        "weight 5 # check",
        "weight 5\nuse_backend x",
        "proto fcgi",
    ],
)
def test_server_options_that_reach_elsewhere_are_refused(options: str) -> None:
    assert refused_in_server_options(options) is not None


@pytest.mark.parametrize(
    "options",
    [
        "ssl crt /etc/ssl/x.pem",
        "crt-list /x",
        "accept-proxy",
        "accept-netscaler-cip 1",
        "interface eth0",
        "transparent",
        "namespace x",
        "mode 777",
        "uid 0",
        "user root",
        "level admin",
        "expose-fd listeners",
        "thread 1",
        "shards 64",
        "process 1",
        "id 1",
        "v4v6",
        "v6only",
        "nice 1024",
        "severity-output none",
        "ca-file /x",
        "tls-ticket-keys /x",
        "generate-certificates",
        "npn x",
        "nbconn 1",
    ],
)
def test_bind_options_that_reach_elsewhere_are_refused(options: str) -> None:
    assert refused_in_bind_options(options) is not None


# HAProxy accepts every line that fc-frontend accepts


def variants(items: tuple[Item, ...]) -> list[list[str]]:
    """Return lines, as lists of words, that together contain every word of a grammar."""
    if not items:
        return [[]]
    first, rest = items[0], variants(items[1:])
    if isinstance(first, Literal):
        own = [[word] for word in sorted(first.words)]
    elif isinstance(first, Argument):
        own = arguments(first.kind)
    elif isinstance(first, Optional):
        own = [[], *variants(first.items)]
    else:
        own = [found for each in first.alternatives for found in variants(each)]
    return [
        own[0] + rest[0],
        *(each + rest[0] for each in own[1:]),
        *(own[0] + each for each in rest[1:]),
    ]


def arguments(kind: str) -> list[list[str]]:
    if kind == "TEST":
        return [["src", "192.0.2.0/24", "2001:db8::/32"]]
    if kind == "CONDITION":
        return [["if", "{", "src", "192.0.2.1", "}", "!{", "always_true", "}", "||", "TRUE"]]
    if kind in ("FLAG", "SWITCH"):
        return [[flag] for flag in sorted(FLAGS) if KINDS[kind][0](flag)]
    return [[KINDS[kind][1]]]


def call(name: str, pattern: re.Pattern[str]) -> str:
    """Return a fetch or converter with arguments that it accepts."""
    candidates = ("", "host", "txn.a", "true", "1", "1,.", "24", "0", ".")
    given = next(each for each in candidates if pattern.fullmatch(each))
    return f"{name}({given})" if given else name


def every_fetch_and_converter() -> list[str]:
    numbers = "bool not neg cpl even odd add sub mul and or xor div mod htonl".split()
    lines = []
    for name, pattern in {**FETCHES, **CRITERIA}.items():
        value = "-m found" if name == "var" else "192.0.2.1"
        if name in ("always_true", "always_false", "ssl_fc", "req.proto_http", "http_first_req"):
            value = ""
        elif name not in ("var", "src", "dst", "hdr_ip", "req.hdr_ip"):
            value = "true" if name == "bool" else "1"
        lines.append(f"acl a {call(name, pattern)} {value}")
    for name, pattern in CONVERTERS.items():
        of = "int(1)" if name in numbers else "src" if name == "ipmask" else "path"
        lines.append(f"http-request set-header X %[{of},{call(name, pattern)}]")
    return lines


def test_every_word_of_the_list_is_accepted_by_haproxy(haproxy_binary: str, tmp_path: Path) -> None:
    grammar = [parse_grammar(line) for line in LINES.strip().split("\n")]
    lines = [" ".join(words) for items in grammar for words in variants(items)]
    lines += [line for line in ACCEPTED if not line.startswith("stick on")]
    lines += every_fetch_and_converter()
    lines = list(dict.fromkeys(lines))
    assert len(lines) > 400
    servers = [" ".join(words) for words in variants(parse_grammar(SERVER))]
    binds = [" ".join(words) for words in variants(parse_grammar(BIND))]
    cases = [
        *((line, "", "") for line in lines),
        *(("", options, "") for options in servers),
        *(("", "", options) for options in binds),
    ]
    text = ["defaults", " mode http", " timeout client 1s", " timeout server 1s"]
    text += [" timeout connect 1s"]
    for number, (line, server, bind) in enumerate(cases):
        assert refused_in_line(line) is None, line
        assert refused_in_server_options(server) is None, server
        assert refused_in_bind_options(bind) is None, bind
        # Some of the options require a bind with a port.
        text += [f"listen l{number}", f" bind 127.0.0.1:{20000 + number} {bind}"]
        text += [f" server a 127.0.0.1:9 {server}"]
        if re.match(r"http-request (sc-|track)|tcp-request \w+ track|stick (on|match|store)", line):
            text += [" stick-table type ip size 1k store gpc0"]
        text += [f" {line}"] if line else []
    path = tmp_path / "haproxy.cfg"
    path.write_text("\n".join(text) + "\n")
    done = subprocess.run(
        [haproxy_binary, "-c", "-f", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    alerts = [line for line in done.stderr.splitlines() if "[ALERT]" in line]
    assert done.returncode == 0, "\n".join(alerts)


# Tricks with quotes

WORDS = st.sampled_from(
    sorted(
        {word for line in ACCEPTED for word in line.split()}
        | {word for entry in REFUSED for word in entry.rsplit(" | ", 1)[0].split()}
    )
)


def quoted(word: str, how: list[int]) -> str:
    """Return a word that HAProxy reads as `word`, with quotes around some of its letters."""
    marks = itertools.cycle(how or [0])
    return "".join(
        letter if letter in "'\"" else (letter, f"'{letter}'", f'"{letter}"')[next(marks) % 3]
        for letter in word
    )


@given(
    st.sampled_from([*ACCEPTED, *(entry.rsplit(" | ", 1)[0] for entry in REFUSED)]),
    st.lists(st.integers(0, 2)),
)
def test_quotes_change_nothing(line: str, how: list[int]) -> None:
    if "'" in line or '"' in line:
        return
    words = [quoted(word, how) for word in line.split()]
    assert (refused_in_line(" ".join(words)) is None) == (refused_in_line(line) is None)


@given(st.lists(WORDS, min_size=1, max_size=8))
def test_words_in_any_order_name_no_file_and_no_fetch_that_is_not_listed(words: list[str]) -> None:
    line = " ".join(words)
    if refused_in_line(line) is not None:
        return
    found = [word.text for word in split(line).words]
    flags = found[: found.index("--")] if "--" in found else found
    assert not {"-f", "-M", "-u"} & set(flags)
    for expression in re.findall(r"%(?:\{[^}]*\})?\[([^]]*)\]", line):
        assert is_expression(expression)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    for judge in (refused_in_line, refused_in_server_options, refused_in_bind_options):
        judged = judge(text)
        assert judged is None or judged
    if any(letter in text for letter in "\\$#\n\r\0"):
        assert safe.refused_in_line(text) is not None
