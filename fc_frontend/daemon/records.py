"""State on disk: the running configuration, former ones, and the answers of discovery."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fc_frontend import files, stored
from fc_frontend.config.loader import Sources
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.daemon import decide
from fc_frontend.daemon.guard import Former, Guard, Revert, former_after, reverts
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import install, kept_files, runtime
from fc_frontend.haproxy.contents import Contents
from fc_frontend.haproxy.deploy import Deployment, forget_refused, proxies_up
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.pipeline import Base, Prepared, base_of, find_base, record
from fc_frontend.plan.model import Haproxy, Resolution, Settings
from fc_frontend.plan.reasons import Reason
from fc_frontend.render.config import config_hash
from fc_frontend.rollout import deployed_declarations
from fc_frontend.stored import RunningState, save_answers


class Records:
    """The base of changes, and the services that are watched after a reload."""

    def __init__(
        self, tracker: Tracker, log: Log, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._tracker = tracker
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self.running_state: RunningState | None = None
        self.base = Base()
        self.guard = Guard()
        self._saved: Resolution = tracker.state.resolution
        """The answers that are saved for the next start."""
        self._written_answers = stored.WrittenAnswers()
        self._copies: Mapping[str, str] = {}
        self._running_contents = Contents()
        self._has_tidied = False

    @property
    def known(self) -> RunningState:
        """The recorded state of HAProxy.  Requires `open`."""
        assert self.running_state is not None
        return self.running_state

    @property
    def has_unsaved_answers(self) -> bool:
        """Whether answers have changed since they were last saved."""
        return self._tracker.state.resolution is not self._saved

    @property
    def leaves_drift(self) -> bool:
        """Whether HAProxy may have a haproxy.cfg that others changed and that is kept."""
        return decide.leaves_drift(self._tracker.state, self.base.hash)

    async def open(self, directory: str) -> None:
        """Read the records in `directory`, unless that is done already."""
        if self.running_state is None:
            self.running_state = await asyncio.to_thread(RunningState, directory)

    async def resume(self, settings: Settings) -> None:
        """Continue a deployment and a watch that the last daemon did not finish."""
        haproxy = settings.haproxy
        running = await asyncio.to_thread(_hash_in_force, haproxy)
        if self.known.pending is not None:
            self.known.confirm(running)
        with contextlib.suppress(Unavailable):
            running = await asyncio.to_thread(runtime.running_hash, haproxy.runtime_socket)
        await self.find_base(settings, running)
        self.guard.resume(self.known.confirmed.former, self._clock())

    async def find_base(self, settings: Settings, running: str | None) -> None:
        """Find the base of changes while HAProxy reports the digest `running`."""
        await asyncio.to_thread(self._find_base, settings, running)

    def _find_base(self, settings: Settings, running: str | None) -> None:
        state = self.known
        state.refresh()
        self.base = find_base(
            settings, state.confirmed, state.pending, running, self._running_contents
        )

    async def save(self) -> None:
        """Save the answers for the next start, if they changed."""
        known, declaration = self.running_state, self._tracker.state.declaration
        if known is None or declaration is None:
            return
        if not self.has_unsaved_answers and known.is_saved:
            return
        settings, specs = declaration.settings, declaration.services
        try:
            if self.has_unsaved_answers:
                # If answers change during the write, they are saved the next time.
                answers = self._tracker.state.resolution
                await asyncio.to_thread(
                    save_answers, settings, specs, dict(answers), memo=self._written_answers
                )
                self._saved = answers
            await asyncio.to_thread(known.save, settings)
        except Unavailable as exc:
            self._metrics.state_not_written("answers")
            self._log.limited("state-not-saved").warning(
                "state-not-saved", reason=exc.problems[0].message, remedy=exc.problems[0].remedy
            )

    def attempt(self, prepared: Prepared, sources: Sources) -> None:
        """Record a deployment before it starts, and copy the files that it names.

        Answers are saved, too: after a kill, the next daemon may be unable to get any.
        """
        assert prepared.config is not None
        declaration, state = prepared.declaration, self.known
        settings = declaration.settings
        with contextlib.suppress(Unavailable):
            save_answers(settings, declaration.services, prepared.resolution)
        self._copies = dict(state.confirmed.files)
        try:
            self._copies = kept_files.keep(
                settings.state_directory,
                kept_files.files_in(prepared.config.text).values(),
                state.confirmed.named_files(),
            )
        except Unavailable as exc:
            self._metrics.state_not_written("files")
            self._log.limited("files-not-kept").warning(
                "files-not-kept", error=exc.problem.message, remedy=exc.problem.remedy
            )
        before, after = state.confirmed.services, declaration.raw.services
        former = former_after(self.guard.former, before, after, had_up=before)
        # If the record cannot be written, nothing can be deployed either.
        with contextlib.suppress(Unavailable):
            state.attempt(settings, self._declarations(prepared, sources, former))

    def _declarations(
        self, prepared: Prepared, sources: Sources, former: Former
    ) -> RunningDeclarations:
        """Return the declarations of `prepared`, for the next start."""
        return deployed_declarations(
            prepared,
            self.known.confirmed,
            sources,
            copies=self._copies,
            former=former,
        )

    async def keep(
        self,
        prepared: Prepared,
        deployment: Deployment,
        why: tuple[Reason, ...],
        *,
        is_all: bool,
    ) -> None:
        """Record a finished deployment in the history and for the next start.

        `is_all` is True if no change was refused.
        """
        await self._record(prepared, deployment, why)
        if deployment.ok and self._tracker.state.declaration is not None:
            settings = self._tracker.state.declaration.settings
            await asyncio.to_thread(kept_files.forget, settings.state_directory, self._copies)
            await self.save()
            if is_all:
                await asyncio.to_thread(forget_refused, settings.haproxy)
            if not self._has_tidied:
                self._has_tidied = True
                places = (str(Path(settings.haproxy.config_file).parent), settings.state_directory)
                await asyncio.to_thread(files.remove_leftovers, places)

    async def _record(
        self, prepared: Prepared, deployment: Deployment, why: tuple[Reason, ...]
    ) -> None:
        if prepared.config is None:
            return
        try:
            await asyncio.to_thread(record, prepared, deployment, tuple(str(r) for r in why))
        except Unavailable as exc:
            self._metrics.state_not_written("history")
            self._log.limited("history-not-kept").warning(
                "history-not-kept", error=exc.problems[0].message, remedy=exc.problems[0].remedy
            )

    def promote(self, prepared: Prepared, sources: Sources) -> None:
        """Record that HAProxy runs `prepared`, or will when it is started."""
        assert prepared.config is not None
        self.known.promote(self._declarations(prepared, sources, self.guard.former))
        self.base = base_of(
            prepared,
            self.known.confirmed,
            is_running=prepared.config.hash == self._tracker.state.running or self.leaves_drift,
        )

    async def look_at_changed(self, is_busy: Callable[[], bool]) -> bool:
        """Check the services that reloads changed; return whether one has to be reverted.

        A service that had servers up, and has none since it was changed, is reverted to its former
        form, with the evidence.  This does not depend on errors in the present files.
        """
        state = self._tracker.state
        if state.config is None or state.config.hash != state.running or not self.guard.former:
            return False
        assert state.deployed is not None
        try:
            servers = await asyncio.to_thread(
                runtime.servers_with_address, state.deployed.settings.haproxy.runtime_socket
            )
        except Unavailable:
            return False
        if is_busy():
            return False
        answers = self._tracker.state.resolution
        with_pods = {name for name, answer in answers.items() if answer.endpoints}
        lost = self.guard.look(proxies_up(servers), with_pods, self._clock())
        found = reverts(lost, self.known.confirmed.services, servers)
        for each in found:
            self._take_back(each)
        if not found:
            confirmed, former = self.known.confirmed, self.guard.former
            self.known.promote(replace(confirmed, former=dict(former)))
        await self.save()
        return bool(found)

    def _take_back(self, revert: Revert) -> None:
        """Revert a service to its former form."""
        watched = replace(self.known.confirmed, former=dict(self.guard.former))
        self.known.promote(watched.after_failure(revert.service, revert.evidence, revert.form))
        self.base = replace(self.base, declarations=self.known.confirmed)
        self._log.error("service-reverted", service=revert.service, reason=revert.evidence)


def _hash_in_force(haproxy: Haproxy) -> str | None:
    """Return the hash that HAProxy reports or, if it does not answer, that of its file."""
    with contextlib.suppress(Unavailable):
        return runtime.running_hash(haproxy.runtime_socket)
    with contextlib.suppress(Unavailable):
        installed = install.read(haproxy.config_file)
        return config_hash(installed.decode("utf-8", "replace")) if installed else None
    return None
