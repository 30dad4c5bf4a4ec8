"""Check the directories that fc-frontend must write in, and the clock."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from fc_frontend.doctor.findings import Finding, Group

_FILES = Group("files")
_CLOCK = Group("clock")
_MEGABYTE = 1024 * 1024
_LEAST_SPACE = 100 * _MEGABYTE
_EARLIEST_YEAR = 2026
"""The year in which this was written: a clock that shows an earlier one is not set."""
_AHEAD = 60.0
"""The tolerated difference in seconds: the other clock may be wrong itself."""
_LEAST_SERIAL = 1_500_000_000
_DATE = re.compile(r"20\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])\d\d")
"""A Unix time looks like this only from 2000000000 on, which is in 2033."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryFacts:
    """A directory that fc-frontend writes in.

    `nearest` is the part of its path that exists, `writable` whether `user` may write there, and
    `free` the free space in bytes, or None if unknown.
    """

    check: str
    path: str
    nearest: str
    is_directory: bool
    writable: bool
    user: str
    free: int | None


@dataclass(frozen=True, slots=True)
class Clock:
    """The current Unix time, fc-frontend's newest file, and whether the clock is synchronized.

    `synchronized` is None if the kernel does not report it.
    """

    now: float
    newest_file: float | None = None
    newest_path: str = ""
    synchronized: bool | None = None


def judge_place(place: DirectoryFacts) -> tuple[Finding, ...]:
    """Judge whether a directory is writable and has free space."""
    return tuple(_place(place))


def _place(place: DirectoryFacts) -> Iterator[Finding]:
    if not place.is_directory:
        yield _FILES.problem(
            place.check, f"{place.nearest} is not a directory", f"remove it, or move {place.path}"
        )
    elif not place.writable:
        yield _FILES.problem(
            place.check,
            f"{place.user} may not write in {place.nearest}",
            "run as root or as the daemon's user; if the file system is mounted read-only, "
            "remount it read-write",
        )
    elif place.nearest != place.path:
        yield _FILES.ok(place.check, f"{place.path} will be created by {place.user}")
    else:
        yield _FILES.ok(place.check, f"{place.user} may write in {place.path}")
    if place.free is not None and place.free < _LEAST_SPACE:
        yield _FILES.warning(
            f"{place.check} space",
            f"{place.free // _MEGABYTE} MB are free at {place.nearest}",
            "free some space: new configurations cannot be written to a full disk",
        )


def judge_clock(clock: Clock) -> tuple[Finding, ...]:
    """Judge whether the clock can be right: certificates, history and ages depend on it."""
    return tuple(_clock(clock))


def _clock(clock: Clock) -> Iterator[Finding]:
    now = datetime.fromtimestamp(clock.now, UTC)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    remedy = "set the clock: `timedatectl set-ntp true`"
    if now.year < _EARLIEST_YEAR:
        yield _CLOCK.problem("time", f"the clock shows {shown}: it was never set", remedy)
    elif clock.newest_file is not None and clock.newest_file > clock.now + _AHEAD:
        behind = clock.newest_file - clock.now
        yield _CLOCK.problem(
            "time",
            f"the clock shows {shown}, {behind:.0f} s before {clock.newest_path} was written",
            remedy,
        )
    else:
        yield _CLOCK.ok("time", shown)
    if clock.synchronized is None:
        yield _CLOCK.unknown(
            "synchronized",
            "the kernel does not report it",
            "see `timedatectl` or `chronyc tracking`",
        )
    elif not clock.synchronized:
        yield _CLOCK.warning(
            "synchronized",
            "the clock is not synchronized (STA_UNSYNC)",
            "run an NTP client: `timedatectl set-ntp true`, or chrony; ignore this in a container "
            "or VM whose host synchronizes the clock",
        )
    else:
        yield _CLOCK.ok("synchronized", "an NTP client synchronizes the clock")


def judge_serial(source: str, serial: int | None, now: float) -> tuple[Finding, ...]:
    """Judge whether the clock of cluster DNS is ahead, by CoreDNS's serial.

    That serial is the time of its last change, so one in the past is inconclusive.  The serials of
    other software are a date such as 2026112301, or a counter.
    """
    if serial is None or serial < _LEAST_SERIAL or _DATE.fullmatch(str(serial)):
        return ()
    if serial > now + _AHEAD:
        return (
            _CLOCK.warning(
                f"against {source}",
                f"the clock of cluster DNS is {serial - now:.0f} s ahead of this host's",
                "compare the clocks of this host and of the nodes: `timedatectl` on each",
            ),
        )
    return (_CLOCK.ok(f"against {source}", "cluster DNS is not ahead"),)


def judge_date(source: str, ahead: float) -> Finding:
    """Compare another clock, which is `ahead` seconds ahead, with a resolution of one second."""
    check = f"against {source}"
    if abs(ahead) > _AHEAD:
        order = "behind" if ahead > 0 else "ahead of"
        return _CLOCK.problem(
            check,
            f"this host is {abs(ahead):.0f} s {order} it",
            "compare the clocks of this host and of the API server: `timedatectl` on each",
        )
    return _CLOCK.ok(check, f"within {max(1.0, abs(ahead)):.0f} s of it")
