"""Trust levels: who may change a file, and what follows from that for what the file may declare.

`paths.walk` collects a `WriteAccess` for each file; `judge` turns it into a `Verdict`.  The rules,
and what each level may declare, are in contrib/trust.rst, "Who may write what".
"""

from __future__ import annotations

import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from fc_frontend.paths.access import Component, Part, WriteAccess
from fc_frontend.paths.accounts import group_name, user_name


class Level(StrEnum):
    """What a file may declare."""

    TRUSTED = "trusted"
    """Everything."""
    UNTRUSTED = "untrusted"
    """Values only, within the setting `untrusted`."""


class Distrust(StrEnum):
    """Why a file is not trusted."""

    OWNER = "owner"
    """A component is owned by a user who is not trusted."""
    WRITABLE = "writable"
    """A component may be written by its group, by users in its ACL or by everybody."""
    HARD_LINK = "hard-link"
    """Anybody may have linked the file into a sticky directory."""
    ORIGIN = "origin"
    """It is a last good form that came from an untrusted file."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The level of a file, with the component that decides it; None for a trusted file."""

    level: Level
    cause: Distrust | None = None
    component: Component | None = None
    owners: tuple[int, ...] = field(default=(0,), compare=False)
    """The users who own the file or a component of its path."""

    @property
    def is_trusted(self) -> bool:
        """True if the file may declare everything."""
        return self.level is Level.TRUSTED

    def as_json(self) -> dict[str, str]:
        """The verdict in the shape of all JSON output."""
        return {"level": self.level.value, "reason": self.reason}

    @property
    def reason(self) -> str:
        """Why the file has this level."""
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
        """What makes the file trusted; empty if it is."""
        part = self.component
        if part is None or self.cause is not Distrust.OWNER:
            return self.change
        name = user_name(part.uid).removeprefix("user ")
        return f"{self.change}, or add {name} to trust.users"

    @property
    def change(self) -> str:
        """The change of the file that makes it trusted, whatever the settings; empty if it is."""
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
    """The level of a file that root and the users `trusted` may change.

    Group-writable counts as writable by others whoever is in the group: who is may change at any
    time, and write permissions from a POSIX ACL show up in the same bits (acl(5), the mask).
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
