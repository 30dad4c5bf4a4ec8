"""Addresses as operators write them: parsed into parts, with nothing else hidden in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.plan.addresses import (
    NotAnAddress,
    normal_bind,
    parse_bind,
    parse_nameserver,
    parse_network,
)
from fc_frontend.plan.model import Bind


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("198.51.100.2:443", "198.51.100.2:443"),
        ("[2A02:238:f030:0::1000]:443", "[2a02:238:f030::1000]:443"),
        ("*:80", "*:80"),
        (":80", "*:80"),
        ("0.0.0.0:80", "*:80"),
        ("[::]:80", "[::]:80"),
        ("unix@/run/shop.sock", "unix@/run/shop.sock"),
        ("abns@shop", "abns@shop"),
    ],
)
def test_bind_is_put_into_canonical_form(text: str, canonical: str) -> None:
    assert str(parse_bind(text)) == canonical
    assert parse_bind(canonical) == parse_bind(text)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("[2a02:238:f030:::1000]:443", "three colons in a row", "[2a02:238:f030::1000]:443"),
        ("2a02::1:443", "without brackets", "[2a02::1]:443"),
        ("198.51.100.2", "no port", "198.51.100.2:443"),
        ("198.51.100.2:0", "not a port", "1 to 65535"),
        ("198.51.100.2:65536", "not a port", "1 to 65535"),
        ("198.51.100.2:80-90", "range of ports", "one port"),
        ("198.51.100.256:80", "not an IP address", "198.51.100.2"),
        ("shop.example:80", "not an IP address", "not a name"),
        ("198.51.100.2:443 ssl crt /x.pem", "more than an address", "bind_options"),
        ("198.51.100.2:443,*:80", "several addresses", "own entry"),
        ("[fe80::1%eth0]:80", "not an IP address", "leave out the zone"),
        ("[::1", "no closing bracket", "[2001:db8::1]:443"),
        ("[1.2.3.4]:80", "not an IPv6 address", "1.2.3.4:80"),
        ("unix@relative", "not a path", "absolute path"),
        ("unix@/run/${HOME}", "not a path", "letters"),
        ("unix@/" + "a" * 97, "not a path", "at most 95"),
        ("/run/shop.sock", "is a path", "unix@/run/shop.sock"),
        ("fd@3", "unknown prefix", "unix@ and abns@"),
        ("abns@a b", "more than an address", "bind_options"),
        ("198.51.100.2:４４３", "not a port", "1 to 65535"),
    ],
)
def test_what_is_wrong_with_a_bind_is_said_with_a_remedy(
    text: str, message: str, remedy: str
) -> None:
    with pytest.raises(NotAnAddress) as caught:
        parse_bind(text)
    assert message in str(caught.value)
    assert remedy in caught.value.remedy


@given(st.text(max_size=60))
def test_a_bind_prints_only_harmless_characters(text: str) -> None:
    try:
        printed = str(parse_bind(text))
    except NotAnAddress:
        return
    assert not set(printed) & set(" \t\n\r\0'\"\\#$%,{}()")
    assert parse_bind(printed) == parse_bind(text)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("10.0.0.254:53", "10.0.0.254:53"),
        ("10.0.0.254", "10.0.0.254:53"),
        ("tcp://10.0.0.254:5353", "tcp://10.0.0.254:5353"),
        ("udp://[fd00::a]", "udp://[fd00::a]:53"),
        ("[fd00::a]:53", "[fd00::a]:53"),
        ("fd00::a", "[fd00::a]:53"),
    ],
)
def test_nameserver(text: str, printed: str) -> None:
    assert str(parse_nameserver(text)) == printed


@pytest.mark.parametrize("text", ["dns.example", "https://10.0.0.1", "10.0.0.1:x", "fe80::1%eth0"])
def test_not_a_nameserver(text: str) -> None:
    with pytest.raises(NotAnAddress):
        parse_nameserver(text)


def test_network_with_host_bits_is_told_what_may_be_meant() -> None:
    with pytest.raises(NotAnAddress) as caught:
        parse_network("10.1.2.3/16")
    assert "10.1.0.0/16 may be meant" in caught.value.remedy


@pytest.mark.parametrize(
    ("one", "other", "overlaps"),
    [
        ("*:443", "198.51.100.2:443", True),
        ("[::]:443", "198.51.100.2:443", True),
        ("*:443", "[2001:db8::1]:443", False),
        ("198.51.100.2:443", "198.51.100.2:444", False),
        ("unix@/a", "unix@/a", True),
        ("unix@/a", "abns@a", False),
    ],
)
def test_overlap(one: str, other: str, overlaps: bool) -> None:
    first, second = parse_bind(one), parse_bind(other)
    assert first.overlaps(second) is overlaps
    assert second.overlaps(first) is overlaps


def test_bind_is_a_value() -> None:
    assert parse_bind("127.0.0.1:80") == Bind("ip", "127.0.0.1", 80)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        (":::8282", "[::]:8282"),
        ("::1:80", "[::1]:80"),
        ("2a02:238:f030::1000:443", "[2a02:238:f030::1000]:443"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("ipv6@:80", "[::]:80"),
        ("ipv6@*:80", "[::]:80"),
        ("ipv6@::1:80", "[::1]:80"),
        ("ipv4@*:80", "*:80"),
        ("ipv4@192.0.2.1:80", "192.0.2.1:80"),
        (":80", "*:80"),
        ("*:80", "*:80"),
        ("192.0.2.1:80", "192.0.2.1:80"),
        ("unix@/run/x", "unix@/run/x"),
        ("localhost:80", "localhost:80"),
        ("abns@x:80", "abns@x:80"),
    ],
)
def test_binds_as_haproxy_accepts_them(text: str, bind: str) -> None:
    assert normal_bind(text) == bind
