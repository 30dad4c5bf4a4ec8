"""The server state file: its content, and its effect on HAProxy."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.haproxy.server_state import EMPTY, server_state
from fc_frontend.plan.model import (
    Answer,
    Bind,
    Cluster,
    Endpoint,
    Freshness,
    Kind,
    Plan,
    Resolution,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan
from tests.conftest import until

SHOP = ServiceSpec(name="shop", service="shop", binds=(Bind("ip", "127.0.0.1", 80),), port=8080)


def answer(*addresses: str, freshness: Freshness = Freshness.FRESH) -> Answer:
    return Answer(
        kind=Kind.HEADLESS,
        reason="",
        endpoints=tuple(Endpoint(address, 8080) for address in addresses),
        freshness=freshness,
    )


def running(server: str, address: str | None, operational: int = 2, admin: int = 0) -> ServerState:
    return ServerState(
        proxy="shop",
        server=server,
        address=address,
        port=8080,
        operational=operational,
        admin=admin,
        weight=1,
        initial_weight=1,
        changed_ago=1,
        check_status=6,
        check_result=3,
        check_health=3,
        check_state=6,
        agent_state=0,
        fqdn=None,
        srv_record=None,
    )


def planned(resolution: Resolution, spec: ServiceSpec = SHOP) -> Plan:
    return plan(Settings(cluster=Cluster()), [spec], (), resolution)


def placed(text: str) -> dict[str, str]:
    return {line.split()[3]: line.split()[4] for line in text.splitlines()[1:]}


def test_pods_that_nobody_runs_yet_get_the_first_slots() -> None:
    resolution = {"shop": answer("10.1.0.1", "10.1.0.2")}
    text = server_state(planned(resolution), resolution, [])
    assert placed(text) == {"pod1": "10.1.0.1", "pod2": "10.1.0.2"}
    assert all(len(line.split()) == 20 for line in text.splitlines()[1:])


def test_servers_keep_their_slot_state_and_weight_and_leave_no_gap() -> None:
    resolution = {"shop": answer("10.1.0.1", "10.1.0.3", "10.1.0.4")}
    known = [
        running("pod1", "10.1.0.1", admin=8),
        running("pod2", "10.1.0.2"),
        running("pod5", "10.1.0.3", operational=0),
        replace(running("pod3", "10.1.0.4"), weight=7),
        running("pod4", None, admin=32),
    ]
    text = server_state(planned(resolution), resolution, known)
    assert placed(text) == {"pod1": "10.1.0.1", "pod2": "10.1.0.3", "pod3": "10.1.0.4"}
    fields = {line.split()[3]: line.split() for line in text.splitlines()[1:]}
    assert (fields["pod1"][5], fields["pod1"][6]) == ("2", "8")
    assert fields["pod2"][5] == "0"
    assert fields["pod3"][7] == "7"


def test_an_answer_that_may_be_old_removes_no_server() -> None:
    resolution = {"shop": answer("10.1.0.1", freshness=Freshness.STALE)}
    known = [running("pod1", "10.1.0.1"), running("pod2", "10.1.0.2")]
    text = server_state(planned(resolution), resolution, known)
    assert placed(text) == {"pod1": "10.1.0.1", "pod2": "10.1.0.2"}


def test_a_changed_port_is_written() -> None:
    resolution = {"shop": replace(answer("10.1.0.1"), endpoints=(Endpoint("10.1.0.1", 9090),))}
    spec = replace(SHOP, port=9090)
    down = running("pod1", "10.1.0.1", operational=0)
    fields = server_state(planned(resolution, spec), resolution, [down]).splitlines()[1].split()
    assert fields[18] == "9090"
    # That the other port was down is no evidence for this one.
    assert fields[5] == "2"


@given(
    st.lists(st.integers(1, 30), unique=True),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), max_size=40),
    st.integers(1, 40),
    st.sampled_from(Freshness),
)
def test_every_known_pod_has_one_slot_without_gaps(
    pods: list[int], servers: list[tuple[int, int]], slots: int, freshness: Freshness
) -> None:
    resolution = {"shop": answer(*(f"10.1.0.{n}" for n in pods), freshness=freshness)}
    known = [running(f"pod{slot}", f"10.1.0.{n}") for slot, n in dict(servers).items()]
    text = server_state(planned(resolution, replace(SHOP, slots=slots)), resolution, known)
    result = placed(text)
    assert len(set(result.values())) == len(result)
    assert set(result) == {f"pod{n}" for n in range(1, len(result) + 1)}
    expected = {f"10.1.0.{n}" for n in pods}
    if freshness is not Freshness.FRESH:
        expected |= {server.address for server in known if server.address}
    assert len(result) == min(len(expected), slots)
    assert set(result.values()) <= expected


@pytest.mark.parametrize(
    "text",
    [
        EMPTY,
        "1\n0 shop 0 pod1 10.1.0.1 2\n",
        "1\n0 other 0 pod1 10.1.0.1 2 0 1 1 0 6 3 3 6 0 0 0 - 8080 -\n",
        "1\n0 shop 0 pod99 10.1.0.1 2 0 1 1 0 6 3 3 6 0 0 0 - 8080 -\n",
        "2\nwhatever\n",
        "\x00\xff garbage",
        "1\n0 shop 0 pod1 not-an-address 2 0 1 1 0 6 3 3 6 0 0 0 - 8080 -\n",
    ],
)
def test_a_stale_truncated_or_foreign_file_does_no_harm(
    haproxy_binary: str, short_directory: Path, text: str
) -> None:
    from fc_frontend.config.declare import load
    from tests.support.prepared import prepare

    state = short_directory
    config = short_directory / "config.yaml"
    config.write_text(
        f"cluster: {{nameservers: ['udp://127.0.0.1:1']}}\n"
        f"haproxy: {{runtime_socket: {state}/admin.sock, stats: null, log: null}}\n"
        f"state_directory: {state}\n"
        f"services: {{shop: {{pod_port: 80, binds: 'unix@{state}/shop.sock'}}}}\n"
    )
    prepared = prepare(load(str(config)), {})
    assert prepared.config is not None
    (state / "haproxy.cfg").write_text(prepared.config.text)
    (state / "server-state").write_bytes(text.encode("latin-1"))
    process = subprocess.Popen([haproxy_binary, "-db", "-f", str(state / "haproxy.cfg")])
    try:

        def answered() -> tuple[ServerState, ...]:
            assert process.poll() is None
            with contextlib.suppress(Unavailable):
                return runtime.servers(f"{state}/admin.sock")
            return ()

        servers = until(answered)
        assert len(servers) == 10
        assert not any(server.address for server in servers)
    finally:
        process.kill()
        process.wait()
