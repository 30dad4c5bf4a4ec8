"""One unit's fault affects only that unit: with the real daemon, HAProxy and requests.

In all cases three services are under load and no request may fail.  A further service is added in
the same batch of files as the fault, and must be served.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.config.document import MAX_BYTES
from tests.conftest import BINARIES, binary_of
from tests.faults.site import EXTRA, SERVICES, Site, Sites, put, serving
from tests.support.frontend import Frontend

KEPT = "the last good version keeps running"
LEFT_OUT = "not deployed"
EVENTS = ("withheld", "withheld-ended")

Break = Callable[[Site, str], None]


@pytest.fixture(scope="module")
def every_sites() -> Iterator[dict[str, Sites]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(Sites(functools.partial(serving, binary_of(name))))
            for name in BINARIES
        }


@pytest.fixture
def site(every_sites: dict[str, Sites], request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site under load, as first made; each case must remove everything that it adds."""
    with every_sites[getattr(request, "param", "2.6-debian")].lent() as made:
        yield made


def fields(site: Site, name: str, **more: object) -> None:
    """Declare a service with invalid fields."""
    site.declare(name, SERVICES.get(name, 8099), **more)


def unreadable(make: Callable[[Path], object]) -> Break:
    """Return a break that replaces the service's file by what `make` creates."""

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
    site.put(f"zz-{name}.yaml", json.dumps({"services": entry}))


