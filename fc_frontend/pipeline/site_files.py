"""Read the user, group and page files named by services, and this host's secret for cookies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache

from fc_frontend import files, safe_files
from fc_frontend.errors import Problem
from fc_frontend.model.memo import Memo
from fc_frontend.model.units import UnitId, UnitKind
from fc_frontend.plan.model import ServiceSpec
from fc_frontend.plan.sites import SiteFiles
from fc_frontend.safe_files import Unsafe
from fc_frontend.syntax.htpasswd import Flaw, read_groups, read_logins, with_groups

MAX_BYTES = 256 * 1024
"""Of a file of users or groups, in bytes."""
MAX_PAGE_BYTES = 14 * 1024
"""Of a page: HAProxy sends it, with headers, from a 16 KiB buffer, of which it reserves 1 KiB."""
_MACHINE_ID = "/etc/machine-id"
_DIGEST_LENGTH = 16


class SiteFileReader:
    """Reads files again when their inode, size or time has changed."""

    def __init__(self) -> None:
        self._read: Memo[bytes | Unsafe] = Memo()

    def of(self, specs: Iterable[ServiceSpec]) -> tuple[dict[str, SiteFiles], tuple[Problem, ...]]:
        """Return the contents of files for services, by name, and the problems of files.

        Services with a problem in their files are left out.
        """
        found: dict[str, SiteFiles] = {}
        problems: list[Problem] = []
        used: set[str] = set()
        for spec in specs:
            if spec.basic_auth is None and spec.sticky is None and spec.unavailable_page is None:
                continue
            said = list(self._page_problems(spec))
            site = self._site(spec, said, used)
            problems += said
            if not said:
                found[spec.name] = site
        self._read.keep(used)
        return found, tuple(problems)

    def has_changed(self) -> bool:
        """Return whether a file of users or groups has changed since it was last read."""
        return any(files.signature(path) != seen for path, seen in self._read.sources())

    def _site(self, spec: ServiceSpec, said: list[Problem], used: set[str]) -> SiteFiles:
        key = _cookie_key(spec.name) if spec.sticky is not None else ""
        if (auth := spec.basic_auth) is None:
            return SiteFiles(cookie_key=key)
        digests: dict[str, str] = {}

        def text(field: str, path: str) -> str | None:
            used.add(path)
            content = self._read.of(path, files.signature(path), lambda: _content(path))
            try:
                if isinstance(content, Unsafe):
                    raise content
                digests[path] = hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]
                return content.decode()
            except Unsafe as exc:
                said.append(_problem(spec, field, f"{path} {exc.message}", exc.remedy))
            except UnicodeDecodeError:
                said.append(_problem(spec, field, f"{path} is not UTF-8", "save it as UTF-8"))
            return None

        def flawed(field: str, path: str, flaws: tuple[Flaw, ...]) -> Iterator[Problem]:
            for flaw in flaws[:20]:
                yield _problem(spec, field, f"{path}, line {flaw.line} {flaw.message}", flaw.remedy)

        logins = groups = None
        if (users := text("basic_auth.users", auth.users)) is not None:
            logins, flaws = read_logins(users)
            said += flawed("basic_auth.users", auth.users, flaws)
        if auth.groups and (listed := text("basic_auth.groups", auth.groups)) is not None:
            groups, flaws = read_groups(listed)
            said += flawed("basic_auth.groups", auth.groups, flaws)
            for group in auth.allow_groups:
                if group not in groups:
                    message = f"{auth.groups} has no group {group}"
                    remedy = f"add a line `{group}: USER`, or name another group"
                    said.append(_problem(spec, "basic_auth.allow_groups", message, remedy))
        return SiteFiles(
            logins=with_groups(logins or (), groups or {}),
            digests=tuple(sorted(digests.items())),
            cookie_key=key,
        )

    def _page_problems(self, spec: ServiceSpec) -> Iterator[Problem]:
        """Yield problems with the size of a page; other files' checks cover everything else."""
        if (path := spec.unavailable_page) is None:
            return
        try:
            size = safe_files.examine(path).status.st_size
        except Unsafe:
            return
        if size > MAX_PAGE_BYTES:
            message = f"{path} has {size} bytes, of at most {MAX_PAGE_BYTES}"
            remedy = "make it smaller: load images and styles from elsewhere"
            yield _problem(spec, "unavailable_page", message, remedy)


def _content(path: str) -> bytes | Unsafe:
    try:
        return safe_files.read(path, MAX_BYTES)
    except Unsafe as exc:
        return exc


def _problem(spec: ServiceSpec, field: str, message: str, remedy: str) -> Problem:
    unit = UnitId(UnitKind.SERVICE, spec.name)
    return Problem(message, remedy, service=spec.name, unit=unit, field=field)


@lru_cache(maxsize=1)
def _machine_id() -> bytes:
    content = _content(_MACHINE_ID)
    return b"" if isinstance(content, Unsafe) else content.strip()


def _cookie_key(service: str) -> str:
    """Return a secret of this host for a service; machine-id(5) itself must not be used."""
    return hashlib.sha256(b"fc-frontend cookie %s " % _machine_id() + service.encode()).hexdigest()
