"""Draining: the commands for the servers, and that drains survive any DNS change and reload."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.demo.load import ask
from fc_frontend.errors import Refused, Unavailable
from fc_frontend.haproxy import drain, drain_record, runtime
from fc_frontend.haproxy.drain import NOTHING, Drained, commands, marked, pod_address, without_gone
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.haproxy.server_state import server_state
from fc_frontend.plan.model import Endpoint, Freshness, Haproxy, Settings
from tests.support.frontend import Frontend
from tests.test_server_state import answer, planned, running

A, B, C = "10.1.0.1", "10.1.0.2", "10.1.0.3"


def pods(*addresses: str, slots: tuple[str, ...] = ()) -> Drained:
    return Drained(
        pods=frozenset(("shop", address) for address in addresses),
        slots=frozenset(("shop", slot) for slot in slots),
    )


WHOLE = Drained(services=frozenset({"shop"}))


# Commands for the worker


def test_the_slot_that_holds_a_drained_pod_is_drained_and_no_other() -> None:
    servers = [running("pod1", A), running("pod2", B), running("pod3", None, 0, 32)]
    assert commands(pods(B), servers) == ["set server shop/pod2 state drain"]
    assert commands(pods(B), [running("pod1", A), running("pod2", B, admin=8)]) == []


def test_a_slot_that_we_drained_is_freed_for_the_pod_that_has_it_now() -> None:
    servers = [running("pod1", B), running("pod2", C, admin=8), running("pod3", None, 0, 40)]
    assert commands(pods(B, slots=("pod2", "pod3")), servers) == [
        "set server shop/pod2 state ready",
        "set server shop/pod3 state ready",
        "set server shop/pod1 state drain",
    ]


def test_what_somebody_else_drained_or_keeps_in_maintenance_is_left_alone() -> None:
    servers = [running("pod1", A, admin=8), running("pod2", B, admin=1)]
    assert commands(pods(B, slots=("pod2",)), servers) == []
    assert commands(NOTHING, servers) == []


def test_a_whole_service_is_drained_with_its_empty_slots() -> None:
    servers = [running("pod1", A), running("pod2", None, 0, 32)]
    assert commands(WHOLE, servers) == [
        "set server shop/pod1 state drain",
        "set server shop/pod2 state drain",
    ]


def test_other_services_pods_with_the_same_address_serve_on() -> None:
    other = Drained(pods=frozenset({("other", A)}), services=frozenset({"third"}))
    assert commands(other, [running("pod1", A)]) == []


def test_ipv6_addresses_are_the_same_in_every_spelling() -> None:
    wanted = pods("fd00::1:2")
    assert commands(wanted, [running("pod1", "fd00:0:0::1:2")])
    mapped = pods(drain.canonical("::ffff:10.1.2.3"))
    assert commands(mapped, [running("pod1", "::ffff:10.1.2.3")])


_states = st.sampled_from([0, 1, 8, 32, 40])
_servers = st.lists(
    st.tuples(st.sampled_from([None, A, B, C]), _states), min_size=1, max_size=6
).map(
    lambda rows: [
        running(f"pod{number}", address, admin=state)
        for number, (address, state) in enumerate(rows, 1)
    ]
)
_wanted = st.builds(
    Drained,
    pods=st.frozensets(st.tuples(st.just("shop"), st.sampled_from([A, B, C]))),
    services=st.frozensets(st.just("shop")),
    slots=st.frozensets(st.tuples(st.just("shop"), st.sampled_from(["pod1", "pod2", "pod9"]))),
)


def obeyed(servers: list[ServerState], told: list[str]) -> list[ServerState]:
    """Return the servers as HAProxy has them after the commands."""
    words = {command.split()[2]: command.split()[4] for command in told}
    after = []
    for server in servers:
        word = words.get(f"shop/{server.server}")
        admin = (server.admin or 0) & ~9 | (8 if word == "drain" else 0)
        after.append(replace(server, admin=admin) if word else server)
    return after


@given(_wanted, _servers)
def test_one_round_is_enough_and_touches_nothing_that_is_not_ours(
    wanted: Drained, servers: list[ServerState]
) -> None:
    after = obeyed(servers, commands(wanted, servers))
    settled = marked(wanted, after)
    assert commands(settled, after) == []
    for before, now in zip(servers, after, strict=True):
        is_ours = ("shop", now.server) in wanted.slots
        if wanted.covers("shop", now.address):
            assert (now.admin or 0) & 9
        elif not is_ours:
            assert now == before
        elif before.admin != 1:
            assert not (now.admin or 0) & 8
    drained = {("shop", server.server) for server in after if (server.admin or 0) & 8}
    assert settled.slots <= drained


# Forgotten drains


def test_a_pod_is_forgotten_only_when_dns_and_haproxy_have_both_let_it_go() -> None:
    wanted = pods(A)
    gone = {"shop": answer(B)}
    stale = {"shop": answer(B, freshness=Freshness.STALE)}
    declared = ["shop"]
    assert without_gone(wanted, gone, declared, [running("pod1", A)]) == wanted
    assert without_gone(wanted, stale, declared, []) == wanted
    assert without_gone(wanted, {}, declared, []) == wanted
    assert without_gone(wanted, {"shop": answer(A, B)}, declared, []) == wanted
    assert without_gone(wanted, gone, declared, [running("pod1", B)]) == NOTHING


def test_a_service_is_forgotten_when_it_is_neither_declared_nor_served() -> None:
    assert without_gone(WHOLE, {}, [], [running("pod1", None)]) == WHOLE
    assert without_gone(WHOLE, {}, ["shop"], []) == WHOLE
    assert without_gone(WHOLE, {}, ["other"], []) == NOTHING


# Drained servers and pods


NAMED = (Endpoint(A, 8080, "web-0.shop.default.svc.cluster.local"), Endpoint(B, 8080, "web-1.x"))


@pytest.mark.parametrize("pod", [B, "pod2", "web-1", "web-1.x"])
def test_a_pod_goes_by_address_slot_and_name(pod: str) -> None:
    servers = [running("pod1", A), running("pod2", B), running("pod3", None)]
    assert pod_address("shop", pod, servers, NAMED) == B


def test_a_pod_without_a_slot_is_known_by_dns_or_by_the_record() -> None:
    assert pod_address("shop", B, [], NAMED) == B
    assert pod_address("shop", C, [], (), pods(C)) == C
    assert pod_address("shop", "[fd00:0::1]", [running("pod1", "fd00::1")], ()) == "fd00::1"


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        ("pod9", "shop has no pod 'pod9'"),
        ("10.9.9.9", "shop has no pod '10.9.9.9'"),
        ("pod3", "the slot pod3 of shop has no pod"),
        ("pod1;disable server shop/pod2", "shop has no pod"),
        ("pod1\n", "shop has no pod"),
        ("", "shop has no pod ''"),
    ],
)
def test_who_is_not_there_is_refused_with_who_is(pod: str, said: str) -> None:
    servers = [running("pod1", A), running("pod2", B), running("pod3", None)]
    with pytest.raises(Refused) as caught:
        pod_address("shop", pod, servers, NAMED)
    (problem,) = caught.value.problems
    assert said in problem.message
    assert "\n" not in problem.message
    assert problem.remedy == f"its pods are: pod1 {A}, pod2 {B}"


def test_a_name_that_means_two_pods_is_refused() -> None:
    named = (Endpoint(B, 8080, "pod1.shop"),)
    with pytest.raises(Refused, match="means more than one pod"):
        pod_address("shop", "pod1", [running("pod1", A), running("pod2", B)], named)


# The record on disk


def settings(directory: Path) -> Settings:
    return Settings(
        haproxy=Haproxy(runtime_socket=str(directory / "no.sock")), state_directory=str(directory)
    )


@given(_wanted)
def test_a_record_is_read_as_it_was_written(wanted: Drained) -> None:
    assert drain.parse(drain.dump(wanted)) == wanted


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"version":2}',
        b'{"version":1}',
        b'{"version":1,"pods":[["shop"]],"services":[],"slots":{}}',
        b'{"version":1,"pods":[["shop","x"]],"services":[],"slots":{}}',
        b'{"version":1,"pods":[["a;b","10.1.0.1"]],"services":[],"slots":{}}',
        b'{"version":1,"pods":[["shop","fe80::1%eth0;x"]],"services":[],"slots":{}}',
        b'{"version":1,"pods":[],"services":["a\\nb"],"slots":{}}',
        b'{"version":1,"pods":[],"services":[],"slots":{"shop":["pod1;quit"]}}',
        b'{"version":1,"pods":[],"services":[],"slots":[1]}',
        b" " * (drain.MOST_BYTES + 1),
    ],
    ids=range(15),
)
def test_a_damaged_record_is_empty_with_a_warning(tmp_path: Path, content: bytes) -> None:
    (tmp_path / drain_record.FILE).write_bytes(content)
    record, (warning,) = drain_record.load(settings(tmp_path))
    assert record == NOTHING
    assert warning.severity == "warning"
    assert drain_record.FILE in warning.message


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / drain_record.FILE)
    record, (warning,) = drain_record.load(settings(tmp_path))
    assert (record, warning.severity) == (NOTHING, "warning")


def test_no_record_is_nothing_and_needs_no_haproxy(tmp_path: Path) -> None:
    assert drain_record.load(settings(tmp_path)) == (NOTHING, ())
    assert drain_record.keep(settings(tmp_path), {}, []) == drain_record.DrainOutcome()
    with pytest.raises(Unavailable):
        drain_record.change(settings(tmp_path), lambda before, _servers: before)
    assert list(tmp_path.iterdir()) == []


# The state file


def admins(text: str) -> dict[str, tuple[str, str]]:
    rows = [line.split() for line in text.splitlines()[1:]]
    return {row[3]: (row[4], row[6]) for row in rows}


def test_the_state_file_drains_pods_wherever_they_come_to_be() -> None:
    resolution = {"shop": answer(A, B, C)}
    plan = planned(resolution)
    servers = [running("pod2", A), running("pod4", B, admin=8), running("pod9", C, admin=8)]
    text = server_state(plan, resolution, servers, drained=pods(A, slots=("pod4",)))
    # pod9 was drained by another operator, pod4 by fc-frontend and for another pod.
    assert dict(admins(text).values()) == {A: "8", B: "0", C: "8"}
    new = server_state(plan, resolution, [], drained=WHOLE)
    assert {admin for _, admin in admins(new).values()} == {"8"}
    kept = server_state(plan, resolution, [running("pod1", A, admin=1)], drained=WHOLE)
    assert admins(kept)["pod1"] == (A, "1")


# From end to end


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def serving(frontend: Frontend, count: int = 3) -> None:
    """Start service shop with `count` pods on ports 8080 (HTTP) and, as `raw`, 8081 (TCP)."""
    pods = frontend.scale("shop", count)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.settings["services"]["raw"] = frontend.service("shop", 8081, mode="tcp")
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.until(lambda: frontend.serves(8081, pods))


def servers(frontend: Frontend, service: str = "shop") -> dict[str, ServerState]:
    found = runtime.servers(frontend.settings["haproxy"]["runtime_socket"])
    return {server.server: server for server in found if server.proxy == service}


def slot_of(frontend: Frontend, address: str, service: str = "shop") -> str | None:
    held = servers(frontend, service).values()
    return next((server.server for server in held if server.address == address), None)


def record(frontend: Frontend) -> Drained:
    file = Path(frontend.settings["state_directory"]) / drain_record.FILE
    assert file.stat().st_mode & 0o777 == 0o640
    return drain.parse(file.read_bytes())


def shown(frontend: Frontend, service: str = "shop") -> list[str]:
    (found,) = [s for s in frontend.status()["services"] if s["name"] == service]
    drained: list[str] = found["drained"]
    return drained


def others(frontend: Frontend, *drained: str) -> set[str]:
    """Return the names of the pods that are not drained."""
    return {pod.name for pod in frontend.pods["shop"].pods if pod.address[0] not in drained}


def answering(frontend: Frontend, port: int = 8080, count: int = 24) -> set[str]:
    return set(frontend.answers(port, count))


def until_one_is_open(frontend: Frontend, slot: str) -> None:
    """Wait until HAProxy has one connection left of service raw to a slot."""
    socket = frontend.settings["haproxy"]["runtime_socket"]
    frontend.until(lambda: runtime.current_sessions(socket, "raw")[slot] == 1)


def test_a_drained_pod_gets_nothing_new_and_ends_what_it_has(frontend: Frontend) -> None:
    serving(frontend)
    connection = http.client.HTTPConnection(frontend.host, 8081, timeout=10)
    name, failure = ask(connection)
    assert failure is None
    victim = next(pod for pod in frontend.pods["shop"].pods if pod.name == name).address[0]
    slot = slot_of(frontend, victim, "raw")
    assert slot is not None
    until_one_is_open(frontend, slot)
    done = frontend.run("drain", "raw", victim)
    assert done.stdout == f"{slot} {victim} of raw: draining, 1 connection left\n"
    assert done.stderr == ""
    assert answering(frontend, 8081) == others(frontend, victim)
    # Another service's traffic to the same pod is not affected.
    assert answering(frontend, 8080) == others(frontend)
    assert ask(connection) == (name, None)
    frontend.until(lambda: shown(frontend, "raw") == [victim])
    assert frontend.metric("fc_frontend_service_drained", service="raw") == 1
    assert frontend.metric("fc_frontend_service_drained", service="shop") == 0

    still = frontend.run("drain", "raw", victim, "--wait", "1", check=False)
    assert still.returncode == 1
    assert f"{victim} of raw: 1 connection left after 1 s" in still.stderr
    connection.close()
    ended = frontend.run("drain", "raw", victim, "--wait", "30")
    assert f"{victim} of raw: no connections left\n" in ended.stdout

    back = frontend.run("undrain", "raw", slot)
    assert back.stdout == f"{slot} {victim} of raw: gets new connections again\n"
    assert answering(frontend, 8081) == others(frontend)
    frontend.until(lambda: shown(frontend, "raw") == [])
    assert frontend.metric("fc_frontend_service_drained", service="raw") == 0
    assert record(frontend) == NOTHING
    assert frontend.run("undrain", "raw").stdout == "raw: not drained\n"
    # None of these steps caused a reload.
    assert frontend.metric("fc_frontend_reloads_total") == 1


def test_connections_of_old_workers_are_waited_for(frontend: Frontend) -> None:
    serving(frontend)
    connection = http.client.HTTPConnection(frontend.host, 8081, timeout=10)
    name, _ = ask(connection)
    victim = next(pod for pod in frontend.pods["shop"].pods if pod.name == name).address[0]
    slot = slot_of(frontend, victim, "raw")
    assert slot is not None
    until_one_is_open(frontend, slot)
    frontend.drop("new.json", {"new": frontend.service("shop", 8082)})
    frontend.until(lambda: len(frontend.status()["services"]) == 3 and frontend.ready())
    done = frontend.run("drain", "raw", victim, "--wait", "0", check=False)
    assert "draining, 1 connection left" in done.stdout
    assert done.returncode == 1
    connection.close()
    frontend.run("drain", "raw", victim, "--wait", "30")


def test_a_drain_outlives_reloads_restarts_and_moves(frontend: Frontend) -> None:
    serving(frontend)
    victim = frontend.pods["shop"].addresses[0]
    frontend.run("drain", "shop", victim)
    rest = others(frontend, victim)

    def asked() -> int:
        pod = next(pod for pod in frontend.pods["shop"].pods if pod.address[0] == victim)
        return pod.requests

    # Only shop and its probes reach the pod from here on.
    frontend.run("drain", "raw", victim)
    before = asked()
    # A new service causes a reload.
    frontend.drop("new.json", {"new": frontend.service("other", 8082)})
    frontend.until(lambda: len(frontend.status()["services"]) == 3 and frontend.ready())
    assert answering(frontend) == rest
    # The daemon is restarted, and its settings change: another reload.
    frontend.stop_daemon()
    frontend.settings["services"]["late"] = frontend.service("late", 8083)
    frontend.write()
    frontend.start()
    assert answering(frontend) == rest
    # More pods than slots: more slots, another order.
    frontend.scale("shop", 24)
    frontend.until(lambda: frontend.metric("fc_frontend_service_slots", service="shop") > 24)
    frontend.until(lambda: answering(frontend, count=72) == others(frontend, victim))
    # The slots shrink: the pod moves to another one.
    frontend.scale("shop", 3)
    frontend.settings["services"]["shop"]["slots"] = 4
    frontend.settings["services"]["shop"]["balance"] = "roundrobin"
    frontend.write()
    frontend.until(lambda: len(servers(frontend)) == 4 and frontend.ready())
    frontend.until(lambda: answering(frontend) == rest)
    # HAProxy itself is killed, and the daemon starts it again.
    frontend.end_haproxy()
    frontend.until(lambda: answering(frontend) == rest)
    frontend.until(lambda: shown(frontend) == [victim])
    assert asked() == before
    frontend.run("undrain", "shop")
    assert answering(frontend) == others(frontend)


@pytest.mark.extended
def test_the_next_pod_in_the_slot_is_served_and_the_drained_one_forgotten(
    frontend: Frontend,
) -> None:
    serving(frontend)
    addresses = frontend.pods["shop"].addresses
    victim = addresses[1]
    slot = slot_of(frontend, victim)
    assert slot is not None
    # A drain by hand is not fc-frontend's own and is not undone.
    by_hand = slot_of(frontend, addresses[2])
    socket = frontend.settings["haproxy"]["runtime_socket"]
    assert runtime.command(socket, f"set server shop/{by_hand} state drain") == ""
    frontend.run("drain", "shop", slot)
    assert answering(frontend) == {"shop-1"}
    frontend.publish("shop", (addresses[0], addresses[2]))
    frontend.until(lambda: servers(frontend)[slot].address is None)
    frontend.until(lambda: record(frontend) == NOTHING)
    frontend.until(lambda: not (servers(frontend)[slot].admin or 0) & 8)
    frontend.until(lambda: frontend.events("drain-ended"))
    # The address returns, perhaps as another pod: it is served.
    frontend.publish("shop", addresses)
    frontend.until(lambda: answering(frontend) == {"shop-1", "shop-2"})
    assert frontend.metric("fc_frontend_service_drained", service="shop") == 0

    # In the same answer, the drained pod leaves and another one takes its slot.
    slot = slot_of(frontend, victim)
    assert slot is not None
    frontend.run("drain", "shop", victim)
    frontend.scale("shop", 4, publish=False)
    newest = frontend.pods["shop"].addresses[3]
    frontend.publish("shop", (addresses[0], addresses[2], newest))
    frontend.until(lambda: slot_of(frontend, newest))
    frontend.until(lambda: answering(frontend) == {"shop-1", "shop-4"})
    frontend.until(lambda: record(frontend) == NOTHING)
    assert (servers(frontend)[str(by_hand)].admin or 0) & 8
    # An undrain by address frees this pod as well.
    frontend.run("undrain", "shop", addresses[2])
    assert answering(frontend) == {"shop-1", "shop-3", "shop-4"}


@pytest.mark.extended
def test_a_pod_that_leaves_dns_stays_drained_as_long_as_haproxy_has_it(frontend: Frontend) -> None:
    serving(frontend, 1)
    (victim,) = frontend.pods["shop"].addresses
    done = frontend.run("drain", "shop", victim)
    assert "no server of shop takes new requests now: they will get 503" in done.stderr
    # NXDOMAIN: HAProxy holds the last addresses for 30 s.
    frontend.publish("shop", ())
    frontend.until(lambda: frontend.events("dns-empty"))
    frontend.until(lambda: frontend.ask(8080).endswith("status 503"))
    assert record(frontend).pods == {("shop", victim)}
    frontend.scale("shop", 1)
    frontend.until(lambda: frontend.metric("fc_frontend_service_endpoints", service="shop") == 1)
    assert frontend.ask(8080).endswith("status 503")


@pytest.mark.extended
def test_a_whole_service_is_drained_with_the_pods_that_come_later(frontend: Frontend) -> None:
    serving(frontend, 2)
    done = frontend.run("drain", "shop")
    assert done.stdout.count("draining, 0 connections left") == 2
    assert "fc-frontend undrain shop" in done.stderr
    assert all(who.endswith("status 503") for who in frontend.answers(8080, 6))
    assert answering(frontend, 8081) == others(frontend)
    # New pods in empty slots, and more pods than slots after a reload, are drained too.
    frontend.scale("shop", 6)
    frontend.until(lambda: len(shown(frontend)) == 6)
    assert all(who.endswith("status 503") for who in frontend.answers(8080, 12))
    frontend.scale("shop", 24)
    frontend.until(lambda: len(shown(frontend)) == 24)
    assert all(who.endswith("status 503") for who in frontend.answers(8080, 12))
    assert all((server.admin or 0) & 8 for server in servers(frontend).values())
    single = frontend.run("undrain", "shop", "pod1", check=False)
    assert single.returncode == 1
    assert "shop is drained as a whole" in single.stderr
    frontend.run("undrain", "shop")
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
    assert not any((server.admin or 0) & 8 for server in servers(frontend).values())


@pytest.mark.extended
def test_without_a_daemon(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.write()
    unheard = frontend.run("drain", "shop", check=False)
    assert unheard.returncode == 3
    assert "cannot be reached" in unheard.stderr
    assert not Path(frontend.settings["state_directory"], drain_record.FILE).exists()
    assert frontend.run("undrain", "shop", check=False).returncode == 3
    frontend.run("apply")
    frontend.until(lambda: frontend.serves(8080, pods))
    victim = pods.addresses[0]
    frontend.run("drain", "shop", victim)
    assert answering(frontend) == {"shop-2", "shop-3"}
    frontend.drop("new.json", {"new": frontend.service("new", 8081)})
    assert "reloaded" in frontend.run("apply").stdout
    assert answering(frontend) == {"shop-2", "shop-3"}
    # A broken file does not prevent a drain.
    frontend.drop("bad.json", "{")
    frontend.run("drain", "shop", pods.addresses[1])
    assert answering(frontend) == {"shop-3"}
    frontend.run("undrain", "shop")
    assert answering(frontend) == {"shop-1", "shop-2", "shop-3"}


@pytest.mark.extended
def test_nodes_and_cluster_ips_can_be_drained(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    nodes = dict(zip(("node-a", "node-b"), pods.addresses, strict=True))
    frontend.settings["cluster"]["nodes"] = nodes
    declared = frontend.service("shop", 8080, lb_service_port=8080)
    del declared["pod_port"]
    frontend.settings["services"]["shop"] = declared
    frontend.start()
    done = frontend.run("drain", "shop", "node-a")
    assert done.stdout.startswith(f"node-a {nodes['node-a']} of shop: draining")
    assert answering(frontend) == {"shop-2"}
    before = pods.pods[0].requests
    frontend.drop("new.json", {"new": frontend.service("new", 8081)})
    frontend.until(lambda: len(frontend.status()["services"]) == 2 and frontend.ready())
    # This holds from the new worker's first connection on: health checks are no requests.
    assert answering(frontend) == {"shop-2"}
    assert pods.pods[0].requests == before
    assert (servers(frontend)["node-a"].admin or 0) & 8
    frontend.run("undrain", "shop")
    assert answering(frontend) == {"shop-1", "shop-2"}


@pytest.mark.parametrize("name", ["drain", "undrain"])
@pytest.mark.extended
def test_who_is_unknown_is_said_and_nothing_reaches_haproxy(frontend: Frontend, name: str) -> None:
    serving(frontend, 2)
    before = servers(frontend)
    unknown = frontend.run(name, "shpo", check=False)
    assert unknown.returncode == 1
    assert "there is no service 'shpo'" in unknown.stderr
    assert "there are: raw, shop" in unknown.stderr
    nobody = frontend.run(name, "shop", "pod7", check=False)
    assert nobody.returncode == 1
    assert "the slot pod7 of shop has no pod" in nobody.stderr
    for arguments in (
        ("shop;disable server shop/pod1",),
        ("shop/pod1",),
        ("shop\ndisable server shop/pod1",),
        ("",),
        ("shop", "pod1;disable server shop/pod2"),
        ("shop", "pod1 state maint"),
        ("shop", "pod1\nset server shop/pod2 state maint"),
        ("shop", "\udcff"),
    ):
        refused = frontend.run(name, *arguments, check=False)
        is_usage = not "".join(arguments).isprintable()
        assert refused.returncode == (2 if is_usage else 1), arguments
        words = ("not printable",) if is_usage else ("there is no service", "has no pod")
        assert any(word in refused.stderr for word in words)
    after = servers(frontend)
    assert {slot: s.admin for slot, s in after.items()} == {s: x.admin for s, x in before.items()}
    assert not Path(frontend.settings["state_directory"], drain_record.FILE).exists()
    assert frontend.run(name, check=False).returncode == 2


@pytest.mark.extended
def test_a_damaged_record_is_said_and_replaced(frontend: Frontend) -> None:
    serving(frontend, 2)
    file = Path(frontend.settings["state_directory"], drain_record.FILE)
    file.write_text("damaged")
    file.chmod(0o640)
    frontend.until(lambda: frontend.events("drains-unknown"))
    assert frontend.ready()
    done = frontend.run("drain", "shop", "pod1")
    assert "cannot be used: it is not JSON" in done.stderr
    assert len(record(frontend).pods) == 1


@pytest.mark.extended
def test_a_record_that_another_process_changes_is_waited_for(frontend: Frontend) -> None:
    serving(frontend, 2)
    directory = os.open(frontend.settings["state_directory"], os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        done = frontend.run("drain", "shop", "pod1", check=False)
    finally:
        os.close(directory)
    assert done.returncode == 3
    assert "another process holds it" in done.stderr
    assert frontend.answers(8080, 12).keys() == {"shop-1", "shop-2"}


def test_records_are_small_json_that_says_what_it_means(frontend: Frontend) -> None:
    serving(frontend, 2)
    frontend.run("drain", "shop", "pod1")
    address = servers(frontend)["pod1"].address
    file = Path(frontend.settings["state_directory"], drain_record.FILE)
    assert json.loads(file.read_bytes()) == {
        "version": 1,
        "services": [],
        "pods": [["shop", address]],
        "slots": {"shop": ["pod1"]},
    }
