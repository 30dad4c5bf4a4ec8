"""Query the running worker, and change it without a reload.

Only the worker knows which configuration it serves: the rendered text contains its hash as
`description`, and `show info` returns it.  Each call opens a new connection, so that the current
worker answers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.socket import ask
from fc_frontend.haproxy.traffic import Traffic, parse_traffic
from fc_frontend.plan.model import FREE_ADDRESS
from fc_frontend.text import whole_number

TIMEOUT = 5.0
"""Time limit of one command, in seconds."""

BATCH = 7000
"""Bytes in a line of several commands: well below the smallest buffer (16 kB, halved)."""

_AWAY = 1 | 2 | 8 | 16 | 32
"""Maintenance or drain, set by an operator, by a tracked server, or for lack of an address."""
_MAINTENANCE = 1 | 2 | 32
_WITHOUT_POD = (["-"], [FREE_ADDRESS])
_LINE = re.compile(r"[^\n]+")
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,256}")
"""A proxy's or server's name (manual 2.3)."""
_HASH = re.compile(r"^fc-frontend:([0-9a-f]{16})$")


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server, as in the output of `show servers state` (Management Guide 9.3).

    `address` is None for a slot without one.  `operational` is 0 stopped, 1 starting, 2 running, 3
    stopping; `admin` is a bit field: 0 ready, 1 maintenance set at runtime, 8 drain, 32 maintenance
    because DNS has no address.  `changed_ago` is in seconds.  Columns that this version does not
    show are None.
    """

    proxy: str
    server: str
    address: str | None
    port: int | None
    operational: int | None
    admin: int | None
    weight: int | None
    initial_weight: int | None
    changed_ago: int | None
    check_status: int | None
    check_result: int | None
    check_health: int | None
    check_state: int | None
    agent_state: int | None
    fqdn: str | None
    srv_record: str | None

    @property
    def up(self) -> bool:
        """Whether it accepts new connections: it runs, and is neither in maintenance nor draining.

        Two bits of `admin` do not matter: 4 only means that the configuration disables it, although
        it was enabled since; 64 means that its name came from an SRV record.
        """
        return self.operational in (1, 2) and not (self.admin or 0) & _AWAY


def serving(servers: Iterable[ServerState]) -> frozenset[str]:
    """Return the proxies with a server that serves, even if only existing sessions of a drain."""
    return frozenset(
        server.proxy
        for server in servers
        if server.operational in (1, 2) and not (server.admin or 0) & _MAINTENANCE
    )


def info(path: str, timeout: float = TIMEOUT) -> dict[str, str]:
    """Return the fields of the current worker's `show info`, by name.  Raises `Unavailable`."""
    return info_of(path, ask(path, "show info", timeout))


def info_of(path: str, answer: str) -> dict[str, str]:
    """Parse the answer to `show info`; the `Unavailable` for an invalid one names `path`."""
    fields: dict[str, str] = {}
    for line in answer.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields[name.strip()] = value.strip()
    if "Pid" not in fields:
        raise _strange(path, "show info", answer)
    return fields


def running_hash(path: str, timeout: float = TIMEOUT) -> str | None:
    """Return the hash of the worker's configuration, or None if fc-frontend did not write it.

    Raises `Unavailable` if the worker does not answer.
    """
    return hash_in(info(path, timeout))


def hash_in(fields: Mapping[str, str]) -> str | None:
    """Return the hash in the fields of `show info`, or None if it is not fc-frontend's."""
    found = _HASH.match(fields.get("description", ""))
    return found[1] if found else None


def servers(path: str, timeout: float = TIMEOUT) -> tuple[ServerState, ...]:
    """Return all servers with their state.  Raises `Unavailable`."""
    return parse_servers(path, ask(path, "show servers state", timeout))


def servers_with_address(path: str, timeout: float = TIMEOUT) -> tuple[ServerState, ...]:
    """Like `servers`, without slots that have no pod: these are the majority, and cost as much."""
    return tuple(
        _each_server(path, ask(path, "show servers state", timeout), only_with_address=True)
    )


def each_server(path: str, timeout: float = TIMEOUT) -> Iterator[ServerState]:
    """Like `servers`, one by one: tens of thousands at once take tens of megabytes."""
    yield from _each_server(path, ask(path, "show servers state", timeout))


def servers_of(path: str, proxy: str, timeout: float = TIMEOUT) -> tuple[ServerState, ...]:
    """Return the servers of one proxy, none if there is no such proxy.  Raises `Unavailable`.

    `proxy` must be a name that HAProxy accepts, because it becomes part of a command.
    """
    answer = ask(path, f"show servers state {proxy}", timeout)
    if answer.startswith("Can't find backend"):
        return ()
    return parse_servers(path, answer)


def statistics(path: str, proxy: str, timeout: float = TIMEOUT) -> tuple[dict[str, str], ...]:
    """Return the rows of `show stat` for one proxy, by column: its frontend, servers and backend.

    Empty if there is no such proxy.  `proxy` must be a name that HAProxy accepts, because it
    becomes part of a command.  Raises `Unavailable`.
    """
    answer = ask(path, f"show stat {proxy} 7 -1", timeout)
    if answer.startswith("No such proxy"):
        return ()
    rows = _table(answer)
    if not rows or "svname" not in rows[0]:
        raise _strange(path, "show stat", answer)
    return rows


def current_sessions(path: str, proxy: str, timeout: float = TIMEOUT) -> dict[str, int]:
    """Return the current sessions of each server of one proxy, by name.  Raises `Unavailable`."""
    return sessions(ask(path, f"show stat {proxy} 4 -1", timeout))


