"""Faults under load, with fc-frontend and with the documentation's plain configuration.

Both run at the same time, each with a cluster and some 100 requests/s of its own, and are exposed
to the same faults.  The operator of plain HAProxy has a script that runs `haproxy -c` before it
installs and reloads.  A service that is added in a scenario receives requests from 5 s after the
change on, at a fifth of the rate.  `failing s` is the time from the first failed request to the
last.  Restarts of HAProxy close its listeners for a moment in either case.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fc_frontend.demo.dns import Fault, KubernetesService
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.reload import reload_by_master
from tests.bench.options import Options
from tests.conftest import RealHaproxy, binary_of
from tests.support.contenders import (
    HTTP,
    SLOTS,
    TAKEN,
    TOGGLED,
    FcFrontend,
    PlainHaproxy,
    cluster,
    tell_failures,
)
from tests.support.frontend import Frontend
from tests.support.load import Clients, Loaded

PODS = 4
CLIENTS, ADDED_CLIENTS, PAUSE = 20, 4, 0.2
ADDED, MOVED, SECURE = 8090, 8091, 8443
OUTAGE, SHORT_OUTAGE = 45.0, 36.0
"""Seconds; plain HAProxy gives up its servers after 32."""
TIME_TO_COME = 5.0
"""Seconds after which an added service is expected to respond."""
AFTER = 3.0
NAMES = ("shop.default.svc.cluster.local", "*.shop.default.svc.cluster.local")
EDGE = (
    "frontend edge\n  bind {host}:8096\n  mode http\n"
    "  use_backend used if {{ path_beg /used }}\n  default_backend shop\n"
)
BAD_SNIPPET = "listen bad\n  bind 127.0.0.1:8095\n  no-such-keyword\n"


class Ours(FcFrontend):
    """fc-frontend with its default intervals and slots."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__(frontend)
        self.haproxy = RealHaproxy(frontend.binary, frontend.directory)

    def begin(self, *, secure: Path | None, supervise: bool) -> None:
        """Serve `shop`; a HAProxy that is not supervised is started first."""
        frontend = self.frontend
        frontend.settings["intervals"] = {}
        frontend.settings["haproxy"]["supervise"] = supervise
        frontend.settings["services"]["shop"] = frontend.service("shop", HTTP)
        if secure:
            self._declare("secure", SECURE, bind_options=f"ssl crt {secure}")
        if not supervise:
            frontend.external = self.haproxy
            self.haproxy.start()
        frontend.start()
        frontend.until(lambda: frontend.ask(HTTP).startswith("shop-"))

    def add(self, *, bad_snippet: bool = False, taken: bool = False) -> None:
        """Declare `added`, and optionally a unit that cannot be served; return at once."""
        if bad_snippet:
            self.frontend.drop("bad.cfg", BAD_SNIPPET)
        if taken:
            self._declare("taken", TAKEN)
        self._declare("added", ADDED)

    def by_hand(self) -> None:
        """Add, as a fragment, the section that plain HAProxy has for `added`."""
        self.frontend.drop("by-hand.cfg", by_hand(self.frontend))

    def refer(self) -> None:
        """Add a frontend that uses `shop` by default, and `used` for some requests."""
        self._declare("used", MOVED)
        self.frontend.drop("edge.cfg", EDGE.format(host=self.frontend.host))

    def remove_used(self) -> None:
        """Remove the backend `used`, to which the frontend refers."""
        (self.frontend.services_d / "used.json").unlink()

    def move(self, port: int) -> None:
        """Change the port of `added`."""
        self._declare("added", port)

    def mistake(self) -> None:
        """Break the declaration of `added`."""
        self.frontend.drop("added.json", '{"services": ')

    def _declare(self, name: str, port: int, **fields: Any) -> None:
        declared = self.frontend.service("shop", port, **fields)
        self.frontend.drop(f"{name}.json", {name: declared})

    def master(self) -> int:
        """Return the process ID of HAProxy's master."""
        return show_proc(self.frontend.settings["haproxy"]["master_socket"], patience=5).master

    def suspend(self, number: int) -> None:
        """Send the daemon a signal that stops it."""
        if number == signal.SIGKILL:
            self.frontend.stop_daemon(number)
        else:
            assert self.frontend.daemon
            self.frontend.daemon.send_signal(number)

    def resume(self) -> None:
        """Continue the daemon, or start it again."""
        if self.frontend.daemon:
            self.frontend.daemon.send_signal(signal.SIGCONT)
        else:
            self.frontend.start()


