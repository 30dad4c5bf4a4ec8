"""Bring certificates from the operator's files to the copies and to the running worker.

    find, read, check ─► write copies and lists ─► swap in the worker ─► read back

If a certificate cannot be read, is incomplete or is refused, the copy and the worker keep the
former one.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fc_frontend import files
from fc_frontend.certificates.bundle import WAITING, Bundle, NotUsable
from fc_frontend.certificates.served import (
    Certificate,
    Served,
    date_problems,
    hidden_problems,
)
from fc_frontend.errors import Cause, Problem, Refused, Severity, Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.certificates import store
from fc_frontend.haproxy.certificates.originals import (
    Original,
    Originals,
    find,
    find_default,
    is_missing,
    warning,
)
from fc_frontend.haproxy.certificates.store import ListEntry
from fc_frontend.haproxy.certificates.swap import TooLarge, WorkerCertificates
from fc_frontend.haproxy.socket import NoListener
from fc_frontend.plan.model import FrontendSpec, Plan, Settings
from fc_frontend.safe_files import FileFault, Unsafe
from fc_frontend.syntax.certificates import list_path
from fc_frontend.syntax.routes import Match
from fc_frontend.text import whole_number

_MAX_JUDGED = 500
"""Maximum number of new certificates that the worker checks before it has their list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """The result of `Keeper.bring`.  `swapped` are originals that the worker just gained or lost.

    `unswapped` are originals that need a reload, and `failed` those that are not usable as is.
    `directories` are the directories to watch for changes.
    """

    served: tuple[Served, ...] = ()
    problems: tuple[Problem, ...] = ()
    swapped: tuple[str, ...] = ()
    unswapped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    directories: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Wanted:
    """The wanted entries of each frontend's list, and the new content of copies."""

    lists: dict[str, list[ListEntry]] = field(default_factory=dict)
    bundles: dict[str, Bundle] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    directories: set[str] = field(default_factory=set)


