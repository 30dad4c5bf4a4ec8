"""Consent to replace a haproxy.cfg that fc-frontend did not write, bound to that exact text.

`apply --take-over` records it, the daemon uses it as well, and the next deployment removes it.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass

from fc_frontend import files
from fc_frontend.errors import Unavailable

FILE = "take-over.json"
_MAX_BYTES = 64 * 1024
_MAX_TEXTS = 50
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Consent:
    """`by` consents to replace the texts with these SHA-256 digests."""

    digests: frozenset[str]
    by: str


def path(state_directory: str) -> str:
    """Return the path of the consent file."""
    return f"{state_directory}/{FILE}"


def given(state_directory: str) -> frozenset[str]:
    """Return the digests of texts that may be replaced; none if the record cannot be read."""
    return frozenset(_load(state_directory))


def give(state_directory: str, consent: Consent) -> None:
    """Record consent.  Raises `Unavailable`."""
    record = _load(state_directory)
    now = time.time()
    for digest in consent.digests:
        record.pop(digest, None)
        record[digest] = {"by": consent.by, "at": now}
    files.make_directory(state_directory, mode=0o750)
    _save(state_directory, dict(list(record.items())[-_MAX_TEXTS:]))


def end(state_directory: str) -> None:
    """Remove all consent once a text of fc-frontend is installed.  Raises `Unavailable`."""
    if files.signature(path(state_directory)) is not None:
        files.remove(path(state_directory))


def _load(state_directory: str) -> dict[str, object]:
    try:
        value = json.loads(files.read_own(path(state_directory), _MAX_BYTES) or b"{}")
    except (OSError, Unavailable, ValueError, RecursionError):
        return {}
    texts = value.get("given") if isinstance(value, dict) and value.get("version") == 1 else None
    if not isinstance(texts, dict):
        return {}
    return {digest: given for digest, given in texts.items() if _DIGEST.fullmatch(digest)}


def _save(state_directory: str, record: dict[str, object]) -> None:
    data = json.dumps({"version": 1, "given": record})
    files.write_own(path(state_directory), data.encode() + b"\n")
