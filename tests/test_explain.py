"""`explain` names the fault of a service and the remedy: the tests really produce each cause.

An operator is paged at night: 503 on a service.  One command must show where the path of its
requests is broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.demo.dns import Fault, KubernetesService
from fc_frontend.haproxy import runtime
from tests.conftest import binary_of
from tests.support.frontend import Frontend

STEPS = ["declaration", "dns", "networks", "slots", "servers", "bind", "configuration"]
NAME = "shop.default.svc.cluster.local"


def explained(frontend: Frontend, service: str) -> dict[str, Any]:
    """Return the document of `explain --json`, with its exit code and the text for people."""
    done = frontend.run("explain", service, "--json", check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == {"ok": 0, "warn": 1, "bad": 1, "unknown": 3}[document["verdict"]]
    assert [step["step"] for step in document["steps"]] == STEPS
    return document


def step(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in document["steps"] if s["step"] == name)
    return found


def caused(frontend: Frontend, service: str, cause: str) -> dict[str, Any]:
    """Return the explanation as soon as it names `cause` as the step at which the path breaks."""

    def found() -> dict[str, Any] | None:
        document = explained(frontend, service)
        return document if document["cause"] and document["cause"]["step"] == cause else None

    document: dict[str, Any] = frontend.until(found)
    return document


def publish(frontend: Frontend, name: str, **fields: Any) -> None:
    async def set_service() -> None:
        frontend.dns.set_service(KubernetesService(name, **fields))

    frontend.call(set_service())


def admin(frontend: Frontend, text: str) -> str:
    return runtime.command(frontend.settings["haproxy"]["runtime_socket"], text)


# Causes that coexist in one frontend


@pytest.fixture(scope="module")
def many(either_binary: str) -> Iterator[Frontend]:
    """Yield a frontend whose services each have another fault; the requests in it do not change."""
    with Frontend(either_binary) as frontend:
        frontend.scale("shop", 3)
        ports = {"http": 8080}
        publish(
            frontend,
            "cip",
            cluster_ip=f"127.{frontend.octet}.128.9",
            ports=ports,
            endpoints=frontend.pods["shop"].addresses,
        )
        publish(frontend, "outside", ports=ports, endpoints=("192.0.2.7",))
        publish(frontend, "unready", ports=ports)
        services: dict[str, dict[str, Any]] = {
            "shop": {},
            "nobody": {"service": "nobody"},
            "unready": {"service": "unready"},
            "namespace": {"namespace": "typo"},
            "port-name": {"pod_port": "https"},
            "no-wildcard": {"service": "cip", "discovery": "wildcard"},
            "cluster-ip": {"service": "cip"},
            "headless": {"service": "cip", "discovery": "headless"},
            "outside": {"service": "outside"},
            "few": {"slots": 2},
            "scarce": {"slots": 4},
            "wrong-port": {"pod_port": 9},
            "wrong-port-tcp": {"pod_port": 9, "mode": "tcp"},
            "plain": {"tls": True},
        }
        for number, (name, fields) in enumerate(services.items()):
            frontend.settings["services"][name] = frontend.service(
                "shop", 8080 + number, **{"service": "shop", **fields}
            )
        frontend.start()
        frontend.drop(
            "bad.yaml", "services:\n  bad:\n    pod_port: 80\n    extra_config: nonsense here\n"
        )
        frontend.drop("schema.yaml", "services:\n  schema:\n    pod_prt: 80\n")
        frontend.until(lambda: len(frontend.status()["withheld"]) == 2)
        frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
        yield frontend


def test_a_service_that_serves(many: Frontend) -> None:
    document = explained(many, "shop")
    assert document["summary"] == f"shop serves: 3 of 3 pods up on {many.host}:8080"
    assert (document["verdict"], document["serves"], document["cause"]) == ("ok", True, None)
    assert set(document) == {
        *("version", "service", "verdict", "state", "serves", "summary", "cause", "steps"),
        *("facts", "route"),
    }
    assert all(
        set(s) == {"step", "verdict", "said", "remedy", "details"} for s in document["steps"]
    )
    assert {s["verdict"] for s in document["steps"]} == {"ok"}
    facts = document["facts"]
    assert len(facts["endpoints"]) == len(facts["servers"]) == 3
    assert facts["binds"] == [
        {"bind": f"{many.host}:8080", "listening": "haproxy", "who": ""},
    ]
    assert facts["wanted_hash"] == facts["running_hash"] == many.running_hash()
    assert f"{many.config}:" in step(document, "declaration")["said"]
    done = many.run("explain", "shop")
    assert done.stdout.splitlines()[-1] == f"{document['state']}: {document['summary']}"
    assert "\x1b" not in done.stdout


CAUSES = {
    "bad": ("declaration", "nonsense", "the line is `nonsense here`"),
    "schema": ("declaration", "schema.yaml:3:5: pod_prt: unknown field", "did you mean pod_port?"),
    "shpo": ("declaration", "no service shpo is declared", "did you mean shop?"),
    "nobody": (
        "dns",
        "no such service, or no ready pods (nobody.default",
        "kubectl -n default get",
    ),
    "unready": ("dns", "no such service, or no ready pods", "are they Ready?"),
    "namespace": ("dns", "knows no namespace typo", "correct the service's namespace"),
    "port-name": ("dns", "has no TCP port named https", "give pod_port as a number"),
    "no-wildcard": ("dns", "wildcards are not supported by this CoreDNS", "use discovery: auto"),
    "headless": ("networks", "outside of the pod network", "clusterIP: None"),
    "outside": ("networks", "192.0.2.7", "add their network to cluster.pod_network"),
    "few": ("slots", "3 pods in 2 slots: 1 pod gets no traffic", "use slots: auto, or 10"),
    "wrong-port": ("servers", "Connection refused", "nothing listens on port 9"),
    "wrong-port-tcp": ("servers", "Connection refused", "nothing listens on port 9"),
    "cluster-ip": ("servers", "Connection refused", "is it a port of the Service"),
    "plain": ("servers", "Layer6", "whether the pods speak TLS"),
}


EXTENDED = {"schema", "unready", "namespace", "headless", "outside", "wrong-port-tcp", "plain"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.extended] if n in EXTENDED else []) for n in CAUSES],
)
def test_the_first_step_that_is_bad_is_named_with_its_remedy(many: Frontend, name: str) -> None:
    cause, said, remedy = CAUSES[name]
    document = caused(many, name, cause)
    assert said in document["cause"]["said"]
    assert remedy in document["cause"]["remedy"]
    assert document["cause"]["said"] in document["summary"]

    def is_said_in_words() -> bool:
        """Return whether the text matches; HAProxy's check messages may have changed since."""
        now = explained(many, name)
        text = many.run("explain", name, check=False)
        assert text.returncode == 1
        summary = f"{now['state']}: {now['summary']}"
        return text.stdout.splitlines()[-2:] == [summary, f"    → {now['cause']['remedy']}"]

    many.until(is_said_in_words)


