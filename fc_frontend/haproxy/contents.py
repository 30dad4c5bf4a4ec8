"""The content of named files as part of the configuration: HAProxy reads them only when it starts.

A section that names files ends with a comment for each of them, with a digest of its content.  So a
renewed certificate changes the text and is handled like any other change: it is checked, withheld
if HAProxy refuses it (for example, because its key does not match yet), and deployed by a reload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache

from fc_frontend import files, safe_files
from fc_frontend.haproxy.kept_files import MOST_BYTES, files_in
from fc_frontend.haproxy.named_files import MAX_ENTRIES, MAX_LIST_BYTES, companions_of, is_opened
from fc_frontend.model.memo import Memo
from fc_frontend.render.file_marks import FILE_MARK, digests_in
from fc_frontend.safe_files import FileFault, Unsafe
from fc_frontend.syntax.files import NamedFile, files_of_crt_list, named_files

_LENGTH = 16
_MAX_TEXTS = 65_536
"""Maximum number of cached sections: most sections name no files, and never change."""


class Contents:
    """The digests of files, recomputed when a file's inode, size or time changes."""

    def __init__(self) -> None:
        self._digests: Memo[str] = Memo()

    def marked(self, text: str, bases: str = "", former: str = "") -> str:
        """Return the section `text` with the digests of the files that it names.

        `bases` are the lines of `global` on which relative names depend.  A file that this user may
        not read keeps its digest from `former`, the running form of the section.
        """
        named = _named(bases, text)
        if not named:
            return text
        before = digests_in(former)
        found: dict[str, str] = {}
        for file in named:
            for path, digest in self._of(file):
                found[path] = before.get(path, digest) if digest == "unreadable" else digest
        lines = [f"{FILE_MARK}{digest} {path}" for path, digest in sorted(found.items())]
        return "\n".join((text, *lines))

    def has_changed(self) -> bool:
        """Return whether any of the files has changed since its digest was last computed."""
        return any(files.signature(path) != seen for path, seen in self._digests.sources())

    def _of(self, named: NamedFile) -> Iterator[tuple[str, str]]:
        """Yield the file and the files that belong to it, each with a digest."""
        path = named.path
        assert path is not None
        try:
            is_directory = safe_files.examine(path).is_directory
        except Unsafe:
            is_directory = False
        if is_directory:
            # Adding or removing a name changes the directory's digest.
            yield path, self._remembered(path, lambda: _names_digest(named, path))
            for name in _entries(named, path):
                yield f"{path}/{name}", self._digest(f"{path}/{name}")
            return
        yield path, self._digest(path)
        if named.keyword == "crt":
            for other in companions_of(path):
                if files.signature(other) is not None:
                    yield other, self._digest(other)
        elif named.keyword in ("crt-list", "config"):
            yield from self._listed(named, path)

    def _listed(self, named: NamedFile, path: str) -> Iterator[tuple[str, str]]:
        try:
            text = safe_files.read(path, MAX_LIST_BYTES).decode("utf-8", "surrogateescape")
        except Unsafe:
            return
        inner = files_of_crt_list(text, named) if named.keyword == "crt-list" else named_files(text)
        for file in inner:
            if file.path is not None and file.keyword not in ("crt-list", "config"):
                yield from self._of(file)

    def _digest(self, path: str) -> str:
        return self._remembered(path, lambda: _content_digest(path))

    def _remembered(self, path: str, compute: Callable[[], str]) -> str:
        return self._digests.of(path, files.signature(path), compute)


@lru_cache(maxsize=_MAX_TEXTS)
def _named(bases: str, text: str) -> tuple[NamedFile, ...]:
    named = files_in(f"{bases}\n{text}")
    return tuple(file for path, file in named.items() if path.isprintable())


def _entries(named: NamedFile, directory: str) -> list[str]:
    try:
        names = safe_files.names(directory, MAX_ENTRIES)
    except Unsafe:
        return []
    return sorted(name for name in names if name.isprintable() and is_opened(named, name))


def _names_digest(named: NamedFile, directory: str) -> str:
    return _short("\n".join(_entries(named, directory)).encode())


def _content_digest(path: str) -> str:
    try:
        return _short(safe_files.read(path, MOST_BYTES))
    except Unsafe as exc:
        return "missing" if exc.fault is FileFault.MISSING else "unreadable"


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_LENGTH]
