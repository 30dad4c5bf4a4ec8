"""HAProxy's sockets: parsing the answers, and handling missing or malformed ones."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fc_frontend.errors import Refused, Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.master import OldWorker, parse_processes, show_proc
from fc_frontend.haproxy.runtime import parse_servers
from fc_frontend.haproxy.socket import NoAnswer, NoListener, ask
from tests.conftest import HASH, RealHaproxy

PODS = (
    "resolvers cluster",
    "  nameserver dns1 127.0.0.1:1",
    "backend pods",
    "  server-template pod 3 192.0.2.1:8080",
    "backend empty",
    "  server-template slot 2 *.web.default.svc.cluster.local:80 resolvers cluster init-addr none",
)


@contextmanager
def fake_socket(path: Path, *answer: bytes, hang: bool = False) -> Iterator[str]:
    """Run a peer with faults that HAProxy cannot be made to show: garbage, floods, silence."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.05)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    try:
                        for part in answer:
                            connection.sendall(part)
                    except OSError:
                        continue
                    if hang:
                        ended.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield str(path)
        finally:
            ended.set()
            thread.join()


def test_both_sockets_answer_and_close(haproxy: RealHaproxy) -> None:
    said = haproxy.start()
    assert said.version
    assert said.version in ask(haproxy.master_socket, "show version", 5)
    assert ask(haproxy.runtime_socket, "show version", 5).strip()


def test_a_missing_socket_is_told_at_once(short_directory: Path) -> None:
    with pytest.raises(NoListener, match="No such file") as raised:
        ask(str(short_directory / "none"), "show info", 5)
    assert raised.value.problems[0].remedy


def test_a_socket_left_over_is_told(short_directory: Path) -> None:
    path = short_directory / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(NoListener, match="refused"):
        ask(str(path), "show info", 5)


def test_patience_waits_for_a_socket_that_comes(haproxy: RealHaproxy) -> None:
    haproxy.write(haproxy.configuration())
    haproxy.launch()
    assert "HAProxy" in ask(haproxy.runtime_socket, "show info", 20, patience=20)
    assert show_proc(haproxy.master_socket, patience=20).master == haproxy.pid


def test_patience_ends(short_directory: Path) -> None:
    with pytest.raises(NoListener):
        ask(str(short_directory / "none"), "show info", 5, patience=0.2)
    with pytest.raises(NoListener):
        show_proc(str(short_directory / "none"), patience=0.2)


def test_a_peer_that_hangs_costs_the_time_limit(short_directory: Path) -> None:
    with (
        fake_socket(short_directory / "s", b"Name: ", hang=True) as path,
        pytest.raises(NoAnswer, match=r"within 0\.3 s"),
    ):
        ask(path, "show info", 0.3)


def test_a_queue_that_is_full_costs_the_time_limit(short_directory: Path) -> None:
    """A listener never accepts a connection, like a stopped HAProxy."""
    path = str(short_directory / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            with pytest.raises(NoAnswer):
                ask(path, "show info", 0.2)


def test_a_flood_is_cut_off(short_directory: Path) -> None:
    with (
        fake_socket(short_directory / "s", *[b"x" * 65536] * 100) as path,
        pytest.raises(NoAnswer, match="longer than 100000 bytes"),
    ):
        ask(path, "show info", 5, limit=100_000)


def test_a_slow_flood_keeps_to_the_time_limit_as_a_whole(short_directory: Path) -> None:
    stop = threading.Event()
    path = short_directory / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        # The peer sends bytes until it is stopped, so this would not end without the limit.
        with pytest.raises(NoAnswer):
            ask(str(path), "show info", 0.4)
        stop.set()
        thread.join()


@pytest.mark.parametrize("command", ["show info\nshow proc", "show\0", "a\rb"])
def test_a_command_is_one_line(command: str) -> None:
    with pytest.raises(Refused, match="not one command"):
        ask("/nowhere", command, 1)


def test_a_socket_that_we_may_not_use(short_directory: Path) -> None:
    path = short_directory / "s"
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            ask(str(path), "show info", 2)
        except Unavailable as unavailable:
            sender.send((type(unavailable).__name__, str(unavailable)))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o000)
        process = context.Process(target=child)
        process.start()
        sender.close()
        kind, said = receiver.recv()
        process.join()
        receiver.close()
        process.close()
    assert kind == "Unavailable"
    assert "Permission denied → run as root or as a member of the group" in said


def test_a_path_that_is_too_long_is_told() -> None:
    with pytest.raises(Unavailable, match="too long"):
        ask("/tmp/" + "x" * 120, "show info", 1)


def test_a_plain_file_is_told(tmp_path: Path, short_directory: Path) -> None:
    (short_directory / "file").touch()
    with pytest.raises(Unavailable):
        ask(str(short_directory / "file"), "show info", 1)


def test_the_master_tells_its_processes(haproxy: RealHaproxy) -> None:
    said = haproxy.start()
    assert said.master == haproxy.pid
    assert said.worker is not None
    assert (said.reloads, said.failed, said.worker_reloads, said.old_workers) == (0, 0, 0, ())
    assert said.pids == {said.master, said.worker}
    assert runtime.info(haproxy.runtime_socket)["Pid"] == str(said.worker)


