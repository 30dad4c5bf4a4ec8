"""Changes compared with the running configuration: commands agree, and withheld units run on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.frontend import Frontend

NONSENSE = "nonsense here"


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """Run a frontend without a daemon, where `apply` deployed the services shop and cart."""
    with Frontend(either_binary) as made:
        made.scale("shop", 2)
        made.write()
        made.drop("shop.json", {"shop": made.service("shop", 8080)})
        made.drop("cart.json", {"cart": made.service("shop", 8081)})
        made.run("apply")
        made.until(lambda: made.serves(8080, made.pods["shop"]))
        yield made


def document(frontend: Frontend, *command: str) -> dict[str, Any]:
    """Return the JSON output of a command."""
    found: dict[str, Any] = json.loads(frontend.run(*command, "--json", check=False).stdout)
    return found


def withheld(found: dict[str, Any]) -> dict[tuple[str, str], bool]:
    """Return the withheld units, and whether each is kept, by kind and name."""
    return {(each["kind"], each["name"]): each["is_kept"] for each in found["withheld"]}


def section(frontend: Frontend, name: str) -> str:
    """Return the section of a service in haproxy.cfg."""
    _, _, rest = frontend.haproxy_cfg.read_text().partition(f"# fc-frontend unit: service {name}\n")
    return rest.partition("# fc-frontend unit: ")[0]


def test_all_commands_and_the_daemon_agree_on_what_is_withheld(frontend: Frontend) -> None:
    frontend.drop("good.json", {"good": frontend.service("shop", 8082)})
    frontend.drop("bad.json", {"bad": frontend.service("shop", 8083, extra_config=NONSENSE)})
    expected = {("service", "bad"): False}
    check = frontend.run("check", "--json", check=False)
    assert check.returncode == 1
    assert withheld(json.loads(check.stdout)) == expected
    assert json.loads(check.stdout)["base"] == "running"
    diff = frontend.run("diff", "--json", check=False)
    assert diff.returncode == 1
    assert withheld(json.loads(diff.stdout)) == expected
    assert [change["name"] for change in json.loads(diff.stdout)["changes"]] == ["good"]
    explained = frontend.run("explain", "bad", check=False)
    assert "nonsense" in explained.stdout
    applied = frontend.run("apply", "--json", check=False)
    assert applied.returncode == 1
    assert withheld(json.loads(applied.stdout)) == expected
    assert json.loads(applied.stdout)["outcome"] == "reloaded"
    frontend.until(lambda: frontend.serves(8082, frontend.pods["shop"]))
    before = frontend.running_hash()
    frontend.start()
    frontend.until(lambda: frontend.status()["withheld"])
    assert withheld(frontend.status()) == expected
    assert frontend.running_hash() == before
    frontend.stop_daemon()


def test_what_is_withheld_never_causes_a_reload(frontend: Frontend) -> None:
    before = frontend.running_hash()
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080, extra_config=NONSENSE)})
    found = document(frontend, "apply")
    assert (found["outcome"], withheld(found)) == ("in-sync", {("service", "shop"): True})
    assert frontend.running_hash() == before


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "state-lost"])
def test_a_withheld_service_keeps_its_text_whatever_changes_around_it(
    frontend: Frontend, is_known: bool
) -> None:
    """Also if only haproxy.cfg shows the running configuration, as without a state directory."""
    before = section(frontend, "shop")
    if not is_known:
        (frontend.directory / "state" / "running.json").unlink()
    frontend.drop("shop.json", {"shop": frontend.service("shop", 8080, extra_config=NONSENSE)})
    templates = frontend.directory / "templates"
    templates.mkdir()
    packaged = Path("templates/service.cfg.j2").read_text()
    (templates / "service.cfg.j2").write_text(packaged + "    # from another template\n")
    frontend.settings["haproxy"]["templates"] = str(templates)
    frontend.settings["haproxy"]["hard_stop_after"] = "2h"
    frontend.write()
    found = document(frontend, "apply")
    assert (found["outcome"], withheld(found)) == ("reloaded", {("service", "shop"): True})
    assert section(frontend, "shop") == before
    assert "another template" in section(frontend, "cart")
    assert "hard-stop-after 2h" in frontend.haproxy_cfg.read_text()
    for port in (8080, 8081):
        frontend.until(lambda port=port: frontend.serves(port, frontend.pods["shop"]))


def test_a_rename_with_a_mistake_keeps_the_old_service(frontend: Frontend) -> None:
    before = frontend.running_hash()
    (frontend.services_d / "shop.json").unlink()
    renamed = {**frontend.service("shop", 8080), "pod_prot": 8080}
    frontend.drop("store.json", {"store": renamed})
    found = document(frontend, "apply")
    assert withheld(found) == {("service", "shop"): True, ("service", "store"): False}
    assert frontend.running_hash() == before
    assert frontend.serves(8080, frontend.pods["shop"])
    del renamed["pod_prot"]
    frontend.drop("store.json", {"store": renamed})
    assert document(frontend, "apply")["outcome"] == "reloaded"
    assert not section(frontend, "shop")
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))


def test_a_file_that_cannot_be_read_removes_nothing(frontend: Frontend) -> None:
    before = frontend.running_hash()
    frontend.drop("shop.json", "{")
    found = document(frontend, "apply")
    path = str(frontend.services_d / "shop.json")
    assert withheld(found) == {("file", path): True}
    assert frontend.running_hash() == before


def test_what_something_running_refers_to_is_not_removed(frontend: Frontend) -> None:
    edge = (
        f"frontend edge\n  mode tcp\n  bind {frontend.host}:8095\n"
        "  use_backend cart if { src 127.0.0.99 }\n  default_backend shop\n"
    )
    frontend.drop("edge.cfg", edge)
    assert document(frontend, "apply")["outcome"] == "reloaded"
    before = frontend.running_hash()
    (frontend.services_d / "cart.json").unlink()
    found = document(frontend, "apply")
    assert withheld(found) == {("service", "cart"): True}
    (held,) = found["withheld"]
    assert "still used by fragment edge" in held["problems"][0]["message"]
    assert frontend.running_hash() == before
    # It is removed together with its last use.
    frontend.drop("edge.cfg", edge.replace("  use_backend cart if { src 127.0.0.99 }\n", ""))
    found = document(frontend, "apply")
    assert (found["outcome"], withheld(found)) == ("reloaded", {})
    assert not section(frontend, "cart")


def test_two_services_swap_their_ports_or_keep_them(frontend: Frontend) -> None:
    shop, cart = frontend.service("shop", 8081), frontend.service("shop", 8080)
    frontend.drop("shop.json", {"shop": shop})
    before = frontend.running_hash()
    found = document(frontend, "apply")
    assert withheld(found) == {("service", "shop"): True}
    assert frontend.running_hash() == before
    frontend.drop("cart.json", {"cart": cart})
    found = document(frontend, "apply")
    assert (found["outcome"], withheld(found)) == ("reloaded", {})
