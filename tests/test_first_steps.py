"""Mistakes of new users: what each command reports, and the remedy it suggests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.config.templates import templates
from fc_frontend.demo.dns import Fault
from fc_frontend.haproxy.judge import verdict_problems
from fc_frontend.haproxy.validate import CheckVerdict, Message
from fc_frontend.plan.model import Plan, Settings
from fc_frontend.render.render import render
from tests.conftest import binary_of
from tests.support.frontend import Frontend
from tests.test_cli import GOOD, config, fc
from tests.test_status import publish

PROGRAM = (sys.executable, "-m", "fc_frontend")
ROOT = Path(__file__).parent.parent
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
"""Root without capabilities may read only what the file mode permits."""


@pytest.fixture
def frontend() -> Iterator[Frontend]:
    with Frontend(binary_of("2.6-debian")) as made:
        made.settings["services"]["shop"] = made.service("shop", 8080)
        made.settings["intervals"].update(hold="1s")
        yield made


def test_nothing_declared_yet(tmp_path: Path) -> None:
    path = config(tmp_path, GOOD.replace("stats: null", "").partition("services:")[0])
    done = fc("check", "-c", path)
    assert done.returncode == 0
    assert "good: 0 services, 0 slots" in done.stdout
    assert f"declare one in {path}, or in a file {tmp_path}/services.d/NAME.yaml" in done.stdout


def test_a_service_on_a_cluster_ip_has_no_slots_to_warn_of(tmp_path: Path) -> None:
    done = fc("check", "-c", config(tmp_path, GOOD.replace("pod_port", "service_port")))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_diff_gives_one_reason_for_all(frontend: Frontend) -> None:
    frontend.write()
    done = frontend.run("diff", check=False)
    assert done.returncode == 1
    assert "+ service shop: once HAProxy is started\n" in done.stdout
    assert "because" not in done.stdout


def test_no_answer_says_nothing_about_pods(frontend: Frontend) -> None:
    frontend.write()
    frontend.dns.fault = Fault.SERVFAIL
    row = frontend.run("resolve", check=False).stdout.splitlines()[1]
    assert row.split()[:3] == ["shop", "headless", "?"]
    applied = frontend.run("apply")
    assert "see `fc-frontend explain shop`" in applied.stderr
    assert "last good answer" not in applied.stderr
    (service,) = json.loads(frontend.run("status", "--json", check=False).stdout)["services"]
    assert service["pods"] is None


def test_what_is_not_in_force_is_told_beside_what_is(frontend: Frontend) -> None:
    """A user who just corrected the port must not be sent to look for it in the previous form."""
    frontend.scale("shop", 2)
    frontend.drop("far.json", {"far": frontend.service("shop", 8081, pod_port=8099)})
    frontend.start()
    frontend.until(lambda: "no server is up" in frontend.run("explain", "far", check=False).stdout)
    frontend.drop("far.json", {"far": frontend.service("shop", 8081, mode="htpp")})
    frontend.until(lambda: frontend.status()["withheld"])
    document = json.loads(frontend.run("explain", "--json", "far", check=False).stdout)
    assert document["cause"]["step"] == "servers"
    assert document["summary"].endswith("the latest change is withheld: see the step declaration")


def test_the_step_that_is_pointed_to_is_the_right_one(frontend: Frontend) -> None:
    frontend.start()
    publish(frontend, "shop", ("192.0.2.1",))
    frontend.until(lambda: frontend.status()["services"][0]["rejected"])

    def remedy() -> str:
        document = json.loads(frontend.run("explain", "--json", "shop", check=False).stdout)
        steps = document["steps"]
        return str(next(step["remedy"] for step in steps if step["step"] == "servers"))

    # HAProxy's resolver may have filled a slot before the daemon took the slots over.
    frontend.until(lambda: remedy().startswith("see the step networks: "))
    (row,) = json.loads(frontend.run("status", "--json", check=False).stdout)["services"]
    assert row["why"] == "cluster DNS names only addresses outside of the cluster's networks"


def test_who_may_not_look_is_told_so_and_nothing_else(frontend: Frontend) -> None:
    state = Path(frontend.settings["state_directory"])
    frontend.scale("shop", 1)
    frontend.write()
    frontend.run("apply")
    state.chmod(0)
    try:

        def said(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*WITHOUT_RIGHTS, *PROGRAM, *arguments, "-c", str(frontend.config)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

        applied = said("apply")
        assert applied.returncode == 3
        assert "cannot be read: Permission denied" in applied.stderr
        assert "or as root" in applied.stderr
        status = json.loads(said("status", "--json").stdout)
        assert status["held"] is None
        assert not [finding for finding in status["findings"] if finding["subject"] == "hold"]
    finally:
        state.chmod(0o700)


def test_a_settings_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = Path(config(tmp_path))
    path.chmod(0)
    done = subprocess.run(
        [*WITHOUT_RIGHTS, *PROGRAM, "check", "-c", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert f"{path}: error: cannot be read: Permission denied" in done.stderr


def test_what_haproxy_says_of_servers_whose_state_was_kept_is_no_warning() -> None:
    rendered = render(Plan(settings=Settings(), services=()), templates({}))
    said = (
        "Server shop/pod1 is DOWN, changed from server-state after a reload. 0 active and 0 backup "
        "servers left. 0 sessions active, 0 requeued, 0 remaining in queue."
    )
    verdict = CheckVerdict(True, (Message("warning", said), Message("warning", "mind this")), "")
    assert [p.message for p in verdict_problems(verdict, rendered)] == ["HAProxy says: mind this"]
