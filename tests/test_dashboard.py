"""The example of a dashboard, with Chromium in front and a stand-in for Headlamp behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By

from fc_frontend.demo.dns import KubernetesService
from fc_frontend.haproxy.runtime import servers_with_address, serving
from tests.conftest import until
from tests.support.browser import chromium_with
from tests.support.client_pods import dashboard_pod
from tests.support.frontend import Frontend
from tests.support.issued import Authority

CONTRIB = Path(__file__).parent.parent / "contrib"
EXAMPLE = yaml.safe_load((CONTRIB / "examples" / "situations" / "dashboard.yaml").read_text())
MANIFEST = list(yaml.safe_load_all((CONTRIB / "kubernetes" / "dashboard.yaml").read_text()))
SECRET = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
(HOST,) = EXAMPLE["services"]["dashboard"]["hosts"]
PORT = 8443


# The manifest


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (item for item in MANIFEST if item["kind"] == kind)
    return dict(found)


def test_nothing_in_the_manifest_has_rights() -> None:
    kinds = {item["kind"] for item in MANIFEST}
    assert kinds == {"Namespace", "ServiceAccount", "Deployment", "Service", "NetworkPolicy"}
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # The dashboard would act for every user with its own rights.
    assert not [each for each in container["args"] if "service-account-token" in each]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_example_and_the_manifest_are_of_the_same_service() -> None:
    service = EXAMPLE["services"]["dashboard"]
    published = of_kind("Service")
    assert published["metadata"] == {
        "name": service["service"],
        "namespace": service["namespace"],
    }
    assert published["spec"]["clusterIP"] == "None"
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": service["pod_port"]}]
    (rule,) = of_kind("NetworkPolicy")["spec"]["ingress"]
    assert rule["from"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]


# The example


@pytest.fixture
def frontend(either_binary: str, tmp_path: Path) -> Iterator[Frontend]:
    """Yield the example on loopback: only addresses and paths differ."""
    with Frontend(either_binary) as made, contextlib.ExitStack() as stack:
        pair = made.directory / "certificate"
        pair.mkdir()
        issued = Authority(tmp_path).issue(HOST)
        (pair / "fullchain.pem").write_bytes(issued.chain)
        (pair / "privkey.pem").write_bytes(issued.key)
        (made.directory / "users").write_text(f"alice:{SECRET}\nmallory:{SECRET}\n")
        (made.directory / "groups").write_text("login: alice\nother: mallory\n")
        web = EXAMPLE["frontends"]["web"]
        made.settings["frontends"] = {
            "web": {
                **web,
                "binds": f"{made.host}:{PORT}",
                "tls": {"certificates": f"{pair}/"},
                "http": {**web["http"], "binds": f"{made.host}:8080"},
            }
        }
        dashboard = EXAMPLE["services"]["dashboard"]
        auth = {
            **dashboard["basic_auth"],
            "users": str(made.directory / "users"),
            "groups": str(made.directory / "groups"),
        }
        made.settings["services"] = {"dashboard": {**dashboard, "basic_auth": auth}}
        address = f"127.{made.octet}.120.1"
        stack.enter_context(dashboard_pod(address, dashboard["pod_port"]))

        async def publish() -> None:
            made.dns.set_service(
                KubernetesService(
                    dashboard["service"],
                    namespace=dashboard["namespace"],
                    ports={"http": dashboard["pod_port"]},
                    endpoints=(address,),
                )
            )

        made.call(publish())
        made.start()
        path = made.settings["haproxy"]["runtime_socket"]
        made.until(lambda: "dashboard" in serving(servers_with_address(path)))
        yield made


@pytest.fixture
def chromium(frontend: Frontend, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Yield a browser that resolves the host of the example to the frontend."""
    with chromium_with(
        tmp_path / "profile",
        f"--host-resolver-rules=MAP {HOST} {frontend.host}",
        f"--proxy-bypass-list={HOST}",
        # The certificate is from an authority unknown to Chromium; the name is checked below.
        "--ignore-certificate-errors",
    ) as browser:
        yield browser


def fetched(browser: webdriver.Chrome, headers: dict[str, str]) -> dict[str, Any]:
    """Return what the pod received of a request sent by a script of the page."""
    found: dict[str, Any] = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "fetch(location.origin + '/headers', {headers: arguments[0]})"
        ".then(r => r.json()).then(done, e => done({error: String(e)}))",
        headers,
    )
    return found


def check_headers(got: dict[str, Any], frontend: Frontend) -> None:
    """Check that the pod got no password and no forwarding header that the client wrote."""
    names = [name for name, _ in got["headers"]]
    assert "authorization" not in names
    forwarded = {name: value for name, value in got["headers"] if "forwarded" in name}
    assert forwarded == {"x-forwarded-proto": "https", "x-forwarded-for": "127.0.0.1"}
    assert names.count("x-forwarded-for") == 1


@pytest.mark.extended
def test_members_of_the_group_see_the_dashboard_and_its_websocket(
    frontend: Frontend, chromium: webdriver.Chrome
) -> None:
    place = f"{HOST}:{PORT}"
    for login in ("", "mallory:secret@", "alice:wrong@"):
        chromium.get(f"https://{login}{place}/")
        assert chromium.title != "Dashboard"
    chromium.get(f"https://alice:secret@{place}/")
    assert chromium.title == "Dashboard"
    check_headers(json.loads(chromium.find_element(By.ID, "page").text), frontend)
    shown = until(lambda: chromium.find_element(By.ID, "socket").text)
    got = json.loads(shown)
    assert got["path"] == "/wsMultiplexer"
    check_headers(got, frontend)
    # The dashboard's own login is a cookie, which passes.
    assert ["cookie", "headlamp-auth-main.0=token"] in got["headers"]
    lies = {
        "X-Forwarded-User": "admin",
        "X-Forwarded-Group": "system:masters",
        "X-Forwarded-Email": "admin@example.org",
        "X-Forwarded-For": "10.0.0.1",
        "X-Forwarded-Proto": "http",
        "Forwarded": "for=10.0.0.1",
    }
    check_headers(fetched(chromium, lies), frontend)


@pytest.mark.extended
def test_a_dashboard_that_sends_a_token_in_place_of_the_password_gets_401(
    frontend: Frontend, tmp_path: Path
) -> None:
    """The comment in the example describes this for the Kubernetes dashboard."""

    def status(*arguments: str) -> str:
        curl = [
            *("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"),
            *("--resolve", f"{HOST}:{PORT}:{frontend.host}"),
            *("--cacert", str(tmp_path / "root.crt"), f"https://{HOST}:{PORT}/"),
        ]
        done = subprocess.run([*curl, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    assert status("--user", "alice:secret") == "200"
    assert status("--header", "Authorization: Bearer token") == "401"
    assert status("--user", "mallory:secret") == "401"
    assert status("--user", "alice:secret", "--header", "Host: other.example.org") == "421"


@pytest.mark.extended
def test_plain_http_is_redirected(frontend: Frontend) -> None:
    connection = http.client.HTTPConnection(frontend.host, 8080, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/c/main", headers={"Host": HOST})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 308
        assert str(answer.headers["Location"]).startswith(f"https://{HOST}")
