"""haproxy.cfg changed by others, and more old workers than allowed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.demo.load import Load
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.old_workers import bound_old_workers
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def reload_by_hand(frontend: Frontend) -> None:
    os.kill(show_proc(frontend.settings["haproxy"]["master_socket"]).master, signal.SIGUSR2)


def test_a_file_edited_by_hand_is_put_right(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    good = frontend.haproxy_cfg.read_text()
    for edited in ("nonsense\n", good.replace("leastconn", "roundrobin")):
        frontend.haproxy_cfg.write_text(edited)
        frontend.until(lambda: frontend.haproxy_cfg.read_text() == good)
    assert len(frontend.events("config-drift")) == 2
    assert frontend.metric("fc_frontend_config_drifts_total") == 2
    frontend.haproxy_cfg.unlink()
    frontend.until(frontend.haproxy_cfg.exists)
    assert frontend.haproxy_cfg.read_text() == good
    assert frontend.metric("fc_frontend_reloads_total") == 1
    assert frontend.metric("fc_frontend_config_drift") == 0


@pytest.mark.extended
def test_what_apply_deploys_is_no_drift(frontend: Frontend) -> None:
    """The daemon withholds a service until a command deploys it: that is not an edit by hand."""
    frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    with socket.create_server((frontend.host, 8081)):
        frontend.drop("late.json", {"late": frontend.service("shop", 8081)})
        frontend.until(lambda: frontend.status()["withheld"])
    frontend.run("apply")
    applied = frontend.haproxy_cfg.read_text()
    frontend.until(lambda: not frontend.status()["withheld"] and frontend.status()["in_sync"])
    assert "listen late" in applied
    assert frontend.haproxy_cfg.read_text() == applied
    assert not frontend.events("config-drift")
    assert not frontend.events("config-replaced")


def test_haproxy_gets_none_of_our_open_files(frontend: Frontend) -> None:
    frontend.start()
    master = show_proc(frontend.settings["haproxy"]["master_socket"]).master
    opened = [str(entry.readlink()) for entry in Path(f"/proc/{master}/fd").iterdir()]
    assert not [name for name in opened if "inotify" in name]


def test_a_haproxy_reloaded_with_an_edited_file_gets_ours_again(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    good, running = frontend.haproxy_cfg.read_text(), frontend.running_hash()
    with Load(frontend.host, 8080, clients=2) as load:
        frontend.haproxy_cfg.write_text(good.replace("fc-frontend:", "by-hand:"))
        reload_by_hand(frontend)
        frontend.until(lambda: frontend.events("config-drift"))
        frontend.until(lambda: frontend.running_hash() == running and frontend.ready())
        assert not load.stop().failures
    assert frontend.haproxy_cfg.read_text() == good


def test_an_adopted_file_stays_until_the_configuration_changes(frontend: Frontend) -> None:
    frontend.settings["haproxy"]["drift"] = "adopt"
    pods = frontend.scale("shop", 2)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    edited = frontend.haproxy_cfg.read_text().replace("description fc-frontend:", "description my")
    frontend.haproxy_cfg.write_text(edited)
    reload_by_hand(frontend)
    frontend.until(lambda: frontend.metric("fc_frontend_config_drift") == 1)
    frontend.until(lambda: frontend.running_hash() is None)
    # A change without effect on the text, and the daemon's checks, leave it unchanged.
    frontend.drop("empty.yaml", "# nothing\n")
    frontend.until(lambda: frontend.metric("fc_frontend_config_in_sync") == 0)
    assert frontend.haproxy_cfg.read_text() == edited
    assert frontend.serves(8080, pods)
    frontend.drop("more.json", {"more": frontend.service("more", 8081)})
    frontend.until(frontend.ready)
    assert frontend.metric("fc_frontend_config_drift") == 0
    assert "listen more" in frontend.haproxy_cfg.read_text()


def test_the_oldest_of_too_many_old_workers_are_ended(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 1)
    frontend.settings["haproxy"]["most_old_workers"] = 2
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080, mode="tcp")
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    haproxy = frontend.settings["haproxy"]
    with contextlib.ExitStack() as connections:
        opened: list[socket.socket] = []
        for number in range(4):
            # Each connection holds the worker that is replaced next.
            connection = socket.create_connection((frontend.host, 8080))
            opened.append(connections.enter_context(connection))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536)
            name = f"s{number}"
            frontend.drop(f"{name}.json", {name: frontend.service(name, 9000 + number)})
            frontend.until(
                lambda number=number: (
                    len(frontend.status()["services"]) == number + 2 and frontend.ready()
                )
            )
        frontend.until(lambda: frontend.metric("fc_frontend_old_workers_ended_total") == 2)
        frontend.until(lambda: len(show_proc(haproxy["master_socket"]).old_workers) == 2)
        frontend.until(lambda: frontend.metric("fc_frontend_old_workers") == 2)
        assert frontend.metric("fc_frontend_old_workers_memory_bytes") > 1_000_000
        # The connections that ended are the oldest.
        for connection, is_open in zip(opened, (False, False, True, True), strict=True):
            connection.settimeout(5)
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert bool(connection.recv(65536)) is is_open
        assert frontend.serves(8080, pods)
        left = bound_old_workers(haproxy["master_socket"], haproxy["runtime_socket"], 1)
        assert (left.count, len(left.ended)) == (1, 1)
