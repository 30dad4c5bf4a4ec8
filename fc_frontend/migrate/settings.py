"""Convert `global`, `resolvers` and the statistics page to settings.

Only lines of `global` that are known to be safe are imported; lines that run programs, belong to
the service manager or would remove what fc-frontend depends on are reported instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fc_frontend.errors import Problem, Severity
from fc_frontend.migrate.proxies import Meaning, meaning_of
from fc_frontend.migrate.sections import OldSection
from fc_frontend.plan.addresses import (
    SAFE_PATH,
    NotAnAddress,
    normal_bind,
    parse_bind,
    parse_nameserver,
)
from fc_frontend.plan.model import Nameserver
from fc_frontend.syntax.lines import Line
from fc_frontend.syntax.units import GLOBAL_RESERVED, Owner, raw_line_faults

_SAFE = re.compile(
    r"maxconn|nbthread|nbtgroups|thread-groups?|cpu-map|numa-cpu-mapping|tune\..*|chroot|node"
    r"|log-tag|log-send-hostname|ssl-default-(?:bind|server)-.*|ssl-dh-param-file"
    r"|ssl-server-verify|ssl-load-extra-(?:files|del-ext)|ssl-skip-self-issued-ca|ca-base|crt-base"
    r"|key-base|spread-checks|max-spread-checks|maxconnrate|maxsessrate|maxsslconn|maxsslrate"
    r"|maxcomprate|maxcompcpuusage|maxpipes|maxzlibmem|noepoll|nopoll|noevports|nosplice"
    r"|noreuseport|nogetaddrinfo|busy-polling|ulimit-n|fd-hard-limit|strict-limits|unix-bind"
    r"|set-?env|presetenv|unsetenv|resetenv|h1-case-adjust|h1-case-adjust-file|h2-workaround-.*"
    r"|http-(?:fail|err)-codes|profiling\.tasks|close-spread-time|grace|default-path|set-var"
    r"|set-var-fmt|limited-quic|cluster-secret|localpeer"
)
OWN_GLOBAL = {
    **GLOBAL_RESERVED,
    "master-worker": "fc-frontend starts HAProxy in the way that fits (haproxy.supervise)",
    "mworker-max-reloads": "hard-stop-after bounds old workers",
    "pidfile": "the master socket tells what runs",
    "quiet": "the service manager decides",
    "nbproc": "HAProxy 2.5 and later have threads only",
    "server-state-base": "fc-frontend writes its own",
}
"""Lines of `global` that fc-frontend writes itself or does not need, and the reasons."""
_UNSAFE = {
    "zero-warning": "HAProxy warns of things that are meant; let `fc-frontend check` judge",
    "uid": "set haproxy.user to the account's name",
    "gid": "set haproxy.group to the group's name",
}
_RUNS_CODE = re.compile(
    r"lua-.*|external-check|insecure-.*|ssl-engine|ssl-provider.*|module-.*|wurfl-.*|51degrees-.*"
    r"|deviceatlas-.*|expose-.*"
)
_DURATION = re.compile(r"([0-9]{1,9})(us|ms|s|m|h|d)?")
_RESOLVERS_OURS = {
    "accepted_payload_size": "65535",
    "resolve_retries": "3",
    "timeout retry": "1s",
    "hold obsolete": "0s",
    "hold nx": "30s",
    "hold timeout": "1d",
    "hold refused": "1d",
    "hold other": "1d",
}
_MOST_NAMESERVERS = 8
_HOST = re.compile(r"(?P<name>(?=[^:]*[A-Za-z])[A-Za-z0-9_.-]{1,253})(?::(?P<port>[0-9]{1,5}))?")


@dataclass(slots=True)
class FoundSettings:
    """The settings, and problems: parts that were not imported (errors) or differ (warnings)."""

    cluster: dict[str, Any] = field(default_factory=dict)
    haproxy: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)
    global_extra: list[str] = field(default_factory=list)
    has_log: bool = False
    problems: list[Problem] = field(default_factory=list)


def take_global(found: FoundSettings, sections: Iterable[OldSection], own_log: Meaning) -> None:
    """Add the `global` sections; `own_log` is the log line that fc-frontend writes by default."""
    logs: list[tuple[OldSection, Line]] = []
    for section in sections:
        inside = 0
        for line in section.statements:
            word = line.words[0].text
            if word.startswith(".") or inside:
                inside += {".if": 1, ".endif": -1}.get(word, 0)
                _left(found, section, line, "a condition of HAProxy's preprocessor")
            elif line.keyword == "log":
                logs = [] if line.negated else [*logs, (section, line)]
            else:
                _global_line(found, section, line)
    found.has_log = bool(logs)
    meanings = [meaning_of(line) for _, line in logs]
    if logs and meanings != [own_log]:
        found.global_extra += ["no log", *(line.source for _, line in logs)]


def _global_line(found: FoundSettings, section: OldSection, line: Line) -> None:
    keyword, arguments = line.keyword, line.arguments
    plain = not any(word.variable for word in line.words) and not line.negated
    if keyword in ("user", "group", "hard-stop-after") and plain and len(arguments) == 1:
        _field(found, section, line)
    elif keyword == "stats" and arguments[:1] == ("socket",):
        _stats_socket(found, section, line)
    elif keyword == "stats" and arguments[:1] in (("timeout",), ("maxconn",)):
        if arguments != ("timeout", "30s"):
            found.global_extra.append(line.source)
    elif keyword in _UNSAFE:
        _left(found, section, line, "not carried over", _UNSAFE[keyword])
    elif keyword in OWN_GLOBAL:
        found.problems.append(
            _problem(
                section, line, f"`{line.code}` is left out", OWN_GLOBAL[keyword], Severity.WARNING
            )
        )
    elif _RUNS_CODE.fullmatch(keyword):
        _left(
            found,
            section,
            line,
            "it runs or loads code, and an import carries over nothing that runs code",
        )
    elif fault := next(raw_line_faults(line.source, Owner.GLOBAL), None):
        _left(found, section, line, fault.message, fault.remedy)
    elif _SAFE.fullmatch(keyword):
        found.global_extra.append(line.source)
    else:
        _left(found, section, line, "not known to the import")


def _field(found: FoundSettings, section: OldSection, line: Line) -> None:
    keyword, value = line.keyword, line.arguments[0]
    if keyword == "hard-stop-after":
        time = _time(value)
        if time is None:
            _left(found, section, line, "not a time from 1s to 7d")
        elif time != "1h":
            found.haproxy["hard_stop_after"] = time
    elif re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", value):
        found.haproxy[keyword] = value
    else:
        _left(found, section, line, "not the name of an account")


def _stats_socket(found: FoundSettings, section: OldSection, line: Line) -> None:
    words = line.arguments[1:]
    path = words[0].removeprefix("unix@") if words else ""
    is_admin = "admin" in words and words[words.index("admin") - 1] == "level"
    usable = (
        bool(SAFE_PATH.fullmatch(path))
        and is_admin
        and not any(word.variable for word in line.words)
    )
    if not usable or found.haproxy.get("runtime_socket", path) != path:
        found.global_extra.append(line.source)
        return
    found.haproxy["runtime_socket"] = path
    options = [word for word in words[1:] if word not in ("level", "admin")]
    if options and options != ["expose-fd", "listeners"]:
        found.problems.append(
            _problem(
                section,
                line,
                f"the socket {path} gets `mode 660` and haproxy.group, not `{' '.join(options)}`",
                "add a further `stats socket` to haproxy.global_extra if that is too narrow",
                Severity.WARNING,
            )
        )


def take_resolvers(
    found: FoundSettings, section: OldSection, address_of: Callable[[str], str | None]
) -> None:
    """Add a `resolvers` section as fc-frontend's own; `address_of` resolves a nameserver's name."""
    nameservers: dict[tuple[str, int], set[str]] = {}
    for line in section.statements:
        keyword, arguments = line.keyword, line.arguments
        what = f"{keyword} {arguments[0]}" if keyword in ("timeout", "hold") and arguments else ""
        if line.words[0].text.startswith(".") or any(word.variable for word in line.words):
            _left(found, section, line, "it depends on a condition or a variable")
        elif keyword == "nameserver":
            _nameserver(found, section, line, nameservers, address_of)
        elif keyword == "parse-resolv-conf":
            found.problems.append(
                _problem(
                    section,
                    line,
                    "fc-frontend reads resolv.conf by itself if cluster.nameservers is not set",
                    "set cluster.nameservers to ask others",
                    Severity.WARNING,
                )
            )
        elif what == "timeout resolve":
            value = _time(arguments[-1], least_ms=100, most_ms=3_600_000)
            if value is None:
                _left(found, section, line, "not a time from 100ms to 1h")
            elif value != "1s":
                found.intervals["resolve"] = value
        elif keyword == "accepted_payload_size" or (
            arguments and _RESOLVERS_OURS.get(what or keyword) == arguments[-1]
        ):
            continue  # fc-frontend takes answers of every size
        else:
            found.problems.append(
                _problem(
                    section,
                    line,
                    f"`{line.code}`: fc-frontend has its own value for that"
                    + (f", {_RESOLVERS_OURS[what]}" if what in _RESOLVERS_OURS else ""),
                    "override resolvers.cfg.j2 (haproxy.templates) if that does not fit",
                    Severity.WARNING,
                )
            )
    said = []
    for (host, port), transports in nameservers.items():
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        said.append(f"tcp://{shown}" if transports == {"tcp"} else shown)
    if said:
        found.cluster["nameservers"] = said[:_MOST_NAMESERVERS]
    if len(said) > _MOST_NAMESERVERS:
        found.problems.append(
            _problem(
                section,
                section.header,
                f"{len(said)} nameservers, of which the first {_MOST_NAMESERVERS} are taken",
                "choose those that matter",
            )
        )


def _nameserver(
    found: FoundSettings,
    section: OldSection,
    line: Line,
    nameservers: dict[tuple[str, int], set[str]],
    address_of: Callable[[str], str | None],
) -> None:
    text = line.arguments[1] if len(line.arguments) > 1 else ""
    match = re.fullmatch(r"(?:(udp|tcp)[46]?@|ipv[46]@)?(.+)", text)
    bare = match[2] if match else text
    if host := _HOST.fullmatch(bare):
        address = address_of(host["name"])
        if address is None:
            _left(
                found,
                section,
                line,
                f"the address of {host['name']} is not known here",
                f"add the address that `getent ahosts {host['name']}` prints on the frontend VM "
                "to cluster.nameservers",
            )
            return
        found.problems.append(
            _problem(
                section,
                line,
                f"nameserver {host['name']} becomes its present address, {address}",
                "change cluster.nameservers when that address changes",
                Severity.WARNING,
            )
        )
        bare = f"[{address}]" if ":" in address else address
        bare += f":{host['port'] or 53}"
    try:
        parsed: Nameserver = parse_nameserver(bare)
    except NotAnAddress as exc:
        _left(found, section, line, f"{text or 'no address'}: {exc}", exc.remedy)
        return
    transport = (match and match[1]) or "udp"
    nameservers.setdefault((str(parsed.address), parsed.port), set()).add(transport)


_STATS_LINES = re.compile(
    r"mode|bind|stats (?:enable|uri|refresh)|option (?:dontlog-normal|httplog|dontlognull)|log"
    r"|timeout|maxconn"
)


def stats_bind(section: OldSection) -> str | None:
    """Return the address of a statistics page like fc-frontend's own; None for other sections."""
    binds, uri, mode = [], "", "tcp"
    statements = section.statements
    for line in [*(one for base in section.lineage() for one in base.statements), *statements]:
        arguments = line.arguments
        if line.keyword == "mode" and arguments:
            mode = arguments[0]
        if line not in statements:
            continue
        what = f"{line.keyword} {arguments[0]}" if arguments else line.keyword
        if not (_STATS_LINES.fullmatch(line.keyword) or _STATS_LINES.fullmatch(what)):
            return None
        if any(word.variable for word in line.words):
            return None
        if line.keyword == "bind":
            binds.append(arguments)
        if what == "stats uri":
            uri = arguments[-1]
    if mode != "http" or uri != "/" or len(binds) != 1 or len(binds[0]) != 1:
        return None
    try:
        bind = parse_bind(normal_bind(binds[0][0]))
    except NotAnAddress:
        return None
    return str(bind) if bind.kind == "ip" else None


