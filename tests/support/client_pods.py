"""Pods for real clients: one speaks gRPC without TLS, the other WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc  # type: ignore[import-untyped]
from websockets.asyncio.server import ServerConnection, serve

RPC_SERVICE = "tests.Echo"
STREAM = f"/{RPC_SERVICE}/Stream"
CALL = f"/{RPC_SERVICE}/Call"


@contextlib.contextmanager
def grpc_pod(address: str, port: int = 8080) -> Iterator[None]:
    """A pod that echoes messages, in streams and single calls."""
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
    """A pod that echoes messages of WebSockets."""
    loop = asyncio.new_event_loop()
    started, ended = threading.Event(), asyncio.Event()

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def run() -> None:
        async with serve(echo, address, port, ping_interval=None):
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
