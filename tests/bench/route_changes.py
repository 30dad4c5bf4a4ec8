"""From a changed file to the first request for its new route, by the number of services.

A service's file adds one more host, for which a client sends requests continuously.  No route may
cause a reload or a check of HAProxy.
"""

from __future__ import annotations

import http.client
import json
import time

from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.frontend import Frontend

_PORT = 8080
_PAUSE = 0.2
"""Seconds between two changes."""
_LONGEST = 30.0


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each HAProxy and number of services."""
    changes = 10 if options.quick else 50
    sizes = options.services_or((1, 100, 1000), quick=(1, 100))
    return [_row(version, count, changes) for version in options.versions for count in sizes]


def _row(version: str, count: int, changes: int) -> dict[str, object]:
    with Frontend(binary_of(version)) as frontend:
        frontend.settings["frontends"] = {"web": {"binds": f"{frontend.host}:{_PORT}"}}
        frontend.scale("site", 1)
        for number in range(1, count):
            name = f"other{number}"
            frontend.drop(f"{name}.yaml", json.dumps(_declared(name, [f"{name}.test"])))
        frontend.drop("site.yaml", json.dumps(_declared("site", ["host.test"])))
        frontend.start()
        frontend.until(lambda: _status(frontend.host, "host.test") == 200)
        before = frontend.metrics()
        took, failed = [], 0
        hosts = ["host.test"]
        for number in range(changes):
            hosts.append(f"new{number}.test")
            text = json.dumps(_declared("site", hosts))
            began = time.monotonic()
            frontend.drop("site.yaml", text)
            while _status(frontend.host, hosts[-1]) != 200 and time.monotonic() < began + _LONGEST:
                failed += _status(frontend.host, "host.test") != 200
            took.append(time.monotonic() - began)
            time.sleep(_PAUSE)
        after = frontend.metrics()
    took.sort()

    def counted(metric: str) -> int:
        return int(after.sum(metric) - before.sum(metric))

    return {
        "haproxy": version,
        "services": count,
        "changes": changes,
        "p50 ms": f"{took[len(took) // 2] * 1000:.1f}",
        "max ms": f"{took[-1] * 1000:.1f}",
        "failed": failed,
        "reloads": counted("fc_frontend_reloads_total"),
        "checks": counted("fc_frontend_checks_total"),
    }


def _declared(name: str, hosts: list[str]) -> dict[str, object]:
    service = {"frontend": "web", "service": "site", "hosts": hosts, "pod_port": 8080}
    return {"services": {name: service}}


def _status(host: str, name: str) -> int:
    connection = http.client.HTTPConnection(host, _PORT, timeout=5)
    try:
        connection.request("GET", "/", headers={"Host": name})
        return connection.getresponse().status
    finally:
        connection.close()