def unset_notice(
    unset: Iterable[tuple[str, tuple[str, ...]]], *, has_fragments: bool
) -> list[Problem]:
    """Return warnings about lines that fc-frontend's own `defaults` add to services, by mode."""
    said: dict[str, dict[str, None]] = {}
    for mode, lines in unset:
        said.setdefault(mode, {}).update(dict.fromkeys(lines))
    return [
        Problem(
            f"services with mode {mode} also get what fc-frontend sets by default: "
            + "; ".join(lines),
            remedy="nothing to do if that fits; else set haproxy.defaults_extra or a service's "
            "extra_config" + (" (fragments keep their own defaults)" if has_fragments else ""),
            severity=Severity.WARNING,
        )
        for mode, lines in said.items()
        if lines
    ]


def _time(text: str, least_ms: int = 1000, most_ms: int = 7 * 86_400_000) -> str | None:
    match = _DURATION.fullmatch(text)
    if not match or match[2] == "us":
        return None
    unit = match[2] or "ms"
    factor = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}[unit]
    milliseconds = int(match[1]) * factor
    return f"{int(match[1])}{unit}" if least_ms <= milliseconds <= most_ms else None


def _problem(
    section: OldSection,
    line: Line,
    message: str,
    remedy: str,
    severity: Severity = Severity.ERROR,
) -> Problem:
    return Problem(message, remedy, severity=severity, file=section.file, line=line.number)


def _left(
    found: FoundSettings, section: OldSection, line: Line, reason: str, remedy: str = ""
) -> None:
    field_name = "haproxy.global_extra" if section.kind == "global" else "the settings"
    found.problems.append(
        _problem(
            section,
            line,
            f"`{line.code}` is not carried over: {reason}",
            remedy or f"add it to {field_name} yourself if it is needed",
        )
    )
