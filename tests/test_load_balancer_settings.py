"""`load_balancer:` in the settings: pools of addresses, and errors by field with remedies."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.config.declare import load
from fc_frontend.errors import errors_in
from fc_frontend.model.load_balancers import AddressPool, AddressRange, LoadBalancerSettings
from fc_frontend.plan.address_ranges import parse_address_range
from fc_frontend.plan.addresses import NotAnAddress

POOLS: dict[str, Any] = {"public": {"addresses": "198.51.100.2"}}


def written(directory: Path, balancer: Any, **cluster: Any) -> str:
    api = {"kubeconfig": "/etc/fc-frontend/kubeconfig"}
    cluster = {"nameservers": ["10.0.0.254"], "api": api, **cluster}
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump({"cluster": cluster, "load_balancer": balancer}))
    return str(path)


def test_pools_become_values(tmp_path: Path) -> None:
    balancer = {
        "class": "example.org/balancer",
        "default": True,
        "pools": {
            "public": {"addresses": ["198.51.100.16/28", "2a02::10-2a02::1f"], "default": True},
            "inner": {"addresses": "10.9.0.1", "namespaces": ["infra", "shop"]},
        },
    }
    declaration = load(written(tmp_path, balancer))
    assert not errors_in(declaration.problems)
    assert declaration.settings.load_balancer == LoadBalancerSettings(
        class_name="example.org/balancer",
        is_default=True,
        pools=(
            AddressPool(
                name="inner",
                ranges=(AddressRange(ip_address("10.9.0.1"), ip_address("10.9.0.1")),),
                namespaces=("infra", "shop"),
            ),
            AddressPool(
                name="public",
                ranges=(
                    AddressRange(ip_address("198.51.100.16"), ip_address("198.51.100.31")),
                    AddressRange(ip_address("2a02::10"), ip_address("2a02::1f")),
                ),
                is_default=True,
            ),
        ),
    )


def test_defaults(tmp_path: Path) -> None:
    settings = load(written(tmp_path, {"pools": POOLS})).settings.load_balancer
    assert settings is not None
    assert (settings.class_name, settings.is_default) == ("fc-frontend.io/haproxy", False)
    assert load(written(tmp_path, None)).settings.load_balancer is None


@pytest.mark.parametrize(
    ("balancer", "field", "message"),
    [
        ({"pools": {}}, "load_balancer", "there is no pool"),
        ({}, "load_balancer", "there is no pool"),
        ({"pools": POOLS, "class": "balancer"}, "load_balancer.class", "not a loadBalancerClass"),
        ({"pools": POOLS, "clas": "a.org/b"}, "load_balancer.clas", "unknown field"),
        ({"pools": POOLS, "default": "yes"}, "load_balancer.default", "should be"),
        ({"pools": {"Public": POOLS["public"]}}, "load_balancer.pools.Public", "not a pool's name"),
        (
            {"pools": {"public": {"addresses": ["198.51.100.2", "198.51.100.17/28"]}}},
            "load_balancer.pools.public.addresses.1",
            "is not a network",
        ),
        (
            {"pools": {"public": {"addresses": "0.0.0.0/0"}}},
            "load_balancer.pools.public.addresses.0",
            "addresses that no Service can have",
        ),
        (
            {"pools": {"a": POOLS["public"], "b": {"addresses": "198.51.100.0/24"}}},
            "load_balancer",
            "pools a and b: 198.51.100.2 and 198.51.100.0-198.51.100.255 overlap",
        ),
        (
            {"pools": {"a": {"addresses": ["198.51.100.2", "198.51.100.2"]}}},
            "load_balancer",
            "pool a: 198.51.100.2 and 198.51.100.2 overlap",
        ),
        (
            {"pools": {"public": {**POOLS["public"], "namespaces": "Shop!"}}},
            "load_balancer.pools.public.namespaces.0",
            "not a DNS-1123 label",
        ),
    ],
)
def test_errors_name_field_line_and_fix(
    tmp_path: Path, balancer: Any, field: str, message: str
) -> None:
    path = written(tmp_path, balancer)
    (problem,) = errors_in(load(path).problems)
    assert (problem.file, problem.field) == (path, field)
    assert message in problem.message
    assert problem.line is not None
    assert problem.remedy or "should" in problem.message


def test_load_balancer_needs_the_api(tmp_path: Path) -> None:
    (problem,) = errors_in(load(written(tmp_path, {"pools": POOLS}, api=None)).problems)
    assert problem.field == "load_balancer"
    assert problem.remedy == "set cluster.api, or leave load_balancer out"


@given(st.text("0123456789abcdef.:/-% \n", max_size=40))
def test_no_text_makes_a_range_of_unusable_addresses(text: str) -> None:
    try:
        found = parse_address_range(text)
    except NotAnAddress as exc:
        assert exc.remedy
        return
    assert found.first.version == found.last.version
    for address in (found.first, found.last):
        assert address in found
        assert not (address.is_unspecified or address.is_multicast or address.is_link_local) or (
            address.version == 4 and address.is_link_local
        )
