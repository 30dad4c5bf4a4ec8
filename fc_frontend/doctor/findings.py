"""What an examination finds: a word and a remedy for each thing that was looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.text import one_line


class Result(StrEnum):
    """How it is, best first."""

    OK = "ok"
    WARNING = "warning"
    UNKNOWN = "unknown"
    """It could not be looked at, or says nothing either way."""
    PROBLEM = "problem"


_ORDER = tuple(Result)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do, empty where nothing is to be done."""

    group: str
    check: str
    result: Result
    message: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """The finding in the shape of the JSON output: no field is ever missing."""
        return {
            "group": self.group,
            "check": self.check,
            "result": self.result.value,
            "message": one_line(self.message),
            "remedy": one_line(self.remedy),
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Makes the findings of one group."""

    name: str

    def ok(self, check: str, message: str) -> Finding:
        """All is well."""
        return Finding(self.name, check, Result.OK, message)

    def warning(self, check: str, message: str, remedy: str) -> Finding:
        """It works, or may work, and should be looked after."""
        return Finding(self.name, check, Result.WARNING, message, remedy)

    def problem(self, check: str, message: str, remedy: str) -> Finding:
        """It does not work."""
        return Finding(self.name, check, Result.PROBLEM, message, remedy)

    def unknown(self, check: str, message: str, remedy: str) -> Finding:
        """It cannot be told."""
        return Finding(self.name, check, Result.UNKNOWN, message, remedy)


def worst(findings: Iterable[Finding]) -> Result:
    """The worst result of all; unknown if nothing was found at all."""
    found = [finding.result for finding in findings]
    return max(found, key=_ORDER.index) if found else Result.UNKNOWN
