"""Metrics about the watch of the Kubernetes API, as of the last look at it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fc_frontend.model.api_state import ApiState


class ApiCollector(Collector):
    """Metrics of the watch; none if no API is set."""

    def __init__(self) -> None:
        self.state: ApiState | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the present state."""
        state = self.state
        if state is None:
            return
        for name, text, value in (
            ("synced", "1 once all Services and EndpointSlices were listed.", state.is_synced),
            ("watching", "1 while the watches of the API are open.", state.is_current),
        ):
            yield GaugeMetricFamily(f"fc_frontend_api_{name}", text, value=float(value))
        if state.age is not None:
            yield GaugeMetricFamily(
                "fc_frontend_api_age_seconds",
                "Time since the API server last sent anything.",
                value=state.age,
            )
        yield CounterMetricFamily(
            "fc_frontend_api_events", "Changes that the API server told of.", value=state.events
        )
        lists = CounterMetricFamily(
            "fc_frontend_api_lists",
            "Complete lists, by what made them necessary.",
            labels=["reason"],
        )
        for reason, count in state.lists.items():
            lists.add_metric([reason], count)
        yield lists
        failures = CounterMetricFamily(
            "fc_frontend_api_failures", "Failed requests and watches, by kind.", labels=["kind"]
        )
        for kind, count in state.failures.items():
            failures.add_metric([kind], count)
        yield failures
        yield GaugeMetricFamily(
            "fc_frontend_api_held_services",
            "Services whose last pods are kept, since most lost all of theirs at once.",
            value=len(state.held),
        )
        if state.expires is not None:
            yield GaugeMetricFamily(
                "fc_frontend_api_credentials_expiry_timestamp_seconds",
                "When the client certificate or token expires.",
                value=state.expires,
            )
