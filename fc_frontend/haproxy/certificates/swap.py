"""Swap certificates in the running worker (Management Guide 9.3, `set ssl cert`).

HAProxy 2.6 has a single transaction for all certificates, so callers must hold the `deploying`
lock, and a failed transaction is aborted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from fc_frontend.errors import Refused, Unavailable
from fc_frontend.haproxy.runtime import BATCH, TIMEOUT
from fc_frontend.haproxy.socket import ask

MAX_COMMAND = 16_000
"""Largest `set ssl cert` with payload, in bytes: HAProxy 2.6 does not answer at 16,384."""
_FINGERPRINT = re.compile(r"^SHA1 FingerPrint: ([0-9A-F]{40})$", re.MULTILINE)
_FILE = re.compile(r"^Filename: (\S+)$", re.MULTILINE)
_SUCCESS = "Success!"
_CREATED = "ransaction "
"""`Transaction created for …`, `Transaction updated for …`."""


class TooLarge(Exception):
    """A certificate that is too large to swap at runtime and needs a reload."""


class WorkerCertificates:
    """The certificates of the worker behind a runtime socket."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    def _ask(self, command: str, payload: str = "") -> str:
        return ask(self._socket, command, TIMEOUT, payload=payload).strip()

    def loaded(self) -> frozenset[str]:
        """Return the certificate files that the worker has.  Raises `Unavailable`."""
        return frozenset(
            line for line in self._ask("show ssl cert").splitlines() if line[:1] == "/"
        )

    def listed(self, path: str) -> tuple[str, ...] | None:
        """Return the files in the worker's crt-list `path`, or None if there is no such list."""
        lines = self._ask(f"show ssl crt-list {path}").splitlines()
        if not lines or lines[0] != f"# {path}":
            return None
        return tuple(line.split(" ")[0] for line in lines if line[:1] == "/")

    def fingerprints(self, paths: Iterable[str]) -> dict[str, str]:
        """Return the SHA-1 fingerprint of each file that the worker has.  Raises `Unavailable`."""
        found: dict[str, str] = {}
        for batch in _batches([f"show ssl cert {path}" for path in paths]):
            for part in re.split(r"(?m)^(?=Filename: )", self._ask(";".join(batch))):
                name, fingerprint = _FILE.search(part), _FINGERPRINT.search(part)
                if name and fingerprint:
                    found[name[1]] = fingerprint[1]
        return found

    def swap(self, path: str, pem: bytes, fingerprint: str, *, is_new: bool = False) -> None:
        """Set the content of the file `path` in the worker to `pem`, and read it back.

        Raises `TooLarge`, `Refused` with HAProxy's message, and `Unavailable`.  The worker keeps
        the former certificate then.
        """
        text = pem.decode("ascii").strip("\n")
        command = f"set ssl cert {path}"
        if len(command) + len(text) > MAX_COMMAND:
            raise TooLarge(path)
        if is_new:
            self._ask(f"new ssl cert {path}")
        try:
            said = self._ask(command, text)
            if _CREATED not in said:
                raise _refused(path, said)
            said = self._ask(f"commit ssl cert {path}")
            if _SUCCESS not in said:
                raise _refused(path, said)
        except (Refused, Unavailable):
            self._ask(f"abort ssl cert {path}")
            if is_new:
                self._ask(f"del ssl cert {path}")
            raise
        if self.fingerprints([path]).get(path) != fingerprint:
            raise Unavailable.of(
                f"HAProxy does not have the certificate {path} after it was swapped",
                "see whether something else changes its certificates; it is tried again",
            )

    def add(self, crt_list: str, path: str) -> None:
        """Add a file that the worker has to a list.  Raises `Refused` and `Unavailable`."""
        said = self._ask(f"add ssl crt-list {crt_list} {path}")
        if _SUCCESS not in said:
            raise _refused(path, said)

    def remove(self, crt_list: str, path: str) -> None:
        """Remove a file from a list, and from the worker unless another list uses it."""
        self._ask(f"del ssl crt-list {crt_list} {path}")
        # HAProxy refuses this while the file is in use elsewhere.
        self._ask(f"del ssl cert {path}")


def _refused(path: str, said: str) -> Refused:
    shown = " ".join(said.split())[:200]
    return Refused.of(
        f"HAProxy refuses the certificate {path}: {shown}",
        "the former one keeps being served; have it issued anew",
    )


def _batches(commands: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for command in commands:
        if batch and size + len(command) + 1 > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(command)
        size += len(command) + 1
    if batch:
        yield batch
