"""Access to an API server, from a kubeconfig or from individual files.

The fields and their precedence are those of client-go (tools/clientcmd): a `-data` field takes
precedence over a file, and paths are relative to the kubeconfig.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fc_frontend.config.document import MAX_BYTES, DocumentError, read_document
from fc_frontend.errors import Unavailable
from fc_frontend.kubernetes.access import (
    MAX_PEM_BYTES,
    ApiAccess,
    Credential,
    Credentials,
    FileCredentials,
    FixedCredentials,
    clean_token,
    read_bounded,
)
from fc_frontend.kubernetes.exec_plugin import API_VERSIONS, ExecCredentials

_NOT_USED = ("auth-provider", "username")
"""Authentication methods that client-go or API servers no longer support."""

_PLUGIN_FIELDS = ("server", "tls-server-name", "insecure-skip-tls-verify", "proxy-url")


def read_kubeconfig(path: str, context: str | None = None) -> ApiAccess:
    """Return the access of a context, by default the current one.  Raises `Unavailable`."""
    raw = read_bounded(Path(path), MAX_BYTES)
    try:
        document = read_document(raw.decode(), is_json=False).value
    except DocumentError as exc:
        line = f"line {exc.flaw.line}: " if exc.flaw.line else ""
        raise _unusable(path, f"{line}not YAML") from None
    except UnicodeDecodeError:
        raise _unusable(path, "not UTF-8") from None
    if not isinstance(document, dict):
        raise _unusable(path, "not a kubeconfig")
    chosen = context or document.get("current-context")
    links = _named(document.get("contexts"), chosen, "context")
    if links is None:
        wanted = f"the context {context!r}" if context else "its current-context"
        raise _unusable(path, f"{wanted} is missing")
    cluster = _named(document.get("clusters"), links.get("cluster"), "cluster")
    user = _named(document.get("users"), links.get("user"), "user")
    if cluster is None or user is None:
        raise _unusable(path, "the cluster or user of its context is missing")
    base = Path(path).parent
    host, port, prefix = parse_server(cluster.get("server"), path)
    name = cluster.get("tls-server-name")
    ca = _data(path, cluster, "certificate-authority")
    return ApiAccess(
        host=host,
        port=port,
        prefix=prefix,
        server_name=name if isinstance(name, str) and name else None,
        is_verified=cluster.get("insecure-skip-tls-verify") is not True,
        ca=ca,
        ca_file=None if ca else _file(cluster, "certificate-authority", base),
        proxy=_proxy(path, cluster.get("proxy-url")),
        credentials=_credentials(path, user, cluster, base),
    )


def access_from_files(
    server: str,
    *,
    ca_file: str | None = None,
    token_file: str | None = None,
    client_certificate: str | None = None,
    client_key: str | None = None,
    proxy_url: str | None = None,
    tls_server_name: str | None = None,
) -> ApiAccess:
    """Return the access for a URL and files, as pods and configuration management provide them."""
    host, port, prefix = parse_server(server, server)
    return ApiAccess(
        host=host,
        port=port,
        prefix=prefix,
        server_name=tls_server_name,
        ca_file=Path(ca_file) if ca_file else None,
        proxy=_proxy(server, proxy_url),
        credentials=FileCredentials(
            Path(token_file) if token_file else None,
            Path(client_certificate) if client_certificate else None,
            Path(client_key) if client_key else None,
        ),
    )


def parse_server(url: Any, where: str) -> tuple[str, int, str]:
    """Return host, port and path of an API server's URL, read from `where`.

    Raises `Unavailable`.
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        port = parts.port or 443
    except ValueError:
        raise _unusable(where, "its server is not a URL") from None
    host = parts.hostname or ""
    is_plain = all("!" <= letter <= "~" for letter in host + parts.path)
    is_bare = parts.username is None and not parts.query and not parts.fragment
    if parts.scheme != "https" or not host or not is_plain or not is_bare:
        raise _unusable(where, "its server is not an https URL")
    return host, port, parts.path.rstrip("/")


