"""Examine the files that a configuration names before HAProxy opens them.

HAProxy opens every named file: it blocks on pipes, reads devices endlessly, and as root serves
files that nobody else may read.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from fc_frontend import safe_files
from fc_frontend.errors import Problem
from fc_frontend.haproxy.places import Places
from fc_frontend.model.units import UnitId
from fc_frontend.paths.walk import Found
from fc_frontend.plan.model import Haproxy, Plan
from fc_frontend.render.config import Config
from fc_frontend.safe_files import FileFault, Unsafe
from fc_frontend.syntax.files import NamedFile, Use, files_of_crt_list, named_files

MAX_BYTES = 16 * 1024 * 1024
"""Largest size of one file.

HAProxy needs 215 MB for a list of addresses of this size, and 1.5 GB for one-letter lines.
"""
MAX_UNIT_BYTES = 64 * 1024 * 1024
"""Largest total size of the files that one unit names, each counted once."""
MAX_ENTRIES = 20_000
"""Maximum number of entries of a directory with certificates."""
MAX_NAMES = 200_000
"""Maximum number of names in a directory that contains a certificate."""
MAX_LIST_BYTES = 1024 * 1024
"""Largest file that names other files."""
KEY_TYPES = (".rsa", ".ecdsa", ".dsa")
"""Suffixes of a certificate that exists once for each type of key (manual 5.1)."""
_COMPANIONS = (".key", ".ocsp", ".sctl", ".issuer")
"""Suffixes of the files that HAProxy loads beside a certificate (`ssl-load-extra-files`)."""
_KINDS = {
    "crt": "the certificate",
    "crt-list": "the list of certificates",
    "ca-file": "the CA file",
    "ca-verify-file": "the CA file",
    "crl-file": "the list of revoked certificates",
    "tls-ticket-keys": "the file of ticket keys",
    "-f": "the list",
    "map": "the map",
    "errorfile": "the error file",
    "file": "the file",
    "lf-file": "the file",
    "lua-load": "the Lua program",
    "lua-load-per-thread": "the Lua program",
}
"""The kind of file that a keyword names, for messages."""
_CA_ENDINGS = (".pem", ".crt", ".cer", ".crl")
"""Suffixes of the files in a `ca-file` directory that HAProxy opens, whatever their type."""


def file_problems(
    config: Config, haproxy: Haproxy, plan: Plan | None = None, kept: str | None = None
) -> tuple[Problem, ...]:
    """Return problems of the files that `config` names, each for the unit that names the file.

    A missing file is a problem if HAProxy needs it (`NamedFile.must_exist`).  `plan` is the source
    of `config`, and `kept` the directory of fc-frontend's own copies of such files, which are valid
    for any use.
    """
    examination = _Examination(haproxy, kept)
    places = Places(config, plan)
    found: dict[Problem, None] = {}
    for named in named_files(config.text):
        for problem in examination.of(named, config.unit_at(named.line)):
            placed = places.placed(problem, named.line)
            if named.keyword == "ca-file" and named.path == places.ca_file(placed.service):
                placed = replace(placed, field="tls.ca_file")
            found[placed] = None
    return tuple(found)


def _problem(named: NamedFile, message: str, remedy: str) -> Problem:
    return Problem(f"{named.keyword}: {message}", remedy)


class _Examination:
    """One examination of all files of a configuration, each file once."""

    def __init__(self, haproxy: Haproxy, kept: str | None) -> None:
        self._kept = kept
        self._readers = _Readers(haproxy)
        self._known: dict[tuple[str, Use, bool, bool], tuple[Problem, ...]] = {}
        self._sizes: dict[UnitId | None, dict[str, int]] = {}
        self._unit: UnitId | None = None
        self._names: dict[str, frozenset[str]] = {}

    def of(self, named: NamedFile, unit: UnitId | None) -> tuple[Problem, ...]:
        """Return problems of a file that a unit names, and of the files named in it."""
        self._unit = unit
        return self.problems(named)

    def problems(self, named: NamedFile) -> tuple[Problem, ...]:
        """Return problems of a file and of the files named in it."""
        if named.path is None:
            return (
                _problem(
                    named,
                    "a file's name has a variable",
                    "write the name itself: what HAProxy opens must be known before",
                ),
            )
        if named.use is Use.REPLACED:
            return (
                _problem(
                    named,
                    "HAProxy replaces the file each time it checks a configuration",
                    "remove the line",
                ),
            )
        key = (named.path, named.use, named.may_be_directory, named.must_exist)
        if key not in self._known:
            self._known[key] = ()
            self._known[key] = tuple(self._examined(named, named.path))
        return self._known[key]

    def _examined(self, named: NamedFile, path: str) -> Iterator[Problem]:
        try:
            found = safe_files.examine(path)
            if found.is_directory:
                if not named.may_be_directory:
                    raise Unsafe(FileFault.DIRECTORY)
                yield from self._entries(named, found)
                return
            self._require_bounds(found, named.use)
            is_ours = self._kept is not None and str(Path(path).parent) == self._kept
            if not is_ours and (reason := self._readers.refuse(found, named.use)):
                yield _problem(named, f"{path} {reason[0]}", reason[1])
                return
            yield from self._contents(named, path, found)
        except Unsafe as exc:
            # HAProxy reads it as root before it drops privileges; this user need not have access.
            is_state = named.keyword == "server-state-file" and exc.fault is FileFault.DENIED
            if exc.fault is not FileFault.MISSING and not is_state:
                yield _problem(named, f"{path} {exc.message}", exc.remedy)
            elif named.must_exist and not is_state and not _is_bundle(named, path):
                kind = _KINDS.get(named.keyword, named.keyword)
                yield Problem(f"{kind} {path} does not exist", exc.remedy)
        if named.keyword == "crt":
            yield from self._companions(named, path)

    def _require_bounds(self, found: Found, use: Use) -> None:
        """Raise `Unsafe` for a file that is too large, alone or with the unit's other files."""
        size = found.status.st_size
        if use is Use.WRITTEN:
            return
        if size > MAX_BYTES:
            raise safe_files.too_large(MAX_BYTES)
        sizes = self._sizes.setdefault(self._unit, {})
        sizes[found.path] = size
        if sum(sizes.values()) > MAX_UNIT_BYTES:
            raise Unsafe(
                FileFault.TOO_LARGE,
                f"and the files named before it are larger than {MAX_UNIT_BYTES} bytes together",
                "make them smaller",
            )

    def _contents(self, named: NamedFile, path: str, found: Found) -> Iterator[Problem]:
        """Yield problems of the files that are named in this file."""
        if named.keyword not in ("crt-list", "config") or stat.S_ISCHR(found.status.st_mode):
            return
        text = safe_files.read(path, MAX_LIST_BYTES).decode("utf-8", "surrogateescape")
        inner = files_of_crt_list(text, named) if named.keyword == "crt-list" else named_files(text)
        for file in inner:
            # HAProxy reports missing files: a message must not quote words of a file that is not a
            # list.
            for problem in self.problems(replace(file, must_exist=False)):
                message = f"{path}, line {file.line}: {problem.message}"
                yield _problem(named, message, problem.remedy)

    def _entries(self, named: NamedFile, directory: Found) -> Iterator[Problem]:
        """Yield problems of the entries of a directory that HAProxy would open."""
        is_ca = _is_ca(named)
        for name in safe_files.names(directory.path, MAX_ENTRIES):
            path = f"{directory.path}/{name}"
            if not is_opened(named, name):
                continue
            try:
                found = safe_files.examine(path)
                if not found.is_directory:
                    self._require_bounds(found, named.use)
            except Unsafe as exc:
                # HAProxy checks the type of a file before it opens a certificate, but not a CA
                # file.
                if exc.fault is FileFault.MISSING or (exc.fault is FileFault.SPECIAL and not is_ca):
                    continue
                yield _problem(named, f"{path} {exc.message}", exc.remedy)

    def _names_in(self, directory: str) -> frozenset[str]:
        """Return the names in a directory, or none if it cannot be listed."""
        if directory not in self._names:
            try:
                self._names[directory] = frozenset(safe_files.names(directory, MAX_NAMES))
            except Unsafe:
                self._names[directory] = frozenset()
        return self._names[directory]

    def _companions(self, named: NamedFile, path: str) -> Iterator[Problem]:
        directory, _, _ = path.rpartition("/")
        there = self._names_in(directory or "/")
        for candidate in companions_of(path):
            if candidate.rpartition("/")[2] not in there:
                continue
            try:
                found = safe_files.examine(candidate)
                if found.is_directory:
                    continue
                self._require_bounds(found, named.use)
            except Unsafe as exc:
                if exc.fault is not FileFault.MISSING:
                    yield _problem(named, f"{candidate} {exc.message}", exc.remedy)


