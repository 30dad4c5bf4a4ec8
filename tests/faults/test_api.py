"""Faults of the Kubernetes API: each is reported, none loses a request or empties a service.

The log line, the metric, `status` and the service's own entry are checked during a fault.
HAProxy is not involved, so one version is enough.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.demo.load import Load
from tests.conftest import binary_of
from tests.support.api_cluster import NOT_READY, TOKEN, ApiFrontend, token_until
from tests.support.api_objects import ApiError
from tests.support.api_server import Fault
from tests.support.certificates import Certificates
from tests.support.frontend import wrong_clock

pytestmark = pytest.mark.extended

PORT = 8080
LONG = 90.0
"""Seconds within which a failure is noticed, and a watch is reopened after it."""


@pytest.fixture
def frontend(certificates: Certificates) -> Iterator[ApiFrontend]:
    with ApiFrontend(binary_of("2.8-wheel"), certificates) as found:
        pods = found.scale("shop", 3, publish=False)
        found.kube_service("shop", cluster_ip=found.cluster_ip("shop")[0])
        found.ready_endpoints("shop", pods.addresses)
        found.settings["services"]["shop"] = found.service("shop", PORT)
        yield found


def start(frontend: ApiFrontend) -> None:
    frontend.start()
    frontend.until(lambda: frontend.serves(PORT, frontend.pods["shop"]))
    frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 1)


def failures(frontend: ApiFrontend, kind: str) -> float:
    return frontend.metric("fc_frontend_api_failures_total", kind=kind)


def status(frontend: ApiFrontend) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(frontend.run("status", "--json", check=False).stdout)
    return document


def assert_reported(frontend: ApiFrontend, words: str) -> None:
    """Assert that log, metrics, `status` and the service's own entry report the fault."""
    frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 0, LONG)
    frontend.until(lambda: any(words in line for line in frontend.events("api-not-watched")), LONG)
    frontend.until(lambda: words in (frontend.status()["api"]["failure"] or ""), LONG)
    document = status(frontend)
    assert document["status"] == "warning"
    (finding,) = [f for f in document["findings"] if f["subject"] == "Kubernetes API"]
    assert "cannot be watched" in finding["message"]
    (shop,) = frontend.status()["services"]
    assert (shop["freshness"], shop["is_current"]) == ("stale", False)
    assert len(shop["endpoints"]) == 3
    assert frontend.metric("fc_frontend_api_age_seconds") > 0


def assert_followed_again(frontend: ApiFrontend) -> None:
    """Assert that the watch is open again, with a log line, and that changes are followed."""
    frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 1, LONG)
    frontend.until(lambda: frontend.events("api-watched"))
    frontend.until(lambda: frontend.status()["api"]["failure"] is None)
    pods = frontend.scale("shop", 4, publish=False)
    frontend.ready_endpoints("shop", pods.addresses)
    frontend.until(lambda: frontend.serves(PORT, pods))


FAULTS = {
    "connections end": (Fault.KILL, "closed", "connection ended"),
    "nothing is answered": (Fault.MUTE, "timeout", "in time"),
    "garbage": (Fault.GARBAGE, "protocol", "HTTP"),
    "bad events": (Fault.BAD_EVENT, "protocol", "an event is not"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_answers_nothing_sensible(frontend: ApiFrontend, name: str) -> None:
    fault, kind, words = FAULTS[name]
    start(frontend)
    slots = frontend.slots("shop")
    with Load(frontend.host, PORT, clients=2) as load:
        before = failures(frontend, kind)
        frontend.api.fault = fault
        frontend.call(frontend.break_connections())
        frontend.until(lambda: failures(frontend, kind) > before, LONG)
        assert_reported(frontend, words)
        assert frontend.slots("shop") == slots
        frontend.api.fault = None
        assert_followed_again(frontend)
    assert not load.tally().failures, frontend.log_text()[-4000:]


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (410, "Expired", "expired"),
        (429, "TooManyRequests", "throttled"),
        (500, "InternalError", "server"),
        (503, "ServiceUnavailable", "server"),
        (504, "Timeout", "server"),
    ],
)
def test_refusals_that_pass(frontend: ApiFrontend, code: int, reason: str, kind: str) -> None:
    """They are counted and retried, but not reported one by one."""
    start(frontend)
    with Load(frontend.host, PORT, clients=2) as load:
        before = failures(frontend, kind)
        retry_after = {"retry_after": 2} if code == 429 else {}
        frontend.api.errors += [ApiError(code, reason, "not now", **retry_after)] * 2
        frontend.call(frontend.break_connections())
        frontend.until(lambda: failures(frontend, kind) > before, LONG)
        frontend.until(lambda: not frontend.api.errors, LONG)
        frontend.until(lambda: frontend.status()["api"]["failure"] is None, LONG)
        pods = frontend.scale("shop", 4, publish=False)
        frontend.ready_endpoints("shop", pods.addresses)
        frontend.until(lambda: frontend.serves(PORT, pods))
    assert not load.tally().failures, frontend.log_text()[-4000:]


def test_a_version_that_has_expired_is_listed_again(frontend: ApiFrontend) -> None:
    """410 as an event of a watch: changes that were compacted meanwhile are not missed."""
    start(frontend)

    async def compact() -> None:
        frontend.api.kill()
        for number in range(20):
            metadata = {"name": f"other{number}", "namespace": "default"}
            frontend.api.objects.create("services", {"metadata": metadata, "spec": {}})
        frontend.api.objects.forget()

    with Load(frontend.host, PORT, clients=2) as load:
        lists = frontend.metric("fc_frontend_api_lists_total", reason="expired")
        frontend.call(compact())
        frontend.until(
            lambda: frontend.metric("fc_frontend_api_lists_total", reason="expired") > lists, LONG
        )
        assert_followed_again_quietly(frontend)
    assert not load.tally().failures, frontend.log_text()[-4000:]