def _proxy(path: str, url: Any) -> str | None:
    if url is None or url == "":
        return None
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        is_usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.username is not None:
        raise _unusable(path, "its proxy-url is not an http URL without user")
    return str(url)


def _credentials(
    path: str, user: Mapping[str, Any], cluster: Mapping[str, Any], base: Path
) -> Credentials:
    """A token file takes precedence over a token, and both over a program, as in client-go."""
    certificate = _data(path, user, "client-certificate")
    key = _data(path, user, "client-key")
    certificate_file = None if certificate else _file(user, "client-certificate", base)
    key_file = None if key else _file(user, "client-key", base)
    token_file = _file(user, "tokenFile", base)
    token = user.get("token")
    if certificate_file or key_file or token_file:
        if certificate or key:
            raise _unusable(path, "it mixes files and data in its user: use one of both")
        return FileCredentials(token_file, certificate_file, key_file)
    if token:
        return FixedCredentials(Credential(clean_token(str(token), path), certificate, key))
    if certificate:
        return FixedCredentials(Credential(None, certificate, key))
    if "exec" in user:
        return _plugin(path, user["exec"], cluster, base)
    kinds = [kind for kind in _NOT_USED if kind in user]
    unused = f" (`{kinds[0]}` is not supported)" if kinds else ""
    raise _unusable(path, f"its user has no certificate, token or exec{unused}")


def _plugin(path: str, entry: Any, cluster: Mapping[str, Any], base: Path) -> Credentials:
    if not isinstance(entry, dict):
        raise _unusable(path, "its exec is not a mapping")
    version, command = entry.get("apiVersion"), entry.get("command")
    arguments = entry.get("args") or []
    if version not in API_VERSIONS:
        raise _unusable(path, f"its exec has an apiVersion other than {' or '.join(API_VERSIONS)}")
    if not isinstance(command, str) or not command or not isinstance(arguments, list):
        raise _unusable(path, "its exec has no command")
    if "/" in command:
        command = str(base / command)
    environment = {
        str(pair.get("name")): str(pair.get("value"))
        for pair in entry.get("env") or []
        if isinstance(pair, dict)
    }
    return ExecCredentials(
        version,
        (command, *map(str, arguments)),
        environment,
        _cluster_info(path, cluster, base) if entry.get("provideClusterInfo") is True else None,
    )


def _cluster_info(path: str, cluster: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Return the cluster information for a plugin: `spec.cluster` of an ExecCredential."""
    ca = _data(path, cluster, "certificate-authority")
    if ca is None and (file := _file(cluster, "certificate-authority", base)) is not None:
        ca = read_bounded(file, MAX_PEM_BYTES)
    info = {key: cluster[key] for key in _PLUGIN_FIELDS if cluster.get(key)}
    if ca is not None:
        info["certificate-authority-data"] = base64.b64encode(ca).decode("ascii")
    return info


def _named(entries: Any, name: Any, kind: str) -> dict[str, Any] | None:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(name, str) and entry.get("name") == name:
            value = entry.get(kind)
            return value if isinstance(value, dict) else None
    return None


def _data(path: str, section: Mapping[str, Any], key: str) -> bytes | None:
    inline = section.get(f"{key}-data")
    if not inline:
        return None
    try:
        data = base64.b64decode(inline, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise _unusable(path, f"its {key}-data is not base64") from None
    if b"-----BEGIN " not in data or len(data) > MAX_PEM_BYTES:
        raise _unusable(path, f"its {key}-data is not PEM")
    return data


def _file(section: Mapping[str, Any], key: str, base: Path) -> Path | None:
    value = section.get(key)
    return base / value if isinstance(value, str) and value else None


def _unusable(path: str, why: str) -> Unavailable:
    return Unavailable.of(
        f"no access to the API by {path}: {why}", "make a new kubeconfig on the master VM"
    )
