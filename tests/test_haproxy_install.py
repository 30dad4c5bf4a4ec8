"""A configuration file is replaced atomically and keeps the operator's ownership and mode."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fc_frontend.errors import Unavailable
from fc_frontend.files import remove_leftovers, write
from fc_frontend.haproxy.install import (
    clear_refused,
    install,
    read,
    refused_path,
    restore,
    write_refused,
)

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[1]


def as_nobody(work: Callable[[], None]) -> str:
    """Run `work` as a user without privileges; return the message of its `Unavailable`, or ""."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            work()
            sender.send("")
        except Unavailable as unavailable:
            sender.send(str(unavailable))

    process = context.Process(target=child)
    process.start()
    sender.close()
    said: str = receiver.recv()
    process.join()
    receiver.close()
    process.close()
    return said


def only_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_new_file_gets_the_mode_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o077)
    try:
        write(str(tmp_path / "new"), b"text", mode=0o640)
    finally:
        os.umask(former)
    assert only_files(tmp_path) == {"new": b"text"}
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o640


def test_an_existing_file_keeps_its_mode_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("old")
    path.chmod(0o604)
    owner = (os.geteuid(), os.getegid())
    if os.geteuid() == 0:
        owner = (NOBODY, NOBODY - 1)
        os.chown(path, *owner)
    write(str(path), b"new")
    found = path.stat()
    assert path.read_bytes() == b"new"
    assert found.st_mode & 0o7777 == 0o604
    assert (found.st_uid, found.st_gid) == owner


def test_an_owner_that_cannot_be_kept_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("old")
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        if parent != Path("/tmp"):
            parent.chmod(0o755)
    assert as_nobody(lambda: write(str(path), b"new")) == ""
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == 0o644


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("old")
    with path.open() as reader:
        write(str(path), b"x" * 1_000_000)
        assert reader.read() == "old"


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").write_text("old")
    link = tmp_path / "haproxy.cfg"
    link.symlink_to("real/file")
    assert install(str(link), "new") == b"old"
    assert link.is_symlink()
    assert only_files(real) == {"file": b"new"}


def test_a_dangling_link_gets_its_file(tmp_path: Path) -> None:
    link = tmp_path / "haproxy.cfg"
    link.symlink_to("later")
    assert install(str(link), "new") is None
    assert (tmp_path / "later").read_text() == "new"


def test_an_equal_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("same")
    before = path.stat()
    assert install(str(path), "same") == b"same"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_was_installed_can_be_undone(tmp_path: Path) -> None:
    path = str(tmp_path / "haproxy.cfg")
    first = install(path, "one")
    second = install(path, "two")
    assert (first, second) == (None, b"one")
    restore(path, second)
    assert read(path) == b"one"
    restore(path, first)
    assert only_files(tmp_path) == {}
    restore(path, None)


def test_bytes_that_are_not_utf8_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_bytes(b"caf\xe9")
    previous = install(str(path), "new")
    restore(str(path), previous)
    assert path.read_bytes() == b"caf\xe9"


def test_a_refused_text_is_kept_until_it_is_cleared(tmp_path: Path) -> None:
    path = str(tmp_path / "haproxy.cfg")
    assert write_refused(path, "bad") == refused_path(path)
    write_refused(path, "worse")
    assert only_files(tmp_path) == {"haproxy.cfg.refused": b"worse"}
    assert (tmp_path / "haproxy.cfg.refused").stat().st_mode & 0o7777 == 0o640
    clear_refused(path)
    clear_refused(path)
    assert only_files(tmp_path) == {}


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "missing" / "haproxy.cfg")
    with pytest.raises(Unavailable, match=r"No such file or directory → create") as raised:
        write(path, b"")
    assert path in str(raised.value)


def test_a_path_through_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="not a directory"):
        write(str(tmp_path / "file" / "haproxy.cfg"), b"")


def test_a_circle_of_links_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(Unavailable, match="circle"):
        write(str(tmp_path / "a"), b"")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_a_device_is_not_replaced(path: str) -> None:
    with pytest.raises(Unavailable, match="not a regular file"):
        write(path, b"text")
    assert Path(path).is_char_device()


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="Is a directory"):
        write(str(tmp_path), b"text")
    with pytest.raises(Unavailable, match="cannot be read"):
        install(str(tmp_path), "text")


def test_a_directory_without_the_right_to_write(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("old")
    path.chmod(0o644)
    tmp_path.chmod(0o555)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    said = as_nobody(lambda: write(str(path), b"new"))
    tmp_path.chmod(0o755)
    assert "Permission denied" in said
    assert "give this user the right" in said
    assert only_files(tmp_path) == {"haproxy.cfg": b"old"}


ON_SMALL_DISK = """
import os, subprocess, sys
from fc_frontend.errors import Unavailable
from fc_frontend.files import write
directory = sys.argv[1]
path = directory + "/haproxy.cfg"

def attempt(path):
    try:
        write(path, b"x" * 1_000_000)
    except Unavailable as unavailable:
        print(unavailable)

if sys.argv[2] == "mounted":
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", directory], check=True)
    write(path, b"old")
    attempt(path)
    os.mkdir(directory + "/ro")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", directory + "/ro"], check=True)
    attempt(directory + "/ro/haproxy.cfg")
else:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write(path, b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    attempt(path)
left = [name for _, _, names in os.walk(directory) for name in names]
print(left, open(path).read())
"""


def test_a_full_and_a_read_only_disk_leave_the_old_file(tmp_path: Path) -> None:
    """Use a small disk of its own or, where mounting is not permitted, a file size limit."""
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    probe = ["mount", "-t", "tmpfs", "none", str(tmp_path)]
    mounts = subprocess.run([*namespace, *probe], capture_output=True, check=False)
    way = ["mounted"] if mounts.returncode == 0 else ["limited"]
    script = [sys.executable, "-c", ON_SMALL_DISK, str(tmp_path), *way]
    said = subprocess.run(
        [*(namespace if way == ["mounted"] else []), *script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    *failures, state = said.splitlines()
    assert state == "['haproxy.cfg'] old"
    if way == ["mounted"]:
        full, read_only = failures
        assert "No space left on device → make room" in full
        assert "Read-only file system → mount it writable" in read_only
    else:
        assert "File too large" in failures[0]


def test_what_killed_writers_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    old, young = tmp_path / ".haproxy.cfg.0123456789ab.tmp", tmp_path / ".a.cfg.ba9876543210.tmp"
    others = [tmp_path / name for name in ("haproxy.cfg", ".x.tmp", ".haproxy.cfg.0123.tmp")]
    for path in (old, young, *others):
        path.write_text("")
        if path != young:
            os.utime(path, (1.0, 1.0))
    assert remove_leftovers([str(tmp_path), "/nowhere"]) == 1
    assert sorted(tmp_path.iterdir()) == sorted([young, *others])