BREAKS: dict[str, tuple[str, Break, str]] = {
    "schema": (
        "service",
        lambda site, name: site.put(f"{name}.yaml", f"services: {{{name}: {{pod_prt: 1}}}}"),
        "did you mean pod_port?",
    ),
    "yaml": ("file", text("services: ["), "invalid YAML"),
    "directory": ("file", unreadable(Path.mkdir), "is not a regular file"),
    "dangling": ("file", unreadable(lambda path: path.symlink_to("nowhere")), "No such file"),
    "circle": ("file", unreadable(lambda path: path.symlink_to(path.name)), "symbolic links"),
    "pipe": ("file", unreadable(os.mkfifo), "is not a regular file"),
    "too-large": ("file", text(b"#" * (MAX_BYTES + 1)), "larger than"),
    "not-utf-8": ("file", text(b"services: \xff\xfe"), "UTF-8"),
    "twice": ("service", defined_twice, "zz-"),
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
    """Break a service in one of the ways of `BREAKS`, and return the unit at fault."""
    unit_kind, breaks, _ = BREAKS[kind]
    if kind == "taken-bind":
        fields(site, name, binds=f"{site.frontend.host}:8082")
    else:
        breaks(site, name)
    return unit_kind, name if unit_kind == "service" else str(site.file(name))


def mend(site: Site, name: str) -> None:
    """Restore the declaration of a service, or remove it if it is not one of `SERVICES`."""
    (site.frontend.services_d / f"zz-{name}.yaml").unlink(missing_ok=True)
    path = site.file(name)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    elif not (name in SERVICES and path.is_file()):
        path.unlink(missing_ok=True)
    if name in SERVICES:
        site.declare(name, SERVICES[name])
    else:
        path.unlink(missing_ok=True)


def while_held(site: Site, said: str, units: Mapping[tuple[str, str], str]) -> None:
    """Check the invariants while units are withheld and a service was added in the same batch."""
    frontend = site.frontend
    for problems in site.until_held(units).values():
        assert said in json.dumps(problems, ensure_ascii=False)
        assert {problem["severity"] for problem in problems} == {"error"}
    extra, port = EXTRA
    frontend.until(lambda: frontend.ask(port) == f"{extra}-1")
    # HAProxy serves shortly before the daemon has seen the end of the reload.
    frontend.until(lambda: frontend.metric("fc_frontend_config_in_sync") == 1)
    assert frontend.metric("fc_frontend_withheld") == len(units)
    for unit_kind, count in Counter(unit_kind for unit_kind, _ in units).items():
        assert frontend.metric("fc_frontend_withheld", kind=unit_kind) == count
    assert frontend.metric("fc_frontend_config_problems", severity="error") >= 1
    site.file_is_good()
    if KEPT in units.values():
        # The command is slow, and does not know the last good form.
        check = frontend.run("check", "--strict", check=False)
        assert check.returncode == 1, check.stdout + check.stderr
        assert check.stderr.startswith("refused: ")
    site.still_serve()


def counted(site: Site) -> Counter[str]:
    """Return how often the log reports units as withheld and as deployed again."""
    return Counter({name: len(site.frontend.events(name)) for name in EVENTS})


def after(site: Site, before: Counter[str], units: int = 1) -> None:
    """Check that all is restored without a leftover, and that each event was logged once."""
    site.without_extra()
    site.is_mended()
    logged = [line for name in EVENTS for line in site.frontend.events(name)]
    assert counted(site) - before == Counter(dict.fromkeys(EVENTS, units)), logged[-4 * units :]
    assert site.frontend.metric("fc_frontend_withheld") == 0
    assert site.frontend.metric("fc_frontend_config_problems", severity="error") == 0


EXTENDED = {
    "directory",
    "twice",
    "duplicate-server",
    "no-table",
    "dangling",
    "circle",
    "pipe",
    "too-large",
    "not-utf-8",
}
"""Only in the extended tier: reading files and isolation are also tested without a daemon."""


@pytest.mark.parametrize(
    ("site", "kind"),
    [
        pytest.param(
            sorted(BINARIES)[number % 2],
            kind,
            marks=[pytest.mark.extended] if kind in EXTENDED else [],
        )
        for number, kind in enumerate(BREAKS)
    ],
    indirect=["site"],
)
def test_a_service_at_fault_goes_on_as_it_was_and_a_new_one_is_left_out(
    site: Site, kind: str
) -> None:
    before = counted(site)
    held = {broken(site, kind, "cart"): KEPT, broken(site, kind, "fresh"): LEFT_OUT}
    site.declare(*EXTRA)
    while_held(site, BREAKS[kind][2], held)
    mend(site, "cart")
    mend(site, "fresh")
    after(site, before, 2)


# Fragments


def fragment(site: Site, *lines: str) -> str:
    """Return a fragment: a separate section on port 8095, before the pods of shop."""
    pod = site.frontend.pods["shop"].addresses[0]
    own = [
        "listen by-hand",
        "  mode http",
        f"  bind {site.frontend.host}:8095",
        f"  server one {pod}:8080",
    ]
    return "\n".join([*own, *lines]) + "\n"


BAD_FRAGMENTS: dict[str, tuple[str | bytes, str]] = {
    "nonsense": ("  nonsense", "unknown keyword '…' in 'listen' section"),
    "untraceable": ("frontend other\n  mode http\n  default_backend nowhere", "nowhere"),
    "no-final-newline": ("backend last\n  mode http #", ""),
    "second-section": ("listen cart\n  mode http", "cart"),
}


@pytest.mark.parametrize(
    ("kind", "is_new"),
    [
        pytest.param("nonsense", False, id="nonsense-existing"),
        pytest.param("nonsense", True, id="nonsense-new", marks=pytest.mark.extended),
        pytest.param("untraceable", False, id="untraceable-existing", marks=pytest.mark.extended),
        pytest.param("untraceable", True, id="untraceable-new", marks=pytest.mark.extended),
        pytest.param("second-section", False, id="second-section-existing"),
        pytest.param("second-section", True, id="second-section-new", marks=pytest.mark.extended),
    ],
)
def test_a_fragment_at_fault_goes_on_as_it_was_or_is_left_out(
    site: Site, kind: str, is_new: bool
) -> None:
    path = site.frontend.services_d / "hand.cfg"
    if not is_new:
        site.put("hand.cfg", fragment(site))
        site.frontend.until(lambda: site.frontend.ask(8095) == "shop-1")
        site.until_well()
    before = counted(site)
    lines, said = BAD_FRAGMENTS[kind]
    site.put("hand.cfg", fragment(site, str(lines)))
    site.declare(*EXTRA)
    while_held(site, said, {("fragment", "hand"): LEFT_OUT if is_new else KEPT})
    if not is_new:
        assert site.frontend.ask(8095) == "shop-1"
    site.put("hand.cfg", fragment(site))
    after(site, before)
    site.frontend.until(lambda: site.frontend.ask(8095) == "shop-1")
    path.unlink()
    # Only then is it removed from the last good forms as well.
    site.frontend.until(lambda: site.frontend.ask(8095) != "shop-1")
    site.is_mended()


# Templates and settings

SETTINGS = ("settings", "")
TEMPLATES = ("templates", "")
BAD_TEMPLATES: dict[str, tuple[str, str, str]] = {
    "syntax": ("service.cfg.j2", "{% if %}", "service.cfg.j2"),
    "undefined": ("service.cfg.j2", "{{ nothing.at.all }}", "nothing"),
    "refused": ("defaults.cfg.j2", "defaults\n  nonsense here\n", "unknown keyword '…'"),
    "endless": ("service.cfg.j2", "{% include 'service.cfg.j2' %}", "service.cfg.j2"),
}


@pytest.mark.parametrize(
    "kind",
    [
        "refused",
        pytest.param("syntax", marks=pytest.mark.extended),
        pytest.param("endless", marks=pytest.mark.extended),
        pytest.param("undefined", marks=pytest.mark.extended),
    ],
)
def test_templates_at_fault_go_back_to_the_last_good_ones(site: Site, kind: str) -> None:
    before = counted(site)
    name, content, said = BAD_TEMPLATES[kind]
    put(site.templates / name, content)
    site.declare(*EXTRA)
    while_held(site, said, {TEMPLATES: KEPT})
    (site.templates / name).unlink()
    after(site, before)


@pytest.mark.extended
def test_a_template_that_cannot_be_read_goes_back_to_the_last_good_ones(site: Site) -> None:
    before = counted(site)
    (site.templates / "service.cfg.j2").mkdir()
    site.declare(*EXTRA)
    while_held(site, "is not a regular file", {TEMPLATES: KEPT})
    (site.templates / "service.cfg.j2").rmdir()
    after(site, before)


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"intervals": {"resolve": "soon"}}, "intervals.resolve"),
    "unknown": ({"intervalls": {}}, "intervalls"),
    "overlap": ({"cluster": {"pod_network": "127.0.0.0/8"}}, "overlap"),
    "global": ({"haproxy": {"global_extra": "nonsense here"}}, "nonsense here"),
    "defaults": ({"haproxy": {"defaults_extra": "nonsense here"}}, "nonsense here"),
    "same-bind": ({"listen": "{host}:8081"}, "8081"),
}


