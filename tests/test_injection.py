"""HAProxy gets the declared sections and no others, whatever a declaration contains.

Each example is a configuration of 20 services, most of them with hostile text in some field.  A
configuration that the loader accepts is rendered and run in a real HAProxy, which then reports its
proxies and servers over its runtime socket.  FC_FRONTEND_DECLARATIONS sets the minimum number of
declarations (500 by default).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fc_frontend.config.declare import load
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.validate import validate
from fc_frontend.plan.model import Kind
from tests.conftest import binary_of, until
from tests.support.prepared import Rendered, prepare

DECLARATIONS = int(os.environ.get("FC_FRONTEND_DECLARATIONS", "500"))
BATCH = 20

HOSTILE = st.sampled_from(
    [
        "\n",
        "\nlisten evil\n  bind 127.0.0.1:1",
        "\r\nbackend evil",
        "x\x00y",
        "$HOME",
        "${HOME}",
        '"$HOME"',
        '"${HOME-x y}"',
        '"global"',
        "\\x67lobal",
        '".if" 0',
        "\\n.if 0",
        "\\ x",
        "[scope]",
        "%[env(HOME)]",
        "'",
        '"',
        "\\",
        "\\\n",
        " # comment",
        "#",
        "a b",
        "a,b",
        "a\tb",
        "{{ 7 * 7 }}",
        "{% include 'x' %}",
        "../../etc/passwd",
        "/etc/passwd",
        "env@HOME",
        "unix@{dir}/x",
        "fd@3",
        "\u2028listen evil",
        "\x85listen evil",
        "ä",
        "a" * 300,
        "",
        "-1",
        "*",
        "%",
        "\x1b[31m",
    ]
)
TEXT = HOSTILE | st.text(max_size=12) | st.builds(str.__add__, st.just("shop"), HOSTILE)
ODD = TEXT | st.integers() | st.booleans() | st.none() | st.lists(TEXT, max_size=2) | st.floats()


def good_service(number: int) -> st.SearchStrategy[dict[str, Any]]:
    label = st.sampled_from(["shop", "ingress", "a-b", "x1"])
    port = st.integers(1, 65535)
    base = st.fixed_dictionaries(
        {"pod_port": port, "binds": st.just([f"unix@{{dir}}/{number}.sock"])},
        optional={
            "service": label,
            "namespace": label,
            "mode": st.sampled_from(["tcp", "http"]),
            "slots": st.sampled_from(["auto", 1, 3]),
            "balance": st.sampled_from(["leastconn", "roundrobin", "source", "random(2)"]),
            "check": st.booleans(),
            "tls": st.sampled_from([True, False, {"verify": "none", "sni": "a.example"}]),
            "fallback": st.sampled_from(["none", "service"]),
            "discovery": st.sampled_from(["auto", "wildcard", "headless"]),
        },
    )
    other = st.sampled_from(["service_port", "lb_service_port", "named"])

    def vary(fields: dict[str, Any], kind: str) -> dict[str, Any]:
        changed = {k: v for k, v in fields.items() if k not in ("pod_port", "discovery")}
        changed.pop("fallback", None)
        if kind == "named":
            return {**changed, "pod_port": "http-alt"}
        return {**changed, kind: fields["pod_port"]}

    return base | st.builds(vary, base, other)


FIELDS = [
    "service",
    "namespace",
    "mode",
    "pod_port",
    "service_port",
    "lb_service_port",
    "slots",
    "balance",
    "check",
    "tls",
    "fallback",
    "discovery",
    "podPort",
    "serviceName",
]


@st.composite
def services(draw: st.DrawFn) -> dict[str, Any]:
    """Draw services by name: valid ones, and ones with a hostile field or a hostile name."""
    found: dict[str, Any] = {}
    for number in range(BATCH):
        fields = draw(good_service(number))
        name = f"s{number}"
        match draw(st.integers(0, 3)):
            case 0:
                fields[draw(st.sampled_from(FIELDS))] = draw(ODD)
            case 1:
                binds = draw(st.lists(TEXT | st.just("127.0.0.1:x"), max_size=2))
                if draw(st.booleans()):
                    fields["binds"] = binds
                else:
                    key = draw(st.sampled_from(["ca_file", "sni", "verify"]))
                    fields["tls"] = {"verify": "none", key: draw(TEXT)}
            case 2:
                name = draw(TEXT | st.just(name))
                fields["service"] = "shop"
        found[name] = fields
    return found


@contextmanager
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fci-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def declared(path: Path, names: dict[str, Any], file: str = "hostile.json") -> Rendered:
    (path / "config.json").write_text(
        json.dumps(
            {
                "cluster": {
                    "nameservers": ["udp://127.0.0.1:1"],
                    "nodes": {"node-a": "127.0.0.1", "node-b": "127.0.0.2"},
                },
                "haproxy": {"runtime_socket": f"{path}/admin.sock", "stats": None, "log": None},
                "state_directory": str(path),
            }
        )
    )
    (path / "server-state").write_text("1\n")
    (path / "services.d").mkdir()
    text = json.dumps({"services": names}).replace("{dir}", str(path))
    (path / "services.d" / file).write_text(text)
    return prepare(load(f"{path}/config.json"), {})


def expected(prepared: Rendered) -> dict[str, set[str]]:
    """Return the declared proxies and their servers."""
    sections = {}
    for service in prepared.plan.services:
        if service.kind is Kind.NODES:
            servers = {"node-a", "node-b"}
        elif service.kind is Kind.SERVICE:
            servers = {"service"}
        else:
            servers = {f"pod{n}" for n in range(1, service.slots + 1)}
            servers |= {"service"} if service.fallback_query else set()
        sections[service.spec.name] = servers
    return sections


def parsed(binary: str, path: Path, text: str) -> dict[str, set[str]]:
    """Return the proxies and servers that a running HAProxy reports."""
    config = path / "haproxy.cfg"
    config.write_text(text)
    with (path / "log").open("wb") as log:
        process = subprocess.Popen([binary, "-db", "-f", str(config)], stdout=log, stderr=log)
    try:

        def answer() -> list[list[str]]:
            assert process.poll() is None, (path / "log").read_text(errors="replace")
            try:
                said = runtime.command(f"{path}/admin.sock", "show stat")
            except Unavailable:
                # The socket does not exist, or is bound and not listening yet.
                return []
            return [line.split(",") for line in said.splitlines() if line and line[0] != "#"]

        rows = until(answer)
    finally:
        process.kill()
        process.wait()
    found: dict[str, set[str]] = {}
    for proxy, server, *_ in rows:
        found.setdefault(proxy, set())
        if server not in ("FRONTEND", "BACKEND"):
            found[proxy].add(server)
    return found


seen: Counter[str] = Counter()


@settings(
    max_examples=-(-DECLARATIONS // BATCH),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(names=services(), which=st.sampled_from(["2.6-debian", "2.8-wheel"]))
def _what_is_accepted_is_what_was_declared(names: dict[str, Any], which: str) -> None:
    with directory() as path:
        prepared = declared(path, names)
        assert prepared.config is not None or not prepared.plan.services
        seen["declared"] += len(names)
        seen["accepted"] += len(prepared.plan.services)
        if prepared.config is None or not prepared.plan.services:
            return
        binary = binary_of(which)
        verdict = validate(binary, prepared.config.text, timeout=20)
        assert verdict.accepted, verdict.output
        found = parsed(binary, path, prepared.config.text)
        assert found == expected(prepared)


def test_what_is_accepted_is_what_was_declared() -> None:
    seen.clear()
    _what_is_accepted_is_what_was_declared()
    assert seen["declared"] >= DECLARATIONS * 0.8
    share = seen["accepted"] / seen["declared"]
    assert 0.1 < share < 0.9, f"{share:.0%} accepted: the generator has lost its point"


@pytest.mark.parametrize("name", ["a\nlisten evil\n.json", "$HOME.json", "a'b\"c\\.json", "#.yaml"])
def test_file_names_do_not_reach_the_text(name: str) -> None:
    with directory() as path:
        plain = declared(path, {"shop": {"pod_port": 80}})
        assert plain.config is not None
    with directory() as other:
        hostile = declared(other, {"shop": {"pod_port": 80}}, name)
        assert hostile.config is not None
        text = hostile.config.text.replace(str(other), str(path))
        assert "evil" not in text
        assert "$" not in text


@pytest.mark.parametrize("field", ["extra_config", "server_options", "bind_options"])
@pytest.mark.parametrize("text", ["x\x00y", "a\x1bb", "\x85", "a\u2028b"])
def test_even_text_by_intent_holds_no_control_character(field: str, text: str) -> None:
    with directory() as path:
        prepared = declared(path, {"shop": {"pod_port": 80, field: text}})
        assert not prepared.ok
        assert prepared.problems[0].field == field
