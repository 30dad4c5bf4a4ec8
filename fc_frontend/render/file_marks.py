"""Comments in haproxy.cfg that contain the digests of named files; see `haproxy.contents`."""

from __future__ import annotations

import re
from collections.abc import Mapping

FILE_MARK = "# fc-frontend file: "
_LINE = re.compile(rf"^{FILE_MARK}([0-9a-f]+|missing|unreadable) (.+)$", re.MULTILINE)


def digests_in(text: str) -> Mapping[str, str]:
    """Return the file digests in a section or a whole configuration, by path."""
    return {match[2]: match[1] for match in _LINE.finditer(text)} if FILE_MARK in text else {}


def without_digests(text: str) -> str:
    """Return a section without the comments that contain digests, which are its last lines."""
    return text[: found.start()].rstrip("\n") if (found := _LINE.search(text)) else text


def changed_files(before: str, after: str) -> tuple[str, ...]:
    """Return the files that both texts name with different digests, sorted by path."""
    old, new = digests_in(before), digests_in(after)
    return tuple(sorted(path for path in old.keys() & new.keys() if old[path] != new[path]))
