"""Check HAProxy's version, its features, its sockets, and whether it can bind its ports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from fc_frontend.doctor.findings import Finding, Group
from fc_frontend.errors import Problem
from fc_frontend.plan.model import Haproxy
from fc_frontend.plurals import some
from fc_frontend.syntax.endpoints import ListenEndpoint

_GROUP = Group("HAProxy")

KNOWN_AS_OF = "June 2026"
_ENDS: Mapping[str, tuple[int, int]] = {
    "2.4": (2026, 2),
    "2.5": (2023, 1),
    "2.6": (2027, 2),
    "2.7": (2024, 1),
    "2.8": (2028, 2),
    "2.9": (2025, 1),
    "3.0": (2029, 2),
    "3.1": (2026, 1),
    "3.2": (2030, 2),
    "3.3": (2027, 1),
    "3.4": (2031, 2),
}
"""Year and quarter in which a branch gets its last fixes, according to haproxy.org."""

_OWN_WORD = re.compile(r"will stop receiving fixes around Q([1-4]) (\d{4})")
_FEATURES = re.compile(r"^Feature list :(.*)$", re.MULTILINE)
_STATUS = re.compile(r"^Status: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The output of `haproxy -vv`.  `branch` is such as `2.6`; `status` is its `Status:` line."""

    path: str
    version: str
    branch: str
    supported: bool
    status: str = ""
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """HAProxy's answer on one of its sockets.

    `problem` is why it did not answer; `is_there` is False if no process listens.  `level` is the
    level that the socket permits, `version` the running version.
    """

    path: str
    problem: Problem | None = None
    is_there: bool = True
    level: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Privilege:
    """Whether HAProxy may bind privileged ports.

    `first_free` is net.ipv4.ip_unprivileged_port_start.  `may` is whether the process that would
    bind has the capability, or None if that is not visible; `who` names that process.
    """

    first_free: int
    may: bool | None
    who: str


def judge_config_file(path: str, missing: Sequence[Problem]) -> Finding:
    """Judge whether fc-frontend may replace haproxy.cfg; `missing` lists what prevents it."""
    for problem in missing:
        return _GROUP.warning("haproxy.cfg", problem.message, problem.remedy)
    return _GROUP.ok("haproxy.cfg", f"{path} may be replaced")


def parse_build(path: str, said: str, version: str, branch: str, supported: bool) -> Build:
    """Parse the output of `haproxy -vv`."""
    features = _FEATURES.search(said)
    status = _STATUS.search(said)
    return Build(
        path=path,
        version=version,
        branch=branch,
        supported=supported,
        status=status[1].strip() if status else "",
        features=frozenset(
            word[1:] for word in (features[1].split() if features else ()) if word[0] == "+"
        ),
    )


def last_fixes(build: Build) -> tuple[int, int] | None:
    """Return year and quarter of the branch's last fixes, from the table or else the binary."""
    if build.branch in _ENDS:
        return _ENDS[build.branch]
    said = _OWN_WORD.search(build.status)
    return (int(said[2]), int(said[1])) if said else None


def judge_build(
    build: Build, today: date, *, with_tls: bool, with_stats: bool
) -> tuple[Finding, ...]:
    """Judge the version, its end of life, and the features that the configuration needs."""
    return tuple(_build(build, today, with_tls, with_stats))


def _build(build: Build, today: date, with_tls: bool, with_stats: bool) -> Iterator[Finding]:
    if build.supported:
        yield _GROUP.ok("version", f"{build.version} ({build.path})")
    else:
        yield _GROUP.problem(
            "version",
            f"{build.version} ({build.path}) is too old",
            "install HAProxy 2.6 or later, or pip install 'fc-frontend[haproxy]'",
        )
    yield _end_of_life(build, today)
    if with_tls and "OPENSSL" not in build.features:
        yield _GROUP.problem(
            "features",
            "built without TLS (OPENSSL), which services declare",
            "install a HAProxy with OPENSSL, such as Debian's",
        )
    elif with_stats and "PROMEX" not in build.features:
        yield _GROUP.warning(
            "features",
            "built without the Prometheus endpoint (PROMEX): haproxy.stats serves its page only",
            "install a HAProxy with PROMEX, such as Debian's, or set haproxy.stats: null",
        )
    else:
        known = [name for name in ("OPENSSL", "PROMEX", "QUIC") if name in build.features]
        yield _GROUP.ok("features", f"has the required ones: {', '.join(known) or 'none needed'}")


