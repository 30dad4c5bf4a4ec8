"""`diff` lists what `apply` changes: each change is listed, then applied, and then gone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.demo.dns import KubernetesService
from fc_frontend.explain.differences import sections, without_secrets
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """Yield a frontend without a daemon, where `apply` has run for one service."""
    with Frontend(either_binary) as made:
        made.scale("shop", 3)
        made.settings["services"]["shop"] = made.service("shop", 8080)
        made.write()
        made.run("apply")
        made.until(lambda: made.serves(8080, made.pods["shop"]))
        yield made


@pytest.fixture
def known(either_binary: str) -> Iterator[Frontend]:
    """Yield a frontend whose daemon stored the last good forms and was stopped."""
    with Frontend(either_binary) as made:
        made.scale("shop", 3)
        made.settings["services"]["shop"] = made.service("shop", 8080)
        made.start()
        made.until(lambda: made.serves(8080, made.pods["shop"]))
        made.stop_daemon()
        made.until(lambda: diff(made)["changes"] == [])
        yield made


def diff(frontend: Frontend) -> dict[str, Any]:
    """Return the document of `diff --json`."""
    done = frontend.run("diff", "--json", check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == bool(document["changes"])
    return document


def only(document: dict[str, Any], what: str, name: str) -> dict[str, Any]:
    (change,) = document["changes"]
    assert (change["what"], change["name"]) == (what, name)
    assert isinstance(change, dict)
    return change


def applied(frontend: Frontend, *, reloads: bool) -> None:
    """Apply the listed changes: `diff` predicted the reload, and no change is left."""
    before = frontend.running_hash()
    done = frontend.run("apply")
    assert ("reloaded" in done.stdout) == reloads, done.stdout
    assert (frontend.running_hash() != before) == reloads
    assert diff(frontend)["changes"] == []


@pytest.mark.extended
def test_nothing_and_then_a_service_added_changed_and_removed(frontend: Frontend) -> None:
    frontend.until(lambda: diff(frontend)["changes"] == [])
    assert frontend.run("diff").stdout == "nothing would change\n"
    assert frontend.run("diff", "--text").stdout == ""
    frontend.drop("cart.json", {"cart": frontend.service("shop", 8081)})
    change = only(diff(frontend), "service", "cart")
    assert (change["how"], change["effect"]) == ("added", "reload")
    assert change["because"] == "service-added cart"
    assert (change["opened"], change["closed"]) == ([f"{frontend.host}:8081"], [])
    done = frontend.run("diff", check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "+ service cart: reload",
        f"      opens {frontend.host}:8081",
        "1 change, one reload",
    ]
    applied(frontend, reloads=True)
    frontend.drop("cart.json", {"cart": frontend.service("shop", 8082, balance="roundrobin")})
    change = only(diff(frontend), "service", "cart")
    assert (change["how"], change["because"]) == ("changed", "service-changed cart")
    assert change["opened"] == [f"{frontend.host}:8082"]
    assert change["closed"] == [f"{frontend.host}:8081"]
    assert {"-balance leastconn", "+balance roundrobin"} <= set(change["lines"])
    done = frontend.run("diff", check=False)
    assert "      balance: leastconn → roundrobin" in done.stdout
    applied(frontend, reloads=True)
    (frontend.services_d / "cart.json").unlink()
    change = only(diff(frontend), "service", "cart")
    assert (change["how"], change["because"]) == ("removed", "service-removed cart")
    assert change["closed"] == [f"{frontend.host}:8082"]
    applied(frontend, reloads=True)


def test_what_was_installed_is_compared_field_by_field_where_it_is_known(known: Frontend) -> None:
    known.settings["services"]["shop"].update(balance="roundrobin", slots=30)
    known.settings["haproxy"]["hard_stop_after"] = "2h"
    known.settings["intervals"]["rescan"] = "1m"
    known.write()
    document = diff(known)
    changes = {(change["what"], change["name"]): change for change in document["changes"]}
    shop = changes["service", "shop"]
    assert {(f["name"], f["before"], f["after"]) for f in shop["fields"]} == {
        ("slots", "10", "30"),
        ("balance", "leastconn", "roundrobin"),
    }
    settings = changes["settings", ""]
    assert {(f["name"], f["before"], f["after"]) for f in settings["fields"]} == {
        ("haproxy.hard_stop_after", "3600.0", "7200.0"),
        ("intervals.rescan", "30.0", "60.0"),
    }
    assert settings["effect"] == "reload"
    done = known.run("diff", check=False)
    assert "~ service shop: reload\n" in done.stdout
    assert "      balance: leastconn → roundrobin" in done.stdout
    applied(known, reloads=True)


@pytest.mark.extended
def test_what_is_about_the_daemon_alone_needs_no_reload(known: Frontend) -> None:
    known.settings["intervals"]["rescan"] = "1m"
    known.write()
    document = diff(known)
    assert only(document, "settings", "")["effect"] == "daemon only"
    assert document["reload"] is False
    assert known.run("diff", check=False).stdout.endswith("1 change, no reload\n")
    assert "nothing to do" in known.run("apply").stdout


@pytest.mark.extended
def test_pods_that_come_and_go_need_no_reload_until_there_are_no_slots_left(
    frontend: Frontend,
) -> None:
    # Endpoints that HAProxy already has are no difference; usually its resolver is faster.
    frontend.settings["intervals"]["resolve"] = "1h"
    frontend.write()
    frontend.run("apply")
    frontend.until(lambda: diff(frontend)["changes"] == [])
    pod = frontend.pods["shop"].addresses[0]

    async def publish() -> None:
        service = KubernetesService("shop", ports={"http": 8080}, endpoints=(pod,))
        frontend.dns.set_service(service)

    frontend.call(publish())
    change = only(diff(frontend), "service", "shop")
    assert change["effect"] == "runtime only"
    assert "HAProxy's own resolver" in change["because"]
    gone = ", ".join(sorted(frontend.pods["shop"].addresses[1:]))
    assert change["fields"] == [{"name": "pods", "before": gone, "after": ""}]
    frontend.scale("shop", 12)
    change = only(diff(frontend), "service", "shop")
    assert change["effect"] == "reload"
    assert change["fields"] == [{"name": "slots", "before": "10", "after": "20"}]
    done = frontend.run("diff", check=False)
    assert "      slots: 10 → 20" in done.stdout
    frontend.run("apply")
    frontend.until(lambda: diff(frontend)["changes"] == [])


@pytest.mark.extended
def test_fragments_settings_and_templates(frontend: Frontend) -> None:
    text = f"listen hand\n  bind {frontend.host}:8095\n  server a 127.0.0.1:9\n"
    frontend.drop("hand.cfg", text)
    change = only(diff(frontend), "fragment", "hand")
    assert (change["how"], change["because"]) == ("added", "fragment hand added")
    assert change["opened"] == [f"{frontend.host}:8095"]
    applied(frontend, reloads=True)
    frontend.drop("hand.cfg", text + "  timeout server 1s\n")
    change = only(diff(frontend), "fragment", "hand")
    assert (change["how"], change["lines"]) == ("changed", ["+timeout server 1s"])
    applied(frontend, reloads=True)
    # If the source of the installed text is unknown, its sections are compared.
    running = frontend.directory / "state" / "running.json"
    running.unlink()
    frontend.settings["haproxy"]["hard_stop_after"] = "2h"
    frontend.write()
    change = only(diff(frontend), "settings", "global")
    assert change["lines"] == ["-hard-stop-after 1h", "+hard-stop-after 2h"]
    applied(frontend, reloads=True)
    running.unlink()
    templates = frontend.directory / "templates"
    templates.mkdir()
    frontend.settings["haproxy"]["templates"] = str(templates)
    frontend.write()
    assert diff(frontend)["changes"] == []
    (templates / "stats.cfg.j2").write_text(
        "frontend fc-stats from fc-http\n    bind {{ settings.haproxy.stats }}\n    stats enable\n"
    )
    change = only(diff(frontend), "settings", "frontend fc-stats")
    assert "-stats uri /" in change["lines"]
    applied(frontend, reloads=True)


@pytest.mark.extended
def test_frontends_and_what_of_them_changes_at_runtime(frontend: Frontend) -> None:
    web: dict[str, Any] = {"binds": f"{frontend.host}:8082", "allow": "127.0.0.0/8"}
    frontend.settings["frontends"] = {"web": web}
    site = {"frontend": "web", "pod_port": 8080, "service": "shop", "hosts": ["a.org"]}
    frontend.settings["services"]["site"] = site
    frontend.write()
    changes = diff(frontend)["changes"]
    assert {(each["what"], each["name"], each["effect"]) for each in changes} == {
        ("frontend", "web", "reload"),
        ("service", "site", "reload"),
    }
    applied(frontend, reloads=True)
    for section, name, declared, fields in (
        ("frontend", "web", web, {"allow": ["127.0.0.0/8", "192.0.2.0/24"]}),
        ("service", "site", site, {"hosts": ["a.org", "b.org"]}),
    ):
        declared.update(fields)
        frontend.write()
        document = diff(frontend)
        change = only(document, section, name)
        assert (change["how"], change["effect"]) == ("changed", "runtime only")
        assert document["reload"] is False
        applied(frontend, reloads=False)


def test_text_is_what_a_patch_is_and_secrets_are_shown_there_alone(frontend: Frontend) -> None:
    text = "userlist them\n  user me insecure-password hunter2\n"
    frontend.drop("users.cfg", text)
    shown = frontend.run("diff", check=False).stdout + json.dumps(diff(frontend))
    assert "hunter2" not in shown
    done = frontend.run("diff", "--text", check=False)
    assert done.returncode == 1
    assert "+  user me insecure-password hunter2" in done.stdout
    new = frontend.directory / "new.cfg"
    new.write_bytes(frontend.haproxy_cfg.read_bytes())
    subprocess.run(
        ["patch", str(new)], input=done.stdout, text=True, check=True, capture_output=True
    )
    frontend.run("apply")
    assert new.read_bytes() == frontend.haproxy_cfg.read_bytes()


def test_what_would_be_refused_and_what_cannot_be_told(frontend: Frontend) -> None:
    frontend.drop("bad.json", {"bad": frontend.service("shop", 8081, extra_config="nonsense")})
    done = frontend.run("diff", check=False)
    assert done.returncode == 1
    assert "nonsense" in done.stderr
    assert "nothing would change" in done.stdout
    frontend.drop("bad.json", "{")
    done = frontend.run("diff", check=False)
    assert done.returncode == 1
    assert "not JSON" in done.stderr
    (frontend.services_d / "bad.json").unlink()
    # A user who may not read haproxy.cfg sees none of it; root may read anything but a directory.
    moved = frontend.haproxy_cfg.rename(frontend.directory / "moved.cfg")
    frontend.haproxy_cfg.mkdir()
    done = frontend.run("diff", check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert (done.stdout, "cannot be read" in done.stderr) == ("", True)
    frontend.haproxy_cfg.rmdir()
    moved.rename(frontend.haproxy_cfg)
    frontend.settings["haproxy"]["binary"] = "/nonexistent/haproxy"
    frontend.write()
    done = frontend.run("diff", check=False)
    assert done.returncode == 3


def test_a_file_edited_by_hand_and_a_haproxy_with_another_configuration(
    frontend: Frontend,
) -> None:
    frontend.until(lambda: diff(frontend)["changes"] == [])
    good = frontend.haproxy_cfg.read_text()
    frontend.haproxy_cfg.write_text(good.replace("balance leastconn", "balance random"))
    change = only(diff(frontend), "service", "shop")
    assert change["effect"] == "file only"
    assert set(change["lines"]) == {"-balance random", "+balance leastconn"}
    applied(frontend, reloads=False)
    frontend.drop("cart.json", {"cart": frontend.service("shop", 8081)})
    frontend.run("apply")
    frontend.haproxy_cfg.write_text(good)
    (frontend.services_d / "cart.json").unlink()
    change = only(diff(frontend), "haproxy", "running configuration")
    assert change["effect"] == "reload"
    applied(frontend, reloads=True)


def test_without_haproxy_all_waits_for_its_start(frontend: Frontend) -> None:
    frontend.end_haproxy()
    frontend.drop("cart.json", {"cart": frontend.service("shop", 8081)})
    assert only(diff(frontend), "service", "cart")["effect"] == "at its start"
    frontend.haproxy_cfg.unlink()
    document = diff(frontend)
    names = {change["name"] for change in document["changes"] if change["what"] == "service"}
    assert names == {"shop", "cart"}
    assert {change["how"] for change in document["changes"]} == {"added"}


def test_sections_are_divided_as_haproxy_reads_them() -> None:
    text = (
        '# head\n"glo"bal\n  a "lis"ten\n\n# of the statistics\n  listen other\n  c\n'
        "\\x6cisten shop\n  b\n\n"
        "# fc-frontend unit: service shop\nlisten shop from fc-tcp\n  b\n\n"
        "# fc-frontend unit: fragment x\n# mine\ndefaults fc-fragment-x from fc-tcp\n\n"
        "listen y\n  d\n"
    )
    assert sections(text, ["shop"]) == {
        ("settings", "global"): ("# head", '"glo"bal', 'a "lis"ten'),
        ("settings", "listen other"): ("# of the statistics", "listen other", "c"),
        ("service", "shop"): ("\\x6cisten shop", "b", "listen shop from fc-tcp", "b"),
        ("fragment", "x"): ("# mine", "defaults fc-fragment-x from fc-tcp", "listen y", "d"),
    }


def test_passwords_are_masked_however_they_are_written() -> None:

    for line in (
        "user a password SECRET",
        'user a "pass"word SECRET',
        "user a \\x70assword 'SECRET'",
    ):
        assert "SECRET" not in without_secrets(line)
