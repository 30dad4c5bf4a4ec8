"""Access to an API server: kubeconfigs, files, programs, certificates, proxies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fc_frontend.errors import Unavailable
from fc_frontend.kubernetes.access import ApiAccess, Credential, FileCredentials
from fc_frontend.kubernetes.client import ApiClient, ApiReply
from fc_frontend.kubernetes.exec_plugin import ExecCredentials
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.kubernetes.kubeconfig import access_from_files, read_kubeconfig
from tests.support.api_objects import Objects
from tests.support.api_server import ApiServer, Fault
from tests.support.certificates import Certificates

SECRET = "secret-token-of-this-test"
V1 = "client.authentication.k8s.io/v1"
V1BETA1 = "client.authentication.k8s.io/v1beta1"
PATH = "/api/v1/services"


def kubeconfig(directory: Path, cluster: dict[str, Any], user: dict[str, Any], **more: Any) -> str:
    """Write a kubeconfig with the context `here` and another context `there`; return its path."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
            {"name": "there", "context": {"cluster": "d", "user": "u"}},
            {"name": "nowhere", "context": {"cluster": "e", "user": "u"}},
        ],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://127.0.0.1:6443", **cluster}},
            {"name": "d", "cluster": {"server": "https://[fd00::1]/k8s/clusters/a/"}},
        ],
        "users": [{"name": "u", "user": user}],
        **more,
    }
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def program(directory: Path, status: dict[str, Any], version: str = V1) -> tuple[str, ...]:
    """Write a credential plugin that prints `status` and records its input; return its command."""
    path = directory / "plugin.py"
    output = {"apiVersion": version, "kind": "ExecCredential", "status": status}
    path.write_text(
        "import os, sys\n"
        f"with open({str(directory / 'calls')!r}, 'a') as file:\n"
        "    file.write(os.environ['KUBERNETES_EXEC_INFO'] + '\\n')\n"
        f"sys.stdout.write({json.dumps(output)!r})\n"
    )
    return sys.executable, str(path)


def calls(directory: Path) -> list[Any]:
    return [json.loads(line) for line in (directory / "calls").read_text().splitlines()]


def test_a_context_is_chosen_by_name_and_has_its_url(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"tls-server-name": "kubernetes"}, {"token": SECRET})
    here = read_kubeconfig(path)
    assert (here.server, here.server_name) == ("https://127.0.0.1:6443", "kubernetes")
    there = read_kubeconfig(path, "there")
    assert there.server == "https://[fd00::1]:443/k8s/clusters/a"
    assert SECRET not in repr(here)


@pytest.mark.parametrize(
    ("cluster", "user", "context", "message"),
    [
        ({}, {"token": SECRET}, "missing", "the context 'missing' is missing"),
        ({}, {"token": SECRET}, "nowhere", "cluster or user of its context is missing"),
        ({"server": "http://a"}, {"token": SECRET}, None, "not an https URL"),
        ({"server": "https://u:p@a"}, {"token": SECRET}, None, "not an https URL"),
        ({"server": "https://a:x"}, {"token": SECRET}, None, "not a URL"),
        ({"proxy-url": "socks5://a"}, {"token": SECRET}, None, "proxy-url is not an http URL"),
        ({"certificate-authority-data": "%"}, {"token": SECRET}, None, "is not base64"),
        ({"certificate-authority-data": "YQ=="}, {"token": SECRET}, None, "is not PEM"),
        ({}, {}, None, "no certificate, token or exec"),
        ({}, {"auth-provider": {}}, None, "`auth-provider` is not supported"),
        ({}, {"token": "a\nb"}, None, "has no token"),
        ({}, {"exec": {"apiVersion": "client.authentication.k8s.io/v1alpha1", "command": "x"}},
         None, "apiVersion other than"),
        ({}, {"exec": {"apiVersion": V1}}, None, "has no command"),
    ],
)  # fmt: skip
def test_a_kubeconfig_that_gives_no_access_is_refused_with_the_reason(
    tmp_path: Path, cluster: Any, user: Any, context: str | None, message: str
) -> None:
    path = kubeconfig(tmp_path, cluster, user)
    with pytest.raises(Unavailable, match=message) as caught:
        read_kubeconfig(path, context)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- a", "\udc80"])
def test_a_file_that_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Unavailable, match="no access to the API"):
        read_kubeconfig(str(path))


def test_token_files_are_relative_to_the_kubeconfig_and_read_again_when_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text("first\n")
    path = kubeconfig(tmp_path, {}, {"tokenFile": "token"})

    async def played() -> list[str | None]:
        credentials = read_kubeconfig(path).credentials
        found = [(await credentials.get()).token]
        (tmp_path / "token").write_text("second\n")
        found.append((await credentials.get()).token)
        found.append((await credentials.get(renew=True)).token)
        (tmp_path / "token").unlink()
        found.append((await credentials.get(renew=True)).token)
        return found

    assert asyncio.run(played()) == ["first", "first", "second", "second"]


