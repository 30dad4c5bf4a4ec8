"""Write access to a file, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """A component of a path."""

    DIRECTORY = "directory"
    LINK = "link"
    FILE = "file"
    MOUNT = "mount"
    """A FUSE file system: the user who mounted it controls its content, owners included."""


@dataclass(frozen=True, slots=True)
class Component:
    """One component of a path as lstat(2) returns it; `mode` has the permission bits only."""

    path: str
    part: Part
    uid: int
    gid: int
    mode: int

    def __str__(self) -> str:
        return f"the {self.part} {self.path}"


@dataclass(frozen=True, slots=True)
class WriteAccess:
    """Who may change a file, by owner and mode of it and of all directories and links to it.

    `owners` has the first component of each owner other than root.  `writable` is the first
    component that users other than its owner may write; `linked` is the file if others may have
    linked it into its directory.  Both may be None.
    """

    owners: tuple[Component, ...] = ()
    writable: Component | None = None
    linked: Component | None = None
