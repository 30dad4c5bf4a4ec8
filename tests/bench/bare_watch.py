"""The minimal solution: watch one slice, and send `set server`.  A process of its own.

python -m tests.bench.bare_watch SERVER CA TOKEN SERVICE SOCKET SLOTS

It ignores HAProxy's state, failures, and other services.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
import threading
import time

FREE = "127.0.0.255"


def main() -> None:
    host, port, ca, token, service, path, count = sys.argv[1:8]
    threading.Thread(target=alive, args=(path,), daemon=True).start()
    context = ssl.create_default_context(cafile=ca)
    connection = http.client.HTTPSConnection(host, int(port), context=context)
    query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    query += "&allowWatchBookmarks=true&timeoutSeconds=600"
    query += f"&labelSelector=kubernetes.io%2Fservice-name%3D{service}"
    connection.request(
        "GET",
        f"/apis/discovery.k8s.io/v1/endpointslices?{query}",
        headers={"Authorization": f"Bearer {token}"},
    )
    slots: dict[str, str] = {}
    free = [f"pod{number}" for number in range(int(count), 0, -1)]
    for line in connection.getresponse():
        event = json.loads(line)
        if event["type"] not in ("ADDED", "MODIFIED"):
            continue
        commands, wanted = [], set()
        for endpoint in event["object"]["endpoints"]:
            address = endpoint["addresses"][0]
            wanted.add(address)
            if not endpoint["conditions"]["ready"]:
                if address in slots:
                    commands.append(f"set server {service}/{slots[address]} state drain")
                continue
            slot = slots.get(address) or free.pop()
            slots[address] = slot
            number = event["object"]["ports"][0]["port"]
            commands.append(f"set server {service}/{slot} addr {address} port {number}")
            commands.append(f"set server {service}/{slot} state ready")
        for address in [each for each in slots if each not in wanted]:
            slot = slots.pop(address)
            free.append(slot)
            commands.append(f"set server {service}/{slot} state maint")
            commands.append(f"set server {service}/{slot} addr {FREE} port 1")
        if commands:
            send(path, ";".join(commands))


def alive(path: str) -> None:
    while True:
        for table in ("fc-alive-10s", "fc-alive-30s"):
            send(path, f"set table {table} key daemon data.gpc0 1")
        time.sleep(2)


def send(path: str, text: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(text.encode() + b"\n")
        while client.recv(65536):
            pass


if __name__ == "__main__":
    main()
