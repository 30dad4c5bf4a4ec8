"""Rules, dashboard and checks use only metrics that a running daemon exports.

Prometheus' own tools check the rules, and a real Prometheus scrapes a real daemon and answers every
query of the dashboard.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shlex
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fc_frontend.cli import COMMANDS
from tests.conftest import binary_of
from tests.support.api_cluster import READY, ApiFrontend, token_until
from tests.support.certificates import Certificates
from tests.support.frontend import Frontend, patiently

CONTRIB = Path(__file__).parent.parent / "contrib"
PROMETHEUS = CONTRIB / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "fc-frontend.rules.yml").read_text())
DASHBOARD = json.loads((CONTRIB / "grafana" / "fc-frontend.json").read_text())

SCRAPED = {"job", "instance"}
_NAME = re.compile(r"\b(?:fc_frontend|process|haproxy)_\w+")
_MATCHERS = re.compile(r"\b((?:fc_frontend|process|haproxy)_\w+)\{([^}]*)\}")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def program(name: str) -> str:
    """Return the path of one of Prometheus' programs; fail the test if it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: apt install prometheus")
    return found


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool"), *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        cwd=PROMETHEUS,
    )


@pytest.fixture(scope="module")
def frontend(certificates: Certificates) -> Iterator[Frontend]:
    """Yield a daemon with pods from cluster DNS and from the API, and HAProxy's own metrics."""
    with ApiFrontend(binary_of("2.6-debian"), certificates) as made:
        made.write_kubeconfig(token_until(2_000_000_000))
        pods = made.scale("shop", 2)
        made.kube_service("web")
        made.ready_endpoints("web", pods.addresses)
        made.settings["services"]["shop"] = made.service("shop", 8080, discovery="headless")
        made.settings["services"]["web"] = made.service("web", 8081)
        pair = {
            "certificate": str(certificates.path("server.crt")),
            "key": str(certificates.path("server.key")),
        }
        made.settings["frontends"] = {
            "tls": {"binds": f"{made.host}:8443", "tls": {"certificates": [pair]}}
        }
        pool = {"addresses": f"127.{made.octet}.201.1", "default": True}
        made.settings["load_balancer"] = {"pools": {"public": pool}}
        made.balanced_service("shop-outside")
        outside = dict.fromkeys(pods.addresses, READY)
        made.endpoints("shop-outside", outside, port_names=("tcp-80",))
        made.start()
        made.until(lambda: made.serves(8080, pods))
        made.until(lambda: made.metric("fc_frontend_api_watching") == 1)
        made.until(lambda: made.metric("fc_frontend_certificate_expiry_timestamp_seconds"))
        made.until(lambda: made.metric("fc_frontend_load_balancer_status_writes_total") == 1)
        yield made


@pytest.fixture(scope="module")
def exported(frontend: Frontend) -> dict[str, set[str]]:
    """Return the names of all samples of a running daemon, with their labels."""
    names: dict[str, set[str]] = {}
    exposed = frontend.get("/metrics")[1] + frontend.get("/metrics", 8000)[1]
    for family in text_string_to_metric_families(exposed.decode()):
        # The values of a label change over time: only the labels of the family matter.
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    names["fc_frontend_reloads_total"] |= {"reason", "result"}
    return names


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def dashboard_queries() -> list[str]:
    return [
        *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
        *(annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]),
    ]


def filled(query: str) -> str:
    """Return a dashboard query as Grafana sends it with all values selected."""
    return re.sub(r"\$(job|instance|service)\b", ".*", query).replace("$__rate_interval", "1m")


@pytest.mark.extended
def test_prometheus_takes_rules_and_scrape_jobs() -> None:
    for command in ("check rules fc-frontend.rules.yml", "check config prometheus.yml"):
        done = promtool(*command.split())
        assert done.returncode == 0, done.stdout


@pytest.mark.extended
def test_the_rules_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", "fc-frontend.test.yml")
    assert done.returncode == 0, done.stdout


