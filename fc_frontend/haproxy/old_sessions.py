"""Close sessions to departed pods in workers of former configurations.

A service with `on-marked-down shutdown-sessions` (manual 5.2) must not have sessions with a server
that is down.  A replaced worker runs no health checks and no resolver, so it would keep them until
`hard-stop-after`.  The current worker's state of the same address decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.assign import is_free
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.runtime import ServerState, parse_servers
from fc_frontend.haproxy.socket import ask
from fc_frontend.syntax.sections import read_sections

_TIMEOUT = 5.0
_LARGEST_ANSWER = 16 * 1024 * 1024
_SESSION = re.compile(r"^(0x[0-9a-f]+):.* be=(\S+) srv=(\S+) ", re.MULTILINE)
_MAINTENANCE = 1 | 2 | 32
_OPTION = ("on-marked-down", "shutdown-sessions")
_SERVERS = ("server", "server-template", "default-server")


@lru_cache(maxsize=2)
def proxies_that_shut(text: str) -> frozenset[str]:
    """Return the proxies whose servers shut down their sessions when marked down."""
    if _OPTION[0] not in text:
        return frozenset()
    return frozenset(
        section.name
        for section in read_sections(text)
        if section.kind in ("listen", "backend")
        and any(_has_option(tuple(word.text for word in line.words)) for line in section.statements)
    )


def _has_option(words: tuple[str, ...]) -> bool:
    return bool(words) and words[0] in _SERVERS and _OPTION in pairwise(words)


def shut_left_sessions(master_socket: str, runtime_socket: str, proxies: frozenset[str]) -> int:
    """Close sessions in old workers whose servers are gone or down; return their number.

    Does nothing if there are no old workers.  Raises `Unavailable`.
    """
    old_workers = show_proc(master_socket).old_workers if proxies else ()
    if not old_workers:
        return 0
    serving = str(runtime.info(runtime_socket)["Pid"])
    up = {
        (server.proxy, server.address)
        for server in runtime.servers_with_address(runtime_socket)
        if server.proxy in proxies and _serves(server)
    }
    ended = 0
    for old in old_workers:
        # After a failed reload, the current worker may be listed as an old one.
        if str(old.pid) != serving:
            ended += _shut(master_socket, f"@!{old.pid}", proxies, up)
    return ended


def _serves(server: ServerState) -> bool:
    is_up = server.operational in (1, 2, 3) and not (server.admin or 0) & _MAINTENANCE
    return is_up and not is_free(server)


def _shut(
    master_socket: str, prefix: str, proxies: frozenset[str], up: set[tuple[str, str | None]]
) -> int:
    try:
        answer = ask(master_socket, f"{prefix} show servers state", _TIMEOUT, limit=_LARGEST_ANSWER)
        down = {
            (server.proxy, server.server)
            for server in parse_servers(master_socket, answer)
            if server.proxy in proxies
            and not is_free(server)
            and (server.proxy, server.address) not in up
        }
        found = list(_sessions(master_socket, prefix, down)) if down else []
        for session in found:
            ask(master_socket, f"{prefix} shutdown session {session}", _TIMEOUT)
    except Unavailable:
        # The worker has just ended, or does not answer: the next pass tries again.
        return 0
    return len(found)


def _sessions(master_socket: str, prefix: str, down: set[tuple[str, str]]) -> Iterator[str]:
    answer = ask(master_socket, f"{prefix} show sess", _TIMEOUT, limit=_LARGEST_ANSWER)
    for session, backend, server in _SESSION.findall(answer):
        if (backend, server) in down:
            yield session