def assert_followed_again_quietly(frontend: ApiFrontend) -> None:
    """Do as `assert_followed_again`, for a fault that ends before it has to be reported."""
    pods = frontend.scale("shop", 4, publish=False)
    frontend.ready_endpoints("shop", pods.addresses)
    frontend.until(lambda: frontend.serves(PORT, pods))
    assert not frontend.events("api-not-watched")


@pytest.mark.parametrize(
    ("credentials", "kind", "words"),
    [("token", "unauthorized", "401"), ("right", "forbidden", "cannot")],
)
def test_credentials_that_are_refused(
    frontend: ApiFrontend, credentials: str, kind: str, words: str
) -> None:
    start(frontend)
    with Load(frontend.host, PORT, clients=2) as load:
        before = failures(frontend, kind)
        if credentials == "token":
            frontend.api.token = "another"
        else:
            frontend.api.denied = {("list", "endpointslices"), ("watch", "endpointslices")}
        frontend.call(frontend.break_connections())
        frontend.until(lambda: failures(frontend, kind) > before, LONG)
        assert_reported(frontend, words)
        frontend.api.token, frontend.api.denied = TOKEN, set()
        assert_followed_again(frontend)
    assert not load.tally().failures, frontend.log_text()[-4000:]


def test_a_server_that_is_stopped_and_started(frontend: ApiFrontend) -> None:
    start(frontend)
    with Load(frontend.host, PORT, clients=2) as load:
        frontend.stop_api()
        assert_reported(frontend, "refused")
        frontend.start_api()
        assert_followed_again(frontend)
    assert not load.tally().failures, frontend.log_text()[-4000:]


@pytest.mark.parametrize(("certificate", "words"), [("expired", "expired"), ("other", "self")])
def test_a_servers_certificate_that_is_not_good(
    frontend: ApiFrontend, certificates: Certificates, certificate: str, words: str
) -> None:
    start(frontend)
    with Load(frontend.host, PORT, clients=2) as load:
        before = failures(frontend, "tls")
        frontend.stop_api()
        frontend.start_api(certificate)
        frontend.until(lambda: failures(frontend, "tls") > before, LONG)
        assert_reported(frontend, words)
        assert "certificate" in frontend.run("doctor", check=False).stdout
        frontend.stop_api()
        frontend.start_api()
        assert_followed_again(frontend)
    assert not load.tally().failures, frontend.log_text()[-4000:]


@pytest.mark.parametrize("ahead", [-40 * 86400.0, 40 * 86400.0])
def test_a_clock_of_another_month(frontend: ApiFrontend, ahead: float) -> None:
    """Changes are followed; whether credentials have expired is judged by this clock."""
    frontend.environ |= wrong_clock(ahead)
    frontend.write_kubeconfig(token_until(int(time.time()) + 20 * 86400))
    start(frontend)
    with Load(frontend.host, PORT, clients=2) as load:
        frontend.call(frontend.break_connections())
        assert_followed_again_quietly(frontend)
        findings = [f["message"] for f in status(frontend)["findings"]]
        has_expired = any("has expired" in message for message in findings)
        assert has_expired is (ahead > 0), findings
        said = frontend.run("doctor", check=False).stdout
        order = "ahead of" if ahead > 0 else "behind"
        assert f"s {order} it" in said, said
    assert not load.tally().failures, frontend.log_text()[-4000:]


def test_a_connection_that_is_half_open_for_minutes(frontend: ApiFrontend) -> None:
    """No packets arrive any more, and the connection does not end: bookmarks are missing."""
    frontend.api.bookmark_seconds = 10.0
    start(frontend)
    with Load(frontend.host, PORT, clients=2, interval=0.05) as load:
        frontend.api.bookmark_seconds = 3600.0
        before = failures(frontend, "silent")
        frontend.until(lambda: failures(frontend, "silent") > before, 240)
        frontend.api.bookmark_seconds = 10.0
        assert_followed_again_quietly(frontend)
    assert not load.tally().failures, frontend.log_text()[-4000:]


def test_an_api_that_returns_without_any_ready_pod(frontend: ApiFrontend) -> None:
    """The nodes cannot reach the API server: it comes back with all pods NotReady."""
    names = ["shop", "more", "most"]
    for number, name in enumerate(names[1:], 1):
        pods = frontend.scale(name, 2, publish=False)
        frontend.kube_service(name, cluster_ip=frontend.cluster_ip(name)[0])
        frontend.ready_endpoints(name, pods.addresses)
        frontend.settings["services"][name] = frontend.service(name, PORT + number)
    start(frontend)
    slots = frontend.slots("shop")
    with Load(frontend.host, PORT, clients=2) as load:
        frontend.stop_api()
        frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 0, LONG)
        for name in names:
            frontend.endpoints(name, dict.fromkeys(frontend.pods[name].addresses, NOT_READY))
        frontend.start_api()
        frontend.until(lambda: frontend.metric("fc_frontend_api_held_services") == 3, LONG)
        frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 1, LONG)
        assert frontend.slots("shop") == slots
        assert "pods-assigned" not in frontend.log_text().partition("api-not-watched")[2]
        # The API fails during the hold, and all is well later.
        frontend.stop_api()
        frontend.until(lambda: frontend.metric("fc_frontend_api_watching") == 0, LONG)
        assert frontend.slots("shop") == slots
        frontend.start_api()
        for name in names:
            frontend.ready_endpoints(name, frontend.pods[name].addresses)
        frontend.until(lambda: frontend.metric("fc_frontend_api_held_services") == 0, LONG)
    assert not load.tally().failures, frontend.log_text()[-4000:]
