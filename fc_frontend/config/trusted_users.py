"""The users whose files are trusted: root, the daemon's user, and those in `trust.users`."""

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
    """Return `state_directory` of the raw settings, else systemd's, else the default.

    Unreadable settings must not hide the last good state.
    """
    declared = settings.get("state_directory")
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    for directory in (declared, given):
        if isinstance(directory, str) and SAFE_PATH.fullmatch(directory):
            return directory
    return Settings().state_directory


def daemon_user(directory: str) -> int:
    """Return the user that the daemon runs as: the owner of the state directory.

    This way, every command reaches the same verdicts as the daemon, whichever user runs it.  Return
    the current user if the directory does not exist, or if others may have created it.
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
    """Return the users whose settings files are trusted, besides root.

    This does not depend on the settings, which must not decide whether they are trusted themselves.
    """
    return frozenset((own_id(), daemon_user(state_directory({}))))


def trusted_users(settings: Mapping[str, Any]) -> frozenset[int]:
    """Return the users whose files are trusted, besides root, according to raw settings."""
    named = (user_id(name) for name in named_users(settings))
    daemon = daemon_user(state_directory(settings))
    return frozenset((daemon, *(uid for uid in named if uid is not None)))


def named_users(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `trust.users` of raw settings; values that are not names are omitted."""
    trust = settings.get("trust")
    users = trust.get("users") if isinstance(trust, dict) else None
    listed = users if isinstance(users, list) else [users]
    return tuple(str(user) for user in listed if isinstance(user, str | int))


def state_verdict(directory: str) -> Verdict | None:
    """Return whether only root and the daemon's user may change the state directory.

    Return None if there is no such directory.
    """
    try:
        found = Walker().look(directory)
    except OSError:
        return None
    return judge(found.access, (daemon_user(directory),))