def companions_of(path: str) -> tuple[str, ...]:
    """Return the files that HAProxy looks for beside a certificate (`ssl-load-extra-files`)."""
    stem = path.rpartition(".")[0] or path
    found = [path + each + more for each in ("", *KEY_TYPES) for more in ("", *_COMPANIONS)]
    return tuple(dict.fromkeys(each for each in (*found, f"{stem}.key") if each != path))


def is_opened(named: NamedFile, name: str) -> bool:
    """Return whether HAProxy opens the entry `name` of the directory `named`."""
    return not name.startswith(".") and (not _is_ca(named) or name.endswith(_CA_ENDINGS))


def is_certificate(name: str) -> bool:
    """Return whether HAProxy loads an entry as a certificate, not as a file beside one."""
    return not name.endswith(_COMPANIONS)


def _is_bundle(named: NamedFile, path: str) -> bool:
    """Return whether the certificate `path` exists with suffixes of key types (manual 5.1)."""
    return named.keyword == "crt" and any(os.path.lexists(path + kind) for kind in KEY_TYPES)


def _is_ca(named: NamedFile) -> bool:
    return named.keyword.endswith("file")


def _number(name: str | None, look_up: Callable[[str], int]) -> int | None:
    """Return the ID of a user or group, or None if it does not exist."""
    try:
        return look_up(name) if name else None
    except KeyError:
        return None


