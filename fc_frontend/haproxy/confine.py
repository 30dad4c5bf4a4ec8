"""Replace this process by another program that runs within limits and ends with its parent.

`process.run` starts this file as a separate script, because nothing can be set safely between fork
and exec in a process with threads (subprocess, `preexec_fn`).  It is never imported, and imports
little, because each check of a configuration waits for it.
"""

# `_signal` is `signal` without its enums, which take as long to import as everything else.
import _signal  # type: ignore[import-not-found]
import ctypes
import os
import resource
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, report: int, seconds: int, memory: int, program: list[str]) -> None:
    """Replace this process by `program`; on failure, write the errno to the descriptor `report`.

    `seconds` limits CPU and wall time, and `memory` limits writable memory in bytes; 0 means no
    limit.
    """
    os.set_inheritable(report, False)
    # The kernel kills this process whenever its parent dies, even by SIGKILL.  Exec keeps the
    # setting.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    if seconds:
        # Exec keeps the timer, too.
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
    """Make the kernel kill this program rather than HAProxy if memory runs out nevertheless."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"1000")
        os.close(descriptor)
    except OSError:
        return


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:5]]
    main(numbers[0], numbers[1], numbers[2], numbers[3], sys.argv[5:])