def test_the_worker_is_not_a_master(haproxy: RealHaproxy) -> None:
    haproxy.start()
    with pytest.raises(Unavailable, match=r"not HAProxy's master socket.*-S"):
        show_proc(haproxy.runtime_socket)


def test_the_master_is_not_a_worker(haproxy: RealHaproxy) -> None:
    haproxy.start()
    with pytest.raises(Unavailable, match="no proper answer to `show info`"):
        runtime.info(haproxy.master_socket)
    with pytest.raises(Unavailable, match="no proper answer to `show servers state`"):
        runtime.servers(haproxy.master_socket)


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_garbage_is_told(short_directory: Path, garbage: bytes) -> None:
    with fake_socket(short_directory / "s", garbage) as path:
        for question in (show_proc, runtime.info, runtime.running_hash, runtime.servers):
            with pytest.raises(Unavailable) as raised:
                question(path, 5)
            assert raised.value.problems[0].remedy


def test_all_forms_of_show_proc_are_read() -> None:
    """Parse rows as written by versions 2.2 to 3.x, mixed with programs and unknown lines."""
    said = parse_processes(
        "s",
        "#<PID>          <type>          <relative PID>  <reloads>       <uptime>     <version>\n"
        "10              master          0               2               1d02h03m04s     2.3.1\n"
        "# workers\n"
        "12              worker          1               0               0d00h00m05s     2.3.1\n"
        "garbage\n"
        "# old workers\n"
        "11              worker          [was: 1]        1               0d00h01m00s     2.3.1\n"
        "9               worker          2               0d01h00m00s     2.6.12\n"
        "# programs\n"
        "13              agent           -               0               0d00h00m05s     -\n",
    )
    assert (said.master, said.reloads, said.failed, said.version) == (10, 2, 0, "2.3.1")
    assert said.worker == 12
    assert OldWorker(9, 2, 3600.0) in said.old_workers


def test_the_running_hash_is_the_configurations(haproxy: RealHaproxy) -> None:
    haproxy.start()
    assert runtime.running_hash(haproxy.runtime_socket) == HASH


@pytest.mark.parametrize("other", ["", "description other", "description fc-frontend:no"])
def test_a_strange_configuration_has_no_hash(haproxy: RealHaproxy, other: str) -> None:
    text = haproxy.configuration().replace(f"description fc-frontend:{HASH}", other)
    haproxy.start(text)
    assert runtime.running_hash(haproxy.runtime_socket) is None


def test_servers_have_addresses_and_states(haproxy: RealHaproxy) -> None:
    haproxy.start(haproxy.configuration(*PODS))
    states = runtime.servers(haproxy.runtime_socket)
    found = {(state.proxy, state.server): state for state in states}
    assert set(found) == {
        *(("pods", f"pod{number}") for number in (1, 2, 3)),
        *(("empty", f"slot{number}") for number in (1, 2)),
    }
    pod = found["pods", "pod1"]
    assert (pod.address, pod.port, pod.weight, pod.fqdn) == ("192.0.2.1", 8080, 1, None)
    assert pod.up
    slot = found["empty", "slot1"]
    assert (slot.address, slot.port, slot.up) == (None, 80, False)
    assert slot.fqdn == "*.web.default.svc.cluster.local"
    with_address = runtime.servers_with_address(haproxy.runtime_socket)
    assert [server.server for server in with_address] == ["pod1", "pod2", "pod3"]


def test_missing_columns_are_none() -> None:
    (state,) = parse_servers("s", "1\n# be_name srv_name srv_addr srv_port\nweb pod1 192.0.2.1 x\n")
    assert (state.proxy, state.server, state.address) == ("web", "pod1", "192.0.2.1")
    assert (state.port, state.operational, state.fqdn, state.up) == (None, None, None, False)


def test_one_command_changes_a_server(haproxy: RealHaproxy) -> None:
    haproxy.start(haproxy.configuration(*PODS))
    assert runtime.command(haproxy.runtime_socket, "set server pods/pod1 state drain") == ""
    said = runtime.command(haproxy.runtime_socket, "set server pods/pod1 addr 192.0.2.9 port 99")
    assert "192.0.2.9" in said
    state = runtime.servers(haproxy.runtime_socket)[0]
    assert (state.address, state.port, state.admin, state.up) == ("192.0.2.9", 99, 8, False)
    said = runtime.command(haproxy.runtime_socket, "set server pods/none state drain")
    assert said == "No such server."


def test_many_commands_have_their_own_answers(haproxy: RealHaproxy) -> None:
    haproxy.start(haproxy.configuration(*PODS))
    texts = [f"set server pods/pod{number % 4} weight {number % 50 + 1}" for number in range(1000)]
    texts[500] = "set server pods/pod1 addr 192.0.2.77"
    answers = runtime.commands(haproxy.runtime_socket, texts)
    assert len(answers) == 1000
    missing = [i for i, answer in enumerate(answers) if answer == "No such server."]
    assert missing == [i for i in range(1000) if i % 4 == 0 and i != 500]
    assert "192.0.2.77" in answers[500]
    assert runtime.commands(haproxy.runtime_socket, []) == ()


def test_answers_that_cannot_be_told_apart_are_told(haproxy: RealHaproxy) -> None:
    haproxy.start(haproxy.configuration(*PODS))
    with pytest.raises(Unavailable, match="no proper answer to `2 commands`"):
        runtime.commands(haproxy.runtime_socket, ["show servers state", "quit"])
