"""Services of type LoadBalancer: from creation to status and first request; many; a restart.

The first row of each number of Services is the time for one more.  Its baseline, a lower bound, is
`haproxy -c` of the same text and a reload with it.
"""

from __future__ import annotations

import http.client
import itertools
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fc_frontend.demo.load import Load
from fc_frontend.haproxy.reload import reload_by_master
from fc_frontend.haproxy.version import binary_version
from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.api_cluster import READY, ApiFrontend
from tests.support.certificates import Certificates, make_certificates

POOL = 1022
_PATIENCE = 300.0


def rows(options: Options) -> list[dict[str, object]]:
    """Return rows for each version and number of Services."""
    found: list[dict[str, object]] = []
    numbers = options.services_or((1, 500), quick=(1, 100))
    with tempfile.TemporaryDirectory() as directory:
        certificates = make_certificates(Path(directory))
        for version, services in itertools.product(options.versions, numbers):
            found += measure(version, services, options, certificates)
    return found


def measure(
    version: str, services: int, options: Options, certificates: Certificates
) -> list[dict[str, object]]:
    """Measure all of them at once, a restart, and one more at a time."""
    with ApiFrontend(binary_of(version), certificates) as frontend:
        pool = {"addresses": f"127.{frontend.octet}.208.0/22", "default": True}
        frontend.settings["load_balancer"] = {"pools": {"public": pool}}
        frontend.settings["intervals"] = {"resolve": "1s"}
        pods = frontend.scale("shop", 1, publish=False)
        frontend.start()

        def create(name: str) -> float:
            frontend.endpoints(name, dict.fromkeys(pods.addresses, READY), port_names=["tcp-80"])
            frontend.balanced_service(name)
            return time.monotonic()

        began = time.monotonic()
        names = [f"web{number}" for number in range(services)]
        for name in names:
            create(name)
        frontend.until(lambda: all(_address(frontend, name) for name in names), _PATIENCE)
        at_once = time.monotonic() - began
        reloads = len(frontend.events("config-reloaded"))
        before = {name: _address(frontend, name) for name in names}
        address = before[names[-1]]
        with Load(address, 80, clients=2) as load:
            frontend.until(lambda: load.tally().requests > 50)
            frontend.stop_daemon(signal.SIGKILL)
            frontend.start()
            done = load.tally().requests
            frontend.until(lambda: load.tally().requests > done + 200)
        failed = len(load.tally().failures)
        changed = sum(_address(frontend, name) != before[name] for name in names)
        frontend.until(lambda: frontend.metric("fc_frontend_load_balancer_leader") == 1)
        told, served, floors = [], [], []
        for number in range(3 if options.quick else 10):
            # Longer than `intervals.reload`, which is 2 s.
            time.sleep(2.5)
            name = f"more{number}"
            created = create(name)
            told.append(_time(created, partial(_address, frontend, name)))
            where = _address(frontend, name)
            served.append(_time(created, partial(_answers, where)))
            floors.append(_floor(frontend))
        total = statistics.median(told)
        floor = statistics.median(floors)
        common = {"HAProxy": version, "Services": services}
        return [
            {
                **common,
                "what": "one more: to its status",
                "seconds": f"{total:.2f}",
                "haproxy -c and reload": f"{floor:.2f}",
                "ratio": f"{total / floor:.1f}",
                "reloads": "1",
                "address changes": "-",
                "failed requests": "-",
            },
            {
                **common,
                "what": "one more: to its first request",
                "seconds": f"{statistics.median(served):.2f}",
                "haproxy -c and reload": f"{floor:.2f}",
                "ratio": f"{statistics.median(served) / floor:.1f}",
                "reloads": "1",
                "address changes": "-",
                "failed requests": "-",
            },
            {
                **common,
                "what": "all at once",
                "seconds": f"{at_once:.2f}",
                "haproxy -c and reload": "-",
                "ratio": "-",
                "reloads": str(reloads),
                "address changes": "-",
                "failed requests": "-",
            },
            {
                **common,
                "what": "kill and restart",
                "seconds": "-",
                "haproxy -c and reload": "-",
                "ratio": "-",
                "reloads": "-",
                "address changes": str(changed),
                "failed requests": str(failed),
            },
        ]


def _address(frontend: ApiFrontend, name: str) -> str:
    """Return the address in the status of a Service."""
    status = frontend.api.objects.now["services", "default", name]["status"]
    ingress = status.get("loadBalancer", {}).get("ingress") or [{"ip": ""}]
    return str(ingress[0]["ip"])


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, 80, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _time(since: float, is_done: Callable[[], object]) -> float:
    while not is_done():
        time.sleep(0.005)
    return time.monotonic() - since


def _floor(frontend: ApiFrontend) -> float:
    """Return the seconds of `haproxy -c` of the installed text and of a reload with it."""
    haproxy = frontend.settings["haproxy"]
    began = time.monotonic()
    subprocess.run(
        [frontend.binary, "-c", "-f", str(frontend.haproxy_cfg)], check=True, capture_output=True
    )
    reload_by_master(haproxy["master_socket"], binary_version(frontend.binary), 60.0)
    return time.monotonic() - began
