"""The Debian package, built and installed by dpkg into a separate root, runs from there."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend import __version__
from fc_frontend.cli import COMMANDS
from tests.conftest import binary_of
from tests.test_readme import fresh_checkout

pytestmark = pytest.mark.extended

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package in a fresh checkout."""
    directory = tmp_path_factory.mktemp("package")
    done = subprocess.run(
        ["sh", "contrib/debian/build", str(directory)],
        cwd=fresh_checkout(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = Path(done.stdout.strip())
    assert built.parent == directory
    return built


@pytest.fixture(scope="module")
def root(package: Path) -> Iterator[Path]:
    """Yield the directory that dpkg used as root; every user may read it."""
    root = Path(tempfile.mkdtemp(prefix="fcf-", dir="/tmp"))
    root.chmod(0o755)
    for directory in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "etc/haproxy"):
        (root / directory).mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text("")
    (root / "etc/haproxy/haproxy.cfg").write_text("")
    (root / "etc/group").write_text("root:x:0:\nhaproxy:x:105:\n")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nhaproxy:x:102:105::/:/bin/false\n")
    inside = [] if os.getuid() == 0 else ["unshare", "--map-root-user", "--map-auto"]
    # No shell inside the root runs the script (there is none): it gets DPKG_ROOT and must use it.
    force = "--force-script-chrootless,depends"
    done = subprocess.run(
        [*inside, "dpkg", f"--root={root}", force, "--install", str(package)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    yield root
    subprocess.run([*inside, "rm", "-rf", str(root)], check=True)


def said(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without privileges if the test can drop them."""
    return subprocess.run(
        [*(NOBODY if os.getuid() == 0 else []), *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
    )


def test_the_program_runs_from_there(root: Path) -> None:
    done = said(str(root / "usr/bin/fc-frontend"), "--version")
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout


def test_it_checks_a_configuration_without_any_right(root: Path) -> None:
    config = root / "config.json"
    service = {"binds": "127.0.0.1:80", "pod_port": 80, "mode": "http"}
    config.write_text(
        json.dumps(
            {
                "cluster": {"nameservers": ["10.0.0.254:53"]},
                "haproxy": {"binary": binary_of("2.6-debian")},
                "state_directory": str(root / "state"),
                "services": {"shop": service},
            }
        )
    )
    config.chmod(0o644)
    done = said(str(root / "usr/bin/fc-frontend"), "check", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "good: 1 service," in done.stdout


def test_the_user_and_the_units_are_there(root: Path) -> None:
    assert "fc-frontend:" in (root / "etc/passwd").read_text()
    assert (root / "etc/fc-frontend/services.d").is_dir()
    units = root / "lib/systemd/system"
    for unit in ("fc-frontend.service", "haproxy.service.d/fc-frontend.conf"):
        text = (units / unit).read_text()
        assert "/usr/bin/fc-frontend" in text
        assert "/opt/" not in text


def test_completion_and_manual_are_where_shells_and_man_look(root: Path) -> None:
    share = root / "usr/share"
    program = str(root / "usr/bin/fc-frontend")
    for shell, path in (
        ("bash", "bash-completion/completions/fc-frontend"),
        ("zsh", "zsh/vendor-completions/_fc-frontend"),
        ("fish", "fish/vendor_completions.d/fc-frontend.fish"),
    ):
        assert (share / path).read_text() == said(program, "completion", shell).stdout
    pages = {path.name for path in (share / "man/man1").iterdir()}
    assert pages == {"fc-frontend.1.gz", *(f"fc-frontend-{name}.1.gz" for name in COMMANDS)}
    text = gzip.decompress((share / "man/man1/fc-frontend-check.1.gz").read_bytes()).decode()
    assert text.startswith(".TH FC\\-FRONTEND\\-CHECK 1 ")
    assert (share / "doc/fc-frontend/json.rst").is_file()


def test_the_package_needs_what_it_was_built_for(package: Path) -> None:
    def field(name: str) -> str:
        return subprocess.run(
            ["dpkg-deb", "--field", str(package), name], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert field("Version") == __version__
    assert "haproxy (>= 2.6)" in field("Depends")
    assert "python3 (<< 3." in field("Depends")


def test_installing_touches_nothing_but_its_root(package: Path) -> None:
    """Each systemd tool in the script is given its root."""
    control = Path(tempfile.mkdtemp(dir=package.parent))
    subprocess.run(["dpkg-deb", "--control", str(package), str(control)], check=True)
    script = (control / "postinst").read_text()
    shutil.rmtree(control)
    commands = [line for line in script.splitlines() if "systemd-" in line]
    assert len(commands) == 2
    assert all('--root="${DPKG_ROOT:-/}"' in command for command in commands)
    assert 'if [ -z "${DPKG_ROOT:-}" ]' in script
