"""The oldest version of each dependency that pyproject.toml accepts is sufficient."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import binary_of

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "contrib" / "examples"


def minimums() -> list[str]:
    """Return each dependency in its oldest version, as an argument of pip."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = []
    for requirement in project["dependencies"]:
        match = re.fullmatch(r"([A-Za-z0-9-]+)>=([0-9.]+)", requirement)
        assert match, f"{requirement} has no minimum version"
        found.append(f"{match[1]}=={match[2]}")
    return found


def test_the_demo_runs_with_the_oldest_versions(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = subprocess.run(
        [*pip, *minimums(), str(ROOT)], capture_output=True, text=True, timeout=900, check=False
    )
    assert installed.returncode == 0, installed.stderr
    environ = {**os.environ, "PATH": f"{Path(binary_of('2.6-debian')).parent}:{os.environ['PATH']}"}
    for arguments in (
        ["check", "--config", str(EXAMPLES / "config.yaml")],
        ["import", str(ROOT / "tests" / "imported" / "01-documentation.cfg")],
        ["man"],
        ["demo"],
    ):
        done = subprocess.run(
            [python, "-m", "fc_frontend", *arguments],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env=environ,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if arguments[0] != "import":
            assert done.returncode == 0, done.stdout + done.stderr
