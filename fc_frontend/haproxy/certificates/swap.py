"""Certificates in the running worker (Management Guide 9.3, `set ssl cert`).

HAProxy 2.6 has one transaction for all certificates: callers are `deploying`, and what fails is
aborted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from fc_frontend.errors import Refused, Unavailable
from fc_frontend.haproxy.runtime import BATCH, TIMEOUT
from fc_frontend.haproxy.socket import ask

MAX_COMMAND = 16_000
"""Bytes of `set ssl cert` with its payload: at 16,384, HAProxy 2.6 does not answer."""
_FINGERPRINT = re.compile(r"^SHA1 FingerPrint: ([0-9A-F]{40})$", re.MULTILINE)
_FILE = re.compile(r"^Filename: (\S+)$", re.MULTILINE)
_SUCCESS = "Success!"
_CREATED = "ransaction "
"""`Transaction created for …`, `Transaction updated for …`."""


class TooLarge(Exception):
    """A certificate that cannot be swapped at runtime: it takes a reload."""


class WorkerCertificates:
    """The certificates of the worker behind a runtime socket."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    def _ask(self, command: str, payload: str = "") -> str:
        return ask(self._socket, command, TIMEOUT, payload=payload).strip()

    def loaded(self) -> frozenset[str]:
        """The certificate files that it has.  Raises `Unavailable`."""
        return frozenset(
            line for line in self._ask("show ssl cert").splitlines() if line[:1] == "/"
        )

    def listed(self, path: str) -> tuple[str, ...] | None:
        """The files in its crt-list `path`; None if it does not have that list."""
        lines = self._ask(f"show ssl crt-list {path}").splitlines()
        if not lines or lines[0] != f"# {path}":
            return None
        return tuple(line.split(" ")[0] for line in lines if line[:1] == "/")

    def fingerprints(self, paths: Iterable[str]) -> dict[str, str]:
        """SHA-1 fingerprint by file, of those that it has.  Raises `Unavailable`."""
        found: dict[str, str] = {}
        for batch in _batches([f"show ssl cert {path}" for path in paths]):
            for part in re.split(r"(?m)^(?=Filename: )", self._ask(";".join(batch))):
                name, fingerprint = _FILE.search(part), _FINGERPRINT.search(part)
                if name and fingerprint:
                    found[name[1]] = fingerprint[1]
        return found

    def swap(self, path: str, pem: bytes, fingerprint: str, *, is_new: bool = False) -> None:
        """Let the worker have `pem` for the file `path`, and read it back.

        Raises `TooLarge`, `Refused` with what HAProxy says, and `Unavailable`.  The former one
        stays then.
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
        """Add a file that it has to a list.  Raises `Refused` and `Unavailable`."""
        said = self._ask(f"add ssl crt-list {crt_list} {path}")
        if _SUCCESS not in said:
            raise _refused(path, said)

    def remove(self, crt_list: str, path: str) -> None:
        """Take a file out of a list, and forget it unless another list has it."""
        self._ask(f"del ssl crt-list {crt_list} {path}")
        # Refused while it is in use elsewhere.
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
