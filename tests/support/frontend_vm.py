"""A frontend VM for tests/test_readme.py, made of namespaces: runs the README's root commands.

unshare --mount --pid --fork python tests/support/frontend_vm.py setup COMMAND... -- COMMAND...

The first commands install software and use the host's network; the others run in a network
namespace with the README's addresses, a cluster DNS at 10.0.0.254, pods in 10.1.0.0/16 and Debian's
HAProxy, started like its systemd unit.  Writes to /etc, /opt, /run and /var/lib are kept in memory
and are lost with the namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
import subprocess
import sys
from pathlib import Path

from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.demo.pods import Pod
from tests.support.frontend import patiently as until

ADDRESSES = ("198.51.100.2/32", "10.0.0.254/32", "10.1.0.1/32", "10.1.0.2/32")
PODS = ("10.1.0.1", "10.1.0.2")
WRITTEN = ("/etc", "/opt", "/run", "/var/lib")
HAPROXY = (
    *("/usr/sbin/haproxy", "-Ws", "-f", "/etc/haproxy/haproxy.cfg"),
    *("-p", "/run/haproxy.pid", "-S", "/run/haproxy-master.sock"),
)
"""ExecStart= of Debian's haproxy.service."""


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def shell(command: str) -> None:
    print(f"# {command}", flush=True)
    done = subprocess.run(["/bin/sh", "-c", command], check=False, timeout=240)
    # `diff` exits with 1 if there are changes to deploy.
    assert done.returncode == int(command.endswith(" diff")), f"{command}: {done.returncode}"


def overlay() -> None:
    run("mount", "-t", "tmpfs", "none", "/mnt")
    for path in WRITTEN:
        name = path.strip("/").replace("/", "-")
        upper, work = Path("/mnt", name, "upper"), Path("/mnt", name, "work")
        upper.mkdir(parents=True)
        work.mkdir()
        options = f"lowerdir={path},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", options, path)
    for path in ("/etc/fc-frontend", "/opt/fc-frontend", "/var/lib/fc-frontend"):
        shutil.rmtree(path, ignore_errors=True)


def network() -> None:
    run("ip", "link", "set", "lo", "up")
    for address in ADDRESSES:
        run("ip", "address", "add", address, "dev", "lo")
    run("ip", "address", "add", "2a02:238:f030::1000/128", "dev", "lo", "nodad")


def get(host: str, port: int, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    connection.request("GET", path)
    return connection.getresponse()


def served(address: str) -> str:
    """Return the pod that responds on port 443 of `address`; retry until one does."""
    return str(until(lambda: get(address, 443, "/").headers["X-Pod"]))


async def serve(commands: list[str]) -> None:
    dns = ClusterDns(address="10.0.0.254", port=53, loopback_only=False)
    dns.set_service(KubernetesService("ingress", endpoints=PODS))
    pods = [
        Pod(f"ingress-{number}", address, 443, loopback_only=False)
        for number, address in enumerate(PODS, start=1)
    ]
    async with contextlib.AsyncExitStack() as stack:
        for actor in (dns, *pods):
            await stack.enter_async_context(actor)  # type: ignore[arg-type]
        await asyncio.to_thread(operate, commands)


def operate(commands: list[str]) -> None:
    """Run the operator's commands while Debian's HAProxy is running."""
    Path("/run/haproxy").mkdir(exist_ok=True)
    haproxy = subprocess.Popen(HAPROXY)
    try:
        until(Path("/run/haproxy-master.sock").exists)
        *finite, daemon = commands
        for command in finite:
            shell(command)
        print(f"# {daemon}", flush=True)
        running = subprocess.Popen(daemon.split())
        try:
            until(lambda: get("127.0.0.1", 9484, "/readyz").status == 200)
            for address in ("198.51.100.2", "2a02:238:f030::1000"):
                print("served by", served(address), flush=True)
        finally:
            running.terminate()
            assert running.wait(20) == 0
        print("served by", served("198.51.100.2"), flush=True)
    finally:
        haproxy.kill()
        haproxy.wait()


def main() -> None:
    if sys.argv[1] == "setup":
        split = sys.argv.index("--")
        overlay()
        for command in sys.argv[2:split]:
            shell(command)
        later = sys.argv[split + 1 :]
        os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, "serve", *later])
    network()
    asyncio.run(serve(sys.argv[2:]))


if __name__ == "__main__":
    main()
