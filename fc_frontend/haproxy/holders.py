"""Find the processes that hold the sockets of this host, from /proc.

On a busy frontend most sockets are connections.  A general socket listing would describe each of
them, which takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from fc_frontend.syntax.endpoints import Family, ListenEndpoint
from fc_frontend.text import printable

_ACCEPTS = 0x10000
"""__SO_ACCEPTCON in the flags of /proc/net/unix: the socket listens."""
_TABLES = "/proc/thread-self/net"
"""The sockets in the network namespace of the calling thread."""
_DATAGRAM = 2
"""SOCK_DGRAM in the types of /proc/net/unix."""
_LISTENING, _UNCONNECTED = "0A", "07"
"""The states of TCP and UDP sockets that accept connections or datagrams from any peer."""
_TEMPORARY = re.compile(r"\.\d+\.tmp$")
"""/proc lists HAProxy's sockets by the temporary names under which they were bound."""
ABSTRACT_LENGTH = 108
"""Length of a full abstract name, including its first NUL."""


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A socket that accepts connections or datagrams: `name` is a canonical address or a path."""

    name: str
    port: int
    inode: int
    is_datagram: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """The holders of an endpoint.

    `others` are processes that are not HAProxy's, with their PIDs.  `is_hidden` is set if this user
    may not see a holder.
    """

    by_haproxy: bool = False
    others: tuple[str, ...] = ()
    is_hidden: bool = False


def holding(
    endpoints: Iterable[ListenEndpoint], *, owned_by: frozenset[int]
) -> dict[ListenEndpoint, Holding]:
    """Return the current holders of each endpoint; nothing is bound.

    `owned_by` are HAProxy's processes.
    """
    holders = Holders(owned_by)
    return {endpoint: holders.holding(endpoint) for endpoint in endpoints}


def takes(endpoint: ListenEndpoint, address: str) -> bool:
    """Return whether `endpoint` surely collides with a socket on `address` and the same port."""
    host = kernel_host(endpoint)
    if host == address:
        return True
    if (":" in host) == (":" in address):
        wildcard = "::" if ":" in host else "0.0.0.0"  # noqa: S104
        return wildcard in (host, address)
    return host == "::" and not endpoint.v6only


def kernel_host(endpoint: ListenEndpoint) -> str:
    """Return the address of an IP endpoint in the format of /proc."""
    if endpoint.ipv4 == "*" and endpoint.ipv6 is None:
        return "0.0.0.0"  # noqa: S104 - as HAProxy does
    return endpoint.ipv6 or endpoint.ipv4 or endpoint.host


def place(path: str) -> Hashable:
    """Return the identity of a socket's path: its directory on disk, and its name in it.

    It is equal for all paths to the same entry, through links, `..` or bind mounts.  The last
    component is not followed, because HAProxy renames its socket over it.
    """
    directory, _, name = path.rpartition("/")
    try:
        found = Path(directory or "/").stat()
    except (OSError, ValueError):
        return os.path.normpath(path)
    return found.st_dev, found.st_ino, name


def final_name(held: BoundSocket) -> str:
    """Return the path of a UNIX socket after HAProxy has renamed it."""
    return _TEMPORARY.sub("", held.name)


class Holders:
    """The sockets of this host and the processes that hold them, each looked up at most once.

    `owned_by` are HAProxy's processes, which hand their sockets over in a reload.
    """

    def __init__(self, owned_by: frozenset[int]) -> None:
        self._owned_by = owned_by
        self._pids: dict[int, set[int]] = {}

    @cached_property
    def ip(self) -> tuple[BoundSocket, ...]:
        """The listening TCP sockets, and the UDP sockets without a peer."""
        found = (
            *_ip_sockets(("tcp", "tcp6"), _LISTENING, is_datagram=False),
            *_ip_sockets(("udp", "udp6"), _UNCONNECTED, is_datagram=True),
        )
        self._find_pids({one.inode for one in found})
        return found

    @cached_property
    def unix(self) -> tuple[BoundSocket, ...]:
        """The listening UNIX sockets, and the named UNIX sockets for datagrams."""
        found = tuple(_unix_sockets())
        self._find_pids({one.inode for one in found})
        return found

    def on(self, endpoint: ListenEndpoint) -> list[BoundSocket]:
        """Return the sockets with the port of an IP endpoint, or the path or name of another."""
        if endpoint.family is Family.IP:
            return [
                one
                for one in self.ip
                if one.is_datagram is endpoint.is_datagram and one.port in endpoint.ports
            ]
        if endpoint.family is Family.UNIX:
            wanted, name = place(endpoint.host), endpoint.host.rpartition("/")[2]
            return [
                one
                for one in self.unix
                if (bound := final_name(one)).rpartition("/")[2] == name
                and (bound == endpoint.host or place(bound) == wanted)
            ]
        shown = shown_name(endpoint)
        return [one for one in self.unix if one.name == shown]

    def holding(self, endpoint: ListenEndpoint) -> Holding:
        """Return the holders of `endpoint`."""
        found = self.on(endpoint)
        if endpoint.family is Family.IP:
            host = kernel_host(endpoint)
            # A socket on this exact address gets the connections, whoever holds the wildcard.
            found = (
                [one for one in found if one.name == host]
                or [one for one in found if takes(endpoint, one.name)]
                or [one for one in found if one.name == "::" and ":" not in host]
            )
        foreign = self.foreign(found)
        pids = sorted({pid for one in foreign for pid in self.pids(one)})
        return Holding(
            by_haproxy=len(foreign) < len(found),
            others=tuple(f"{process_name(pid)} (process {pid})" for pid in pids),
            is_hidden=any(not self.pids(one) for one in foreign),
        )

    def foreign(self, sockets: Iterable[BoundSocket]) -> list[BoundSocket]:
        """Return those of `sockets` that no process of HAProxy holds."""
        return [one for one in sockets if not any(self._owned(pid) for pid in self.pids(one))]

    def pids(self, held: BoundSocket) -> set[int]:
        """Return the processes that hold a socket, as far as this user may see them."""
        return self._pids.get(held.inode, set())

    def _owned(self, pid: int) -> bool:
        # Include workers that the master has started since `owned_by` was determined.
        return pid in self._owned_by or _parent(pid) in self._owned_by

    def _find_pids(self, inodes: set[int]) -> None:
        """Find the holders of `inodes`; scan other processes only for those not HAProxy's."""
        for pid in self._owned_by:
            self._note(pid, inodes)
        missing = inodes - self._pids.keys()
        if not missing:
            return
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) not in self._owned_by:
                self._note(int(entry.name), missing)

    def _note(self, pid: int, inodes: set[int]) -> None:
        # Processes and descriptors may disappear during the scan, and some are not visible.
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    # Not pathlib: HAProxy may have 100,000 of these.
                    link = os.readlink(descriptor.path)  # noqa: PTH115
                    if link.startswith("socket:[") and (inode := int(link[8:-1])) in inodes:
                        self._pids.setdefault(inode, set()).add(pid)