def test_the_guide_to_alerts_has_every_alert_and_no_other() -> None:
    guide = (PROMETHEUS / "alerts.rst").read_text()
    alerts = {
        rule["alert"] for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert set(re.findall(r"FcFrontend\w+", guide)) == alerts


def test_the_events_in_the_operations_guide_are_logged() -> None:
    guide = (PROMETHEUS.parent / "operations.rst").read_text()
    table = guide.partition("The log\n-------")[2]
    named = re.findall(r"^``([a-z-]+)``", table, re.MULTILINE)
    assert len(named) >= 8
    daemon = Path(__file__).parent.parent / "fc_frontend" / "daemon"
    source = "".join(path.read_text() for path in daemon.glob("*.py"))
    assert [name for name in named if f'"{name}"' not in source] == []


def test_every_command_in_the_guides_exists() -> None:
    names = (
        "operations.rst", "sites.rst", "tls.rst", "trust.rst", "limits.rst", "load-balancers.rst",
        "access.rst", "import.rst", "prometheus/alerts.rst",
    )  # fmt: skip
    guide = "".join((PROMETHEUS.parent / name).read_text() for name in names)
    named = set(re.findall(r"``fc-frontend ([a-z]+)", guide))
    assert named
    assert named <= set(COMMANDS)


def test_the_operations_guide_reads_in_ten_minutes() -> None:
    assert len((PROMETHEUS.parent / "operations.rst").read_text().split()) <= 2500


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tests = yaml.safe_load((PROMETHEUS / "fc-frontend.test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert fired == set(alerts)
    for name, alert in alerts.items():
        assert alert["labels"]["severity"] in ("critical", "warning"), name
        assert set(alert["annotations"]) == {"summary", "description"}, name


@pytest.mark.extended
@pytest.mark.parametrize(
    ("before", "after"),
    [('state="empty"} == 1', 'state="empty"} == 2'), ("> 0.1", "> 0.3"), ("for: 2m", "for: 9m")],
)
def test_a_rule_that_is_changed_fails_its_test(tmp_path: Path, before: str, after: str) -> None:
    text = (PROMETHEUS / "fc-frontend.rules.yml").read_text()
    assert before in text
    (tmp_path / "fc-frontend.rules.yml").write_text(text.replace(before, after))
    shutil.copy(PROMETHEUS / "fc-frontend.test.yml", tmp_path)
    assert promtool("test", "rules", str(tmp_path / "fc-frontend.test.yml")).returncode == 1


@pytest.mark.extended
def test_the_metrics_follow_prometheus_conventions(frontend: Frontend) -> None:
    done = promtool("check", "metrics", stdin=frontend.get("/metrics")[1].decode())
    assert done.returncode == 0, done.stdout


def test_the_scrape_jobs_are_the_default_listeners() -> None:
    from fc_frontend.config.settings import SettingsDeclaration

    defaults = SettingsDeclaration().model()
    document = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in document["scrape_configs"]
    }
    assert targets == {
        "fc-frontend": [str(defaults.listen)],
        "haproxy": [str(defaults.haproxy.stats)],
    }


@pytest.mark.parametrize(
    "query",
    [*(rule["expr"] for rule in rules()), *map(filled, dashboard_queries())],
)
def test_names_and_labels_are_those_of_the_daemon(
    query: str, exported: dict[str, set[str]]
) -> None:
    names = [name for name in _NAME.findall(query) if f"{name}:" not in query]
    names = [name for name in names if name != "fc_frontend"]
    unknown = [name for name in names if name not in exported]
    assert not unknown
    for name, matchers in _MATCHERS.findall(query):
        assert set(_LABEL.findall(matchers)) <= exported[name] | SCRAPED
    labels = set().union(*(exported[name] for name in names)) | SCRAPED
    if names:
        for grouping in _GROUPING.findall(query):
            assert {label.strip() for label in grouping.split(",")} <= labels


@pytest.fixture(scope="module")
def prometheus(frontend: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a Prometheus with the rules, which scraped at least twice."""
    rules_file = PROMETHEUS / "fc-frontend.rules.yml"
    with scraping(frontend, rules_file, tmp_path_factory.mktemp("prometheus")) as address:
        yield address


@contextlib.contextmanager
def scraping(frontend: Frontend, rules_file: Path, directory: Path) -> Iterator[str]:
    """Run a Prometheus that scrapes daemon and HAProxy each second; yield its address."""
    document = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    document["rule_files"] = [str(rules_file)]
    document["global"] = {"evaluation_interval": "1s"}
    for job, port in zip(document["scrape_configs"], (9484, 8000), strict=True):
        job["static_configs"] = [{"targets": [f"{frontend.host}:{port}"]}]
        job["scrape_interval"] = job["scrape_timeout"] = "1s"
    (directory / "prometheus.yml").write_text(yaml.safe_dump(document))
    address = f"{frontend.host}:9090"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={address}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        patiently(
            lambda: (
                float(first(asked(address, 'count_over_time(up{job="fc-frontend"}[1m])'), "0")) >= 3
            ),
            60,
        )
        yield address
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def asked(address: str, query: str) -> list[dict[str, Any]]:
    """Return the present series of a query."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        document = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    assert document["status"] == "success", document
    result: list[dict[str, Any]] = document["data"]["result"]
    return result


def first(series: list[dict[str, Any]], default: str) -> str:
    return str(series[0]["value"][1]) if series else default


@pytest.mark.extended
def test_every_panel_shows_something(prometheus: str) -> None:
    empty = [
        panel["title"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
        if not asked(prometheus, filled(target["expr"]))
    ]
    assert not empty


@pytest.mark.extended
def test_nothing_fires_on_a_good_frontend(prometheus: str) -> None:
    firing = {
        series["metric"]["alertname"]
        for series in asked(prometheus, 'ALERTS{alertstate=~"firing|pending"}')
    }
    assert not firing
    # Samples are recorded once a rule has seen two scrapes.
    assert patiently(lambda: asked(prometheus, "fc_frontend:dns_query_duration_seconds:p99_5m"))
    assert first(asked(prometheus, 'up{job="haproxy"}'), "0") == "1"


@pytest.mark.extended
def test_the_dashboards_variables_find_the_service(prometheus: str) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert match
        values = {series["metric"].get(match[2]) for series in asked(prometheus, filled(match[1]))}
        assert values
        assert None not in values


def firing(address: str) -> dict[str, set[str]]:
    """Return the alerts that fire now, each with its subject."""
    found: dict[str, set[str]] = {}
    for series in asked(address, 'ALERTS{alertstate="firing"}'):
        metric = series["metric"]
        about = metric.get("service") or metric.get("proxy") or metric.get("kind") or ""
        found.setdefault(metric["alertname"], set()).add(about)
    return found


@pytest.mark.extended
def test_what_users_feel_fires_on_a_broken_frontend(tmp_path: Path) -> None:
    """The times of the rules are shortened, so that the test does not wait for an hour."""
    text = (PROMETHEUS / "fc-frontend.rules.yml").read_text()
    text = re.sub(r"for: \d+[mh]", "for: 1s", text).replace("[5m]", "[10s]")
    (tmp_path / "rules.yml").write_text(text)
    with Frontend(binary_of("2.8-wheel")) as frontend:
        for number, name in enumerate(("shop", "mail")):
            frontend.scale(name, 2)
            frontend.settings["services"][name] = frontend.service(name, 8080 + number)
        frontend.settings["services"]["shop"]["mode"] = "http"
        frontend.start()
        for port, name in ((8080, "shop"), (8081, "mail")):
            frontend.until(lambda: frontend.serves(port, frontend.pods[name]))  # noqa: B023
        with scraping(frontend, tmp_path / "rules.yml", tmp_path) as address:
            frontend.drop("bad.yaml", "services: {bad: {pod_prt: 1}}")
            patiently(lambda: firing(address).get("FcFrontendChangeWithheld") == {"service"})
            # An address without a listener.
            dead = f"127.{frontend.octet}.15.250"
            frontend.publish("mail", (*frontend.pods["mail"].addresses, dead))
            patiently(lambda: "mail" in firing(address).get("FcFrontendServiceDegraded", ()))
            frontend.call(frontend.pods["shop"].stop())
            patiently(lambda: "shop" in firing(address).get("FcFrontendServiceDown", ()))

            def fails() -> bool:
                frontend.get("/", 8080)
                return "shop" in firing(address).get("FcFrontendRequestsFail", ())

            patiently(fails)
            frontend.stop_daemon(9)
            frontend.settings["haproxy"]["supervise"] = False
            frontend.write()
            frontend.start(wait=False)
            frontend.end_haproxy()
            patiently(lambda: "FcFrontendHaproxyDown" in firing(address))
            patiently(lambda: "FcFrontendServiceDown" not in firing(address))


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def nagios_commands() -> list[str]:
    sensu = json.loads((CONTRIB / "nagios" / "sensu-check.json").read_text())
    nagios = (CONTRIB / "nagios" / "fc-frontend.cfg").read_text()
    return [
        sensu["checks"]["fc-frontend-config"]["command"],
        *re.findall(r"^\s*command_line\s+(.*)$", nagios, re.MULTILINE),
    ]


def test_the_monitoring_checks_commands() -> None:
    def answers(made: Frontend, code: int, word: str) -> None:
        for command in nagios_commands():
            name, *arguments = shlex.split(command)
            assert name == "/opt/fc-frontend/bin/fc-frontend"
            done = made.run(*arguments, check=False)
            assert done.returncode == code, command + done.stdout + done.stderr
            assert done.stdout.startswith(f"FC-FRONTEND {word} - ")

    with Frontend(binary_of("2.6-debian")) as made:
        made.start()
        answers(made, 0, "OK")
        made.drop("bad.json", {"bad": {"pod_prt": 1}})
        made.until(lambda: made.status()["withheld"])
        answers(made, 2, "CRITICAL")


def test_the_readiness_check_asks_what_is_served(frontend: Frontend) -> None:
    sensu = json.loads((CONTRIB / "nagios" / "sensu-check.json").read_text())
    command = shlex.split(sensu["checks"]["fc-frontend-ready"]["command"])
    assert frontend.get(command[command.index("-u") + 1])[0] == 200
