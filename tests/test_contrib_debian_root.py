"""The Debian package in a minimal Debian: install, take over, serve, upgrade and purge."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import test_contrib_debian

pytestmark = pytest.mark.extended
package = test_contrib_debian.package

SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
HAPROXY_CFG = "# written by hand\ndefaults\n  mode http\n"
SERVICE = """\
services:
  web: {lb_service_port: 8099, mode: http, binds: "127.0.0.1:8080"}
"""
CLUSTER = """
cluster:
  nameservers: ["127.0.0.1:53"]
  nodes: {node1: 127.0.0.1}
"""
SERVE = r"""
set -eu
python3 - <<'LOOPBACK_UP'
import fcntl, socket, struct
SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("<16sH14x", b"lo", IFF_UP_RUNNING))
LOOPBACK_UP
mkdir -p /run/haproxy /srv/pod
echo "served by a pod" >/srv/pod/index.html
python3 -m http.server --directory /srv/pod --bind 127.0.0.1 8099 >/dev/null 2>&1 &
haproxy -Ws -f /etc/haproxy/haproxy.cfg -S /run/haproxy/master.sock,mode,660,group,haproxy &
fc-frontend apply
stat -c '%U %n' /etc/haproxy/haproxy.cfg
group=$(getent group haproxy | cut -d: -f3)
setpriv --reuid=fc-frontend --regid=fc-frontend --groups="$group" fc-frontend run &
python3 - <<'ASK'
import time, urllib.request
deadline = time.monotonic() + 60
def ask(url):
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read().decode().strip()
        except OSError as exc:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url}: {exc}")
            time.sleep(0.05)
print("ready:", ask("http://127.0.0.1:9484/readyz"))
print("answer:", ask("http://127.0.0.1:8080/"))
ASK
"""
SYSTEMCTL = """\
#!/bin/sh
echo "systemctl $*" >>/tmp/systemctl.log
"""
"""A stand-in for a running systemd, which a chroot lacks: every unit is active."""


def inside(root: Path, *argv: str, network: bool = True) -> str:
    """Return the output of a command in `root`, which must succeed.

    Processes that the command started end with it.
    """
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    with_proc = ["sh", "-c", 'mount -t proc proc /proc && exec "$@"', "sh"]
    done = subprocess.run(
        [*namespaces, *([] if network else ["--net"]), "chroot", str(root), *with_proc, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def install(root: Path, *argv: str) -> None:
    """Install a package with its dependencies only."""
    inside(root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *argv)


def attributes(path: Path) -> tuple[int, int, int]:
    """Return owner, group and mode."""
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """Yield a minimal Debian with a haproxy.cfg written by an administrator."""
    if os.getuid() != 0:
        pytest.fail("run this test as root: it makes a Debian in a directory and enters it")
    mirror = re.search(r"^URIs:\s*(\S+)", SOURCES.read_text(), re.MULTILINE)
    suite = re.search(r"^Suites:\s*(\S+)", SOURCES.read_text(), re.MULTILINE)
    assert mirror
    assert suite
    root = Path(tempfile.mkdtemp(prefix="fcf-debian-"))
    root.chmod(0o755)
    subprocess.run(
        ["debootstrap", "--variant=minbase", suite[1], str(root), mirror[1]],
        check=True,
        capture_output=True,
        timeout=900,
    )
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    for name in ("apt.conf.d", "sources.list.d"):
        shutil.copytree(f"/etc/apt/{name}", root / "etc/apt" / name, dirs_exist_ok=True)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    inside(root, "apt-get", "update", "-qq")
    (root / "etc/haproxy").mkdir()
    (root / "etc/haproxy/haproxy.cfg").write_text(HAPROXY_CFG)
    inside(
        root, "apt-get", "install", "-y", "-qq", "-o", "Dpkg::Options::=--force-confold", "haproxy"
    )
    yield root
    shutil.rmtree(root)


def test_install_serve_upgrade_and_purge(debian: Path, package: Path) -> None:
    config = debian / "etc/haproxy/haproxy.cfg"
    before = attributes(config)
    shutil.copy(package, debian / "tmp/fc-frontend.deb")
    inside(
        debian, "apt-get", "install", "-y", "-qq", "--no-install-recommends", "/tmp/fc-frontend.deb"
    )

    # Installed: the user and a commented configuration exist, haproxy.cfg is unchanged.
    assert config.read_text() == HAPROXY_CFG
    assert attributes(config) == before
    inside(debian, "fc-frontend", "check")
    settings = debian / "etc/fc-frontend/config.yaml"
    assert settings.read_text().startswith("# Settings of fc-frontend.")
    examples = debian / "usr/share/doc/fc-frontend/examples"
    assert "haproxy-master.sock" not in (examples / "config.yaml").read_text()
    assert (
        "/run/haproxy/master.sock"
        in (debian / "lib/systemd/system/haproxy.service.d/fc-frontend.conf").read_text()
    )

    # Served: the daemon runs as its own user.
    original = settings.read_text()
    settings.write_text(original + CLUSTER)
    (debian / "etc/fc-frontend/services.d/web.yaml").write_text(SERVICE)
    (debian / "tmp/serve").write_text(SERVE)
    served = inside(debian, "sh", "/tmp/serve", network=False)
    assert "answer: served by a pod" in served

    # Upgraded: the changes are shown, and the daemon is restarted.
    control = debian / "tmp/package"
    subprocess.run(["dpkg-deb", "-R", str(package), str(control)], check=True)
    text = (control / "DEBIAN/control").read_text()
    (control / "DEBIAN/control").write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+next", text))
    newer = debian / "tmp/newer.deb"
    subprocess.run(
        ["dpkg-deb", "-Znone", "-b", str(control), str(newer)], check=True, capture_output=True
    )
    systemctl = debian / "usr/local/bin/systemctl"
    systemctl.parent.mkdir(parents=True, exist_ok=True)
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    (debian / "run/systemd/system").mkdir(parents=True)
    path = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    said = inside(debian, "env", path, "dpkg", "-i", "/tmp/newer.deb")
    assert "what changes when the new version starts:" in said
    assert "nothing would change" in said
    log = debian / "tmp/systemctl.log"
    assert "systemctl restart fc-frontend.service" in log.read_text()
    assert settings.read_text() == original + CLUSTER

    # Purged: HAProxy keeps its configuration; only the services remain of fc-frontend.
    inside(debian, "env", path, "dpkg", "--purge", "fc-frontend")
    assert "disable --now fc-frontend.service" in log.read_text()
    assert not (debian / "var/lib/fc-frontend").exists()
    assert not (debian / "usr/lib/fc-frontend").exists()
    assert not settings.exists()
    assert (debian / "etc/fc-frontend/services.d/web.yaml").exists()
    assert "listen web" in config.read_text()
    assert config.stat().st_uid == 0
