"""Only regular files are read, within bounds of size and time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fc_frontend import safe_files
from fc_frontend.safe_files import MAX_STUCK, FileFault, Unsafe
from tests.conftest import until
from tests.hostile.hung import hung


def fault(path: Path | str, limit: int = 100) -> FileFault:
    with pytest.raises(Unsafe) as refused:
        safe_files.read(str(path), limit)
    if Path(path).parent.name != "mount":
        with pytest.raises(Unsafe) as listed:
            safe_files.read_listed(str(path), limit, safe_files.look(str(Path(path).parent)))
        assert listed.value.fault is refused.value.fault
    assert refused.value.message
    assert refused.value.remedy
    return refused.value.fault


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10 << 30)


BAD: dict[str, tuple[Callable[[Path], object], FileFault]] = {
    "missing": (lambda path: None, FileFault.MISSING),
    "directory": (Path.mkdir, FileFault.DIRECTORY),
    "pipe": (os.mkfifo, FileFault.SPECIAL),
    "socket": (unix_socket, FileFault.SPECIAL),
    "circle": (lambda path: path.symlink_to(path.name), FileFault.LINKS),
    "zero": (lambda path: path.symlink_to("/dev/zero"), FileFault.SPECIAL),
    "null": (lambda path: path.symlink_to("/dev/null"), FileFault.SPECIAL),
    "terminal": (lambda path: path.symlink_to("/dev/ptmx"), FileFault.SPECIAL),
    "kernel log": (lambda path: path.symlink_to("/proc/kmsg"), FileFault.KERNEL),
    "environment": (lambda path: path.symlink_to("/proc/self/environ"), FileFault.KERNEL),
    "sysfs": (lambda path: path.symlink_to("/sys/kernel/profiling"), FileFault.KERNEL),
    "by way of procfs": (
        lambda path: path.symlink_to("/proc/self/root/etc/passwd"),
        FileFault.KERNEL,
    ),
    "standard input": (lambda path: path.symlink_to("/dev/stdin"), FileFault.KERNEL),
    "large": (lambda path: path.write_bytes(b"x" * 101), FileFault.TOO_LARGE),
    "sparse": (sparse, FileFault.TOO_LARGE),
    "below a file": (lambda path: path.symlink_to("/etc/passwd/x"), FileFault.MISSING),
}


@pytest.mark.parametrize("kind", BAD)
def test_nothing_but_a_regular_file_within_the_limit_is_read(tmp_path: Path, kind: str) -> None:
    make, expected = BAD[kind]
    make(tmp_path / "file")
    assert fault(tmp_path / "file") is expected
    (tmp_path / "link").symlink_to("file")
    assert fault(tmp_path / "link") is expected


def test_regular_files_are_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "cert").write_bytes(b"x" * 100)
    (tmp_path / "live").symlink_to("archive")
    (tmp_path / "link").symlink_to(tmp_path / "live" / ".." / "archive" / "cert")
    for path in ("archive/cert", "live/cert", "link"):
        assert safe_files.read(str(tmp_path / path), 100) == b"x" * 100
    found = safe_files.examine(str(tmp_path / "link"))
    assert found.path == str(tmp_path / "archive" / "cert")
    assert safe_files.examine(str(tmp_path / "live")).is_directory
    assert safe_files.names(str(tmp_path), 3) == ["archive", "link", "live"]
    with pytest.raises(Unsafe, match="more than 2 entries"):
        safe_files.names(str(tmp_path), 2)


def test_the_null_device_is_found_as_an_empty_file() -> None:
    assert not safe_files.examine("/dev/null").is_directory


def test_a_file_with_a_lease_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "leased"
    path.write_text("x")
    held = (
        "import fcntl, os, signal, sys\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert fault(path) is FileFault.BUSY
        holder.kill()
    assert safe_files.read(str(path), 100) == b"x"


def test_a_file_system_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_files.bounded, "__defaults__", (0.2,))
    mount, good = tmp_path / "mount", tmp_path / "good"
    mount.mkdir()
    good.write_text("x")
    (tmp_path / "link").symlink_to("good")
    directory = safe_files.look(str(tmp_path))
    before = set(threading.enumerate())
    with hung(mount):
        assert fault(mount / "file") is FileFault.SLOW
        with pytest.raises(Unsafe):
            safe_files.examine(str(mount / "file"))
        with pytest.raises(Unsafe):
            safe_files.names(str(mount), 10)
        assert safe_files.read(str(tmp_path / "link"), 100) == b"x"
        for number in range(2 * MAX_STUCK):
            assert fault(mount / str(number)) is FileFault.SLOW
        # One thread waits for the whole file system; local files need no thread.
        assert safe_files.threads_stuck() == 1
        assert len(set(threading.enumerate()) - before) <= 1
        assert safe_files.read_listed(str(good), 100, directory)[0] == b"x"
    # Threads left behind return, and no longer count.
    until(lambda: not safe_files.threads_stuck())
    assert safe_files.read(str(tmp_path / "link"), 100) == b"x"


def test_a_process_with_a_thread_that_is_stuck_can_end(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from fc_frontend import safe_files\n"
        "try:\n"
        "    safe_files.bounded('x', lambda: open(sys.argv[1]).read(), 0.1)\n"
        "except safe_files.Unsafe as exc:\n"
        "    print(exc.fault)\n"
    )
    os.mkfifo(tmp_path / "pipe")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "pipe")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "slow\n"
