"""fc-frontend's copies of certificates, one PEM file each, and a crt-list for each frontend.

They are in a directory that no other user may read.  A list names the original of each copy in a
comment, so that this directory alone documents HAProxy's certificates.
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
    """A line of a list: the copy and its original, which is empty for a stand-in."""

    copy: str
    original: str


def copy_of(state_directory: str, original: str) -> str:
    """Return the path of a certificate's copy, with a readable name."""
    directory, _, name = original.rpartition("/")
    shown = directory.rpartition("/")[2] if name in _GENERIC else name.rpartition(".")[0]
    shown = _UNUSABLE.sub("-", shown.lower()).strip(".-")[:60] or "certificate"
    digest = hashlib.sha256(original.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return f"{directory_in(state_directory)}/{shown}-{digest}.pem"


def stand_in(state_directory: str) -> str:
    """Return the path of the first certificate in each list without a default."""
    return f"{directory_in(state_directory)}/{STAND_IN}"


def default_copy(state_directory: str, frontend: str) -> str:
    """Return the path of the copy of a frontend's default certificate."""
    return f"{directory_in(state_directory)}/{frontend}.default.pem"


def read_copy(path: str) -> bytes | None:
    """Return a copy's content, or None if there is no copy.  Raises `Unavailable`."""
    with files.reported("read", path):
        return files.read_own(path, _MAX_PEM_BYTES)


def write_copy(path: str, pem: bytes) -> None:
    """Write `pem` as a copy's content.  Raises `Unavailable`."""
    files.write_own(path, pem, mode=_MODE)


def read_list(path: str) -> tuple[ListEntry, ...] | None:
    """Return the entries of a list, or None if there is no list.  Raises `Unavailable`."""
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
    """Return the text of a list file."""
    lines = []
    for entry in entries:
        lines += [f"{_ORIGIN}{entry.original}\n"] if entry.original else []
        lines.append(f"{entry.copy}\n")
    return "".join(lines)


def write_list(path: str, entries: Iterable[ListEntry]) -> bool:
    """Write `entries` to a list; return whether its content changed.  Raises `Unavailable`."""
    content = list_text(entries).encode("utf-8", "surrogateescape")
    with files.reported("read", path):
        if files.read_own(path, _MAX_LIST_BYTES) == content:
            return False
    files.write_own(path, content, mode=_MODE)
    return True


def prepare(state_directory: str) -> None:
    """Create the directory and the stand-in.  Raises `Unavailable`."""
    files.make_directory(directory_in(state_directory), mode=0o700)
    require_pem(stand_in(state_directory))


def require_pem(path: str) -> None:
    """Write a self-signed certificate unless the file exists.  Raises `Unavailable`."""
    if read_copy(path) is None:
        from fc_frontend.certificates.pem import self_signed

        write_copy(path, self_signed("fc-frontend.invalid").pem)


def require_lists(state_directory: str, text: str) -> None:
    """Create the missing lists that the configuration `text` needs, with only the stand-in.

    HAProxy would not start without them.  Raises `Unavailable`.
    """
    for path in own_lists(text):
        # A text may name a list in another state directory, which must not be written.
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
    """Return the entries of a frontend's list, or none if it cannot be read."""
    try:
        return read_list(list_path(state_directory, frontend)) or ()
    except Unavailable:
        return ()