def traffic(path: str, timeout: float = TIMEOUT, *, backends: bool = False) -> dict[str, Traffic]:
    """Return the traffic of each proxy, by its name; see `traffic_in`.  Raises `Unavailable`."""
    # Type 3: frontends and backends, without their servers.
    answer = ask(path, "show stat -1 3 -1", timeout)
    found = parse_traffic(answer, backends=backends)
    if found is None:
        raise _strange(path, "show stat", answer)
    return found


def sessions(answer: str) -> dict[str, int]:
    """Return the current sessions of each server, by name, from `show stat PROXY 4 -1`."""
    return {
        row["svname"]: count
        for row in _table(answer)
        if row.get("svname") and (count := whole_number(row.get("scur"))) is not None
    }


def _table(answer: str) -> tuple[dict[str, str], ...]:
    """Return the rows of a `show stat` answer, by column; empty if it is not a table."""
    rows = csv.DictReader(answer.removeprefix("# ").strip().splitlines())
    try:
        return tuple({key: value or "" for key, value in row.items() if key} for row in rows)
    except csv.Error:
        return ()


def parse_servers(path: str, answer: str) -> tuple[ServerState, ...]:
    """Parse the answer to `show servers state`; the header line names the columns."""
    return tuple(_each_server(path, answer))


def _each_server(
    path: str, answer: str, *, only_with_address: bool = False
) -> Iterator[ServerState]:
    columns: list[str] = []
    # A slice, because a line may be too short for the column.
    address = slice(0)
    # Without a list of lines: there may be tens of thousands.
    for line in _LINE.finditer(answer):
        words = line[0].split()
        if words[:1] == ["#"]:
            columns = words[1:]
            if only_with_address and "srv_addr" in columns:
                address = slice(columns.index("srv_addr"), columns.index("srv_addr") + 1)
        elif len(words) > 3 and words[address] not in _WITHOUT_POD:
            row = dict(zip(columns, words, strict=False))
            # Names become parts of commands: rows with names that HAProxy does not accept are
            # skipped.
            if _NAME.fullmatch(row.get("be_name", "")) and _NAME.fullmatch(row.get("srv_name", "")):
                yield _server(row)
    if "be_name" not in columns or "srv_name" not in columns:
        raise _strange(path, "show servers state", answer)


def command(path: str, text: str, timeout: float = TIMEOUT) -> str:
    """Return the worker's answer to one command, without the blank line at its end.

    `set …` commands return nothing on success, or what changed.  Raises `Unavailable`, and
    `Refused` for more than one line.
    """
    return ask(path, text, timeout).strip("\n")


def commands(path: str, texts: Iterable[str], timeout: float = TIMEOUT) -> tuple[str, ...]:
    """Return the worker's answers to several commands, in their order, as `command` does.

    The commands are sent in lines of at most 7 kB, joined by `;`, with one connection and `timeout`
    seconds each: HAProxy executes the rest of a line even if one command fails.  Only for commands
    whose answers contain no blank lines, such as `set` and `add`.  A text may contain several
    commands joined by `;`, which are then sent in one line.  Raises `Unavailable` if a line gets no
    answer, or answers that cannot be separated; earlier commands have been executed by then.
    """
    answers: list[str] = []
    for batch in _batches(texts):
        answer = ask(path, ";".join(batch), timeout)
        said = split_answers(answer)
        count = sum(text.count(";") + 1 for text in batch)
        if len(said) != count:
            raise _strange(path, f"{count} commands", answer)
        answers += said
    return tuple(answers)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode()) + 1
        if batch and size + length > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += length
    if batch:
        yield batch


def split_answers(answer: str) -> list[str]:
    """Split an answer: an empty line is an empty answer, other text ends at an empty line."""
    found: list[str] = []
    while answer:
        if answer.startswith("\n"):
            found.append("")
            answer = answer[1:]
        else:
            text, _, answer = answer.partition("\n\n")
            found.append(text.strip("\n"))
    return found


def _server(row: dict[str, str]) -> ServerState:
    return ServerState(
        proxy=row["be_name"],
        server=row["srv_name"],
        address=_word(row, "srv_addr"),
        port=_number(row, "srv_port"),
        operational=_number(row, "srv_op_state"),
        admin=_number(row, "srv_admin_state"),
        weight=_number(row, "srv_uweight"),
        initial_weight=_number(row, "srv_iweight"),
        changed_ago=_number(row, "srv_time_since_last_change"),
        check_status=_number(row, "srv_check_status"),
        check_result=_number(row, "srv_check_result"),
        check_health=_number(row, "srv_check_health"),
        check_state=_number(row, "srv_check_state"),
        agent_state=_number(row, "srv_agent_state"),
        fqdn=_word(row, "srv_fqdn"),
        srv_record=_word(row, "srvrecord"),
    )


def _word(row: dict[str, str], column: str) -> str | None:
    word = row.get(column, "-")
    return None if word == "-" else word


def _number(row: dict[str, str], column: str) -> int | None:
    try:
        return int(row[column])
    except (KeyError, ValueError):
        return None


def _strange(path: str, asked: str, answer: str) -> Unavailable:
    first = answer.strip().splitlines()[0][:80] if answer.strip() else "nothing"
    return Unavailable.of(
        f"{path} gave no proper answer to `{asked}`: {first!r}",
        "check that it is HAProxy's `stats socket` with `level admin`, and try again",
    )
