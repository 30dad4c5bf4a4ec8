"""A mistake shortly after a good change falls back to that change, not to the form before it.

All changes happen within the 15 s in which the guard watches a changed service.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from collections.abc import Callable, Iterator

import pytest

from fc_frontend.config.running import RunningDeclarations, load_running
from fc_frontend.demo.load import Load
from tests.faults.site import EXTRA, Site, put, serving
from tests.support.frontend import Frontend
from tests.test_kept_files import certificate, seen

NAME, FIRST_PORT = EXTRA
KINDS = {"fragment", "service", "settings", "templates"}
HTTP = "mode http\n  option idle-close-on-response"


@pytest.fixture
def site(either_binary: str) -> Iterator[Site]:
    """Three services under load, in which no request may fail, and the service to be changed."""
    with serving(either_binary) as made:
        made.declare(NAME, FIRST_PORT)
        made.frontend.until(lambda: serves(made, FIRST_PORT))
        yield made


def serves(site: Site, port: int) -> bool:
    return site.frontend.ask(port) == f"{NAME}-1"


def on_disk(frontend: Frontend) -> RunningDeclarations:
    return load_running(str(frontend.directory / "state" / "running.json"))


def binds(frontend: Frontend) -> str:
    """Return the bind of the service in its last good form on disk."""
    return str(on_disk(frontend).services[NAME].value["binds"])


@contextlib.contextmanager
def moved(site: Site, port: int, former: int) -> Iterator[None]:
    """Move the service to `port`; from then on, no request there may fail."""
    frontend = site.frontend
    site.declare(NAME, port)
    frontend.until(lambda: serves(site, port))
    with Load(frontend.host, port, clients=2, interval=0.02) as load:
        yield
        before = load.tally().requests
        frontend.until(lambda: load.tally().requests > before + 8)
        assert not load.stop().failures, frontend.log_text()[-5000:]
    assert not serves(site, former)
    # HAProxy serves shortly before the daemon has seen the end of the reload.
    frontend.until(lambda: binds(frontend) == f"{frontend.host}:{port}")


# Ways to break the service's file


def half_written(site: Site) -> None:
    site.put(f"{NAME}.yaml", "services: {")


def misspelt(site: Site) -> None:
    site.declare(NAME, FIRST_PORT, pod_prt=1)


def refused_by_haproxy(site: Site) -> None:
    site.declare(NAME, FIRST_PORT, extra_config="nonsense here")


def not_a_file(site: Site) -> None:
    site.file(NAME).unlink()
    site.file(NAME).mkdir()


def twice(site: Site) -> None:
    site.put("zz.json", site.file(NAME).read_bytes())


def without_directory(site: Site) -> None:
    site.frontend.services_d.rename(site.frontend.directory / "elsewhere")


def bad_settings(site: Site) -> None:
    put(site.frontend.config, "{")


def bad_template(site: Site) -> None:
    put(site.templates / "service.cfg.j2", "{% if %}")


def mended(site: Site, settings: bytes) -> None:
    """Undo any of the mistakes, except in the file of the service."""
    with contextlib.suppress(FileNotFoundError):
        (site.frontend.directory / "elsewhere").rename(site.frontend.services_d)
    if site.file(NAME).is_dir():
        site.file(NAME).rmdir()
    for path in (site.frontend.services_d / "zz.json", site.templates / "service.cfg.j2"):
        path.unlink(missing_ok=True)
    put(site.frontend.config, settings)


MISTAKES: tuple[Callable[[Site], None], ...] = (
    half_written,
    misspelt,
    refused_by_haproxy,
    not_a_file,
    twice,
    without_directory,
    bad_settings,
    bad_template,
)


def test_a_mistake_falls_back_to_what_haproxy_runs(site: Site) -> None:
    frontend = site.frontend
    settings = frontend.config.read_bytes()
    ports = itertools.count(FIRST_PORT + 1)
    for mistake in MISTAKES:
        port = next(ports)
        with moved(site, port, port - 1):
            mistake(site)
            frontend.until(site.held)
            site.still_serve()
        mended(site, settings)
    # Killed as soon as a request is answered: the daemon may not have seen the end of the reload.
    for mistake in (half_written, misspelt, without_directory):
        port = next(ports)
        site.declare(NAME, port)
        frontend.until(lambda port=port: serves(site, port))
        frontend.stop_daemon(signal.SIGKILL)
        with Load(frontend.host, port, clients=2, interval=0.02) as load:
            mistake(site)
            frontend.start()
            frontend.until(site.held)
            assert not load.stop().failures, frontend.log_text()[-5000:]
        assert binds(frontend) == f"{frontend.host}:{port}"
        mended(site, settings)


def test_fragments_settings_templates_and_files_fall_back_to_what_haproxy_runs(
    site: Site,
) -> None:
    frontend = site.frontend
    fragment_port = FIRST_PORT + 1

    def fragment(port: int, more: str = "") -> None:
        pod = frontend.pods[NAME].addresses[0]
        lines = f"bind {frontend.host}:{port}\n  server one {pod}:8080"
        site.put("hand.cfg", f"listen hand\n  {HTTP}\n  {lines}\n{more}")

    def defaults(line: str) -> None:
        settings = json.loads(frontend.config.read_text())
        settings["haproxy"]["defaults_extra"] = line
        put(frontend.config, json.dumps(settings))

    def in_force(text: str) -> bool:
        return text in frontend.haproxy_cfg.read_text() and frontend.ready()

    # Former forms of all units, good changes of all, and a mistake in each.
    fragment(fragment_port)
    old, new = (frontend.directory / f"{name}.pem" for name in ("old", "new"))
    for pem in (old, new):
        certificate(pem, pem.stem)
    site.declare("tls", 8443, service=NAME, bind_options=f"ssl crt {old}")
    frontend.until(lambda: seen(frontend, 8443) and serves(site, fragment_port))
    shown = seen(frontend, 8443)
    site.declare("tls", 8443, service=NAME, bind_options=f"ssl crt {new}")
    fragment(fragment_port + 1)
    put(site.templates / "stats.cfg.j2", "# ours\n")
    defaults("maxconn 3000")
    frontend.until(lambda: serves(site, fragment_port + 1))
    frontend.until(lambda: in_force("maxconn 3000") and in_force("# ours"))
    frontend.until(lambda: seen(frontend, 8443) != shown)
    with Load(frontend.host, fragment_port + 1, clients=2, interval=0.02) as load:
        new.write_text("not a certificate")
        put(site.templates / "stats.cfg.j2", "{% if %}")
        fragment(fragment_port + 2, "  nonsense here\n")
        defaults("nonsense here")
        frontend.until(lambda: {kind for kind, _ in site.held()} >= KINDS - {"service"})
        # The bad certificate is detected at the next reload, which another change causes.
        site.declare("more", fragment_port + 3, service=NAME)
        frontend.until(lambda: serves(site, fragment_port + 3))
        assert {kind for kind, _ in site.held()} == KINDS
        assert in_force("maxconn 3000")
        assert in_force("# ours")
        assert seen(frontend, 8443) != shown
        site.still_serve()
        assert not load.stop().failures


# Evidence of the guard, whatever other mistake is present


def test_evidence_reverts_exactly_the_change_that_it_is_against(site: Site) -> None:
    frontend = site.frontend
    good, bad = FIRST_PORT + 1, FIRST_PORT + 2

    def declare_bad() -> None:
        site.declare(NAME, bad, pod_port=9)

    def until_reverted(times: int) -> None:
        frontend.until(lambda: len(frontend.events("service-reverted")) == times)
        frontend.until(lambda: serves(site, good))

    with moved(site, good, FIRST_PORT):
        pass
    declare_bad()
    frontend.until(lambda: binds(frontend).endswith(f":{bad}"))
    half_written(site)
    until_reverted(1)
    with moved(site, good, bad):
        # Without the mistake, the file holds the form that failed: it is not tried again.
        declare_bad()
        held = frontend.until(lambda: site.held().get(("service", NAME)))
        assert "failed its checks" in held["problems"][0]["message"]
    # The same across a restart of the daemon, and with two changes that both fail.
    site.declare(NAME, bad, pod_port=9, slots=12)
    frontend.until(lambda: binds(frontend).endswith(f":{bad}") and frontend.ready())
    site.declare(NAME, bad + 1, pod_port=9)
    frontend.until(lambda: binds(frontend).endswith(f":{bad + 1}"))
    frontend.stop_daemon(signal.SIGKILL)
    half_written(site)
    frontend.start()
    until_reverted(3)
    frontend.until(lambda: binds(frontend).endswith(f":{good}"))
    site.still_serve()
