"""Count the connections that pods still have, including those of old workers.

After a reload, an old worker finishes its connections and may have thousands, so a check whether a
pod can be removed must count them too.
"""

from __future__ import annotations

import contextlib
from collections import Counter

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.drain import canonical, is_name
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.socket import ask
from fc_frontend.plan.model import Haproxy


def connections(haproxy: Haproxy, service: str) -> Counter[str]:
    """Count the sessions of each pod of `service`, by address, in the running and the old workers.

    Connections that HAProxy keeps open for reuse do not count, because nobody waits for them.  Old
    workers are included if the master socket answers.  Raises `Unavailable`.
    """
    if not is_name(service):
        return Counter()
    found = _sessions(haproxy.runtime_socket, "", service)
    with contextlib.suppress(Unavailable):
        for old in show_proc(haproxy.master_socket).old_workers:
            # The old worker may end between the two queries.
            with contextlib.suppress(Unavailable):
                found += _sessions(haproxy.master_socket, f"@!{old.pid} ", service)
    return found


def _sessions(socket: str, prefix: str, service: str) -> Counter[str]:
    servers = ask(socket, f"{prefix}show servers state {service}", runtime.TIMEOUT)
    if "srv_name" not in servers:
        return Counter()
    answer = ask(socket, f"{prefix}show stat {service} 4 -1", runtime.TIMEOUT)
    current = runtime.sessions(answer)
    found: Counter[str] = Counter()
    for server in runtime.parse_servers(socket, servers):
        if server.address:
            found[canonical(server.address)] += current.get(server.server, 0)
    return found
