"""The addresses on which a line makes HAProxy listen: the prediction, and the real HAProxy."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.binary import bundled_binary
from fc_frontend.haproxy.runtime import info
from fc_frontend.syntax.binds import effective, read_listeners
from fc_frontend.syntax.endpoints import Family, ListenEndpoint, takes_value
from tests.conftest import until

HOST = "this-host"
UNKNOWN = None


def listeners(text: str) -> list[ListenEndpoint] | None:
    """Return the endpoints on which HAProxy listens with `text`, or None if they are not known."""
    found, flaws = effective([read_listeners(text)], HOST)
    return None if flaws else [listener.endpoint for _, listener in found]


def shown(text: str) -> list[str] | None:
    found = listeners(text)
    return None if found is None else [str(endpoint) for endpoint in found]


def only(text: str) -> ListenEndpoint:
    found = listeners(text)
    assert found is not None
    (endpoint,) = found
    return endpoint


BINDS: list[tuple[str, list[str] | None]] = [
    (":80", ["*:80"]),
    ("*:80", ["*:80"]),
    ("0.0.0.0:80", ["*:80"]),
    ("ipv4@:80", ["*:80"]),
    (":::80", ["[::]:80"]),
    ("[::]:80", ["[::]:80"]),
    ("ipv6@:80", ["[::]:80"]),
    ("ipv6@*:80", ["[::]:80"]),
    ("[0:0::0]:80", ["[::]:80"]),
    ("1:2:3:4:5:6:7:8:80", ["[1:2:3:4:5:6:7:8]:80"]),
    ("[127.0.0.1]:80", ["127.0.0.1:80"]),
    ("[::ffff:127.0.0.1]:80", ["[::ffff:127.0.0.1]:80"]),
    ("127.0.0.1:80,[::1]:81,", ["127.0.0.1:80", "[::1]:81"]),
    ("127.0.0.1:8000-8002", ["127.0.0.1:8000-8002"]),
    (":00080", ["*:80"]),
    ("tcp4@127.0.0.1:80", ["127.0.0.1:80"]),
    ("mptcp@127.0.0.1:80", ["127.0.0.1:80"]),
    ("stream+ipv4@127.0.0.1:80", ["127.0.0.1:80"]),
    ("quic4@127.0.0.1:443", ["udp@127.0.0.1:443"]),
    ("quic+ip@[::1]:443", ["udp@[::1]:443"]),
    ('"127.0.0.1:80" ssl crt interface', ["127.0.0.1:80"]),
    ("127.0.0.1:80 name transparent", ["127.0.0.1:80"]),
    ("/run/x.sock", ["unix@/run/x.sock"]),
    ("unix@/run/./x.sock mode 600", ["unix@/run/./x.sock"]),
    ("uxst@/run/x.sock", ["unix@/run/x.sock"]),
    ("abns@x/y", ["abns@x/y"]),
    ("abnsz@x", ["abnsz@x"]),
    ("rhttp@backend/server", []),
    ("", []),
    (f"unix@/{'x' * 94}", [f"unix@/{'x' * 94}"]),
    # HAProxy accepts these; only a start shows where it listens.
    ("localhost:80", UNKNOWN),
    ("127.0.0.01:80", UNKNOWN),
    ("'127.0.0.1:8000- +8002'", UNKNOWN),
    (":4294967376", UNKNOWN),
    (":80x", UNKNOWN),
    ("127.1:80", UNKNOWN),
    ("$PORT:80", UNKNOWN),
    ("'${A}':80", UNKNOWN),
    ('"${A[*]}"', UNKNOWN),
    ('127.0.0.1:80 interface "$IF"', UNKNOWN),
    ('127.0.0.1:80 "$OPTION"', UNKNOWN),
    ('127.0.0.1:80 crt "${A[*]}"', UNKNOWN),
    ("unix@x.sock", UNKNOWN),
    (f"unix@/{'x' * 95}", UNKNOWN),
    ("fd@3", UNKNOWN),
    ("sockpair@3", UNKNOWN),
    # HAProxy refuses these.
    (",:80", UNKNOWN),
    (":80,,:81", UNKNOWN),
    ("80", UNKNOWN),
    ("127.0.0.1", UNKNOWN),
    ("[::1]", UNKNOWN),
    ("::80", UNKNOWN),
    ("[*]:80", UNKNOWN),
    ("ipv4@[::1]:80", UNKNOWN),
    ("ipv6@127.0.0.1:80", UNKNOWN),
    ("fe80::1%lo:80", UNKNOWN),
    (":0", UNKNOWN),
    (":65536", UNKNOWN),
    (":80-79", UNKNOWN),
    (":80-", UNKNOWN),
    (":+80", UNKNOWN),
    (":0x50", UNKNOWN),
    (":\u0661", UNKNOWN),
    ("udp@127.0.0.1:80", UNKNOWN),
    ("uxdg@/run/x", UNKNOWN),
    ("unix@", UNKNOWN),
    ("/run/x/", UNKNOWN),
    ("/run/..", UNKNOWN),
    ("abns@", UNKNOWN),
]


@pytest.mark.parametrize(("words", "expected"), BINDS)
def test_the_listeners_of_a_bind(words: str, expected: list[str] | None) -> None:
    assert shown(f"listen web\n  bind {words}\n") == expected


def test_the_options_that_matter() -> None:
    endpoint = only(
        "listen a\n bind [::1]:80 v4v6 v6only interface eth0 interface eth1 transparent namespace x"
    )
    assert (endpoint.interface, endpoint.namespace) == ("eth1", "x")
    assert endpoint.v6only
    assert endpoint.transparent
    assert (endpoint.ipv4, endpoint.ipv6) == (None, "::1")


@pytest.mark.parametrize(
    ("host", "option", "families"),
    [
        ("*", "", ("*", None)),
        ("[::]", "", ("*", "::")),
        ("[::]", "v4v6", ("*", "::")),
        ("[::]", "v6only", (None, "::")),
        ("[::ffff:127.0.0.1]", "", ("127.0.0.1", None)),
        ("[::ffff:0.0.0.0]", "", ("*", None)),
        ("127.0.0.1", "v6only", ("127.0.0.1", None)),
    ],
)
def test_the_families_whose_connections_it_takes(
    host: str, option: str, families: tuple[str | None, str | None]
) -> None:
    endpoint = only(f"listen a\n bind {host}:80 {option}")
    assert (endpoint.ipv4, endpoint.ipv6) == families


SECTIONS = [
    ("frontend a\n bind :80\nbackend b\n bind :81", ["*:80", "*:81"]),
    ("listen a\n bi\"nd\" :80\n 'bind' :81\n \\x62ind :82", ["*:80", "*:81", "*:82"]),
    ("listen a\n # bind :80\n bind :81 # :82", ["*:81"]),
    ("listen a\n no bind :80\n", []),
    ("frontend a\n bind :80\n disabled\nfrontend b\n disabled\n enabled\n bind :81", ["*:81"]),
    ("resolvers a\n nameserver x :53\nring b\n server c :80\ndefaults\n bind :1", []),
    (
        "global\n stats socket /run/a\n stats socket ipv4@:9 level admin\n stats timeout 1s",
        ["unix@/run/a", "*:9"],
    ),
    (
        "global\n stats socket /a\n unix-bind mode 600 prefix /run\nlisten a\n bind /b,abns@c",
        ["unix@/a", "unix@/run/b", "abns@c"],
    ),
    ("listen a\n bind /b\nglobal\n unix-bind prefix /run", ["unix@/b"]),
    (f"global\n unix-bind prefix /{'y' * 60}\nlisten a\n bind /{'x' * 60}", None),
    ("global\n unix-bind prefix /run/\nlisten a\n bind unix@b", ["unix@/run/b"]),
    ("peers p\n bind :80\n server a\n server b 192.0.2.1:80", ["*:80"]),
    (f"peers p\n peer {HOST} :80\n peer b 192.0.2.1:80", ["*:80"]),
    (f"global\n localpeer b\npeers p\n peer {HOST} :80\n peer b :81", ["*:81"]),
    ("peers p\n default-bind v6only\n bind :::80\n disabled", []),
    (
        "log-forward l\n bind :514\n dgram-bind :514,udp@:515\n dgram-bind uxdg@/run/l",
        ["*:514", "udp@*:514", "udp@*:515", "unix@/run/l"],
    ),
    ("log-forward l\n dgram-bind tcp@:514", None),
    ("log-forward l\n dgram-bind quic4@:514", None),
    ("listen a\n .if feature(X)\n bind :80\n .else\n bind :81\n .endif", ["*:80", "*:81"]),
    ("listen a\n disabled\n .if feature(X)\n enabled\n .endif\n bind :80", ["*:80"]),
    ("listen a\n .if feature(X)\n disabled\n .endif\n bind :80", ["*:80"]),
    ('listen a\n "$WORD" :80', None),
    ("listen a\n bind :1-65535,:1", None),
]


@pytest.mark.parametrize(("text", "expected"), SECTIONS)
def test_the_listeners_of_sections(text: str, expected: list[str] | None) -> None:
    assert shown(text) == expected


def test_only_one_branch_of_a_condition_counts() -> None:
    read = read_listeners(
        "listen a\n.if x\nbind :1\n.if y\nbind :2\n.endif\n.else\nbind :3\n.endif"
    )
    one, two, three = (listener for _, listener in read.listeners)
    assert one.excludes(three)
    assert two.excludes(three)
    assert not one.excludes(two)


def test_a_prefix_and_a_name_reach_into_later_texts() -> None:
    texts = [
        read_listeners("listen a\n bind /a"),
        read_listeners("global\n unix-bind prefix /run\n localpeer me"),
        read_listeners("listen b\n bind /b\npeers p\n peer me :80\n peer you :81"),
    ]
    found, flaws = effective(texts, HOST)
    assert not flaws
    assert [str(listener.endpoint) for _, listener in found] == ["unix@/a", "unix@/run/b", "*:80"]


@pytest.mark.parametrize("binary", ["/usr/sbin/haproxy", bundled_binary()])
def test_each_bind_option_of_haproxy_is_known_to_take_a_value_or_not(
    binary: str, tmp_path: Path
) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("global\n")
    said = subprocess.run(
        [binary, "-dKall", "-c", "-q", "-f", config], capture_output=True, text=True, check=False
    ).stdout
    options = dict(re.findall(r"^\s*bind <addr> (?:ssl )?([a-z0-9-]+)( \+1)?$", said, re.MULTILINE))
    assert len(options) > 40
    assert {name for name, value in options.items() if value} == set(filter(takes_value, options))


@dataclass(frozen=True)
class Generated:
    """A section with one bind line, and whether HAProxy may accept what we cannot predict."""

    text: str
    unknowable: bool = False


def generated(seed: int, count: int, directory: Path) -> Iterator[Generated]:
    """Yield sections, each with its own ports and paths."""
    pick = random.Random(seed)
    for number in range(count):
        ports = [20000 + number * 10 + offset for offset in range(10)]
        addresses, unknowable = [], False
        for _ in range(pick.choice([1, 1, 1, 2, 3])):
            address, odd = one_address(pick, ports, f"{directory}/{number}")
            addresses.append(address)
            unknowable |= odd
        words = ",".join(addresses) + pick.choice(["", "", "", ",", ",,"])
        words = pick.choice(
            [words, words, f"'{words}'", f'"{words}"', words[:2] + "''" + words[2:]]
        )
        option = pick.choice(
            ["", "", "v6only", "v4v6", "mss 900", "name transparent", "transparent"]
        )
        if pick.random() < 0.25:
            text = f"log-forward l{number}\n  log 127.0.0.9:9 local0\n"
            keyword = pick.choice(["bind", "dgram-bind", "dgram-bind"])
        else:
            kind = pick.choice(["frontend", "listen", "backend"])
            text = f"{kind} s{number}\n  mode http\n  http-request return status 200\n"
            keyword = pick.choice(["bind", "bind", "'bind'", "b\\x69nd"])
        off = "  disabled\n" if "mode" in text and pick.random() < 0.1 else ""
        yield Generated(f"{text}{off}  {keyword} {words} {option}\n", unknowable)


def one_address(pick: random.Random, ports: list[int], path: str) -> tuple[str, bool]:
    """Return a valid or invalid address, and whether HAProxy may accept what we cannot predict."""
    port = str(ports.pop())
    prefix = pick.choice(
        "ipv4@ ipv6@ ip@ tcp@ tcp4@ tcp6@ udp@ udp4@ udp6@ stream+ dgram+ quic4@ unix@ uxst@ "
        "uxdg@ abns@ nope@".split()
        + [""] * 20
    )
    if prefix in ("unix@", "uxst@", "uxdg@", "abns@") or pick.random() < 0.1:
        tail = pick.choice([".a", "/../x.b", "/./c", "", "/"])
        return f"{prefix}{path}{tail if tail[:1] == '.' else ''}{port}", False
    hosts = (
        "* 127.0.0.1 127.0.0.2 0.0.0.0 ::1 [::1] :: [::] [127.0.0.1] ::ffff:127.0.0.3 [0::1] 127.1 "
        "localhost 127.0.0.01 [] 1::2::3 $X"
    )
    host = pick.choice(["", *hosts.split()])
    odd = f"{2**32 + int(port)}", f"{port}x", f"{port}- {port}"
    if pick.random() < 0.2:
        forms = f"{int(port) - 3}-{port}", f"{port}-", f"+{port}", f"{2**64 + int(port)}"
        more = f"0{port}", "", "0", "65536", f"{port}-{int(port) - 1}"
        port = pick.choice([*forms, *more, *odd])
        del ports[-3:]
    return f"{prefix}{host}:{port}", (
        host in ("127.1", "127.0.0.01", "localhost", "$X") or port in odd
    )


HEAD = """global
  stats socket SOCKET
  expose-experimental-directives
