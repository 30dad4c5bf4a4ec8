"""Check whether the daemon or root can bring the certificates of frontends to HAProxy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fc_frontend.doctor.findings import Finding, Group
from fc_frontend.errors import Problem
from fc_frontend.plurals import counted

_FILES = Group("files")
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class CertificateAccess:
    """A file of a certificate; `is_copied` is set if fc-frontend's own copy is up to date."""

    path: str
    is_readable: bool
    is_copied: bool


def judge_certificates(
    files: Sequence[CertificateAccess], problems: Sequence[Problem], user: str
) -> Iterator[Finding]:
    """Judge whether `user`, the daemon's user, may read the certificates."""
    for problem in problems[:_MAX_SHOWN]:
        yield _FILES.warning("certificates", problem.message, problem.remedy)
    denied = [file for file in files if not file.is_readable]
    for file in denied[:_MAX_SHOWN]:
        said = f"user {user} may not read {file.path}"
        remedy = (
            "run `fc-frontend certificates sync` as root in the client's deploy hook, or let a "
            f"group of {user} read it"
        )
        if file.is_copied:
            yield _FILES.ok("certificates", f"{said}; root has copied it")
        else:
            yield _FILES.problem("certificates", f"{said}, and its copy is not up to date", remedy)
    if files and not denied:
        number = counted(len(files), "file")
        yield _FILES.ok("certificates", f"{number} of certificates, all readable for user {user}")