def abstract_address(endpoint: ListenEndpoint) -> bytes:
    """Return the address that HAProxy binds for `abns@` and `abnsz@` names (manual 5.1)."""
    name = b"\0" + os.fsencode(endpoint.host)
    return name if endpoint.family is Family.ABSTRACT_SHORT else name.ljust(ABSTRACT_LENGTH, b"\0")


def shown_name(endpoint: ListenEndpoint) -> str:
    """Return an abstract name in the format of /proc/net/unix, where each NUL is an @."""
    return os.fsdecode(abstract_address(endpoint).replace(b"\0", b"@"))


def process_name(pid: int) -> str:
    """Return the printable name of a process; the process may have set any bytes."""
    try:
        return printable(Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape").strip())
    except OSError:
        return "a program"


def _ip_sockets(tables: Iterable[str], state: str, *, is_datagram: bool) -> Iterator[BoundSocket]:
    """Yield the sockets in a state.  The kernel's tables list listeners before connections."""
    for table in tables:
        with contextlib.suppress(FileNotFoundError), Path(f"{_TABLES}/{table}").open() as rows:
            next(rows)
            for row in rows:
                words = row.split(None, 10)
                if words[3] == state:
                    address, _, port = words[1].partition(":")
                    yield BoundSocket(_plain(address), int(port, 16), int(words[9]), is_datagram)
                elif not is_datagram:
                    break


def _unix_sockets() -> Iterator[BoundSocket]:
    with Path(f"{_TABLES}/unix").open(errors="surrogateescape") as rows:
        next(rows)
        for row in rows:
            words = row.rstrip("\n").split(None, 7)
            if len(words) == 8:
                is_datagram = int(words[4], 16) == _DATAGRAM
                if is_datagram or int(words[3], 16) & _ACCEPTS:
                    yield BoundSocket(words[7], 0, int(words[6]), is_datagram)


def _plain(words: str) -> str:
    """Return the canonical form of an address in /proc/net/tcp: 32-bit words, host byte order."""
    parts = (int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    address = ip_address(b"".join(parts))
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
