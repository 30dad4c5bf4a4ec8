"""Pods for real clients: one speaks gRPC without TLS, the other WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc  # type: ignore[import-untyped]
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

RPC_SERVICE = "tests.Echo"
STREAM = f"/{RPC_SERVICE}/Stream"
CALL = f"/{RPC_SERVICE}/Call"


@contextlib.contextmanager
def grpc_pod(address: str, port: int = 8080) -> Iterator[None]:
    """Run a pod that echoes messages, in streams and single calls."""
    handlers = {
        "Stream": grpc.stream_stream_rpc_method_handler(lambda messages, _context: messages),
        "Call": grpc.unary_unary_rpc_method_handler(lambda message, _context: message),
    }
    server = grpc.server(ThreadPoolExecutor(32))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(RPC_SERVICE, handlers),))
    assert server.add_insecure_port(f"{address}:{port}") == port
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait(10)


@contextlib.contextmanager
def websocket_pod(address: str, port: int = 8080) -> Iterator[None]:
    """Run a pod that echoes WebSocket messages."""

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    with _serving(lambda: serve(echo, address, port, ping_interval=None)):
        yield


DASHBOARD_PAGE = """<!doctype html><title>Dashboard</title>
<pre id=page>%s</pre><pre id=socket></pre>
<script>
  const socket = new WebSocket(location.origin.replace("http", "ws") + "/wsMultiplexer");
  socket.onopen = () => socket.send("hello");
  socket.onmessage = event => { document.getElementById("socket").textContent = event.data; };
</script>"""
DASHBOARD_COOKIE = "headlamp-auth-main.0=token; HttpOnly; Secure; SameSite=Strict; Path=/"


@contextlib.contextmanager
def dashboard_pod(address: str, port: int) -> Iterator[None]:
    """Run a stand-in for a dashboard, whose page and WebSocket show the request's headers.

    Any other path, such as `/headers`, returns them as JSON.  Like Headlamp, it keeps a token in a
    cookie.
    """

    def page(_connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return None
        text, kind = _shown(request), "application/json"
        if request.path == "/":
            text, kind = DASHBOARD_PAGE % html.escape(text), "text/html"
        headers = Headers({"Content-Type": kind, "Content-Length": str(len(text.encode()))})
        headers["Set-Cookie"] = DASHBOARD_COOKIE
        headers["Connection"] = "close"
        return Response(200, "OK", headers, text.encode())

    async def show(connection: ServerConnection) -> None:
        assert connection.request is not None
        async for _ in connection:
            await connection.send(_shown(connection.request))

    with _serving(lambda: serve(show, address, port, process_request=page, ping_interval=None)):
        yield


def _shown(request: Request) -> str:
    pairs = [(name.lower(), value) for name, value in request.headers.raw_items()]
    return json.dumps({"path": request.path, "headers": pairs})


@contextlib.contextmanager
def _serving(server: Callable[[], AbstractAsyncContextManager[Any]]) -> Iterator[None]:
    """Run a server in a thread for the duration of the block."""
    loop = asyncio.new_event_loop()
    started, ended = threading.Event(), asyncio.Event()

    async def run() -> None:
        async with server():
            started.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()
