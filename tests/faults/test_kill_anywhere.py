"""The daemon may be killed at any moment: its files stay valid, and the next one continues.

`FC_FRONTEND_KILLS` is the number of kills in the extended tier, 30 by default.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.conftest import binary_of
from tests.faults.site import SERVICES, Site
from tests.support.frontend import Frontend

FEW_KILLS = 6
KILLS = int(os.environ.get("FC_FRONTEND_KILLS", "30"))
LONGEST_LIFE = 0.6
"""Seconds; a start takes about 0.5, so that the kill hits before, in and after its first step."""
PODS = 5
_OTHERS = {f"other-{number}": 10100 + number for number in range(5)}


class Unrest:
    """Random edits of files and changes of scale, until stopped."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        self._site = site
        self._rng = rng
        self._going = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.edits = 0

    def __enter__(self) -> Unrest:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._going.set()
        self._thread.join(30)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Edit files during the context."""
        self._going.set()
        yield
        self._going.clear()

    def _run(self) -> None:
        while not self._stop.wait(self._rng.uniform(0.01, 0.15)):
            self._going.wait()
            self._edit()
            self.edits += 1

    def _edit(self) -> None:
        site, rng = self._site, self._rng
        name = rng.choice([*_OTHERS, *SERVICES])
        if name in SERVICES:
            what = rng.choice(["scale", "change", "break"])
            if what == "scale":
                self._publish(name, rng.randint(2, PODS))
            elif what == "change":
                site.declare(name, SERVICES[name], slots=rng.choice([10, 20]))
            else:
                bad: list[str | bytes] = ["services: [", f"services: {{{name}: {{}}}}", b"\xff"]
                site.put(f"{name}.yaml", rng.choice(bad))
            return
        what = rng.choice(["declare", "remove", "nonsense"])
        if what == "declare":
            site.declare(name, _OTHERS[name], service=rng.choice(list(SERVICES)))
        elif what == "remove":
            site.file(name).unlink(missing_ok=True)
        else:
            site.declare(name, _OTHERS[name], extra_config="nonsense here")

    def _publish(self, name: str, count: int) -> None:
        """Publish only some of the pods; the others keep running, as draining pods do."""
        frontend = self._site.frontend
        addresses = self._rng.sample(frontend.pods[name].addresses, count)

        async def publish() -> None:
            frontend.dns.set_endpoints(name, addresses)

        frontend.call(publish())


@pytest.mark.parametrize("kills", [FEW_KILLS, pytest.param(KILLS, marks=pytest.mark.extended)])
def test_the_daemon_may_be_killed_anywhere(kills: int) -> None:
    seed = int(os.environ.get("FC_FRONTEND_SEED", random.randrange(1 << 32)))
    rng = random.Random(seed)
    with Frontend(binary_of("2.6-debian")) as frontend:
        frontend.settings["intervals"]["rescan"] = "1s"
        site = Site(frontend)
        site.start()
        for name in SERVICES:
            frontend.scale(name, PODS)
        with site.loaded(), Unrest(site, rng) as unrest:
            for kill in range(kills):
                with unrest.going_on():
                    time.sleep(rng.uniform(0, LONGEST_LIFE))
                frontend.stop_daemon(signal.SIGKILL)
                site.file_is_good()
                site.none_failed()
                with unrest.going_on():
                    # Every other time, it is killed again before it is ready.
                    frontend.start(wait=False)
                    if kill % 2:
                        continue
                frontend.until(
                    lambda: (
                        frontend.ready()
                        and frontend.status()["running_hash"] == frontend.running_hash()
                    ),
                    60,
                )
                running = frontend.running_hash()
                on_disk = frontend.haproxy_cfg.read_text()
                assert f"fc-frontend:{running}" in on_disk, (seed, kill)
                site.file_is_good()
            # Once the edits stop, everything is repaired and followed.
            for name, port in SERVICES.items():
                site.declare(name, port)
                frontend.scale(name, PODS)
            for name in _OTHERS:
                site.file(name).unlink(missing_ok=True)
            if frontend.daemon is None:
                frontend.start()
            site.is_mended()
            site.all_serve()
            temporary = [p.name for p in frontend.directory.rglob("*.tmp")]
            print(
                f"{kills} kills, {unrest.edits} edits, seed {seed},"
                f" {sum(sum(load.tally().pods.values()) for load in site.loads.values())} answers,"
                f" {len(temporary)} temporary files left"
            )
