"""`fc-frontend demo`: the whole system on loopback, presented as a story.

A cluster DNS and pods live in this process; the daemon is a process of its own, started as a user
would start it, and it supervises a real HAProxy.  Each chapter waits until the described event has
really happened, observed from outside (requests, metrics, files), and fails the story otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.demo.load import Load, Tally, ask
from fc_frontend.demo.pods import PodSet
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import supervise
from fc_frontend.haproxy.master import show_proc

T = TypeVar("T")

_PATIENCE = 20.0
"""Seconds that a chapter waits for the described event."""
_SILENCE = 2.0
"""Seconds after which the awaited event is printed."""
_MOST_PODS = 100

Say = Callable[[str, str], None]
"""Prints a line of the story; the first argument is its kind: title, text, good, bad or file."""


class DemoStepFailed(Exception):
    """A step of the demo did not have the expected result."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The addresses of one demo: a /16 of loopback that is most likely unused."""

    octet: int
    directory: Path

    @property
    def pods(self) -> str:
        """The pod network."""
        return f"127.{self.octet}.0.0/17"

    @property
    def services(self) -> str:
        """The service network."""
        return f"127.{self.octet}.128.0/18"

    @property
    def frontend(self) -> str:
        """The address on which HAProxy and the daemon listen."""
        return f"127.{self.octet}.200.1"

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.directory / "config.yaml"

    @property
    def services_d(self) -> Path:
        """The directory of service files."""
        return self.directory / "services.d"

    @property
    def haproxy_cfg(self) -> Path:
        """The generated configuration."""
        return self.directory / "haproxy.cfg"

    @property
    def master_socket(self) -> str:
        """HAProxy's master socket."""
        return str(self.directory / "master.sock")


SHOP_PORT = 8080
HELLO_PORT = 8081
STATS_PORT = 8000
METRICS_PORT = 9484


