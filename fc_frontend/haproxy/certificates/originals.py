"""Find the operator's certificate files, and read the files that belong together."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fc_frontend import files, safe_files
from fc_frontend.certificates.bundle import Bundle
from fc_frontend.certificates.layouts import key_beside, pairs_in
from fc_frontend.errors import Cause, Problem, Severity
from fc_frontend.plan.model import CertificateSource, FrontendTls
from fc_frontend.safe_files import FileFault, Unsafe

MAX_ENTRIES = 20_000
"""Maximum number of names in a directory, and of certificates of a frontend."""
_MAX_BYTES = 256 * 1024
"""Largest size of one file."""
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Original:
    """The files of one certificate; without `key`, `chain` contains the key as well.

    `path` names the certificate in messages and in the crt-lists.
    """

    chain: str
    key: str | None = None

    @property
    def path(self) -> str:
        """The file that identifies the certificate."""
        return self.chain


@dataclass(frozen=True, slots=True)
class FoundCertificates:
    """The result of `find`: certificates, directories to watch, and problems."""

    originals: tuple[Original, ...]
    directories: frozenset[str]
    problems: tuple[Problem, ...]


def find(frontend: str, tls: FrontendTls) -> FoundCertificates:
    """Return the certificates of a frontend, in a fixed order.  Problems are warnings."""
    search = _Search(frontend)
    for number, source in enumerate(tls.certificates):
        search.add(source, f"tls.certificates.{number}")
    return FoundCertificates(
        tuple(dict.fromkeys(search.originals)),
        frozenset(search.directories),
        tuple(search.problems),
    )


def find_default(tls: FrontendTls) -> Original | None:
    """Return the default certificate's files, or None if none is declared."""
    source = tls.default
    if source is None:
        return None
    if source.key is not None:
        return Original(source.path, source.key)
    return _of_file(source.path)


def read(original: Original) -> tuple[bytes, bytes | None]:
    """Return the chain and the key.  Raises `Unsafe`."""
    chain = safe_files.read(original.chain, _MAX_BYTES)
    return chain, None if original.key is None else safe_files.read(original.key, _MAX_BYTES)


class Originals:
    """Read originals, and read them again only if one of their files has changed."""

    def __init__(self) -> None:
        self._bundles: dict[Original, tuple[object, Bundle]] = {}

    def bundle(self, original: Original) -> Bundle:
        """Return the checked certificate.  Raises `Unsafe` and `NotUsable`."""
        from fc_frontend.certificates.pem import bundle

        seen = _signature(original)
        known = self._bundles.get(original)
        if known is not None and known[0] == seen:
            return known[1]
        self._bundles.pop(original, None)
        made = bundle(*read(original))
        if seen == _signature(original):
            self._bundles[original] = seen, made
        return made

    def keep(self, originals: Collection[Original]) -> None:
        """Forget all other originals."""
        self._bundles = {each: self._bundles[each] for each in originals if each in self._bundles}


def _signature(original: Original) -> object:
    return files.signature(original.chain), original.key and files.signature(original.key)


class _Search:
    """One search through all certificate sources of a frontend."""

    def __init__(self, frontend: str) -> None:
        self._frontend = frontend
        self._field = ""
        self.originals: list[Original] = []
        self.directories: set[str] = set()
        self.problems: list[Problem] = []

    def add(self, source: CertificateSource, field: str) -> None:
        """Add the certificates of a source."""
        self._field = field
        if source.key is not None:
            self.originals.append(Original(source.path, source.key))
            self.directories |= {posixpath.dirname(path) for path in (source.path, source.key)}
            return
        count = len(self.originals)
        problems = len(self.problems)
        is_pattern = bool(_MAGIC.intersection(source.path))
        paths = list(self._expanded(source.path)) if is_pattern else [source.path.rstrip("/")]
        for path in paths:
            self._add_path(path, is_named=not is_pattern)
        if len(self.originals) == count and len(self.problems) == problems:
            self._warn(
                f"{source.path} leads to no certificate",
                "correct it; or let your ACME client create one: the frontend serves the others",
            )

    def _cannot_read(self, path: str, exc: Unsafe) -> None:
        cause = Cause.FORBIDDEN if exc.fault is FileFault.DENIED else None
        remedy = "run `fc-frontend certificates sync` as root" if cause else exc.remedy
        self._warn(f"{path} {exc.message}", remedy, cause)

    def _warn(self, message: str, remedy: str, cause: Cause | None = None) -> None:
        self.problems.append(
            Problem(
                message,
                remedy,
                cause=cause,
                severity=Severity.WARNING,
                service=self._frontend,
                field=self._field,
            )
        )

    def _add_path(self, path: str, *, is_named: bool) -> None:
        try:
            found = safe_files.examine(path)
        except Unsafe as exc:
            self.directories.add(posixpath.dirname(path))
            if exc.fault is FileFault.MISSING:
                if is_named and posixpath.splitext(path)[1]:
                    self.originals.append(_of_file(path))
                return
            self._cannot_read(path, exc)
            return
        if not found.is_directory:
            self.directories.add(posixpath.dirname(path))
            self.originals.append(_of_file(path))
            return
        self._add_directory(path, depth=1)

    def _add_directory(self, path: str, depth: int) -> None:
        """Add the certificates of a directory or, as in certbot's `live`, of its subdirectories."""
        self.directories.add(path)
        names = self._names(path)
        pairs = pairs_in(names)
        self.originals += (
            Original(f"{path}/{chain}", key and f"{path}/{key}") for chain, key in pairs
        )
        if pairs or not depth:
            return
        for name in names:
            inner = f"{path}/{name}"
            if not name.startswith(".") and _is_directory(inner):
                self._add_directory(inner, depth - 1)

    def _names(self, directory: str) -> list[str]:
        try:
            return safe_files.names(directory, MAX_ENTRIES)
        except Unsafe as exc:
            if exc.fault is not FileFault.MISSING:
                self._cannot_read(directory, exc)
            return []

    def _expanded(self, pattern: str) -> Iterator[str]:
        """Yield the matching paths, sorted.  As in a shell, `*` matches no hidden names or `/`."""
        parts = [part for part in pattern.split("/") if part]
        paths = [""]
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            if not _MAGIC.intersection(part):
                paths = [f"{path}/{part}" for path in paths]
                continue
            matching = []
            for path in paths:
                self.directories.add(path or "/")
                matching += [
                    f"{path}/{name}"
                    for name in self._names(path or "/")
                    if fnmatchcase(name, part) and (part.startswith(".") or name[0] != ".")
                ]
            is_inner = not is_last or pattern.endswith("/")
            paths = [each for each in matching if not is_inner or _is_directory(each)]
        yield from paths


def _of_file(path: str) -> Original:
    directory = posixpath.dirname(path)
    try:
        names = safe_files.names(directory, MAX_ENTRIES)
    except Unsafe:
        names = []
    key = key_beside(posixpath.basename(path), names)
    return Original(path, key and posixpath.join(directory, key))


def _is_directory(path: str) -> bool:
    try:
        return safe_files.examine(path).is_directory
    except Unsafe:
        return False


def warning(frontend: str, original: Original, message: str, remedy: str) -> Problem:
    """Return a warning about a certificate of a frontend."""
    return Problem(
        f"{original.path}: {message}", remedy, severity=Severity.WARNING, service=frontend
    )


def is_missing(original: Original) -> bool:
    """Return whether the certificate's file does not exist; False if that cannot be determined."""
    try:
        safe_files.examine(original.chain)
    except Unsafe as exc:
        return exc.fault is FileFault.MISSING
    return False
