"""HAProxy checks configurations; the operator sees its messages complete, with their places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.binary import bundled_binary, find_binary
from fc_frontend.haproxy.judge import verdict_problems
from fc_frontend.haproxy.patience import Patience
from fc_frontend.haproxy.validate import Ending, parse_messages, validate
from fc_frontend.haproxy.version import Version, binary_version, parse_version
from fc_frontend.render.config import Config
from tests.conftest import RealHaproxy, until

TIMEOUT = 20.0
NO_SECTIONS = Config("", "")


def executable(path: Path, script: str) -> str:
    """Write a program that does what the real HAProxy cannot be made to do; return its path."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def ended(stat: Path) -> bool:
    """Return whether the process of /proc/<pid>/stat has ended, reaped or not."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_good_configuration_is_accepted(haproxy: RealHaproxy) -> None:
    verdict = validate(haproxy.binary, haproxy.configuration(), timeout=TIMEOUT)
    assert verdict.accepted
    assert verdict.messages == ()


def test_a_configuration_without_a_listener_is_not_wrong(haproxy_binary: str) -> None:
    assert validate(haproxy_binary, "global\n", timeout=TIMEOUT).accepted


def test_warnings_do_not_refuse_and_keep_all_their_lines(haproxy: RealHaproxy) -> None:
    text = haproxy.configuration("backend pods", "  server pod1 192.0.2.1:80")
    text = text.replace("  timeout server 60s\n", "")
    verdict = validate(haproxy.binary, text, timeout=TIMEOUT)
    assert verdict.accepted
    (warning,) = verdict.warnings
    assert warning.section == "pods"
    first, second, *_ = warning.text.splitlines()
    assert first == "missing timeouts for backend 'pods'."
    assert second.startswith("While not properly invalid")


def test_every_parse_error_has_its_line(haproxy: RealHaproxy) -> None:
    text = haproxy.configuration("  foo bar", "  baz")
    verdict = validate(haproxy.binary, text, timeout=TIMEOUT)
    assert not verdict.accepted
    lines = [text.splitlines().index(wrong) + 1 for wrong in ("  foo bar", "  baz")]
    assert [alert.line for alert in verdict.alerts] == lines
    assert "unknown keyword 'foo'" in verdict.alerts[0].text


def test_an_error_of_meaning_has_its_names(haproxy: RealHaproxy) -> None:
    text = haproxy.configuration(
        "backend pods",
        "  server pod1 192.0.2.1:80 check resolvers nowhere",
        "frontend second",
        "  bind 127.0.0.1:1",
        "  default_backend nowhere",
        "backend other",
        "  server pod2 192.0.2.1:80 ssl",
    )
    verdict = validate(haproxy.binary, text, timeout=TIMEOUT)
    assert not verdict.accepted
    named = {(alert.section, alert.server) for alert in verdict.alerts}
    assert named == {("pods", "pod1"), ("second", None), ("other", "pod2")}


def test_where_the_text_came_from_is_not_shown(haproxy: RealHaproxy) -> None:
    verdict = validate(haproxy.binary, haproxy.configuration("  foo"), timeout=TIMEOUT)
    assert "[haproxy.cfg:" in verdict.alerts[0].text
    assert "/proc/" not in verdict.output


def test_a_missing_final_newline_is_refused(haproxy: RealHaproxy) -> None:
    text = haproxy.configuration().rstrip("\n")
    verdict = validate(haproxy.binary, text, timeout=TIMEOUT)
    assert not verdict.accepted
    assert "Missing LF" in verdict.alerts[0].text


def test_bytes_that_are_not_utf8_do_no_harm(haproxy: RealHaproxy) -> None:
    text = haproxy.configuration(b"  caf\xe9 \xff".decode("utf-8", "surrogateescape"))
    verdict = validate(haproxy.binary, text, timeout=TIMEOUT)
    assert not verdict.accepted
    assert "caf�" in verdict.alerts[0].text
    verdict.output.encode()


def test_relative_paths_do_not_depend_on_the_caller(
    haproxy: RealHaproxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list").write_text("192.0.2.1\n")
    monkeypatch.chdir(tmp_path)
    text = haproxy.configuration("backend other", "  tcp-request content reject if { src -f list }")
    assert not validate(haproxy.binary, text, timeout=TIMEOUT).accepted


def test_the_environment_keeps_its_secrets(
    haproxy: RealHaproxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    verdict = validate(haproxy.binary, haproxy.configuration('  "$SECRET"foo'), timeout=TIMEOUT)
    assert not verdict.accepted
    assert "s3cret" not in verdict.output


def test_a_flood_of_warnings_is_bounded_and_its_alert_is_seen(haproxy: RealHaproxy) -> None:
    idle = "\n".join(f"backend a{number}\n  server x 192.0.2.1:80" for number in range(3000))
    text = haproxy.configuration(idle, "backend z", "  server x 192.0.2.1:1 resolvers nowhere")
    text = text.replace("  timeout server 60s\n", "")
    verdict = validate(haproxy.binary, text, timeout=TIMEOUT)
    assert not verdict.accepted
    assert 255 * 1024 < len(verdict.output.encode()) <= 256 * 1024
    assert len(verdict.warnings) >= 3000
    assert [alert.section for alert in verdict.alerts] == ["z"]


def test_a_check_that_hangs_refuses_and_is_killed_with_its_children(tmp_path: Path) -> None:
    """Use a fake: HAProxy starts no processes in a check."""
    marker = tmp_path / "child"
    hangs = executable(tmp_path / "haproxy", f"sleep 60 & echo $! >{marker}; wait")
    verdict = validate(hangs, "global\n", timeout=3)
    assert (verdict.accepted, verdict.ending) == (False, Ending.TIME)
    child = Path("/proc") / marker.read_text().strip() / "stat"
    until(lambda: ended(child))


def lua(haproxy: RealHaproxy, program: str) -> str:
    """Return a configuration that makes HAProxy run a program while reading it."""
    script = haproxy.directory / "script.lua"
    script.write_text(program)
    return haproxy.configuration(settings=(f"lua-load {script}",))


def test_a_check_that_never_ends_refuses(haproxy: RealHaproxy) -> None:
    verdict = validate(haproxy.binary, lua(haproxy, "while true do end"), timeout=2)
    assert (verdict.accepted, verdict.ending) == (False, Ending.TIME)
    assert [alert.service for alert in verdict_problems(verdict, NO_SECTIONS)] == [None]


def test_a_check_that_needs_too_much_memory_refuses(
    haproxy: RealHaproxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fc_frontend.haproxy.validate.MAX_MEMORY", 256 * 1024 * 1024)
    grows = "local t = {} for i = 1, 1000 do t[i] = string.rep('x', 2^20) .. i end"
    assert not validate(haproxy.binary, lua(haproxy, grows), timeout=TIMEOUT).accepted
    assert validate(haproxy.binary, haproxy.configuration(), timeout=TIMEOUT).accepted


def test_a_check_that_is_killed_refuses(tmp_path: Path) -> None:
    """Use a fake: the real HAProxy would need a memory shortage."""
    killed = executable(tmp_path / "haproxy", "kill -9 $$")
    verdict = validate(killed, "", timeout=TIMEOUT)
    assert (verdict.accepted, verdict.ending) == (False, Ending.KILLED)
    (problem,) = verdict_problems(verdict, NO_SECTIONS)
    assert "SIGKILL" in problem.message
    assert "memory" in problem.remedy


def test_what_belongs_to_no_unit_is_placed_in_the_rendered_text(haproxy: RealHaproxy) -> None:
    text = "global\n  nonsense\n"
    verdict = validate(haproxy.binary, text, timeout=TIMEOUT)
    problem = verdict_problems(verdict, NO_SECTIONS)[0]
    assert problem.location == "rendered haproxy.cfg:2"
    assert problem.message.startswith("HAProxy says: unknown keyword")


def test_a_check_does_not_outlive_the_process_that_asked_for_it(haproxy: RealHaproxy) -> None:
    program = (
        "import sys, threading\n"
        "from fc_frontend.haproxy.validate import validate\n"
        "def check():\n"
        "    validate(sys.argv[1], open(sys.argv[2]).read(), timeout=600)\n"
        "threading.Thread(target=check).start()\n"
    )
    haproxy.write(lua(haproxy, "while true do end"))
    with subprocess.Popen(
        [sys.executable, "-c", program, haproxy.binary, haproxy.config_file]
    ) as asking:
        asked = psutil.Process(asking.pid)
        (check,) = until(lambda: [c for c in asked.children() if c.name() == "haproxy"])
        asking.kill()
    until(lambda: ended(Path(f"/proc/{check.pid}/stat")))


def test_trials_get_as_much_time_as_an_accepted_check_suggests() -> None:
    patience = Patience()
    assert patience.limit(30, is_trial=True) == 30
    patience.accepted(0.1)
    assert patience.limit(30, is_trial=False) == 30
    assert patience.limit(30, is_trial=True) == 2
    assert patience.limit(1, is_trial=True) == 1
    patience.accepted(0.5)
    assert patience.limit(30, is_trial=True) == 5
    patience.exceeded()
    assert patience.limit(30, is_trial=False) == 5
    patience.relax()
    assert patience.limit(30, is_trial=False) == 30


def test_an_alert_refuses_even_with_status_0(tmp_path: Path) -> None:
    """Use a fake: only 3.x does this, and it is not available here."""
    prints = executable(tmp_path / "haproxy", "echo '[ALERT]    (1) : config : no' >&2")
    verdict = validate(prints, "", timeout=TIMEOUT)
    assert not verdict.accepted
    assert verdict.alerts[0].text == "no"


def test_silence_is_not_consent(tmp_path: Path) -> None:
    """Use a fake: HAProxy always reports a reason."""
    verdict = validate(executable(tmp_path / "haproxy", "exit 1"), "", timeout=TIMEOUT)
    assert not verdict.accepted
    assert "ended with status 1" in verdict.alerts[0].text


@pytest.mark.parametrize(("mode", "content"), [(0o644, "#!/bin/sh\n"), (0o755, "\x7fELF")])
def test_what_cannot_be_run_is_unavailable(tmp_path: Path, mode: int, content: str) -> None:
    path = tmp_path / "haproxy"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(Unavailable, match=r"cannot be started.*executable"):
        validate(str(path), "", timeout=TIMEOUT)


def test_the_older_form_of_messages_is_read() -> None:
    """The text is from HAProxy 2.3, with its date and time."""
    (alert,) = parse_messages("[ALERT] 123/112233 (42) : parsing [haproxy.cfg:7] : no\n")
    assert (alert.level, alert.line) == ("alert", 7)


def test_the_messages_of_haproxy_3_4_are_read() -> None:
    """3.4 reports only the first semantic error, without `config : ` and without a summary."""
    said = (
        "[ALERT]    (4711) : Proxy 'second': unable to find required default_backend: 'nowhere'.\n"
    )
    (message,) = parse_messages(said, is_one_process=True)
    assert (message.level, message.section, message.line) == ("alert", "second", None)
    assert message.text.startswith("Proxy 'second': unable to find")


def test_versions_are_told_apart(haproxy_binary: str) -> None:
    version = binary_version(haproxy_binary)
    assert version.supported
    assert version.reload_answers == (version >= Version(2, 7))
    assert str(version) in version.text


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("HAProxy version 3.5-dev3-0abcde 2026/01/01 - https://haproxy.org/", Version(3, 5, 0)),
        ("HA-Proxy version 1.8.19-1+deb10u3 2020/08/01", Version(1, 8, 19)),
        ("Name: HAProxy\nVersion: 2.8.25-5cf5d0683\n", Version(2, 8, 25)),
        ("2.6.12-1+deb12u4", Version(2, 6, 12)),
    ],
)
def test_every_form_of_a_version_is_read(text: str, version: Version) -> None:
    found = parse_version(text)
    assert (found.major, found.minor, found.patch) == (version.major, version.minor, version.patch)


@pytest.mark.parametrize("text", ["", "bash: no", "nginx version: nginx/1.25.3"])
def test_what_is_no_haproxy_has_no_version(text: str) -> None:
    with pytest.raises(Unavailable, match="not a HAProxy version"):
        parse_version(text)


def test_a_binary_that_is_no_haproxy_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="status 3"):
        binary_version(executable(tmp_path / "haproxy", "exit 3"))


def test_a_path_is_taken_as_it_is(haproxy_binary: str) -> None:
    assert find_binary(haproxy_binary) == haproxy_binary
    with pytest.raises(Unavailable, match="no HAProxy binary at"):
        find_binary("/nowhere/haproxy")


def test_a_path_that_may_not_be_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "haproxy").touch(0o644)
    with pytest.raises(Unavailable, match="may not be executed"):
        find_binary(str(tmp_path / "haproxy"))


def test_a_name_is_looked_for_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = executable(tmp_path / "haproxy", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == mine


def test_an_ordinary_path_still_finds_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = find_binary()
    assert found in {"/usr/sbin/haproxy", "/usr/local/sbin/haproxy"}


def test_the_extra_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/false")
    monkeypatch.setattr("fc_frontend.haproxy.binary.SYSTEM_PATH", "/nowhere")
    found = find_binary()
    assert found == bundled_binary()
    assert found is not None
    assert os.access(found, os.X_OK)


def test_only_haproxy_itself_comes_from_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="apt install haproxy"):
        find_binary("haproxy-3")
