"""Our copies of certificates, one PEM file each, and a crt-list for each frontend.

All are in a directory that nobody else may read.  A list names the original of each copy in a
comment, so that this directory alone says what HAProxy has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fc_frontend import files
from fc_frontend.errors import Unavailable
from fc_frontend.syntax.certificates import STAND_IN, directory_in, list_path, own_lists

_MAX_LIST_BYTES = 16 * 1024 * 1024
_MAX_PEM_BYTES = 256 * 1024
_ORIGIN = "# of "
_UNUSABLE = re.compile(r"[^a-z0-9.-]+")
_GENERIC = frozenset(
    ("fullchain.pem", "full.pem", "tls.crt", "cert.pem", "certificate.pem", "server.pem")
)
_MODE = 0o600


@dataclass(frozen=True, slots=True)
class ListEntry:
    """A line of a list: the copy, and the original that it is of; empty for a stand-in."""

    copy: str
    original: str


def copy_of(state_directory: str, original: str) -> str:
    """Where the copy of a certificate is; it says for people which one it is."""
    directory, _, name = original.rpartition("/")
    shown = directory.rpartition("/")[2] if name in _GENERIC else name.rpartition(".")[0]
    shown = _UNUSABLE.sub("-", shown.lower()).strip(".-")[:60] or "certificate"
    digest = hashlib.sha256(original.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return f"{directory_in(state_directory)}/{shown}-{digest}.pem"


def stand_in(state_directory: str) -> str:
    """The certificate that each list without a default begins with."""
    return f"{directory_in(state_directory)}/{STAND_IN}"


def default_copy(state_directory: str, frontend: str) -> str:
    """The copy of a frontend's default certificate."""
    return f"{directory_in(state_directory)}/{frontend}.default.pem"


def read_copy(path: str) -> bytes | None:
    """A copy's content; None if there is none.  Raises `Unavailable`."""
    with files.reported("read", path):
        return files.read_own(path, _MAX_PEM_BYTES)


def write_copy(path: str, pem: bytes) -> None:
    """Make `pem` a copy's content.  Raises `Unavailable`."""
    files.write_own(path, pem, mode=_MODE)


def read_list(path: str) -> tuple[ListEntry, ...] | None:
    """The entries of a list; None if there is none.  Raises `Unavailable`."""
    with files.reported("read", path):
        content = files.read_own(path, _MAX_LIST_BYTES)
    if content is None:
        return None
    found, original = [], ""
    for line in content.decode("utf-8", "surrogateescape").splitlines():
        if line.startswith(_ORIGIN):
            original = line.removeprefix(_ORIGIN)
        elif line.startswith("/"):
            found.append(ListEntry(line, original))
            original = ""
    return tuple(found)


def list_text(entries: Iterable[ListEntry]) -> str:
    """A list file."""
    lines = []
    for entry in entries:
        lines += [f"{_ORIGIN}{entry.original}\n"] if entry.original else []
        lines.append(f"{entry.copy}\n")
    return "".join(lines)


def write_list(path: str, entries: Iterable[ListEntry]) -> bool:
    """Make `entries` a list's content; True if it was another one.  Raises `Unavailable`."""
    content = list_text(entries).encode("utf-8", "surrogateescape")
    with files.reported("read", path):
        if files.read_own(path, _MAX_LIST_BYTES) == content:
            return False
    files.write_own(path, content, mode=_MODE)
    return True


def prepare(state_directory: str) -> None:
    """Make the directory and the stand-in.  Raises `Unavailable`."""
    files.make_directory(directory_in(state_directory), mode=0o700)
    require_pem(stand_in(state_directory))


def require_pem(path: str) -> None:
    """Write a certificate that nobody trusts unless there is one.  Raises `Unavailable`."""
    if read_copy(path) is None:
        from fc_frontend.certificates.pem import self_signed

        write_copy(path, self_signed("fc-frontend.invalid").pem)


def require_lists(state_directory: str, text: str) -> None:
    """Make the lists that the configuration `text` needs and that are missing, without entries.

    HAProxy would not start without them.  Raises `Unavailable`.
    """
    for path in own_lists(text):
        # A text may name the directory of another state directory, which is not ours to write.
        if path.rpartition("/")[0] != directory_in(state_directory) or read_list(path) is not None:
            continue
        prepare(state_directory)
        write_list(path, (ListEntry(stand_in(state_directory), ""),))


def remove_unlisted(state_directory: str) -> None:
    """Remove copies that no list names.  Raises `Unavailable`."""
    directory = directory_in(state_directory)
    names = files.sizes(directory)
    listed = {f"{directory}/{STAND_IN}"}
    for name in names:
        if name.endswith(".list"):
            listed |= {entry.copy for entry in read_list(f"{directory}/{name}") or ()}
    for name in names:
        if name.endswith(".pem") and f"{directory}/{name}" not in listed:
            files.remove(f"{directory}/{name}")


def entries_of(state_directory: str, frontend: str) -> tuple[ListEntry, ...]:
    """What a frontend's list has; nothing if it cannot be read."""
    try:
        return read_list(list_path(state_directory, frontend)) or ()
    except Unavailable:
        return ()
