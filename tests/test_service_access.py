"""`allow` and `session_affinity` of services: which clients are served, and by which pod."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fc_frontend.pipeline import prepare_offline
from tests.support.api_cluster import ApiFrontend
from tests.support.certificates import Certificates

PORT = 8080


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[ApiFrontend]:
    with ApiFrontend(either_binary, certificates) as found:
        yield found


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"allow": ["10.0.0.1/8"]}, "allow.0"),
        ({"allow": "everybody"}, "allow.0"),
        ({"session_affinity": "2d"}, "session_affinity"),
        (
            {"session_affinity": "1h", "mode": "http", "rate_limit": {"requests": 1}},
            "session_affinity",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused(
    tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    settings = tmp_path / "config.yaml"
    shop = {"pod_port": 80, **fields}
    settings.write_text(
        yaml.safe_dump({"cluster": {"nameservers": ["10.0.0.254"]}, "services": {"shop": shop}})
    )
    (withheld,) = prepare_offline(str(settings)).withheld
    (problem,) = withheld.problems
    assert problem.field == field
    assert problem.remedy
    assert problem.line is not None


def test_a_client_stays_with_the_address_of_its_pod_whatever_slot_that_has(
    frontend: ApiFrontend,
) -> None:
    pods = frontend.scale("shop", 4, publish=False)
    names = {pod.address[0]: pod.name for pod in pods.pods}
    frontend.kube_service("shop", cluster_ip=frontend.cluster_ip("shop")[0])
    *first, newcomer = pods.addresses
    frontend.ready_endpoints("shop", first)
    service = frontend.service("shop", PORT, session_affinity="1h", mode="tcp")
    frontend.settings["services"]["shop"] = service
    frontend.start()
    frontend.until(lambda: frontend.ask(PORT) in names.values())
    (mine,) = frontend.answers(PORT)
    (address,) = (each for each, name in names.items() if name == mine)

    def slot_of(wanted: str) -> str | None:
        slots = frontend.slots("shop").items()
        return next((slot for slot, (at, _) in slots if at == wanted), None)

    before = slot_of(address)
    others = [each for each in first if each != address]
    frontend.ready_endpoints("shop", others)
    frontend.until(lambda: slot_of(address) is None)
    frontend.ready_endpoints("shop", [*others, newcomer])
    frontend.until(lambda: slot_of(newcomer) == before)
    frontend.ready_endpoints("shop", [*others, newcomer, address])
    frontend.until(lambda: slot_of(address) is not None)
    frontend.until(lambda: set(frontend.answers(PORT)) == {mine})
    assert slot_of(address) != before


@pytest.mark.parametrize("mode", ["tcp", "http"])
def test_other_clients_are_rejected(frontend: ApiFrontend, mode: str) -> None:
    pods = frontend.scale("shop", 1)
    allowed, other = f"127.{frontend.octet}.0.0/16", "127.0.0.1"
    service = frontend.service("shop", PORT, mode=mode, allow=allowed, pod_port=8080)
    frontend.settings["services"]["shop"] = service
    del frontend.settings["cluster"]["api"]
    frontend.start()

    def answer(source: str) -> bytes:
        with socket.create_connection((frontend.host, PORT), 10, (source, 0)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(4096)

    inside = f"127.{frontend.octet}.1.1"
    frontend.until(lambda: pods.pods[0].name.encode() in answer(inside))
    refused = b""
    with contextlib.suppress(ConnectionResetError):
        refused = answer(other)
    assert refused.startswith(b"HTTP/1.1 403 " if mode == "http" else b"")
    assert (refused == b"") == (mode == "tcp")
