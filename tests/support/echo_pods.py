"""Pods that echo the request, to show what a frontend changes in it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class EchoPod(ThreadingHTTPServer):
    """A pod that responds with JSON: its own address, and the request's path and headers."""

    daemon_threads = True

    def handle_error(self, *_arguments: object) -> None:
        """Ignore errors: health checks end their connections with a reset."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content = {
            "pod": self.connection.getsockname()[0],
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Write nothing."""


@contextlib.contextmanager
def echo_pod(address: str, port: int = 8080) -> Iterator[EchoPod]:
    """Run a pod for the duration of the block."""
    with EchoPod((address, port), _Handler) as pod:
        thread = threading.Thread(target=pod.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield pod
        finally:
            pod.shutdown()
            thread.join()
