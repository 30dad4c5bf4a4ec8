"""The findings of an examination: a result and a remedy for each check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.text import one_line


class Result(StrEnum):
    """The result of a check, best first."""

    OK = "ok"
    WARNING = "warning"
    UNKNOWN = "unknown"
    """The check failed to run, or was inconclusive."""
    PROBLEM = "problem"


_ORDER = tuple(Result)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `remedy` is empty if nothing needs to be done."""

    group: str
    check: str
    result: Result
    message: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the finding in the format of the JSON output.  All fields are always present."""
        return {
            "group": self.group,
            "check": self.check,
            "result": self.result.value,
            "message": one_line(self.message),
            "remedy": one_line(self.remedy),
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Create the findings of one group."""

    name: str

    def ok(self, check: str, message: str) -> Finding:
        """Return a finding without a problem."""
        return Finding(self.name, check, Result.OK, message)

    def warning(self, check: str, message: str, remedy: str) -> Finding:
        """Return a finding about something that works, or may work, but needs attention."""
        return Finding(self.name, check, Result.WARNING, message, remedy)

    def problem(self, check: str, message: str, remedy: str) -> Finding:
        """Return a finding about something that does not work."""
        return Finding(self.name, check, Result.PROBLEM, message, remedy)

    def unknown(self, check: str, message: str, remedy: str) -> Finding:
        """Return a finding whose result is unknown."""
        return Finding(self.name, check, Result.UNKNOWN, message, remedy)


def worst(findings: Iterable[Finding]) -> Result:
    """Return the worst result, or unknown if there are no findings."""
    found = [finding.result for finding in findings]
    return max(found, key=_ORDER.index) if found else Result.UNKNOWN
