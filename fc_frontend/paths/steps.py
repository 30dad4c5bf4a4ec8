"""Open a path one component at a time, each beneath the previous one, never through a link.

The component that is opened is the one that was checked: nobody can replace it in between
(openat(2) with O_NOFOLLOW).
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from pathlib import Path

MAX_LINKS = 40
"""The kernel's limit (path_resolution(7))."""
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Steps:
    """The steps to one path, with the descriptors of the directories that lead to it.

    Subclasses check each component: `before`, `opened` and `followed` raise `OSError` to stop.
    """

    def __init__(self, path: str) -> None:
        self.given = path
        absolute = path if path.startswith("/") else f"{Path.cwd()}/{path}"
        self._left = deque(absolute.split("/"))
        self._links = 0
        self.names: list[str] = []
        """The components so far, without links."""
        self.descriptors = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        """Descriptors of / and of each component so far, opened with O_PATH."""
        self.statuses = [os.fstat(self.descriptors[0])]

    def before(self, path: str) -> None:
        """Called before the component `path` is opened."""

    def opened(self, path: str, status: os.stat_result) -> None:
        """Called with each component, whose descriptor is the last one; it may be a link."""

    def followed(self, path: str, link: os.stat_result) -> None:
        """Called before a link is followed; the last status is that of its directory."""

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def walk(self) -> os.stat_result:
        """Walk to the end, and return the status of the target.  Raises `OSError`."""
        while self._left:
            name = self._left.popleft()
            if name in ("", "."):
                continue
            if not stat.S_ISDIR(self.statuses[-1].st_mode):
                raise self._error(errno.ENOTDIR)
            if name == "..":
                self._leave(len(self.names) - 1)
            else:
                self._enter(name)
        return self.statuses[-1]

    def _enter(self, name: str) -> None:
        path = "/" + "/".join((*self.names, name))
        self.before(path)
        descriptor = os.open(name, _STEP, dir_fd=self.descriptors[-1])
        self.descriptors.append(descriptor)
        status = os.fstat(descriptor)
        self.opened(path, status)
        if not stat.S_ISLNK(status.st_mode):
            self.names.append(name)
            self.statuses.append(status)
            return
        self._links += 1
        if self._links > MAX_LINKS:
            raise self._error(errno.ELOOP)
        self.followed(path, status)
        target = os.readlink("", dir_fd=descriptor)
        os.close(self.descriptors.pop())
        self._left.extendleft(reversed(target.split("/")))
        if target.startswith("/"):
            self._leave(0)

    def _leave(self, depth: int) -> None:
        """Go back to the directory that is `depth` levels below /."""
        depth = max(depth, 0)
        for descriptor in self.descriptors[depth + 1 :]:
            os.close(descriptor)
        del self.descriptors[depth + 1 :], self.statuses[depth + 1 :], self.names[depth:]

    def _error(self, number: int) -> OSError:
        return OSError(number, os.strerror(number), self.given)
