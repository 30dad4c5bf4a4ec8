"""The wheel is complete, and starting a command imports only what the command needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.extended
def test_the_wheel_ships_the_templates(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=180,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {f"fc_frontend/templates/{path.name}" for path in ROOT.glob("templates/*.j2")}
    assert packaged
    assert packaged <= names
    pages = (ROOT / "fc_frontend").glob("page/templates/*")
    assert {path.relative_to(ROOT).as_posix() for path in pages} <= names
    assert "fc_frontend/page/templates/page.css" in names
    assert not any(name.startswith(("tests/", "templates/")) for name in names)


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], {"pydantic", "jinja2", "yaml", "dns", "rich", "asyncio"}),
        (["check"], {"dns", "rich", "prometheus_client", "asyncio", "watchdog"}),
    ],
)
def test_commands_import_only_what_they_use(
    tmp_path: Path, arguments: list[str], unwanted: set[str]
) -> None:
    code = (
        "import sys\nfrom fc_frontend.cli import cli\n"
        "try:\n    cli(prog_name='fc-frontend')\nfinally:\n"
        "    sys.stderr.write('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={**os.environ, "FC_FRONTEND_CONFIG": str(tmp_path / "none.yaml")},
    )
    imported = set(done.stderr.splitlines()[-1].split())
    assert "fc_frontend.cli" in imported
    assert not imported & unwanted
