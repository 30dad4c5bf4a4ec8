"""A small Kubernetes API server on loopback, with faults, checked against recorded responses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from tests.support.api_identities import Identities, Identity, self_review, stamped
from tests.support.api_objects import (
    RESOURCES,
    ApiError,
    Json,
    Key,
    Objects,
    Query,
    bookmark,
    deleted,
    described,
    expired,
    qualified,
    typed,
)


class Fault(Enum):
    """The fault that applies to each new request."""

    KILL = auto()
    """Close the connection without a response."""
    MUTE = auto()
    """Never respond."""
    GARBAGE = auto()
    """Respond with something that is not HTTP."""
    BAD_EVENT = auto()
    """Send a line in a watch that is not JSON; lists are valid."""
    CUT = auto()
    """Close the connection in the middle of a body."""


@dataclass
class ApiServer:
    """A server for `objects`.  Each of `errors` is the response to one of the next requests.

    `token` is the only token that is accepted; with None, all clients are.  With `identities`,
    these decide on tokens, certificates and rights, and objects get a uid.  `user` may not use the
    verbs and resources in `denied`, such as ("watch", "endpointslices").  `keeps_ip_mode` is False
    for a server before 1.29, `streams_lists` for one before 1.32.  `bookmark_seconds` is the time
    between bookmarks, `requests` the requests so far.
    """

    objects: Objects = field(default_factory=Objects)
    token: str | None = None
    identities: Identities | None = None
    denied: set[tuple[str, str]] = field(default_factory=set)
    fault: Fault | None = None
    user: str = "nobody"
    keeps_ip_mode: bool = True
    errors: list[ApiError] = field(default_factory=list)
    streams_lists: bool = True
    marks_initial_end: bool = True
    bookmark_seconds: float = 60.0
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def serving(
        self, context: ssl.SSLContext | None = None, port: int = 0, host: str = "127.0.0.1"
    ) -> AsyncIterator[ApiServer]:
        """Accept connections within the block."""
        server = await asyncio.start_server(self._accept, host, port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.kill()

    @property
    def watches(self) -> int:
        """The number of open connections."""
        return len(self._writers)

    def kill(self) -> None:
        """Reset all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._serve(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {
            name.lower(): value.strip()
            for line in head[1:]
            if line
            for name, _, value in [line.partition(":")]
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append(f"{method} {target}")
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        self.tokens.append(token)
        match self.fault:
            case Fault.KILL:
                return False
            case Fault.MUTE:
                await asyncio.Event().wait()
            case Fault.GARBAGE:
                writer.write(b"\x00\x01 SSH-2.0-nothing\r\n\r\n")
                await writer.drain()
                return False
        try:
            if self.errors:
                raise self.errors.pop(0)
            if method == "PATCH" and headers.get("content-type") == "application/json":
                message = "the body of the request was in an unknown format"
                raise ApiError(415, "UnsupportedMediaType", message)
            who = self._identity(token, writer.get_extra_info("peercert"))
            agent = headers.get("user-agent", "").partition("/")[0]
            return await self._answer(writer, method, target, who, body, agent)
        except ApiError as error:
            _reply(writer, error.code, error.status, retry_after=error.retry_after)
            await writer.drain()
            return True

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        who: Identity,
        body: bytes,
        agent: str,
    ) -> bool:
        path, _, query_text = target.partition("?")
        if path == "/apis/authentication.k8s.io/v1/selfsubjectreviews" and method == "POST":
            _reply(writer, 201, self_review(who))
            return True
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" and method == "POST":
            _reply(writer, 201, self._review(who, json.loads(body)))
            return True
        if path == "/readyz" and method == "GET":
            _reply(writer, 200, b"ok")
            return True
        if method == "GET" and (description := described(path)) is not None:
            _reply(writer, 200, description)
            return True
        found = _parsed(path)
        if found is None:
            _reply(writer, 404, b"404 page not found\n")
            return True
        resource, namespace, name, subresource = found
        if method == "GET" and not name:
            query = Query(resource, namespace, query_text)
            self._allow(who, "watch" if query.is_watch else "list", resource, namespace)
            if query.is_watch:
                await self._watch(writer, query)
                return True
            page = query.page(self.objects)
            if self.fault is Fault.CUT:
                data = json.dumps(page).encode()
                writer.write(_head(200, "application/json") + b"Content-Length: %d\r\n\r\n"
                             % len(data) + data[: len(data) // 2])  # fmt: skip
                await writer.drain()
                return False
            _reply(writer, 200, page)
        else:
            key = (resource, namespace, name)
            _reply(writer, *self._single(who, method, key, subresource, body, agent))
        await writer.drain()
        return True

    def _identity(self, token: str | None, peer: Any) -> Identity:
        if self.identities is not None:
            return self.identities.identity(token, peer)
        if self.token is not None and token != self.token:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return Identity(f"system:serviceaccount:shop:{self.user}", ())

    def _single(
        self, who: Identity, method: str, key: Key, subresource: str, body: bytes, agent: str
    ) -> tuple[int, Json]:
        resource = key[0]
        item = json.loads(body) if body else {}
        whole = f"{resource}/{subresource}".rstrip("/")
        match method:
            case "GET":
                self._allow(who, "get", resource, key[1])
                return 200, typed(resource, self.objects.get(key))
            case "POST":
                self._allow(who, "create", whole, key[1])
                if self.identities is not None and whole == "serviceaccounts/token":
                    return 201, self.identities.token(key, item)
                return 201, typed(resource, self._created(who, key, item))
            case "PUT":
                self._allow(who, "update", whole, key[1], key[2])
                if self.identities is not None and subresource == "approval":
                    return 200, typed(resource, self.identities.approve(key, item))
                return 200, typed(resource, self.objects.update(key, item))
            case "PATCH":
                self._allow(who, "patch", whole, key[1], key[2])
                if not self.keeps_ip_mode:
                    balanced = item.get("status", {}).get("loadBalancer", {})
                    for entry in balanced.get("ingress") or ():
                        entry.pop("ipMode", None)
                return 200, typed(resource, self.objects.patch(key, item, subresource, agent))
            case "DELETE":
                self._allow(who, "delete", resource, key[1], key[2])
                return 200, deleted(key, self.objects.delete(key))
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method")

    def _created(self, who: Identity, key: Key, item: Json) -> Json:
        resource, namespace, _ = key
        if namespace:
            item["metadata"].setdefault("namespace", namespace)
        if self.identities is not None:
            if namespace:
                self.objects.get(("namespaces", "", namespace))
            if resource == "certificatesigningrequests":
                self.identities.check_request(item, who)
            item = stamped(item)
        return self.objects.create(resource, item)

    def _allow(
        self, who: Identity, verb: str, resource: str, namespace: str, name: str = ""
    ) -> None:
        is_denied = (verb, resource) in self.denied
        if self.identities is not None:
            is_denied |= not self.identities.may(who, verb, resource, namespace)
        if not is_denied:
            return
        plain = resource.partition("/")[0]
        group = RESOURCES[plain][0]
        named = f'"{name}" ' if name else ""
        where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
        raise ApiError(
            403,
            "Forbidden",
            f'{qualified(plain)} {named}is forbidden: User "{who.name}" cannot {verb} '
            f'resource "{resource}" in API group "{group}"{where}',
            details={
                **({"name": name} if name else {}),
                **({"group": group} if group else {}),
                "kind": plain,
            },
        )

    def _review(self, who: Identity, review: Json) -> Json:
        asked = review["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, [asked["resource"], asked.get("subresource")]))
        is_denied = (asked["verb"], resource) in self.denied
        if self.identities is not None:
            namespace = asked.get("namespace", "")
            is_denied |= not self.identities.may(who, asked["verb"], resource, namespace)
        status: Json = {"allowed": False} if is_denied else {"allowed": True, "reason": "allowed"}
        given = {name: value for name, value in asked.items() if value}
        spec = {"resourceAttributes": given}
        return {**review, "metadata": {}, "spec": spec, "status": status}

    async def _watch(self, writer: asyncio.StreamWriter, query: Query) -> None:
        """Send events until the query's timeout, then close the stream properly."""
        if query.initial and not self.streams_lists:
            raise ApiError(422, "Invalid", "resourceVersionMatch: Forbidden for watch")
        objects = self.objects
        changed = asyncio.Event()
        objects.listeners.append(changed.set)
        try:
            writer.write(_head(200, "application/json") + b"Transfer-Encoding: chunked\r\n\r\n")
            if self.fault is Fault.BAD_EVENT:
                _chunk(writer, b"not an event\n")
            if 0 < query.version < objects.oldest:
                error = expired(query.version, objects.oldest)
                _event(writer, "ERROR", error.status)
                writer.write(b"0\r\n\r\n")
                return
            at = query.version
            if not at or query.initial:
                at = objects.version
                for key, item in query.found(objects):
                    _event(writer, "ADDED", typed(key[0], item))
                if query.initial and self.marks_initial_end:
                    _event(writer, "BOOKMARK", bookmark(query.resource, at, is_end=True))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(query.timeout):
                    while True:
                        at = self._send_since(writer, query, at)
                        await writer.drain()
                        changed.clear()
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(self.bookmark_seconds):
                                await changed.wait()
                                continue
                        if query.bookmarks and at <= objects.version:
                            at = objects.version
                            _event(writer, "BOOKMARK", bookmark(query.resource, at))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            objects.listeners.remove(changed.set)

    def _send_since(self, writer: asyncio.StreamWriter, query: Query, at: int) -> int:
        for event in self.objects.events:
            if event.version > at:
                for kind, item in query.changes(event):
                    _event(writer, kind, item)
                at = event.version
        return at


def _parsed(path: str) -> tuple[str, str, str, str] | None:
    """Return resource, namespace, name and subresource of a path; None for an unknown path."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    match parts:
        case ["api", version, *rest]:
            group = ""
        case ["apis", group, version, *rest]:
            pass
        case _:
            return None
    namespace = ""
    if len(rest) >= 3 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    if not 1 <= len(rest) <= 3 or RESOURCES.get(rest[0], ())[:2] != (group, version):
        return None
    resource, name, subresource = [*rest, "", ""][:3]
    return resource, namespace, name, subresource


def _head(code: int, kind: str) -> bytes:
    phrase = HTTPStatus(code).phrase
    date = formatdate(usegmt=True)
    return f"HTTP/1.1 {code} {phrase}\r\nDate: {date}\r\nContent-Type: {kind}\r\n".encode()


def _reply(
    writer: asyncio.StreamWriter, code: int, body: Any, *, retry_after: int | None = None
) -> None:
    is_text = isinstance(body, bytes)
    data = body if is_text else json.dumps(body).encode() + b"\n"
    head = _head(code, "text/plain; charset=utf-8" if is_text else "application/json")
    if retry_after is not None:
        head += b"Retry-After: %d\r\n" % retry_after
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(data) + data)


def _event(writer: asyncio.StreamWriter, kind: str, item: Json) -> None:
    _chunk(writer, json.dumps({"type": kind, "object": item}).encode() + b"\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n" % len(data) + data + b"\r\n")
