"""systemd accepts the units; they are well confined, and never tie HAProxy to fc-frontend.

The tests run offline: systemd's own tools check copies in a directory, and no service manager is
involved.  The options of the drop-in are tried with HAProxy.
"""

from __future__ import annotations

import configparser
import contextlib
import grp
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.plan.model import Haproxy
from tests.conftest import RealHaproxy, until

CONTRIB = Path(__file__).parent.parent / "contrib" / "systemd"
UNIT = CONTRIB / "fc-frontend.service"
DROP_IN = CONTRIB / "haproxy.service.d" / "fc-frontend.conf"
HAPROXY_UNIT = Path("/lib/systemd/system/haproxy.service")
MOST_EXPOSURE = 2.0
TIES = ("Requires", "Requisite", "BindsTo", "PartOf", "Upholds", "Conflicts", "PropagatesStopTo")


def said(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with its output as one text."""
    return subprocess.run(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environ},
    )


def settings(path: Path) -> list[tuple[str, str]]:
    """Return the assignments of a unit file, in order."""
    lines = path.read_text().splitlines()
    return [
        (name, value)
        for name, separator, value in (line.partition("=") for line in lines)
        if separator and re.fullmatch(r"[A-Za-z]+", name)
    ]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Return a directory with the units, whose start program exists."""
    program = tmp_path / "fc-frontend"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    directory = tmp_path / "units"
    shutil.copytree(CONTRIB / "haproxy.service.d", directory / "haproxy.service.d")
    for unit in (UNIT, HAPROXY_UNIT):
        text = unit.read_text().replace("/opt/fc-frontend/bin/fc-frontend", str(program))
        (directory / unit.name).write_text(text)
    return directory


@pytest.mark.parametrize("unit", ["fc-frontend.service", "haproxy.service"])
def test_systemd_takes_the_units(units: Path, unit: str) -> None:
    done = said("systemd-analyze", "verify", "--man=no", str(units / unit))
    about_ours = [line for line in done.stdout.splitlines() if str(units) in line or unit in line]
    assert done.returncode == 0, done.stdout
    assert not about_ours


def test_a_unit_that_is_wrong_is_not_taken(units: Path) -> None:
    """The check above can fail."""
    unit = units / "fc-frontend.service"
    unit.write_text(unit.read_text().replace("PrivateTmp=yes", "PrivateTmp=si"))
    done = said("systemd-analyze", "verify", "--man=no", str(unit))
    assert f"{unit}:" in done.stdout


def test_the_daemon_is_confined(units: Path) -> None:
    done = said("systemd-analyze", "security", "--offline=true", str(units / UNIT.name))
    exposure = re.search(r"Overall exposure level for fc-frontend\.service: ([0-9.]+)", done.stdout)
    assert exposure, done.stdout
    assert float(exposure[1]) <= MOST_EXPOSURE, done.stdout


def test_no_unit_is_tied_to_another() -> None:
    for path in (UNIT, DROP_IN):
        assert not [name for name, _ in settings(path) if name in TIES], path
    assert not [name for name, _ in settings(DROP_IN) if name in ("Wants", "After", "Before")]


def test_the_daemons_unit_speaks_its_protocols() -> None:
    unit = dict(settings(UNIT))
    assert unit["Type"] == "notify"
    assert unit["NotifyAccess"] == "main"
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["Restart"] == "always"
    assert int(unit["WatchdogSec"].removesuffix("s")) >= 10
    assert unit["User"] == "fc-frontend"
    assert unit["SupplementaryGroups"] == "haproxy"


def test_the_drop_in_changes_what_debians_unit_has() -> None:
    """Debian's ExecStart= takes options from $EXTRAOPTS; the drop-in depends on that."""
    debian = settings(HAPROXY_UNIT)
    assert any(name == "ExecStart" and value.endswith("$EXTRAOPTS") for name, value in debian)
    original = [value for name, value in debian if name == "ExecReload"]
    ours = [value for name, value in settings(DROP_IN) if name == "ExecReload"]
    assert ours[0] == ""
    assert "fc-frontend check" in ours[1]
    assert ours[2:] == original


def extra_options() -> list[str]:
    """Return the options that the drop-in passes to HAProxy."""
    (value,) = (value for name, value in settings(DROP_IN) if name == "Environment")
    (assignment,) = shlex.split(value)
    name, _, words = assignment.partition("=")
    assert name == "EXTRAOPTS"
    return words.split()


def test_group_haproxy_may_use_the_master_socket(
    haproxy_binary: str, short_directory: Path
) -> None:
    option, bind = extra_options()
    path, *options = bind.split(",")
    assert path == Haproxy().master_socket
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        "mode": "660",
        "group": "haproxy",
    }
    # Only root may give a file to a group that the user is not in.
    group = "haproxy" if os.getuid() == 0 else grp.getgrgid(os.getgid()).gr_name
    with started(haproxy_binary, short_directory, option, options, group) as master:
        until(master.exists)
        found = master.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert grp.getgrgid(found.st_gid).gr_name == group


