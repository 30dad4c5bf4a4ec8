"""Try what `haproxy -c` does not: whether binds can be taken and file descriptors suffice.

Either one makes a reload fail that was judged good, and a bind that cannot be taken pauses all
listeners for 2 s before HAProxy gives up.  Trying must never disturb who listens: a socket is
bound and closed, never made to listen, so no connection can reach it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from fc_frontend.errors import Problem
from fc_frontend.plan.model import Bind

RESERVED = 64
_ABSTRACT_LENGTH = 108
"""HAProxy binds abstract names with all of `sun_path`, padded with NUL (manual 5.1, `abns@`)."""

_ACCEPTS = 0x10000
"""__SO_ACCEPTCON in the flags of /proc/net/unix: it listens."""

_CAP_SYS_RESOURCE = 24
_TEMPORARY = re.compile(r"\.\d+\.tmp$")
_OURS_TO_SOLVE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class _Listener:
    """A listening socket of this host: `name` is a canonical address or a path."""

    name: str
    port: int | None
    inode: int


class _Listeners:
    """Who listens on this host, looked up at most once and only if there is a conflict.

    Read from /proc by ourselves: on a busy frontend most sockets are connections, and of these a
    general list of sockets would describe each one, for seconds.
    """

    def __init__(self, owned_by: frozenset[int]) -> None:
        self._owned_by = owned_by
        self._tcp: tuple[_Listener, ...] | None = None
        self._unix: tuple[_Listener, ...] | None = None
        self._pids: dict[int, set[int]] = {}

    @property
    def tcp(self) -> tuple[_Listener, ...]:
        if self._tcp is None:
            self._tcp = tuple(_tcp_listeners())
            self._find_pids({listener.inode for listener in self._tcp})
        return self._tcp

    @property
    def unix(self) -> tuple[_Listener, ...]:
        if self._unix is None:
            self._unix = tuple(_unix_listeners())
            self._find_pids({listener.inode for listener in self._unix})
        return self._unix

    def foreign(self, listeners: Iterable[_Listener]) -> list[_Listener]:
        """Those of `listeners` that no process of HAProxy holds."""
        return [
            listener
            for listener in listeners
            if not any(self._owned(pid) for pid in self.pids(listener))
        ]

    def pids(self, listener: _Listener) -> set[int]:
        """The processes that hold `listener`, as far as we may see them."""
        return self._pids.get(listener.inode, set())

    def _owned(self, pid: int) -> bool:
        # A worker that the master has started since `owned_by` was asked counts too.
        return pid in self._owned_by or _parent(pid) in self._owned_by

    def _find_pids(self, inodes: set[int]) -> None:
        """Note who holds `inodes`; what HAProxy holds needs no look at other processes."""
        for pid in self._owned_by:
            self._note(pid, inodes)
        missing = inodes - self._pids.keys()
        if not missing:
            return
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) not in self._owned_by:
                self._note(int(entry.name), missing)

    def _note(self, pid: int, inodes: set[int]) -> None:
        # Processes and descriptors come and go under our eyes, and some we may not look at.
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    # Not pathlib: HAProxy may have 100,000 of these.
                    link = os.readlink(descriptor.path)  # noqa: PTH115
                    if link.startswith("socket:[") and (inode := int(link[8:-1])) in inodes:
                        self._pids.setdefault(inode, set()).add(pid)


def check_binds(
    binds: Iterable[Bind],
    *,
    owned_by: frozenset[int],
    v6only: frozenset[Bind] = frozenset(),
) -> tuple[Problem, ...]:
    """What keeps HAProxy from taking `binds`, each of which is really tried.

    `owned_by` are the processes that hand their sockets over in a reload: HAProxy's master and
    workers (`Processes.pids`).  `v6only` are the binds with that option; `[::]` takes IPv4 as well
    without it.  Binds with `transparent`, `interface` or `namespace` follow other rules: leave
    them out.

    A holder that this user may not see counts as foreign.  Without root, HAProxy's own are among
    these: give only the binds then that the running configuration does not have.  Ports for which
    we lack the privilege are only compared with who listens; what else we may not do and HAProxy
    may, gives no problem.

    Binding is enough to find a conflict, measured on Linux: where another socket listens, bind()
    with SO_REUSEADDR gives EADDRINUSE, with the same results for all pairs of address, wildcard
    and family as bind() with listen().  A holder that shares by SO_REUSEPORT would let HAProxy in
    and take part of the traffic; as we do not set that option, it is found too.
    """
    listeners = _Listeners(owned_by)
    problems = []
    for bind in dict.fromkeys(binds):
        if bind.kind == "ip":
            problem = _check_ip(bind, bind in v6only, listeners)
        elif bind.kind == "unix":
            problem = _check_unix(bind, listeners)
        else:
            problem = _check_abstract(bind, listeners)
        if problem is not None:
            problems.append(problem)
    return tuple(problems)


@dataclass(frozen=True, slots=True)
class Holding:
    """Who listens on a bind.  `others` are processes that are not HAProxy's, with their numbers.

    `is_hidden` if somebody listens whom this user may not see.
    """

    by_haproxy: bool = False
    others: tuple[str, ...] = ()
    is_hidden: bool = False


def holding(
    binds: Iterable[Bind],
    *,
    owned_by: frozenset[int],
    v6only: frozenset[Bind] = frozenset(),
) -> dict[Bind, Holding]:
    """Who listens on each of `binds` now; nothing is tried.

    `owned_by` are HAProxy's processes, as for `check_binds`.
    """
    listeners = _Listeners(owned_by)
    return {bind: _holding(bind, bind in v6only, listeners) for bind in binds}


def _holding(bind: Bind, v6only: bool, listeners: _Listeners) -> Holding:
    if bind.kind == "ip":
        host = _host(bind)
        same_port = [listener for listener in listeners.tcp if listener.port == bind.port]
        exact = [listener for listener in same_port if listener.name == host]
        # What listens on this very address gets the connections, whoever has the wildcard.
        found = exact or [one for one in same_port if _takes(host, v6only, one.name)]
        if not found and ":" not in host:
            found = [listener for listener in same_port if listener.name == "::"]
    elif bind.kind == "unix":
        # HAProxy's sockets are known by the temporary names under which they were bound.
        found = [
            listener
            for listener in listeners.unix
            if listener.name == bind.host or _TEMPORARY.sub("", listener.name) == bind.host
        ]
    else:
        shown = "@" + bind.host
        found = [listener for listener in listeners.unix if listener.name.rstrip("@") == shown]
    foreign = listeners.foreign(found)
    pids = sorted({pid for listener in foreign for pid in listeners.pids(listener)})
    return Holding(
        by_haproxy=len(foreign) < len(found),
        others=tuple(f"{_name(pid)} (process {pid})" for pid in pids),
        is_hidden=any(not listeners.pids(listener) for listener in foreign),
    )


def file_descriptors_needed(
    slots_with_check: int,
    listeners: int,
    *,
    threads: int | None = None,
    maxconn: int | None = None,
    splice: bool = False,
) -> int:
    """How many file descriptors HAProxy's start asks for, and does not start without.

    `slots_with_check` counts each slot of a template that is checked, twice one with an agent
    check as well; `listeners` all binds, the statistics' and the runtime socket.  `threads` is
    `nbthread`, by default one for each CPU that we may use.  `maxconn` is the global one; without
    it HAProxy takes what the limit leaves, but at least 100.  `splice` if `option splice-*` is
    used.

    Measured: the smallest hard limit with which a master-worker start works is exactly

        checks + listeners + 2 × maxconn + 3 × threads + R

    with R = 32 in HAProxy 2.6.12 and 43 in 2.8.25, of which 12 and 23 are the master's; 2.8 adds
    3 with the first reload and 1 for each worker that is still alive after it.

        checks  listeners  threads  maxconn   2.6    2.8
        100     1 + 1      1        -          337    348
        100     20 + 1     1        -          356    367
        100     1 + 1      2        -          340    351
        100     1 + 1      4        -          346    357
        100     1 + 1      1        1000      2137   2148
        1000    1 + 1      1        -         1237   1248
        5000    20 + 1     2        -         5259   5270
        0       1 + 1      1        -          237    248   (1000 slots without check)

    Nameservers, log targets and the state file take none; `splice-auto` takes maxconn ÷ 2.  We ask
    for R = 64, which leaves room for 17 old workers on 2.8 and is 2.6 % too much with 1,000 slots.
    """
    if threads is None:
        threads = len(os.sched_getaffinity(0))
    connections = maxconn or 100
    pipes = (connections + 1) // 2 if splice else 0
    return slots_with_check + listeners + 2 * connections + pipes + 3 * threads + RESERVED


def check_file_descriptors(needed: int, limit: int) -> Problem | None:
    """The problem that HAProxy would not start with `limit` file descriptors, None if it would.

    HAProxy ends with an alert then, as `strict-limits` is the default (manual 3.1), and
    `haproxy -c` does not try it.
    """
    if needed <= limit:
        return None
    return Problem(
        message=f"HAProxy needs {needed} file descriptors for this configuration and may have "
        f"{limit}: it would not start",
        remedy=f"raise LimitNOFILE= in HAProxy's unit to at least {needed} and restart it, or "
        "declare fewer slots, or services without check",
    )


def descriptor_limit(pid: int | None) -> int:
    """How many file descriptors HAProxy's process `pid` may have; our own limit without one.

    The hard limit, or with CAP_SYS_RESOURCE, with which HAProxy raises it, the kernel's
    `fs.nr_open`.  Falls back to our own if that process cannot be seen.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    process = Path("/proc", str(pid) if pid is not None else "self")
    try:
        limits = process.joinpath("limits").read_text()
        status = process.joinpath("status").read_text()
    except OSError:
        return _finite(hard)
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            word = line.split()[4]
            hard = int(word) if word.isdigit() else resource.RLIM_INFINITY
    return max(_finite(hard), _kernel_limit()) if _may_raise(status) else _finite(hard)