def test_the_summary_says_what_clients_see(many: Frontend) -> None:
    assert caused(many, "wrong-port", "servers")["summary"].startswith("wrong-port: 503, because")
    closed = "wrong-port-tcp: connections are closed, because"
    assert caused(many, "wrong-port-tcp", "servers")["summary"].startswith(closed)
    assert explained(many, "bad")["summary"].startswith("bad: not served, because")
    few = explained(many, "few")
    assert few["serves"]
    assert few["summary"].startswith("few serves: 2 of 2 pods up on")


def test_wildcards_are_told_with_the_manifest_that_makes_the_service_headless(
    many: Frontend,
) -> None:
    found = step(explained(many, "cluster-ip"), "dns")
    assert found["verdict"] == "warn"
    assert "wildcards are not supported" in found["said"]
    assert "add `clusterIP: None`" in found["remedy"]
    assert {"kind: Service", "  name: cip", "  namespace: default", "  clusterIP: None"} <= set(
        found["details"]
    )


def test_little_room_is_a_warning(many: Frontend) -> None:
    document = explained(many, "scarce")
    assert document["verdict"] == "warn"
    assert "little room is left" in step(document, "slots")["said"]
    assert "little room is left" in document["summary"]


def test_names_from_the_command_line_reach_neither_haproxy_nor_the_terminal(many: Frontend) -> None:
    before = many.running_hash()
    for name in ("shop; disable frontend shop", "x\ny", "\x1b[31mx", "%s", "fc-stats"):
        done = many.run("explain", name, check=False)
        assert done.returncode in (1, 2), done.stdout + done.stderr
        assert "\x1b" not in done.stdout
        assert "is declared" in done.stdout or "not printable" in done.stderr
    assert many.running_hash() == before
    assert many.serves(8080, many.pods["shop"])


