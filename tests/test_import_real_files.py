"""Files modelled on real ones: HAProxy listens, balances and resolves as before the import.

Each file of tests/imported runs in HAProxy, and so does the configuration that fc-frontend renders
from its import.
"""

from __future__ import annotations

import csv
import io
import random
import socket
from pathlib import Path

import psutil
import pytest

from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.socket import ask
from tests.conftest import RealHaproxy, binary_of, loopback, until
from tests.support.imports import command, on_path, text_for

FILES = sorted((Path(__file__).parent / "imported").glob("*.cfg"))
EXPECTED = {
    "01": (["ingress"], []),
    "02": (["api", "web", "admin", "metrics"], []),
    "03": (["grafana", "api", "site"], []),
    "04": (["postgres", "redis"], []),
    "05": (["ingress-https"], ["ldap"]),
    "06": (["status"], ["hosts"]),
    "07": (["public"], ["people", "tickets", "wiki"]),
    "08": (["shop", "chat"], []),
    "09": (["frontdoor", "internal"], []),
    "10": (["mail"], ["legacy"]),
}
"""The services and fragments of each file."""


def ports() -> dict[str, str]:
    """Return four ports that are free on every address."""
    found: dict[str, str] = {}
    while len(found) < 4:
        port = random.randint(20000, 32000)
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::", port))
            except OSError:
                continue
        if str(port) not in found.values():
            found[f"@PORT{len(found) + 1}@"] = str(port)
    return found


def facts(real: RealHaproxy) -> dict[str, object]:
    """Return where HAProxy listens, how each proxy balances, and its servers."""
    state = ask(real.runtime_socket, "show servers state", 10).splitlines()[2:]
    fields = [line.split() for line in state if line.strip()]
    fields = [row for row in fields if not row[1].startswith("fc-")]
    # The port of a server named by SRV records is meaningless before there is a record.
    servers = sorted(
        (row[17], row[4], row[18] if row[19] == "-" else "", row[19]) for row in fields
    )
    proxies = {row[1] for row in fields}
    rows = csv.DictReader(io.StringIO(ask(real.runtime_socket, "show stat", 10).lstrip("# ")))
    algorithms = sorted(
        (row["mode"], row["algo"])
        for row in rows
        if row["svname"] == "BACKEND" and row["pxname"] in proxies
    )
    assert real.pid is not None
    listening = {
        tuple(connection.laddr)
        for process in psutil.Process(real.pid).children()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    return {"algorithms": algorithms, "servers": servers, "listening": listening}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_haproxy_does_the_same_from_the_import(
    path: Path, haproxy: RealHaproxy, tmp_path: Path
) -> None:
    host = loopback()
    text = path.read_text().replace("@HOST@", host)
    for mark, port in ports().items():
        text = text.replace(mark, port)
    # Nothing answers at this address: servers keep their names and have no addresses.
    text = text.replace("@DNSPORT@", "9").replace("@DNS@", f"{host}:9")

    def observed(configuration: str) -> dict[str, object]:
        haproxy.start(configuration)
        until(lambda: runtime.servers(haproxy.runtime_socket))
        seen = facts(haproxy)
        haproxy.end()
        return seen

    control = f"global\n    stats socket {haproxy.runtime_socket} mode 600 level admin\n"
    before = observed(control + text)
    original = tmp_path / "haproxy.cfg"
    original.write_text(control + text)
    new = tmp_path / "new"
    binary = on_path(tmp_path, haproxy.binary)
    done = command("import", str(original), "--output", str(new), binary=binary)
    services, fragments = EXPECTED[path.stem[:2]]
    assert done.returncode == 0, done.stderr
    assert f": {', '.join(services)}\n" in done.stderr
    assert sorted(each.stem for each in (new / "services.d").glob("*.cfg")) == fragments
    after = observed(text_for(new, haproxy.directory))
    assert isinstance(after["listening"], set)
    # fc-frontend's statistics page, which the file may lack.
    after["listening"] -= {("127.0.0.1", 8000)}
    assert after == before


def test_there_are_ten_files() -> None:
    assert len(FILES) == len(EXPECTED) == 10


def test_each_section_of_a_fragment_has_its_own_reason(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    text = next(path for path in FILES if path.stem.startswith("03")).read_text()
    text = text.replace("@HOST@:@PORT1@", "127.0.0.1:8080").replace("path_beg", "path_sub")
    path.write_text(text)
    binary = binary_of("2.6-debian")
    done = command("import", str(path), binary=on_path(tmp_path, binary))
    assert "frontend main: line 10: it chooses by path_sub" in done.stderr
    assert "backend api: it is a backend of frontend main" in done.stderr
    assert "resolvers k8s: it is used by backend api, backend site" in done.stderr


def test_programs_and_lua_are_left_out_alike(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("global\n  lua-load /x.lua\nprogram helper\n  command /bin/true\n")
    done = command("import", str(path), binary=on_path(tmp_path, binary_of("2.6-debian")))
    assert done.returncode == 1
    assert done.stderr.count("an import carries over nothing that runs code") == 2
