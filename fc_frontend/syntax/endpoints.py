"""Parse the address of a `bind` line as HAProxy does, into canonical form.

Follows `str2listener`, `str2sa_range` and `str2ip2` of HAProxy's source (src/cfgparse.c and
src/tools.c, 2.6 to 3.x); tests/hostile/test_binds.py compares it with HAProxy's actual listeners.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from fc_frontend.syntax.words import Word

MAX_SOCKET_PATH = 95
"""Bytes.  HAProxy binds `PATH.PID.tmp` and renames it.  Of the 107 bytes that Linux allows, 12 are
reserved for the suffix with a process ID of 7 digits (`kernel.pid_max`).  HAProxy's own check
leaves room for only 5 digits; beyond that, the bind fails at a reload."""
MAX_ABSTRACT_NAME = 107
"""Bytes."""

_TAKES_VALUE = frozenset(
    """
    accept-netscaler-cip alpn backlog ca-file ca-ignore-err ca-sign-file ca-sign-pass ca-verify-file
    cc ciphers ciphersuites client-sigalgs crl-file crt crt-ignore-err crt-list curves default-crt
    ecdhe ech expose-fd gid group guid-prefix id idle-ping interface ktls label level maxconn mode
    mss name namespace nbconn nice npn ocsp-update process proto quic-cc-algo quic-socket
    severity-output shards sigalgs ssl-max-ver ssl-min-ver tcp-md5sig tcp-ss tcp-ut thread
    tls-ticket-keys uid user verify
    """.split()
)
"""Bind options that take a value (`haproxy -dKall`); all others take none."""

_MAPPED = "::ffff:"
_PORTS = re.compile(r"0*([0-9]{1,5})(?:-0*([0-9]{1,5}))?")


class Family(StrEnum):
    """The address family of a socket; the values are HAProxy's prefixes."""

    IP = "ip"
    UNIX = "unix"
    ABSTRACT = "abns"
    """A name in the abstract namespace, padded with NUL to its full length."""
    ABSTRACT_SHORT = "abnsz"
    """The same without padding (since 3.1), which is a different name."""


@dataclass(frozen=True, slots=True)
class ListenEndpoint:
    """The address on which a socket listens.

    `host` is a canonical IP address, `*` for all of IPv4 or `::` for all of IPv6; or a path; or an
    abstract name.  A port range extends from `port` to `last_port`; both are 0 without a port.
    `is_datagram` is true for UDP (including QUIC) and UNIX datagrams.

    `ipv4` and `ipv6` are the addresses whose connections it accepts: `*` or `::` for all, None for
    none.  An IPv4-mapped address such as `::ffff:192.0.2.1` accepts IPv4 connections.
    """

    family: Family
    host: str
    port: int = 0
    last_port: int = 0
    is_datagram: bool = False
    interface: str = ""
    namespace: str = ""
    v6only: bool = False
    transparent: bool = False
    ipv4: str | None = None
    ipv6: str | None = None

    def __str__(self) -> str:
        if self.family is not Family.IP:
            return f"{self.family}@{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        ports = f"{self.port}-{self.last_port}" if self.last_port > self.port else str(self.port)
        return f"{'udp@' if self.is_datagram else ''}{host}:{ports}"

    @property
    def ports(self) -> range:
        """The ports; only 0 for an endpoint without a port."""
        return range(self.port, self.last_port + 1)