# Causes that remove parts of the frontend itself


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """Yield a frontend with a service `shop` of three pods that serves on port 8080."""
    with Frontend(either_binary) as made:
        made.scale("shop", 3)
        made.settings["services"]["shop"] = made.service("shop", 8080)
        made.settings["intervals"].update(hold="3s")
        made.start()
        made.until(lambda: made.serves(8080, made.pods["shop"]))
        yield made


@pytest.mark.extended
def test_servfail_a_refusal_and_silence_keep_the_servers_and_are_told_apart(
    frontend: Frontend,
) -> None:
    for fault, said, remedy in (
        (Fault.SERVFAIL, "SERVFAIL", "has not reached the API server"),
        (Fault.REFUSED, "REFUSED", "acl"),
        (Fault.SILENT, "no answer within", "see whether this host reaches it (`dig -p"),
        (Fault.TRUNCATED_NO_TCP, "unreachable", "whether this host reaches it"),
    ):
        frontend.dns.fault = fault
        document = explained(frontend, "shop")
        found = step(document, "dns")
        assert (found["verdict"], document["serves"]) == ("warn", True), found
        assert said in found["said"]
        assert remedy in found["remedy"]
        assert found["details"][0] == "HAProxy keeps its servers for a day"
        assert "named 3 pods" in found["details"][1]
        assert document["summary"].startswith("shop serves: 3 of 3 pods up")


@pytest.mark.extended
def test_an_answer_out_of_date_has_its_age(frontend: Frontend) -> None:
    frontend.dns.fault = Fault.SERVFAIL
    frontend.until(lambda: frontend.status()["services"][0]["state"] == "stale")

    def old() -> bool:
        return any(
            re.search(r"the last good answer, ([2-9]|\d\d) s ago, named 3 pods", line)
            for line in step(explained(frontend, "shop"), "dns")["details"]
        )

    frontend.until(old)


@pytest.mark.extended
def test_pods_that_died_before_dns_fell_silent_are_the_cause(frontend: Frontend) -> None:
    for pod in frontend.pods["shop"].pods:
        frontend.call(pod.stop())

    def down_for_seconds() -> bool:
        said = step(explained(frontend, "shop"), "servers")
        return len([line for line in said["details"] if re.search(r"down for [3-9] s", line)]) == 3

    frontend.until(down_for_seconds)
    frontend.dns.fault = Fault.SERVFAIL
    document = caused(frontend, "shop", "servers")
    assert step(document, "dns")["verdict"] == "warn"
    # Later the state is unknown: the pods may have moved.
    frontend.dns.fault = Fault.NONE
    frontend.stop_daemon()
    frontend.dns.fault = Fault.SERVFAIL
    assert step(caused(frontend, "shop", "dns"), "dns")["verdict"] == "bad"


@pytest.mark.extended
def test_pods_that_are_all_unready_are_a_warning_while_haproxy_holds_them(
    frontend: Frontend,
) -> None:
    publish(frontend, "shop", ports={"http": 8080})
    held = explained(frontend, "shop")
    if held["serves"]:
        assert step(held, "dns")["verdict"] == "warn"
    document = caused(frontend, "shop", "dns")
    assert document["summary"].startswith("shop: 503, because no such service, or no ready pods")
    assert frontend.ask(8080).endswith("status 503")


