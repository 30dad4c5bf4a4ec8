"""Find out the trust levels of declaring files, and of files named in haproxy.cfg."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping

from fc_frontend import safe_files
from fc_frontend.config.trust import Verdict, judge
from fc_frontend.config.trusted_users import daemon_user
from fc_frontend.doctor.judge.trust import FileLevel
from fc_frontend.haproxy.kept_files import files_in
from fc_frontend.paths.accounts import user_ids
from fc_frontend.plan.model import Settings
from fc_frontend.safe_files import Unsafe


def levels(verdicts: Mapping[str, Verdict]) -> tuple[FileLevel, ...]:
    """Return the levels of declaring files, from the loader's verdicts."""
    return tuple(_level(path, verdict) for path, verdict in verdicts.items())


def observe_named(settings: Settings, text: str) -> tuple[FileLevel, ...]:
    """Return the levels of the existing files named in `text`, the text of haproxy.cfg."""
    users = {daemon_user(settings.state_directory), *user_ids(settings.trust.users)}
    return tuple(_observed(sorted(files_in(text)), frozenset(users)))


def _observed(paths: Iterable[str], users: frozenset[int]) -> Iterable[FileLevel]:
    for path in paths:
        try:
            found = safe_files.look(path)
        except Unsafe:
            continue
        if stat.S_ISREG(found.status.st_mode) or found.is_directory:
            yield _level(path, judge(found.access, users))


def _level(path: str, verdict: Verdict) -> FileLevel:
    return FileLevel(path, verdict.is_trusted, verdict.reason, verdict.remedy)