@pytest.mark.parametrize(
    "kind",
    [
        "global",
        pytest.param("same-bind", marks=pytest.mark.extended),
        pytest.param("value", marks=pytest.mark.extended),
        pytest.param("defaults", marks=pytest.mark.extended),
        pytest.param("overlap", marks=pytest.mark.extended),
        pytest.param("unknown", marks=pytest.mark.extended),
    ],
)
def test_settings_at_fault_go_back_to_the_last_good_ones(site: Site, kind: str) -> None:
    before = counted(site)
    frontend = site.frontend
    good = frontend.config.read_text()
    bad = json.loads(good)
    change, said = BAD_SETTINGS[kind]
    for key, value in change.items():
        if isinstance(value, dict):
            bad.setdefault(key, {}).update(value)
        else:
            bad[key] = value.format(host=frontend.host)
    put(frontend.config, json.dumps(bad))
    site.declare(*EXTRA)
    while_held(site, said, {SETTINGS: KEPT})
    put(frontend.config, good)
    after(site, before)


@pytest.mark.parametrize(
    "kind",
    [
        "json",
        pytest.param("gone", marks=pytest.mark.extended),
        pytest.param("directory", marks=pytest.mark.extended),
        pytest.param("empty", marks=pytest.mark.extended),
    ],
)
def test_a_settings_file_that_cannot_be_read_goes_back_to_the_last_good(
    site: Site, kind: str
) -> None:
    before = counted(site)
    path = site.frontend.config
    good = path.read_text()
    if kind in ("json", "empty"):
        put(path, "{" if kind == "json" else "")
    else:
        path.unlink()
    if kind == "directory":
        path.mkdir()
    site.declare(*EXTRA)
    # The file declared no service: only its settings are kept.
    while_held(site, str(path), {SETTINGS: KEPT, ("file", str(path)): LEFT_OUT})
    if kind == "directory":
        path.rmdir()
    put(path, good)
    after(site, before, 2)


# Faults that only a trial reveals


@pytest.mark.parametrize("name", ["cart", "fresh"])
def test_a_bind_that_another_process_holds_costs_only_its_service(site: Site, name: str) -> None:
    before = counted(site)
    reloads = site.frontend.metric("fc_frontend_reloads_total", result="failed")
    holder = (site.frontend.host, 8099)
    with site.frontend.until(lambda: socket.create_server(holder)):
        binds = [f"{site.frontend.host}:{port}" for port in (SERVICES.get(name, 8098), 8099)]
        site.declare(name, 8099, binds=binds)
        site.declare(*EXTRA)
        site.until_held({("service", name): KEPT if name in SERVICES else LEFT_OUT})
        extra, port = EXTRA
        site.frontend.until(lambda: site.frontend.ask(port) == f"{extra}-1")
        (problem,) = site.held()["service", name]["problems"]
        assert f"{site.frontend.host}:8099 is in use by" in problem["message"]
        assert f"process {os.getpid()}" in problem["message"]
        site.still_serve()
    # No file is fixed: the daemon retries by itself.
    site.frontend.until(lambda: not site.held())
    site.frontend.until(lambda: site.frontend.ask(8099).startswith("cart-") or name == "fresh")
    assert site.frontend.metric("fc_frontend_reloads_total", result="failed") == reloads
    mend(site, name)
    after(site, before)


# Finding the one at fault among many


def bad_fragment(frontend: Frontend, number: int) -> str:
    """Return a fragment for whose fault HAProxy names nothing that is declared."""
    return (
        f"frontend unheard-of-{number}\n  mode http\n  bind {frontend.host}:{10400 + number}\n"
        "  default_backend nowhere\n"
    )