@pytest.mark.extended
def test_a_drained_service_names_the_way_back(frontend: Frontend) -> None:
    pod = frontend.pods["shop"].addresses[0]
    frontend.run("drain", "shop", pod)
    document = explained(frontend, "shop")
    found = step(document, "servers")
    assert (found["verdict"], document["serves"]) == ("warn", True)
    assert "2 of 3 servers up: 1 drained" in found["said"]
    assert f"`fc-frontend undrain shop {pod}`" in found["remedy"]
    frontend.run("drain", "shop")
    document = explained(frontend, "shop")
    assert document["cause"]["said"] == "no server is up: 3 drained"
    assert document["cause"]["remedy"].endswith("`fc-frontend undrain shop`")
    frontend.run("undrain", "shop")
    frontend.run("undrain", "shop", pod, check=False)
    frontend.until(lambda: explained(frontend, "shop")["verdict"] == "ok")


@pytest.mark.extended
def test_what_was_set_by_hand_in_haproxy_is_named_with_the_command_that_ends_it(
    frontend: Frontend,
) -> None:
    for number in (1, 2, 3):
        admin(frontend, f"set server shop/pod{number} state maint")
    document = explained(frontend, "shop")
    assert document["cause"]["said"] == "no server is up: 3 in maintenance"
    assert "`set server shop/pod1 state ready`" in document["cause"]["remedy"]
    for number in (1, 2, 3):
        admin(frontend, f"set server shop/pod{number} state ready")
    admin(frontend, "disable frontend shop")
    document = caused(frontend, "shop", "bind")
    assert "stopped by hand" in document["cause"]["said"]
    assert "`enable frontend shop`" in document["cause"]["remedy"]
    assert not document["serves"]
    admin(frontend, "enable frontend shop")
    frontend.until(lambda: explained(frontend, "shop")["verdict"] == "ok")


@pytest.mark.extended
def test_all_connections_in_use(frontend: Frontend) -> None:
    admin(frontend, "set maxconn frontend shop 1")
    with socket.create_connection((frontend.host, 8080)):
        document = caused(frontend, "shop", "bind")
        assert "all 1 connections" in document["cause"]["said"]


def test_a_pod_that_died_is_told_with_haproxys_words(frontend: Frontend) -> None:
    pod = frontend.pods["shop"].pods[0]
    frontend.call(_stop(pod))

    def found() -> dict[str, Any] | None:
        servers = step(explained(frontend, "shop"), "servers")
        return servers if "1 server down" in servers["said"] else None

    servers: dict[str, Any] = frontend.until(found)
    assert servers["verdict"] == "warn"
    assert "Connection refused" in servers["said"]
    assert "2 of 3 servers up" in servers["said"]
    assert pod.address[0] in servers["details"][0]


async def _stop(pod: Any) -> None:
    await pod.stop()


@pytest.mark.extended
def test_a_bind_held_by_another_program_is_named_with_the_program(frontend: Frontend) -> None:
    with socket.create_server((frontend.host, 8099)):
        frontend.drop("other.json", {"other": frontend.service("shop", 8099)})
        frontend.until(lambda: frontend.status()["withheld"])
        document = caused(frontend, "other", "declaration")
        who = f"(process {os.getpid()})"
        assert f"{frontend.host}:8099 is in use by" in document["cause"]["said"]
        assert who in document["cause"]["said"]
        assert who in document["cause"]["remedy"]
        assert document["verdict"] == "bad"


@pytest.mark.extended
def test_a_last_good_form_goes_on_and_its_fault_is_told(frontend: Frontend) -> None:
    frontend.drop("cart.json", {"cart": frontend.service("shop", 8081)})
    frontend.until(lambda: frontend.serves(8081, frontend.pods["shop"]))
    frontend.drop(
        "cart.json", {"cart": frontend.service("shop", 8081, extra_config="nonsense here")}
    )
    frontend.until(lambda: frontend.status()["withheld"])
    document = explained(frontend, "cart")
    assert (document["verdict"], document["serves"]) == ("warn", True)
    found = step(document, "declaration")
    assert "withheld (the last good version keeps running)" in found["said"]
    assert "cart.json:1:" in found["said"]
    assert "nonsense" in found["remedy"]
    frontend.drop("cart.json", "{")
    frontend.until(
        lambda: frontend.status()["withheld"] and frontend.status()["withheld"][0]["kind"] == "file"
    )
    document = explained(frontend, "cart")
    assert (document["verdict"], document["serves"]) == ("warn", True)
    assert "cart.json" in step(document, "declaration")["said"]


