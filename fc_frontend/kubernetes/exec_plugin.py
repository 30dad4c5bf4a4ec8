"""Credential plugins of a kubeconfig (client.authentication.k8s.io/v1, v1beta1).

Like client-go's `exec` plugin: the program receives `KUBERNETES_EXEC_INFO`, prints an
ExecCredential, and runs again once that has expired or was rejected.  It has no terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fc_frontend.errors import Unavailable
from fc_frontend.kubernetes.access import Credential, clean_token

API_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
MAX_SECONDS = 30.0
"""The timeout of the program."""
MAX_OUTPUT_BYTES = 1024 * 1024
EARLY_SECONDS = 10.0
"""A credential is renewed this long before it expires."""


@dataclass(slots=True)
class ExecCredentials:
    """Credentials printed by a program."""

    api_version: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    cluster: Mapping[str, Any] | None = None
    _kept: Credential | None = None
    _running: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get(self, *, renew: bool = False) -> Credential:
        """Return the last credential while it is valid, else a new one.  Raises `Unavailable`."""
        before = self._kept
        async with self._running:
            kept = self._kept
            # Another caller may have renewed it in the meantime.
            is_usable = kept is not None and (not renew or kept is not before)
            if kept is not None and is_usable and not _expires_soon(kept):
                return kept
            self._kept = self._credential(await self._output())
            return self._kept

    async def _output(self) -> bytes:
        info: dict[str, Any] = {
            "apiVersion": self.api_version,
            "kind": "ExecCredential",
            "spec": {"interactive": False},
        }
        if self.cluster is not None:
            info["spec"]["cluster"] = self.cluster
        environment = {
            **os.environ,
            **self.environment,
            "LC_ALL": "C.UTF-8",
            "KUBERNETES_EXEC_INFO": json.dumps(info),
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as exc:
            raise self._failed(f"cannot be started: {exc.strerror}") from None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(MAX_SECONDS):
                output = await _read_all(process.stdout)
                is_short = len(output) <= MAX_OUTPUT_BYTES
                status = await process.wait() if is_short else 0
        except TimeoutError:
            raise self._failed(f"took longer than {MAX_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                # asyncio waits for the end of the output, so it has to be read.
                while await process.stdout.read(65536):
                    pass
                await process.wait()
        if status:
            raise self._failed(f"failed with status {status}")
        if len(output) > MAX_OUTPUT_BYTES:
            raise self._failed(f"printed more than {MAX_OUTPUT_BYTES} bytes")
        return output

    def _credential(self, output: bytes) -> Credential:
        try:
            document = json.loads(output)
        except (ValueError, RecursionError):
            raise self._failed("did not print JSON") from None
        status = document.get("status") if isinstance(document, dict) else None
        if not isinstance(status, dict) or document.get("kind") != "ExecCredential":
            raise self._failed("did not print an ExecCredential with a status")
        if document.get("apiVersion") != self.api_version:
            raise self._failed(f"printed another version than {self.api_version}")
        token, certificate, key = (
            value if isinstance(value := status.get(name), str) and value else None
            for name in ("token", "clientCertificateData", "clientKeyData")
        )
        if token is None and (certificate is None or key is None):
            raise self._failed("printed neither a token nor a certificate with its key")
        return Credential(
            None if token is None else clean_token(token, self.command[0]),
            None if certificate is None else certificate.encode(),
            None if key is None else key.encode(),
            self._expires(status.get("expirationTimestamp")),
        )

    def _expires(self, text: Any) -> float | None:
        if text is None:
            return None
        try:
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, TypeError):
            raise self._failed("printed an expirationTimestamp that is no RFC 3339 time") from None

    def _failed(self, why: str) -> Unavailable:
        return Unavailable.of(
            f"the credential plugin {self.command[0]} {why}",
            "run it as fc-frontend's user, without a terminal",
        )


def _expires_soon(credential: Credential) -> bool:
    return credential.expires is not None and credential.expires - EARLY_SECONDS < time.time()


async def _read_all(stream: asyncio.StreamReader) -> bytes:
    """Return the whole output, or slightly more than the limit if there is more."""
    parts, size = [], 0
    while size <= MAX_OUTPUT_BYTES and (part := await stream.read(65536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)
