"""Metrics: the documented names, and labels that appear and disappear with the services."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from fc_frontend.model.service_state import Counts, HaproxyState
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import (
    Answer,
    Bind,
    Cluster,
    Endpoint,
    Freshness,
    Kind,
    Plan,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan


def planned(*names: str) -> Plan:
    specs = [
        ServiceSpec(name=name, service=name, binds=(Bind("ip", "127.0.0.1", 80),), port=80)
        for name in names
    ]
    return plan(Settings(cluster=Cluster()), specs, (), {})


def answer(pods: int, freshness: Freshness = Freshness.FRESH) -> Answer:
    endpoints = tuple(Endpoint(f"10.1.0.{n + 1}", 80) for n in range(pods))
    return Answer(kind=Kind.HEADLESS, reason="", endpoints=endpoints, freshness=freshness)


def samples(metrics: Metrics, now: float = 0.0) -> dict[tuple[str, ...], float]:
    text = metrics.exposition(now).decode()
    return {
        (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_services_come_and_go() -> None:
    metrics = Metrics()
    resolution = {"a": answer(3), "b": answer(12), "c": answer(0)}
    metrics.planned(planned("a", "b", "c"), resolution)
    metrics.resolved(resolution, 100.0)
    servers = {"a": Counts(up=3, free=7), "b": Counts(up=10), "c": Counts(free=10)}
    metrics.haproxy(HaproxyState.RUNNING, servers)
    found = samples(metrics, 107.5)
    labels = ("namespace=default", "service=b")
    assert found[("fc_frontend_service_endpoints", *labels)] == 12
    assert found[("fc_frontend_service_slots", *labels)] == 10
    assert found[("fc_frontend_service_slots_short", *labels)] == 2
    assert found[("fc_frontend_service_answer_age_seconds", *labels)] == 7.5
    assert found[("fc_frontend_service_state", *labels, "state=degraded")] == 1
    assert found[("fc_frontend_service_servers", *labels, "state=up")] == 10
    assert found[("fc_frontend_haproxy_up",)] == 1
    empty = ("namespace=default", "service=c", "state=empty")
    assert found[("fc_frontend_service_state", *empty)] == 1
    assert found[("fc_frontend_service_drained", *labels)] == 0
    metrics.drained({"b": 2})
    assert samples(metrics)[("fc_frontend_service_drained", *labels)] == 2
    metrics.planned(planned("a"), {"a": answer(3)})
    assert not any("service=b" in key for key in samples(metrics))
    assert any("service=a" in key for key in samples(metrics))


def test_reloads_checks_and_hashes() -> None:
    metrics = Metrics()
    metrics.reloaded("slots", "ok", 0.25)
    metrics.checked("refused")
    metrics.synced("aaaa", "bbbb")
    metrics.queries("10.0.0.254:53", "udp", "NOERROR", (0.001,))
    found = samples(metrics)
    assert found[("fc_frontend_reloads_total", "reason=slots", "result=ok")] == 1
    assert found[("fc_frontend_checks_total", "result=refused")] == 1
    assert found[("fc_frontend_config_in_sync",)] == 0
    assert found[("fc_frontend_config_hash_info", "hash=aaaa", "which=wanted")] == 1
    metrics.synced("bbbb", "bbbb")
    found = samples(metrics)
    assert found[("fc_frontend_config_in_sync",)] == 1
    assert ("fc_frontend_config_hash_info", "hash=aaaa", "which=wanted") not in found
    assert found[("fc_frontend_last_reload_success_timestamp_seconds",)] > 0


def test_what_stays_is_not_set_again_and_all_is_as_if_it_were() -> None:
    """The same objects produce the same samples; a change in any of them is visible."""
    one, two = planned("a", "b"), planned("a", "b", "c")
    few, many = {"a": answer(3), "b": answer(3)}, {"a": answer(3), "b": answer(12), "c": answer(0)}
    metrics = Metrics()
    for plan_now, resolution, held in (
        (one, few, ()),
        (one, few, (("service", "a"),)),
        (two, few, (("service", "a"),)),
        (two, many, ()),
        (two, {**many, "b": answer(12, Freshness.STALE)}, ()),
        (one, {}, ()),
        (one, few, ()),
    ):
        metrics.withheld(held)
        metrics.planned(plan_now, resolution)
        metrics.resolved(resolution, 100.0)
        anew = Metrics()
        anew.withheld(held)
        anew.planned(plan_now, resolution)
        assert services(metrics) == services(anew)
    metrics.drained({"b": 1})
    metrics.planned(one, few)
    drained = ("fc_frontend_service_drained", "namespace=default", "service=b")
    assert samples(metrics)[drained] == 1


def services(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return the samples of services, except the age of answers."""
    return {
        key: value
        for key, value in samples(metrics).items()
        if key[0].startswith("fc_frontend_service_") and "answer_age" not in key[0]
    }