def _may_raise(status: str) -> bool:
    """True if /proc/<pid>/status, given as text, has CAP_SYS_RESOURCE among what is in effect."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def _kernel_limit() -> int:
    return int(Path("/proc/sys/fs/nr_open").read_text())


def _finite(limit: int) -> int:
    return _kernel_limit() if limit == resource.RLIM_INFINITY else limit


def _check_ip(bind: Bind, v6only: bool, listeners: _Listeners) -> Problem | None:
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
            probe.bind((_host(bind), bind.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _conflict(bind, v6only, listeners, certain=True)
        if error.errno in (errno.EACCES, errno.EPERM):
            return _conflict(bind, v6only, listeners, certain=False)
        if error.errno in _OURS_TO_SOLVE:
            return None
        return _impossible(bind, error)
    return None


def _conflict(bind: Bind, v6only: bool, listeners: _Listeners, *, certain: bool) -> Problem | None:
    """Who holds `bind`, unless it is HAProxy.  `certain` if trying it showed a conflict."""
    host = _host(bind)
    same_port = [listener for listener in listeners.tcp if listener.port == bind.port]
    held = [listener for listener in same_port if _takes(host, v6only, listener.name)]
    foreign = listeners.foreign(held)
    if foreign:
        return _held(bind, foreign, listeners)
    if held or not certain:
        return None
    # A wildcard over both families, unless it is over IPv6 alone, which only its owner knows.
    held = [listener for listener in same_port if listener.name == "::"]
    foreign = listeners.foreign(held)
    # Where nobody listens, an outgoing connection may have got this port as its own.
    return _held(bind, foreign, listeners) if foreign or not held else None


def _takes(host: str, v6only: bool, held: str) -> bool:
    """True if a socket on `host` and one on `held` with the same port surely collide."""
    if host == held:
        return True
    same_family = (":" in host) == (":" in held)
    if same_family:
        wildcard = "::" if ":" in host else "0.0.0.0"  # noqa: S104
        return wildcard in (host, held)
    return host == "::" and not v6only


def _held(bind: Bind, holders: Iterable[_Listener], listeners: _Listeners) -> Problem:
    pids = sorted({pid for holder in holders for pid in listeners.pids(holder)})
    who = ", ".join(f"{_name(pid)} (process {pid})" for pid in pids[:3]) or "another process"
    remedy = (
        f"stop {who}, or let this service bind another address or port"
        if pids
        else "find it with `ss -tanp` as root and stop it, or bind another address or port"
    )
    return Problem(message=f"{bind} is held by {who}", remedy=remedy, field="binds")


def _impossible(bind: Bind, error: OSError) -> Problem:
    if error.errno == errno.EADDRNOTAVAIL:
        version = "ipv6" if ":" in bind.host else "ipv4"
        return Problem(
            message=f"{bind} cannot be taken: this host does not have the address {bind.host}",
            remedy=f"add the address to an interface, or set net.{version}.ip_nonlocal_bind=1",
            field="binds",
        )
    if error.errno == errno.EAFNOSUPPORT:
        remedy = "enable IPv6 on this host, or bind an IPv4 address"
    else:
        remedy = "correct the address"
    return Problem(
        message=f"{bind} cannot be taken: {error.strerror or error}", remedy=remedy, field="binds"
    )


def _check_unix(bind: Bind, listeners: _Listeners) -> Problem | None:
    """HAProxy binds a temporary name and renames it: what is there does not stop it, but ends."""
    path = Path(bind.host)
    try:
        parent = path.parent.stat()
        existing = path.lstat()
    except FileNotFoundError:
        if path.parent.exists():
            return None
        return _unix_problem(
            bind,
            f"the directory {path.parent} does not exist",
            f"create {path.parent} so that HAProxy's user may write in it",
        )
    except NotADirectoryError:
        return _unix_problem(bind, f"{path.parent} is not a directory", "correct the path")
    except OSError:
        return None
    if not stat.S_ISDIR(parent.st_mode):
        return _unix_problem(bind, f"{path.parent} is not a directory", "correct the path")
    if stat.S_ISDIR(existing.st_mode):
        return _unix_problem(bind, f"{path} is a directory", "choose another path")
    if not stat.S_ISSOCK(existing.st_mode):
        return _unix_problem(
            bind,
            f"{path} is not a socket, and HAProxy would replace it",
            "remove it if it is not needed, or choose another path",
        )
    # HAProxy's own sockets stand there under their temporary names.
    foreign = listeners.foreign(found for found in listeners.unix if found.name == bind.host)
    return _held(bind, foreign, listeners) if foreign else None


def _check_abstract(bind: Bind, listeners: _Listeners) -> Problem | None:
    name = b"\0" + os.fsencode(bind.host)
    padded = name.ljust(_ABSTRACT_LENGTH, b"\0")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.bind(padded)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return None
        # The kernel shows each NUL of an abstract name as an @.
        shown = os.fsdecode(padded.replace(b"\0", b"@"))
        held = [listener for listener in listeners.unix if listener.name == shown]
        foreign = listeners.foreign(held)
        return _held(bind, foreign, listeners) if foreign or not held else None
    return None


def _unix_problem(bind: Bind, reason: str, remedy: str) -> Problem:
    return Problem(message=f"{bind} cannot be taken: {reason}", remedy=remedy, field="binds")


def _host(bind: Bind) -> str:
    return "0.0.0.0" if bind.host == "*" else bind.host  # noqa: S104 - as HAProxy does


def _tcp_listeners() -> Iterator[_Listener]:
    """Who listens on TCP: in the kernel's tables these stand before all connections."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), Path(table).open() as rows:
            next(rows)
            for row in rows:
                words = row.split(None, 10)
                if words[3] != "0A":
                    break
                address, _, port = words[1].partition(":")
                yield _Listener(_plain(address), int(port, 16), int(words[9]))


def _unix_listeners() -> Iterator[_Listener]:
    with Path("/proc/net/unix").open(errors="surrogateescape") as rows:
        next(rows)
        for row in rows:
            words = row.rstrip("\n").split(None, 7)
            if len(words) == 8 and int(words[3], 16) & _ACCEPTS:
                yield _Listener(words[7], None, int(words[6]))


def _plain(words: str) -> str:
    """An address of /proc/net/tcp, 32-bit words in the machine's order, in canonical form."""
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


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a program"
