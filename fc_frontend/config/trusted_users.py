"""Whose files are trusted: root, the user that the daemon runs as, and those in `trust.users`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fc_frontend.config.trust import Verdict, judge
from fc_frontend.paths.accounts import own_id, user_id
from fc_frontend.paths.walk import Walker
from fc_frontend.plan.addresses import SAFE_PATH
from fc_frontend.plan.model import Settings


def state_directory(settings: Mapping[str, Any]) -> str:
    """`state_directory` of settings as written, else systemd's, else the default.

    Settings that cannot be read must not hide what was good before.
    """
    declared = settings.get("state_directory")
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    for directory in (declared, given):
        if isinstance(directory, str) and SAFE_PATH.fullmatch(directory):
            return directory
    return Settings().state_directory


def daemon_user(directory: str) -> int:
    """The user that the daemon runs as: the owner of the state directory.

    So every command has the daemon's verdicts, whoever runs it.  The current user if the directory
    does not exist, or if others may have put it there.
    """
    walker = Walker()
    try:
        found = walker.look(directory)
        parent = walker.look(os.path.dirname(found.path))  # noqa: PTH120
    except OSError:
        return own_id()
    strangers = [each for each in found.access.owners if each.uid != own_id()]
    is_placed_by_others = (
        found.access.writable is not None
        or parent.is_shared
        or any(each.path != found.path for each in strangers)
    )
    return own_id() if is_placed_by_others else found.status.st_uid


def settings_users() -> frozenset[int]:
    """The users whose settings files are trusted.

    Nothing that the settings say counts here: they would choose their own judges.
    """
    return frozenset((own_id(), daemon_user(state_directory({}))))


def trusted_users(settings: Mapping[str, Any]) -> frozenset[int]:
    """The users whose files are trusted, besides root, by settings as written."""
    named = (user_id(name) for name in named_users(settings))
    daemon = daemon_user(state_directory(settings))
    return frozenset((daemon, *(uid for uid in named if uid is not None)))


def named_users(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """`trust.users` of settings as written; what is not a name there is left out."""
    trust = settings.get("trust")
    users = trust.get("users") if isinstance(trust, dict) else None
    listed = users if isinstance(users, list) else [users]
    return tuple(str(user) for user in listed if isinstance(user, str | int))


def state_verdict(directory: str) -> Verdict | None:
    """Whether only root and the daemon's user may change the state directory; None without one."""
    try:
        found = Walker().look(directory)
    except OSError:
        return None
    return judge(found.access, (daemon_user(directory),))
