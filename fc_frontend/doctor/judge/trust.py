"""Check who may change the files that declare services, and those named in haproxy.cfg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fc_frontend.doctor.findings import Finding, Group
from fc_frontend.plurals import counted, some

_FILES = Group("files")
_MAX_SHOWN = 5
"""The number of findings of one kind that are shown; the others are counted."""


@dataclass(frozen=True, slots=True)
class FileLevel:
    """The trust level of a file, with the reason and the remedy."""

    path: str
    is_trusted: bool
    reason: str
    remedy: str


def judge_declaring(files: Sequence[FileLevel], *, is_limited: bool) -> tuple[Finding, ...]:
    """Judge the levels of declaring files.  Untrusted ones are intended if `untrusted` is set."""
    return tuple(_declaring(files, is_limited))


def _declaring(files: Sequence[FileLevel], is_limited: bool) -> Iterator[Finding]:
    untrusted = [file for file in files if not file.is_trusted]
    if not untrusted:
        reasons = some(dict.fromkeys(file.reason for file in files)) or "no file is there"
        number = counted(len(files), "declaring file")
        yield _FILES.ok("trust", f"{number}, all trusted: {reasons}")
    for file in untrusted[:_MAX_SHOWN]:
        said = f"{file.path} may declare values only: {file.reason}"
        if is_limited:
            yield _FILES.ok("trust", said)
        else:
            remedy = f"{file.remedy}; if it is meant so, set limits in `untrusted`"
            yield _FILES.warning("trust", said, remedy)
    if len(untrusted) > _MAX_SHOWN:
        more = f"{len(untrusted) - _MAX_SHOWN} more files may declare values only"
        yield (
            _FILES.ok("trust", more)
            if is_limited
            else _FILES.warning("trust", more, "`fc-frontend check --json` lists them")
        )


def judge_named(files: Sequence[FileLevel]) -> tuple[Finding, ...]:
    """Judge the levels of files named in haproxy.cfg, such as certificates."""
    untrusted = [file for file in files if not file.is_trusted]
    if not files:
        return ()
    if not untrusted:
        number = counted(len(files), "file")
        return (_FILES.ok("named files", f"{number} named in haproxy.cfg, all trusted"),)
    return tuple(
        _FILES.warning(
            "named files",
            f"{file.path} is read by HAProxy and can be replaced by others: {file.reason}",
            file.remedy,
        )
        for file in untrusted[:_MAX_SHOWN]
    )
