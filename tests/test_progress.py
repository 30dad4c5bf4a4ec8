"""Progress, verbosity and colours of the commands, on real terminals."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.demo.dns import Fault
from tests.conftest import binary_of
from tests.support.frontend import Frontend
from tests.support.terminal import Terminal
from tests.test_cli import GOOD, config, fc

OF_THE_TERMINAL = ("NO_COLOR", "TERM", "COLUMNS", "LINES")
BAD = GOOD + "  bad: {pod_port: 99999}\n"


def on_terminal(*arguments: str, columns: int = 80, stdout: int | None = None, **env: str) -> str:
    """Return everything that a command writes to a terminal."""
    environ = {k: v for k, v in os.environ.items() if k not in OF_THE_TERMINAL}
    argv = [sys.executable, "-m", "fc_frontend", *arguments]
    with Terminal(argv, {**environ, **env}, columns=columns, stdout=stdout) as terminal:
        return terminal.rest()


@pytest.fixture
def silent() -> Iterator[Frontend]:
    """A frontend whose cluster DNS does not answer, so that each query takes seconds."""
    with Frontend(binary_of("2.6-debian")) as made:
        made.settings["services"]["shop"] = made.service("shop", 8080)
        made.write()
        made.dns.fault = Fault.SILENT
        yield made


def left_standing(text: str) -> str:
    """Return the part of the output that is still visible on the terminal."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r\x1b[K")[2] for line in lines)


def test_a_line_appears_after_a_second_and_is_gone_at_the_end(silent: Frontend) -> None:
    path = str(silent.config)
    seen = on_terminal("resolve", "-c", path)
    assert "asking about 1 service (1 s)" in seen
    assert "asking about" not in left_standing(seen)
    # The line does not wrap, however narrow the terminal is.
    narrow = on_terminal("resolve", "-c", path, columns=20)
    drawn = [part for part in narrow.split("\r\x1b[K") if "asking" in part]
    assert drawn
    assert not [part for part in drawn if len(part) >= 20], narrow


def test_no_line_for_who_does_not_want_it(silent: Frontend) -> None:
    path = str(silent.config)
    assert "asking" not in on_terminal("resolve", "-q", "-c", path)
    assert "asking" not in on_terminal("resolve", "-c", path, TERM="dumb")
    # Standard error is not a terminal.
    assert "asking" not in silent.run("resolve", check=False).stderr


def test_no_line_on_standard_output(silent: Frontend, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as out:
        seen = on_terminal("resolve", "--json", "-c", str(silent.config), stdout=out.fileno())
        out.seek(0)
        printed = out.read()
    assert "asking about" in seen
    assert b"asking" not in printed
    assert printed.startswith(b"{\n")


def test_what_takes_no_second_draws_nothing(tmp_path: Path) -> None:
    assert "\x1b[K" not in on_terminal("render", "-c", config(tmp_path))


def test_an_interrupted_command_takes_its_line_away(silent: Frontend) -> None:
    environ = {k: v for k, v in os.environ.items() if k not in OF_THE_TERMINAL}
    argv = [sys.executable, "-m", "fc_frontend", "resolve", "-c", str(silent.config)]
    with Terminal(argv, environ) as terminal:
        terminal.until("asking about")
        terminal.type("\x03")
        seen = terminal.rest()
    assert "Traceback" not in seen
    assert "asking about" not in left_standing(seen).replace("^C", "")


def test_verbose_tells_steps_and_their_durations(tmp_path: Path) -> None:
    path = config(tmp_path)
    for arguments in (("-v", "check"), ("check", "-v")):
        done = fc(*arguments, "-c", path)
        lines = [line for line in done.stderr.splitlines() if line.endswith(" s")]
        assert [line.partition(":")[0] for line in lines] == [
            "validating with HAProxy",
        ]
        assert done.stdout.startswith("good: ")


def test_quiet_prints_only_problems(tmp_path: Path) -> None:
    path = config(tmp_path, GOOD.replace("pod_port: 8080", "lb_service_port: 80"))
    text = Path(path).read_text().replace("cluster: {", "cluster: {nodes: {a: 192.0.2.1}, ")
    Path(path).write_text(text)
    for arguments in (("-q", "check"), ("check", "--quiet")):
        done = fc(*arguments, "-c", path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    bad = fc("check", "-q", "-c", config(tmp_path, BAD))
    assert bad.returncode == 1
    assert "99999" in bad.stderr
    # Requested output is printed.
    assert "lb_service_port" in text
    assert "listen" in fc("render", "-q", "-c", str(_written(tmp_path, text))).stdout
    both = fc("-q", "check", "-v", "-c", path)
    assert both.returncode == 2
    assert "exclude each other" in both.stderr


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.extended
def test_status_resolve_and_explain_are_quiet_where_all_is_well() -> None:
    with Frontend(binary_of("2.6-debian")) as frontend:
        frontend.scale("shop", 2)
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        frontend.start()
        frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
        for arguments in (
            ("status", "-q"),
            ("explain", "-q", "shop"),
            ("resolve", "-q"),
            ("apply", "-q"),
            ("resume", "-q"),
        ):
            frontend.until(lambda words=arguments: frontend.run(*words, check=False).stdout == "")
        assert frontend.run("explain", "-q", "shp", check=False).stdout
        frontend.run("drain", "-q", "shop")
        said = frontend.run("status", "-q", check=False).stdout
        assert "undrain" in said
        assert "HAProxy  " not in said


def test_the_daemons_volume() -> None:
    with Frontend(binary_of("2.6-debian")) as frontend:
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        frontend.write()
        environ = dict(os.environ)
        argv = [sys.executable, "-m", "fc_frontend", "-q", "run", "-c", str(frontend.config)]
        with Terminal(argv, environ) as terminal:
            frontend.until(frontend.ready)
            terminal.type("\x03")
            # HAProxy keeps serving and still has the terminal.
            assert terminal.process.wait(30) == 0
            terminal.until("^C")
        assert "Loading success" in terminal.text
        assert " info " not in terminal.text


def test_colours_are_for_terminals_and_never_the_only_sign(tmp_path: Path) -> None:
    path = config(tmp_path, BAD)
    coloured = on_terminal("check", "-c", path)
    assert "\x1b[31m\x1b[1m" in coloured
    for plain in (
        on_terminal("check", "-c", path, NO_COLOR="1"),
        on_terminal("check", "-c", path, TERM="dumb"),
        fc("check", "-c", path).stderr,
    ):
        assert "\x1b" not in plain
        assert "refused: " in plain
        assert ": error: " in plain
    # An empty value counts as unset (no-color.org).
    assert "\x1b[31m" in on_terminal("check", "-c", path, NO_COLOR="")
    # The text is the same without colours.
    stripped = coloured
    for code in ("\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"):
        stripped = stripped.replace(code, "")
    assert stripped.replace("\r\n", "\n") == fc("check", "-c", path).stderr


@pytest.mark.parametrize("command", ["doctor", "history", "resolve", "status"])
def test_no_colours_in_tables(silent: Frontend, command: str) -> None:
    silent.dns.fault = Fault.NONE
    seen = on_terminal(command, "-q", "-c", str(silent.config), NO_COLOR="1")
    assert not [code for code in range(30, 48) if f"\x1b[{code}m" in seen]
