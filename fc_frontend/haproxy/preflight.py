"""Try what `haproxy -c` does not: whether binds can be taken and file descriptors suffice.

Either one makes a reload fail that was judged good, and a bind that cannot be taken pauses all
listeners for 2 s before HAProxy gives up.  Trying must never disturb who listens: a socket is
bound and closed, never made to listen, so no connection can reach it.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from fc_frontend.errors import Problem
from fc_frontend.plan.model import Bind

RESERVED = 64
_ABSTRACT_LENGTH = 108
"""HAProxy binds abstract names with all of `sun_path`, padded with NUL (manual 5.1, `abns@`)."""

_CAP_SYS_RESOURCE = 24
_OURS_TO_SOLVE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class _Socket:
    """A socket that exists on this host: `name` is an address or a path."""

    name: str
    port: int | None
    listening: bool
    pid: int | None


class _Sockets:
    """The sockets of this host, looked up at most once and only if there is a conflict."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._found: tuple[_Socket, ...] | None = None

    @property
    def all(self) -> tuple[_Socket, ...]:
        if self._found is None:
            self._found = tuple(self._scan())
        return self._found

    def _scan(self) -> Iterable[_Socket]:
        import psutil

        for found in psutil.net_connections(kind=self._kind):
            if found.family == socket.AF_UNIX:
                yield _Socket(str(found.laddr), None, True, found.pid)
            elif found.laddr and found.type == socket.SOCK_STREAM:
                host, port = found.laddr[:2]
                listening = found.status == psutil.CONN_LISTEN
                yield _Socket(_plain(str(host)), int(port), listening, found.pid)


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
    wanted = tuple(dict.fromkeys(binds))
    kinds = {"tcp" if bind.kind == "ip" else "unix" for bind in wanted}
    sockets = _Sockets(kinds.pop() if len(kinds) == 1 else "all")
    problems = []
    for bind in wanted:
        if bind.kind == "ip":
            problem = _check_ip(bind, bind in v6only, sockets, owned_by)
        elif bind.kind == "unix":
            problem = _check_unix(bind, sockets, owned_by)
        else:
            problem = _check_abstract(bind, sockets, owned_by)
        if problem is not None:
            problems.append(problem)
    return tuple(problems)


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


def _check_ip(
    bind: Bind, v6only: bool, sockets: _Sockets, owned_by: frozenset[int]
) -> Problem | None:
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    host = "0.0.0.0" if bind.host == "*" else bind.host  # noqa: S104 - as HAProxy does
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
            probe.bind((host, bind.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _conflict(bind, v6only, sockets, owned_by, certain=True)
        if error.errno in (errno.EACCES, errno.EPERM):
            return _conflict(bind, v6only, sockets, owned_by, certain=False)
        if error.errno in _OURS_TO_SOLVE:
            return None
        return _impossible(bind, error)
    return None


def _conflict(
    bind: Bind, v6only: bool, sockets: _Sockets, owned_by: frozenset[int], *, certain: bool
) -> Problem | None:
    """Who holds `bind`, unless it is HAProxy.  `certain` if trying it showed a conflict."""
    same_port = [s for s in sockets.all if s.port == bind.port]
    host = "0.0.0.0" if bind.host == "*" else bind.host  # noqa: S104
    held = [s for s in same_port if s.listening and _takes(host, v6only, s.name)]
    foreign = [s for s in held if not _owned(s.pid, owned_by)]
    if foreign:
        return _held(bind, foreign)
    if held or not certain:
        return None
    # A wildcard over both families, unless it is over IPv6 alone, which its owner knows.
    held = [s for s in same_port if s.listening and s.name == "::" and ":" not in host]
    foreign = [s for s in held if not _owned(s.pid, owned_by)]
    if held and not foreign:
        return None
    # Without a listener, an outgoing connection may have got this port as its own.
    return _held(bind, foreign or [s for s in same_port if _takes(host, v6only, s.name)])


def _takes(host: str, v6only: bool, held: str) -> bool:
    """True if a socket on `host` and one on `held` with the same port surely collide."""
    if host == held:
        return True
    same_family = (":" in host) == (":" in held)
    if same_family:
        wildcard = "::" if ":" in host else "0.0.0.0"  # noqa: S104
        return wildcard in (host, held)
    return host == "::" and not v6only


def _owned(pid: int | None, owned_by: frozenset[int]) -> bool:
    """True if `pid` is one of HAProxy's, or a worker that has just been started by one."""
    if pid is None:
        return False
    if pid in owned_by:
        return True
    import psutil

    try:
        return psutil.Process(pid).ppid() in owned_by
    except psutil.Error:
        return False


def _held(bind: Bind, holders: list[_Socket]) -> Problem:
    pids = sorted({s.pid for s in holders if s.pid is not None})
    who = ", ".join(_describe(pid) for pid in pids) or "another process"
    remedy = (
        f"stop {who}, or let this service bind another address or port"
        if pids
        else "find it with `ss -tanp` as root and stop it, or bind another address or port"
    )
    return Problem(message=f"{bind} is held by {who}", remedy=remedy, field="binds")


def _describe(pid: int) -> str:
    import psutil

    try:
        return f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return f"process {pid}"


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


def _check_unix(bind: Bind, sockets: _Sockets, owned_by: frozenset[int]) -> Problem | None:
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
    # HAProxy's own sockets stand here under their temporary names.
    foreign = [s for s in sockets.all if s.name == bind.host and not _owned(s.pid, owned_by)]
    return _held(bind, foreign) if foreign else None


def _check_abstract(bind: Bind, sockets: _Sockets, owned_by: frozenset[int]) -> Problem | None:
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
        held = [s for s in sockets.all if s.name == shown]
        foreign = [s for s in held if not _owned(s.pid, owned_by)]
        return _held(bind, foreign) if foreign or not held else None
    return None


def _unix_problem(bind: Bind, reason: str, remedy: str) -> Problem:
    return Problem(message=f"{bind} cannot be taken: {reason}", remedy=remedy, field="binds")


def _plain(host: str) -> str:
    """`host` in canonical form, an IPv4 address inside an IPv6 one taken out."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
