"""Become another program, within limits, that ends when its parent does.

`process.run` starts this file as a script of its own, because nothing can be set safely between
fork and exec in a process with threads (subprocess, `preexec_fn`).  It is never imported, and
imports little: each check of a configuration waits for it.
"""

# `signal` without its enums, which take as long to import as all the rest.
import _signal  # type: ignore[import-not-found]
import ctypes
import os
import resource
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, report: int, seconds: int, memory: int, program: list[str]) -> None:
    """Replace this process by `program`; its errno goes to the descriptor `report` if it fails.

    `seconds` limits CPU and wall time and `memory` writable memory in bytes; 0 is no limit.
    """
    os.set_inheritable(report, False)
    # Whatever happens to the parent, even SIGKILL.  It is kept over exec.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    if seconds:
        # The timer is kept over exec, too.
        _signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _be_killed_first()
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT):
        _signal.signal(number, _signal.SIG_DFL)
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell, by intent
    except OSError as exc:
        os.write(report, str(exc.errno).encode())
        sys.exit(127)


def _be_killed_first() -> None:
    """If memory runs out nevertheless, let the kernel kill this program and not HAProxy."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"1000")
        os.close(descriptor)
    except OSError:
        return


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:5]]
    main(numbers[0], numbers[1], numbers[2], numbers[3], sys.argv[5:])
