"""Faults under load, beside plain HAProxy with the platform documentation's configuration.

The same fault happens to both, with the same clients.  `unserved` are pods that got no traffic, or
new services that nobody answers for, a while after the fault.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from fc_frontend.demo.dns import Fault, KubernetesService
from fc_frontend.haproxy.master import show_proc
from tests.bench.contenders import (
    HTTP,
    TOGGLED,
    FcFrontend,
    PlainHaproxy,
    cluster,
    takes,
    tell_failures,
)
from tests.bench.load import Clients
from tests.bench.options import Options
from tests.conftest import binary_of

Someone = FcFrontend | PlainHaproxy
Scenario = Callable[[Someone, float], str]
OUTAGE = 45.0
"""Seconds: plain HAProxy keeps its servers for about 32 s."""
PODS = 4


def outage(fault: Fault) -> Scenario:
    """Cluster DNS is ill for a while."""

    def scenario(contender: Someone, seconds: float) -> str:
        contender.frontend.dns.fault = fault
        time.sleep(seconds)
        return ""

    return scenario


def with_reload(fault: Fault) -> Scenario:
    """Cluster DNS is ill, and HAProxy is reloaded for a new service."""

    def scenario(contender: Someone, _seconds: float) -> str:
        contender.frontend.dns.fault = fault
        time.sleep(1)
        contender.reload(0)
        time.sleep(4)
        return ""

    return scenario


def pod_dies(contender: Someone, _seconds: float) -> str:
    """A pod is gone, and DNS names it still."""
    contender.frontend.scale("shop", PODS - 1, publish=False)
    time.sleep(8)
    return ""


def many_pods(contender: Someone, _seconds: float) -> str:
    """More pods than the twenty slots that were thought to be enough."""
    frontend = contender.frontend
    if isinstance(contender, FcFrontend):
        # Nobody has to guess a number there.
        frontend.settings["services"]["shop"]["slots"] = "auto"
        frontend.write()
    pods = frontend.scale("shop", 25)
    time.sleep(5)
    before = {pod.name: pod.requests for pod in pods.pods}
    frontend.answers(HTTP, 250)
    idle = sum(pod.requests == before[pod.name] for pod in pods.pods)
    return f"{idle} of 25 pods" if idle else ""


def foreign_address(contender: Someone, _seconds: float) -> str:
    """DNS names an address that is none of the pods', where nobody serves."""
    frontend = contender.frontend
    pods = frontend.pods["shop"].addresses
    foreign = f"127.{frontend.octet}.250.1"
    service = KubernetesService("shop", ports={"http": 8080}, endpoints=pods)
    frontend.dns.set_service(replace(service, endpoints=(*pods, foreign)))
    time.sleep(6)
    return ""


def bad_snippet(contender: Someone, _seconds: float) -> str:
    """One team's snippet is wrong; another team adds a service."""
    frontend, port = contender.frontend, TOGGLED + 1
    if isinstance(contender, FcFrontend):
        bad = frontend.service("shop", 8090, extra_config="nonsense here")
        frontend.drop("bad.json", {"bad": bad})
        contender.reload(0)
    else:
        text = contender.text(port).replace("listen toggle", "  nonsense here\nlisten toggle")
        contender.haproxy.write(text)
        # As systemd does it: `haproxy -c` refuses, and the reload does not take place.
    time.sleep(2)
    return "" if takes(frontend.host, port) else "the new service"


def taken_bind(contender: Someone, _seconds: float) -> str:
    """Another process holds a bind that a new service wants."""
    contender.take(2.5)
    return ""


def reload_by_hand(contender: Someone, _seconds: float) -> str:
    """Somebody reloads HAProxy."""
    os.kill(show_proc(master_socket(contender)).master, signal.SIGUSR2)
    time.sleep(4)
    return ""


def broken_file(contender: Someone, _seconds: float) -> str:
    """Somebody breaks haproxy.cfg, and it is reloaded a little later."""
    contender.frontend.haproxy_cfg.write_text("nonsense\n")
    time.sleep(7)
    os.kill(show_proc(master_socket(contender)).master, signal.SIGUSR2)
    time.sleep(2)
    return ""


def killed(contender: Someone, _seconds: float) -> str:
    """fc-frontend is killed, DNS changes, it starts again; plain HAProxy has nothing to kill."""
    if isinstance(contender, FcFrontend):
        contender.frontend.stop_daemon(signal.SIGKILL)
        contender.frontend.scale("shop", PODS + 2)
        time.sleep(2)
        contender.frontend.start()
    else:
        contender.frontend.scale("shop", PODS + 2)
    time.sleep(3)
    return ""


SCENARIOS: dict[str, Scenario] = {
    "DNS silent": outage(Fault.SILENT),
    "DNS SERVFAIL": outage(Fault.SERVFAIL),
    "DNS truncated, no TCP": outage(Fault.TRUNCATED_NO_TCP),
    "DNS silent, a reload": with_reload(Fault.SILENT),
    "NXDOMAIN, a reload": with_reload(Fault.NXDOMAIN),
    "a pod dies, DNS names it": pod_dies,
    "25 pods, 20 slots": many_pods,
    "a foreign address in DNS": foreign_address,
    "a bad snippet, a new service": bad_snippet,
    "a new bind is taken": taken_bind,
    "reload by hand": reload_by_hand,
    "haproxy.cfg broken, a reload": broken_file,
    "fc-frontend killed, pods change": killed,
}


def master_socket(contender: Someone) -> str:
    """Where the contender's HAProxy is controlled."""
    if isinstance(contender, PlainHaproxy):
        return contender.haproxy.master_socket
    return str(contender.frontend.settings["haproxy"]["master_socket"])


def rows(options: Options) -> list[dict[str, object]]:
    """A row for each HAProxy and fault."""
    seconds = 5.0 if options.quick else OUTAGE
    found = []
    for version in options.versions:
        for name, scenario in SCENARIOS.items():
            row: dict[str, object] = {"HAProxy": version, "fault": name}
            for kind in (FcFrontend, PlainHaproxy):
                row |= measure(kind, version, name, scenario, seconds)
            print(json.dumps(row), file=sys.stderr, flush=True)
            found.append(row)
    return found


def measure(
    kind: type[Someone], version: str, name: str, scenario: Scenario, seconds: float
) -> dict[str, object]:
    """Requests sent to one contender, those that failed, and what was not served."""
    with cluster(binary_of(version)) as frontend:
        frontend.scale("shop", PODS)
        contender = kind(frontend)
        contender.start()
        with Clients(frontend.host, http=HTTP, keep=10, new=10, pause=0.1) as crowd:
            time.sleep(0.5)
            started = time.monotonic()
            unserved = scenario(contender, seconds)
            time.sleep(0.5)
            loaded = crowd.end()
        frontend.dns.fault = Fault.NONE
        if kind is FcFrontend:
            tell_failures(f"{version}, {name}", loaded, [(started, "the fault")], frontend)
    who = "plain" if kind is PlainHaproxy else "ours"
    return {
        f"{who}: requests": loaded.requests,
        f"{who}: failed": loaded.failed,
        f"{who}: unserved": unserved,
    }
