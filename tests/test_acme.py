"""Real ACME clients get a certificate from a real ACME server (Pebble) through real HAProxy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import until
from tests.support.certificates import Certificates
from tests.support.frontend import Frontend
from tests.test_certificates_end_to_end import PORT

pytestmark = pytest.mark.extended

_HOST = "shop.example.org"
_HTTP, _CLIENT, _ACME, _MANAGEMENT, _DNS = 8080, 8402, 14000, 15000, 8053


def program(name: str) -> str:
    """Return the path of a program; fail the test if it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: apt install pebble lego certbot")
    return found


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        made.settings["frontends"] = {
            "web": {
                "binds": f"{made.host}:{PORT}",
                "tls": {},
                "acme": {"challenges": f"{made.host}:{_CLIENT}"},
                "http": {"binds": f"{made.host}:{_HTTP}"},
            }
        }
        made.settings["services"]["shop"] = {
            "frontend": "web",
            "hosts": [_HOST],
            "pod_port": 8080,
        }
        made.scale("shop", 1)
        yield made


@pytest.fixture
def pebble(frontend: Frontend, certificates: Certificates) -> Iterator[str]:
    """Return the URL of an ACME server that resolves every name to the frontend."""
    host, directory = frontend.host, frontend.directory
    config = {
        "pebble": {
            "listenAddress": f"{host}:{_ACME}",
            "managementListenAddress": f"{host}:{_MANAGEMENT}",
            "certificate": str(certificates.path("server.crt")),
            "privateKey": str(certificates.path("server.key")),
            "httpPort": _HTTP,
            "tlsPort": PORT,
        }
    }
    (directory / "pebble.json").write_text(json.dumps(config))
    dns = f"{host}:{_DNS}"
    commands = (
        [program("pebble-challtestsrv"), "-dns01", dns, "-defaultIPv4", host, "-defaultIPv6", "",
         "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", f"{host}:8055"],
        [program("pebble"), "-config", str(directory / "pebble.json"), "-dnsserver", dns],
    )  # fmt: skip
    environ = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    with (directory / "pebble.log").open("wb") as log:
        running = [
            subprocess.Popen(command, stdout=log, stderr=log, env=environ) for command in commands
        ]
        try:
            until(lambda: _listens(host, _ACME))
            yield f"https://{host}:{_ACME}/dir"
        finally:
            for process in running:
                process.kill()
                process.wait()


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _root(frontend: Frontend) -> str:
    """Return the root certificate that Pebble created."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    url = f"https://{frontend.host}:{_MANAGEMENT}/roots/0"
    with urllib.request.urlopen(url, context=context, timeout=10) as response:
        return str(response.read().decode())


def _serial(frontend: Frontend, root: str) -> str:
    context = ssl.create_default_context(cadata=root)
    with (
        socket.create_connection((frontend.host, PORT), 10) as connection,
        context.wrap_socket(connection, server_hostname=_HOST) as tls,
    ):
        found = tls.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


Client = Callable[[Frontend, str, bool], list[str]]


def lego(frontend: Frontend, server: str, renews: bool) -> list[str]:
    """Return the command that obtains or renews the certificate."""
    command = ("renew", "--days", "36500", "--no-random-sleep") if renews else ("run",)
    return [
        program("lego"), "--server", server, "--accept-tos", "--email", "admin@example.org",
        "--domains", _HOST, "--path", str(frontend.directory / "lego"), "--http", "--http.port",
        f"{frontend.host}:{_CLIENT}", *command,
    ]  # fmt: skip


def certbot(frontend: Frontend, server: str, renews: bool) -> list[str]:
    """Return the command that obtains or renews the certificate."""
    directory = frontend.directory / "certbot"
    directories = [
        "--config-dir", str(directory), "--work-dir", f"{directory}/work", "--logs-dir",
        f"{directory}/logs", "--server", server, "--no-verify-ssl", "--non-interactive",
    ]  # fmt: skip
    if renews:
        more = ["renew", "--force-renewal", "--no-random-sleep-on-renew"]
        return [program("certbot"), *more, *directories]
    return [
        program("certbot"), "certonly", "--standalone", "--http-01-address", frontend.host,
        "--http-01-port", str(_CLIENT), "-d", _HOST, "--agree-tos", "--email",
        "admin@example.org", "--no-eff-email", *directories,
    ]  # fmt: skip


def _run(frontend: Frontend, command: list[str], ca: Path) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "LEGO_CA_CERTIFICATES": str(ca), "LEGO_CA_SERVER_NAME": "kubernetes"},
    )  # fmt: skip
    log = (frontend.directory / "pebble.log").read_text(errors="replace")
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]


@pytest.mark.parametrize(
    ("client", "place"), [(lego, "lego/certificates"), (certbot, "certbot/live/*/")]
)
def test_a_client_gets_and_renews_a_certificate(
    frontend: Frontend, pebble: str, certificates: Certificates, client: Client, place: str
) -> None:
    tls = frontend.settings["frontends"]["web"]["tls"]
    tls["certificates"] = f"{frontend.directory}/{place}"
    frontend.start()
    assert "HAProxy says" not in str(frontend.status()["problems"])
    frontend.until(lambda: "certificates" in str(frontend.status()["problems"]))
    reloads = frontend.metric("fc_frontend_reloads_total")
    ca = certificates.path("ca.crt")
    _run(frontend, client(frontend, pebble, False), ca)
    root = _root(frontend)
    first = frontend.until(lambda: _serial(frontend, root))
    _run(frontend, client(frontend, pebble, True), ca)
    frontend.until(lambda: _serial(frontend, root) != first)
    frontend.until(lambda: not frontend.status()["problems"])
    assert frontend.metric("fc_frontend_reloads_total") == reloads
