"""Services that are gone from the files: when they are removed, and how an operator confirms it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fc_frontend.daemon.removal import RemovalWait
from fc_frontend.plan.model import Intervals
from tests.support.frontend import Frontend
from tests.test_withheld import document, section, withheld

FIVE = Intervals(removal=5.0)


def test_a_removal_is_believed_when_no_file_has_changed_for_a_while() -> None:
    wait = RemovalWait()
    wait.files_changed(100.0)
    wait.note(is_waiting=True, now=100.0)
    assert not wait.is_over(FIVE, 104.9)
    assert wait.due(FIVE) == 105.0
    wait.files_changed(104.0)
    assert not wait.is_over(FIVE, 105.0)
    assert wait.is_over(FIVE, 109.0)
    wait.note(is_waiting=False, now=109.0)
    assert wait.due(FIVE) is None


def test_files_that_change_all_the_time_do_not_hinder_a_removal_for_good() -> None:
    wait = RemovalWait()
    for second in range(60):
        wait.files_changed(float(second))
        wait.note(is_waiting=True, now=float(second))
        assert not wait.is_over(FIVE, float(second))
    wait.files_changed(60.0)
    assert wait.is_over(FIVE, 60.0)


def test_without_an_interval_nothing_waits() -> None:
    wait = RemovalWait()
    wait.files_changed(1.0)
    assert wait.is_over(Intervals(removal=0.0), 1.0)


def test_an_empty_directory_is_believed_after_ten_minutes() -> None:
    wait = RemovalWait()
    assert not wait.believes_empty(is_emptied=True, intervals=FIVE, now=0.0)
    assert not wait.believes_empty(is_emptied=True, intervals=FIVE, now=599.0)
    assert wait.believes_empty(is_emptied=True, intervals=FIVE, now=600.0)
    assert not wait.believes_empty(is_emptied=False, intervals=FIVE, now=601.0)
    assert not wait.believes_empty(is_emptied=True, intervals=FIVE, now=602.0)


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """Run two services, with a removal interval of two seconds."""
    with Frontend(either_binary) as made:
        made.settings["intervals"]["removal"] = "2s"
        del made.settings["services"]
        made.scale("shop", 2)
        made.write()
        made.drop("shop.json", {"shop": made.service("shop", 8080)})
        made.drop("cart.json", {"cart": made.service("shop", 8081)})
        yield made


def test_a_file_that_comes_back_was_never_removed(frontend: Frontend) -> None:
    frontend.start()
    before = frontend.running_hash()
    text = (frontend.services_d / "shop.json").read_text()
    (frontend.services_d / "shop.json").unlink()
    frontend.until(lambda: frontend.events("removal-waits"))
    assert not frontend.status()["withheld"]
    assert frontend.ready()
    (frontend.services_d / "shop.json").write_text(text)
    (frontend.services_d / "cart.json").unlink()
    frontend.until(lambda: not section(frontend, "cart"))
    assert section(frontend, "shop")
    assert frontend.serves(8080, frontend.pods["shop"])
    frontend.until(lambda: len(frontend.events("config-reloaded")) == 1)
    assert frontend.running_hash() != before


def test_a_renamed_service_does_not_wait(frontend: Frontend) -> None:
    """A service whose bind another service takes over is replaced, not removed."""
    frontend.settings["intervals"]["removal"] = "1h"
    frontend.write()
    frontend.start()
    (frontend.services_d / "shop.json").unlink()
    frontend.drop("store.json", {"store": frontend.service("shop", 8080)})
    frontend.until(lambda: section(frontend, "store") and not section(frontend, "shop"))
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))


def test_a_directory_that_is_suddenly_empty_removes_nothing(frontend: Frontend) -> None:
    frontend.start()
    before = frontend.running_hash()
    for file in frontend.services_d.iterdir():
        file.unlink()
    directory = str(frontend.services_d)
    (problem,) = frontend.until(
        lambda: [p for e in frontend.status()["withheld"] for p in e["problems"]]
    )
    assert withheld(frontend.status()) == {("file", directory): True}
    assert problem["cause"] == "emptied"
    assert "apply --force" in problem["remedy"]
    assert frontend.serves(8081, frontend.pods["shop"])
    assert frontend.running_hash() == before
    assert withheld(document(frontend, "check")) == {("file", directory): True}
    assert document(frontend, "apply")["outcome"] == "in-sync"
    forced = json.loads(frontend.run("apply", "--force", "--json").stdout)
    assert forced["outcome"] == "reloaded"
    assert not section(frontend, "shop")
    frontend.until(lambda: not frontend.status()["withheld"])
    assert frontend.until(frontend.ready)


def test_settings_that_declare_no_services_confirm_an_empty_directory(frontend: Frontend) -> None:
    frontend.run("apply")
    for file in frontend.services_d.iterdir():
        file.unlink()
    assert document(frontend, "apply")["outcome"] == "in-sync"
    frontend.settings["services"] = {}
    frontend.write()
    assert json.loads(frontend.run("apply", "--json").stdout)["outcome"] == "reloaded"
    assert not section(frontend, "shop")


def test_an_empty_directory_is_believed_by_the_daemon_in_the_end(frontend: Frontend) -> None:
    frontend.settings["intervals"]["removal"] = "10ms"
    frontend.write()
    frontend.start()
    for file in frontend.services_d.iterdir():
        file.unlink()
    frontend.until(lambda: not section(frontend, "shop") and not section(frontend, "cart"))
    assert frontend.events("services-removed")


def test_an_operator_forces_a_removal_that_a_mistake_holds_up(frontend: Frontend) -> None:
    frontend.run("apply")
    (frontend.services_d / "shop.json").unlink()
    frontend.drop("store.json", {"store": {**frontend.service("shop", 8080), "pod_prot": 1}})
    held = {("service", "shop"): True, ("service", "store"): False}
    assert withheld(document(frontend, "apply")) == held
    found = document(frontend, "apply", "--force", "shop")
    assert (found["outcome"], withheld(found)) == ("reloaded", {("service", "store"): False})
    assert not section(frontend, "shop")


def test_forcing_what_does_not_exist_is_refused(frontend: Frontend) -> None:
    frontend.write()
    done = frontend.run("apply", "--force", "shpo", check=False)
    assert done.returncode == 2
    assert "there is no service, fragment or frontend shpo" in done.stderr


def test_a_mistake_that_is_withheld_already_does_not_block_other_changes(
    frontend: Frontend,
) -> None:
    frontend.run("apply")
    frontend.drop("cart.json", {"cart": {**frontend.service("shop", 8081), "pod_prot": 1}})
    assert frontend.run("check", check=False).returncode == 1
    frontend.run("apply", check=False)
    frontend.drop("new.json", {"new": frontend.service("shop", 8082)})
    check = frontend.run("check", "--json")
    (held,) = json.loads(check.stdout)["withheld"]
    assert (held["name"], held["is_known"]) == ("cart", True)
    assert frontend.run("check", "--strict", check=False).returncode == 1
    frontend.drop("cart.json", {"cart": {**frontend.service("shop", 8081), "pod_prto": 1}})
    assert frontend.run("check", check=False).returncode == 1


def test_strict_deploys_all_or_nothing(frontend: Frontend) -> None:
    frontend.run("apply")
    before = frontend.running_hash()
    frontend.drop("good.json", {"good": frontend.service("shop", 8082)})
    frontend.drop("cart.json", {"cart": {**frontend.service("shop", 8081), "pod_prot": 1}})
    assert frontend.run("apply", "--strict", check=False).returncode == 1
    assert frontend.running_hash() == before
    assert frontend.run("apply", check=False).returncode == 1
    assert frontend.running_hash() != before
    assert section(frontend, "good")


def test_what_haproxy_refuses_as_it_runs_can_be_dropped(frontend: Frontend) -> None:
    """A running fragment names a file that is gone: nothing else can be deployed."""
    hosts = frontend.directory / "hosts.lst"
    hosts.write_text("example.org\n")
    frontend.drop(
        "edge.cfg",
        f"frontend edge\n  mode http\n  bind {frontend.host}:8095\n"
        f"  http-request deny if {{ hdr(host) -f {hosts} }}\n",
    )
    frontend.run("apply")
    hosts.unlink()
    frontend.drop("new.json", {"new": frontend.service("shop", 8082)})
    assert frontend.run("apply", check=False).returncode == 1
    assert not section(frontend, "new")
    found = document(frontend, "apply", "--drop", "edge")
    assert found["outcome"] == "reloaded"
    assert withheld(found) == {("fragment", "edge"): False}
    assert section(frontend, "new")
    assert "edge" not in section(frontend, "edge")
