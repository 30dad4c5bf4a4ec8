"""Compute how many file descriptors HAProxy needs for a configuration, and how many it may have.

`haproxy -c` does not check this, and a reload fails without enough of them.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from fc_frontend.errors import Problem
from fc_frontend.haproxy.rights import Capability, rights_in
from fc_frontend.syntax.demand import Demand

RESERVED = 64
_LEAST_CONNECTIONS = 100
"""HAProxy's master reserves descriptors for this many connections, whatever `maxconn` is."""


def file_descriptors_needed(demand: Demand, listeners: int) -> int:
    """Return the number of file descriptors that HAProxy requests when it starts, and requires.

    `listeners` counts all binds, including those for statistics and the runtime socket.  Without
    `nbthread`, HAProxy starts one thread for each CPU available to it, assumed to be the CPUs
    available to this process.  Without `maxconn`, it allows as many connections as the limit leaves
    descriptors for.

    Measured: the smallest hard limit with which a master-worker start works is exactly

        checks + listeners + 2 × maxconn + 3 × threads + R

    for a maxconn of at least 100, with R = 32 in HAProxy 2.6.12 and 43 in 2.8.25, of which 12 and
    23 are the master's; 2.8 adds 3 with the first reload and 1 for each worker that is still alive
    after it.

        checks  listeners  threads  maxconn   2.6    2.8
        100     1 + 1      1        -          337    348
        100     20 + 1     1        -          356    367
        100     1 + 1      2        -          340    351
        100     1 + 1      4        -          346    357
        100     1 + 1      1        1000      2137   2148
        1000    1 + 1      1        -         1237   1248
        5000    20 + 1     2        -         5259   5270
        0       1 + 1      1        -          237    248   (1000 slots without check)

    Nameservers, log targets and the state file need none; `splice-auto` needs maxconn ÷ 2.
    fc-frontend uses R = 64, which leaves room for 17 old workers on 2.8 and is 2.6 % too much with
    1,000 slots.
    """
    threads = demand.threads or len(os.sched_getaffinity(0))
    connections = max(demand.connections or 0, _LEAST_CONNECTIONS)
    pipes = (connections + 1) // 2 if demand.has_splicing else 0
    return demand.checks + listeners + 2 * connections + pipes + 3 * threads + RESERVED


def check_file_descriptors(needed: int, limit: int) -> Problem | None:
    """Return a problem if HAProxy would not start with `limit` file descriptors, else None.

    HAProxy exits with an alert in that case, because `strict-limits` is the default (manual 3.1),
    and `haproxy -c` does not test it.
    """
    if needed <= limit:
        return None
    return Problem(
        f"HAProxy needs {needed} file descriptors for this configuration and may have "
        f"{limit}: it would not start",
        remedy=f"raise LimitNOFILE= in HAProxy's unit to at least {needed} and restart it, or "
        "use fewer slots, services without check, or a lower global maxconn",
    )


def descriptor_limit(pid: int | None) -> int:
    """Return the file descriptor limit of HAProxy's process `pid`, or of this process without one.

    This is the hard limit or, with CAP_SYS_RESOURCE, which lets HAProxy raise it, the kernel's
    `fs.nr_open`.  Falls back to this process's limit if that process cannot be inspected.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    process = Path("/proc", str(pid) if pid is not None else "self")
    try:
        limits = process.joinpath("limits").read_text()
        status = process.joinpath("status").read_text(errors="replace")
    except OSError:
        return _finite(hard)
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            word = line.split()[4]
            hard = int(word) if word.isdigit() else resource.RLIM_INFINITY
    rights = rights_in(status)
    may_raise = rights is not None and rights.has(Capability.SYS_RESOURCE)
    return max(_finite(hard), _kernel_limit()) if may_raise else _finite(hard)


def _kernel_limit() -> int:
    return int(Path("/proc/sys/fs/nr_open").read_text())


def _finite(limit: int) -> int:
    return _kernel_limit() if limit == resource.RLIM_INFINITY else limit
