"""Trust levels: derive what a file may declare from who may change it.

`paths.walk` collects a `WriteAccess` for each file; `judge` turns it into a `Verdict`.  The rules
and the permissions of each level are described in contrib/trust.rst, "Who may write what".
"""

from __future__ import annotations

import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from fc_frontend.paths.access import Component, Part, WriteAccess
from fc_frontend.paths.accounts import group_name, user_name


class Level(StrEnum):
    """The permissions of a file's declarations."""

    TRUSTED = "trusted"
    """Everything."""
    UNTRUSTED = "untrusted"
    """Values only, within the setting `untrusted`."""


class Distrust(StrEnum):
    """The reason why a file is not trusted."""

    OWNER = "owner"
    """A component is owned by an untrusted user."""
    WRITABLE = "writable"
    """A component is writable by its group, by users in its ACL or by everybody."""
    HARD_LINK = "hard-link"
    """Any user may have linked the file into a sticky directory."""
    ORIGIN = "origin"
    """It is a last good form from an untrusted file."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The level of a file, with the component that decides it; None if there is none."""

    level: Level
    cause: Distrust | None = None
    component: Component | None = None
    owners: tuple[int, ...] = field(default=(0,), compare=False)
    """The users who own the file or a component of its path."""

    @property
    def is_trusted(self) -> bool:
        """Whether the file may declare everything."""
        return self.level is Level.TRUSTED

    def as_json(self) -> dict[str, str]:
        """Return the verdict as in all JSON output."""
        return {"level": self.level.value, "reason": self.reason}

    @property
    def reason(self) -> str:
        """The reason for this level."""
        part = self.component
        if self.cause is Distrust.ORIGIN:
            return "its last good form came from an untrusted file"
        if part is None:
            return f"only {' and '.join(user_name(uid) for uid in self.owners)} may change it"
        if self.cause is Distrust.OWNER:
            return f"{part} is owned by {user_name(part.uid)}"
        if self.cause is Distrust.HARD_LINK:
            return f"{part} has several hard links, and its directory is open to other users"
        who = "everybody"
        if not part.mode & stat.S_IWOTH:
            who = f"group {group_name(part.gid)} or an ACL"
        return f"{part} is writable by {who} (mode {part.mode:04o})"

    @property
    def remedy(self) -> str:
        """The remedy that makes the file trusted; empty if it is trusted."""
        part = self.component
        if part is None or self.cause is not Distrust.OWNER:
            return self.change
        name = user_name(part.uid).removeprefix("user ")
        return f"{self.change}, or add {name} to trust.users"

    @property
    def change(self) -> str:
        """The change of the file alone that makes it trusted; empty if it is trusted."""
        part = self.component
        if part is None:
            return ""
        if self.cause is Distrust.OWNER:
            return f"`chown {'-h ' if part.part is Part.LINK else ''}root {part.path}`"
        if self.cause is Distrust.HARD_LINK:
            return f"replace {part.path} by a copy"
        return f"`chmod go-w {part.path}`"


TRUSTED = Verdict(Level.TRUSTED)
UNTRUSTED_ORIGIN = Verdict(Level.UNTRUSTED, Distrust.ORIGIN)


def judge(access: WriteAccess, trusted: Collection[int]) -> Verdict:
    """Return the verdict on a file, where root and the users `trusted` may change trusted files.

    A group-writable file counts as writable by others, whatever the members of the group: they may
    change at any time, and a POSIX ACL sets the same mode bits (acl(5), the mask).
    """
    for component in access.owners:
        if component.uid not in trusted:
            return Verdict(Level.UNTRUSTED, Distrust.OWNER, component)
    if access.writable:
        return Verdict(Level.UNTRUSTED, Distrust.WRITABLE, access.writable)
    if access.linked:
        return Verdict(Level.UNTRUSTED, Distrust.HARD_LINK, access.linked)
    if not access.owners:
        return TRUSTED
    return Verdict(Level.TRUSTED, owners=(0, *(each.uid for each in access.owners)))
