"""HAProxy's CPU time per request, by the number of hosts on a frontend.

The frontend's own rules, with requests for the last host and for a wildcard, are compared to a
frontend with one backend and to an ACL with `use_backend` for each host.  Services respond by
themselves, so that routing is most of what is measured; in microseconds of the worker's CPU.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

import psutil

from fc_frontend.syntax.routes import Match, http_routes, map_entries, map_path, map_text, rules
from tests.bench.options import Options
from tests.conftest import HASH, RealHaproxy, binary_of

_ACLS = 1000
"""The maximum number of hosts for ACLs; a larger configuration takes too long to load."""


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each HAProxy and number of hosts."""
    requests = 2000 if options.quick else 20_000
    sizes = options.services_or((10, 1000, 10_000), quick=(10, 1000))
    return [_row(version, hosts, requests) for version in options.versions for hosts in sizes]


def _row(version: str, hosts: int, requests: int) -> dict[str, object]:
    directory = Path(tempfile.mkdtemp(prefix="fcb-", dir="/tmp"))
    haproxy = RealHaproxy(binary_of(version), directory)
    last = f"host{hosts - 1}.example.org"
    try:
        haproxy.start(_configuration(haproxy, hosts))
        one = _cpu(haproxy, "one", last, requests)
        host = _cpu(haproxy, "maps", last, requests)
        wildcard = _cpu(haproxy, "maps", f"x.wild{hosts - 1}.example.org", requests)
        acls = _cpu(haproxy, "acls", last, requests) if hosts <= _ACLS else None
    finally:
        haproxy.end()
        shutil.rmtree(directory)
    return {
        "haproxy": version,
        "hosts": hosts,
        "one backend µs": f"{one:.1f}",
        "host µs": f"{host:.1f}",
        "wildcard µs": f"{wildcard:.1f}",
        "acls µs": "" if acls is None else f"{acls:.1f}",
        "host × one": f"{host / one:.2f}",
        "wildcard × one": f"{wildcard / one:.2f}",
    }


def _configuration(haproxy: RealHaproxy, hosts: int) -> str:
    directory = haproxy.directory
    (directory / "fc-frontend-maps").mkdir()
    routes = [
        *http_routes("maps", [f"host{number}.example.org" for number in range(hosts)], []),
        *http_routes("maps", [f"*.wild{number}.example.org" for number in range(hosts)], []),
    ]
    entries = map_entries([("site", "\n".join(route.line for route in routes))])
    for match in (Match.EXACT, Match.PREFIX):
        path = Path(map_path(str(directory), "maps", match))
        path.write_text(map_text(entries.get(("maps", match), {})))
    acls = [
        f"    use_backend site if {{ req.hdr(host) -i host{number}.example.org }}"
        for number in range(hosts if hosts <= _ACLS else 0)
    ]
    return "\n".join(
        [
            "global",
            "    nbthread 1",
            f"    description fc-frontend:{HASH}",
            f"    stats socket {haproxy.runtime_socket} level admin",
            "defaults",
            "    mode http",
            "    timeout client 60s",
            "    timeout server 60s",
            "    timeout connect 5s",
            "backend site",
            "    http-request return status 200",
            "frontend one",
            f"    bind unix@{directory}/one.sock",
            "    default_backend site",
            "frontend acls",
            f"    bind unix@{directory}/acls.sock",
            *acls,
            "frontend maps",
            f"    bind unix@{directory}/maps.sock",
            *(f"    {line}" for line in rules(str(directory), "maps", Match.PREFIX)),
            "    use_backend %[var(txn.fc_service)]",
            "",
        ]
    )


def _cpu(haproxy: RealHaproxy, frontend: str, host: str, requests: int) -> float:
    """Return the microseconds of the worker's CPU for one request."""
    worker = haproxy.processes().worker
    assert worker is not None
    process = psutil.Process(worker)
    request = f"GET /some/path HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(haproxy.directory / f"{frontend}.sock"))

        def ask(count: int) -> None:
            for _ in range(count):
                connection.sendall(request)
                answer = connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200"), answer

        ask(requests // 10)
        before = process.cpu_times()
        ask(requests)
        after = process.cpu_times()
    used = (after.user + after.system) - (before.user + before.system)
    return used / requests * 1_000_000
