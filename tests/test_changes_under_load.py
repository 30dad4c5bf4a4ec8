"""Random sequences of edits, mistakes, removals, DNS changes and kills under constant load.

The property: no request to a service fails because another service changes, and a change that is
refused or withheld before its reload causes neither a failed request nor a reload.

`FC_FRONTEND_SEQUENCES` sets the number of sequences for longer runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fc_frontend.demo.dns import Fault
from fc_frontend.demo.load import Load, Tally
from fc_frontend.haproxy.master import show_proc
from tests.support.frontend import Frontend

SERVICES = ("one", "two", "three")
PORTS = {name: 8080 + number for number, name in enumerate(SERVICES)} | {"edge": 8095}
"""The ports of the services, and of a fragment that passes connections to `one`."""
SEQUENCES = int(os.environ.get("FC_FRONTEND_SEQUENCES", "4"))
STEPS = 15
PATIENCE = 60.0
MISTAKES: dict[str, dict[str, Any]] = {
    "field": {"pod_prt": 1},
    "line": {"extra_config": "nonsense here"},
    "section": {"extra_config": '"frontend" evil'},
    "certificate": {"bind_options": "ssl crt /nonexistent/site.pem"},
    "list": {"extra_config": "acl a src -f /nonexistent/list"},
    "backend": {"extra_config": "use_backend nowhere if TRUE"},
    "namespace": {"namespace": "nowhere"},
    "name": {"service": "nowhere"},
    "bind": {},
    "text": {},
}
"""Mistakes that prevent a service from being deployed, found before a reload."""
names = st.sampled_from(SERVICES)


class Changes(RuleBasedStateMachine):
    """The configuration declared so far, and the services that must serve without failures."""

    binary: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.frontend = Frontend(self.binary)
        self.fields: dict[str, dict[str, Any]] = {}
        """The last good fields of each service that is declared or running."""
        self.files: dict[str, str] = {}
        """The file that declares each service, or last declared it."""
        self.marks: dict[str, str] = {}
        self.count = 0
        self.withheld: set[str] = set()
        self.gone: set[str] = set()
        """Services that were removed and are not served."""
        self.is_settings_wrong = False

    @initialize()
    def start(self) -> None:
        frontend = self.stack.enter_context(self.frontend)
        frontend.settings["intervals"].update(reload="200ms", debounce="50ms", rescan="1s")
        self.held = self.stack.enter_context(socket.create_server((frontend.host, 8099)))
        for name in SERVICES:
            frontend.scale(name, 2)
            self.put(name, frontend.service(name, PORTS[name]))
        frontend.drop(
            "edge.cfg",
            f"frontend edge\n  mode http\n  bind {frontend.host}:{PORTS['edge']}\n"
            "  default_backend one\n",
        )
        frontend.start()
        for name in SERVICES:
            frontend.until(lambda name=name: frontend.serves(PORTS[name], frontend.pods[name]))
        self.loads = {
            name: self.stack.enter_context(Load(frontend.host, port, clients=2, interval=0.02))
            for name, port in PORTS.items()
        }

    def teardown(self) -> None:
        self.stack.close()

    # Steps

    def put(self, name: str, fields: dict[str, Any], file: str = "") -> None:
        """Declare a service as its last good form, with a line that shows its deployment."""
        self.files[name] = file or self.files.get(name, f"{name}.json")
        self.count += 1
        self.marks[name] = f"timeout client-fin {1000 + self.count}ms"
        fields = {**fields, "extra_config": self.marks[name]}
        self.fields[name] = fields
        self.frontend.drop(self.files[name], {name: fields})

    def counts(self) -> tuple[dict[str, Tally], int]:
        return {name: load.tally() for name, load in self.loads.items()}, self.reloads()

    def reloads(self) -> int:
        master_socket = self.frontend.settings["haproxy"]["master_socket"]
        return show_proc(master_socket, patience=10).reloads

    def settled(
        self,
        before: tuple[dict[str, Tally], int],
        *,
        touched: Iterable[str] = (),
        may_reload: bool = True,
    ) -> None:
        """Wait until all declarations are deployed or withheld, and compare the counts."""
        frontend = self.frontend

        def is_settled() -> bool:
            status = frontend.status()
            found = {
                "settings"
                if h["kind"] == "settings"
                else h["name"].rpartition("/")[2].split(".")[0]
                for h in status["withheld"]
            }
            # If every service is kept as it runs or is gone, the settings take no server from any.
            is_felt = self.is_settings_wrong and not set(SERVICES) <= self.withheld | self.gone
            wanted = self.withheld | ({"settings"} if is_felt else set())
            text = frontend.haproxy_cfg.read_text()
            is_there = all((mark in text) == (n not in self.gone) for n, mark in self.marks.items())
            return is_there and frontend.ready() and found == wanted

        try:
            frontend.until(is_settled, PATIENCE)
        except AssertionError as exc:
            found = frontend.status()["withheld"]
            known = f"expected {self.withheld}, settings wrong: {self.is_settings_wrong}"
            raise AssertionError(f"{known}; withheld: {found}\n{exc}") from None
        tallies, reloads = before
        excepted = {*touched, *self.gone, *(("edge",) if "one" in touched else ())}
        for name, load in self.loads.items():
            if name in excepted:
                continue
            answered = load.tally().requests
            frontend.until(lambda load=load, n=answered: load.tally().requests > n + 10)
            failures = load.tally().since(tallies[name]).failures
            assert not failures, (name, failures)
        assert may_reload or self.reloads() == reloads

    # Valid changes

    @precondition(lambda self: self.served())
    @rule(data=st.data(), slots=st.sampled_from(["auto", 8, 12]), second=st.booleans())
    def edit(self, data: st.DataObject, slots: object, second: bool) -> None:
        name = data.draw(st.sampled_from(self.served()))
        before = self.counts()
        port = PORTS[name]
        binds = [f"{self.frontend.host}:{port}"]
        if second:
            binds.append(f"{self.frontend.host}:{port + 20}")
        balance = "leastconn" if second else "roundrobin"
        self.put(name, {**self.fields[name], "slots": slots, "binds": binds, "balance": balance})
        self.withheld.discard(name)
        self.settled(before)

    @precondition(lambda self: self.withheld)
    @rule()
    def correct(self) -> None:
        before = self.counts()
        for name in sorted(self.withheld):
            self.put(name, self.fields[name])
        self.withheld.clear()
        self.settled(before)

    @precondition(lambda self: set(self.served()) - {"one"} - self.withheld)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.served()) - {"one"} - self.withheld)))
        before = self.counts()
        (self.frontend.services_d / self.files[name]).unlink()
        self.gone.add(name)
        self.settled(before)

    @precondition(lambda self: self.gone)
    @rule()
    def declare_again(self) -> None:
        before = self.counts()
        for name in sorted(self.gone):
            self.put(name, self.fields[name])
        back, self.gone = self.gone, set()
        self.settled(before, touched=back)

    @precondition(lambda self: set(self.served()) - self.withheld)
    @rule(data=st.data())
    def move_to_another_file(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.served()) - self.withheld)))
        before = self.counts()
        old = self.files[name]
        new = f"moved-{name}.json" if old == f"{name}.json" else f"{name}.json"
        (self.frontend.services_d / old).unlink()
        self.put(name, self.fields[name], new)
        self.settled(before)

    # Mistakes

    @precondition(lambda self: self.served())
    @rule(data=st.data(), kind=st.sampled_from(sorted(MISTAKES)))
    def mistake(self, data: st.DataObject, kind: str) -> None:
        name = data.draw(st.sampled_from(self.served()))
        before = self.counts()
        fields = {**self.fields[name], **MISTAKES[kind]}
        if kind == "bind":
            fields["binds"] = f"{self.frontend.host}:8099"
        text = json.dumps({"services": {name: fields}})
        self.frontend.drop(self.files[name], text[:-1] if kind == "text" else text)
        self.withheld.add(name)
        self.settled(before, may_reload=False)

    @precondition(lambda self: "one" not in self.withheld)
    @rule()
    def remove_what_a_fragment_uses(self) -> None:
        before = self.counts()
        (self.frontend.services_d / self.files["one"]).unlink()
        self.withheld.add("one")
        self.settled(before, may_reload=False)

    @precondition(lambda self: not self.is_settings_wrong)
    @rule(field=st.sampled_from(["domain", "pod_network"]))
    def settings_mistake(self, field: str) -> None:
        before = self.counts()
        good = dict(self.frontend.settings["cluster"])
        wrong = {"domain": "cluster.locl", "pod_network": "10.99.0.0/16"}
        self.frontend.settings["cluster"][field] = wrong[field]
        self.frontend.write()
        self.is_settings_wrong = True
        self.settled(before, may_reload=False)
        self.frontend.settings["cluster"] = good
        self.frontend.write()
        self.is_settings_wrong = False
        self.settled(before)

    # Changes in the cluster, and faults of fc-frontend and HAProxy

    @rule(name=names, count=st.integers(2, 4))
    def scale(self, name: str, count: int) -> None:
        before = self.counts()
        self.frontend.scale(name, count)
        self.settled(before, touched=[name])

    @rule(fault=st.sampled_from([Fault.SERVFAIL, Fault.REFUSED, Fault.SILENT, Fault.NONE]))
    def dns(self, fault: Fault) -> None:
        before = self.counts()
        self.frontend.dns.fault = fault
        self.settled(before)
        self.frontend.dns.fault = Fault.NONE

    @rule(number=st.sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def restart(self, number: int) -> None:
        before = self.counts()
        self.frontend.stop_daemon(number)
        self.frontend.start()
        self.settled(before, may_reload=False)

    @precondition(lambda self: self.served())
    @rule(data=st.data(), slots=st.integers(5, 9))
    def kill_while_something_changes(self, data: st.DataObject, slots: int) -> None:
        name = data.draw(st.sampled_from(self.served()))
        before = self.counts()
        checks = self.frontend.metric("fc_frontend_checks_total")
        self.put(name, {**self.fields[name], "slots": slots})
        self.withheld.discard(name)
        self.frontend.until(
            lambda: (
                self.frontend.metric("fc_frontend_checks_total") > checks or self.frontend.ready()
            )
        )
        self.frontend.stop_daemon(signal.SIGKILL)
        self.frontend.start()
        self.settled(before)

    def served(self) -> list[str]:
        """Return the services that are declared or kept, in order."""
        return sorted(set(SERVICES) - self.gone)


@pytest.mark.extended
def test_no_change_costs_another_service_a_request(either_binary: str) -> None:
    kind = type("Changes", (Changes,), {"binary": either_binary})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=STEPS,
            deadline=None,
            # A sequence takes a minute: print a failing one without shrinking it.
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
            database=None,
            print_blob=True,
        ),
    )
