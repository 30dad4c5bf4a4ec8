"""Access to an API server: its address, TLS settings and rotating credentials.

Secrets are excluded from every `repr` and never quoted in an error.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fc_frontend.errors import Cause, Unavailable

MAX_TOKEN_BYTES = 64 * 1024
MAX_PEM_BYTES = 1024 * 1024
TOKEN_SECONDS = 60.0
"""Re-read a token file after this time: bound tokens rotate at 80 % of their lifetime."""
CERTIFICATE_SECONDS = 300.0
"""Re-read the files of a client certificate after this time."""


@dataclass(frozen=True, slots=True)
class Credential:
    """The credential of a client: a token, a certificate with its key, or nothing.

    `expires` is the expiry that a credential plugin reported, in seconds since the epoch.
    """

    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    expires: float | None = None

    @property
    def until(self) -> float | None:
        """The earliest expiry of its parts, in Unix time; None if no part has one."""
        of_certificate = None
        if self.certificate is not None:
            from fc_frontend.certificates.pem import not_after

            of_certificate = not_after(self.certificate)
        known = [at for at in (self.expires, self._token_until(), of_certificate) if at is not None]
        return min(known, default=None)

    def _token_until(self) -> float | None:
        """Return the expiry of the token (RFC 7519, `exp`), which is not verified."""
        parts = (self.token or "").split(".")
        if len(parts) != 3:
            return None
        try:
            claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
            return float(claims["exp"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


class Credentials(Protocol):
    """A source of credentials."""

    async def get(self, *, renew: bool = False) -> Credential:
        """Return the current credential; with `renew`, not a cached one.  Raises `Unavailable`."""


@dataclass(frozen=True, slots=True)
class FixedCredentials:
    """A credential that never changes."""

    credential: Credential

    async def get(self, *, renew: bool = False) -> Credential:  # noqa: ARG002
        """Return the same credential every time."""
        return self.credential


@dataclass(slots=True)
class FileCredentials:
    """A token or a client certificate in files that another program renews.

    If a file cannot be read later on, the credential in use is kept: it may still be valid.
    """

    token_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    _kept: Credential | None = None
    _read_at: float = 0.0

    async def get(self, *, renew: bool = False) -> Credential:
        """Return the content of the files, at most `TOKEN_SECONDS` or `CERTIFICATE_SECONDS` old."""
        lasts = TOKEN_SECONDS if self.token_file else CERTIFICATE_SECONDS
        now = time.monotonic()
        if self._kept is None or renew or now - self._read_at > lasts:
            try:
                self._kept = self._read()
            except Unavailable:
                if self._kept is None:
                    raise
            self._read_at = now
        return self._kept

    def _read(self) -> Credential:
        token = None
        if self.token_file is not None:
            token = clean_token(read_bounded(self.token_file, MAX_TOKEN_BYTES), self.token_file)
        certificate = key = None
        if self.certificate_file is not None:
            certificate = read_bounded(self.certificate_file, MAX_PEM_BYTES)
            key = read_bounded(self.key_file or self.certificate_file, MAX_PEM_BYTES)
        return Credential(token, certificate, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAccess:
    """The address, TLS settings and credentials of an API server.

    `prefix` is the path of its URL without a trailing slash.  `server_name` is the name in its
    certificate, if that is not `host`.  `proxy` is the URL of an HTTP proxy that accepts CONNECT.
    """

    host: str
    port: int
    prefix: str = ""
    server_name: str | None = None
    is_verified: bool = True
    ca: bytes | None = None
    ca_file: Path | None = None
    proxy: str | None = field(default=None, repr=False)
    credentials: Credentials = FixedCredentials(Credential())

    @property
    def server(self) -> str:
        """The URL of the server, for display."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}{self.prefix}"

    def tls(self, credential: Credential) -> ssl.SSLContext:
        """Return a TLS context with the client certificate of `credential`.

        Raises `Unavailable`.
        """
        try:
            ca = self.ca if self.ca_file is None else read_bounded(self.ca_file, MAX_PEM_BYTES)
            context = ssl.create_default_context(cadata=ca.decode("ascii") if ca else None)
            context.set_alpn_protocols(["http/1.1"])
            if not self.is_verified:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if credential.certificate is not None:
                pem = credential.certificate + b"\n" + (credential.key or b"")
                with _in_memory(pem) as path:
                    # Without this, OpenSSL prompts for the password of an encrypted key.
                    context.load_cert_chain(path, password=b"")
        except (ssl.SSLError, OSError, ValueError):
            raise Unavailable.of(
                f"the certificates or the key for {self.server} cannot be used",
                "give PEM files, and the key that belongs to the certificate, without a password",
            ) from None
        return context


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises `Unavailable`, without quoting the content.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as exc:
        raise Unavailable.of(
            f"{path} cannot be read: {exc.strerror}",
            "let fc-frontend's user read it",
            file=str(path),
            cause=Cause.FORBIDDEN if isinstance(exc, PermissionError) else None,
        ) from None
    if len(data) > limit:
        raise Unavailable.of(
            f"{path} is larger than {limit} bytes", "check the path", file=str(path)
        )
    return data


def clean_token(data: bytes | str, path: Path | str) -> str:
    """Return the token in `data`, read from `path`.

    Raises `Unavailable` if the token is not valid in a header.
    """
    text = data.decode("ascii", "replace") if isinstance(data, bytes) else data
    text = text.strip()
    if not text or not all("!" <= letter <= "~" for letter in text):
        raise Unavailable.of(
            f"{path} has no token", "write a bearer token into it, in one line", file=str(path)
        )
    return text


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """Yield a path from which OpenSSL can read `data`; it is never written to disk."""
    number = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        os.write(number, data)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)
