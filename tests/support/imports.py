"""Run the import as users do, with the platform documentation's configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from fc_frontend.pipeline import Base, prepare_offline
from fc_frontend.render.config import maps_in

DOCUMENTATION = """\
defaults
    balance leastconn

listen ingress
    bind 198.51.100.2:443
    bind [2a02:238:f030:::1000]:443
    server-template pod 20 *.ingress.default.svc.cluster.local:443 check resolvers cluster \
init-addr none

resolvers cluster
    nameserver coredns 10.43.0.10:53
    accepted_payload_size 8192 # allow larger DNS payloads
"""


def command(*arguments: str, binary: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = dict(os.environ)
    if binary is not None:
        environ["PATH"] = f"{binary}:{environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def on_path(directory: Path, binary: str) -> str:
    """Return a directory in which `haproxy` is a link to the given binary."""
    (directory / "bin").mkdir()
    (directory / "bin" / "haproxy").symlink_to(binary)
    return str(directory / "bin")


def text_for(new: Path, directory: Path) -> str:
    """Return the haproxy.cfg of an import in `new`, for a HAProxy in `directory` with its maps."""
    config = new / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["state_directory"] = f"{new}/state"
    settings.setdefault("haproxy", {})["config_file"] = f"{directory}/haproxy.cfg"
    config.write_text(yaml.safe_dump(settings))
    prepared = prepare_offline(str(config), base=Base())
    assert prepared.config is not None
    assert not prepared.withheld
    for path, content in maps_in(f"{directory}/haproxy.cfg", prepared.config.text).items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(content)
    return prepared.config.text