class Theirs(PlainHaproxy):
    """The documentation's configuration, and a script that an operator may use."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__(frontend)
        self._sections: list[str] = []

    def begin(self, *, secure: Path | None, supervise: bool) -> None:
        """Serve `shop`; HAProxy is not supervised in either case."""
        del supervise
        if secure:
            self._sections.append(self._section("secure", SECURE, f" ssl crt {secure}"))
        self.start()

    def add(self, *, bad_snippet: bool = False, taken: bool = False) -> None:
        """Check a configuration with `added`; install it and reload, unless it is rejected."""
        if bad_snippet:
            self._sections.append(BAD_SNIPPET)
        if taken:
            self._sections.append(self._section("taken", TAKEN))
        self._sections.append(self._section("added", ADDED))
        self._deploy()

    def by_hand(self) -> None:
        """Add the section of `added`."""
        self._sections.append(by_hand(self.frontend))
        self._deploy()

    def refer(self) -> None:
        """Add a frontend that uses `shop` by default, and `used` for some requests."""
        self._sections.append(EDGE.format(host=self.frontend.host))
        self._sections.append(self._section("used", MOVED))
        self._deploy()

    def remove_used(self) -> None:
        """Remove the backend `used`, to which the frontend refers."""
        del self._sections[-1]
        self._deploy()

    def move(self, port: int) -> None:
        """Change the port of `added`."""
        self._sections[:] = [self._section("added", port)]
        self._deploy()

    def mistake(self) -> None:
        """Break the section of `added`."""
        self._sections.append("  no-such-keyword\n")
        self._deploy()

    def _deploy(self) -> None:
        candidate = self.frontend.directory / "candidate.cfg"
        candidate.write_text(self.text(TOGGLED))
        argv = [self.frontend.binary, "-c", "-f", str(candidate)]
        judged = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        if judged.returncode == 0:
            candidate.rename(self.haproxy.config_file)
            with contextlib.suppress(Unavailable):
                reload_by_master(self.haproxy.master_socket, self.version, 60)

    def master(self) -> int:
        """Return the process ID of HAProxy's master."""
        return show_proc(self.haproxy.master_socket, patience=5).master

    def suspend(self, number: int) -> None:
        """Do nothing: there is no daemon that could fail."""

    def resume(self) -> None:
        """Do nothing: there is no daemon."""

    def text(self, toggled: int) -> str:
        return super().text(toggled) + "".join(self._sections)

    def _section(self, name: str, port: int, options: str = "") -> str:
        return by_hand(self.frontend, name, port, options)


def by_hand(frontend: Frontend, name: str = "added", port: int = ADDED, options: str = "") -> str:
    """Return the section of a service as in the documentation."""
    return (
        f"listen {name}\n  bind {frontend.host}:{port}{options}\n"
        f"  server-template pod {SLOTS} *.shop.default.svc.cluster.local:8080 check "
        "resolvers cluster init-addr none\n"
    )