class _Readers:
    """Check who may read a file: clients must not see files that only root may read.

    HAProxy reads its files as root if it is started as root.  A file that it discloses to others is
    refused unless they may read it themselves.
    """

    def __init__(self, haproxy: Haproxy) -> None:
        self._user = _number(haproxy.user, lambda name: pwd.getpwnam(name).pw_uid)
        self._group = _number(haproxy.group, lambda name: grp.getgrnam(name).gr_gid)
        self._own = {str(path) for path in Path(haproxy.config_file).resolve().parents}

    def refuse(self, found: Found, use: Use) -> tuple[str, str] | None:
        """Return why HAProxy must not use a file in this way, and the remedy; None if it may."""
        if use not in (Use.SERVED, Use.READ) or stat.S_ISCHR(found.status.st_mode):
            return None
        if self._is_public(found):
            return None
        if use is Use.SERVED:
            return (
                "is served to clients, and not everybody on this host may read it",
                "name a file for everybody (`chmod o+r`, and `chmod o+x` for its directories)",
            )
        if os.geteuid() != 0 or self._is_for_haproxy(found.status):
            return None
        return (
            "is for root alone, and HAProxy can show what is in it",
            "let everybody read it (`chmod o+r`), or haproxy.group (`chgrp`, `chmod g+r`)",
        )

    def _is_public(self, found: Found) -> bool:
        if not found.status.st_mode & stat.S_IROTH:
            return False
        for parent in Path(found.path).parents:
            if str(parent) in self._own:
                # Directories above haproxy.cfg are not checked: its files may be there as well.
                return True
            if not parent.stat().st_mode & stat.S_IXOTH:
                return False
        return True

    def _is_for_haproxy(self, status: os.stat_result) -> bool:
        by_user = status.st_uid == self._user and status.st_mode & stat.S_IRUSR
        by_group = status.st_gid == self._group and status.st_mode & stat.S_IRGRP
        return bool(by_user or by_group)
