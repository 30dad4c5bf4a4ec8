"""The comments in haproxy.cfg that have the digests of named files; see `haproxy.contents`."""

from __future__ import annotations

import re
from collections.abc import Mapping

FILE_MARK = "# fc-frontend file: "
_LINE = re.compile(rf"^{FILE_MARK}([0-9a-f]+|missing|unreadable) (.+)$", re.MULTILINE)


def digests_in(text: str) -> Mapping[str, str]:
    """The digests that a section, or a whole configuration, has of its files, by path."""
    return {match[2]: match[1] for match in _LINE.finditer(text)} if FILE_MARK in text else {}


def without_digests(text: str) -> str:
    """A section without the comments that have digests: they are its last lines."""
    return text[: found.start()].rstrip("\n") if (found := _LINE.search(text)) else text


def changed_files(before: str, after: str) -> tuple[str, ...]:
    """The files that both texts name, and whose content differs."""
    old, new = digests_in(before), digests_in(after)
    return tuple(sorted(path for path in old.keys() & new.keys() if old[path] != new[path]))
