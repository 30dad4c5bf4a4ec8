"""Parse addresses from the configuration into values that are safe in haproxy.cfg.

HAProxy expands environment variables and splits at commas inside addresses (manual 2.4 and 5.1), so
every address in haproxy.cfg is parsed and formatted again here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

from fc_frontend.plan.model import Address, Bind, BindRange, Nameserver, Network, Transport
from fc_frontend.syntax.endpoints import MAX_SOCKET_PATH

PATH_LETTERS = r"A-Za-z0-9._+@=~/-"
"""The content of a character class in a regular expression."""
SAFE_PATH = re.compile(rf"/[{PATH_LETTERS}]+")
_ABSTRACT_NAME = re.compile(r"[A-Za-z0-9._@/-]{1,97}")
_PORT = re.compile(r"[0-9]{1,5}")


class NotAnAddress(ValueError):
    """A text that is not a valid address, with the remedy."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def parse_port(text: str, whole: str) -> int:
    """Parse a port from 1 to 65535.  Raises NotAnAddress."""
    if re.fullmatch(r"[0-9]+-[0-9]+", text):
        raise NotAnAddress(
            f"{whole!r} is a range of ports", "give one port, and a line for each further one"
        )
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise NotAnAddress(
            f"{text!r} in {whole!r} is not a port", "give a number from 1 to 65535 after the colon"
        )
    return int(text)


def parse_address(text: str) -> Address:
    """Parse an IPv4 or IPv6 address without a zone.  Raises NotAnAddress."""
    try:
        if "%" in text:
            raise ValueError
        return ip_address(text)
    except ValueError:
        raise NotAnAddress(f"{text!r} is not an IP address", _address_remedy(text)) from None


def _address_remedy(text: str) -> str:
    if "%" in text:
        return "leave out the zone (from the % on)"
    shorter = re.sub(":{3,}", "::", text)
    if shorter != text:
        try:
            return f"'::' takes two colons, once: {ip_address(shorter)} may be meant"
        except ValueError:
            pass
    if text.count("::") > 1:
        return "'::' may stand only once in an IPv6 address"
    if ":" in text:
        return "an IPv6 address has up to eight groups of hexadecimal digits, and one '::' at most"
    return "give an address such as 198.51.100.2 or 2001:db8::1, not a name"


def parse_network(text: str) -> Network:
    """Parse an IPv4 or IPv6 network such as 10.1.0.0/16.  Raises NotAnAddress."""
    try:
        if "%" in text:
            raise ValueError
        return ip_network(text)
    except ValueError:
        remedy = "write an address and a prefix length, such as 10.1.0.0/16"
        try:
            loose: IPv4Network | IPv6Network = ip_network(text, strict=False)
            remedy = f"the bits after the prefix must be zero: {loose} may be meant"
        except ValueError:
            pass
        raise NotAnAddress(f"{text!r} is not a network", remedy) from None


