"""On a host without IPv4 addresses, listeners without an explicit address are on `::1`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import binary_of

NAMESPACE = ["unshare", *([] if os.getuid() == 0 else ["--map-root-user"]), "--net"]
NAMESPACE += ["--mount-proc", "--pid", "--fork", "--kill-child"]
SETTINGS = """\
cluster:
  nameservers: ["[::1]:53"]
  nodes: {{node1: "fd00::1"}}
haproxy:
  binary: {binary}
  config_file: {directory}/haproxy.cfg
  master_socket: {directory}/master.sock
  runtime_socket: {directory}/admin.sock
  supervise: true
  log: null
state_directory: {directory}/state
services:
  web: {{lb_service_port: 8099, mode: http}}
"""
SCRIPT = r"""
set -eu
ip link set lo up
ip -4 address flush dev lo
ip -6 address add fd00::1/128 dev lo nodad
test -z "$(ip -4 address show)"
cd "$2"
echo "served by a pod" >index.html
"$1" -m http.server --bind fd00::1 8099 >pod.log 2>&1 & pod=$!
"$1" -m fc_frontend run --config config.yaml >daemon.log 2>&1 & daemon=$!
"$1" - <<'ASK' || { cat daemon.log; exit 1; }
import time, urllib.request
deadline = time.monotonic() + 60
for url in ("http://[::1]:9484/readyz", "http://[::1]:8099/index.html", "http://[::1]:8000/metrics"):
    while True:
        try:
            answer = urllib.request.urlopen(url, timeout=5).read().decode()
            break
        except OSError as exc:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url}: {exc}")
            time.sleep(0.05)
    print(url, answer.splitlines()[0])
ASK
"$1" -m fc_frontend status --config config.yaml || test $? = 1  # cluster DNS is absent
"$1" -m fc_frontend check --config config.yaml
"""


def test_defaults_are_on_the_ipv6_loopback_without_ipv4(short_directory: Path) -> None:
    settings = SETTINGS.format(binary=binary_of("2.6-debian"), directory=short_directory)
    (short_directory / "config.yaml").write_text(settings)
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", SCRIPT, "sh", sys.executable, str(short_directory)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "http://[::1]:8099/index.html served by a pod" in done.stdout
    assert "http://[::1]:8000/metrics" in done.stdout
    assert re.search(r"^web +ok +1 +1 +\[::1\]:8099$", done.stdout, re.MULTILINE)
    text = (short_directory / "haproxy.cfg").read_text()
    assert "bind [::1]:8099" in text
    assert "127.0.0.1" not in text
