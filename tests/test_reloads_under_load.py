"""Reloads and scaling fail no request: the short form of the benchmarks `reloads` and `scaling`.

A bind that another process holds is covered by test_end_to_end.py.
"""

from __future__ import annotations

from fc_frontend.demo.pods import Pod
from fc_frontend.haproxy import runtime
from tests.bench.reloads import fail_dns
from tests.bench.scaling import publish, requests, until_all_are_asked
from tests.conftest import binary_of
from tests.support.contenders import HTTP, TCP, FcFrontend, PlainHaproxy, cluster
from tests.support.frontend import Frontend
from tests.support.load import Clients

SERVICES = 200
ENOUGH = 20
"""The number of failed requests that rules out chance."""


def test_reloads_cost_no_request_whatever_dns_does(either_binary: str) -> None:
    with cluster(either_binary, SERVICES) as frontend:
        frontend.scale("shop", 4)
        ours = FcFrontend(frontend, SERVICES)
        ours.start()
        before = ours.reloads()
        with Clients(frontend.host, http=HTTP, tcp=TCP, keep=20, new=20, long=10) as clients:
            number = 0
            for state, count in (("healthy", 4), ("2 s late", 3), ("down", 3)):
                fail_dns(frontend, state)
                for _ in range(count):
                    ours.reload(number)
                    number += 1
            assert ours.reloads() - before == 10
            loaded = clients.end()
        assert loaded.requests > 200
        assert not loaded.failed, (loaded.failures, frontend.log_text()[-3000:])


def answered_with_5xx(plain: PlainHaproxy) -> int:
    """Return the number of 5xx answers of the HTTP service since HAProxy's last reload."""
    rows = runtime.statistics(plain.haproxy.runtime_socket, "shop")
    return sum(int(row["hrsp_5xx"]) for row in rows if row["svname"] == "FRONTEND")


def test_the_same_clients_see_what_plain_haproxy_loses() -> None:
    with cluster(binary_of("2.6-debian")) as frontend:
        frontend.scale("shop", 4)
        plain = PlainHaproxy(frontend)
        plain.start()
        with Clients(frontend.host, http=HTTP, tcp=TCP, keep=20, new=20, long=10) as clients:
            fail_dns(frontend, "down")
            plain.reload(0)
            frontend.until(lambda: frontend.ask(HTTP).endswith("503"))
            # HAProxy counts no more of them than the clients.
            frontend.until(lambda: answered_with_5xx(plain) > 2 * ENOUGH)
            loaded = clients.end()
        assert loaded.failures["status 503 on a new connection"] > ENOUGH


def test_pods_that_come_and_go_cost_no_request(either_binary: str) -> None:
    with cluster(either_binary) as frontend:
        pods = frontend.scale("shop", 3)
        frontend.settings["services"]["shop"] = frontend.service("shop", HTTP)
        frontend.start()
        with Clients(frontend.host, http=HTTP, keep=25, new=25, pause=0.05) as clients:
            for count in (40, 5, 60):
                if count < len(pods.pods):
                    leave(frontend, pods.pods[count:], publish_of=pods.pods[:count])
                    frontend.call(pods.scale(count, grace=0.5))
                else:
                    frontend.call(pods.scale(count))
                    changed = publish(frontend, pods.pods)
                    assert until_all_are_asked(pods, changed) is not None
                before = requests(pods.pods)
                # A small number of requests would be uneven by chance.
                enough = sum(before) + max(1000, 25 * count)
                frontend.until(lambda: sum(requests(pods.pods)) >= enough)  # noqa: B023
                got = [now - then for now, then in zip(requests(pods.pods), before, strict=True)]
                assert min(got) * count / sum(got) >= 0.8, got
                assert max(got) * count / sum(got) <= 1.2, got
            loaded = clients.end()
        assert not loaded.failed, (loaded.failures, frontend.log_text()[-3000:])


def leave(frontend: Frontend, leaving: tuple[Pod, ...], *, publish_of: tuple[Pod, ...]) -> None:
    """Remove pods from DNS, and wait until HAProxy no longer has them."""
    publish(frontend, publish_of)
    addresses = {pod.address[0] for pod in leaving}
    socket = frontend.settings["haproxy"]["runtime_socket"]
    frontend.until(
        lambda: not addresses & {str(server.address) for server in runtime.servers(socket)}
    )