@pytest.mark.extended
def test_without_the_daemon_it_tells_what_it_can(frontend: Frontend) -> None:
    frontend.stop_daemon()
    document = explained(frontend, "shop")
    assert (document["verdict"], document["serves"]) == ("warn", True)
    found = step(document, "configuration")
    assert "the daemon does not answer" in found["said"]
    assert "systemctl status fc-frontend" in found["remedy"]
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    document = caused(frontend, "more", "servers")
    assert document["cause"]["said"] == "HAProxy does not run a section of this name"
    # Its own section is unchanged.
    found = step(explained(frontend, "shop"), "configuration")
    assert found["verdict"] == "warn"
    assert "fc-frontend apply" in found["remedy"]
    frontend.drop("bad.yaml", "services: {bad: {pod_port: 80, extra_config: nonsense here}}")
    document = caused(frontend, "bad", "declaration")
    assert "nonsense" in document["cause"]["remedy"]


@pytest.mark.extended
def test_without_haproxy(frontend: Frontend) -> None:
    frontend.stop_daemon(9)
    frontend.end_haproxy()
    document = explained(frontend, "shop")
    assert document["cause"]["step"] == "servers"
    assert "cannot be reached" in document["cause"]["said"]
    assert "start HAProxy" in document["cause"]["remedy"]
    assert "nothing listens" in step(document, "bind")["said"]
    with socket.create_server((frontend.host, 8080)):
        found = step(explained(frontend, "shop"), "bind")
        assert f"(process {os.getpid()})" in found["said"]


@pytest.mark.extended
def test_a_held_configuration_is_told(frontend: Frontend) -> None:
    frontend.drop("cart.json", {"cart": frontend.service("shop", 8081)})
    frontend.until(lambda: frontend.serves(8081, frontend.pods["shop"]))
    frontend.run("rollback")
    frontend.until(lambda: frontend.status()["held"])
    found = step(explained(frontend, "shop"), "configuration")
    assert found["verdict"] == "warn"
    assert "deployments are paused" in found["said"]
    assert "fc-frontend resume" in found["remedy"]


def test_no_settings_no_fragments_no_traceback(frontend: Frontend) -> None:
    frontend.drop("hand.cfg", f"listen hand\n  bind {frontend.host}:8095\n  server a 127.0.0.1:9\n")
    frontend.until(lambda: "hand" in frontend.haproxy_cfg.read_text())
    done = frontend.run("explain", "hand", check=False)
    assert done.returncode == 3
    assert "is a raw fragment" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", "explain", "x", "--config", "/nonexistent/c.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 3
    assert "cannot be read" in done.stderr


@contextlib.contextmanager
def answering(host: str, port: int, answer: bytes) -> Iterator[None]:
    """Run another server on the daemon's port, which answers every request in this way."""
    code = (
        "import socket,sys\n"
        f"s=socket.create_server(({host!r},{port}))\n"
        "print('up',flush=True)\n"
        "while True:\n"
        "  c,_=s.accept();c.recv(4096);c.sendall(bytes.fromhex(sys.argv[1]));c.close()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, answer.hex()], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff",
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b'HTTP/1.1 200 OK\r\n\r\n{"version": 1, "services": 7}',
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 3000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{",
    ],
)
@pytest.mark.extended
def test_whoever_else_listens_on_the_daemons_port_is_not_believed(
    tmp_path: Path, answer: bytes
) -> None:
    with Frontend(binary_of("2.6-debian")) as frontend:
        frontend.scale("shop", 1)
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        frontend.write()
        frontend.run("apply")
        with answering(frontend.host, 9484, answer):
            frontend.until(lambda: explained(frontend, "shop")["serves"])
            document = explained(frontend, "shop")
        assert document["verdict"] == "warn"
        assert step(document, "configuration")["said"].startswith(
            "HAProxy runs the declared configuration, but"
        )
