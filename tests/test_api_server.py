"""The small API server of the tests answers as a real one did (Kubernetes 1.36)."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.conftest import until_in_loop
from tests.support.api_identities import Identities, stamped
from tests.support.api_objects import Json, Objects
from tests.support.api_server import ApiServer
from tests.support.certificates import Certificates

RECORDED = Path(__file__).parent / "recorded" / "kubernetes"


class Answer:
    """A raw answer of an API server."""

    def __init__(self, raw: bytes) -> None:
        head, _, body = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        self.body = body
        if self.headers.get("transfer-encoding") == "chunked":
            self.body = b""
            while body:
                size, _, body = body.partition(b"\r\n")
                self.body += body[: int(size, 16)]
                body = body[int(size, 16) + 2 :]

    @property
    def object(self) -> Json:
        found: Json = json.loads(self.body)
        return found

    @property
    def events(self) -> list[Json]:
        return [json.loads(line) for line in self.body.splitlines()]


def recorded(name: str) -> Answer:
    return Answer((RECORDED / f"{name}.http").read_bytes())


async def replay(
    server: ApiServer, name: str, *, faster: bool = True, token: str | None = None
) -> Answer:
    """Return the answer of `server` to the recorded request, with another token if given."""
    request = (RECORDED / f"{name}.request").read_bytes()
    if b"\r\n" not in request:
        head, _, body = request.partition(b"\n\n")
        request = head.strip().replace(b"\n", b"\r\n") + b"\r\n\r\n" + body.strip()
    if token is not None:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [each for each in head.split(b"\r\n") if not each.startswith(b"Authorization:")]
        lines.append(b"Authorization: Bearer " + token.encode())
        request = b"\r\n".join(lines) + b"\r\n\r\n" + body
    if faster:
        for seconds in (b"12", b"8", b"6", b"4", b"3"):
            request = request.replace(b"timeoutSeconds=" + seconds + b"&", b"timeoutSeconds=0.3&")
            request = request.replace(b"timeoutSeconds=" + seconds + b" ", b"timeoutSeconds=0.3 ")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    raw = await reader.readuntil(b"\r\n\r\n")
    if b"chunked" in raw:
        raw += await reader.readuntil(b"0\r\n\r\n")
    else:
        length = next(
            int(line.split(b":")[1]) for line in raw.split(b"\r\n") if b"Content-Length" in line
        )
        raw += await reader.readexactly(length)
    writer.close()
    return Answer(raw)


def named(name: str, **spec: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "shop"}, **spec}


def slice_of(service: str, name: str) -> Json:
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": None,
        "ports": None,
    }


def filled() -> Objects:
    """Return roughly the recorded objects, with the versions that recorded requests name."""
    objects = Objects()
    for name in ("api", "lb", "web"):
        kind = "LoadBalancer" if name == "lb" else "ClusterIP"
        objects.create("services", named(name, spec={"type": kind}))
    objects.create("endpointslices", slice_of("manual", "manual-1"))
    for number in (4, 6):
        objects.create("endpointslices", slice_of("dual", f"dual-{number}"))
    for number in (1, 2):
        objects.create("endpointslices", slice_of("named", f"named-{number}"))
    objects.create("leases", named("held", spec={}))
    return objects


STATUSES = (
    "endpointslice-exists", "lb-status-stale", "list-continue-malformed", "list-exact-expired",
    "not-found-namespace-service", "forbidden-list", "forbidden-watch", "unauthorized",
    "watch-unauthorized", "watch-initial-events-invalid", "bad-resource-version",
    "bad-request-limit", "future-resource-version", "lease-missing",
    "lb-status-invalid", "cluster-ip-status-patch", "forbidden-status-patch",
)  # fmt: skip


@pytest.mark.parametrize("name", STATUSES)
def test_errors_are_those_of_a_real_server(name: str) -> None:
    async def scene() -> Answer:
        server = ApiServer(filled())
        server.objects.oldest = 10
        if name.startswith("forbidden"):
            server.denied = {
                ("list", "services"), ("watch", "endpointslices"), ("patch", "services/status"),
            }  # fmt: skip
            server.user = "frontend" if name == "forbidden-status-patch" else server.user
        if "unauthorized" in name:
            server.token = "another"
        async with server.serving():
            return await replay(server, name)

    real, ours = recorded(name), asyncio.run(scene())
    assert ours.status == real.status
    assert ours.headers.get("retry-after") == real.headers.get("retry-after")
    for field in ("kind", "apiVersion", "status", "reason", "code", "details"):
        assert ours.object.get(field) == real.object.get(field), field
    exact = {"list-continue-malformed", "future-resource-version", "bad-request-limit"}
    if name not in exact:
        assert ours.object["message"] == real.object["message"]


def without_times(item: Json) -> Json:
    """Return an object without the fields that depend on who wrote it and when."""
    metadata = {"name": item["metadata"]["name"], "namespace": item["metadata"]["namespace"]}
    return {**item, "metadata": metadata}


def _of_status(answer: Answer) -> list[Json]:
    """Return the managers of the status, without the times."""
    entries = answer.object["metadata"].get("managedFields", ())
    of_status = [each for each in entries if each.get("subresource") == "status"]
    return [{name: each[name] for name in each if name != "time"} for each in of_status]


def test_the_status_of_a_service_is_patched_as_a_real_server_does() -> None:
    names = ("lb-before", "lb-status-merge-patch", "lb-status-merge-patch-unchanged", "lb-after")

    async def scene() -> list[Answer]:
        objects = Objects()
        before = recorded("lb-before").object
        objects.create("services", {name: before[name] for name in ("metadata", "spec", "status")})
        async with ApiServer(objects).serving() as server:
            answers = [await replay(server, name) for name in names]
            answers.append(await replay(server, "lb-status-cleared"))
        return answers

    answers = asyncio.run(scene())
    for name, ours in zip(names, answers, strict=False):
        assert ours.status == recorded(name).status == 200
        assert without_times(ours.object) == without_times(recorded(name).object), name
    managed = [_of_status(each) for each in (answers[1], recorded("lb-status-merge-patch"))]
    assert managed[0] == managed[1] != []
    assert _of_status(answers[-1]) == []
    versions = [each.object["metadata"]["resourceVersion"] for each in answers]
    assert versions[1] == versions[2] == versions[3], "nothing changed"
    cleared = recorded("lb-status-cleared").object["status"]
    assert answers[-1].object["status"]["loadBalancer"] == cleared["loadBalancer"] == {}


def test_a_lease_changes_hands_as_on_a_real_server() -> None:
    names = ("lease-missing", "lease-create", "lease-exists", "lease-update", "lease-conflict",
             "lease-bad-time")  # fmt: skip

    async def scene() -> list[Answer]:
        objects = Objects(version=1256)
        async with ApiServer(objects).serving() as server:
            return [await replay(server, name) for name in names]

    for name, ours in zip(names, asyncio.run(scene()), strict=True):
        real = recorded(name)
        assert ours.status == real.status, name
        for field in ("kind", "apiVersion", "spec", "reason"):
            assert ours.object.get(field) == real.object.get(field), (name, field)


def test_an_event_gets_a_name() -> None:
    async def scene() -> Answer:
        async with ApiServer().serving() as server:
            return await replay(server, "event-create")

    real, ours = recorded("event-create"), asyncio.run(scene())
    assert ours.status == real.status == 201
    assert ours.object["metadata"]["name"].startswith("lb-")
    of_metadata = ("metadata",)
    for field in ours.object.keys() - set(of_metadata):
        assert ours.object[field] == real.object[field]


def test_a_patch_needs_a_type_of_its_own() -> None:
    async def scene() -> Answer:
        async with ApiServer(filled()).serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"PATCH /api/v1/namespaces/shop/services/lb/status HTTP/1.1\r\n"
                b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
            raw = await reader.readuntil(b"}\n")
            writer.close()
            return Answer(raw)

    assert asyncio.run(scene()).status == 415


def test_a_path_of_no_api_has_no_json() -> None:
    async def scene() -> Answer:
        async with ApiServer(filled()).serving() as server:
            return await replay(server, "not-found-path")

    real, ours = recorded("not-found-path"), asyncio.run(scene())
    assert (ours.status, ours.body) == (real.status, real.body)
    assert ours.headers["content-type"] == real.headers["content-type"]


def test_pages_have_a_token_that_gives_the_rest() -> None:
    async def scene() -> tuple[Answer, str]:
        objects = filled()
        async with ApiServer(objects).serving() as server:
            return await replay(server, "services-page-1"), str(objects.version)

    real = recorded("services-page-1").object
    answer, version = asyncio.run(scene())
    ours = answer.object
    assert ours["kind"] == real["kind"]
    assert ours["metadata"].keys() == real["metadata"].keys()
    assert ours["metadata"]["remainingItemCount"] == 1
    assert ours["metadata"]["resourceVersion"] == version
    assert len(ours["items"]) == len(real["items"]) == 2
    assert "kind" not in ours["items"][0] and "kind" not in real["items"][0]


async def watched(server: ApiServer, name: str, *changes: Any) -> list[Json]:
    """Return the events of a recorded watch during which `changes` are made."""
    task = asyncio.create_task(replay(server, name))
    while not server.objects.listeners:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for change in changes:
        change()
    return (await task).events


def moving(objects: Objects) -> tuple[Any, Any, Any]:
    """Create, change and delete a slice, as was done while the watches were recorded."""
    item = slice_of("manual", "moving")
    key = ("endpointslices", "shop", "moving")
    return (
        lambda: objects.create("endpointslices", item),
        lambda: objects.update(key, {**item, "ports": []}),
        lambda: objects.delete(key),
    )


def kinds(events: list[Json]) -> list[str]:
    return [event["type"] for event in events]


@pytest.mark.parametrize("name", ["watch-endpointslices", "watch-initial-events", "watch-selector"])
def test_watches_have_the_events_of_a_real_server(name: str) -> None:
    async def scene() -> list[Json]:
        objects = filled()
        objects.version = 1300
        server = ApiServer(objects, bookmark_seconds=0.1)
        changes: tuple[Any, ...] = moving(objects)
        if name == "watch-selector":
            item = slice_of("leaving", "leaver")
            key = ("endpointslices", "shop", "leaver")
            other = slice_of("other", "leaver")
            changes = (
                lambda: objects.create("endpointslices", item),
                lambda: objects.update(key, other),
            )
        async with server.serving():
            return await watched(server, name, *changes)

    real, ours = recorded(name).events, asyncio.run(scene())
    wanted = kinds(real)
    assert kinds(ours)[: len(wanted)] == wanted
    for theirs, event in zip(real, ours, strict=False):
        assert event["object"]["kind"] == theirs["object"]["kind"]
        assert event["object"]["apiVersion"] == theirs["object"]["apiVersion"]
        for key in ("annotations", "name"):
            has = key in theirs["object"]["metadata"]
            assert (key in event["object"]["metadata"]) is has
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in ours]
    deleted = [event for event in ours if event["type"] == "DELETED"][-1]
    assert int(deleted["object"]["metadata"]["resourceVersion"]) == max(versions)


def test_an_expired_watch_is_good_and_has_an_error_event() -> None:
    async def scene() -> Answer:
        async with ApiServer(filled()).serving() as server:
            return await replay(server, "watch-expired")

    real, ours = recorded("watch-expired"), asyncio.run(scene())
    assert ours.status == real.status == 200
    ((theirs,), (event,)) = real.events, ours.events
    assert event["type"] == theirs["type"] == "ERROR"
    for field in ("kind", "status", "reason", "code"):
        assert event["object"][field] == theirs["object"][field]


def test_a_watch_from_the_future_is_silent() -> None:
    async def scene() -> Answer:
        async with ApiServer(filled()).serving() as server:
            return await replay(server, "watch-future-resource-version")

    real, ours = recorded("watch-future-resource-version"), asyncio.run(scene())
    assert (ours.status, ours.body) == (real.status, real.body) == (200, b"")


@pytest.mark.parametrize("name", ["access-review-allowed", "access-review-denied"])
def test_an_access_review_says_what_is_allowed(name: str) -> None:
    async def scene() -> Answer:
        server = ApiServer(filled(), denied={("patch", "services/status")})
        async with server.serving():
            return await replay(server, name)

    real, ours = recorded(name), asyncio.run(scene())
    assert ours.status == real.status
    assert ours.object["status"]["allowed"] is real.object["status"]["allowed"]
    assert ours.object["spec"] == real.object["spec"]


ADMIN_TOKEN = "dummy." * 2


def answers(certificates: Certificates, *names: str) -> list[Answer]:
    """Return the answers of a server with identities to recorded requests from an administrator."""

    async def scene() -> list[Answer]:
        objects = Objects()
        server = ApiServer(objects, identities=Identities(objects, certificates, ADMIN_TOKEN))
        item = {"metadata": {"name": "frontend", "namespace": "shop"}}
        objects.create("serviceaccounts", stamped(item))
        # The recorded approval contains the version of the recorded request.
        objects.version = 1259
        key = ("certificatesigningrequests", "", "frontend-vm1")
        async with server.serving():
            found = []
            for name in names:
                if name == "csr-signed":
                    await until_in_loop(lambda: "certificate" in objects.now[key]["status"])
                found.append(await replay(server, name, token=ADMIN_TOKEN))
            return found

    return asyncio.run(scene())


@pytest.mark.parametrize("name", ["csr-bad", "token-request-too-short", "token-request-no-account"])
def test_what_is_not_issued_is_refused_as_by_a_real_server(
    name: str, certificates: Certificates
) -> None:
    (ours,) = answers(certificates, name)
    real = recorded(name)
    assert (ours.status, ours.object) == (real.status, real.object)


def test_a_token_is_issued_as_by_a_real_server(certificates: Certificates) -> None:
    (ours,) = answers(certificates, "token-request")
    real = recorded("token-request")
    assert ours.status == real.status
    assert shape(ours.object) == shape(without(real.object, "managedFields", "uid"))
    assert ours.object["spec"] == real.object["spec"]


def test_a_certificate_is_requested_approved_and_signed_as_by_a_real_server(
    certificates: Certificates,
) -> None:
    names = ("csr-create", "csr-approve", "csr-signed")
    for name, ours in zip(names, answers(certificates, *names), strict=True):
        real = recorded(name)
        assert ours.status == real.status
        assert shape(ours.object) == shape(without(real.object, "extra"))
        given, had = (
            each["status"].pop("certificate", None) for each in (ours.object, real.object)
        )
        assert (given is None) == (had is None) == (name != "csr-signed")
        if given is not None:
            one, other = (
                x509.load_pem_x509_certificate(base64.b64decode(pem)) for pem in (given, had)
            )
            lifetimes = [c.not_valid_after_utc - c.not_valid_before_utc for c in (one, other)]
            assert one.subject == other.subject
            assert lifetimes[0] == lifetimes[1]
            usages = [
                c.extensions.get_extension_for_class(x509.ExtendedKeyUsage) for c in (one, other)
            ]
            assert usages[0] == usages[1]


def test_a_token_says_who_has_it_and_ends_with_its_account(certificates: Certificates) -> None:
    async def scene() -> list[Answer]:
        objects = Objects()
        identities = Identities(objects, certificates, ADMIN_TOKEN)
        server = ApiServer(objects, identities=identities)
        key = ("serviceaccounts", "shop", "frontend")
        item = stamped({"metadata": {"name": "frontend", "namespace": "shop"}})
        objects.create("serviceaccounts", item)
        token = identities.token(key, {"spec": {}})["status"]["token"]
        async with server.serving():
            known = await replay(server, "self-subject-review", token=token)
            objects.delete(key)
            gone = await replay(server, "unauthorized-deleted-account", token=token)
            return [known, gone]

    known, gone = asyncio.run(scene())
    real = recorded("self-subject-review")
    assert known.status == real.status
    assert shape(known.object) == shape(without(real.object, "extra"))
    infos = [each.object["status"]["userInfo"] for each in (known, real)]
    assert all(infos[0][field] == infos[1][field] for field in ("username", "groups"))
    assert (gone.status, gone.object) == (401, recorded("unauthorized-deleted-account").object)


def test_a_deletion_is_answered_as_by_a_real_server(certificates: Certificates) -> None:
    async def scene() -> Answer:
        objects = Objects()
        objects.create("leases", stamped(named("frontend", spec={})))
        async with ApiServer(objects).serving() as server:
            return await replay(server, "lease-delete")

    ours, real = asyncio.run(scene()), recorded("lease-delete")
    assert ours.status == real.status
    assert shape(ours.object) == shape(real.object)


def without(item: Any, *names: str) -> Any:
    """Return a document without these fields, at any depth."""
    if isinstance(item, dict):
        return {name: without(each, *names) for name, each in item.items() if name not in names}
    return [without(each, *names) for each in item] if isinstance(item, list) else item


def shape(item: Any) -> Any:
    """Return the fields of a document, with the types of their values."""
    if isinstance(item, dict):
        return {name: shape(each) for name, each in item.items()}
    return [shape(each) for each in item] if isinstance(item, list) else type(item).__name__
