"""The daemon, under load: an untrusted file affects only its own services."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.site import EXTRA, SERVICES, Site, serving
from tests.hostile.test_trust import MALLORY, needs_users

KEPT = "the last good version keeps running"
LEFT_OUT = "not deployed"
NAME, PORT = EXTRA


@pytest.fixture
def site(either_binary: str) -> Iterator[Site]:
    with serving(either_binary) as made:
        yield made


def put(site: Site, name: str, content: str | dict[str, Any], uid: int = MALLORY) -> None:
    """Write a file of a user into services.d atomically."""
    new = site.frontend.services_d / f".{name}.new"
    new.write_text(content if isinstance(content, str) else json.dumps({"services": content}))
    os.chown(new, uid, uid)
    new.rename(site.frontend.services_d / name)


def effects(site: Site) -> dict[tuple[str, str], str]:
    return {unit: held["effect"] for unit, held in site.held().items()}


@needs_users
def test_an_untrusted_file_costs_only_its_own_service(site: Site) -> None:
    frontend = site.frontend
    host, services_d = frontend.host, frontend.services_d

    # Values are accepted: the service serves, and continues to do so through all that follows.
    good = {NAME: frontend.service(NAME, PORT)}
    put(site, "mallory.json", good)
    frontend.until(lambda: frontend.ask(PORT) == f"{NAME}-1")

    def stays(expected: dict[tuple[str, str], str]) -> None:
        """Wait until only these units are withheld, HAProxy is in sync and all services serve."""
        frontend.until(lambda: effects(site) == expected and frontend.ready())
        site.still_serve()
        assert frontend.ask(PORT) == f"{NAME}-1"

    mine = ("service", NAME)
    for fields in (
        {"extra_config": "maxconn 5"},
        {"extra_config": '"global"\nlua-load /tmp/x.lua'},
        {"server_options": "weight 5"},
        {"bind_options": "ssl crt /etc/ssl/x.pem"},
        {"tls": {"ca_file": "/etc/ssl/certs/ca-certificates.crt"}},
        {"binds": [f"{host}:{PORT}", f"unix@{frontend.directory}/m.sock"]},
        {"slots": 20000},
    ):
        put(site, "mallory.json", {NAME: {**good[NAME], **fields}})
        stays({mine: KEPT})
    put(site, "mallory.json", good)
    stays({})

    # The name or bind of a trusted service: `a.json` sorts first, and is refused.
    shop = services_d / "shop.yaml"
    put(site, "a.json", {"shop": frontend.service(NAME, 8097)})
    stays({("duplicate", f"shop in {services_d}/a.json"): LEFT_OUT})
    put(site, "a.json", {"a": frontend.service(NAME, SERVICES["docs"])})
    stays({("service", "a"): LEFT_OUT})
    put(site, "a.json", {"a": frontend.service(NAME, 0, binds=f"*:{SERVICES['docs']}")})
    stays({("service", "a"): LEFT_OUT})
    # Nor can it keep a bind that a later trusted service declares.
    put(site, "a.json", {"a": frontend.service(NAME, 8095)})
    frontend.until(lambda: frontend.ask(8095) == f"{NAME}-1")
    site.declare("z", 8095, service="shop")
    stays({("service", "a"): LEFT_OUT})
    frontend.until(lambda: frontend.serves(8095, frontend.pods["shop"]))
    (services_d / "a.json").unlink()
    site.file("z").unlink()
    stays({})

    # Whole sections.
    put(site, "m.cfg", f"listen m\n  bind {host}:8096\n  server a {host}:1\n")
    stays({("fragment", "m"): LEFT_OUT})
    (services_d / "m.cfg").unlink()
    stays({})

    # A trusted file with raw lines passes to another owner: the accepted lines are kept.
    site.declare("shop", SERVICES["shop"], extra_config="http-response set-header X-From root")
    frontend.until(lambda: "X-From root" in frontend.haproxy_cfg.read_text() and frontend.ready())
    os.chown(shop, MALLORY, MALLORY)
    stays({("service", "shop"): KEPT})
    put(
        site,
        "shop.yaml",
        {"shop": frontend.service("shop", SERVICES["shop"], extra_config="maxconn 1")},
    )
    stays({("service", "shop"): KEPT})
    assert "X-From root" in frontend.haproxy_cfg.read_text()
    # Values of the new owner are accepted, and replace them.
    put(site, "shop.yaml", {"shop": frontend.service("shop", SERVICES["shop"])})
    stays({})
    assert "X-From root" not in frontend.haproxy_cfg.read_text()
