"""From files to text: the whole configuration, and the change of one service among thousands.

The baseline is the time that HAProxy itself takes to read the same configuration: `haproxy -c`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fc_frontend.config.declare import declare, load
from fc_frontend.config.loader import Sources, read
from fc_frontend.pipeline import Base, Prepared, ProposalMemo, base_of, no_check, propose
from fc_frontend.plan.model import Answer, Endpoint, Freshness, Kind
from tests.bench.options import Options
from tests.conftest import binary_of

COUNTS = (100, 1000, 5000)
PODS = 5


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each number of services."""
    rounds = 3 if options.quick else 15
    counts = options.services_or(COUNTS, quick=COUNTS[:2])
    return [measure(options.versions[0], count, rounds) for count in counts]


def measure(version: str, count: int, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="fcb-") as name:
        directory = Path(name)
        one_file = median(rounds, lambda: load(one_yaml(directory / "one", count)))
        settings = many_files(directory / "many", count)
        reading = median(3, lambda: read(settings))
        # Files that were just written are read again in any case.
        time.sleep(2.1)
        sources = read(settings)
        again = median(rounds, lambda: read(settings, sources))
        specs = declare(sources).services
        answers = {spec.name: answer(number) for number, spec in enumerate(specs)}
        full = median(3, lambda: propose(sources, Base(), answers, {}, no_check))
        whole = propose(sources, Base(), answers, {}, no_check)
        judged = median(min(3, rounds), lambda: judge(version, directory, whole))
        changes = [change(settings, sources, answers, turn) for turn in range(rounds)]
        one = statistics.median(took for took, _ in changes)
        assert all(lines == 1 for _, lines in changes)
    return {
        "services": count,
        "one YAML ms": shown(one_file),
        "many files ms": shown(reading),
        "read again ms": shown(again),
        "plan and render all ms": shown(full),
        "one change ms": shown(one),
        "haproxy -c ms": shown(judged),
        "all / haproxy -c": round(full / judged, 2),
        "one / haproxy -c": round(one / judged, 3),
    }


def change(
    settings: str, sources: Sources, answers: dict[str, Answer], turn: int
) -> tuple[float, int]:
    """Return the seconds from a changed file to the text, and the number of changed lines."""
    memo = ProposalMemo()
    before = propose(sources, Base(), answers, {}, no_check, memo=memo)
    base = base_of(before, before.declaration.raw, is_running=True)
    name = f"s{turn * 7 % len(answers)}"
    path = Path(settings).parent / "services.d" / f"{name}.yaml"
    text = path.read_text()
    path.write_text(text.replace("8080", "8081"))
    began = time.perf_counter()
    now = read(settings, sources, frozenset([path.name]))
    after = propose(now, base, answers, answers, no_check, memo=memo)
    took = time.perf_counter() - began
    path.write_text(text)
    assert before.config is not None
    assert after.config is not None
    lines = zip(before.config.text.split("\n"), after.config.text.split("\n"), strict=True)
    # The hash differs as well.
    return took, sum(old != new for old, new in lines) - 1


def answer(number: int) -> Answer:
    endpoints = tuple(
        Endpoint(f"10.1.{(number * PODS + n) // 250 % 250}.{(number * PODS + n) % 250 + 1}", 8080)
        for n in range(PODS)
    )
    return Answer(kind=Kind.HEADLESS, reason="pods", endpoints=endpoints, freshness=Freshness.FRESH)


def judge(version: str, directory: Path, prepared: Prepared) -> None:
    assert prepared.config is not None
    path = directory / "haproxy.cfg"
    path.write_text(prepared.config.text)
    subprocess.run(
        [binary_of(version), "-c", "-f", str(path)], check=True, stdout=subprocess.DEVNULL
    )


def median(rounds: int, work: Callable[[], Any]) -> float:
    """Return the median time of `work`, in seconds."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def shown(seconds: float) -> float:
    """Return milliseconds."""
    return round(seconds * 1000, 1)


def settings_in(directory: Path) -> Path:
    (directory / "services.d").mkdir(parents=True, exist_ok=True)
    settings = directory / "config.json"
    settings.write_text(
        json.dumps(
            {
                "cluster": {"nameservers": ["127.0.0.1:53"]},
                "haproxy": {"runtime_socket": f"{directory}/admin.sock", "log": None},
                "state_directory": str(directory),
            }
        )
    )
    (directory / "server-state").write_text("1\n")
    return settings


def one_yaml(directory: Path, count: int) -> str:
    settings = settings_in(directory)
    path = directory / "services.d" / "all.yaml"
    if not path.exists():
        path.write_text("services:\n" + "".join(yaml(number) for number in range(count)))
    return str(settings)


def many_files(directory: Path, count: int) -> str:
    settings = settings_in(directory)
    for number in range(count):
        text = f"services:\n{yaml(number)}"
        (directory / "services.d" / f"s{number}.yaml").write_text(text)
    return str(settings)


def yaml(number: int) -> str:
    return (
        f"  s{number}:\n    pod_port: 8080\n    mode: http\n"
        f"    binds: [127.0.0.1:{10000 + number}]\n"
    )
