"""What the files declare, and how much of it is deployed: a mistake leaves the last good form.

read ─► withdraw what is refused ─► declaration ─► HAProxy runs it ─► promote: the last good form
                 ▲                                      │
                 └────────── isolate, take back ◄───────┘

The last good form is the one that HAProxy's worker confirmed last.  A service goes back to an
earlier form only if the guard has evidence against exactly that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from fc_frontend.config.last_good import Form, LastGood, Piece, Unit
from fc_frontend.config.loader import Declaration, Sources, is_unchanged, read, state_directory
from fc_frontend.config.quarantine import Faults, Withdrawn, tolerate
from fc_frontend.daemon.guard import Former
from fc_frontend.errors import Problem, Unavailable, errors_in
from fc_frontend.haproxy import kept_files
from fc_frontend.haproxy.deploy import Deployment
from fc_frontend.pipeline import (
    Memo,
    culprit,
    forget_pending,
    save_last_good,
    save_pending,
    stored_last_good,
    stored_pending,
    traced,
)
from fc_frontend.plan.model import Settings


class Declared:
    """The files as they were read, what of them is withdrawn, and the last good forms.

    What is not a coroutine does not block, but for `without`, which is for threads.
    """

    def __init__(self, settings_file: str) -> None:
        self._settings_file = settings_file
        self._sources: Sources | None = None
        self._withdrawn = Withdrawn()
        self._untraced: Unit | None = None
        self._last_good = LastGood()
        self._saved: LastGood | None = None
        """None until those of the last start are read."""
        self._pending: LastGood | None = None
        self._copies: Mapping[str, str] = {}
        self._substitutes: Mapping[str, str] = {}
        self._made_of: tuple[Sources, LastGood, Withdrawn] | None = None
        self._made: Declaration | None = None

    @property
    def is_read(self) -> bool:
        """True once there is anything; until then, nothing but `read` and `changed` may be used."""
        return self._sources is not None

    @property
    def names(self) -> frozenset[str]:
        """All services that are declared, in quarantine or not."""
        return frozenset(self._sources.services if self._sources else ())

    @property
    def state_directory(self) -> str:
        """As the settings say; known also where they are not accepted."""
        return state_directory(self._read)

    @property
    def refuses(self) -> bool:
        """True if HAProxy or a trial has refused anything since it was read."""
        return bool(self._withdrawn.refused)

    @property
    def is_saved(self) -> bool:
        """True if the last good forms are on disk as they are here."""
        return self._saved is None or self._last_good is self._saved

    @property
    def last_good(self) -> LastGood:
        """The forms that a mistake falls back to."""
        return self._last_good

    @property
    def pending(self) -> LastGood | None:
        """The forms that are being deployed, or were when the last daemon ended."""
        return self._pending

    async def changed(self) -> bool:
        """True if any file is another one than when it was read."""
        return self._sources is None or not await asyncio.to_thread(is_unchanged, self._sources)

    async def read(self, changed: Collection[str] | None, *, afresh: bool) -> None:
        """Read the files, and give what was refused another chance.

        `changed` names the files of services.d that changed, None if any may have.  With `afresh`,
        nothing that was read before counts.
        """
        before = None if afresh else self._sources
        names = None if changed is None else frozenset(changed)
        self._sources = await asyncio.to_thread(read, self._settings_file, before, names)
        self._withdrawn.clear()
        self._untraced = None
        if self._saved is None:
            self._last_good = await asyncio.to_thread(stored_last_good, self.state_directory)
            self._pending = await asyncio.to_thread(stored_pending, self.state_directory)
            self._saved = self._last_good
        self._substitutes = await asyncio.to_thread(
            kept_files.substitutes, self.state_directory, self._last_good.files
        )
        self._withdraw_failed()

    async def declaration(self) -> Declaration:
        """What can be had of what was read; the very same one while nothing changes."""
        made_of = (self._read, self._fallback, self._withdrawn.copy())
        if self._made is None or not _are_same(made_of, self._made_of):
            self._made = await asyncio.to_thread(tolerate, *made_of)
            self._made_of = made_of
        return self._made

    def without(self, units: Iterable[Unit]) -> Declaration:
        """What would be declared if these were withdrawn as well."""
        return tolerate(self._read, self._fallback, self._withdrawn.without(units))

    def withdraw(self, faults: Faults) -> bool:
        """Have units go back to their last good form, or out; False if nothing changes by it."""
        return self._withdrawn.withdraw(faults)

    async def isolate(
        self,
        declaration: Declaration,
        deployment: Deployment,
        serving: Collection[str],
        accepts: Callable[[frozenset[Unit]], bool],
    ) -> bool:
        """Withdraw what HAProxy refused; False if that cannot be told from the rest.

        `serving` names the services that HAProxy has.  `accepts` tells, in a thread, whether it
        would take the configuration without some changes, and may raise `Unavailable`.
        """
        faults = traced(deployment.problems, declaration)
        if faults:
            # What serves is never left out: rather nothing changes at all.
            again = {unit.name for unit in faults if unit in self._withdrawn.refused}
            return not again & set(serving) and self.withdraw(faults)
        if not deployment.judged:
            return False
        suspects = sorted(self.differing(declaration) - self._withdrawn.left_out)
        try:
            found = await asyncio.to_thread(culprit, suspects, accepts)
        except Unavailable:
            # Who cannot be asked has blamed nobody; it is tried again later.
            return False
        self._untraced = found
        return found is not None and self.withdraw({found: errors_in(deployment.problems)})

    def attributed(self, declaration: Declaration, deployment: Deployment) -> Declaration:
        """Leave the unit that was found by search only the errors that are gone without it."""
        unit, self._untraced = self._untraced, None
        if unit is None or unit not in self._withdrawn.refused:
            return declaration
        others = errors_in(deployment.problems)
        said = self._withdrawn.refused[unit]
        own = tuple(problem for problem in said if problem not in others) or said
        self._withdrawn.refused[unit] = own
        return replace(
            declaration,
            quarantined=tuple(
                replace(held, problems=own) if held.unit == unit else held
                for held in declaration.quarantined
            ),
        )

    def differing(self, declaration: Declaration) -> frozenset[Unit]:
        """The units that are declared otherwise than in their last good form."""
        return declaration.forms.differing(self._last_good)

    async def attempt(
        self, declaration: Declaration, hash_: str, former: Former, memo: Memo
    ) -> None:
        """Write down what is about to be deployed, so that a start finds it if we are killed.

        `hash_` is its configuration's, `former` the guard's ways back.  Raises `Unavailable`.
        """
        pending = replace(self._promoted(declaration, former), files=self._copies, hash=hash_)
        if pending != self._last_good:
            self._pending = pending
            await asyncio.to_thread(save_pending, declaration.settings, pending, memo=memo)

    def confirm(self, running: str | None) -> None:
        """Promote what was being deployed if HAProxy runs it, by the hash of its configuration."""
        if self._pending is not None and self._pending.hash == running:
            pending, self._pending = self._pending, None
            self._have(replace(pending, hash=None))

    def promote(self, declaration: Declaration, former: Former) -> None:
        """Make what HAProxy runs the last good forms; `former` are the guard's ways back."""
        self._pending = None
        self._have(self._promoted(declaration, former))

    def _promoted(self, declaration: Declaration, former: Former) -> LastGood:
        held = [held.unit for held in declaration.quarantined]
        running = declaration.forms.services
        failed = {
            name: forms
            for name, forms in self._last_good.failed.items()
            if Unit(Piece.SERVICE, name) in held
            or (name in running and not self._is_taken(name, running[name], forms))
        }
        last_good = declaration.forms.with_former(self._last_good, held)
        return replace(last_good, failed=failed, former=dict(former))

    def _is_taken(self, name: str, running: Form, failed: Iterable[Form]) -> bool:
        """True if the service runs as the files declare it, and not in a form that failed."""
        declared = self._read.services.get(name)
        return (
            declared is not None
            and declared.value == running.value
            and running.value not in [form.value for form in failed]
        )

    def take_back(
        self, declaration: Declaration, name: str, evidence: str, former: Former, form: Form
    ) -> Problem | None:
        """Revert a service that lost all its servers to `form`; None if it is gone.

        `evidence` is against the form in `declaration`, which HAProxy runs.
        """
        running = declaration.forms.services.get(name)
        if running is None:
            return None
        failed = self._last_good.failed.get(name, ())
        if running.value not in [one.value for one in failed]:
            failed = (*failed, Form(evidence, running.value))
        self._have(
            replace(
                self._last_good,
                services={**self._last_good.services, name: form},
                failed={**self._last_good.failed, name: failed},
                former=dict(former),
            )
        )
        self._withdraw_failed()
        return _no_server_up(name, evidence)

    def _withdraw_failed(self) -> None:
        """Withdraw the services that are declared in a form that failed.

        One that was refused for another reason is reverted already.
        """
        declared = self._read.services
        self._withdrawn.withdraw(
            {
                unit: (_no_server_up(name, form.file),)
                for name, forms in self._last_good.failed.items()
                for form in forms
                if name in declared
                and declared[name].value == form.value
                and (unit := Unit(Piece.SERVICE, name)) not in self._withdrawn.refused
            }
        )

    async def copy_files(self, text: str, directory: str, memo: Memo) -> None:
        """Copy certificates and other files that `text`, of haproxy.cfg, names.

        They are copied before HAProxy reads them: afterwards, they may be broken already.  Raises
        `Unavailable`.
        """
        last_good = self._last_good

        def copied() -> dict[str, str]:
            paths = kept_files.paths_in(text)
            return kept_files.keep(directory, paths, last_good.named_files(memo.forms))

        self._copies = await asyncio.to_thread(copied)

    async def keep_copies(self, directory: str) -> None:
        """Keep the copies that were made last, as HAProxy accepted the files, and no others."""
        self._have(replace(self._last_good, files=self._copies))
        await asyncio.to_thread(kept_files.forget, directory, self._copies)

    async def save(self, settings: Settings, memo: Memo) -> None:
        """Keep the last good forms for the next start.  Raises `Unavailable`."""
        last_good = self._last_good
        if not self.is_saved:
            await asyncio.to_thread(save_last_good, settings, last_good, memo=memo)
            self._saved = last_good
            if self._pending is None:
                await asyncio.to_thread(forget_pending, settings.state_directory)

    @property
    def _read(self) -> Sources:
        assert self._sources is not None
        return self._sources

    @property
    def _fallback(self) -> LastGood:
        """The last good forms, with copies where files that they name have changed since."""
        return self._last_good.with_paths(self._substitutes)

    def _have(self, last_good: LastGood) -> None:
        """Stay with the same object where nothing differs: it need not be written, nor declared."""
        if last_good != self._last_good:
            self._last_good = last_good


def _no_server_up(name: str, evidence: str) -> Problem:
    return Problem(
        message=f"no server is up after the change: {evidence}",
        remedy="fix pod_port, tls or the checks of the service; its next change is deployed",
        service=name,
    )


def _are_same(
    one: tuple[Sources, LastGood, Withdrawn], other: tuple[Sources, LastGood, Withdrawn] | None
) -> bool:
    """True if the same would be declared: the sources and forms are large, so by identity."""
    return other is not None and one[0] is other[0] and one[1] is other[1] and one[2] == other[2]