class Stage:
    """One contender in one scenario, and the actions on it."""

    def __init__(self, contender: Ours | Theirs, options: Options) -> None:
        self.contender = contender
        self.frontend = contender.frontend
        self.outage = SHORT_OUTAGE if options.quick else OUTAGE
        self.pem = self.frontend.directory / "secure.pem"
        self.phases: list[tuple[float, str]] = []
        self.notes: list[str] = []
        self._added: Clients | None = None

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Run under load; afterwards `came` contains the results."""
        half = CLIENTS // 2
        with (
            Clients(self.frontend.host, http=HTTP, keep=half, new=half, pause=PAUSE) as crowd,
            contextlib.ExitStack() as self._stack,
        ):
            self.phase("the clients' start")
            time.sleep(1)
            yield
            self.came = [crowd.end()]
            if self._added:
                self.came.append(self._added.end())

    def phase(self, name: str) -> None:
        """Record the beginning of a phase."""
        self.phases.append((time.monotonic(), name))

    def wait(self, seconds: float, name: str) -> None:
        """Wait under load, in a phase of its own."""
        self.phase(name)
        time.sleep(seconds)

    def dns(self, fault: Fault) -> None:
        """Set the fault of cluster DNS from now on."""
        self.phase(f"DNS: {fault.value}")
        self.frontend.dns.fault = fault

    def reload(self) -> None:
        """Make a change that needs a reload."""
        self.phase("a change")
        before = self.contender.reloads()
        self.contender.add()
        self.frontend.until(lambda: self.contender.reloads() > before)

    def add(self, **faults: bool) -> None:
        """Add a service together with a fault; after `TIME_TO_COME`, send it requests for 10 s."""
        self.phase("the change")
        self.contender.add(**faults)
        time.sleep(TIME_TO_COME)
        self.ask_added()
        time.sleep(10)

    def ask_added(self, port: int = ADDED) -> None:
        """Send requests to the added service, too, from now on."""
        self.phase("the added service is asked")
        half = ADDED_CLIENTS // 2
        added = Clients(self.frontend.host, http=port, keep=half, new=half, pause=PAUSE, now=True)
        self._added = self._stack.enter_context(added)

    def publish(self, *addresses: str) -> None:
        """Set the addresses of `shop` in cluster DNS."""
        service = KubernetesService("shop", ports={"http": 8080}, endpoints=addresses)

        async def publish() -> None:
            self.frontend.dns.set_service(service)

        self.phase("other addresses in DNS")
        self.frontend.call(publish())

    def replace_pods(self) -> None:
        """Replace all pods, as in a rollout: DNS changes, and the former pods end 5 s later."""
        pods = self.frontend.scale("shop", 2 * PODS, publish=False)
        former = pods.pods[:PODS]
        self.publish(*pods.addresses[PODS:])
        time.sleep(5)
        self.phase("the former pods end")
        for pod in former:
            self.frontend.call(pods.remove(pod, grace=1.0))


def dns_fails(fault: Fault, *, reload: bool = False) -> Callable[[Stage], None]:
    """Return a scenario: all of cluster DNS fails for some time, optionally with a reload."""

    def play(stage: Stage) -> None:
        stage.dns(fault)
        began = time.monotonic()
        if reload:
            stage.wait(10, "the outage")
            stage.reload()
        stage.wait(began + stage.outage - time.monotonic(), "the outage goes on")
        stage.dns(Fault.NONE)
        stage.wait(AFTER, "it is over")

    return play


def nxdomain(stage: Stage) -> None:
    """Let cluster DNS respond as for a service without ready pods."""
    stage.phase("NXDOMAIN")
    stage.frontend.dns.fault_for.update(dict.fromkeys(NAMES, Fault.NXDOMAIN))
    stage.wait(5, "the outage")
    stage.reload()
    stage.wait(15, "the outage goes on")
    stage.frontend.dns.fault_for.clear()
    stage.wait(AFTER, "it is over")


def dead_pod(stage: Stage) -> None:
    async def kill() -> None:
        stage.frontend.pods["shop"].pods[0].kill()

    stage.phase("a pod dies")
    stage.frontend.call(kill())
    time.sleep(20)


def broken_certificate(stage: Stage) -> None:
    assert secure_answers(stage.frontend)
    stage.pem.write_text("not a certificate\n")
    stage.add()
    stage.notes.append(f"TLS {'serves' if secure_answers(stage.frontend) else 'fails'}")


def renewed_certificate(stage: Stage) -> None:
    before = served_certificate(stage.frontend)
    stage.phase("a new certificate is renamed over the old one")
    certificate(stage.pem.with_suffix(".new"))
    stage.pem.with_suffix(".new").rename(stage.pem)
    time.sleep(15)
    is_new = served_certificate(stage.frontend) != before
    stage.notes.append(f"TLS has the {'new' if is_new else 'old'} certificate")


def mistake_after_a_move(stage: Stage) -> None:
    """Change a service's port, and break its file 3 s later."""
    stage.contender.add()
    time.sleep(TIME_TO_COME)
    stage.phase("the port changes")
    stage.contender.move(MOVED)
    time.sleep(3)
    stage.ask_added(MOVED)
    stage.phase("the mistake")
    stage.contender.mistake()
    time.sleep(15)


