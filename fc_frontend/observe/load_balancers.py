"""Metrics about Services of type LoadBalancer, as of the last look at them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fc_frontend.model.load_balancer_state import LoadBalancerState

_PREFIX = "fc_frontend_load_balancer"


class LoadBalancerCollector(Collector):
    """Metrics of Services; none if the settings have no load balancer."""

    def __init__(self) -> None:
        self.state: LoadBalancerState | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the present state."""
        state = self.state
        if state is None:
            return
        for name, label, text, values in (
            ("services", "reason", "Services, by what their condition says.", state.services),
            ("pool_addresses", "pool", "Addresses of a pool.", state.pool_sizes),
            ("pool_addresses_used", "pool", "Addresses that Services have.", state.pool_used),
        ):
            gauge = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=[label])
            for value, count in values.items():
                gauge.add_metric([value], count)
            yield gauge
        yield GaugeMetricFamily(
            f"{_PREFIX}_leader", "1 if this frontend writes statuses.", value=float(state.is_leader)
        )
        for name, text, total in (
            ("writes", "Statuses of Services that were written.", state.writes),
            ("overwritten", "Statuses that others had overwritten.", state.overwritten),
            ("failures", "Failed attempts to write statuses.", state.failures),
        ):
            yield CounterMetricFamily(f"{_PREFIX}_status_{name}", text, value=total)