def test_a_token_file_that_never_existed_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be read"):
        asyncio.run(FileCredentials(tmp_path / "none").get())


@pytest.mark.parametrize("version", [V1, V1BETA1])
def test_a_plugin_is_run_once_until_its_credential_expires(tmp_path: Path, version: str) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    command = program(tmp_path, {"token": SECRET, "expirationTimestamp": soon}, version)
    path = kubeconfig(
        tmp_path,
        {"tls-server-name": "kubernetes"},
        {"exec": {"apiVersion": version, "command": command[0], "args": [command[1]],
                  "provideClusterInfo": True, "env": [{"name": "A", "value": "B"}]}},
    )  # fmt: skip

    async def played() -> list[str | None]:
        credentials = read_kubeconfig(path).credentials
        found = [await credentials.get(), await credentials.get()]
        assert len(calls(tmp_path)) == 1
        found.append(await credentials.get(renew=True))
        return [credential.token for credential in found]

    assert asyncio.run(played()) == [SECRET] * 3
    assert len(calls(tmp_path)) == 2
    assert calls(tmp_path)[0] == {
        "apiVersion": version,
        "kind": "ExecCredential",
        "spec": {
            "interactive": False,
            "cluster": {"server": "https://127.0.0.1:6443", "tls-server-name": "kubernetes"},
        },
    }


def test_an_expired_credential_of_a_plugin_is_renewed(tmp_path: Path) -> None:
    past = {"token": SECRET, "expirationTimestamp": "2020-01-01T00:00:00Z"}
    credentials = ExecCredentials(V1, program(tmp_path, past))

    async def played() -> None:
        await credentials.get()
        await credentials.get()

    asyncio.run(played())
    assert len(calls(tmp_path)) == 2


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", "failed with status 3"),
        ("print('{')", "did not print JSON"),
        ("print('{}')", "did not print an ExecCredential"),
        ("print('{\"kind\": \"ExecCredential\", \"status\": {}}')", "another version"),
        ("while True: print('x' * 65536)", "printed more than"),
        (f"print('{{\"apiVersion\": \"{V1}\", \"kind\": \"ExecCredential\", \"status\": {{}}}}')",
         "neither a token nor a certificate"),
    ],
)  # fmt: skip
def test_a_plugin_that_fails_is_reported(tmp_path: Path, code: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(code)
    credentials = ExecCredentials(V1, (sys.executable, str(path)))
    with pytest.raises(Unavailable, match=message):
        asyncio.run(credentials.get())


def test_a_plugin_that_is_not_installed_is_reported(tmp_path: Path) -> None:
    credentials = ExecCredentials(V1, (str(tmp_path / "nothing"),))
    with pytest.raises(Unavailable, match="cannot be started"):
        asyncio.run(credentials.get())


# Connections


def reach(server: ApiServer, certificates: Certificates, **more: Any) -> ApiAccess:
    """Return access to `server`, with verification of its certificate."""
    ca = certificates.path("ca.crt").read_bytes()
    return ApiAccess(**{"host": "127.0.0.1", "port": server.port, "ca": ca, **more})


async def asked(access: ApiAccess, path: str = PATH) -> ApiReply:
    async with ApiClient(lambda: access).connect() as connection:
        return await connection.request("GET", path)


def failure(server: ApiServer, context: Any, made: Any) -> ApiFailure:
    """Return the failure of a request."""

    async def played() -> ApiFailure:
        async with server.serving(context):
            with pytest.raises(ApiFailure) as caught:
                await asked(made())
            return caught.value

    return asyncio.run(played())


def test_a_connection_carries_several_requests(certificates: Certificates) -> None:
    async def played() -> None:
        async with ApiServer().serving(certificates.server_context()) as server:
            access = reach(server, certificates)
            async with ApiClient(lambda: access).connect() as connection:
                first = await connection.get(PATH)
                review = {"spec": {"resourceAttributes": {"verb": "list", "resource": "services"}}}
                answer = await connection.post(
                    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review
                )
                missing = await connection.request("GET", "/api/v1/nothing")
                assert connection.expires is not None
            assert first["kind"] == "ServiceList"
            assert answer["status"]["allowed"] is True
            assert missing.status == 404

    asyncio.run(played())


def test_a_client_certificate_is_presented(certificates: Certificates, tmp_path: Path) -> None:
    async def played() -> None:
        context = certificates.server_context(asks=True)
        async with ApiServer().serving(context) as server:
            url = f"https://127.0.0.1:{server.port}"
            files = {
                "ca_file": str(certificates.path("ca.crt")),
                "client_certificate": str(certificates.path("client.crt")),
                "client_key": str(certificates.path("client.key")),
            }
            assert (await asked(access_from_files(url, **files))).status == 200
            user = {
                "client-certificate-data": certificates.data("client.crt"),
                "client-key-data": certificates.data("client.key"),
            }
            cluster = {
                "server": url, "certificate-authority-data": certificates.data("ca.crt"),
            }  # fmt: skip
            path = kubeconfig(tmp_path, cluster, user)
            assert (await asked(read_kubeconfig(path))).status == 200
            without = replace(access_from_files(url, **files), credentials=reach(
                server, certificates).credentials)  # fmt: skip
            with pytest.raises(ApiFailure) as caught:
                await asked(without)
            assert caught.value.kind in (FailureKind.TLS, FailureKind.CLOSED, FailureKind.CONNECT)

    asyncio.run(played())


def test_a_server_with_another_authority_or_name_or_an_expired_certificate_is_refused(
    certificates: Certificates,
) -> None:
    server = ApiServer()
    other = certificates.path("other.crt").read_bytes()
    good, expired = certificates.server_context(), certificates.server_context(name="expired")
    for context, more in (
        (good, {"ca": other}),
        (good, {"server_name": "elsewhere"}),
        (expired, {}),
    ):
        found = failure(server, context, lambda more=more: reach(server, certificates, **more))
        assert found.kind is FailureKind.TLS
        assert "certificate" in found.message

    async def by_name() -> int:
        async with server.serving(good):
            return (await asked(reach(server, certificates, server_name="kubernetes"))).status

    assert asyncio.run(by_name()) == 200


def test_a_new_kubeconfig_is_read_for_new_credentials(
    certificates: Certificates, tmp_path: Path
) -> None:
    async def played() -> None:
        server = ApiServer(token="new")
        async with server.serving(certificates.server_context()):
            cluster = {
                "server": f"https://127.0.0.1:{server.port}",
                "certificate-authority-data": certificates.data("ca.crt"),
            }
            path = kubeconfig(tmp_path, cluster, {"token": "old"})
            client = ApiClient(lambda: read_kubeconfig(path))
            async with client.connect() as connection:
                with pytest.raises(ApiFailure) as caught:
                    await connection.get(PATH)
                assert caught.value.kind is FailureKind.UNAUTHORIZED
            kubeconfig(tmp_path, cluster, {"token": "new"})
            async with client.connect(renew=True) as connection:
                assert await connection.get(PATH)

    asyncio.run(played())


def test_credentials_that_cannot_be_read_are_a_failure(
    certificates: Certificates, tmp_path: Path
) -> None:
    server = ApiServer()
    found = failure(
        server,
        certificates.server_context(),
        lambda: reach(server, certificates, credentials=FileCredentials(tmp_path / "none")),
    )
    assert found.kind is FailureKind.CREDENTIALS


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(Fault.KILL, FailureKind.CLOSED), (Fault.GARBAGE, FailureKind.PROTOCOL),
     (Fault.CUT, FailureKind.CLOSED)],
)  # fmt: skip
def test_answers_that_are_none_are_told_apart(
    certificates: Certificates, fault: Fault, kind: FailureKind
) -> None:
    server = ApiServer(fault=fault)
    found = failure(server, certificates.server_context(), lambda: reach(server, certificates))
    assert found.kind is kind


