"""One unit's fault costs only that unit: with the real daemon, HAProxy and requests.

In all cases three services are under load and no request may fail; in the same batch of files as
the fault another service comes, and must be served.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_frontend.config.document import MAX_BYTES
from fc_frontend.config.last_good import Piece, Unit
from fc_frontend.demo.load import Load
from fc_frontend.pipeline import culprit
from tests.conftest import BINARIES, binary_of
from tests.faults.site import EXTRA, SERVICES, Site, put, serving
from tests.frontend import Frontend

KEPT = "the last good form goes on"
LEFT_OUT = "it is left out"

Break = Callable[[Site, str], None]


class Sites:
    """One site for many cases, as long as each leaves it as it found it."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._made: Iterator[Site] | None = None
        self._site: Site | None = None

    def get(self) -> Site:
        if self._site is None:
            self._context = serving(self._binary)
            self._site = self._context.__enter__()
        return self._site

    def close(self) -> None:
        if self._site is not None:
            self._site = None
            self._context.__exit__(None, None, None)


@pytest.fixture(scope="module", params=BINARIES)
def sites(request: pytest.FixtureRequest) -> Iterator[Sites]:
    made = Sites(binary_of(request.param))
    yield made
    made.close()


@pytest.fixture
def site(sites: Sites) -> Iterator[Site]:
    """A site under load, as it was made: what a case adds has to be gone at its end."""
    made = sites.get()
    good = made.frontend.config.read_text()
    yield made
    is_clean = {path.name for path in made.frontend.services_d.iterdir()} == {
        f"{name}.yaml" for name in SERVICES
    }
    is_clean &= good == made.frontend.config.read_text() and not any(made.templates.iterdir())
    if not is_clean or made.held() or not made.frontend.ready():
        sites.close()


def fields(site: Site, name: str, **more: object) -> None:
    """Declare a service with fields that are at fault."""
    site.declare(name, SERVICES.get(name, 8099), **more)


def unreadable(make: Callable[[Path], object]) -> Break:
    """The service's file is none: `make` puts something else in its place."""

    def breaks(site: Site, name: str) -> None:
        path = site.file(name)
        path.unlink(missing_ok=True)
        make(path)

    return breaks


def text(content: str | bytes) -> Break:
    return lambda site, name: site.put(f"{name}.yaml", content)


def with_fields(**more: object) -> Break:
    return lambda site, name: fields(site, name, **more)


def defined_twice(site: Site, name: str) -> None:
    if name not in SERVICES:
        fields(site, name)
    entry = {name: site.frontend.service(name, 8098)}
    site.put("zz-second.yaml", json.dumps({"services": entry}))


BREAKS: dict[str, tuple[str, Break, str]] = {
    "schema": (
        "service",
        lambda site, name: site.put(f"{name}.yaml", f"services: {{{name}: {{pod_prt: 1}}}}"),
        "did you mean pod_port?",
    ),
    "yaml": ("file", text("services: ["), "not YAML"),
    "directory": ("file", unreadable(Path.mkdir), "is not a regular file"),
    "dangling": ("file", unreadable(lambda path: path.symlink_to("nowhere")), "No such file"),
    "circle": ("file", unreadable(lambda path: path.symlink_to(path.name)), "symbolic links"),
    "pipe": ("file", unreadable(os.mkfifo), "is not a regular file"),
    "too-large": ("file", text(b"#" * (MAX_BYTES + 1)), "larger than"),
    "not-utf-8": ("file", text(b"services: \xff\xfe"), "UTF-8"),
    "twice": ("service", defined_twice, "zz-second.yaml"),
    "nonsense": ("service", with_fields(extra_config="nonsense here"), "nonsense here"),
    "duplicate-server": (
        "service",
        with_fields(extra_config="server pod1 192.0.2.1:1"),
        "pod1",
    ),
    "no-line": ("service", with_fields(extra_config="use_backend nowhere"), "nowhere"),
    "no-table": (
        "service",
        with_fields(extra_config="http-request track-sc0 src table nowhere"),
        "nowhere",
    ),
    "certificate": ("service", with_fields(bind_options="ssl crt /none/x.pem"), "/none/x.pem"),
    "taken-bind": ("service", with_fields(binds="{host}:8082"), "taken by service docs"),
}


def broken(site: Site, kind: str, name: str) -> tuple[str, str]:
    """Break a service in one of the ways of `BREAKS`; the unit that is at fault."""
    piece, breaks, _ = BREAKS[kind]
    if kind == "taken-bind":
        fields(site, name, binds=f"{site.frontend.host}:8082")
    else:
        breaks(site, name)
    return piece, name if piece == "service" else str(site.file(name))


def mend(site: Site, name: str) -> None:
    """Declare the service as it should be, or take it away if it is not one of `SERVICES`."""
    (site.frontend.services_d / "zz-second.yaml").unlink(missing_ok=True)
    path = site.file(name)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    elif not (name in SERVICES and path.is_file()):
        path.unlink(missing_ok=True)
    if name in SERVICES:
        site.declare(name, SERVICES[name])
    else:
        path.unlink(missing_ok=True)


def while_held(site: Site, piece: str, name: str, effect: str, said: str) -> None:
    """What must hold while one unit is in quarantine and a service came in the same batch."""
    frontend = site.frontend
    held = site.until_held(piece, name, effect)
    problem = held["problems"][0]
    everything = json.dumps(held["problems"])
    assert said in everything, everything
    assert problem["severity"] == "error"
    extra, port = EXTRA
    frontend.until(lambda: frontend.ask(port) == f"{extra}-1")
    assert frontend.metric("fc_frontend_quarantined") == 1
    assert frontend.metric("fc_frontend_quarantined", piece=piece) == 1
    assert frontend.metric("fc_frontend_config_in_sync") == 1
    assert frontend.metric("fc_frontend_config_problems", severity="error") >= 1
    site.file_is_good()
    check = frontend.run("check", check=False)
    assert check.returncode == 1, check.stdout + check.stderr
    assert check.stderr.startswith("refused: ")
    site.still_serve()


def after(site: Site, quarantined: int, left: int) -> None:
    """What must hold once everything is mended: left by itself, said once."""
    site.file(EXTRA[0]).unlink()
    site.is_mended()
    assert len(site.frontend.events("quarantined")) == quarantined + 1
    assert len(site.frontend.events("quarantine-left")) == left + 1
    assert site.frontend.metric("fc_frontend_quarantined") == 0
    assert site.frontend.metric("fc_frontend_config_problems", severity="error") == 0
    assert site.frontend.run("check").returncode == 0


@pytest.mark.parametrize("name", ["cart", "fresh"])
@pytest.mark.parametrize("kind", BREAKS)
def test_a_service_at_fault_goes_on_as_it_was_or_is_left_out(
    site: Site, kind: str, name: str
) -> None:
    events = [len(site.frontend.events(e)) for e in ("quarantined", "quarantine-left")]
    piece, unit = broken(site, kind, name)
    site.declare(*EXTRA)
    while_held(site, piece, unit, KEPT if name in SERVICES else LEFT_OUT, BREAKS[kind][2])
    mend(site, name)
    after(site, *events)
