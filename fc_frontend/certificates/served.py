"""The certificates of frontends: validity dates, and hosts without a certificate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fc_frontend.errors import Problem, Severity
from fc_frontend.plurals import counted

WARN_SECONDS = 14 * 86400.0
"""Warn this long before the expiry of a certificate: clients renew it a month before."""
_MAX_HOSTS = 10
"""The maximum number of hosts without a certificate listed for a frontend."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The properties of a certificate.  Times are in Unix time.

    `names` are its DNS names in lower case.  `fingerprint` is the SHA-1 digest of the certificate
    and `serial` its serial number, both in upper-case hexadecimal digits as HAProxy shows them.
    """

    names: tuple[str, ...]
    not_before: float
    not_after: float
    serial: str
    fingerprint: str
    algorithm: str

    def covers(self, host: str) -> bool:
        """Return whether clients accept it for `host` (RFC 9525, 6.3).

        A wildcard matches one label.  `host` may be a wildcard, which only the same wildcard
        covers.
        """
        _, _, domain = host.partition(".")
        return host in self.names or bool(domain and f"*.{domain}" in self.names)


@dataclass(frozen=True, slots=True)
class Served:
    """A certificate that HAProxy has for a frontend, or will load with the frontend.

    `path` is that of the original file.
    """

    frontend: str
    path: str
    certificate: Certificate
    is_default: bool = False

    @property
    def ends_on(self) -> str:
        """The date of its expiry, in UTC."""
        return _day(self.certificate.not_after)

    def as_json(self) -> dict[str, Any]:
        """Return the certificate in the format of all JSON output."""
        return {
            "frontend": self.frontend,
            "file": self.path,
            "names": list(self.certificate.names),
            "not_before": self.certificate.not_before,
            "not_after": self.certificate.not_after,
            "serial": self.certificate.serial,
            "fingerprint": self.certificate.fingerprint,
            "algorithm": self.certificate.algorithm,
            "is_default": self.is_default,
        }


def date_problems(served: Iterable[Served], now: float) -> Iterator[Problem]:
    """Yield warnings for certificates that have expired, expire soon, or are not valid yet."""
    for each in served:
        begins, ends = each.certificate.not_before, each.certificate.not_after
        name = each.certificate.names[0] if each.certificate.names else each.path
        if now >= ends:
            said = f"the certificate for {name} ended on {_day(ends)}: clients refuse it"
        elif now < begins:
            said = f"the certificate for {name} is valid only from {_day(begins)}"
        elif ends - now < WARN_SECONDS:
            days = int((ends - now) // 86400)
            said = f"the certificate for {name} ends in {counted(days, 'day')}, on {_day(ends)}"
        else:
            continue
        remedy = "renew it: see the log of your ACME client"
        yield Problem(
            f"{each.path}: {said}",
            remedy,
            severity=Severity.WARNING,
            service=each.frontend,
            field="tls.certificates",
        )


def hidden_problems(served: Iterable[Served]) -> Iterator[Problem]:
    """Yield warnings for certificates that share a name and key type within a frontend.

    HAProxy serves the one that is first in its list, or that was added first at runtime
    (measured on 2.6, 2.8 and 3.0): an old certificate may hide its successor.  A default
    certificate applies only to names that no other one has.
    """
    first: dict[tuple[str, str, str], Served] = {}
    for each in served:
        if each.is_default:
            continue
        kind = each.certificate.algorithm.partition(" ")[0]
        for name in each.certificate.names:
            former = first.setdefault((each.frontend, kind, name), each)
            if former is not each:
                yield Problem(
                    f"{each.path}: {former.path} is for {name} as well, and HAProxy serves the one "
                    "that it loaded first",
                    "remove one of them",
                    severity=Severity.WARNING,
                    service=each.frontend,
                    field="tls.certificates",
                )
                break


def uncovered_problems(
    served: Iterable[Served], hosts: Mapping[str, Mapping[str, str]]
) -> Iterator[Problem]:
    """Yield warnings for hosts without a certificate; `hosts` are frontend → host → service."""
    by_frontend: dict[str, list[Certificate]] = {}
    for each in served:
        by_frontend.setdefault(each.frontend, []).append(each.certificate)
    for frontend, services in hosts.items():
        certificates = by_frontend.get(frontend, [])
        missing = [
            (host, service)
            for host, service in services.items()
            if not any(each.covers(host) for each in certificates)
        ]
        for host, service in missing[:_MAX_HOSTS]:
            more = f" (and {len(missing) - 1} more hosts)" if len(missing) > _MAX_HOSTS else ""
            yield Problem(
                f"frontend {frontend} has no certificate for {host}{more}",
                "have one issued: the frontend loads it without a reload",
                severity=Severity.WARNING,
                service=service,
                field="hosts",
            )


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