def _split_host_port(text: str, *, default_port: str | None = None) -> tuple[str, str]:
    """Return host and port of `host:port` or `[v6]:port`, neither of them validated."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise NotAnAddress(f"{text!r} has no closing bracket", "write [2001:db8::1]:443")
        if not rest and default_port is not None:
            return host, default_port
        if not rest.startswith(":"):
            raise NotAnAddress(f"{text!r} has no port", f"write [{host}]:443")
        if ":" not in host:
            raise NotAnAddress(
                f"{host!r} in brackets is not an IPv6 address", f"write {host}{rest}"
            )
        return host, rest[1:]
    host, colon, port = text.rpartition(":")
    if not colon:
        if default_port is not None:
            return text, default_port
        raise NotAnAddress(f"{text!r} has no port", "write address:port, such as 198.51.100.2:443")
    if ":" in host:
        if default_port is not None:
            return text, default_port
        bare = host or "::"
        raise NotAnAddress(
            f"{text!r} has an IPv6 address without brackets",
            f"write [{bare}]:{port or '443'}",
        )
    return host, port


def parse_bind(text: str) -> Bind:
    """Parse a bind address (HAProxy manual 5.1).  Raises NotAnAddress.

    Accepts IPv4 and bracketed IPv6 with a port, `*:port`, `unix@/path` and `abns@name`.
    """
    if len(text.split()) > 1:
        raise NotAnAddress(
            f"{text!r} has more than an address",
            "give the address only; words such as 'ssl crt …' belong into bind_options",
        )
    if "," in text:
        raise NotAnAddress(f"{text!r} has several addresses", "give each its own entry in binds")
    kind, at, rest = text.partition("@")
    if at and kind == "unix":
        if not SAFE_PATH.fullmatch(rest) or len(rest) > MAX_SOCKET_PATH:
            raise NotAnAddress(
                f"{rest!r} is not a path for a socket",
                f"give an absolute path of at most {MAX_SOCKET_PATH} letters, digits and ._+@=~/-",
            )
        return Bind("unix", rest)
    if at and kind == "abns":
        if not _ABSTRACT_NAME.fullmatch(rest):
            raise NotAnAddress(
                f"{rest!r} is not a name for an abstract socket",
                "give up to 97 letters, digits and ._@/-",
            )
        return Bind("abns", rest)
    if text.startswith("/"):
        raise NotAnAddress(f"{text!r} is a path", f"write unix@{text} for a UNIX socket")
    if at:
        raise NotAnAddress(
            f"{text!r} has an unknown prefix {kind!r}", "known ones are unix@ and abns@"
        )
    host, port = _split_host_port(text)
    if host in ("", "*"):
        return Bind("ip", "*", parse_port(port, text))
    try:
        address = parse_address(host)
    except NotAnAddress as exc:
        shorter = re.sub(":{3,}", "::", host)
        if shorter != host and _is_address(shorter):
            raise NotAnAddress(
                f"{host!r} is not a valid IPv6 address: it has three colons in a row",
                f"write [{shorter}]:{port}",
            ) from None
        raise NotAnAddress(f"{text!r}: {exc}", exc.remedy) from None
    canonical = "*" if address == IPv4Address(0) else str(address)
    return Bind("ip", canonical, parse_port(port, text))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def normal_bind(text: str) -> str:
    """Convert an IP bind that HAProxy accepts (manual 11.1) to the notation of `parse_bind`.

    HAProxy needs no brackets for IPv6, as in `:::80`: the port follows the last colon.  `ipv4@`
    and `ipv6@` set the family of a wildcard.  Any other text is returned unchanged.
    """
    family, at, rest = text.rpartition("@")
    if at and family not in ("ipv4", "ipv6"):
        return text
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port:
        return text
    if host in ("", "*"):
        return f"[::]:{port}" if family == "ipv6" else f"*:{port}"
    if ":" in host and _is_address(host):
        return f"[{host}]:{port}"
    return rest if _is_address(host) else text


def parse_bind_range(text: str) -> BindRange:
    """Parse addresses and ports such as `198.51.100.0/28:1024-65535` or `[2001:db8::1]:443`.

    The address may be a network, or `*` for all; the port may be a range.  Raises NotAnAddress.
    """
    host, ports = _split_host_port(text)
    network = None
    if host != "*":
        try:
            network = parse_network(host)
        except NotAnAddress as exc:
            raise NotAnAddress(f"{text!r}: {exc}", exc.remedy) from None
    first, _, last = ports.partition("-")
    low = parse_port(first, text)
    high = parse_port(last, text) if last else low
    if low > high or ports.endswith("-"):
        raise NotAnAddress(
            f"{ports!r} in {text!r} is not a range of ports", "write the lower port first: 80-443"
        )
    return BindRange(network, low, high)


def parse_nameserver(text: str) -> Nameserver:
    """Parse a nameserver: `10.0.0.254:53`, `[v6]:53`, or with a `tcp://` or `udp://` prefix.

    Without a scheme both transports are used; without a port, 53.  Raises NotAnAddress.
    """
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme not in ("tcp", "udp"):
        raise NotAnAddress(f"{text!r} has an unknown scheme", "use tcp:// or udp://, or none")
    transports = (Transport(scheme),) if separator else (Transport.UDP, Transport.TCP)
    host, port = _split_host_port(rest, default_port="53")
    try:
        address = parse_address(host)
    except NotAnAddress as exc:
        raise NotAnAddress(
            f"{text!r}: {exc}", "give the nameserver's address, such as 10.0.0.254:53"
        ) from None
    return Nameserver(address, parse_port(port, text), transports)


@lru_cache(maxsize=65536)
def is_within(text: str, networks: tuple[Network, ...]) -> bool:
    """Return whether the address `text` is in one of `networks`, and can be the address of a pod.

    Loopback, link-local, multicast and unspecified addresses match only a network that consists of
    them.  Cached: a sweep checks the same addresses every second.
    """
    address = ip_address(text)
    return any(
        address.version == network.version
        and address in network
        and (not _is_special(address) or _is_special(network))
        for network in networks
    )


def _is_special(of: Address | Network) -> bool:
    """Return whether an address or network is loopback, link-local, multicast or unspecified."""
    return of.is_loopback or of.is_link_local or of.is_multicast or of.is_unspecified
