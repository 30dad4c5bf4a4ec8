"""`fc-frontend run`: the loops around the reconciler.

All blocking work runs in threads with time limits; the loop itself only waits.  The daemon never
stops HAProxy: HAProxy keeps serving however this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from fc_frontend.config.loader import services_directory
from fc_frontend.daemon import decide
from fc_frontend.daemon.notify import Notifier
from fc_frontend.daemon.pages import SharedAnswers, know, routes
from fc_frontend.daemon.progress import Progress, Stuck, Work, bound
from fc_frontend.daemon.reconciler import Reconciler
from fc_frontend.daemon.state import NAMED, Trigger
from fc_frontend.daemon.watch import Changes, FileWatch
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import rollback
from fc_frontend.haproxy.deploy import Outcome
from fc_frontend.haproxy.old_workers import bound_old_workers
from fc_frontend.observe.http import HttpServer
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.page.look import PageCache
from fc_frontend.plan.model import Bind, Settings
from fc_frontend.plurals import counted
from fc_frontend.text import printable

_HAPROXY_INTERVAL = 1.0
_STATUS_INTERVAL = 0.5
_WORKERS_EVERY = 5
"""Old workers are counted at every fifth look at HAProxy."""
_PROGRESS_INTERVAL = 5.0
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 60.0
_DEBOUNCE_AT_MOST = 5
"""Continuous changes are acted upon after this many debounce times."""
_AT_ONCE = frozenset(
    (Trigger.START, Trigger.SIGHUP, Trigger.HAPROXY, Trigger.RETRY, Trigger.RESUME, Trigger.REMOVAL)
)


class Service:
    """The daemon.  `run` returns the process's exit code."""

    def __init__(self, settings_file: str, log: Log, environ: Mapping[str, str]) -> None:
        self._settings_file = settings_file
        self._log = log
        self._metrics = Metrics()
        self._notifier = Notifier(environ)
        self._progress = Progress()
        self._reconciler = Reconciler(
            settings_file, log, self._metrics, advance=lambda: self._progress.advance(Work.STEP)
        )
        self._shared = SharedAnswers.of(self._reconciler, self._metrics, self._stuck)
        self._cache = PageCache(
            printable(socket.gethostname()),
            lambda: know(
                settings_file, self._reconciler, self._metrics, self._stuck, self._shared.servers
            ),
        )
        self._stop = asyncio.Event()
        self._due = asyncio.Event()
        self._stepped = asyncio.Event()
        self._triggers: set[Trigger] = set()
        self._seen = 0.0
        self._watch: FileWatch | None = None
        self._certificate_watch: FileWatch | None = None
        self._certificates = asyncio.Event()
        """Set when certificates may have changed, or HAProxy may have loaded other ones."""
        self._http: HttpServer | None = None
        self._http_bind: Bind | None = None
        self._changed: frozenset[str] | None = frozenset()
        self._watched: tuple[list[str], list[str]] | None = None
        self._watched_certificates: frozenset[str] = frozenset()
        self._retry_after = _FIRST_RETRY
        self._retry: asyncio.TimerHandle | None = None
        self._removal: asyncio.TimerHandle | None = None
        self._ready = False
        self._failed = False

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; HAProxy keeps serving after that."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
        self._watch = FileWatch(loop, self._on_files)
        self._certificate_watch = FileWatch(loop, lambda _changes: self._certificates.set())
        # Start watching before the files are read, so that no change is missed.
        self._watch.watch([self._settings_file], [services_directory(self._settings_file)])
        self._log.info("starting", config=self._settings_file)
        self._trigger(Trigger.START)
        tasks = [
            asyncio.create_task(loop_coroutine, name=name)
            for name, loop_coroutine in self._loops().items()
        ]
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        self._notifier.stopping("HAProxy keeps serving")
        self._stop.set()
        self._due.set()
        failed = [task for task in done if task is not stopped]
        await self._end(tasks)
        for task in failed:
            task.result()
        self._log.info("stopped", haproxy="keeps serving")
        return 0

    def _loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "reconcile": self._reconcile_loop(),
            "sweep": self._sweep_loop(),
            "follow": self._follow_loop(),
            "rescan": self._rescan_loop(),
            "certificates": self._certificate_loop(),
            "haproxy": self._haproxy_loop(),
            "statuses": self._status_loop(),
            "watchdog": self._watchdog_loop(),
        }

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        reconcile = tasks[0]
        for task in tasks[1:]:
            task.cancel()
        # A running deployment is bounded by its own time limits, so it is not interrupted.
        await asyncio.gather(reconcile, *tasks[1:], return_exceptions=True)
        for timer in (self._retry, self._removal):
            if timer:
                timer.cancel()
        for watch in (self._watch, self._certificate_watch):
            if watch:
                watch.stop()
        await self._reconciler.records.save()
        await self._reconciler.statuses.release()
        self._reconciler.close()
        if self._http:
            await self._http.stop()
        await self._shared.close()
        await self._cache.close()

    def _trigger(self, trigger: Trigger) -> None:
        if not self._triggers:
            self._seen = time.monotonic()
        self._triggers.add(trigger)
        self._due.set()

    def _on_files(self, changes: Changes) -> None:
        names = changes.get(services_directory(self._settings_file), frozenset())
        known = self._changed
        self._changed = None if names is None or known is None else known | names
        self._trigger(Trigger.FILES)

    def _on_sighup(self) -> None:
        self._notifier.reloading("reading the configuration")
        self._trigger(Trigger.SIGHUP)

    @property
    def _settings(self) -> Settings:
        declaration = self._reconciler.state.declaration or self._reconciler.state.read
        return declaration.settings if declaration else Settings()

    async def _sleep(self, seconds: float) -> bool:
        """Sleep; return False if the daemon is to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return not self._stop.is_set()

    async def _reconcile_loop(self) -> None:
        last_reload = float("-inf")
        while True:
            await self._due.wait()
            await self._debounce()
            pause = last_reload + self._settings.intervals.reload - time.monotonic()
            if pause > 0 and not await self._sleep(pause):
                return
            if self._stop.is_set():
                return
            triggers, seen, changed = frozenset(self._triggers), self._seen, self._changed
            self._triggers.clear()
            self._changed = frozenset()
            self._due.clear()
            self._failed = True
            with self._enduring("reconcile"), self._progress.of(Work.STEP):
                deployment = await self._reconciler.step(triggers, seen, changed)
                await self._follow_settings(anew=not triggers <= NAMED)
                if deployment and deployment.outcome in (Outcome.RELOADED, Outcome.STARTED):
                    last_reload = time.monotonic()
                self._failed = deployment is not None and not deployment.ok
            self._certificates.set()
            self._stepped.set()
            # Refused changes may be fixed outside of the files, for example by a new certificate.
            self._plan_retry(self._failed or self._reconciler.refused)
            self._plan_removal()
            self._tell_systemd()

    @contextlib.contextmanager
    def _enduring(self, work: str) -> Iterator[None]:
        """Log refusals of the system, such as for file descriptors, and continue: they may end."""
        try:
            yield
        except OSError as exc:
            self._log.limited(f"system-{work}").error(
                "system-refuses",
                work=work,
                error=str(exc),
                remedy="raise the limit that it names (with systemd: LimitNOFILE=, MemoryMax=)",
                effect="HAProxy keeps serving; the daemon tries again",
            )

    async def _debounce(self) -> None:
        """Wait until changes pause for a moment, so that a burst of changes causes one step."""
        pause = self._settings.intervals.debounce
        deadline = self._seen + pause * _DEBOUNCE_AT_MOST
        while not self._triggers & _AT_ONCE and not self._stop.is_set():
            self._due.clear()
            remaining = deadline - time.monotonic()
            try:
                await asyncio.wait_for(self._due.wait(), max(0.0, min(pause, remaining)))
            except TimeoutError:
                return
            if remaining <= 0:
                return

    def _plan_retry(self, failed: bool) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None
        if not failed:
            self._retry_after = _FIRST_RETRY
            return
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later(self._retry_after, self._trigger, Trigger.RETRY)
        self._retry_after = min(self._retry_after * 2, _LONGEST_RETRY)

    def _plan_removal(self) -> None:
        """Schedule a step for the time at which waiting removals take effect."""
        if self._removal:
            self._removal.cancel()
            self._removal = None
        due = self._reconciler.removal_due
        if due is not None:
            loop = asyncio.get_running_loop()
            wait = max(0.0, due - time.monotonic())
            self._removal = loop.call_later(wait, self._trigger, Trigger.REMOVAL)

    def _tell_systemd(self) -> None:
        now = self._reconciler.state
        services = len(now.declaration.services) if now.declaration else 0
        state = "in sync" if now.is_in_sync else "not in sync"
        self._notifier.ready(f"{counted(services, 'service')}, HAProxy {state}")
        if not self._ready:
            # Objects read so far are kept; visiting them takes 0.1 s at each collection.
            gc.collect()
            gc.freeze()
        self._ready = True

    async def _follow_settings(self, *, anew: bool) -> None:
        """Apply the declared settings to watches and the listener; `anew` reads links again."""
        read = self._reconciler.state.read
        if read is None:
            return
        files = [self._settings_file]
        directories = [read.directory]
        if read.settings.haproxy.templates:
            directories.append(read.settings.haproxy.templates)
        if self._watch:
            if anew or self._watched != (files, directories) or self._watch.problems:
                self._watched = (files, directories)
                self._watch.watch(files, directories)
            for problem in self._watch.problems:
                self._log.limited("watch").warning(
                    "files-not-watched", error=problem.message, remedy=problem.remedy
                )
        await self._listen(self._settings.listen)

    async def _listen(self, bind: Bind | None) -> None:
        if bind == self._http_bind and (self._http or bind is None):
            return
        if self._http:
            await self._http.stop()
            self._http = None
        self._http_bind = bind
        if bind is None or bind.port is None:
            return
        host = "0.0.0.0" if bind.host == "*" else bind.host  # noqa: S104 - as declared
        server = HttpServer(
            host,
            bind.port,
            routes(self._reconciler, self._shared, self._cache, self._stuck),
            allowed_hosts=[socket.gethostname()],
            on_error=self._on_http_error,
        )
        try:
            await server.start()
        except Unavailable as exc:
            self._log.limited("listen").error(
                "cannot-listen", error=exc.problem.message, remedy=exc.problem.remedy
            )
            return
        self._http = server
        self._log.info("listening", address=str(bind))

    def _on_http_error(self, exc: Exception) -> None:
        self._log.limited("http-handler-failed").error("http-handler-failed", error=repr(exc))

    async def _sweep_loop(self) -> None:
        next_sweep = time.monotonic()
        while True:
            next_sweep = max(next_sweep + self._settings.intervals.resolve, time.monotonic())
            if not await self._sleep(next_sweep - time.monotonic()):
                return
            with self._enduring("sweep"), self._progress.of(Work.SWEEP):
                is_due = await self._reconciler.answers.sweep()
                if is_due or self._reconciler.load_balancers.has_changed:
                    self._trigger(Trigger.DNS)
                else:
                    await self._reconciler.servers.assign()

    async def _follow_loop(self) -> None:
        while not self._ready and await self._sleep(_HAPROXY_INTERVAL):
            pass
        while not self._stop.is_set():
            with self._enduring("follow"):
                is_due = await self._reconciler.answers.follow()
                if is_due or self._reconciler.load_balancers.has_changed:
                    self._trigger(Trigger.DNS)

    async def _status_loop(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stepped.wait(), _STATUS_INTERVAL)
            self._stepped.clear()
            with self._enduring("statuses"):
                await self._reconciler.write_statuses()

    async def _rescan_loop(self) -> None:
        # The interval is known only then.
        while not self._ready and await self._sleep(_HAPROXY_INTERVAL):
            pass
        while await self._sleep(self._settings.intervals.rescan):
            with self._enduring("rescan"), self._progress.of(Work.RESCAN):
                if (
                    await self._reconciler.look_at_files()
                    or not self._reconciler.state.is_in_sync
                    or await self._reconciler.look_at_load_balancers()
                ):
                    self._trigger(Trigger.RESCAN)
                elif self._http is None:
                    await self._listen(self._settings.listen)
                self._certificates.set()
                await self._reconciler.records.save()

    async def _certificate_loop(self) -> None:
        while not self._stop.is_set():
            await self._certificates.wait()
            self._certificates.clear()
            with self._enduring("certificates"):
                await self._reconciler.certificates.bring()
                self._watch_certificates()

    def _watch_certificates(self) -> None:
        """Watch the directories in which certificates are or may appear."""
        directories = self._reconciler.certificates.brought.directories
        if self._certificate_watch and directories != self._watched_certificates:
            self._watched_certificates = directories
            self._certificate_watch.watch((), directories)
            # They may have changed before the watch began.
            self._certificates.set()

    async def _haproxy_loop(self) -> None:
        looks = 0
        while await self._sleep(_HAPROXY_INTERVAL):
            if self._reconciler.is_busy():
                continue
            with self._enduring("look"), self._progress.of(Work.LOOK):
                if not self._triggers:
                    looks += 1
                    await self._look(thoroughly=looks % _WORKERS_EVERY == 0)
                await self._reconciler.servers.give_sign_of_life()
                # Files that change continuously must not keep the guard from looking.
                if await self._reconciler.records.look_at_changed(self._reconciler.is_busy):
                    self._trigger(Trigger.HAPROXY)

    async def _look(self, *, thoroughly: bool) -> None:
        """Look at HAProxy, and trigger the steps that follow from its state."""
        before = self._reconciler.state.held
        await self._reconciler.look_at_hold()
        if self._reconciler.state.held != before:
            self._trigger(Trigger.RESUME)
            return
        if await self._reconciler.drift.look_at_consent():
            self._trigger(Trigger.RETRY)
            return
        haproxy = self._settings.haproxy
        held = self._reconciler.state.held
        running = await asyncio.to_thread(rollback.running_hash, haproxy, held)
        if self._reconciler.is_busy():
            return
        was_in_sync = self._reconciler.state.is_in_sync
        if held is not None and running != self._reconciler.state.running:
            # The displayed state follows the configuration that HAProxy has now.
            self._trigger(Trigger.RESUME)
        self._reconciler.observed(running)
        # Without a wanted configuration (refused or unknown), HAProxy only has to run.
        is_amiss = decide.is_amiss(self._reconciler.state, supervises=haproxy.supervise)
        if is_amiss and self._reconciler.state.wanted is not None:
            await self._reconciler.drift.look()
            is_amiss = not self._reconciler.state.is_drift_left or running is None
        if is_amiss and not self._failed:
            if was_in_sync:
                self._log.warning("haproxy-out-of-sync", running=running or "none")
            self._trigger(Trigger.HAPROXY)
        await self._reconciler.servers.drain()
        if await self._reconciler.look_at_contents():
            self._trigger(Trigger.CONTENTS)
        if thoroughly:
            await self._bound_old_workers()
            await self._reconciler.drift.look()
            await self._reconciler.answers.look_at_nameservers()
            if await self._reconciler.answers.look_at_servers():
                self._trigger(Trigger.DNS)
            await self._reconciler.servers.assign(anew=True)
            await self._reconciler.servers.save()

    async def _bound_old_workers(self) -> None:
        haproxy = self._settings.haproxy
        old = await asyncio.to_thread(
            bound_old_workers,
            haproxy.master_socket,
            haproxy.runtime_socket,
            haproxy.most_old_workers,
        )
        self._metrics.old_workers(old.count, old.oldest, old.memory)
        if old.count and (ended := await self._reconciler.servers.shut_left_sessions()):
            self._log.info("sessions-ended", count=ended, reason="their pods left old workers")
        if old.ended:
            self._metrics.ended_old_workers(len(old.ended))
            self._log.warning(
                "old-workers-ended",
                pids=",".join(map(str, old.ended)),
                reason=f"more than {haproxy.most_old_workers}",
            )

    def _stuck(self) -> Stuck | None:
        """Return the work without progress for longer than all time limits together."""
        return self._progress.stuck(bound(self._settings.haproxy))

    async def _watchdog_loop(self) -> None:
        """Report liveness to systemd, unless the daemon is stuck: then a restart may help."""
        interval = self._notifier.watchdog_interval
        while await self._sleep(min(interval or _PROGRESS_INTERVAL, _PROGRESS_INTERVAL)):
            stuck = self._stuck()
            self._metrics.stuck(stuck.work if stuck else None)
            if stuck:
                self._log.limited("stuck").error(
                    "stuck",
                    work=stuck.work,
                    seconds=round(stuck.seconds),
                    remedy="see whether the disks of state_directory and of the files answer",
                    effect="HAProxy keeps serving; no change is deployed",
                )
            elif interval:
                self._notifier.watchdog()
