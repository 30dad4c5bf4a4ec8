"""Problems: what is wrong, where, and how to fix it.

A `Problem` is a value.  The loader, the planner, the renderer and HAProxy's verdict all return
problems, so that a command can print all of them at once.  There are two kinds of exceptions:
`Refused` (the input must change) and `Unavailable` (the same input may work later).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Self

from fc_frontend.model.units import UnitId
from fc_frontend.text import one_line, printable

LONGEST_PATH = 4096
"""In bytes: no file has a longer path (PATH_MAX)."""


class Severity(StrEnum):
    """The severity of a problem: an error refuses the configuration, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


class Cause(StrEnum):
    """The cause of a problem, for code that decides on it; messages are for people."""

    FORBIDDEN = "forbidden"
    """This user lacks permission; another one may have it."""
    NOT_LISTENING = "not-listening"
    """Nobody listens on a socket: it is missing, or left over from a process that ended."""
    SERVFAIL = "servfail"
    """A nameserver has no data: CoreDNS does not reach the API server, or serves another domain."""
    REFUSED = "refused"
    """A nameserver refuses to answer this host."""
    UNUSABLE_ANSWER = "unusable-answer"
    """A nameserver's answer is truncated or malformed."""
    NO_WILDCARDS = "no-wildcards"
    """CoreDNS 1.9 and later do not support wildcards, which would find the pods of a Service."""
    CLUSTER_IP = "cluster-ip"
    """Cluster DNS returns a cluster IP where pods are expected."""
    FOREIGN_NETWORK = "foreign-network"
    """Cluster DNS returns addresses outside the expected networks."""
    REMOVAL_WAITS = "removal-waits"
    """A unit is no longer in the files; it is removed unless it reappears soon."""
    NO_SERVER_LEFT = "no-server-left"
    """A service has a server up, and would have none after a change."""
    EMPTIED = "emptied"
    """services.d is suddenly empty."""
    DISAGREEMENT = "disagreement"
    """The nameservers of the cluster return different answers for a service."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, its location, and how to fix it.

    `line` and `column` count from 1, as in editors.  Texts are limited in length, and printable in
    one line, whatever they quote.
    """

    message: str
    remedy: str = ""
    _: KW_ONLY
    severity: Severity = Severity.ERROR
    file: str | None = None
    line: int | None = None
    column: int | None = None
    service: str | None = None
    field: str | None = None
    unit: UnitId | None = None
    """The unit whose change is the cause, if known."""
    cause: Cause | None = None
    inside: int | None = None
    """The line in the text of `field` that it concerns, from 1, until its place is known."""

    def __post_init__(self) -> None:
        for name, clean in _CLEAN.items():
            text = getattr(self, name)
            if text and (shown := clean(text)) != text:
                object.__setattr__(self, name, shown)

    @property
    def location(self) -> str:
        """`file:line:column`, as far as known; empty if nothing is."""
        parts = [self.file] if self.file else []
        if self.file and self.line is not None:
            parts.append(str(self.line))
            if self.column is not None:
                parts.append(str(self.column))
        return ":".join(parts)

    @property
    def subject(self) -> str:
        """`service NAME: field`, as far as known; empty if nothing is."""
        service = f"service {self.service}" if self.service else ""
        return ": ".join(part for part in (service, self.field) if part)

    @property
    def statement(self) -> str:
        """The location, subject and message, without severity and remedy."""
        return ": ".join(part for part in (self.location, self.subject, self.message) if part)

    def as_json(self) -> dict[str, str | int | None]:
        """Return the problem as it appears in JSON output: no field is ever missing."""
        shown = {**asdict(self), "severity": self.severity.value, "cause": self.cause}
        del shown["unit"], shown["inside"]
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
    """Return the problems that refuse the configuration."""
    return tuple(p for p in problems if p.severity is Severity.ERROR)


def warnings_in(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the problems that do not refuse the configuration."""
    return tuple(p for p in problems if p.severity is Severity.WARNING)


class FrontendError(Exception):
    """The base class of the errors that fc-frontend raises on purpose; has at least one problem."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(str(p) for p in problems))
        self.problems = problems

    @classmethod
    def of(
        cls,
        message: str,
        remedy: str = "",
        *,
        file: str | None = None,
        line: int | None = None,
        service: str | None = None,
        field: str | None = None,
        cause: Cause | None = None,
    ) -> Self:
        """Return an error with one problem."""
        problem = Problem(
            message, remedy, file=file, line=line, service=service, field=field, cause=cause
        )
        return cls(problem)

    @property
    def problem(self) -> Problem:
        """The first problem."""
        return self.problems[0]


class Refused(FrontendError):
    """The input is wrong: the same input fails again."""


class Unavailable(FrontendError):
    """An external resource does not answer now: the same input may work later."""