@contextlib.contextmanager
def started(
    binary: str, directory: Path, option: str, options: list[str], group: str
) -> Iterator[Path]:
    """Start HAProxy with the drop-in's options; yield the path of its master socket."""
    haproxy = RealHaproxy(binary, directory)
    haproxy.write(haproxy.configuration())
    words = [group if word == "haproxy" else word for word in options]
    bind = ",".join([haproxy.master_socket, *words])
    with haproxy.log.open("wb") as log:
        process = subprocess.Popen(
            [binary, "-W", "-f", haproxy.config_file, option, bind],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    haproxy.adopt(process.pid)
    try:
        yield Path(haproxy.master_socket)
    finally:
        haproxy.end()
        process.wait()


@pytest.mark.parametrize(("program", "code"), [("exit 1", 1), ("exit 0", 0), (None, 0)])
def test_a_reload_by_hand_asks_first(tmp_path: Path, program: str | None, code: int) -> None:
    """A refusal prevents the reload; without fc-frontend HAProxy reloads as usual."""
    ours = [value for name, value in settings(DROP_IN) if name == "ExecReload"]
    path = tmp_path / "fc-frontend"
    if program:
        path.write_text(f'#!/bin/sh\n[ "$1" = check ] && {program}\n')
        path.chmod(0o755)
    argv = [w.replace("/opt/fc-frontend/bin/fc-frontend", str(path)) for w in shlex.split(ours[1])]
    assert said(*argv).returncode == code


def test_only_the_daemon_may_write_where_haproxy_is_configured(tmp_path: Path) -> None:
    """systemd's own tools create the user and the directories in an empty root."""
    root = tmp_path / "root"
    (root / "etc" / "haproxy").mkdir(parents=True)
    (root / "etc" / "haproxy" / "haproxy.cfg").write_text("")
    (root / "etc" / "group").write_text("root:x:0:\nhaproxy:x:105:\n")
    (root / "etc" / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nhaproxy:x:102:105::/:/bin/false\n"
    )
    inside = [] if os.getuid() == 0 else ["unshare", "--map-root-user", "--map-auto"]
    users = CONTRIB / "sysusers.d" / "fc-frontend.conf"
    files = CONTRIB / "tmpfiles.d" / "fc-frontend.conf"
    done = said(*inside, "systemd-sysusers", f"--root={root}", str(users))
    assert done.returncode == 0, done.stdout
    passwd = {
        line.split(":")[0]: line.split(":") for line in (root / "etc/passwd").read_text().split()
    }
    assert passwd["fc-frontend"][6].endswith("nologin")
    gid = passwd["fc-frontend"][3]
    # Always with --root: otherwise it would act on this host.
    done = said(*inside, "systemd-tmpfiles", f"--root={root}", "--create", str(files))
    assert done.returncode == 0, done.stdout
    shown = said(*inside, "stat", "-c", "%a %u %g", str(root / "etc/haproxy"))
    assert shown.stdout.split() == ["775", "0", gid]
    shown = said(*inside, "stat", "-c", "%a %u %g", str(root / "etc/haproxy/haproxy.cfg"))
    assert shown.stdout.split() == ["640", passwd["fc-frontend"][2], "105"]
    assert (root / "etc" / "fc-frontend" / "services.d").is_dir()


def test_the_sandbox_writes_no_more_than_the_daemon_does() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    service = parser["Service"]
    assert service["ProtectSystem"] == "strict"
    # Debian's HAProxy 2.6: "regex … jit compilation failed".
    assert "MemoryDenyWriteExecute" not in service
    assert service["ReadWritePaths"] == "-/etc/haproxy"
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"]
    assert service["StateDirectoryMode"] == "0750"