defaults
  timeout client 1s
  timeout connect 1s
  timeout server 1s
"""


@pytest.mark.parametrize("seed", range(int(os.environ.get("FC_FRONTEND_BIND_SEEDS", "2"))))
def test_haproxy_listens_where_it_is_predicted_to(
    haproxy_binary: str, short_directory: Path, seed: int
) -> None:
    sections = list(generated(seed, 250, short_directory))
    refused = refused_by_haproxy(haproxy_binary, sections, short_directory)
    expected: set[str] = set()
    taken = []
    for section in sections:
        predicted = listeners(section.text)
        if section in refused:
            # A disabled section opens nothing, valid or not; QUIC is not compiled in.
            excused = "disabled" in section.text or "quic4@" in section.text.replace("''", "")
            assert predicted is None or excused, f"HAProxy refuses, we do not: {section.text}"
        elif any(one.v6only and one.ipv4 for one in predicted or ()):
            # An IPv4 address on an IPv6-only socket: Linux refuses the bind.
            continue
        elif predicted is None:
            assert section.unknowable, f"we refuse, HAProxy does not: {section.text}"
        else:
            taken.append(section)
            for endpoint in predicted:
                expected |= sockets_of(endpoint)
    assert len(taken) > 60
    assert listening(haproxy_binary, taken, short_directory) == expected


def written(sections: list[Generated], directory: Path) -> tuple[Path, list[int]]:
    """Write a configuration of `sections`, and return its path and the first line of each."""
    lines = [HEAD.count("\n") + 1]
    for section in sections:
        lines.append(lines[-1] + section.text.count("\n"))
    config = directory / "haproxy.cfg"
    head = HEAD.replace("SOCKET", f"{directory}/admin.sock")
    config.write_text(head + "".join(section.text for section in sections))
    return config, lines


def refused_by_haproxy(binary: str, sections: list[Generated], directory: Path) -> list[Generated]:
    """Return the sections that HAProxy's check refuses.

    The check stops after a number of errors, so it is repeated without the sections found so far.
    """
    refused: list[Generated] = []
    while True:
        left = [section for section in sections if section not in refused]
        config, lines = written(left, directory)
        done = subprocess.run(
            [binary, "-c", "-f", config], capture_output=True, text=True, check=False
        )
        numbers = {
            int(number)
            for number in re.findall(
                r"\[ALERT\].*?\[[^\]]*haproxy\.cfg:(\d+)\](?!.*too many)", done.stderr
            )
        }
        found = [
            section
            for section, first, after in zip(left, lines, lines[1:], strict=False)
            if numbers & set(range(first, after))
        ]
        if not found:
            assert done.returncode in (0, 2), done.stderr[-2000:]
            return refused
        refused += found


def sockets_of(endpoint: ListenEndpoint) -> set[str]:
    """Return the sockets that the kernel lists for an endpoint."""
    if endpoint.family is Family.UNIX:
        return {f"{'dgram' if endpoint.is_datagram else 'stream'} {endpoint.host}"}
    if endpoint.family is Family.ABSTRACT:
        return {f"{'dgram' if endpoint.is_datagram else 'stream'} @{endpoint.host}"}
    table = "udp" if endpoint.is_datagram else "tcp"
    if ":" in endpoint.host:
        address: IPv4Address | IPv6Address = IPv6Address(endpoint.host)
    else:
        address = IPv4Address("0.0.0.0" if endpoint.host == "*" else endpoint.host)
    return {f"{table}{address.version} {address} {port}" for port in endpoint.ports}


def listening(binary: str, sections: list[Generated], directory: Path) -> set[str]:
    """Return the sockets of a HAProxy in its own network namespace, where all ports are free."""
    config, _ = written(sections, directory)
    log, socket = directory / "log", f"{directory}/admin.sock"
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    script = 'ip link set lo up && exec "$@"'
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", *user, "--net", "/bin/sh", "-c", script, "sh", binary, "-db", "-f", config],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(Unavailable):
                return bool(info(socket))
            return False

        until(answers)
        return sockets_held(process.pid) - {f"stream {socket}"}
    finally:
        process.kill()
        process.wait()


def sockets_held(pid: int) -> set[str]:
    """Return the listening and datagram sockets of a process, as the kernel names them."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    found = set()
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = row.split()
            if words[9] in inodes and words[3] == state:
                address, _, port = words[1].partition(":")
                found.add(f"{table[:3]}{plain(address)} {int(port, 16)}")
    for row in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        words = row.split(None, 7)
        if len(words) == 8 and words[6] in inodes:
            kind = "dgram" if words[4] == "0002" else "stream"
            name = re.sub(r"\.\d+\.tmp$", "", words[7]).rstrip("@")
            found.add(f"{kind} {name}")
    return found


def plain(words: str) -> str:
    raw = b"".join(
        int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8)
    )
    address = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
    return f"{address.version} {address}"
