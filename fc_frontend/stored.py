"""State kept between starts: answers of cluster DNS, and the running declarations.

A file that is missing, damaged or untrusted counts as empty.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from fc_frontend import files
from fc_frontend.config.running import RunningDeclarations, dump_running, load_running
from fc_frontend.config.trusted_users import state_verdict
from fc_frontend.discovery.store import dump_written, load_answers, write_answer
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import install
from fc_frontend.model.memo import Memo
from fc_frontend.model.units import UnitId
from fc_frontend.plan.model import Answer, Freshness, Resolution, ServiceSpec, Settings
from fc_frontend.plan.slices import is_of_api_servers

ANSWERS_FILE = "answers.json"
RUNNING_FILE = "running.json"
PENDING_FILE = "pending.json"


WrittenAnswers = Memo[tuple[str, str]]
"""Questions and answers as last written, by service."""


def answers_path(settings: Settings) -> str:
    """Return the path of the last good answers of cluster DNS."""
    return f"{settings.state_directory}/{ANSWERS_FILE}"


def stored_answers(settings: Settings, specs: Iterable[ServiceSpec]) -> dict[str, Answer]:
    """Return the stored answers to the questions of `specs`, by service."""
    stored = load_answers(answers_path(settings))
    asked = {spec.name: question(spec) for spec in specs}
    return {name: stored[text] for name, text in asked.items() if text in stored}


def stored_form(
    specs: Iterable[ServiceSpec], resolution: Resolution, *, memo: WrittenAnswers | None = None
) -> bytes:
    """Return the answers in the format that `stored_answers` reads."""
    memo = memo or WrittenAnswers()
    written: dict[str, tuple[str, str]] = {}
    for spec in specs:
        answer = resolution.get(spec.name)
        if answer is None or answer.freshness is Freshness.UNKNOWN:
            continue
        compute = partial(_written, spec, answer)
        written[spec.name] = memo.of(spec.name, (spec, answer), compute)
    memo.keep(written)
    return dump_written(dict(written.values()))


def _written(spec: ServiceSpec, answer: Answer) -> tuple[str, str]:
    return question(spec), write_answer(answer)


def save_answers(
    settings: Settings,
    specs: Iterable[ServiceSpec],
    resolution: Resolution,
    *,
    memo: WrittenAnswers | None = None,
) -> None:
    """Save the answers for the next start, and for `check`.  Raises `Unavailable`."""
    files.write_own(answers_path(settings), stored_form(specs, resolution, memo=memo))


def question(spec: ServiceSpec) -> str:
    """Return the cluster DNS question of a service; answers to other questions are not used."""
    asked = (
        f"{spec.name} {spec.service}.{spec.namespace} {spec.target} {spec.port} {spec.discovery}"
    )
    if is_of_api_servers(spec):
        # Their endpoints never include the service's own binds.
        asked += f" {' '.join(map(str, spec.binds))}"
    return asked


def running_path(state_directory: str) -> str:
    """Return the path of the declarations that HAProxy runs."""
    return f"{state_directory}/{RUNNING_FILE}"


def stored_running(state_directory: str) -> RunningDeclarations:
    """Return the declarations that HAProxy last ran; none if others may have written them."""
    verdict = state_verdict(state_directory)
    if verdict is not None and not verdict.is_trusted:
        return RunningDeclarations()
    return load_running(running_path(state_directory))


def stored_pending(state_directory: str) -> RunningDeclarations | None:
    """Return the declarations of a deployment that was interrupted when fc-frontend ended."""
    found = load_running(_pending_path(state_directory))
    return found if found.hash else None


def save_running(settings: Settings, running: RunningDeclarations) -> None:
    """Save the running declarations for the next start.  Raises `Unavailable`."""
    _save_forms(settings, running_path(settings.state_directory), running)


def save_pending(settings: Settings, pending: RunningDeclarations) -> None:
    """Save the declarations that are about to be deployed.  Raises `Unavailable`."""
    files.make_directory(settings.state_directory, mode=0o750)
    _save_forms(settings, _pending_path(settings.state_directory), pending)


def forget_pending(state_directory: str) -> None:
    """Remove the declarations that were about to be deployed."""
    # If removal fails, they count only while HAProxy runs exactly that configuration.
    with contextlib.suppress(Unavailable):
        files.remove(_pending_path(state_directory))


def _pending_path(state_directory: str) -> str:
    return f"{state_directory}/{PENDING_FILE}"


def _save_forms(settings: Settings, path: str, saved: RunningDeclarations) -> None:
    content = dump_running(saved)
    files.write_own(path, content, mode=install.mode_of_copies(settings.haproxy.config_file))


class RunningState:
    """The declarations that HAProxy runs, in memory and on disk.

    attempt ─► pending ─► HAProxy reports its digest ─► confirmed
    """

    def __init__(self, directory: str) -> None:
        """Read the state directory."""
        self.confirmed = stored_running(directory)
        self.pending = stored_pending(directory)
        self._saved = self.confirmed
        self._directory = directory
        self._seen = files.signature(running_path(directory))

    @property
    def is_saved(self) -> bool:
        """Whether the confirmed declarations are saved on disk."""
        return self.confirmed is self._saved

    def refresh(self) -> None:
        """Read the file again if another process has written it and nothing here is newer."""
        seen = files.signature(running_path(self._directory))
        if seen == self._seen or not self.is_saved:
            return
        self._seen = seen
        self.confirmed = self._saved = stored_running(self._directory)

    def consent(self, settings: Settings, consents: Mapping[UnitId, str]) -> None:
        """Record the changes that an operator forces, with fingerprints.  Raises `Unavailable`."""
        if consents:
            confirmed = self.confirmed
            self.confirmed = replace(confirmed, consents={**confirmed.consents, **consents})
            self.save(settings)

    def attempt(self, settings: Settings, declarations: RunningDeclarations) -> None:
        """Save the declarations that are about to be deployed, in case this process is killed.

        `declarations` have the digest of the configuration.  Raises `Unavailable`.
        """
        if declarations == self.confirmed and declarations.hash == self.confirmed.hash:
            return
        self.pending = declarations
        save_pending(settings, declarations)

    def confirm(self, running: str | None) -> bool:
        """Promote the pending declarations if HAProxy runs them; return whether it does."""
        if self.pending is None or self.pending.hash != running:
            return False
        self.promote(self.pending)
        return True

    def promote(self, declarations: RunningDeclarations) -> None:
        """Make `declarations` the confirmed ones, which HAProxy runs."""
        self.pending = None
        if declarations != self.confirmed or declarations.hash != self.confirmed.hash:
            self.confirmed = declarations

    def save(self, settings: Settings) -> None:
        """Save the confirmed declarations for the next start.  Raises `Unavailable`."""
        confirmed = self.confirmed
        if confirmed is self._saved:
            return
        save_running(settings, confirmed)
        self._saved = confirmed
        self._seen = files.signature(running_path(self._directory))
        if self.pending is None:
            forget_pending(settings.state_directory)
