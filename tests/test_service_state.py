"""The state of a service: computed by one function, and the same in every output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.demo.dns import Fault, KubernetesService
from fc_frontend.model.service_state import (
    Counts,
    HaproxyState,
    ServiceState,
    ServiceView,
    service_state,
)
from tests.support.frontend import Frontend

RUNNING = HaproxyState.RUNNING
WELL = Counts(up=3, free=7)


def view(**fields: Any) -> ServiceView:
    """Return a healthy service with `fields` changed."""
    return ServiceView(**{"haproxy": RUNNING, "counts": WELL, "endpoints": 3, **fields})


CASES = {
    "well": (view(), ServiceState.OK),
    "withheld": (view(is_withheld=True), ServiceState.WITHHELD),
    "no answer of DNS": (view(is_current=False), ServiceState.STALE),
    "stale before withheld": (view(is_current=False, is_withheld=True), ServiceState.STALE),
    "some down": (view(counts=Counts(up=2, down=1)), ServiceState.DEGRADED),
    "pods beyond the slots": (view(without_slot=1), ServiceState.DEGRADED),
    "addresses rejected": (view(rejected=1), ServiceState.DEGRADED),
    "degraded before stale": (
        view(counts=Counts(up=2, down=1), is_current=False),
        ServiceState.DEGRADED,
    ),
    "only the cluster IP": (view(counts=Counts(down=3, standby=1)), ServiceState.DEGRADED),
    "no endpoints": (view(counts=Counts(free=10), endpoints=0), ServiceState.EMPTY),
    "endpoints gone, servers not yet": (view(endpoints=0), ServiceState.EMPTY),
    "all down": (view(counts=Counts(down=3)), ServiceState.DOWN),
    "all drained": (view(counts=Counts(drained=3)), ServiceState.DOWN),
    "down before withheld": (view(counts=Counts(down=3), is_withheld=True), ServiceState.DOWN),
    "no server has an address yet": (view(counts=Counts(free=10)), ServiceState.DOWN),
    "not in HAProxy": (view(counts=None), ServiceState.DOWN),
    "new and withheld": (view(counts=None, is_withheld=True), ServiceState.WITHHELD),
    "never an answer": (view(counts=Counts(free=10), endpoints=None), ServiceState.UNKNOWN),
    "HAProxy resolves what we cannot": (view(endpoints=None, is_current=False), ServiceState.STALE),
    "HAProxy stopped": (view(haproxy=HaproxyState.STOPPED, counts=None), ServiceState.DOWN),
    "HAProxy hidden": (view(haproxy=HaproxyState.UNKNOWN, counts=None), ServiceState.UNKNOWN),
}


@pytest.mark.parametrize(("seen", "state"), CASES.values(), ids=CASES)
def test_the_first_state_that_applies_counts(seen: ServiceView, state: ServiceState) -> None:
    assert service_state(seen) is state


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """Run a service with three pods, which are held for a second after DNS drops them."""
    with Frontend(either_binary) as made:
        made.scale("shop", 3)
        made.settings["services"]["shop"] = made.service("shop", 8080)
        made.settings["intervals"].update(hold="1s")
        made.start()
        made.until(lambda: made.serves(8080, made.pods["shop"]))
        yield made


def shown(frontend: Frontend) -> dict[str, str]:
    """Return the state of `shop` in every output, by output."""
    document = json.loads(frontend.run("status", "--json", check=False).stdout)
    table = frontend.run("status", check=False).stdout.splitlines()
    wide = frontend.run("status", "-o", "wide", check=False).stdout.splitlines()
    explained = json.loads(frontend.run("explain", "shop", "--json", check=False).stdout)
    text = frontend.run("explain", "shop", check=False).stdout
    metric = [
        state.value
        for state in ServiceState
        if frontend.metric("fc_frontend_service_state", service="shop", state=state.value)
    ]
    page = frontend.get("/")[1].decode()
    nagios = frontend.run("status", "-o", "nagios", check=False).stdout
    row = page[page.index('href="/services/shop"') :]
    return {
        "status": next(each["state"] for each in document["services"] if each["name"] == "shop"),
        "table": next(line.split()[1] for line in table if line.startswith("shop ")),
        "wide": next(line.split()[2] for line in wide if line.startswith("shop ")),
        "nagios": " ".join(s for s in ServiceState if f" services_{s}=1" in nagios),
        "explain": explained["state"],
        "explain text": text.strip()
        .splitlines()[-2 if "→" in text.splitlines()[-1] else -1]
        .partition(":")[0],
        "metric": " ".join(metric),
        "status.json": frontend.status()["services"][0]["state"],
        "page": row[: row.index("</td>")].rpartition("</span>")[0].rpartition(" ")[2],
    }


def agree(frontend: Frontend, state: str) -> None:
    """Wait until every output shows `state`."""

    def all_do() -> bool:
        return set(shown(frontend).values()) == {state}

    try:
        frontend.until(all_do)
    except AssertionError:
        raise AssertionError(shown(frontend)) from None


def publish(frontend: Frontend, endpoints: tuple[str, ...]) -> None:
    async def set_service() -> None:
        frontend.dns.set_service(
            KubernetesService("shop", ports={"http": 8080}, endpoints=endpoints)
        )

    frontend.call(set_service())


@pytest.mark.extended
def test_all_outputs_show_the_same_state(frontend: Frontend) -> None:
    addresses = tuple(frontend.pods["shop"].addresses)
    agree(frontend, "ok")
    frontend.drop("shop.yaml", "")
    frontend.settings["services"]["shop"]["pod_prt"] = 1
    frontend.write()
    agree(frontend, "withheld")
    frontend.dns.fault = Fault.SERVFAIL
    agree(frontend, "stale")
    frontend.dns.fault = Fault.NONE
    del frontend.settings["services"]["shop"]["pod_prt"]
    frontend.write()
    agree(frontend, "ok")
    publish(frontend, (*addresses, "192.0.2.1"))
    agree(frontend, "degraded")
    publish(frontend, ())
    agree(frontend, "empty")
    publish(frontend, addresses)
    agree(frontend, "ok")
    frontend.call(frontend.pods["shop"].stop())
    agree(frontend, "down")