def removed_backend(stage: Stage) -> None:
    """Remove the backend that a hand-written frontend refers to; then add a service."""
    stage.contender.refer()
    time.sleep(TIME_TO_COME)
    stage.phase("what it refers to is removed")
    stage.contender.remove_used()
    time.sleep(TIME_TO_COME)
    stage.add()


def reloads_of_a_fragment(stage: Stage) -> None:
    """Use a hand-written section over six reloads, with a DNS delay of 0.1 s."""
    stage.contender.by_hand()
    time.sleep(TIME_TO_COME)
    stage.ask_added()
    reload_by_hand(0.1, times=6)(stage)


def taken_bind(stage: Stage) -> None:
    async def take() -> asyncio.Server:
        return await asyncio.start_server(lambda *_: None, stage.frontend.host, TAKEN)

    async def leave() -> None:
        holder.close()

    holder = stage.frontend.call(take())
    try:
        stage.add(taken=True)
    finally:
        stage.frontend.call(leave())


def daemon_ends(number: int) -> Callable[[Stage], None]:
    """Return a scenario: fc-frontend is stopped while all pods are replaced."""

    def play(stage: Stage) -> None:
        stage.phase(signal.Signals(number).name)
        stage.contender.suspend(number)
        time.sleep(2)
        stage.replace_pods()
        stage.wait(12, "after the rollout")
        stage.phase("fc-frontend again")
        stage.contender.resume()
        time.sleep(5)

    return play


def reload_by_hand(delay: float, times: int = 5) -> Callable[[Stage], None]:
    """Return a scenario: `systemctl reload haproxy` several times, with a DNS delay in seconds."""

    def play(stage: Stage) -> None:
        stage.frontend.dns.delay = delay
        time.sleep(2)
        for number in range(times):
            stage.phase(f"reload {number + 1}")
            os.kill(stage.contender.master(), signal.SIGUSR2)
            time.sleep(3)

    return play


def edited_file(stage: Stage) -> None:
    """Break haproxy.cfg as with an editor, and restart HAProxy 5 s later."""
    with Path(stage.contender.haproxy.config_file).open("a") as file:
        file.write("lisen mistyped\n")
    stage.wait(5, "the file is edited")
    stage.phase("HAProxy is restarted")
    master = psutil.Process(stage.contender.master())
    master.terminate()
    master.wait(30)
    stage.contender.haproxy.launch()
    time.sleep(10)


def one_pod_too_many(stage: Stage) -> None:
    """Run one pod more than the documentation's example has slots."""
    pods = stage.frontend.scale("shop", SLOTS + 1)
    stage.wait(10, f"{SLOTS + 1} pods")
    before = [pod.requests for pod in pods.pods]
    stage.wait(10, "the pods are counted")
    asked = sum(pod.requests > former for pod, former in zip(pods.pods, before, strict=True))
    stage.notes.append(f"{asked} of {SLOTS + 1} pods asked")


