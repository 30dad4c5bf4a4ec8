"""Random histories of edits, DNS answers and faults, compared with a model of the routable pods.

The daemon, HAProxy and the pods are real.  `FC_FRONTEND_HISTORIES` sets the number of histories for
longer runs.
"""

from __future__ import annotations

import os
import re
import signal
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fc_frontend.demo.dns import Fault
from fc_frontend.haproxy.master import show_proc
from tests.support.frontend import Frontend

NAMES = ("one", "two", "three")
PORTS = {name: 8080 + number for number, name in enumerate(NAMES)}
HISTORIES = int(os.environ.get("FC_FRONTEND_HISTORIES", "3"))
names = st.sampled_from(NAMES)


class Histories(RuleBasedStateMachine):
    """The actions so far, and the pods that must answer for each service."""

    binary: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.frontend = Frontend(self.binary)
        self.declared: dict[str, str] = {}
        """The state of each declared service, "fine" or "broken"."""
        self.in_force: set[str] = set()
        self.pods: dict[str, set[str]] = {name: set() for name in NAMES}
        self.known: dict[str, set[str]] = {name: set() for name in NAMES}
        """The last answer of cluster DNS for each service."""
        self.dns_answers = True

    @initialize()
    def start(self) -> None:
        self.frontend.__enter__()
        self.frontend.settings["intervals"]["hold"] = "1s"
        for name in NAMES:
            self.frontend.scale(name, 0)
        self.frontend.start()

    def teardown(self) -> None:
        self.frontend.__exit__()

    def declare(self, name: str, **fields: Any) -> None:
        self.frontend.drop(
            f"{name}.json", {name: self.frontend.service(name, PORTS[name], **fields)}
        )
        self.declared[name] = "fine"
        if name not in self.in_force:
            self.in_force.add(name)
            # While DNS is down, the pods of a new service are unknown.
            self.known[name] = set(self.pods[name]) if self.dns_answers else set()

    def settle(self) -> None:
        """Wait until HAProxy and the daemon match the model, and check that they still do."""

        expected = {name: self.expected(name) for name in NAMES}
        broken = {name for name, state in self.declared.items() if state == "broken"}

        def now() -> tuple[dict[str, set[str] | None], set[str]]:
            held = self.frontend.status()["withheld"]
            return (
                {name: self.seen(name) for name in NAMES},
                {h["name"].rpartition("/")[2].split(".")[0] for h in held},
            )

        try:
            self.frontend.until(lambda: now() == (expected, broken))
        except AssertionError as exc:
            raise AssertionError(f"expected {expected}, {broken}; seen {now()}\n{exc}") from None
        assert now() == (expected, broken)

    def expected(self, name: str) -> set[str] | None:
        """Return the pods that must answer; None if nothing listens."""
        if name not in self.in_force:
            return None
        return self.pods[name] & self.known[name]

    def seen(self, name: str) -> set[str] | None:
        count = 6 * max(1, len(self.pods[name]))
        answers = set(self.frontend.answers(PORTS[name], count))
        if all("refused" in answer.lower() for answer in answers):
            return None
        return {"" if "503" in answer else answer for answer in answers} - {""}

    # Actions of operators

    @rule(name=names, slots=st.sampled_from(["auto", 5, 12]), check=st.booleans())
    def edit(self, name: str, slots: object, check: bool) -> None:
        self.declare(name, slots=slots, balance="roundrobin" if check else "leastconn")
        self.settle()

    @precondition(lambda self: self.declared)
    @rule(name=names)
    def remove(self, name: str) -> None:
        (self.frontend.services_d / f"{name}.json").unlink(missing_ok=True)
        self.declared.pop(name, None)
        self.in_force.discard(name)
        self.settle()

    @rule(name=names, kind=st.integers(0, 2))
    def break_file(self, name: str, kind: int) -> None:
        texts = (
            '{"services": [',
            f'{{"services": {{"{name}": {{"pod_prt": 1}}}}}}',
            f'{{"services": {{"{name}": {{"pod_port": 8080, "binds": "{self.frontend.host}:'
            f'{PORTS[name]}", "extra_config": "nonsense"}}}}}}',
        )
        self.frontend.drop(f"{name}.json", texts[kind])
        self.declared[name] = "broken"
        self.settle()

    # Events in the cluster

    @rule(name=names, count=st.integers(0, 4))
    def scale(self, name: str, count: int) -> None:
        pods = self.frontend.scale(name, count)
        self.pods[name] = {pod.name for pod in pods.pods}
        if self.dns_answers:
            self.known[name] = set(self.pods[name])
        self.settle()

    @rule(fault=st.sampled_from([Fault.SERVFAIL, Fault.REFUSED, Fault.SILENT]))
    def dns_fails(self, fault: Fault) -> None:
        self.frontend.dns.fault = fault
        self.dns_answers = False
        self.settle()

    @precondition(lambda self: not self.dns_answers)
    @rule()
    def dns_recovers(self) -> None:
        self.frontend.dns.fault = Fault.NONE
        self.dns_answers = True
        self.known = {name: set(pods) for name, pods in self.pods.items()}
        self.settle()

    # Events on this host

    @rule(number=st.sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def restart(self, number: int) -> None:
        self.frontend.stop_daemon(number)
        self.frontend.start()
        self.settle()

    @rule()
    def reload_by_hand(self) -> None:
        master = show_proc(self.frontend.settings["haproxy"]["master_socket"], patience=5.0).master
        os.kill(master, signal.SIGUSR2)
        self.settle()

    @rule()
    def haproxy_dies(self) -> None:
        self.frontend.end_haproxy()
        self.settle()

    @rule()
    def edit_output(self) -> None:
        text = self.frontend.haproxy_cfg.read_text()
        self.frontend.haproxy_cfg.write_text(re.sub(r"^ +bind .*$", "", text, flags=re.MULTILINE))
        self.settle()


def test_histories_end_as_the_model_says(either_binary: str) -> None:
    kind = type("Histories", (Histories,), {"binary": either_binary})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=12,
            derandomize="FC_FRONTEND_HISTORIES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
