"""Traffic of HAProxy's proxies, from the CSV of `show stat` (Management Guide 9.1).

Pure.  For HTTP, requests are counted, and as errors the answers with 5xx; for TCP, connections, and
as errors those that no server accepted or that broke off at the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from fc_frontend.text import whole_number

_COLUMNS = (
    *("pxname", "svname", "scur", "stot", "rate", "econ", "eresp", "hrsp_5xx", "req_rate"),
    "req_tot",
)
"""All precede the first column that may contain a comma, which is `last_chk`."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """The load of a proxy or server.

    `rate` covers HAProxy's last second; `requests` and `errors` count since the worker started;
    `sessions` are currently open.
    """

    requests: int = 0
    rate: int = 0
    sessions: int = 0
    errors: int = 0


NO_TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Each proxy's traffic in worker `pid`, `at` seconds on a monotonic clock."""

    at: float
    pid: int | None
    traffic: Mapping[str, Traffic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The load of a proxy per second; `errors` is None if only one sample is known."""

    requests: float
    errors: float | None
    sessions: int


def rates(now: Sample, before: Sample | None) -> tuple[dict[str, Rates], float | None]:
    """Return each proxy's rates, and the seconds between the two samples they are based on.

    Without an earlier sample of the same worker, requests are those of HAProxy's own last second,
    and the seconds are None.
    """
    if before is None or before.pid is None or before.pid != now.pid or now.at <= before.at:
        return {name: _of_last_second(one) for name, one in now.traffic.items()}, None
    seconds = now.at - before.at
    found = {}
    for name, one in now.traffic.items():
        old = before.traffic.get(name)
        # Counters decrease if they are cleared.
        if old is None or one.requests < old.requests or one.errors < old.errors:
            found[name] = _of_last_second(one)
        else:
            found[name] = Rates(
                requests=(one.requests - old.requests) / seconds,
                errors=(one.errors - old.errors) / seconds,
                sessions=one.sessions,
            )
    return found, seconds


def _of_last_second(one: Traffic) -> Rates:
    return Rates(requests=float(one.rate), errors=None, sessions=one.sessions)


def parse_traffic(answer: str, *, backends: bool = False) -> dict[str, Traffic] | None:
    """Return each proxy's traffic by name, or None if `answer` is not from `show stat`."""
    rows = _rows(answer)
    return None if rows is None else traffic_in(rows, backends=backends)


def traffic_in(rows: Iterable[Mapping[str, str]], *, backends: bool = False) -> dict[str, Traffic]:
    """Return each proxy's traffic by name; `backends` includes those without a frontend part.

    Clients are counted at frontends, and TCP failures at backends, because frontends do not count
    them.
    """
    behind: dict[str, Traffic] = {}
    found: dict[str, Traffic] = {}
    failures: dict[str, int] = {}
    for row in rows:
        if row["svname"] == "FRONTEND":
            found[row["pxname"]] = traffic_of(row)
        elif row["svname"] == "BACKEND":
            behind[row["pxname"]] = traffic_of(row)
            if not row["hrsp_5xx"]:
                failures[row["pxname"]] = traffic_of(row).errors
    for name, errors in failures.items():
        if name in found and errors:
            found[name] = replace(found[name], errors=errors)
    return {**behind, **found} if backends else found


def traffic_of(row: Mapping[str, str]) -> Traffic:
    """Return the traffic in one row."""
    is_http = bool(row.get("hrsp_5xx"))
    is_front = row.get("svname") == "FRONTEND"
    return Traffic(
        requests=_number(row.get("req_tot" if is_http and is_front else "stot")),
        rate=_number(row.get("req_rate" if is_http and is_front else "rate")),
        sessions=_number(row.get("scur")),
        errors=_number(row.get("hrsp_5xx"))
        if is_http
        else _number(row.get("econ")) + _number(row.get("eresp")),
    )


def _rows(answer: str) -> Iterator[dict[str, str]] | None:
    lines = answer.removeprefix("# ").splitlines()
    header = lines[0].split(",") if lines else []
    if not set(_COLUMNS) <= set(header):
        return None
    places = [header.index(column) for column in _COLUMNS]
    last = max(places)

    def rows() -> Iterator[dict[str, str]]:
        for line in lines[1:]:
            words = line.split(",", last + 1)
            if len(words) > last:
                values = [words[place] for place in places]
                yield dict(zip(_COLUMNS, values, strict=True))

    return rows()


def _number(text: str | None) -> int:
    return whole_number(text) or 0
