"""Try what `haproxy -c` does not: whether HAProxy can bind its listeners.

If a listener cannot be bound, a reload fails although the check passed, and HAProxy pauses all
listeners for 2 s before it gives up.  A trial never disturbs existing listeners: a socket is bound
and closed, but never listens, so no connection can reach it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fc_frontend.haproxy.holders import (
    BoundSocket,
    Holders,
    abstract_address,
    final_name,
    kernel_host,
    process_name,
    takes,
)
from fc_frontend.haproxy.network import run_in_network
from fc_frontend.haproxy.rights import Capability, Rights
from fc_frontend.syntax.endpoints import Family, ListenEndpoint

_RESOURCE_EXHAUSTION = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM)
_IP_FREEBIND = 15
"""As in linux/in.h; Python's socket module lacks it before 3.12."""
_PROTECTED_HARDLINKS = Path("/proc/sys/fs/protected_hardlinks")
_FIRST_FREE_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A condition that prevents HAProxy from binding an endpoint, or may if not `is_certain`."""

    endpoint: ListenEndpoint
    message: str
    remedy: str
    is_certain: bool = True
    is_hidden: bool = False
    """Whether this user may not see who holds the endpoint: it may be HAProxy."""


def find_obstacles(
    endpoints: Iterable[ListenEndpoint],
    *,
    owned_by: frozenset[int],
    rights: Rights | None = None,
) -> tuple[Obstacle, ...]:
    """Return the obstacles to binding `endpoints`, each of which is actually tried.

    `owned_by` are the processes that hand their sockets over in a reload: HAProxy's master and
    workers (`Processes.pids`).  `rights` are those of the process that binds, None if unknown.

    A holder that this user may not see counts as foreign.  Without root, this includes HAProxy's
    own processes, so pass only endpoints that the running configuration does not have.  Ports that
    this process lacks the privilege to bind are only compared with existing listeners; other
    restrictions that do not apply to HAProxy are not obstacles.  Endpoints of another network
    namespace are tried there, which requires CAP_SYS_ADMIN; without it, their obstacle is
    uncertain.

    Binding is enough to detect a conflict, as measured on Linux: if another socket listens, bind()
    with SO_REUSEADDR fails with EADDRINUSE, with the same results for all pairs of address,
    wildcard and family as bind() with listen().  A holder that shares by SO_REUSEPORT would let
    HAProxy bind and take part of the traffic; as the trial does not set that option, it detects
    this holder too.
    """
    by_namespace: dict[str, list[ListenEndpoint]] = {}
    for endpoint in dict.fromkeys(endpoints):
        namespace = endpoint.namespace if endpoint.family is Family.IP else None
        by_namespace.setdefault(namespace or "", []).append(endpoint)
    found: list[Obstacle] = []
    for namespace, members in by_namespace.items():
        trial = partial(_obstacles, members, owned_by, rights)
        try:
            found += run_in_network(namespace, trial) if namespace else trial()
        except OSError:
            found += map(_untried, members)
    return tuple(found)


def _obstacles(
    endpoints: Iterable[ListenEndpoint], owned_by: frozenset[int], rights: Rights | None
) -> list[Obstacle]:
    """Return the obstacles in the network namespace of the calling thread."""
    trial = _Trial(Holders(owned_by), rights)
    found = (trial.obstacle(endpoint) for endpoint in endpoints)
    return [obstacle for obstacle in found if obstacle is not None]


def _untried(endpoint: ListenEndpoint) -> Obstacle:
    return Obstacle(
        endpoint,
        f"{endpoint} is in the network namespace {endpoint.namespace}, which cannot be entered to "
        "try it",
        "nothing to do if it is free there; otherwise the next reload fails",
        is_certain=False,
    )


def missing_interface(endpoint: ListenEndpoint) -> Obstacle | None:
    """Return the obstacle that an endpoint's interface does not exist.

    HAProxy only warns in that case, and listens on all interfaces (`sock_inet_bind_receiver`).
    Returns None for an endpoint of another network namespace, which `find_obstacles` checks.
    """
    return _missing_interface(endpoint) if not endpoint.namespace else None


def _missing_interface(endpoint: ListenEndpoint) -> Obstacle | None:
    """Like `missing_interface`, in the network namespace of the calling thread."""
    if not endpoint.interface:
        return None
    try:
        socket.if_nametoindex(endpoint.interface)
    except OSError:
        return Obstacle(
            endpoint,
            f"{endpoint} cannot be bound to the interface {endpoint.interface}, which does not "
            "exist: HAProxy would listen on all interfaces",
            "correct the name, or create the interface first",
        )
    return None


CLUSTER_PROGRAMS = frozenset(
    """
    cilium-agent etcd k3s k3s-agent k3s-server kube-apiserver kube-controller kube-proxy
    kube-scheduler kubelet node-cache rke2 traefik
    """.split()
)
"""Names of processes (15 characters at most) that run on nodes and on the control plane."""


class _Trial:
    """Tries endpoints one by one."""

    def __init__(self, holders: Holders, rights: Rights | None) -> None:
        self._holders = holders
        self._rights = rights

    def obstacle(self, endpoint: ListenEndpoint) -> Obstacle | None:
        if endpoint.family is Family.IP:
            return self._on_ip(endpoint)
        if endpoint.family is Family.UNIX:
            return self._on_path(endpoint)
        return self._on_abstract_name(endpoint)

    def _on_ip(self, endpoint: ListenEndpoint) -> Obstacle | None:
        if (missing := _missing_interface(endpoint)) is not None:
            return missing
        if (low := self._lacks_privilege(endpoint)) is not None:
            return low
        for port in endpoint.ports:
            error = _bind_error(endpoint, port)
            if error == errno.EADDRINUSE:
                found = self._conflict(endpoint, port, certain=True)
            elif error in _NOT_ALLOWED:
                found = self._conflict(endpoint, port, certain=False)
            elif error is None or error in _RESOURCE_EXHAUSTION:
                found = None
            else:
                return _impossible(endpoint, error)
            # The holder may have closed its socket during the lookup of its name.
            if found is not None and _bind_error(endpoint, port) == error:
                return found
        return None

    def _lacks_privilege(self, endpoint: ListenEndpoint) -> Obstacle | None:
        if self._rights is None or self._rights.has(Capability.NET_BIND_SERVICE):
            return None
        if endpoint.port >= first_free_port():
            return None
        return Obstacle(
            endpoint,
            f"{endpoint} cannot be taken: HAProxy runs without the privilege for ports below "
            f"{first_free_port()}",
            "give its unit AmbientCapabilities=CAP_NET_BIND_SERVICE, or lower "
            "net.ipv4.ip_unprivileged_port_start",
        )

    def _conflict(self, endpoint: ListenEndpoint, port: int, *, certain: bool) -> Obstacle | None:
        """Return the foreign holder of a port.  `certain` is set if binding showed a conflict."""
        same_port = [one for one in self._holders.on(endpoint) if one.port == port]
        held = [one for one in same_port if takes(endpoint, one.name)]
        foreign = self._holders.foreign(held)
        if foreign:
            return self._held(endpoint, foreign)
        if held or not certain:
            return None
        # A wildcard covers both families unless it is IPv6-only, which only its owner can see.
        held = [one for one in same_port if one.name == "::"]
        foreign = self._holders.foreign(held)
        # If nobody listens, an outgoing connection may use this port as its local port.
        return self._held(endpoint, foreign) if foreign or not held else None

    def _held(self, endpoint: ListenEndpoint, sockets: Iterable[BoundSocket]) -> Obstacle:
        pids = sorted({pid for held in sockets for pid in self._holders.pids(held)})
        names = {pid: process_name(pid) for pid in pids[:3]}
        who = ", ".join(f"{name} (process {pid})" for pid, name in names.items())
        if not pids:
            remedy = "find it with `ss -tanpx` as root and stop it, or use another address or port"
        elif CLUSTER_PROGRAMS.issuperset(names.values()):
            remedy = "use another address or port: it is part of the Kubernetes roles of this host"
        else:
            remedy = f"stop {who}, or use another address or port"
        said = f"{endpoint} is in use by {who or 'another process'}"
        return Obstacle(endpoint, said, remedy, is_hidden=not pids)

    def _on_path(self, endpoint: ListenEndpoint) -> Obstacle | None:
        """Check a path: HAProxy binds a temporary name and renames it over any existing file."""
        path = Path(endpoint.host)
        directory = path.parent

        def cannot(reason: str, remedy: str) -> Obstacle:
            return Obstacle(endpoint, f"{endpoint} cannot be taken: {reason}", remedy)

        try:
            parent = directory.stat()
        except FileNotFoundError:
            return cannot(
                f"the directory {directory} does not exist",
                f"create {directory} so that HAProxy's user may write in it",
            )
        except NotADirectoryError:
            return cannot(f"{directory} is not a directory", "correct the path")
        except OSError:
            return None
        if not stat.S_ISDIR(parent.st_mode):
            return cannot(f"{directory} is not a directory", "correct the path")
        if not _may_write(parent, self._rights):
            return cannot(
                f"HAProxy's user may not write in {directory}", "change its owner or its mode"
            )
        try:
            existing = path.lstat()
        except OSError:
            return None
        if stat.S_ISDIR(existing.st_mode):
            return cannot(f"{path} is a directory", "choose another path")
        if not stat.S_ISSOCK(existing.st_mode):
            return cannot(
                f"{path} is not a socket, and HAProxy would replace it",
                "remove it if it is not needed, or choose another path",
            )
        if not _may_replace(parent, existing, self._rights):
            return cannot(
                f"{path} belongs to another user, and HAProxy's user may not replace it",
                "remove it, or choose another path",
            )
        found = self._holders.on(endpoint)
        # A temporary name is HAProxy's, even if its process is not visible.
        foreign = [
            one
            for one in self._holders.foreign(found)
            if self._holders.pids(one) or one.name == final_name(one)
        ]
        if not foreign and (found or not _is_alive(endpoint.host)):
            return None
        return self._held(endpoint, foreign)

    def _on_abstract_name(self, endpoint: ListenEndpoint) -> Obstacle | None:
        kind = socket.SOCK_DGRAM if endpoint.is_datagram else socket.SOCK_STREAM
        try:
            with socket.socket(socket.AF_UNIX, kind) as probe:
                probe.bind(abstract_address(endpoint))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return None
            held = self._holders.on(endpoint)
            foreign = self._holders.foreign(held)
            return self._held(endpoint, foreign) if foreign or not held else None
        return None


def first_free_port() -> int:
    """Return the first port that every user may bind."""
    try:
        return int(_FIRST_FREE_PORT.read_text())
    except (OSError, ValueError):
        return 1024


def first_bind_error(endpoint: ListenEndpoint) -> int | None:
    """Return the error of binding an IP endpoint on its first port; None if it works."""
    return _bind_error(endpoint, endpoint.port)


def _bind_error(endpoint: ListenEndpoint, port: int) -> int | None:
    """Return the error of binding with HAProxy's options; None if it works."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    kind = socket.SOCK_DGRAM if endpoint.is_datagram else socket.SOCK_STREAM
    try:
        with socket.socket(family, kind) as probe:
            # For datagrams, this option alone would permit binding beside another socket.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, not endpoint.is_datagram)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, endpoint.v6only)
            if endpoint.transparent:
                probe.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            if endpoint.interface:
                name = endpoint.interface.encode() + b"\0"
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            host = endpoint.host if ":" in endpoint.host else kernel_host(endpoint)
            probe.bind((host, port))
    except OSError as error:
        return error.errno
    return None