JUDGED = "haproxy -c was run"


def noting(frontend: Frontend) -> str:
    """Return a program that runs HAProxy, and notes each check in the daemon's log."""
    program = frontend.directory / "haproxy-noting"
    program.write_text(
        f"""#!/bin/sh
case " $* " in *" -c "*) echo {JUDGED} >> {frontend.log};; esac
exec {frontend.binary} "$@"
"""
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("bad", [1, 3])
def test_what_haproxy_does_not_name_is_found_among_30_in_few_checks(
    either_binary: str, bad: int
) -> None:
    """Services and fragments are added at once; HAProxy refuses some without naming them."""
    with Frontend(either_binary) as frontend:
        frontend.settings["haproxy"]["binary"] = noting(frontend)
        site = Site(frontend)
        site.start()
        with site.loaded():
            new = {f"n{number:02}": 10100 + number for number in range(30 - bad)}
            names = [f"h{number}" for number in range(bad)]
            batch = frontend.directory / "batch"
            batch.mkdir()
            for name, port in new.items():
                declared = {"services": {name: frontend.service("extra", port)}}
                (batch / f"{name}.json").write_text(json.dumps(declared))
            for number, name in enumerate(names):
                (batch / f"{name}.cfg").write_text(bad_fragment(frontend, number))
            for path in [*site.frontend.services_d.iterdir()]:
                (batch / path.name).write_bytes(path.read_bytes())
            before = len(frontend.log_text())
            # All at once, as one deployment.
            frontend.services_d.rename(frontend.directory / "before")
            batch.rename(frontend.services_d)
            site.until_held({("fragment", name): LEFT_OUT for name in names})
            # Up to the reload: a second later, the refused ones are retried.
            needed, _, _ = frontend.log_text()[before:].partition(" config-reloaded ")
            for port in new.values():
                frontend.until(lambda port=port: frontend.ask(port) == "extra-1")
            # The refused text, one bisection per culprit, and the deployed text.
            assert 0 < needed.count(JUDGED) <= bad * (1 + math.ceil(math.log2(30)) + 1) + 1
            site.file_is_good()


@pytest.mark.extended
def test_several_at_fault_among_30_cost_only_themselves(either_binary: str) -> None:
    with serving(either_binary) as site:
        frontend = site.frontend
        for number in range(27):
            site.declare(f"n{number:02}", 10100 + number, service="extra")
        frontend.until(lambda: len(frontend.status()["services"]) == 30 and frontend.ready())
        held = {}
        for number, kind in enumerate(BREAKS):
            held[broken(site, kind, f"n{number:02}")] = KEPT
        site.declare("last", 10199, service="extra")
        site.until_held(held)
        # All continue, those at fault in their last good form.
        for port in [*range(10100, 10127), 10199]:
            frontend.until(lambda port=port: frontend.ask(port) == "extra-1")
        site.still_serve()
        site.file_is_good()
        for number in range(len(BREAKS)):
            mend(site, f"n{number:02}")
        site.is_mended()


# Across restarts of daemon and HAProxy


@pytest.mark.parametrize(
    "kind",
    [
        "yaml",
        pytest.param("no-line", marks=pytest.mark.extended),
        pytest.param("settings", marks=pytest.mark.extended),
        pytest.param("templates", marks=pytest.mark.extended),
    ],
)
def test_the_last_good_form_survives_the_end_of_daemon_and_haproxy(kind: str) -> None:
    with Frontend(binary_of("2.8-wheel")) as frontend:
        site = Site(frontend)
        site.start()
        good = frontend.config.read_text()
        units = {TEMPLATES: KEPT}
        if kind == "settings":
            put(frontend.config, good.replace('"200ms"', '"soon"'))
            units = {SETTINGS: KEPT}
        elif kind == "templates":
            put(site.templates / "service.cfg.j2", "{% if %}")
        else:
            units = {broken(site, kind, "cart"): KEPT}
        site.until_held(units)
        hash_before = frontend.running_hash()
        frontend.stop_daemon(signal.SIGKILL)
        frontend.end_haproxy()
        frontend.start()
        site.until_held(units)
        assert frontend.running_hash() == hash_before
        site.all_serve()
        # The same again, with only the files on disk changed meanwhile.
        frontend.stop_daemon(signal.SIGKILL)
        site.declare(*EXTRA)
        frontend.start()
        with site.loaded():
            frontend.until(lambda: frontend.ask(EXTRA[1]) == "extra-1")
            site.until_held(units)
            put(frontend.config, good)
            (site.templates / "service.cfg.j2").unlink(missing_ok=True)
            mend(site, "cart")
            site.is_mended()
