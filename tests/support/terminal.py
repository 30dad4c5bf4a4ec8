"""A program on a real terminal: its output is read, and keys are typed."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Self


class Terminal:
    """`argv` on a terminal of its own; use as a context manager, which ends the program.

    With `stdout`, only standard input and error are the terminal.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        columns: int = 80,
        stdout: int | None = None,
    ) -> None:
        self._primary, secondary = pty.openpty()
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(secondary, termios.TIOCSWINSZ, size)
        self.process = subprocess.Popen(
            argv,
            stdin=secondary,
            stdout=secondary if stdout is None else stdout,
            stderr=secondary,
            env={**env, "TERM": env.get("TERM", "xterm")},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(secondary)
        self.text = ""
        # A character may arrive in two parts.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            # The program has its own session, which contains nothing else.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._primary)

    def type(self, keys: str) -> None:
        """Type `keys`."""
        os.write(self._primary, keys.encode())

    def until(self, words: str, timeout: float = 30.0) -> str:
        """Wait until the output since the last call contains `words`; return all output."""
        start = len(self.text)
        deadline = time.monotonic() + timeout
        while words not in self.text[start:]:
            assert time.monotonic() < deadline, (words, self.text[start:])
            assert self._more(0.1) is not None, (words, self.text[start:])
        return self.text

    def rest(self, timeout: float = 60.0) -> str:
        """Return all output once the program has ended."""
        deadline = time.monotonic() + timeout
        while self._more(0.1) is not None:
            assert time.monotonic() < deadline, self.text
        self.process.wait(10)
        return self.text

    def _more(self, seconds: float) -> int | None:
        """Read the available output; None once the program has closed the terminal."""
        if not select.select([self._primary], [], [], seconds)[0]:
            return 0
        try:
            data = os.read(self._primary, 65536)
        except OSError:
            return None
        self.text += self._decoder.decode(data)
        return len(data) or None
