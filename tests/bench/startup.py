"""Commands that respond at once, as ratios to `python3 -c pass` and `haproxy -c`.

Medians of interleaved runs of an installed console script, with cached bytecode.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.options import Options
from tests.conftest import binary_of


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each command: median in milliseconds, and ratios."""
    with tempfile.TemporaryDirectory(prefix="fcb-") as name:
        directory = Path(name)
        script = directory / "fc-frontend"
        script.write_text(
            f"#!{sys.executable}\nimport sys\nfrom fc_frontend.__main__ import main\n"
            "sys.exit(main())\n"
        )
        script.chmod(0o755)
        binary = binary_of("2.6-debian")
        config = directory / "config.json"
        config.write_text(json.dumps(declaration(binary)))
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environ |= {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONPYCACHEPREFIX": f"{name}/pyc",
        }
        rendered = directory / "haproxy.cfg"
        check = [str(script), "check", "--config", str(config)]
        subprocess.run(
            [str(script), "render", "--config", str(config), "--output", str(rendered)],
            check=True,
            env=environ,
            capture_output=True,
        )
        commands = {
            "python3 -c pass": [sys.executable, "-c", "pass"],
            "haproxy -c": [binary, "-c", "-f", str(rendered)],
            "--version": [str(script), "--version"],
            "--help": [str(script), "--help"],
            "check of 10 services": check,
        }
        took: dict[str, list[float]] = {command: [] for command in commands}
        for _ in range(6 if options.quick else 21):
            for command, argv in commands.items():
                started = time.perf_counter()
                subprocess.run(argv, check=True, capture_output=True, env=environ)
                took[command].append(time.perf_counter() - started)
    medians = {name: statistics.median(times[1:]) * 1000 for name, times in took.items()}
    base, haproxy = medians["python3 -c pass"], medians["haproxy -c"]
    aims = {
        "--version": 4 * base,
        "--help": 4 * base,
        "check of 10 services": haproxy + 20 * base,
    }
    return [
        {
            "command": name,
            "ms": f"{median:.1f}",
            "× python3 -c pass": f"{median / base:.1f}",
            "× haproxy -c": f"{median / haproxy:.1f}",
            "aim ms": f"{aims[name]:.0f}" if name in aims else "",
        }
        for name, median in medians.items()
    ]


def declaration(binary: str) -> dict[str, object]:
    """Return settings with ten services, and a HAProxy that need not run."""
    return {
        "cluster": {"nameservers": ["10.0.0.254:53"]},
        "haproxy": {"binary": binary, "log": None},
        "services": {f"s{n}": {"pod_port": 8080 + n, "mode": "http"} for n in range(10)},
    }
