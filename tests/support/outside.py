"""Test which connections from another host pass the packet filter rules of a network namespace.

unshare --net python -m tests.support.outside '["nft", "-f", "rules"]' '[["198.51.100.2", 80]]'

It creates the other host as a namespace of its own, gives this one the addresses, loads the rules
with the command, listens on all ports, and prints which connections arrive, as a list of booleans.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

PATIENCE = "1.5"
"""Seconds before a connection counts as lost: a first packet is sent again after one second."""

CLIENT = """
import asyncio, json, sys
async def connect(host, port, patience):
    try:
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except OSError:
        pass
async def main():
    patience = float(sys.argv[2])
    await asyncio.gather(*(connect(*each, patience) for each in json.loads(sys.argv[1])))
asyncio.run(main())
"""


def ip(*words: str, inside: Iterable[str] = ()) -> None:
    subprocess.run([*inside, "ip", *words], check=True)


def connect(addresses: Iterable[str], other: int) -> list[str]:
    """Let process `other` reach `addresses` here; return the command prefix that runs beside it."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    ip("link", "set", "eth1", "netns", str(other))
    inside = ["nsenter", f"--target={other}", "--net"]
    for way in (
        ["-4", "192.0.2.1/24", "192.0.2.9/24"],
        ["-6", "2001:db8:1::1/64", "2001:db8:1::9/64"],
    ):
        family, mine, theirs = way
        nodad = ["nodad"] if family == "-6" else []
        ip(family, "address", "add", mine, "dev", "eth0", *nodad)
        ip(family, "address", "add", theirs, "dev", "eth1", *nodad, inside=inside)
    ip("link", "set", "eth0", "up")
    ip("link", "set", "eth1", "up", inside=inside)
    for family, gateway in (("-4", "192.0.2.1"), ("-6", "2001:db8:1::1")):
        ip(family, "route", "add", "default", "via", gateway, inside=inside)
    for address in addresses:
        if address not in ("192.0.2.1", "2001:db8:1::1"):
            ip("address", "add", address, "dev", "lo")
    return inside


def listening(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.bind((host, port))
    found.listen()
    found.setblocking(False)
    return found


def has_connection(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def main(load: list[str], wanted: list[tuple[str, int]]) -> None:
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE) as other:
        mine = Path("/proc/self/ns/net").readlink()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{other.pid}/ns/net").readlink() == mine:
            assert time.monotonic() < deadline
        inside = connect(sorted({host for host, _ in wanted}), other.pid)
        listeners = [listening(*each) for each in wanted]
        subprocess.run(load, check=True)
        client = [sys.executable, "-c", CLIENT, json.dumps(wanted), PATIENCE]
        subprocess.run([*inside, *client], check=True)
        print(json.dumps([has_connection(each) for each in listeners]))
        assert other.stdin is not None
        other.stdin.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), [(host, port) for host, port in json.loads(sys.argv[2])])
