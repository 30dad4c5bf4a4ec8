"""Refusals in which HAProxy names no unit affect only the unit at fault, under load."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fc_frontend.render.config import MARK
from tests.faults.site import EXTRA, SERVICES, Site, put
from tests.support.frontend import Frontend

KEPT = "the last good version keeps running"
LEFT_OUT = "not deployed"
HANGS = "http-response set-header X-Hangs 1"
"""A line with which the check of `slow_check` does not end."""

TEMPLATES = Path(__file__).parents[1] / "templates"

pytestmark = pytest.mark.extended


@contextlib.contextmanager
def loaded(frontend: Frontend, global_extra: Sequence[str] = (), **haproxy: str) -> Iterator[Site]:
    """Run a site under load in a prepared frontend."""
    site = Site(frontend)
    if global_extra:
        frontend.settings["haproxy"]["global_extra"] = list(global_extra)
    site.start(**haproxy)
    with site.loaded():
        yield site


def limit_descriptors(frontend: Frontend, number: int) -> None:
    """Limit the daemon and its HAProxy to this many file descriptors, hard limit included."""
    capability = ("setpriv", "--bounding-set=-sys_resource") if os.geteuid() == 0 else ()
    frontend.launcher = (*capability, "prlimit", f"--nofile={number}:{number}")


def extra_is_served(site: Site) -> None:
    name, port = EXTRA
    site.frontend.until(lambda: site.frontend.ask(port) == f"{name}-1")


def failed_reloads(site: Site) -> float:
    return site.frontend.metric("fc_frontend_reloads_total", result="failed")


@pytest.mark.parametrize("connections", [50, 150])
def test_slots_beyond_the_descriptors_cost_only_their_service(
    either_binary: str, connections: int
) -> None:
    """Each number of slots up to the limit reloads: below 100, `maxconn` counts as 100."""
    with Frontend(either_binary) as frontend:
        limit_descriptors(frontend, 2 * max(connections, 100) + 200)
        with loaded(frontend, (f"maxconn {connections}", "nbthread 1")) as site:
            site.declare("fresh", 8098, service=EXTRA[0], slots=1000)
            site.declare(*EXTRA)
            problems = site.until_held({("service", "fresh"): LEFT_OUT})
            assert "file descriptors" in problems["service", "fresh"][0]["message"]
            extra_is_served(site)
            site.file("fresh").unlink()
            site.until_well()
            # Up to the limit, and past it.
            slots = 30
            while not site.held():
                slots += 10
                site.declare("cart", SERVICES["cart"], slots=slots)
                text = f"pod {slots} "
                frontend.until(
                    lambda text=text: (
                        site.held()
                        or (text in frontend.haproxy_cfg.read_text() and frontend.ready())
                    )
                )
            assert slots > 40
            site.until_held({("service", "cart"): KEPT})
            site.still_serve()
            # The next daemon reaches the same result.
            frontend.stop_daemon()
            frontend.start()
            site.until_held({("service", "cart"): KEPT})
            assert failed_reloads(site) == 0
            site.declare("cart", SERVICES["cart"])
            site.is_mended()


def slow_check(frontend: Frontend) -> None:
    """Install a HAProxy whose `-c` never ends for a text with `HANGS`."""
    program = frontend.directory / "haproxy-slow"
    program.write_text(
        f"""#!/bin/sh
case " $* " in *" -c "*) grep -q X-Hangs "$3" && exec sleep 1000;; esac
exec {frontend.binary} "$@"
"""
    )
    program.chmod(0o755)
    frontend.settings["haproxy"]["binary"] = str(program)


def test_a_service_for_which_the_check_does_not_end_costs_only_itself(either_binary: str) -> None:
    with Frontend(either_binary) as frontend:
        slow_check(frontend)
        with loaded(frontend, check_timeout="4s") as site:
            site.declare("cart", SERVICES["cart"], extra_config=HANGS)
            site.declare(*EXTRA)
            problems = site.until_held({("service", "cart"): KEPT})
            assert "did not end within" in problems["service", "cart"][0]["message"]
            extra_is_served(site)
            site.still_serve()
            site.declare("cart", SERVICES["cart"])
            site.is_mended()
            assert failed_reloads(site) == 0


def by_hand(site: Site, *lines: str) -> str:
    pod = site.frontend.pods["shop"].addresses[0]
    own = ["listen by-hand", " mode http", f" bind {site.frontend.host}:8095"]
    return "\n".join([*own, f" server one {pod}:8080", *lines]) + "\n"


def test_what_looks_like_our_marks_in_a_fragment_confuses_nothing(either_binary: str) -> None:
    with Frontend(either_binary) as frontend, loaded(frontend) as site:
        digest = frontend.running_hash()
        fragment = frontend.services_d / "by-hand.cfg"
        site.put(
            fragment.name,
            by_hand(
                site,
                f" description fc-frontend:{digest}",
                f" # description fc-frontend:{digest}",
                f" http-response set-header X-Hash fc-frontend:{digest}",
            ),
        )
        site.declare(*EXTRA)
        extra_is_served(site)
        frontend.until(lambda: frontend.ask(8095) == "shop-1")
        site.is_mended()
        assert frontend.running_hash() != digest
        # A line that would begin another unit's section is refused, and only with its fragment.
        site.put(fragment.name, by_hand(site, f"{MARK.strip()} service cart", " # nothing"))
        site.declare("docs", SERVICES["docs"], slots=12)
        site.until_held({("file", str(fragment)): KEPT})
        frontend.until(lambda: "pod 12 " in frontend.haproxy_cfg.read_text())
        assert frontend.ask(8095) == "shop-1"
        site.still_serve()
        frontend.stop_daemon()
        frontend.start()
        site.until_held({("file", str(fragment)): KEPT})
        fragment.unlink()
        site.is_mended()
        assert failed_reloads(site) == 0


def test_a_template_whose_bind_another_process_holds_costs_only_templates(
    either_binary: str,
) -> None:
    with Frontend(either_binary) as frontend, loaded(frontend) as site:
        with socket.create_server((frontend.host, 8099)):
            put(
                site.templates / "defaults.cfg.j2",
                (TEMPLATES / "defaults.cfg.j2").read_text()
                + f"\n\nfrontend of-a-template from fc-http\n bind {frontend.host}:8099\n",
            )
            site.declare(*EXTRA)
            problems = site.until_held({("templates", ""): KEPT})
            assert f"process {os.getpid()}" in problems["templates", ""][0]["message"]
            extra_is_served(site)
            site.still_serve()
        # No file changes: the daemon retries by itself.
        site.until_well()
        frontend.until(lambda: frontend.get("/", 8099)[0] == 503)
        (site.templates / "defaults.cfg.j2").unlink()
        site.is_mended()
        assert failed_reloads(site) == 0


def test_a_template_that_breaks_every_service_withholds_no_new_one(either_binary: str) -> None:
    """HAProxy also names the new service, although its own declaration is valid."""
    with Frontend(either_binary) as frontend, loaded(frontend) as site:
        template = (TEMPLATES / "service.cfg.j2").read_text()
        put(site.templates / "service.cfg.j2", f"{template}\n    nonsense here\n")
        site.declare(*EXTRA)
        site.until_held({("templates", ""): KEPT})
        extra_is_served(site)
        site.still_serve()
        (site.templates / "service.cfg.j2").unlink()
        site.is_mended()
        assert failed_reloads(site) == 0