def foreign_address(stage: Stage) -> None:
    """Add to DNS a host outside of the pod network, which returns 404."""
    frontend = stage.frontend
    requests = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while await reader.readuntil(b"\r\n\r\n"):
                requests += 1
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(answer, foreign, 8080)

    async def end() -> None:
        server.close()

    foreign = f"127.{frontend.octet}.201.1"
    server = frontend.call(start())
    pods = frontend.pods["shop"].addresses
    try:
        stage.publish(*pods, foreign)
        time.sleep(20)
        stage.publish(*pods)
        time.sleep(AFTER)
    finally:
        frontend.call(end())
    stage.notes.append(f"{requests} to the foreign host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One fault."""

    name: str
    play: Callable[[Stage], None]
    secure: bool = False
    """Whether there is a service with a certificate."""
    supervise: bool = True
    """Whether fc-frontend starts HAProxy; otherwise it is already running."""


SCENARIOS = (
    Scenario(name="DNS down", play=dns_fails(Fault.SILENT)),
    Scenario(name="DNS down, a reload", play=dns_fails(Fault.SILENT, reload=True)),
    Scenario(name="DNS SERVFAIL", play=dns_fails(Fault.SERVFAIL)),
    Scenario(name="DNS truncated, no TCP", play=dns_fails(Fault.TRUNCATED_NO_TCP)),
    Scenario(name="NXDOMAIN for 20 s, a reload", play=nxdomain),
    Scenario(name="pod dead, still in DNS", play=dead_pod),
    Scenario(name="bad snippet, a service added", play=lambda s: s.add(bad_snippet=True)),
    Scenario(name="bind taken, a service added", play=taken_bind),
    Scenario(name="certificate broken, a service added", play=broken_certificate, secure=True),
    Scenario(name="certificate renewed", play=renewed_certificate, secure=True),
    Scenario(name="a port changes, then a mistake", play=mistake_after_a_move),
    Scenario(name="used backend removed, a service added", play=removed_backend),
    Scenario(name="section by hand, 6 reloads, DNS 0.1 s late", play=reloads_of_a_fragment),
    Scenario(name="fc-frontend killed, a rollout", play=daemon_ends(signal.SIGKILL)),
    Scenario(name="fc-frontend stopped, a rollout", play=daemon_ends(signal.SIGSTOP)),
    Scenario(name="5 reloads by hand", play=reload_by_hand(0.0)),
    Scenario(name="5 reloads by hand, DNS 0.2 s late", play=reload_by_hand(0.2)),
    Scenario(name="file edited, HAProxy restarted", play=edited_file, supervise=False),
    Scenario(name="21 pods", play=one_pod_too_many),
    Scenario(name="foreign address in DNS", play=foreign_address),
)


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each HAProxy and fault."""
    return [
        row(version, scenario, options) for version in options.versions for scenario in SCENARIOS
    ]


def row(version: str, scenario: Scenario, options: Options) -> dict[str, object]:
    """Return a row: run both contenders at the same time."""
    print(f"{version}, {scenario.name}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = (
            pool.submit(measure, kind, version, scenario, options) for kind in (Ours, Theirs)
        )
        found = {
            "HAProxy": version,
            "fault": scenario.name,
            **{f"fc {column}": value for column, value in ours.result().items()},
            **{f"plain {column}": value for column, value in theirs.result().items()},
        }
    print(json.dumps(found), file=sys.stderr, flush=True)
    return {column: value for column, value in found.items() if not column.endswith(" kinds")}


def measure(
    kind: type[Ours | Theirs], version: str, scenario: Scenario, options: Options
) -> dict[str, object]:
    """Return the results of the requests to one contender."""
    with cluster(binary_of(version)) as frontend:
        frontend.scale("shop", PODS)
        contender = kind(frontend)
        stage = Stage(contender, options)
        if scenario.secure:
            certificate(stage.pem)
        contender.begin(secure=stage.pem if scenario.secure else None, supervise=scenario.supervise)
        with stage.loaded():
            scenario.play(stage)
        if kind is Ours:
            for loaded in stage.came:
                tell_failures(f"{version}, {scenario.name}", loaded, stage.phases, frontend)
    return {
        "sent": sum(loaded.requests for loaded in stage.came),
        "failed": sum(loaded.failed for loaded in stage.came),
        "failing s": failing(stage.came),
        "note": ", ".join(stage.notes),
        "kinds": "; ".join(loaded.kinds for loaded in stage.came if loaded.failed),
    }


def failing(came: list[Loaded]) -> str:
    """Return the seconds from the first failed request to the last."""
    times = [at for loaded in came for at, _ in loaded.failed_at]
    return f"{max(times) - min(times):.1f}" if times else ""


def certificate(path: Path) -> None:
    """Write a key and a self-signed certificate."""
    key = path.with_suffix(".key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-subj", "/CN=shop.example", "-days", "2", "-keyout", key, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + key.read_text())


def served_certificate(frontend: Frontend) -> str:
    """Return the certificate that clients receive over TLS, as PEM."""
    return ssl.get_server_certificate((frontend.host, SECURE), timeout=10)


def secure_answers(frontend: Frontend) -> bool:
    """Return whether a request over TLS succeeds."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(frontend.host, SECURE, timeout=10, context=context)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