class NotAnEndpoint(ValueError):
    """An address that HAProxy refuses, or that is unknown before HAProxy runs; with a remedy."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """The bind options that affect where HAProxy listens."""

    interface: str = ""
    namespace: str = ""
    v6only: bool = False
    transparent: bool = False


def takes_value(option: str) -> bool:
    """Return whether a bind option takes a value."""
    return option in _TAKES_VALUE


def read_options(words: Sequence[Word]) -> ListenOptions:
    """Return the options in the words after the address.  Raises NotAnEndpoint.

    If an option is repeated, HAProxy uses the last value.  `v6only` takes precedence over `v4v6`
    (`sock_inet_bind_receiver`).
    """
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        option = rest.pop(0)
        if option.variable:
            raise NotAnEndpoint(
                f"{option.source} stands for a bind option",
                "write the option itself: fc-frontend cannot see what the variable contains",
            )
        value = rest.pop(0) if takes_value(option.text) and rest else None
        if value is not None and value.variable:
            if "[*]" in value.text:
                raise NotAnEndpoint(
                    f"{value.source} may become several bind options",
                    "write the options themselves",
                )
            if option.text in ("interface", "namespace"):
                raise NotAnEndpoint(
                    f"the {option.text} {value.source} is a variable",
                    "write its name: fc-frontend cannot see what the variable contains",
                )
        found[option.text] = value.text if value else ""
    return ListenOptions(
        interface=found.get("interface", ""),
        namespace=found.get("namespace", ""),
        v6only="v6only" in found,
        transparent="transparent" in found,
    )


def read_endpoints(
    text: str, options: ListenOptions, *, datagram: bool = False
) -> tuple[ListenEndpoint | None, ...]:
    """Return the endpoints in the address word of a bind line, which may be a list with commas.

    Set `datagram` for `dgram-bind`.  The result contains None for an address that HAProxy accepts
    without listening anywhere (`rhttp@`).  Raises NotAnEndpoint.
    """
    if "$" in text:
        # HAProxy expands variables in addresses regardless of quotes (`env_expand`).
        raise NotAnEndpoint(
            f"{text!r} is an address with a variable",
            "write the address itself: fc-frontend cannot see what the variable contains",
        )
    found: list[ListenEndpoint | None] = []
    rest = text
    while rest:
        one, _, rest = rest.partition(",")
        found.append(_endpoint(one, options, datagram))
    if not found:
        raise NotAnEndpoint("there is no address", "write address:port")
    return tuple(found)


_TRANSPORTS = {"stream+": False, "dgram+": True, "quic+": True}
_STREAM, _DATAGRAM, _EITHER = False, True, None
_FAMILIES: dict[str, tuple[Family, str, bool | None]] = {
    "unix@": (Family.UNIX, "", _EITHER),
    "uxst@": (Family.UNIX, "", _STREAM),
    "uxdg@": (Family.UNIX, "", _DATAGRAM),
    "abns@": (Family.ABSTRACT, "", _EITHER),
    "abnsz@": (Family.ABSTRACT_SHORT, "", _EITHER),
    "ip@": (Family.IP, "", _EITHER),
    "ipv4@": (Family.IP, "4", _EITHER),
    "ipv6@": (Family.IP, "6", _EITHER),
    "tcp@": (Family.IP, "", _STREAM),
    "tcp4@": (Family.IP, "4", _STREAM),
    "tcp6@": (Family.IP, "6", _STREAM),
    "mptcp@": (Family.IP, "", _STREAM),
    "mptcp4@": (Family.IP, "4", _STREAM),
    "mptcp6@": (Family.IP, "6", _STREAM),
    "udp@": (Family.IP, "", _DATAGRAM),
    "udp4@": (Family.IP, "4", _DATAGRAM),
    "udp6@": (Family.IP, "6", _DATAGRAM),
    "quic4@": (Family.IP, "4", _DATAGRAM),
    "quic6@": (Family.IP, "6", _DATAGRAM),
}
_QUIC = ("quic+", "quic4@", "quic6@")
"""Datagrams on the network, but streams to HAProxy: used with `bind`, not with `dgram-bind`."""


def _endpoint(text: str, options: ListenOptions, datagram: bool) -> ListenEndpoint | None:
    """Return the endpoint of one address of a list; None for `rhttp@`."""
    if not datagram and text[:1] != "/" and "@" not in text and "+" not in text:
        return _ip_endpoint(text, "", text, options, False)
    rest = text
    is_datagram, is_quic = datagram, False
    transport = next((each for each in _TRANSPORTS if rest.startswith(each)), "")
    if transport:
        rest = rest[len(transport) :]
        is_datagram, is_quic = _TRANSPORTS[transport], transport in _QUIC
    if rest.startswith(("fd@", "sockpair@")):
        raise NotAnEndpoint(
            f"{text!r} is a file descriptor that HAProxy inherits",
            "write an address: the descriptor can be neither compared nor tried before a reload",
        )
    if rest.startswith("rhttp@"):
        return None
    prefix = next((each for each in _FAMILIES if rest.startswith(each)), "")
    family, version, fixed = _FAMILIES[prefix] if prefix else (Family.IP, "", _EITHER)
    if not prefix and rest.startswith("/"):
        family = Family.UNIX
    rest = rest[len(prefix) :]
    if fixed is not _EITHER:
        is_datagram, is_quic = fixed, prefix in _QUIC
    if (is_datagram and not is_quic) is not datagram:
        raise NotAnEndpoint(
            f"{text!r} is an address for {'datagrams' if is_datagram else 'streams'}",
            "use `dgram-bind` in a log-forward section for datagrams, and `bind` for streams",
        )
    if family is Family.IP:
        return _ip_endpoint(rest, version, text, options, is_datagram)
    if family is Family.UNIX:
        return ListenEndpoint(family, _checked_path(rest, text), is_datagram=is_datagram)
    if not rest or len(_bytes(rest)) > MAX_ABSTRACT_NAME:
        raise NotAnEndpoint(
            f"{text!r} is not an abstract name", f"give 1 to {MAX_ABSTRACT_NAME} bytes after the @"
        )
    return ListenEndpoint(family, rest, is_datagram=is_datagram)


def _checked_path(path: str, text: str) -> str:
    """Return `path` if it can name a socket; a global `unix-bind prefix` is prepended later."""
    if path.rpartition("/")[2] in ("", ".", ".."):
        raise NotAnEndpoint(
            f"{text!r} names a directory, not a socket", "end the path with the socket's name"
        )
    return path


def located_path(path: str) -> str:
    """Return `path`, including any prefix, if it can be compared and bound.

    Raises NotAnEndpoint.
    """
    if not path.startswith("/"):
        raise NotAnEndpoint(
            f"{path!r} is a relative path",
            "write an absolute one: HAProxy would use the directory it was started in",
        )
    if len(_bytes(path)) > MAX_SOCKET_PATH:
        raise NotAnEndpoint(
            f"the path {path!r} is too long for a socket of HAProxy's",
            f"give at most {MAX_SOCKET_PATH} bytes: HAProxy appends its process number while it "
            "binds",
        )
    return path


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _ip_endpoint(
    rest: str, version: str, text: str, options: ListenOptions, is_datagram: bool
) -> ListenEndpoint:
    at = max(rest.rfind(":"), rest.rfind("]"))
    if at < 0 or rest[at] == "]":
        raise NotAnEndpoint(f"{text!r} has no port", "write address:port, such as 192.0.2.1:443")
    host = _host(rest[:at], version, text)
    first, last = _ports(rest[at + 1 :], text)
    is_ipv6 = ":" in host
    v6only = options.v6only and is_ipv6
    ipv4: str | None = host
    if is_ipv6:
        ipv4 = None if host != "::" or v6only else "*"
        if host.startswith(_MAPPED):
            ipv4, is_ipv6 = _ipv4(IPv4Address(host.removeprefix(_MAPPED))), False
    return ListenEndpoint(
        Family.IP,
        host,
        first,
        last,
        is_datagram,
        options.interface,
        options.namespace,
        v6only,
        options.transparent,
        ipv4,
        host if is_ipv6 else None,
    )


def _ports(text: str, whole: str) -> tuple[int, int]:
    """Return the first and the last port.

    HAProxy parses them with atoi() (2.6, 2.8) or strtol(): some versions accept `80x` and
    4294967376 as 80.  These are refused here.
    """
    match = _PORTS.fullmatch(text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if 1 <= first <= last <= 65535:
            return first, last
    raise NotAnEndpoint(
        f"{text!r} in {whole!r} is not a port", "give a number from 1 to 65535, or a range 80-90"
    )


def _host(text: str, version: str, whole: str) -> str:
    """Return the canonical address; `version` is the IP version that a prefix requires, 4 or 6."""
    host = text
    if host.startswith("["):
        if not host.endswith("]") or not 4 <= len(host) < 48:
            raise NotAnEndpoint(f"{whole!r} has wrong brackets", "write [2001:db8::1]:443")
        host = host[1:-1]
    if host == "::" and version != "4":
        return "::"
    if host in ("", "*"):
        return "::" if version == "6" else "*"
    try:
        if ":" in host and "%" not in host and version != "4":
            ipv6 = IPv6Address(host)
            mapped = ipv6.ipv4_mapped
            return str(ipv6) if mapped is None else f"{_MAPPED}{mapped}"
        if version != "6":
            return _ipv4(IPv4Address(host))
    except ValueError:
        pass
    raise NotAnEndpoint(
        f"{host!r} in {whole!r} is not an IP address",
        "write the address: what a name resolves to when HAProxy starts is not known before",
    )


def _ipv4(address: IPv4Address) -> str:
    return "*" if address == IPv4Address(0) else str(address)
