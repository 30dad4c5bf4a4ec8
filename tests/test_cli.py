"""The commands from a user's view: wording, exit codes, no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fc_frontend import __version__
from fc_frontend.cli import COMMANDS, cli
from fc_frontend.demo.dns import KubernetesService
from tests.conftest import binary_of
from tests.support.frontend import Frontend

GOOD = """\
cluster: {nameservers: ["10.0.0.254:53"]}
haproxy: {binary: BINARY, log: null, stats: null}
services:
  shop: {pod_port: 8080}
"""


def fc(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environ},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def help_of(*command: str) -> str:
    """Return the output of `--help` without starting a process."""
    done = CliRunner().invoke(cli, [*command, "--help"], prog_name="fc-frontend")
    assert done.exit_code == 0, done.output
    return done.stdout


def config(tmp_path: Path, text: str = GOOD, binary: str | None = None) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("BINARY", binary or binary_of("2.6-debian")))
    return str(path)


def test_version_and_help() -> None:
    assert fc("--version").stdout == f"fc-frontend {__version__}\n"
    said = help_of()
    assert fc("--help").stdout == said
    for name in COMMANDS:
        assert f"  {name} " in said
        assert f"Usage: fc-frontend {name}" in help_of(name)


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("check", "--nonsense"), ("check", "--format", "xml")]
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = fc(*arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr


def test_a_good_configuration(tmp_path: Path, either_binary: str) -> None:
    done = fc("check", "--config", config(tmp_path, binary=either_binary))
    assert done.returncode == 0
    assert done.stdout == (
        "good: 1 service, 10 slots, accepted by HAProxy, all files are trusted\n"
    )
    # The same with the option before the command, and with the environment variable.
    assert fc("--config", config(tmp_path), "check").returncode == 0
    assert fc("check", FC_FRONTEND_CONFIG=config(tmp_path)).returncode == 0


def test_a_refused_configuration_says_why_in_one_line_and_then_the_details(tmp_path: Path) -> None:
    text = GOOD + "  bad: {pod_port: 99999, mode: x}\n"
    done = fc("check", "--config", config(tmp_path, text))
    assert done.returncode == 1
    assert done.stdout == ""
    first, *details = done.stderr.splitlines()
    assert first == "refused: 2 errors"
    assert details[0].startswith(f"{tmp_path}/config.yaml:5:")
    assert sum(": error: " in line for line in details) == 2
    assert any(line.startswith("    → give a number from 1 to 65535") for line in details)


def test_what_haproxy_says_is_traced_to_the_service(tmp_path: Path, haproxy_binary: str) -> None:
    text = GOOD + '  bad: {pod_port: 81, extra_config: "no such thing"}\n'
    done = fc("check", "--config", config(tmp_path, text, haproxy_binary))
    assert done.returncode == 1
    assert f"{tmp_path}/config.yaml:5:" in done.stderr
    assert "service bad: extra_config: HAProxy says:" in done.stderr
    assert "the line is `no such thing`" in done.stderr
    assert "/proc/self/fd" not in done.stderr


def test_a_warning_is_no_refusal(tmp_path: Path) -> None:
    text = GOOD + '  wide: {pod_port: 80, binds: ["*:8080"]}\n'
    done = fc("check", "--config", config(tmp_path, text))
    assert done.returncode == 0
    assert "also covers 127.0.0.1:8080" in done.stderr


def test_json_has_a_stable_shape(tmp_path: Path) -> None:
    done = fc("check", "--format", "json", "--config", config(tmp_path, GOOD + "  x: {}\n"))
    document = json.loads(done.stdout)
    assert done.returncode == 1
    assert set(document) == {
        *("version", "status", "config", "hash", "services", "fragments", "problems"),
        *("withheld", "files", "base"),
    }
    assert (document["version"], document["status"]) == (1, "refused")
    error = next(p for p in document["problems"] if p["severity"] == "error")
    assert set(error) == {
        *("message", "remedy", "severity", "file", "line", "column", "service", "field"),
        "cause",
    }


@pytest.mark.parametrize(
    ("extra", "code", "word"),
    [
        ("", 1, "WARNING"),
        ("  x: {}\n", 2, "CRITICAL"),
    ],
)
def test_nagios(tmp_path: Path, extra: str, code: int, word: str) -> None:
    done = fc("check", "--format", "nagios", "--config", config(tmp_path, GOOD + extra))
    assert done.returncode == code
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"FC-FRONTEND {word} - ")
    assert first.count("|") == 1


def test_without_haproxy_it_cannot_tell(tmp_path: Path) -> None:
    done = fc("check", "--config", config(tmp_path, binary="/nonexistent/haproxy"))
    assert done.returncode == 3
    assert "cannot tell: " in done.stderr
    assert "→ " in done.stderr
    nagios = fc("check", "--format", "nagios", "--config", config(tmp_path, binary="/nonexistent"))
    assert nagios.returncode == 3
    assert nagios.stdout.startswith("FC-FRONTEND UNKNOWN - ")


def test_a_haproxy_that_is_too_old_is_named(tmp_path: Path) -> None:
    """A script stands in for a version without a package: it reports 2.2 and refuses."""
    old = tmp_path / "haproxy"
    old.write_text(
        "#!/bin/sh\nif [ $1 = -v ]; then echo 'HA-Proxy version 2.2.9-2 2021/02/06'; exit 0; fi\n"
        "echo \"[ALERT] 001/1 (1) : parsing [$3:2] : unknown keyword 'description'\" >&2\nexit 1\n"
    )
    old.chmod(0o755)
    done = fc("check", "--config", config(tmp_path, binary=str(old)))
    assert done.returncode == 1
    assert "HAProxy 2.2.9-2 is too old" in done.stderr.splitlines()[1]


def test_a_missing_settings_file(tmp_path: Path) -> None:
    done = fc("check", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert "No such file" in done.stderr


def test_check_needs_no_write_access(tmp_path: Path) -> None:
    """The check succeeds in a mount namespace whose every mount is read-only."""
    path = config(tmp_path)
    script = 'mount -o remount,bind,ro / 2>/dev/null || mount -o remount,ro,bind / && exec "$@"'
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        [
            *("unshare", *user, "--mount", "--net", "/bin/sh", "-c", script, "sh"),
            *(sys.executable, "-B", "-m", "fc_frontend", "check", "--config", path),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "accepted by HAProxy" in done.stdout


def test_render_prints_what_haproxy_accepts(tmp_path: Path, either_binary: str) -> None:
    path = config(tmp_path)
    printed = fc("render", "--config", path)
    assert printed.returncode == 0
    assert "server-template pod 10 shop.default.svc.cluster.local:8080 " in printed.stdout
    output = tmp_path / "out.cfg"
    assert fc("render", "--config", path, "--output", str(output)).returncode == 0
    assert output.read_text() == printed.stdout
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    done = subprocess.run([either_binary, "-c", "-f", str(output)], check=False, timeout=20)
    assert done.returncode == 0


def test_render_refuses_what_is_wrong(tmp_path: Path) -> None:
    done = fc("render", "--config", config(tmp_path, GOOD + "  x: {}\n"))
    assert (done.returncode, done.stdout) == (1, "")
    nowhere = fc("render", "--config", config(tmp_path), "--output", "/nonexistent/x.cfg")
    assert nowhere.returncode == 3


def test_colours_only_on_a_terminal(tmp_path: Path) -> None:
    assert "\x1b[" not in fc("check", "--config", config(tmp_path)).stdout


@pytest.fixture
def frontend() -> Iterator[Frontend]:
    with Frontend(binary_of("2.6-debian")) as made:
        yield made


def test_resolve_shows_what_dns_says_now(frontend: Frontend) -> None:
    frontend.scale("shop", 6)
    frontend.dns.set_service(
        KubernetesService("stray", endpoints=("203.0.113.9", f"127.{frontend.octet}.1.77"))
    )
    services = frontend.settings["services"]
    services["shop"] = frontend.service("shop", 8080)
    services["named"] = frontend.service("shop", 8081, pod_port="http")
    services["stray"] = frontend.service("stray", 8082)
    services["gone"] = frontend.service("gone", 8083)
    frontend.write()
    done = frontend.run("resolve", check=False)
    assert done.returncode == 1
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert rows["shop"].split()[1:3] == ["headless", "6"]
    assert "+2" in rows["shop"]
    assert rows["named"].split()[1:3] == ["srv", "6"]
    assert "NXDOMAIN" in rows["gone"]
    assert "203.0.113.9" in done.stdout
    assert frontend.run("resolve", "shop", "named").returncode == 0
    document = json.loads(frontend.run("resolve", "--json", "shop").stdout)
    assert len(document["services"]["shop"]["endpoints"]) == 6
    unknown = frontend.run("resolve", "shp", check=False)
    assert unknown.returncode == 2
    assert "declared are: gone, named, shop, stray" in unknown.stderr


def test_templates_are_overridden_one_file_at_a_time(frontend: Frontend) -> None:
    own = frontend.directory / "templates"
    own.mkdir()
    packaged = Path(__file__).parent.parent / "templates" / "service.cfg.j2"
    text = packaged.read_text() + "    # an operator's own line\n"
    (own / "service.cfg.j2").write_text(text)
    frontend.settings["haproxy"]["templates"] = str(own)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.write()
    printed = frontend.run("render").stdout
    assert "    # an operator's own line" in printed
    assert "resolvers cluster" in printed
    for broken, said in (
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{% if %}", "not a template"),
        ("{{ service.name }}\n{{ none }}", "a value is missing"),
        ('{{ "a\\nb" }}', "control character"),
    ):
        (own / "service.cfg.j2").write_text(broken)
        done = frontend.run("check", check=False)
        assert done.returncode == 1
        assert said in done.stderr
        assert "service.cfg.j2" in done.stderr
    (own / "service.cfg.j2").write_text(text)
    (own / "global.cfg.j2").write_text("global\n")
    done = frontend.run("check", check=False)
    assert "add it to global.cfg.j2 again" in done.stderr
