"""Messages for operators are correct, name the cause first and do not repeat it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fc_frontend.cli.diff import print_changes
from fc_frontend.cli.explain import print_explanation
from fc_frontend.errors import Cause, Problem
from fc_frontend.explain.differences import Difference, Effect
from fc_frontend.explain.facts import (
    Daemon,
    Facts,
    Held,
    NameserverAnswer,
    Proxy,
    Server,
    Worker,
)
from fc_frontend.explain.overview import Seen, StatusLevel, overview
from fc_frontend.explain.steps import explain
from fc_frontend.haproxy.named_files import file_problems
from fc_frontend.model.api_state import EXPIRY_WARNING, ApiState
from fc_frontend.model.service_state import HaproxyState, Health
from fc_frontend.plan.model import Haproxy
from fc_frontend.render.config import Config
from tests.test_cli import GOOD, config, fc
from tests.test_explain_causes import SPEC
from tests.test_page import made, service

NOW = 1e9
DAEMON = Daemon(
    version="1",
    in_sync=True,
    wanted_hash=None,
    running_hash=None,
    problems=(),
    withheld=(),
    last_reload=None,
    haproxy=HaproxyState.RUNNING,
    services=(),
)


@pytest.mark.parametrize(
    ("seconds", "level", "said"),
    [
        (EXPIRY_WARNING + 1, None, ""),
        (EXPIRY_WARNING - 1, StatusLevel.WARNING, "expires in 14 days"),
        (86400, StatusLevel.WARNING, "expires in 1 day"),
        (0, StatusLevel.CRITICAL, "has expired"),
    ],
)
def test_status_warns_of_api_credentials_that_expire(
    seconds: float, level: StatusLevel | None, said: str
) -> None:
    api = ApiState(is_synced=True, is_current=True, expires=NOW + seconds)
    found = overview(Seen(daemon=replace(DAEMON, api=api), now=NOW)).findings
    assert [finding.level for finding in found] == ([level] if level is not None else [])
    assert all(finding.message.endswith(said) for finding in found)


def test_silent_cluster_dns_comes_before_the_services_that_it_hides() -> None:
    stale = replace(service("shop"), is_current=False, error="timed out")
    seen = Seen(
        daemon=DAEMON,
        services=(stale,),
        nameservers=(NameserverAnswer(name="10.0.0.254:53", said="no answer within 1 s"),),
    )
    subjects = [finding.subject for finding in overview(seen).findings]
    assert subjects == ["cluster DNS 10.0.0.254:53", "shop"]


def test_a_withheld_change_of_the_settings_names_the_service_that_it_hurts() -> None:
    problem = Problem("would lose all its servers: SERVFAIL", service="shop")
    held = Held(kind="settings", name="", effect="not deployed", problems=(problem,), is_kept=True)
    (finding,) = overview(Seen(withheld=(held,))).findings
    assert finding.message.endswith("service shop: would lose all its servers: SERVFAIL")


def test_explain_does_not_call_a_service_ok_whose_haproxy_it_may_not_ask(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hidden = Problem("the socket: Permission denied", "run as root", cause=Cause.FORBIDDEN)
    print_explanation(explain(Facts(name="shop", spec=SPEC, worker_problem=hidden)), "ok")
    said = capsys.readouterr().out
    assert "HAProxy does not answer" not in said
    # Neither the state "ok" nor a failed step: the state is unknown.
    assert "\nunknown: shop: the socket: Permission denied\n" in said


def test_diff_gives_no_reason_that_repeats_the_change(capsys: pytest.CaptureFixture[str]) -> None:
    def changed(what: str, name: str, how: str, because: str) -> Difference:
        return Difference(what=what, name=name, how=how, effect=Effect.RELOAD, because=because)

    print_changes(
        (
            changed("service", "shop", "added", "service-added shop"),
            changed("settings", "global", "changed", "settings global"),
            changed("fragment", "hand", "removed", "fragment hand removed"),
            changed("service", "cart", "changed", "slots cart 10→20"),
        )
    )
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "+ service shop: reload",
        "~ settings global: reload",
        "- fragment hand: reload",
        "~ service cart: reload, because slots cart 10→20",
    ]


def test_without_a_settings_file_nothing_is_said_of_default_networks(tmp_path: Path) -> None:
    done = fc("check", "-c", str(tmp_path / "config.yaml"))
    assert done.returncode == 1
    assert "cluster.service_network" not in done.stderr
    assert done.stderr.count("error: ") == 1


def test_yaml_that_is_badly_indented_is_said_with_the_fix(tmp_path: Path) -> None:
    done = fc("check", "-c", config(tmp_path, GOOD + "   odd: 1\n"))
    assert "invalid YAML: " in done.stderr
    assert "check the indentation" in done.stderr


def test_who_may_not_read_the_server_state_file_can_check_all_the_same(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "server-state").write_text("1\n")
    hidden.chmod(0)
    try:
        text = f"global\n  server-state-file {hidden}/server-state\n"
        assert file_problems(Config(text=text, hash=""), Haproxy()) == ()
    finally:
        hidden.chmod(0o700)


def test_the_page_shows_what_is_not_deployed_before_what_keeps_running() -> None:
    def held(name: str, is_kept: bool) -> Held:
        problem = Problem("wrong")
        return Held(kind="service", name=name, effect="", problems=(problem,), is_kept=is_kept)

    page = made(withheld=(held("kept", True), held("absent", False)))
    assert [each.name for each in page.withheld] == ["absent", "kept"]


@pytest.mark.parametrize(
    ("address", "port", "shown"),
    [
        ("10.1.0.1", 80, "a 10.1.0.1:80 up"),
        ("10.1.0.1", None, "a 10.1.0.1 up"),
        ("2001:db8::1", 80, "a [2001:db8::1]:80 up"),
        ("2001:db8::1", None, "a 2001:db8::1 up"),
    ],
)
def test_a_server_without_a_port_has_no_colon(address: str, port: int | None, shown: str) -> None:
    server = Server(name="a", address=address, port=port, health=Health.UP)
    facts = Facts(name="shop", worker=Worker(hash=None), proxy=Proxy(servers=(server,)))
    (step,) = [each for each in explain(facts).steps if each.name == "servers"]
    assert step.details == (shown,)
