"""Sources and discovery are interfaces: neither files nor DNS are needed to plan and to sweep."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

from fc_frontend.daemon.reconciler import Reconciler
from fc_frontend.daemon.state import Trigger
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.observe.log import configure
from fc_frontend.observe.metrics import Metrics
from fc_frontend.pipeline import Base, no_check, propose
from tests.support.in_memory import KnownPods, sources

CLUSTER = {"nameservers": ["127.0.0.1:1"], "pod_network": "10.1.0.0/16"}
SHOP = {"pod_port": 8080, "binds": ["127.0.0.1:10080"]}


def pods(count: int) -> list[str]:
    return [f"10.1.0.{number + 1}" for number in range(count)]


def test_services_in_memory_are_planned_and_rendered() -> None:
    declared = sources({"cluster": CLUSTER}, {"shop": SHOP, "bad": {"pod_prot": 1}})
    specs = propose(declared, Base(), {}, {}, no_check).declaration.services
    answers = KnownPods(shop=pods(3)).answers(specs, {})
    found = propose(declared, Base(), answers, {}, no_check)
    (planned,) = found.plan.services
    assert len(planned.endpoints) == 3
    assert found.config is not None
    assert "\nlisten shop" in found.config.text
    assert [str(each.unit) for each in found.withheld] == ["service bad"]


def test_the_reconciler_goes_by_another_discovery_than_dns(
    tmp_path: Path, either_binary: str
) -> None:
    settings = {
        "cluster": CLUSTER,
        "haproxy": {
            "binary": either_binary,
            "config_file": str(tmp_path / "haproxy.cfg"),
            "master_socket": str(tmp_path / "master.sock"),
            "runtime_socket": str(tmp_path / "admin.sock"),
            "log": None,
        },
        "state_directory": str(tmp_path / "state"),
        "listen": None,
        "services": {"shop": SHOP},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    known = KnownPods(shop=pods(2))
    discovery: PodDiscovery = known

    async def scenario() -> None:
        reconciler = Reconciler(str(path), configure(io.StringIO()), Metrics(), discovery=discovery)
        await reconciler.step(frozenset((Trigger.START,)), 0.0)
        assert known.asked == ["shop"]
        assert len(reconciler.state.resolution["shop"].endpoints) == 2
        assert not await reconciler.answers.sweep(), "nothing changed"
        known.pods["shop"] = pods(40)
        assert await reconciler.answers.sweep(), "more pods than slots change the plan"
        assert len(reconciler.state.resolution["shop"].endpoints) == 40
        reconciler.close()

    asyncio.run(scenario())
