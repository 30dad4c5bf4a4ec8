"""Copies of the files that the configuration names, for use if one of them is broken or missing.

A certificate that is replaced by an invalid one would make HAProxy refuse the last good form of its
service too.  No other user can read the copies, which may contain private keys.

Each copy is one file, named after the SHA-256 of its content.  A directory of certificates and a
`crt-list` become a list of copies: HAProxy accepts `crt-list LIST` in place of `crt DIRECTORY`,
with the certificates in the same order (manual 5.1).  A directory of CA files becomes one file with
all of them.  Other files that HAProxy loads beside a certificate (`.ocsp`, `.sctl`, `.issuer`) are
not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from fc_frontend import files, safe_files
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.named_files import KEY_TYPES, MAX_LIST_BYTES, is_certificate, is_opened
from fc_frontend.plan.addresses import PATH_LETTERS
from fc_frontend.safe_files import Unsafe
from fc_frontend.syntax.files import CHANGING, NamedFile, Use, files_of_crt_list, named_files

DIRECTORY = "kept"
LIST = ".list"
"""Suffix of the name of a copy that lists others."""
MOST_BYTES = 16 * 1024 * 1024
"""Largest size of one file, equal to the limit for files that HAProxy may read."""
_LARGE = 1024 * 1024
_MOST_LARGE_BYTES = 64 * 1024 * 1024
"""Total size of all files that are larger than `_LARGE`."""
_MOST_FILES = 2000
_MOST_ENTRIES = 6000
"""Maximum number of entries of a directory or a list."""
_CERTIFICATE, _KEY = b"BEGIN CERTIFICATE", b"PRIVATE KEY-----"
_NOTHING: Mapping[str, str] = MappingProxyType({})
_LISTED = re.compile(rf"^\S*/{DIRECTORY}/([0-9a-f]{{64}})(?!\S)", re.MULTILINE)


def directory(state_directory: str) -> str:
    """Return the directory of the copies."""
    return f"{state_directory}/{DIRECTORY}"


def files_in(text: str) -> dict[str, NamedFile]:
    """Return the files and directories in a configuration that HAProxy only reads, by path."""
    return {
        named.path: named
        for named in named_files(text)
        if named.path is not None
        and named.use in (Use.KEYS, Use.READ, Use.SERVED)
        and named.keyword not in CHANGING
    }


def keep(
    state_directory: str, named: Iterable[NamedFile], former: Mapping[str, str] = _NOTHING
) -> dict[str, str]:
    """Copy files, directories and lists; return the name of each path's copy, and `former` ones.

    Unreadable files are skipped.  Raises `Unavailable` if a copy cannot be written.
    """
    place = directory(state_directory)
    kept = dict(former)
    there = set(files.sizes(place))
    large = 0
    for file in list(named)[:_MOST_FILES]:
        assert file.path is not None
        copies = _copies(place, file, file.path)
        large += sum(len(content) for content in copies.values() if len(content) > _LARGE)
        if large > _MOST_LARGE_BYTES:
            continue
        for name, content in copies.items():
            if name not in there:
                files.make_directory(place, mode=0o700)
                files.write_own(f"{place}/{name}", content, mode=0o600)
                there.add(name)
            # The last copy lists the others, if there are any.
            kept[file.path] = name
    return kept


def forget(state_directory: str, kept: Mapping[str, str]) -> None:
    """Remove the copies that `kept` does not name, as far as possible.

    Copies that HAProxy already uses appear in `kept` as paths.
    """
    place = directory(state_directory)
    used = set(kept.values()) | {posixpath.basename(path) for path in kept}
    for name in [name for name in used if name.endswith(LIST)]:
        with contextlib.suppress(Unavailable):
            text = files.read_own(f"{place}/{name}", MOST_BYTES) or b""
            used.update(_LISTED.findall(text.decode("utf-8", "surrogateescape")))
    for name in files.sizes(place).keys() - used:
        with contextlib.suppress(Unavailable):
            files.remove(f"{place}/{name}")


def with_copies(text: str, state_directory: str, kept: Mapping[str, str], bases: str = "") -> str:
    """Return the section `text` with the named files replaced by their copies, where they exist.

    `bases` are the lines of `global` on which relative names depend.
    """
    place = directory(state_directory)
    there = files.sizes(place)
    lines = f"{bases}\n{text}".split("\n")
    for named in named_files("\n".join(lines)):
        name = kept.get(named.path or "")
        if name is None or name not in there:
            continue
        keyword, word = re.escape(named.keyword), re.escape(named.written)
        becomes = "crt-list" if name.endswith(LIST) else named.keyword
        # Options follow their keyword; names of lists and maps appear in conditions and functions.
        before = rf"(?<!\S){keyword}(?P<gap>\s+[\"']?)" if named.is_option else "(?P<gap>)"
        found = re.compile(rf"{before}(?<![{PATH_LETTERS}]){word}(?![{PATH_LETTERS}])")
        copy = rf"{becomes}\g<gap>{place}/{name}" if named.is_option else f"{place}/{name}"
        lines[named.line - 1] = found.sub(copy, lines[named.line - 1])
    return "\n".join(lines[bases.count("\n") + 1 :])


def _copies(place: str, named: NamedFile, path: str) -> dict[str, bytes]:
    """Return the copies of the named file, by their names; empty if it cannot be read."""
    content = _content(path)
    if named.keyword == "crt-list":
        text = (content or b"")[:MAX_LIST_BYTES].decode("utf-8", "surrogateescape")
        return _list(place, _lines_of(text, named))
    if content is not None:
        return {_digest(content): content}
    entries = _entries(named, path) if named.may_be_directory else []
    if named.keyword != "crt":
        together = b"\n".join(each for each in map(_content, entries) if each is not None)
        return {_digest(together): together} if together else {}
    # Without a directory, HAProxy looks for one certificate for each type of key (manual 5.1).
    certificates = entries or [f"{path}{kind}" for kind in KEY_TYPES]
    return _list(place, ((each, each) for each in certificates))


def _entries(named: NamedFile, path: str) -> list[str]:
    """Return the entries of a directory that HAProxy opens; empty if it cannot be read."""
    try:
        names = safe_files.names(path, _MOST_ENTRIES)
    except Unsafe:
        return []
    opened = (name for name in names if is_opened(named, name))
    return [f"{path}/{name}" for name in opened if named.keyword != "crt" or is_certificate(name)]


def _lines_of(text: str, named: NamedFile) -> Iterator[tuple[str, str]]:
    """Yield each path of a certificate in a `crt-list`, with its line."""
    lines = text.split("\n")
    for inner in files_of_crt_list(text, named):
        if inner.keyword == "crt" and inner.path is not None:
            yield inner.path, lines[inner.line - 1].strip()


def _list(place: str, lines: Iterable[tuple[str, str]]) -> dict[str, bytes]:
    """Return copies of certificates, and of a `crt-list` of them.

    `lines` are the certificates' paths and their lines in the list, which begin with a name.
    """
    copies: dict[str, bytes] = {}
    listed = []
    for path, line in lines:
        content = _content(path)
        if content is not None:
            name = _digest(content)
            copies[name] = content
            listed.append(" ".join((f"{place}/{name}", *line.split()[1:])))
    if not listed:
        return {}
    text = "".join(f"{line}\n" for line in listed).encode("utf-8", "surrogateescape")
    return {**copies, f"{_digest(text)}{LIST}": text}


def _content(path: str) -> bytes | None:
    """Return the content to keep of a file; for a certificate without its key, add the key.

    HAProxy looks for the key beside the certificate (`ssl-load-extra-files`), and a copy is in
    another directory.
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