class Story:
    """The parts of the demo, and its chapters."""

    def __init__(self, stage: Stage, say: Say) -> None:
        self._stage = stage
        self._say = say
        self._dns = ClusterDns(address=f"127.{stage.octet}.255.53")
        self._shop = PodSet("shop", network=f"127.{stage.octet}.1.0/24", port=8080)
        self._hello = PodSet("hello", network=f"127.{stage.octet}.2.0/24", port=8080)
        self._daemon: subprocess.Popen[bytes] | None = None
        self._load: Load | None = None
        self._in_flight = 0
        """Requests that failed because their pod died."""

    async def tell(self, keep: Callable[[], Any] | None = None) -> Tally:
        """Run all chapters; `keep` is awaited before the end.  Raises DemoStepFailed."""
        async with self._cluster():
            self._say("title", "A cluster, and nothing in front of it")
            await self._scale(3)
            host, port = self._dns.address
            self._say("text", f"Cluster DNS answers at {host}:{port}; service shop has 3 pods.")
            self._write_settings()
            self._start_daemon()
            self._say("text", "`fc-frontend run` is started; it starts HAProxy.")
            await self._until("HAProxy has the configuration", self._in_sync)
            with Load(self._stage.frontend, SHOP_PORT) as load:
                self._load = load
                await self._chapters(load)
                if keep is not None:
                    self._tell_what_to_try()
                    scaling = asyncio.create_task(self._follow_wishes())
                    await keep()
                    scaling.cancel()
                # The pods run in this loop, which must not wait for their clients.
                tally = await asyncio.to_thread(load.stop)
            self._summary(tally)
            if len(tally.failures) > self._in_flight:
                raise DemoStepFailed("requests failed that no dead pod had in flight")
            return tally

    async def _chapters(self, load: Load) -> None:
        self._say("title", "Three pods serve")
        await self._serving(3)

        self._say("title", "Scale to 12")
        slots = await asyncio.to_thread(self._metric, "fc_frontend_service_slots")
        await self._scale(12)
        await self._serving(12)
        grown = await self._until(
            "HAProxy got more slots",
            lambda: (s := self._metric("fc_frontend_service_slots")) > slots and s,
        )
        self._say("good", f"Slots grew from {slots:.0f} to {grown:.0f}, by one reload.")

        self._say("title", "A pod dies")
        dead = self._shop.pods[4]
        dead.kill()
        self._say("text", f"{dead.name} is gone; cluster DNS still lists it.")
        before = load.tally()
        await self._until(
            "200 more requests", lambda: load.tally().requests > before.requests + 200
        )
        lost = load.tally().since(before)
        if lost.pods[dead.name] > 0 and not dead.stopping:
            raise DemoStepFailed(f"{dead.name} still answers")
        self._in_flight = len(lost.failures)
        if self._in_flight > 4:
            raise DemoStepFailed(
                f"{self._in_flight} requests failed, more than the pod had in flight"
            )
        self._say(
            "good",
            f"{lost.requests} requests since: {self._in_flight} failed with the pod's own "
            "connections, all others were answered by its neighbours.",
        )
        await self._shop.remove(dead)
        self._publish()
        await self._serving(11)

        self._say("title", "A service is added by dropping a file")
        await self._hello.scale(2)
        self._publish()
        self._drop(
            "hello.yaml",
            f"services:\n  hello: {{mode: http, pod_port: 8080, "
            f'binds: "{self._stage.frontend}:{HELLO_PORT}"}}\n',
        )
        started = time.monotonic()
        await self._until("hello answers", self._hello_answers)
        self._say(
            "good", f"hello answered {time.monotonic() - started:.2f} s after the file was added."
        )
        await self._until("HAProxy has the configuration", self._in_sync)

        self._say("title", "A broken file affects no other service")
        before_text = self._stage.haproxy_cfg.read_bytes()
        self._drop("broken.yaml", "services:\n  broken: {pod_prt: 8080}\n")
        problem = await self._until("the file is withheld", self._problem)
        self._say("text", f"withheld: {problem}")
        if self._stage.haproxy_cfg.read_bytes() != before_text:
            raise DemoStepFailed("haproxy.cfg changed")
        await self._serving(11)
        if not await asyncio.to_thread(self._hello_answers):
            raise DemoStepFailed("hello does not answer")
        self._say("good", "haproxy.cfg is unchanged; shop and hello keep serving.")
        (self._stage.services_d / "broken.yaml").unlink()
        await self._until("the change is deployed", lambda: not self._problem())

    # Helpers of the chapters

    @contextlib.asynccontextmanager
    async def _cluster(self) -> AsyncIterator[None]:
        try:
            async with self._dns, self._shop, self._hello:
                try:
                    yield
                finally:
                    self._end_processes()
        finally:
            self._end_processes()

    async def _scale(self, count: int) -> None:
        await self._shop.scale(count)
        self._publish()
        self._say("text", f"shop has {count} pods now.")

    def _publish(self) -> None:
        """Update DNS as the cluster's API would."""
        for pods in (self._shop, self._hello):
            self._dns.set_service(
                KubernetesService(pods.name, ports={"http": 8080}, endpoints=pods.addresses)
            )

    def _write_settings(self) -> None:
        stage = self._stage
        host, port = self._dns.address
        stage.services_d.mkdir()
        text = f"""\
cluster:
  nameservers: ["{host}:{port}"]
  service_network: {stage.services}
  pod_network: {stage.pods}
haproxy:
  config_file: {stage.haproxy_cfg}
  master_socket: {stage.master_socket}
  runtime_socket: {stage.directory}/admin.sock
  supervise: true
  stats: {stage.frontend}:{STATS_PORT}
  log: null
state_directory: {stage.directory}/state
listen: {stage.frontend}:{METRICS_PORT}
services:
  shop: {{mode: http, pod_port: 8080, binds: "{stage.frontend}:{SHOP_PORT}"}}
"""
        stage.config.write_text(text)
        self._say("file", f"{stage.config}\n{text}")

    def _start_daemon(self) -> None:
        with (self._stage.directory / "daemon.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "fc_frontend", "run", "--config", str(self._stage.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _end_processes(self) -> None:
        """End the daemon, and the HAProxy that keeps serving after it."""
        if self._daemon is None:
            return
        if self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(10)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        socket = self._stage.master_socket
        with contextlib.suppress(Unavailable):
            master = show_proc(socket, 2.0).master
            supervise.stop(master, master_socket=socket, graceful=False, timeout=5.0)

    async def _until(self, what: str, found: Callable[[], T]) -> T:
        """Return the first true result of `found`, which may fail during start-up."""
        deadline = time.monotonic() + _PATIENCE
        told = time.monotonic()
        while True:
            if time.monotonic() > told + _SILENCE:
                told = time.monotonic()
                self._say("text", f"waiting: {what}")
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                result = await asyncio.to_thread(found)
                if result:
                    return result
            if self._daemon is not None and self._daemon.poll() is not None:
                raise DemoStepFailed(f"the daemon ended: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise DemoStepFailed(
                    f"timed out after {_PATIENCE:.0f} s: {what}\n{self._log_tail()}"
                )
            await asyncio.sleep(0.02)

    def _log_tail(self) -> str:
        log = self._stage.directory / "daemon.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(lines[-15:])

    def _drop(self, name: str, text: str) -> None:
        (self._stage.services_d / name).write_text(text)
        self._say("file", f"{self._stage.services_d / name}\n{text}")

    async def _serving(self, count: int) -> None:
        """Report that `count` pods of shop, and no others, answer now."""
        load = self._load
        assert load is not None
        names = {pod.name for pod in self._shop.pods}
        if len(names) != count:
            raise DemoStepFailed(f"shop has {len(names)} pods")
        await self._until(f"{count} pods answer", lambda: self._only(load, names))
        self._say("good", f"All {count} pods answer, and no others.")

    @staticmethod
    def _only(load: Load, names: set[str]) -> bool:
        before = load.tally()
        while (seen := load.tally().since(before)).requests < 30 * len(names):
            time.sleep(0.02)
        return set(seen.pods) == names

    def _get(self, port: int, path: str) -> bytes:
        connection = http.client.HTTPConnection(self._stage.frontend, port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        return body if response.status == 200 else b""

    def _status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._get(METRICS_PORT, "/status.json"))
        return document

    def _in_sync(self) -> bool:
        return bool(self._get(METRICS_PORT, "/readyz"))

    def _problem(self) -> str:
        withheld = self._status()["withheld"]
        if not withheld:
            return ""
        first = withheld[0]["problems"][0]
        place = f"{Path(first['file']).name}:{first['line']}:{first['column']}"
        return f"{place}: {first['field']}: {first['message']} → {first['remedy']}"

    def _metric(self, name: str) -> float:
        text = self._get(METRICS_PORT, "/metrics").decode()
        lines = [line for line in text.splitlines() if line.startswith(name + "{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'service="shop"' in line)

    def _hello_answers(self) -> bool:
        connection = http.client.HTTPConnection(self._stage.frontend, HELLO_PORT, timeout=5)
        try:
            pod, failure = ask(connection)
        finally:
            connection.close()
        return failure is None and pod.startswith("hello")

    def _tell_what_to_try(self) -> None:
        stage = self._stage
        own = Path(sys.executable).parent / "fc-frontend"
        program = f"{own if own.exists() else 'fc-frontend'} --config {stage.config}"
        self._say("title", "It runs on: try it, from another terminal")
        for what, command in (
            ("the page", f"http://{stage.frontend}:{METRICS_PORT}/"),
            ("how all is", f"{program} status"),
            ("one service", f"{program} explain shop"),
            ("a request", f"curl -i http://{stage.frontend}:{SHOP_PORT}/"),
            ("no new traffic", f"{program} drain shop {self._shop.addresses[0]}"),
            ("traffic again", f"{program} undrain shop {self._shop.addresses[0]}"),
            ("scale to 20", f"echo 20 >{self._wishes}"),
            ("files", str(stage.services_d)),
            ("the log", str(stage.directory / "daemon.log")),
        ):
            self._say("text", f"{what + ':':16} {command}")
        self._say("text", "Ctrl-C ends it.")

    @property
    def _wishes(self) -> Path:
        """The file that contains the wanted number of pods of shop."""
        return self._stage.directory / "pods"

    async def _follow_wishes(self) -> None:
        """Scale shop to the number of pods in the file."""
        done = ""
        while True:
            await asyncio.sleep(0.2)
            wish = self._wishes.read_text().strip() if self._wishes.exists() else ""
            if wish != done and wish.isdigit() and 0 < int(wish) <= _MOST_PODS:
                done = wish
                await self._scale(int(wish))

    def _summary(self, tally: Tally) -> None:
        self._say("title", "The end")
        answered, failed = sum(tally.pods.values()), len(tally.failures)
        why = " (they were under way to the pod that died)" if failed else ""
        self._say("good", f"{tally.requests} requests: {answered} answered, {failed} failed{why}.")
        for failure in tally.failures[:10]:
            self._say("bad", failure)
        for pod, count in sorted(tally.pods.items(), key=lambda item: _natural(item[0])):
            self._say("text", f"{pod:10} {count}")
        self._say("text", "Next: `sh contrib/demo --keep` lets you try it; then README.rst.")


def _natural(name: str) -> tuple[str, int]:
    head, _, number = name.rpartition("-")
    return head, int(number) if number.isdigit() else 0


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """Return a directory and addresses for a demo, removed at the end."""
    # Group-writable files are not trusted.
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="fc-demo-") as directory:
        yield Stage(random.randint(64, 120), Path(directory))
