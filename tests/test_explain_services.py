"""`explain svc/NAMESPACE/NAME`: a Service of the cluster, its address, its status and its ports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fc_frontend.errors import Unavailable
from fc_frontend.explain.kubernetes_service import balancer_steps, key_of
from fc_frontend.model.load_balancer_state import BalancedService, LoadBalancerView
from fc_frontend.model.load_balancers import IngressAddress, LoadBalancerRequest, ServedCondition
from fc_frontend.plan.cluster_objects import ObjectKey
from tests.support.certificates import Certificates
from tests.test_load_balancers import Balanced

KEY = ObjectKey("shop", "web")
ADDRESS = "198.51.100.16"
SERVED = LoadBalancerRequest(
    ingress=(IngressAddress(ADDRESS, "Proxy"),), condition=ServedCondition(True, "Served", "")
)


@pytest.mark.parametrize("text", ["svc/web", "svc/", "svc//web", "svc/a/b/c"])
def test_names_of_services(text: str) -> None:
    assert key_of("svc/shop/web") == KEY
    with pytest.raises(Unavailable, match="names no Service"):
        key_of(text)


def view(leader: str = "", **fields: Any) -> LoadBalancerView:
    service = BalancedService(**{"namespace": "shop", "name": "web", **fields})
    return LoadBalancerView(is_leader=leader == "us", holder=leader, services=(service,))


NO_POOL = (("gets no address: no pool for it (ipv4)", "name a pool"),)


@pytest.mark.parametrize(
    ("request_", "known", "steps"),
    [
        (SERVED, None, [("address", "unknown", "it assigns addresses")]),
        (SERVED, LoadBalancerView(), [("address", "warn", "does not know the Service yet")]),
        (SERVED, view("us", addresses=(ADDRESS,)), [
            ("address", "ok", ADDRESS), ("status", "ok", "(Served), written by this frontend"),
        ]),
        (LoadBalancerRequest(), view("other", addresses=(ADDRESS,)), [
            ("address", "ok", ADDRESS), ("status", "warn", "no address, written by other"),
        ]),
        (LoadBalancerRequest(), view(addresses=(ADDRESS,)), [
            ("address", "ok", ADDRESS), ("status", "warn", "no address, written by nobody"),
        ]),
        (LoadBalancerRequest(), view("us", problems=NO_POOL), [
            ("address", "bad", "it gets no address: no pool"), ("status", "ok", "no address"),
        ]),
        (SERVED, view("us", addresses=(ADDRESS,), overwritten=3), [
            ("address", "ok", ADDRESS), ("status", "warn", "others have overwritten it 3 times"),
        ]),
    ],
)  # fmt: skip
def test_address_and_status(
    request_: LoadBalancerRequest,
    known: LoadBalancerView | None,
    steps: list[tuple[str, str, str]],
) -> None:
    found = list(balancer_steps(KEY, request_, known))
    assert [(each.name, each.verdict.value) for each in found] == [each[:2] for each in steps]
    for each, (_, verdict, words) in zip(found, steps, strict=True):
        assert words in each.said
        assert bool(each.remedy) is (verdict != "ok")


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[Balanced]:
    with Balanced(either_binary, certificates) as found:
        yield found


def explained(frontend: Balanced, name: str) -> dict[str, Any]:
    done = frontend.run("explain", name, "--json", check=False)
    assert not done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if document["verdict"] == "ok" else 1)
    return document


def steps_of(document: dict[str, Any]) -> dict[str, str]:
    return {each["step"]: f"{each['verdict']}: {each['said']}" for each in document["steps"]}


@pytest.mark.extended
def test_services_of_the_cluster(frontend: Balanced) -> None:
    frontend.settings["services"]["file"] = frontend.service("plain", 8080, discovery="api")
    frontend.start()
    for name in ("web", "plain"):
        frontend.publish_pods(name, 80)
    address, _ = frontend.cluster_ip("plain")
    frontend.kube_service("plain", cluster_ip=address)
    frontend.kube_service("lonely", cluster_ip="None")
    frontend.balanced_service("web", {80: "TCP", 53: "UDP"})
    frontend.balanced_service("other", loadBalancerClass="example.com/other")
    frontend.balanced_service("unset", loadBalancerClass=None)
    frontend.balanced_service("nowhere", annotations={"fc-frontend.io/pool": "none"})
    frontend.balanced_service("odd", loadBalancerSourceRanges=["10.0.0.0/33"])
    key = ("services", "default", "web")
    frontend.until(lambda: frontend.api.objects.now[key].get("status", {}).get("loadBalancer"))
    frontend.until(lambda: explained(frontend, "svc/default/web")["verdict"] == "ok")
    document = explained(frontend, "svc/default/web")
    assert steps_of(document) == {
        "Service": "ok: type LoadBalancer, TCP ports: 80; gets its address here",
        "address": f"ok: {frontend.address(2)}",
        "status": f"ok: {frontend.address(2)} (PartlyServed), written by this frontend",
    }
    assert [each["service"] for each in document["services"]] == ["svc.default.web.80"]
    assert document["services"][0]["serves"] is True
    shown = frontend.run("explain", "svc/default/web").stdout
    assert f"ok      address       {frontend.address(2)}\n" in shown
    assert "\nsvc.default.web.80\nok      declaration" in shown

    # A Service that a file names, and Services that get no address from this frontend.
    plain = explained(frontend, "svc/default/plain")
    assert steps_of(plain) == {"Service": "ok: type ClusterIP, TCP ports: 80; declared in a file"}
    assert [each["service"] for each in plain["services"]] == ["file"]
    for name, words in (
        ("lonely", "no service of this frontend leads to it"),
        ("other", "its loadBalancerClass is example.com/other"),
        ("unset", "it has no loadBalancerClass"),
        ("missing", "has no Service missing in namespace default"),
    ):
        assert words in steps_of(explained(frontend, f"svc/default/{name}"))["Service"]
    assert "no pool for it" in steps_of(explained(frontend, "svc/default/nowhere"))["address"]
    odd = explained(frontend, "svc/default/odd")
    assert steps_of(odd)["status"].startswith("warn: no address")
    (port,) = odd["services"]
    assert port["service"] == "svc.default.odd.80"
    assert "10.0.0.0/33" in json.dumps(port["steps"])

    # `status` contains the source of each service, and the writer of the status of Services.
    status = json.loads(frontend.run("status", "--json", check=False).stdout)
    sources = {each["name"]: each["source"] for each in status["services"]}
    assert sources["svc.default.web.80"] == "Service default/web"
    assert sources["file"] == str(frontend.config)
    assert status["load_balancers"]["leader"] is True
    (web,) = [s for s in status["load_balancers"]["services"] if s["name"] == "web"]
    assert web["addresses"] == web["published"] == [frontend.address(2)]
    shown = frontend.run("status", check=False).stdout
    assert "LoadBalancer   2 of 3 Services have an address; this frontend writes their status" in (
        shown
    )
    assert "Service default/web" in frontend.run("status", "-o", "wide", check=False).stdout

    # Without the daemon, the cluster and HAProxy still provide facts.
    frontend.stop_daemon()
    document = explained(frontend, "svc/default/web")
    assert steps_of(document)["address"].startswith("unknown: ")
    assert document["services"][0]["serves"] is True
    frontend.stop_api()
    assert "refused" in steps_of(explained(frontend, "svc/default/web"))["Service"].lower()
