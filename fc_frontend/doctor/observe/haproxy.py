"""Examine HAProxy's binary, sockets and privileges, and whether it can bind its ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from fc_frontend.doctor.judge.haproxy import Build, Privilege, SocketFacts, parse_build
from fc_frontend.errors import Problem, Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.binary import find_binary
from fc_frontend.haproxy.conflicts import endpoint_of
from fc_frontend.haproxy.deploy import Running
from fc_frontend.haproxy.descriptors import (
    check_file_descriptors,
    descriptor_limit,
    file_descriptors_needed,
)
from fc_frontend.haproxy.master import Processes, show_proc
from fc_frontend.haproxy.preflight import Obstacle, find_obstacles, first_free_port
from fc_frontend.haproxy.process import run
from fc_frontend.haproxy.rights import Capability, rights_of
from fc_frontend.haproxy.socket import NoListener
from fc_frontend.haproxy.trial import new_obstacles
from fc_frontend.haproxy.version import parse_version
from fc_frontend.plan.model import Bind, Haproxy
from fc_frontend.render.config import Config, sections_in
from fc_frontend.render.listeners import listeners_of
from fc_frontend.syntax.demand import demand_of
from fc_frontend.syntax.endpoints import ListenEndpoint
from fc_frontend.text import whole_number


def observe_build(haproxy: Haproxy, timeout: float) -> Build:
    """Return the build information of the binary.  Raises `Unavailable`."""
    path = find_binary(haproxy.binary)
    finished = run([path, "-vv"], timeout=timeout, limit=65536)
    if finished.status != 0:
        raise Unavailable.of(
            f"`{path} -vv` {finished.ending}",
            "run it by hand; set haproxy.binary to a HAProxy 2.6 or later",
        )
    version = parse_version(finished.output)
    return parse_build(
        path, finished.output, str(version), f"{version.major}.{version.minor}", version.supported
    )


def observe_sockets(haproxy: Haproxy, timeout: float) -> tuple[SocketFacts, SocketFacts, Running]:
    """Query worker and master on their sockets; also return the running HAProxy they report."""
    worker, info = _runtime(haproxy.runtime_socket, timeout)
    master, processes = _master(haproxy.master_socket, timeout)
    running = Running(
        hash=runtime.hash_in(info),
        processes=processes,
        worker=whole_number(info.get("Pid")),
    )
    return worker, master, running


def _runtime(path: str, timeout: float) -> tuple[SocketFacts, dict[str, str]]:
    try:
        info = runtime.info(path, timeout)
        level = runtime.command(path, "show cli level", timeout).strip()
    except Unavailable as exc:
        return SocketFacts(path, exc.problem, not isinstance(exc, NoListener)), {}
    return SocketFacts(path, level=level, version=info.get("Version", "")), info


def _master(path: str, timeout: float) -> tuple[SocketFacts, Processes | None]:
    try:
        processes = show_proc(path, timeout)
    except Unavailable as exc:
        return SocketFacts(path, exc.problem, not isinstance(exc, NoListener)), None
    return SocketFacts(path, version=processes.version or ""), processes


def observe_binds(
    haproxy: Haproxy, text: str, now: Running
) -> tuple[tuple[ListenEndpoint, ...], tuple[Problem, ...], tuple[ListenEndpoint, ...]]:
    """Return HAProxy's endpoints with `text`, the obstacles to new ones, and the hidden ones.

    The hidden ones are held by a process that this user may not see, which may be HAProxy.
    """
    found, _ = listeners_of(Config(text, "", sections_in(text)), socket.gethostname())
    obstacles = [obstacle for _, obstacle in new_obstacles(haproxy, found, now.taker)]
    wanted = sorted({listener.endpoint for _, listener in found}, key=str)
    hidden = tuple(each.endpoint for each in obstacles if each.is_hidden)
    taken = [each for each in obstacles if each.is_certain and not each.is_hidden]
    return tuple(wanted), tuple(map(_problem, taken)), hidden


def held_listen(listen: Bind | None) -> Problem | None:
    """Return what keeps fc-frontend from listening on its own address, or None if it is free."""
    if listen is None:
        return None
    found = find_obstacles((endpoint_of(listen),), owned_by=frozenset())
    return _problem(found[0]) if found else None


def _problem(obstacle: Obstacle) -> Problem:
    return Problem(obstacle.message, obstacle.remedy)


def answers_health(listen: Bind, timeout: float) -> bool:
    """Return whether fc-frontend's own daemon listens there."""
    import http.client

    connection = http.client.HTTPConnection(listen.local_host, listen.port, timeout=timeout)
    try:
        connection.request("GET", "/metrics", headers={"Host": "localhost"})
        return b"fc_frontend_build_info" in connection.getresponse().read(1024 * 1024)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def observe_privilege(haproxy: Haproxy, now: Running) -> Privilege:
    """Find out whether the process that binds HAProxy's ports may bind low ones."""
    first_free = first_free_port()
    pid = now.processes.master if now.processes else now.worker
    if pid is not None:
        return Privilege(first_free=first_free, may=_may_bind(pid), who="HAProxy's master")
    if haproxy.supervise:
        return Privilege(
            first_free=first_free, may=_may_bind(os.getpid()), who="this user's HAProxy"
        )
    return Privilege(first_free=first_free, may=None, who="HAProxy")


def _may_bind(pid: int) -> bool | None:
    """Return whether process `pid` may bind every port, or None if it is not visible."""
    rights = rights_of(pid)
    return None if rights is None else rights.has(Capability.NET_BIND_SERVICE)


def descriptors(
    text: str, wanted: Iterable[ListenEndpoint], now: Running
) -> tuple[int, int, Problem | None]:
    """Return how many file descriptors HAProxy needs for a configuration, and its limit.

    The third value is the problem if the limit is too low, or None.
    """
    listeners = sum(len(endpoint.ports) for endpoint in wanted)
    needed = file_descriptors_needed(demand_of(text), listeners)
    master = now.processes.master if now.processes else None
    limit = descriptor_limit(master)
    return needed, limit, check_file_descriptors(needed, limit)
