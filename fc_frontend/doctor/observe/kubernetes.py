"""Ask the API server with a kubeconfig's own certificate or token, which are never shown.

Nothing is followed elsewhere: no redirects, no proxies, no programs that a kubeconfig names.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import email.utils
import http.client
import json
import os
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fc_frontend.config.document import MAX_BYTES, DocumentError, read_document
from fc_frontend.doctor.judge.kubernetes import (
    ApiResponse,
    KubernetesFacts,
    Node,
    ahead,
    parse_nodes,
)
from fc_frontend.errors import Unavailable

_LARGEST_ANSWER = 32 * 1024 * 1024
_REMEDY = "make a new one on the master VM: `kubernetes-make-kubeconfig`"
_PEM = (b"-----BEGIN ",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the current context of a kubeconfig reaches its API server; secrets have no `repr`."""

    host: str
    port: int
    prefix: str
    server_name: str | None
    verify: bool
    ca: bytes | None
    certificate: bytes | None = field(repr=False)
    key: bytes | None = field(repr=False)
    token: str | None = field(repr=False)
    readable_by_others: bool

    @property
    def server(self) -> str:
        """Where that is, to be shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}{self.prefix}"


def read_kubeconfig(path: str) -> Access:
    """The access that a kubeconfig gives.  Raises `Unavailable`; never says what is in it."""
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise _unusable(path, exc.strerror or "it cannot be read") from None
    if len(raw) > MAX_BYTES:
        raise _unusable(path, "it is too large for a kubeconfig")
    try:
        document = read_document(raw.decode(), is_json=False).value
    except DocumentError as exc:
        line = f"line {exc.flaw.line}: " if exc.flaw.line else ""
        raise _unusable(path, f"{line}not YAML") from None
    except UnicodeDecodeError:
        raise _unusable(path, "not UTF-8") from None
    return _access(path, document, bool(stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077))


def _access(path: str, document: Any, readable_by_others: bool) -> Access:
    if not isinstance(document, dict):
        raise _unusable(path, "not a kubeconfig")
    current = document.get("current-context")
    context = _named(document.get("contexts"), current, "context")
    if context is None:
        raise _unusable(path, "its current-context is missing")
    cluster = _named(document.get("clusters"), context.get("cluster"), "cluster")
    user = _named(document.get("users"), context.get("user"), "user")
    if cluster is None or user is None:
        raise _unusable(path, "the cluster or user of its current-context is missing")
    host, port, prefix = _server(path, cluster.get("server"))
    base = Path(path).parent
    token = _text(path, user, "token", base, file="tokenFile")
    certificate = _data(path, user, "client-certificate", base)
    if token is None and certificate is None:
        kinds = [kind for kind in ("exec", "auth-provider", "username") if kind in user]
        raise _unusable(
            path,
            f"its user has neither certificate nor token (`{kinds[0]}` is not used here)"
            if kinds
            else "its user has neither certificate nor token",
        )
    name = cluster.get("tls-server-name")
    return Access(
        host=host,
        port=port,
        prefix=prefix,
        server_name=name if isinstance(name, str) and name else None,
        verify=cluster.get("insecure-skip-tls-verify") is not True,
        ca=_data(path, cluster, "certificate-authority", base),
        certificate=certificate,
        key=_data(path, user, "client-key", base),
        token=token,
        readable_by_others=readable_by_others,
    )


def _named(entries: Any, name: Any, kind: str) -> dict[str, Any] | None:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(name, str) and entry.get("name") == name:
            value = entry.get(kind)
            return value if isinstance(value, dict) else None
    return None


def _server(path: str, server: Any) -> tuple[str, int, str]:
    try:
        parts = urlsplit(server if isinstance(server, str) else "")
        port = parts.port or 443
    except ValueError:
        raise _unusable(path, "its server is not a URL") from None
    host = parts.hostname or ""
    plain = all(c.isascii() and c.isprintable() and c != " " for c in host + parts.path)
    if parts.scheme != "https" or not host or not plain or parts.username is not None:
        raise _unusable(path, "its server is not an https URL")
    return host, port, parts.path.rstrip("/")


def _text(path: str, section: dict[str, Any], key: str, base: Path, *, file: str) -> str | None:
    value = section.get(key)
    if not value and isinstance(section.get(file), str):
        value = _read(path, base / section[file], file).decode("ascii", "replace").strip()
    if not value:
        return None
    if not isinstance(value, str) or not all("!" <= c <= "~" for c in value):
        raise _unusable(path, f"its {key} is not a token")
    return value


def _data(path: str, section: dict[str, Any], key: str, base: Path) -> bytes | None:
    inline = section.get(f"{key}-data")
    if inline:
        try:
            data = base64.b64decode(inline, validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise _unusable(path, f"its {key}-data is not base64") from None
    elif isinstance(section.get(key), str):
        data = _read(path, base / section[key], key)
    else:
        return None
    if not data.lstrip().startswith(_PEM):
        raise _unusable(path, f"its {key} is not PEM")
    return data


def _read(path: str, file: Path, key: str) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES)
    except OSError as exc:
        raise _unusable(path, f"its {key} cannot be read: {exc.strerror}") from None


def _unusable(path: str, why: str) -> Unavailable:
    return Unavailable.of(f"the kubeconfig {path}: {why}", _REMEDY)


def observe_kubernetes(path: str, timeout: float) -> KubernetesFacts:
    """What the API server of the kubeconfig `path` says.  Raises `Unavailable` for the file."""
    access = read_kubeconfig(path)
    context = _context(path, access)
    ready, _, days = _get(access, context, "/readyz", timeout, limit=65536)
    listed, nodes = ready, None
    if ready.status is not None:
        listed, body, _ = _get(
            access, context, "/api/v1/nodes?limit=500", timeout, limit=_LARGEST_ANSWER
        )
        listed, nodes = _nodes(listed, body)
    return KubernetesFacts(
        server=access.server,
        ready=ready,
        listed=listed,
        nodes=nodes,
        readable_by_others=access.readable_by_others,
        verified=access.verify,
        certificate_days=days,
    )


def _nodes(listed: ApiResponse, body: bytes) -> tuple[ApiResponse, tuple[Node, ...] | None]:
    if listed.status != 200:
        return listed, None
    try:
        return listed, parse_nodes(json.loads(body))
    except (ValueError, RecursionError):
        return ApiResponse(200, "it is not JSON"), None


def _context(path: str, access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cadata=access.ca.decode("ascii") if access.ca else None
        )
        if not access.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if access.certificate is not None:
            with _in_memory(access.certificate + b"\n" + (access.key or b"")) as pem:
                # Without this, OpenSSL asks the terminal for the password of a locked key.
                context.load_cert_chain(pem, password=b"")
    except (ssl.SSLError, OSError, ValueError):
        raise _unusable(path, "its certificates or its key cannot be used") from None
    return context


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path under which OpenSSL can read `data`, which never touches a disk."""
    number = os.memfd_create("kubeconfig", os.MFD_CLOEXEC)
    try:
        os.write(number, data)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def _get(
    access: Access, context: ssl.SSLContext, path: str, timeout: float, *, limit: int
) -> tuple[ApiResponse, bytes, float | None]:
    """The response to GET `path`, its body, and how many days the certificate is still good for."""
    connection = _Connection(access, context, timeout)
    headers = {"Accept": "application/json", "User-Agent": "fc-frontend-doctor"}
    if access.token is not None:
        headers["Authorization"] = f"Bearer {access.token}"
    sent = time.time()
    try:
        connection.request("GET", access.prefix + path, headers=headers)
        days = connection.certificate_days()
        response = connection.getresponse()
        received = time.time()
        body = response.read(limit + 1)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        return ApiResponse(None, _said(exc)), b"", None
    finally:
        connection.close()
    if len(body) > limit:
        return ApiResponse(None, "its answer is too large"), b"", days
    there = (
        email.utils.parsedate_to_datetime(date).timestamp() if (date := _date(response)) else None
    )
    difference = ahead(there, sent, received) if there is not None else None
    text = body[:200].decode("utf-8", "replace") if response.status != 200 else ""
    return ApiResponse(response.status, text or response.reason, difference), body, days


def _date(response: http.client.HTTPResponse) -> str | None:
    date = response.getheader("Date")
    try:
        email.utils.parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return date


class _Connection(http.client.HTTPSConnection):
    def __init__(self, access: Access, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(access.host, access.port, timeout=timeout, context=context)
        self._name = access.server_name or access.host
        self._tls = context

    def connect(self) -> None:
        """Connect with the kubeconfig's `tls-server-name`, if it has one."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)

    def certificate_days(self) -> float | None:
        """How long the server's certificate is still good for; None if it was not verified."""
        certificate = self.sock.getpeercert() if isinstance(self.sock, ssl.SSLSocket) else None
        until = certificate.get("notAfter") if certificate else None
        if not isinstance(until, str):
            return None
        return (ssl.cert_time_to_seconds(until) - time.time()) / 86400


def _said(exc: Exception) -> str:
    """What failed, without anything that was sent."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {exc.reason or 'no reason given'}"
    if isinstance(exc, TimeoutError):
        return "it timed out"
    if isinstance(exc, OSError):
        return exc.strerror or "the connection failed"
    return f"not a proper HTTP answer ({type(exc).__name__})"
