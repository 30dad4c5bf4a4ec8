"""Copies of the files that the configuration names, for when one of them is broken or gone.

A certificate that is replaced by a bad one would make HAProxy refuse its service's last good form
too.  Copies are readable by nobody else: they may hold private keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from fc_frontend import files, safe_files
from fc_frontend.errors import Unavailable
from fc_frontend.plan.addresses import PATH_LETTERS
from fc_frontend.safe_files import Unsafe
from fc_frontend.syntax.files import Use, named_files

DIRECTORY = "kept"
MOST_BYTES = 16 * 1024 * 1024
"""Of one file, as many as HAProxy may read."""
_LARGE = 1024 * 1024
_MOST_LARGE_BYTES = 64 * 1024 * 1024
"""Of all files that are larger than `_LARGE`: each step compares them with their copies."""
_MOST_FILES = 2000
_CERTIFICATE, _KEY = b"BEGIN CERTIFICATE", b"PRIVATE KEY-----"
_NOTHING: Mapping[str, str] = MappingProxyType({})


def directory(state_directory: str) -> str:
    """Where copies are kept."""
    return f"{state_directory}/{DIRECTORY}"


def paths_in(text: str) -> frozenset[str]:
    """The files that sections of a configuration name and HAProxy only reads."""
    return frozenset(
        named.path
        for named in named_files(text)
        if named.path is not None and named.use in (Use.KEYS, Use.READ, Use.SERVED)
    )


def keep(
    state_directory: str, paths: Iterable[str], former: Mapping[str, str] = _NOTHING
) -> dict[str, str]:
    """Copy those paths that are regular files; return path → hash of the copy, and `former` ones.

    A file that cannot be read is left out.  Raises `Unavailable` if a copy cannot be written.
    """
    directory = Path(state_directory) / DIRECTORY
    kept = dict(former)
    there = files.sizes(str(directory))
    large = 0
    for path in sorted(paths)[:_MOST_FILES]:
        content = _content(path)
        if content is None:
            continue
        if len(content) > _LARGE:
            large += len(content)
            if large > _MOST_LARGE_BYTES:
                continue
        digest = _digest(content)
        copy = directory / digest
        if digest not in there:
            files.make_directory(str(directory), mode=0o700)
            files.write_own(str(copy), content, mode=0o600)
        kept[path] = digest
    return kept


def forget(state_directory: str, kept: Mapping[str, str]) -> None:
    """Remove the copies that `kept` does not name, as far as they can be removed."""
    directory = Path(state_directory) / DIRECTORY
    used = set(kept.values()) | {Path(path).name for path in kept}
    for name in files.sizes(str(directory)).keys() - used:
        with contextlib.suppress(Unavailable):
            files.remove(str(directory / name))


def substitutes(state_directory: str, kept: Mapping[str, str]) -> dict[str, str]:
    """Path → copy, for those that are not any more what was kept."""
    directory = Path(state_directory) / DIRECTORY
    found: dict[str, str] = {}
    for path, digest in kept.items():
        content = _content(path)
        if (content is None or _digest(content) != digest) and (directory / digest).is_file():
            found[path] = str(directory / digest)
    return found


def with_copies(text: str, copies: Mapping[str, str]) -> str:
    """`text` with the paths of copies in place of what they are copies of."""
    for path, copy in copies.items():
        if path in text:
            text = re.sub(rf"{re.escape(path)}(?![{PATH_LETTERS}])", copy, text)
    return text


def _content(path: str) -> bytes | None:
    """What is kept of a file; of a certificate without its key, both.

    HAProxy looks for the key beside the certificate (`ssl-load-extra-files`), and a copy stands
    elsewhere.
    """
    try:
        content = safe_files.read(path, MOST_BYTES)
    except Unsafe:
        return None
    if _CERTIFICATE not in content or _KEY in content:
        return content
    for key in (f"{path}.key", f"{path.rpartition('.')[0] or path}.key"):
        with contextlib.suppress(Unsafe):
            return content.rstrip(b"\n") + b"\n" + safe_files.read(key, MOST_BYTES)
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
