"""An API server with users and RBAC, in a thread of its own, for commands and for kubectl."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.conftest import PATIENCE
from tests.support.api_cluster import TOKEN, kubeconfig_of
from tests.support.api_identities import Identities
from tests.support.api_objects import Json, Objects
from tests.support.api_server import ApiServer
from tests.support.certificates import Certificates
from tests.test_cli import fc

T = TypeVar("T")


class AccessCluster:
    """An `ApiServer` with identities.

    `kubeconfig` belongs to an administrator; commands run in `directory`.
    """

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        self.directory = directory
        self.certificates = certificates
        self.kubeconfig = directory / "admin.kubeconfig"
        objects = Objects()
        self.identities = Identities(objects, certificates, TOKEN)
        self.api = ApiServer(objects, identities=self.identities)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stack = contextlib.AsyncExitStack()

    def __enter__(self) -> Self:
        self._thread.start()
        context = self.certificates.server_context()
        context.load_verify_locations(self.certificates.path("ca.crt"))
        context.verify_mode = ssl.CERT_OPTIONAL
        self.call(self._stack.enter_async_context(self.api.serving(context)))
        self.write_kubeconfig({"token": TOKEN})
        return self

    def __exit__(self, *exc: object) -> None:
        self.call(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://127.0.0.1:{self.api.port}"

    def write_kubeconfig(self, user: Mapping[str, Any], **cluster: Any) -> None:
        """Write the kubeconfig of the user who runs commands."""
        document = kubeconfig_of(self.api.port, self.certificates, user, **cluster)
        self.kubeconfig.write_text(json.dumps(document))

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `fc-frontend kubeconfig`, which writes kubeconfigs for this server's own URL."""
        with contextlib.chdir(self.directory):
            return fc("kubeconfig", *arguments, **{"KUBECONFIG": str(self.kubeconfig), **environ})

    def made(self, *arguments: str) -> Path:
        """Return the kubeconfig that a run with these arguments writes."""
        path = self.directory / f"{len(list(self.directory.iterdir()))}.kubeconfig"
        done = self.run("--server", self.server, "--output", str(path), *arguments)
        assert done.returncode == 0, done.stderr
        return path

    def names(self, resource: str) -> list[str]:
        """Return the sorted names of all objects of a resource."""
        return [name for kind, _, name in sorted(self.api.objects.now) if kind == resource]

    def item(self, resource: str, namespace: str, name: str) -> Json:
        """Return an object as stored in the server."""
        return self.api.objects.now[(resource, namespace, name)]


def kubectl_with(
    kubectl: Path, kubeconfig: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the real kubectl with a kubeconfig."""
    home = kubeconfig.parent
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig)}
    return subprocess.run(
        [kubectl, *arguments], env=environ, capture_output=True, text=True, check=False
    )


def secrets_in(kubeconfig: Path) -> Iterator[str]:
    """Yield the token or key in a kubeconfig."""
    import yaml

    (entry,) = yaml.safe_load(kubeconfig.read_text())["users"]
    for name in ("token", "client-key-data"):
        if name in entry["user"]:
            yield entry["user"][name]
