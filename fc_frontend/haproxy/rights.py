"""The rights of a process: its user, groups and capabilities."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Capability(IntEnum):
    """Capabilities by their numbers in Linux (include/uapi/linux/capability.h)."""

    DAC_OVERRIDE = 1
    FOWNER = 3
    NET_BIND_SERVICE = 10
    SYS_RESOURCE = 24


@dataclass(frozen=True, slots=True)
class Rights:
    """The effective user, the groups with the effective one first, and the effective capabilities.

    `capabilities` is a bit mask.
    """

    user: int
    groups: tuple[int, ...]
    capabilities: int

    def has(self, capability: Capability) -> bool:
        """Return whether the capability is in effect."""
        return bool(self.capabilities >> capability & 1)


def rights_of(pid: int) -> Rights | None:
    """Return the rights of process `pid`, or None if it is not visible."""
    try:
        return rights_in(Path(f"/proc/{pid}/status").read_text(errors="replace"))
    except OSError:
        return None


def rights_in(status: str) -> Rights | None:
    """Return the rights in the text of /proc/<pid>/status (proc(5)), or None if absent."""
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    try:
        return Rights(
            user=int(fields["Uid"].split()[1]),
            groups=(int(fields["Gid"].split()[1]), *map(int, fields["Groups"].split())),
            capabilities=int(fields["CapEff"], 16),
        )
    except (KeyError, IndexError, ValueError):
        return None