class Keeper:
    """Keep copies and the worker up to date, with caches of the contents read and compared."""

    def __init__(self) -> None:
        self._originals = Originals()
        self._copies: dict[str, tuple[object, bytes, Certificate | None]] = {}
        self._verified: dict[str, str] = {}
        """Fingerprints of the copies that the worker had."""
        self._refused: dict[str, tuple[bytes, tuple[Problem, ...]]] = {}
        """HAProxy's messages about new content that it refused, by copy."""
        self._worker: int | None = None

    def bring(self, settings: Settings, frontends: Iterable[FrontendSpec]) -> Brought:
        """Write copies and lists, and load them into the running worker.

        Callers must hold the `deploying` lock.  Raises `Unavailable`.
        """
        listed = _with_tls(frontends)
        if not listed:
            return Brought()
        wanted = self._wanted(settings, listed)
        former = self._write(settings, wanted)
        swapped: list[str] = []
        unswapped: list[str] = []
        try:
            self._swap(settings, wanted, former, swapped, unswapped)
        except NoListener:
            # HAProxy reads the files when it starts.
            self._worker = None
        store.remove_unlisted(settings.state_directory)
        return self._brought(settings, listed, wanted, swapped, unswapped)

    def look(self, settings: Settings, frontends: Iterable[FrontendSpec]) -> Brought:
        """Return what `bring` would find, without changing anything."""
        listed = _with_tls(frontends)
        wanted = self._wanted(settings, listed)
        return self._brought(settings, listed, wanted, (), ())

    def is_copied(self, settings: Settings, original: Original) -> bool:
        """Return whether the copy of a certificate is up to date, as far as this user can see."""
        try:
            bundle = self._originals.bundle(original)
        except (Unsafe, NotUsable):
            return False
        return self._copy(store.copy_of(settings.state_directory, original.path)) == bundle.pem

    # Files

    def _wanted(self, settings: Settings, frontends: Collection[FrontendSpec]) -> _Wanted:
        wanted = _Wanted()
        for frontend in frontends:
            self._add(settings, frontend, wanted)
        return wanted

    def _add(self, settings: Settings, frontend: FrontendSpec, wanted: _Wanted) -> None:
        tls, state = frontend.tls, settings.state_directory
        assert tls is not None
        path = list_path(state, frontend.name)
        former = {entry.original: entry for entry in store.entries_of(state, frontend.name)}
        found = find(frontend.name, tls)
        wanted.directories |= found.directories
        has_former = any(former)
        # `certificates sync`, run as root, reads what this user may not.
        wanted.problems += (
            each for each in found.problems if not (has_former and each.cause is Cause.FORBIDDEN)
        )
        entries = [self._first(settings, frontend, wanted)]
        for original in found.originals:
            copy = store.copy_of(state, original.path)
            if self._read(frontend.name, original, copy, wanted, is_kept=original.path in former):
                entries.append(ListEntry(copy, original.path))
        paths = {original.path for original in found.originals}
        entries += self._gone(former, paths, wanted, entries)
        wanted.lists[path] = list(dict.fromkeys(entries))

    def _first(self, settings: Settings, frontend: FrontendSpec, wanted: _Wanted) -> ListEntry:
        """Return the first entry of a list: the default certificate, or a stand-in."""
        assert frontend.tls is not None
        original = find_default(frontend.tls)
        if original is None:
            return ListEntry(store.stand_in(settings.state_directory), "")
        copy = store.default_copy(settings.state_directory, frontend.name)
        wanted.directories.add(original.path.rpartition("/")[0])
        is_kept = self._copy(copy) is not None
        self._read(frontend.name, original, copy, wanted, is_kept=is_kept)
        return ListEntry(copy, original.path)

    def _read(
        self, frontend: str, original: Original, copy: str, wanted: _Wanted, *, is_kept: bool
    ) -> bool:
        """Read a certificate into `wanted`; return whether it has a copy, new or existing."""
        try:
            wanted.bundles[copy] = self._originals.bundle(original)
        except Unsafe as exc:
            is_ours = exc.fault is FileFault.DENIED and is_kept
            if not is_ours:
                said = "the former one keeps being served" if is_kept else "it is not served"
                message = f"{exc.message}; {said}"
                wanted.problems.append(warning(frontend, original, message, exc.remedy))
                wanted.failed.append(original.path)
        except NotUsable as exc:
            said = "the former one keeps being served" if is_kept else "it is not served"
            waits = ", and waits for the rest" if exc.fault in WAITING else ""
            message = f"the certificate {exc}; {said}{waits}"
            wanted.problems.append(warning(frontend, original, message, exc.remedy))
            wanted.failed.append(original.path)
        else:
            return True
        return is_kept

    def _gone(
        self,
        former: Mapping[str, ListEntry],
        paths: Collection[str],
        wanted: _Wanted,
        entries: Iterable[ListEntry],
    ) -> list[ListEntry]:
        """Return the entries that are kept although their original is not found.

        The original may be missing only for a moment.  An entry is kept until the certificate
        expires or other certificates cover all its names.  It is not kept if the original exists
        and the frontend no longer names it.
        """
        others = [
            wanted.bundles[entry.copy].certificate
            for entry in entries
            if entry.copy in wanted.bundles
        ]
        kept = []
        for path, entry in former.items():
            if not path or path in paths or entry.copy.endswith(".default.pem"):
                continue
            known = self._certificate(entry.copy)
            if known is None or known.not_after < time.time() or _exists(path):
                continue
            if all(any(each.covers(name) for each in others) for name in known.names):
                continue
            kept.append(entry)
        return kept

    def _write(self, settings: Settings, wanted: _Wanted) -> dict[str, bytes | None]:
        """Write copies and lists; return the changed copies with their former content."""
        state, former = settings.state_directory, {}
        store.prepare(state)
        for path, bundle in list(wanted.bundles.items()):
            before = self._copy(path)
            refused, said = self._refused.get(path, (None, ()))
            if bundle.pem == refused:
                wanted.problems += said
                wanted.failed.append(path)
                del wanted.bundles[path]
            elif before != bundle.pem:
                store.write_copy(path, bundle.pem)
                former[path] = before
        for path, entries in wanted.lists.items():
            for entry in entries:
                if entry.copy.endswith(".default.pem"):
                    store.require_pem(entry.copy)
            entries[:] = [each for each in entries if self._copy(each.copy) is not None]
            store.write_list(path, entries)
        return former

    def _copy(self, path: str) -> bytes | None:
        """Return the content of a copy, or None if it does not exist or is not readable."""
        seen = files.signature(path)
        if seen is None:
            return None
        known = self._copies.get(path)
        if known is None or known[0] != seen:
            try:
                content = store.read_copy(path)
            except Unavailable:
                return None
            if content is None:
                return None
            from fc_frontend.certificates.pem import certificate_in

            known = self._copies[path] = seen, content, certificate_in(content)
        return known[1]

    def _certificate(self, path: str) -> Certificate | None:
        return None if self._copy(path) is None else self._copies[path][2]

    # The worker

    def _swap(
        self,
        settings: Settings,
        wanted: _Wanted,
        former: Mapping[str, bytes | None],
        swapped: list[str],
        unswapped: list[str],
    ) -> None:
        socket = settings.haproxy.runtime_socket
        pid = whole_number(runtime.info(socket)["Pid"])
        if pid != self._worker:
            self._verified, self._worker = {}, pid
        worker = WorkerCertificates(socket)
        listed = {path: worker.listed(path) for path in wanted.lists}
        loaded = worker.loaded()
        of_lists = {
            entry.copy: entry.original
            for path, entries in wanted.lists.items()
            if listed[path] is not None
            for entry in entries
        }
        self._verify(worker, loaded.intersection(of_lists))
        judged = [copy for copy in former if copy not in of_lists and copy not in loaded]
        candidates = [*of_lists, *(judged if len(judged) <= _MAX_JUDGED else ())]
        refused: set[str] = set()
        for copy in candidates:
            certificate, pem = self._certificate(copy), self._copy(copy)
            if certificate is None or pem is None:
                continue
            is_loaded = copy in loaded
            is_current = self._verified.get(copy) == certificate.fingerprint
            if is_loaded and is_current and copy not in former:
                continue
            try:
                worker.swap(copy, pem, certificate.fingerprint, is_new=not is_loaded)
            except TooLarge:
                if copy in of_lists:
                    unswapped.append(of_lists[copy])
                continue
            except Refused as exc:
                refused.add(copy)
                said = tuple(replace(each, severity=Severity.WARNING) for each in exc.problems)
                self._refused[copy] = pem, said
                wanted.problems += said
                wanted.failed.append(of_lists.get(copy, copy))
                wanted.bundles.pop(copy, None)
                self._restore(copy, former.get(copy))
                continue
            self._verified[copy] = certificate.fingerprint
            if copy in of_lists:
                swapped.append(of_lists[copy])
        self._follow_lists(worker, wanted, listed, refused, swapped, unswapped)

    def _verify(self, worker: WorkerCertificates, paths: Collection[str]) -> None:
        """Query the fingerprints that are not yet known for this worker."""
        unknown = [path for path in paths if path not in self._verified]
        if unknown:
            self._verified |= worker.fingerprints(unknown)

    def _restore(self, copy: str, before: bytes | None) -> None:
        """Restore a copy that HAProxy refused: HAProxy would not start with the new content."""
        if before is not None:
            store.write_copy(copy, before)

    def _follow_lists(
        self,
        worker: WorkerCertificates,
        wanted: _Wanted,
        listed: Mapping[str, tuple[str, ...] | None],
        refused: Collection[str],
        swapped: list[str],
        unswapped: Collection[str],
    ) -> None:
        """Add new entries to the worker's lists, and remove those that are gone."""
        for path, entries in wanted.lists.items():
            have = listed[path]
            without = [each for each in entries if each.copy in refused and not self._has(each)]
            if without:
                entries[:] = [each for each in entries if each not in without]
                store.write_list(path, entries)
            if have is None:
                continue
            for entry in entries:
                if entry.copy not in have and entry.original not in unswapped:
                    worker.add(path, entry.copy)
            copies = {entry.copy for entry in entries}
            for copy in have:
                if copy not in copies:
                    worker.remove(path, copy)
                    self._verified.pop(copy, None)
                    swapped.append(copy)

    def _has(self, entry: ListEntry) -> bool:
        """Return whether a refused copy has its former content again."""
        known = self._certificate(entry.copy)
        return known is not None and self._verified.get(entry.copy) == known.fingerprint

    def _brought(
        self,
        settings: Settings,
        frontends: Collection[FrontendSpec],
        wanted: _Wanted,
        swapped: Collection[str],
        unswapped: Collection[str],
    ) -> Brought:
        served = []
        for frontend in frontends:
            for entry in wanted.lists[list_path(settings.state_directory, frontend.name)]:
                bundle = wanted.bundles.get(entry.copy)
                certificate = bundle.certificate if bundle else self._certificate(entry.copy)
                if certificate is not None and entry.original:
                    is_default = entry.copy.endswith(".default.pem")
                    served.append(Served(frontend.name, entry.original, certificate, is_default))
        return Brought(
            served=tuple(served),
            problems=(
                *wanted.problems,
                *date_problems(served, time.time()),
                *hidden_problems(served),
            ),
            swapped=tuple(dict.fromkeys(swapped)),
            unswapped=tuple(dict.fromkeys(unswapped)),
            failed=tuple(dict.fromkeys(wanted.failed)),
            directories=frozenset(wanted.directories),
        )


def tls_hosts(plan: Plan) -> Mapping[str, Mapping[str, str]]:
    """Return, for each frontend with TLS, its hosts, each with the first service that routes it."""
    found: dict[str, dict[str, str]] = {
        frontend.name: {} for frontend in plan.frontends if frontend.tls is not None
    }
    for service in plan.services:
        for route in service.spec.routes:
            host = route.key.partition("/")[0]
            # A route that passes TLS through by SNI needs no certificate here.
            if host and route.frontend in found and route.match is not Match.SNI:
                found[route.frontend].setdefault(host, service.spec.name)
    return found


def _with_tls(frontends: Iterable[FrontendSpec]) -> tuple[FrontendSpec, ...]:
    return tuple(each for each in frontends if each.tls is not None)


def _exists(path: str) -> bool:
    """Return whether an original exists, whether or not a frontend names it."""
    return files.signature(path) is not None and not is_missing(Original(path))
