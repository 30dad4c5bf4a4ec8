"""Users of this host: their names and IDs, and the user of this process."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable


def user_name(uid: int) -> str:
    """Return the name of a user, or `user UID` if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def group_name(gid: int) -> str:
    """Return the name of a group, or its number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def user_id(name: str) -> int | None:
    """Return the user ID of `name`, which may be a number; None if there is no such user."""
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def user_ids(names: Iterable[str]) -> frozenset[int]:
    """Return the user IDs of those `names` that exist."""
    return frozenset(uid for uid in map(user_id, names) if uid is not None)


def own_id() -> int:
    """Return the effective user ID of this process."""
    return os.geteuid()
