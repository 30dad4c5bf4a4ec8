"""A cluster DNS fast enough for thousands of services: Debian's Knot on a loopback address.

fc-frontend's own `ClusterDns` is Python, and would dominate the measurement.  Knot is taken from
the system, or from Debian's packages unpacked into a cache: nothing is installed and no service is
started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import dns.asyncquery
import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.update

from tests.conftest import until

ZONE = "cluster.local"
PACKAGES = (
    "knot", "libknot13", "libdnssec9", "libzscanner4", "liburcu8", "liblmdb0", "libcap-ng0",
    "libbpf1", "libxdp1", "libedit2",
)  # fmt: skip
CONFIG = """\
server:
  rundir: "{directory}"
  listen: ["{host}@{port}"]
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
  tcp-max-clients: 4000
log:
  - target: "{directory}/knot.log"
    any: warning
database:
  storage: "{directory}"
acl:
  - id: local
    address: 127.0.0.0/8
    action: [update]
zone:
  - domain: {zone}
    storage: "{directory}"
    file: zone
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: none
    acl: local
"""


_TRIES = 15


class Knot:
    """A DNS server for `cluster.local`; use as a context manager.

    A service's addresses are served at `NAME.default.svc`, like those of a headless service in
    CoreDNS, and at `*.NAME.default.svc`, as in CoreDNS before 1.9.
    """

    def __init__(self, host: str, directory: Path, *, port: int = 5300) -> None:
        self.address = (host, port)
        self.directory = directory
        self.log = directory / "knot.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoints: dict[str, tuple[str, ...]] = {}

    def fill(self, services: Mapping[str, tuple[str, ...]]) -> None:
        """Set the zone's content for the start of the server."""
        self._endpoints = dict(services)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        host, port = self.address
        config = self.directory / "knot.conf"
        config.write_text(CONFIG.format(directory=self.directory, host=host, port=port, zone=ZONE))
        with (self.directory / "zone").open("w") as zone:
            zone.write(f"{ZONE}. 5 SOA ns.{ZONE}. hostmaster.{ZONE}. 1 7200 1800 86400 5\n")
            zone.write(f"{ZONE}. 5 NS ns.{ZONE}.\nns.{ZONE}. 5 A {host}\n")
            for name, addresses in self._endpoints.items():
                for owner in owners(name):
                    zone.writelines(f"{owner} 5 A {address}\n" for address in addresses)
        knotd, environ = program()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [knotd, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
            )
        self._await_answers()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The server's process ID."""
        assert self._process is not None
        return self._process.pid

    @property
    def endpoints(self) -> Mapping[str, tuple[str, ...]]:
        """The zone's content, by service."""
        return self._endpoints

    async def change(self, name: str, addresses: Iterable[str]) -> float:
        """Set a service's addresses; return the monotonic time when the change took effect.

        That is when a query returns them, or when the change is acknowledged, whichever is earlier:
        a busy server may delay either.
        """
        update = self._update(name, addresses)
        seen = asyncio.create_task(self._seen(name))
        try:
            acknowledged = await self._acknowledged(update)
            return min(acknowledged, seen.result()) if seen.done() else acknowledged
        finally:
            seen.cancel()

    async def _acknowledged(self, update: dns.update.UpdateMessage) -> float:
        # Not over TCP: HAProxy queries thousands of services over it, too, and fills the queue.
        for left in reversed(range(_TRIES)):
            try:
                response = await dns.asyncquery.udp(
                    update, self.address[0], port=self.address[1], timeout=2
                )
                break
            except dns.exception.Timeout:
                if not left:
                    raise
        acknowledged = time.monotonic()
        self._check(response)
        return acknowledged

    async def _seen(self, name: str) -> float:
        """Wait until a query returns the service's current addresses; return the time."""
        query = dns.message.make_query(owners(name)[0], "A")
        wanted = set(self._endpoints[name])
        while True:
            with contextlib.suppress(dns.exception.DNSException, OSError):
                answer = await dns.asyncquery.udp(
                    query, self.address[0], port=self.address[1], timeout=1
                )
                if {record.address for rrset in answer.answer for record in rrset} == wanted:
                    return time.monotonic()
            await asyncio.sleep(0.002)

    def change_now(self, name: str, addresses: Iterable[str]) -> float:
        """Call `change` without an event loop."""
        return asyncio.run(self.change(name, addresses))

    def _update(self, name: str, addresses: Iterable[str]) -> dns.update.UpdateMessage:
        self._endpoints[name] = tuple(addresses)
        update = dns.update.UpdateMessage(ZONE)
        for owner in owners(name):
            update.delete(owner)
            for address in self._endpoints[name]:
                update.add(owner, 5, "A", address)
        return update

    def _check(self, response: dns.message.Message) -> None:
        assert response.rcode() == dns.rcode.NOERROR, self.log.read_text()[-2000:]

    def _await_answers(self) -> None:
        query = dns.message.make_query(f"ns.{ZONE}", "A")
        host, port = self.address

        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            with contextlib.suppress(dns.exception.DNSException, OSError):
                return bool(dns.query.udp(query, host, port=port, timeout=0.5).answer)
            return False

        until(answers)


def owners(name: str) -> tuple[str, str]:
    """Return the names with a service's pods."""
    inner = f"{name}.default.svc.{ZONE}."
    return inner, f"*.{inner}"


def program() -> tuple[str, dict[str, str]]:
    """Return the server's path and the environment that it needs.

    Raises RuntimeError, with a remedy, if the server is unavailable.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("knotd", path=path)
    if found:
        return found, dict(os.environ)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fc-frontend-bench"
    root = cache / "knot"
    knotd = root / "usr/sbin/knotd"
    if not knotd.exists():
        _unpack(root)
    libraries = [str(path) for path in root.glob("**/lib/*-linux-gnu")]
    return str(knotd), {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def _unpack(root: Path) -> None:
    packages = root.with_suffix(".packages")
    packages.mkdir(parents=True, exist_ok=True)
    remedy = "run `apt install knot` and stop its service"
    try:
        for package in PACKAGES:
            subprocess.run(
                ["apt-get", "download", "-qq", package],
                cwd=packages,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        for archive in sorted(packages.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        shutil.rmtree(root, ignore_errors=True)
        raise RuntimeError(f"Knot DNS cannot be had ({exc}): {remedy}") from exc
    finally:
        shutil.rmtree(packages, ignore_errors=True)