def _impossible(endpoint: ListenEndpoint, error: int) -> Obstacle:
    if error == errno.EADDRNOTAVAIL:
        version = "ipv6" if endpoint.ipv6 else "ipv4"
        return Obstacle(
            endpoint,
            f"{endpoint} cannot be taken: this host does not have the address "
            f"{endpoint.ipv6 or endpoint.ipv4}",
            f"add the address to an interface, or set net.{version}.ip_nonlocal_bind=1",
        )
    remedy = (
        "enable IPv6 on this host, or bind an IPv4 address"
        if error == errno.EAFNOSUPPORT
        else "correct the address and its options"
    )
    return Obstacle(endpoint, f"{endpoint} cannot be taken: {os.strerror(error)}", remedy)


def _may_write(directory: os.stat_result, rights: Rights | None) -> bool:
    """Return False if a process with these rights surely may not create files in a directory."""
    if rights is None or rights.has(Capability.DAC_OVERRIDE):
        return True
    if directory.st_uid == rights.user:
        bits = directory.st_mode >> 6
    elif directory.st_gid in rights.groups:
        bits = directory.st_mode >> 3
    else:
        bits = directory.st_mode
    # An access control list appears as the group's bits.
    return bits & 0o3 == 0o3 or bool(directory.st_mode & 0o030 == 0o030)


def _may_replace(
    directory: os.stat_result, existing: os.stat_result, rights: Rights | None
) -> bool:
    """Return False if a process with these rights surely may not rename over an existing socket.

    HAProxy first links the existing socket to another name, which `fs.protected_hardlinks` forbids
    for sockets of others; in a sticky directory, renaming is forbidden as well.
    """
    if rights is None or rights.has(Capability.FOWNER) or existing.st_uid == rights.user:
        return True
    is_sticky = bool(directory.st_mode & stat.S_ISVTX)
    return not (_are_hardlinks_protected() or (is_sticky and directory.st_uid != rights.user))


def _are_hardlinks_protected() -> bool:
    try:
        return _PROTECTED_HARDLINKS.read_text().strip() != "0"
    except OSError:
        return False


def _is_alive(path: str) -> bool:
    """Return whether a socket file belongs to a socket, in any namespace.

    Connecting a datagram socket disturbs nobody: with another datagram socket it succeeds without
    sending anything, and it does not reach a socket of another type (`unix_find_bsd` in Linux).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == errno.EPROTOTYPE
    return True