def _end_of_life(build: Build, today: date) -> Finding:
    check = "end of life"
    if build.status.startswith("development"):
        return _GROUP.warning(
            check,
            f"{build.version} is a development version",
            "install a release, preferably of a long-term branch",
        )
    end = last_fixes(build)
    if end is None:
        return _GROUP.unknown(
            check,
            f"branch {build.branch} is unknown (as of {KNOWN_AS_OF})",
            "see the table on https://www.haproxy.org/",
        )
    year, quarter = end
    when = f"Q{quarter} {year}"
    source = f"known as of {KNOWN_AS_OF}" if build.branch in _ENDS else "its own word"
    if (year, quarter) < (today.year, (today.month + 2) // 3):
        return _GROUP.warning(
            check,
            f"branch {build.branch} got its last fixes in {when} ({source})",
            "upgrade to a long-term branch such as 3.2, unless your distribution fixes this one",
        )
    return _GROUP.ok(check, f"branch {build.branch} gets fixes until {when} ({source})")


def judge_sockets(
    haproxy: Haproxy, runtime: SocketFacts, master: SocketFacts, binary: str | None
) -> tuple[Finding, ...]:
    """Judge whether HAProxy runs, answers and can be reloaded; `binary` is the file's version."""
    return tuple(_sockets(haproxy, runtime, master, binary))


def _sockets(
    haproxy: Haproxy, runtime: SocketFacts, master: SocketFacts, binary: str | None
) -> Iterator[Finding]:
    if not runtime.is_there and not master.is_there:
        if haproxy.supervise:
            yield _GROUP.ok("sockets", "HAProxy is not running; fc-frontend starts it (supervise)")
        else:
            yield _GROUP.warning(
                "sockets",
                f"HAProxy is not running: nothing listens at {runtime.path} and {master.path}",
                "start it (`systemctl start haproxy`) after the first `fc-frontend apply`, or set "
                "haproxy.supervise: true",
            )
        return
    yield _runtime(runtime)
    if haproxy.reload_command:
        yield _GROUP.ok("master socket", "not needed: haproxy.reload_command reloads")
    elif master.problem is not None:
        yield _refused("master socket", master.problem)
    else:
        yield _GROUP.ok("master socket", f"{master.path} answers")
    running = runtime.version or master.version
    if running and binary and running != binary:
        yield _GROUP.warning(
            "running version",
            f"{running} runs, the installed binary is {binary}",
            "restart HAProxy when traffic is low: `systemctl restart haproxy`",
        )


def _runtime(runtime: SocketFacts) -> Finding:
    if runtime.problem is not None:
        return _refused("runtime socket", runtime.problem)
    if runtime.level != "admin":
        return _GROUP.problem(
            "runtime socket",
            f"{runtime.path} permits level {runtime.level or 'unknown'} only",
            f"write `stats socket {runtime.path} mode 660 level admin` in HAProxy's global section",
        )
    return _GROUP.ok("runtime socket", f"{runtime.path} answers, with level admin")


def _refused(check: str, problem: Problem) -> Finding:
    return _GROUP.problem(check, problem.message, problem.remedy)


def judge_binds(
    wanted: tuple[ListenEndpoint, ...],
    taken: tuple[Problem, ...],
    hidden: tuple[ListenEndpoint, ...],
    listen: Problem | None,
    ours: bool,
) -> tuple[Finding, ...]:
    """Judge whether HAProxy can listen on all binds.

    The processes that hold the `hidden` ones are not visible to this user.  `listen` is what keeps
    fc-frontend itself from listening; `ours` is set if its own daemon listens there.
    """
    found = [_GROUP.problem("binds", problem.message, problem.remedy) for problem in taken]
    if hidden:
        found.append(
            _GROUP.unknown(
                "binds",
                f"this user cannot see which process uses {some(hidden)}",
                "run `fc-frontend doctor` as root",
            )
        )
    elif not taken:
        found.append(
            _GROUP.ok("binds", f"{len(wanted)} free or used by HAProxy: {some(wanted)}")
            if wanted
            else _GROUP.ok("binds", "none is declared")
        )
    if listen is not None and not ours:
        found.append(_GROUP.problem("listen", listen.message, listen.remedy))
    return tuple(found)


def judge_low_ports(wanted: tuple[ListenEndpoint, ...], privilege: Privilege) -> Finding:
    """Judge whether HAProxy may bind the ports for which the kernel requires a capability."""
    check = "low ports"
    low = sorted(
        {port for endpoint in wanted for port in endpoint.ports if 0 < port < privilege.first_free}
    )
    if not low:
        return _GROUP.ok(
            check, f"none: all are from {privilege.first_free} on, which needs no privilege"
        )
    said = f"{some(low)} (below {privilege.first_free})"
    remedy = (
        "give HAProxy's unit AmbientCapabilities=CAP_NET_BIND_SERVICE, or set "
        f"net.ipv4.ip_unprivileged_port_start={low[0]}"
    )
    if privilege.may is None:
        return _GROUP.unknown(
            check,
            f"{said}: unknown whether HAProxy may bind them until it runs",
            "start HAProxy as root, as Debian's unit does, and run doctor again",
        )
    if not privilege.may:
        return _GROUP.problem(check, f"{privilege.who} may not bind {said}", remedy)
    return _GROUP.ok(check, f"{privilege.who} may bind {said}")


def judge_descriptors(needed: int, limit: int, problem: Problem | None) -> Finding:
    """Judge whether HAProxy can start with its limit of file descriptors."""
    check = "file descriptors"
    if problem is not None:
        return _GROUP.problem(check, problem.message, problem.remedy)
    return _GROUP.ok(check, f"needs {needed} of {limit}")
