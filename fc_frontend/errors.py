"""What can be wrong, as values that carry what an operator needs to put it right.

A `Problem` is data: loader, planner, renderer and HAProxy's own verdict all speak in it, so that
every command can print all of them in one go.  Exceptions come in two severities: `Refused` (the
input must change) and `Unavailable` (the same input may work later).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial

from fc_frontend.model.units import UnitId
from fc_frontend.text import one_line, printable

LONGEST_PATH = 4096
"""Bytes: no file's path is longer (PATH_MAX)."""


class Severity(StrEnum):
    """How bad a problem is: an error refuses the configuration, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


class Cause(StrEnum):
    """Why something is wrong, for code that decides on it; messages are for people."""

    FORBIDDEN = "forbidden"
    """This user may not; another one may."""
    SERVFAIL = "servfail"
    """A nameserver has no data: CoreDNS does not reach the API server, or serves another domain."""
    REFUSED = "refused"
    """A nameserver does not answer this host."""
    UNUSABLE_ANSWER = "unusable-answer"
    """A nameserver's answer is cut short or malformed."""
    NO_WILDCARDS = "no-wildcards"
    """CoreDNS 1.9 and later answer no wildcards, by which the pods of a Service are found."""
    CLUSTER_IP = "cluster-ip"
    """Cluster DNS names a cluster IP where pods are expected."""
    FOREIGN_NETWORK = "foreign-network"
    """Cluster DNS names addresses outside of the networks where they are expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, where it stands, and what to do about it.

    `line` and `column` count from 1, as editors do.  Texts are bounded, and printable in one line,
    whoever wrote what they quote.
    """

    message: str
    remedy: str = ""
    severity: Severity = Severity.ERROR
    file: str | None = None
    line: int | None = None
    column: int | None = None
    service: str | None = None
    field: str | None = None
    unit: UnitId | None = None
    """The unit whose change is the cause, where it is known."""
    cause: Cause | None = None

    def __post_init__(self) -> None:
        for name, clean in _CLEAN.items():
            text = getattr(self, name)
            if text and (shown := clean(text)) != text:
                object.__setattr__(self, name, shown)

    @property
    def location(self) -> str:
        """`file:line:column`, as much of it as is known; empty if nothing is."""
        parts = [self.file] if self.file else []
        if self.file and self.line is not None:
            parts.append(str(self.line))
            if self.column is not None:
                parts.append(str(self.column))
        return ":".join(parts)

    @property
    def subject(self) -> str:
        """`service NAME: field`, as much of it as is known; empty if nothing is."""
        service = f"service {self.service}" if self.service else ""
        return ": ".join(part for part in (service, self.field) if part)

    @property
    def statement(self) -> str:
        """Where it is, what it is about and what is wrong, without severity and remedy."""
        return ": ".join(part for part in (self.location, self.subject, self.message) if part)

    def as_json(self) -> dict[str, str | int | None]:
        """The problem in the shape of all JSON output: no field is ever missing."""
        shown = {**asdict(self), "severity": self.severity.value, "cause": self.cause}
        del shown["unit"]
        return shown

    def __str__(self) -> str:
        parts = (self.location, self.severity, self.subject, self.message)
        said = ": ".join(part for part in parts if part)
        return f"{said} → {self.remedy}" if self.remedy else said


_CLEAN: Mapping[str, Callable[[str], str]] = {
    "message": one_line,
    "remedy": one_line,
    "file": partial(printable, longest=LONGEST_PATH),
    "service": printable,
    "field": printable,
}


def errors_in(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems that refuse the configuration."""
    return tuple(p for p in problems if p.severity is Severity.ERROR)


def warnings_in(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems that do not refuse the configuration."""
    return tuple(p for p in problems if p.severity is Severity.WARNING)


class FrontendError(Exception):
    """The base of all errors that fc-frontend raises on purpose."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(str(p) for p in problems))
        self.problems = problems


class Refused(FrontendError):
    """The input is wrong: trying again with the same input gives the same answer."""


class Unavailable(FrontendError):
    """Something around us does not answer now: the same input may work later."""