def test_nobody_listens_or_the_answer_is_not_tls(certificates: Certificates) -> None:
    server = ApiServer()

    async def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reply as HTTP servers do to a request that is not HTTP."""
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent TLS.\n")
        writer.close()

    async def not_tls() -> FailureKind:
        listener = await asyncio.start_server(plain, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        async with listener:
            with pytest.raises(ApiFailure) as caught:
                await asked(reach(server, certificates))
        return caught.value.kind

    assert asyncio.run(not_tls()) is FailureKind.TLS
    gone = reach(server, certificates)

    async def refused() -> FailureKind:
        with pytest.raises(ApiFailure) as caught:
            await asked(gone)
        return caught.value.kind

    assert asyncio.run(refused()) is FailureKind.CONNECT


@asynccontextmanager
async def proxy(answer: bytes) -> Any:
    """Run an HTTP proxy that replies to CONNECT with `answer`; yield its port and the requests."""
    requests: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        requests.append(head.split("\r\n")[0])
        writer.write(answer)
        if b" 200 " in answer:
            host, _, port = head.split(" ")[1].rpartition(":")
            there = await asyncio.open_connection(host, int(port))
            try:
                await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))
            finally:
                there[1].transport.abort()
        else:
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("answer", "is_good"),
    [(b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.0 403 no\r\n\r\n", False), (b"", False)],
)
def test_a_proxy_is_asked_for_a_tunnel(
    certificates: Certificates, answer: bytes, is_good: bool
) -> None:
    async def played() -> None:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                ApiServer(Objects()).serving(certificates.server_context())
            )
            port, requests = await stack.enter_async_context(proxy(answer))
            access = reach(server, certificates, proxy=f"http://127.0.0.1:{port}")
            if is_good:
                assert (await asked(access)).status == 200
            else:
                with pytest.raises(ApiFailure) as caught:
                    await asked(access)
                assert caught.value.kind is FailureKind.CONNECT
            assert requests == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]

    asyncio.run(played())


def test_secrets_have_no_repr() -> None:
    shown = repr(Credential(SECRET, SECRET.encode(), SECRET.encode()))
    assert SECRET not in shown
