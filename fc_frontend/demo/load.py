"""Clients that send requests continuously, and count answers by pod, and failures.

Half of the clients keep their connection alive, the others open a new one for each request: a
reload can affect either.  Used by the demo, and by tests and benches, which must not miss a
failure.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self


@dataclass(slots=True)
class Tally:
    """The results of the requests so far.  `pods` counts answers by pod name."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    pods: Counter[str] = field(default_factory=Counter)

    def since(self, before: Tally) -> Tally:
        """Return the results added since `before`."""
        return Tally(
            self.requests - before.requests,
            self.failures[len(before.failures) :],
            self.pods - before.pods,
        )


class Load:
    """Threads that request `/` from one address, `interval` seconds apart, until stopped."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        clients: int = 8,
        interval: float = 0.01,
        timeout: float = 5.0,
    ) -> None:
        self._host = host
        self._port = port
        self._interval = interval
        self._timeout = timeout
        self._tally = Tally()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number % 2 == 0,), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> Tally:
        """End all clients, each after its request, and return the final count."""
        self._stop.set()
        for thread in self._threads:
            thread.join(self._timeout + 1)
        return self.tally()

    def tally(self) -> Tally:
        """Return a copy of the count so far."""
        with self._lock:
            return Tally(
                self._tally.requests, list(self._tally.failures), Counter(self._tally.pods)
            )

    def _client(self, keep_alive: bool) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.wait(self._interval):
            if connection is None:
                connection = http.client.HTTPConnection(
                    self._host, self._port, timeout=self._timeout
                )
            pod, failure = ask(connection)
            with self._lock:
                self._tally.requests += 1
                if failure:
                    self._tally.failures.append(failure)
                else:
                    self._tally.pods[pod] += 1
            if failure or not keep_alive:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


def ask(connection: http.client.HTTPConnection) -> tuple[str, str | None]:
    """Request `/`; return the name of the pod that answered, and the error, if any."""
    try:
        connection.request("GET", "/")
        if connection.sock is not None:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as exc:
        return "", f"{time.strftime('%H:%M:%S')} {type(exc).__name__}: {exc}"
    if response.status != 200:
        return "", f"{time.strftime('%H:%M:%S')} status {response.status}"
    return response.headers.get("X-Pod", ""), None
