"""Three services under load before, during and after a fault: no fault may lose a request."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fc_frontend.demo.load import Load, Tally
from fc_frontend.demo.pods import PodSet
from fc_frontend.haproxy import runtime
from tests.support.frontend import Frontend

SERVICES = {"cart": 8081, "docs": 8082, "shop": 8083}
EXTRA = ("extra", 8090)
"""An additional service, declared in the same batch as a fault."""
Name = tuple[str, str]
"""A unit with a withheld change: kind and name."""
_ENOUGH = 8
"""The number of answers after which a service counts as serving."""


class Site:
    """A frontend with `SERVICES`, one file each, under load."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.templates = frontend.directory / "templates"
        self.loads: dict[str, Load] = {}
        self._seen: dict[str, Tally] = {}

    # Files

    def file(self, name: str) -> Path:
        """Return the file of service `name`."""
        return self.frontend.services_d / f"{name}.yaml"

    def declare(self, name: str, port: int, **fields: Any) -> None:
        """Write the file of a service atomically, as a deployment tool does."""
        text = json.dumps({"services": {name: self.frontend.service(name, port, **fields)}})
        self.put(f"{name}.yaml", text)

    def put(self, name: str, content: str | bytes) -> None:
        """Write a file into services.d."""
        put(self.frontend.services_d / name, content)

    # Processes

    def start(self, **haproxy: Any) -> None:
        """Declare everything, start the daemon, and wait until all pods of all services answer."""
        frontend = self.frontend
        self.templates.mkdir()
        frontend.settings["haproxy"].update({"templates": str(self.templates), **haproxy})
        frontend.settings["intervals"].update(debounce="50ms", reload="200ms", rescan="1s")
        for name, port in SERVICES.items():
            frontend.scale(name, 2)
            self.declare(name, port)
        frontend.scale(EXTRA[0], 1)
        frontend.start()
        self.all_serve()

    def shrink(self, name: str, count: int) -> PodSet:
        """Remove pods as Kubernetes does: from DNS first, then end those that get no requests."""
        frontend = self.frontend
        leaving = set(frontend.pods[name].addresses[count:])
        frontend.publish(name, frontend.pods[name].addresses[:count])
        socket = frontend.settings["haproxy"]["runtime_socket"]
        frontend.until(
            lambda: not leaving & {str(server.address) for server in runtime.servers(socket)}
        )
        frontend.call(frontend.pods[name].scale(count, grace=0.5))
        return frontend.pods[name]

    def all_serve(self) -> None:
        """Wait until exactly the pods of all services answer."""
        for name, port in SERVICES.items():
            pods = self.frontend.pods[name]
            self.frontend.until(lambda port=port, pods=pods: self.frontend.serves(port, pods))

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Run under load; check that each service answers and no request fails."""
        with contextlib.ExitStack() as stack:
            for name, port in SERVICES.items():
                load = Load(self.frontend.host, port, clients=2, interval=0.05)
                self.loads[name] = stack.enter_context(load)
            self.still_serve()
            yield
            self.still_serve()
        self.none_failed()

    # Invariants

    def still_serve(self) -> None:
        """Wait until each service has answered more requests, by its own pods; none may fail."""
        before = {name: load.tally() for name, load in self.loads.items()}

        def answered() -> bool:
            return all(
                sum(load.tally().since(before[name]).pods.values()) >= _ENOUGH
                for name, load in self.loads.items()
            )

        self.frontend.until(answered)
        self.none_failed()

    def none_failed(self) -> None:
        """Assert that no request has failed, and that each was answered by a pod of its service."""
        for name, load in self.loads.items():
            tally = load.tally()
            assert not tally.failures, (name, tally.failures[:5], self.frontend.log_text()[-5000:])
            strangers = {pod for pod in tally.pods if not pod.startswith(f"{name}-")}
            assert not strangers, (name, strangers)

    def answered_by(self, name: str) -> set[str]:
        """Return the pods that have answered for a service since the last call."""
        now = self.loads[name].tally()
        before = self._seen.get(name, Tally())
        self._seen[name] = now
        return set(now.since(before).pods)

    def held(self) -> dict[Name, dict[str, Any]]:
        """Return the withheld changes, by kind and name."""
        listed = self.frontend.status()["withheld"]
        return {(held["kind"], held["name"]): held for held in listed}

    def until_held(
        self, units: Mapping[tuple[str, str], str]
    ) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Wait until exactly these units are withheld, and return the problems of each.

        `units` maps kind and name to the effect of the withheld change.
        """

        def found() -> dict[tuple[str, str], list[dict[str, Any]]] | None:
            held = self.held()
            if {
                unit: h["effect"] for unit, h in held.items()
            } != units or not self.frontend.ready():
                return None
            return {unit: h["problems"] for unit, h in held.items()}

        problems: dict[tuple[str, str], list[dict[str, Any]]] = self.frontend.until(found)
        return problems

    def without_extra(self) -> None:
        """Remove the service `EXTRA`, and wait until the daemon has noticed."""
        name = EXTRA[0]
        self.file(name).unlink(missing_ok=True)
        services = self.frontend.status
        self.frontend.until(lambda: name not in {s["name"] for s in services()["services"]})

    def until_well(self) -> None:
        """Wait until nothing is withheld and HAProxy runs the declared configuration."""
        self.frontend.until(lambda: not self.held() and self.frontend.ready())

    def is_clean(self, settings: bytes) -> bool:
        """Return whether nothing of a case is left: no file, withheld unit or other settings."""
        frontend = self.frontend
        try:
            return (
                {path.name for path in frontend.services_d.iterdir()}
                == {f"{name}.yaml" for name in SERVICES}
                and frontend.config.read_bytes() == settings
                and not any(self.templates.iterdir())
                and not self.held()
                and frontend.ready()
                and not any(load.tally().failures for load in self.loads.values())
            )
        except (OSError, http.client.HTTPException):
            return False

    def file_is_good(self) -> None:
        """Assert that HAProxy accepts the present file on disk."""
        frontend = self.frontend
        argv = [frontend.binary, "-c", "-f", str(frontend.haproxy_cfg)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr

    def is_mended(self) -> None:
        """Wait until the declared configuration is restored, in the daemon's status and on disk."""
        self.until_well()
        self.file_is_good()
        self.still_serve()


class Sites:
    """One site for many cases, as long as each leaves it unchanged; a context manager."""

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Site]]) -> None:
        self._make = make
        self._context: contextlib.AbstractContextManager[Site] | None = None
        self._site: Site | None = None

    def __enter__(self) -> Sites:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._close()

    @contextlib.contextmanager
    def lent(self) -> Iterator[Site]:
        """Yield the site; end it if the case leaves it changed: the next case gets a new one."""
        if self._site is None:
            self._context = self._make()
            self._site = self._context.__enter__()
        site = self._site
        good = site.frontend.config.read_bytes()
        yield site
        if not site.is_clean(good):
            with contextlib.suppress(AssertionError):
                self._close()

    def _close(self) -> None:
        if self._context is not None:
            context, self._context, self._site = self._context, None, None
            context.__exit__(None, None, None)


def put(path: Path, content: str | bytes) -> None:
    """Write a file atomically."""
    new = path.with_name(f".{path.name}.{threading.get_ident()}")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.rename(path)


@contextlib.contextmanager
def serving(binary: str, **haproxy: Any) -> Iterator[Site]:
    """Run a site that serves under load."""
    with Frontend(binary) as frontend:
        site = Site(frontend)
        site.start(**haproxy)
        with site.loaded():
            yield site
