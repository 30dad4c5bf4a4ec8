"""A frontend whose cluster has an API: Services and EndpointSlices of the pods on loopback."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

from fc_frontend.demo.pods import PodSet
from fc_frontend.plan.cluster_objects import NOT_BALANCED
from fc_frontend.plan.model import FREE_ADDRESS
from tests.support.api_objects import Json
from tests.support.api_server import ApiServer
from tests.support.certificates import Certificates
from tests.support.frontend import Frontend

TOKEN = "api-token"
READY = {"ready": True, "serving": True, "terminating": False}
NOT_READY = {"ready": False, "serving": False, "terminating": False}
TERMINATING = {"ready": False, "serving": True, "terminating": True}


def token_until(seconds: int) -> str:
    """Return a ServiceAccount token that expires at this Unix time."""
    parts = ({"alg": "RS256"}, {"exp": seconds})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts]
    return ".".join([*(part.decode().rstrip("=") for part in encoded), "c2lnbmF0dXJl"])


def kubeconfig_of(
    port: int, certificates: Certificates, user: Mapping[str, Any], **cluster: Any
) -> Json:
    """Return a kubeconfig for the API server on that port of 127.0.0.1."""
    server = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority-data": certificates.data("ca.crt"),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "frontend",
        "contexts": [{"name": "frontend", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {**server, **cluster}}],
        "users": [{"name": "u", "user": dict(user)}],
    }


class ApiFrontend(Frontend):
    """A frontend with `api`, the API server of its cluster, which `kubeconfig` reaches."""

    def __init__(self, binary: str, certificates: Certificates) -> None:
        super().__init__(binary)
        self.certificates = certificates
        self.api = ApiServer(token=TOKEN)
        self.kubeconfig = self.directory / "kubeconfig"
        self._api_stack = contextlib.AsyncExitStack()

    def __enter__(self) -> Self:
        super().__enter__()
        self.start_api()
        # Load balancers exclude this node, as they do control-plane nodes.
        self.kube_node("node1", "192.0.2.1", {NOT_BALANCED: ""})
        self.settings["cluster"]["api"] = {"kubeconfig": str(self.kubeconfig)}
        return self

    def __exit__(self, *exc: object) -> None:
        # Before the API server: a TLS handshake in progress would be left without an owner.
        self.stop_daemon()
        self.stop_api()
        super().__exit__(*exc)

    def start_api(self, certificate: str = "server") -> None:
        """Serve the API, on the same port as before."""
        self._api_stack = contextlib.AsyncExitStack()
        context = self.certificates.server_context(name=certificate)
        serving = self.api.serving(context, self.api.port)
        self.call(self._api_stack.enter_async_context(serving))
        self.write_kubeconfig()

    def stop_api(self) -> None:
        """Stop the API server and close all connections."""
        self.call(self._api_stack.aclose())

    def write_kubeconfig(self, token: str = TOKEN) -> None:
        """Write a kubeconfig with a ServiceAccount's token, the only one the server accepts."""
        self.api.token = token
        document = kubeconfig_of(self.api.port, self.certificates, {"token": token})
        self.kubeconfig.write_text(json.dumps(document))
        self.kubeconfig.chmod(0o600)

    def kube_service(
        self,
        name: str,
        *,
        cluster_ip: str | None = None,
        port: int = 80,
        target: Any = 8080,
        port_name: str = "http",
    ) -> None:
        """Create or replace a Service: headless, unless it has a `cluster_ip`."""
        item = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": cluster_ip or "None",
                "clusterIPs": [cluster_ip or "None"],
                "ports": [
                    {"name": port_name, "port": port, "protocol": "TCP", "targetPort": target}
                ],
            },
        }
        self._put("services", item)

    def balanced_service(
        self,
        name: str,
        ports: Mapping[int, str] | None = None,
        *,
        annotations: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> None:
        """Create or replace a Service of type LoadBalancer; `ports` have protocols."""
        item = {
            "metadata": {
                "name": name,
                "namespace": "default",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": dict(annotations or {}),
            },
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "None",
                "clusterIPs": ["None"],
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "allocateLoadBalancerNodePorts": False,
                "loadBalancerClass": "fc-frontend.io/haproxy",
                "ports": [
                    {
                        "name": f"{protocol}-{port}".lower(),
                        "port": port,
                        "protocol": protocol,
                        "targetPort": 8080,
                    }
                    for port, protocol in (ports or {80: "TCP"}).items()
                ],
                **spec,
            },
            "status": {"loadBalancer": {}},
        }
        known = self.api.objects.now.get(("services", "default", name))
        if known is not None and "status" in known:
            # A client that writes an object does not change its status.
            item["status"] = known["status"]
        self._put("services", item)

    def delete_service(self, name: str) -> None:
        """Delete a Service."""

        async def delete() -> None:
            self.api.objects.delete(("services", "default", name))

        self.call(delete())

    def kube_node(
        self, name: str, address: str, labels: dict[str, str] | None = None, *, ready: bool = True
    ) -> None:
        """Create or replace a Node with this address within the cluster's network."""
        reason = "KubeletReady" if ready else "KubeletNotReady"
        item = {
            "metadata": {"name": name, "labels": labels or {}},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": str(ready), "reason": reason}],
                "nodeInfo": {"kubeletVersion": "v1.33.1+k3s1"},
            },
        }
        self._put("nodes", item)

    def token_secret(self, namespace: str, name: str) -> None:
        """Create a ServiceAccount's token Secret, as the Kubernetes controller does."""
        data = {
            "token": base64.b64encode(TOKEN.encode()).decode(),
            "ca.crt": self.certificates.data("ca.crt"),
        }
        metadata = {"name": name, "namespace": namespace}
        self._put(
            "secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
        )

    async def break_connections(self) -> None:
        """Reset all connections to the API server, in its event loop."""
        self.api.kill()

    def endpoints(
        self,
        name: str,
        states: dict[str, dict[str, bool]],
        *,
        port: int = 8080,
        port_names: Iterable[str] = ("http",),
        number: int = 1,
    ) -> float:
        """Create or replace the EndpointSlice `number` of a Service; return the time of the change.

        `states` are the conditions of each address.
        """
        item = {
            "metadata": {
                "name": f"{name}-{number}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": each, "port": port, "protocol": "TCP"} for each in port_names],
            "endpoints": [
                {
                    "addresses": [address],
                    "conditions": conditions,
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": f"pod-{address}"},
                }
                for address, conditions in states.items()
            ],
        }
        self._put("endpointslices", item)
        return time.monotonic()

    def ready_endpoints(self, name: str, addresses: Iterable[str], *, port: int = 8080) -> float:
        """Make exactly `addresses` the ready endpoints; return the time of the change."""
        return self.endpoints(name, dict.fromkeys(addresses, READY), port=port)

    def _put(self, resource: str, item: Json) -> None:
        metadata = item["metadata"]
        key = (resource, metadata.get("namespace", ""), metadata["name"])

        async def put() -> None:
            if key in self.api.objects.now:
                self.api.objects.update(key, item)
            else:
                self.api.objects.create(resource, item)

        self.call(put())

    def cluster_ip(self, name: str) -> tuple[str, PodSet]:
        """Return a cluster IP that accepts connections, as with kube-proxy, and its pods."""
        address = f"127.{self.octet}.130.{len(self.pods) + 1}"
        behind = PodSet(f"{name}-vip", network=f"{address}/32", port=80)
        self.pods[f"{name}-vip"] = behind
        self.call(behind.scale(1))
        return address, behind

    def slots(self, name: str) -> dict[str, tuple[str, int]]:
        """Return address and administrative state of each slot with a pod, from HAProxy."""
        from fc_frontend.haproxy import runtime

        path = self.settings["haproxy"]["runtime_socket"]
        return {
            server.server: (server.address, server.admin or 0)
            for server in runtime.servers_of(path, name)
            if server.address not in (None, FREE_ADDRESS)
        }
