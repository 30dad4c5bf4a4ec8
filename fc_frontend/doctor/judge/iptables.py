"""Parse the output of `iptables-save` and `ip6tables-save` (iptables-extensions(8))."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_network

from fc_frontend.doctor.judge.packets import (
    INSIDE,
    Action,
    Applies,
    Chain,
    Connection,
    PacketRule,
    RuleEffect,
    Table,
)
from fc_frontend.plan.model import Network

_HOOKS = {"PREROUTING": "prerouting", "INPUT": "input"}
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
"""`enum nf_ip_hook_priorities`; `nat` in INPUT is last, and rewrites sources only."""
_TAKING = frozenset({"DNAT", "REDIRECT", "TPROXY"})
_REFUSING = frozenset({"DROP", "REJECT"})
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_LOCAL = "LOCAL"
_ALWAYS = {
    "--ctstatus": Applies.NO,
    "--set": Applies.YES,
    "--name": Applies.YES,
    "--mask": Applies.YES,
    "--rsource": Applies.YES,
}
"""Options with one result for a new connection; `--set` of `recent` records it, and matches."""

_Test = Callable[[Connection], Applies]


def parse_iptables(text: str, version: int) -> tuple[Table, ...]:
    """Return the tables in the output for IP `version`; unknown lines are skipped."""
    tables: list[Table] = []
    chains: dict[str, Chain] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            chains = {}
            tables.append(Table(line[1:].strip(), chains, frozenset({version})))
        elif line.startswith(":") and tables:
            name, _, rest = line[1:].partition(" ")
            hook = _HOOKS.get(name, "")
            priority = _PRIORITIES.get(tables[-1].name, 0)
            chains[name] = Chain(name, [], hook, priority, rest.startswith("DROP"))
        elif line.startswith("-A ") and tables:
            _, chain, *words = _words(line)
            if chain in chains:
                chains[chain].rules.append(_rule(words, chains))
    return tuple(tables)


def _words(line: str) -> list[str]:
    return [quoted or plain for quoted, plain in _WORD.findall(line)]


def _rule(words: Sequence[str], chains: Mapping[str, Chain]) -> PacketRule:
    tests: list[_Test] = []
    comment, action, target = "", Action.CONTINUE, ""
    needs = marks = 0
    for negated, option, values in _options(words):
        value = values[0] if values else ""
        if option == "--comment":
            comment = value
        elif option in ("-j", "-g"):
            action, target = _action(option, value), value
        elif option == "--mark" and not negated and _mark(value):
            needs |= _mark(value)
            tests.append(lambda _: Applies.MAYBE)
        elif option == "--set-xmark":
            marks = _mark(value)
        elif option not in ("-m", "--to-destination", "--to-ports", "--reject-with"):
            test = _test(option, value)
            tests.append(partial(_negated, test) if negated else test)
    effects = partial(_effects, tuple(tests), action, target, chains, marks)
    return PacketRule(effects, comment, needs)


def _mark(text: str) -> int:
    """Return the bits set in `value/mask`."""
    value, _, mask = text.partition("/")
    try:
        return int(value, 0) & int(mask or "0xffffffff", 0)
    except ValueError:
        return 0


def _options(words: Sequence[str]) -> Iterator[tuple[bool, str, list[str]]]:
    """Yield whether each option is negated, the option, and its values."""
    negated, option, values = False, "", list[str]()
    pending = False
    for word in words:
        if word == "!":
            pending = True
        elif word.startswith("-") and len(word) > 1:
            if option:
                yield negated, option, values
            negated, option, values, pending = pending, word, [], False
        else:
            values.append(word)
    if option:
        yield negated, option, values


def _action(option: str, target: str) -> Action:
    if option == "-g":
        return Action.GOTO
    if target in _TAKING:
        return Action.TAKE
    if target in _REFUSING:
        return Action.REFUSE
    plain = {"ACCEPT": Action.ACCEPT, "RETURN": Action.RETURN}
    return plain.get(target, Action.JUMP)


def _effects(
    tests: Sequence[_Test],
    action: Action,
    target: str,
    chains: Mapping[str, Chain],
    marks: int,
    connection: Connection,
) -> Sequence[RuleEffect]:
    is_sure = True
    for test in tests:
        match test(connection):
            case Applies.NO:
                return ()
            case Applies.MAYBE:
                is_sure = False
    if action is Action.JUMP and target not in chains:
        # A target such as LOG or MARK, after which the chain continues.
        return (RuleEffect(Action.CONTINUE, marks=marks),)
    return (RuleEffect(action, target, is_sure),)


def _negated(test: _Test, connection: Connection) -> Applies:
    found = test(connection)
    return {Applies.NO: Applies.YES, Applies.YES: Applies.NO}.get(found, found)


def _test(option: str, value: str) -> _Test:
    if (always := _ALWAYS.get(option)) is not None:
        return lambda _: always
    match option:
        case "-p":
            return lambda connection: _said(value in (connection.protocol, "all"))
        case "-s" if (source := _network(value)) is not None and source.is_loopback:
            return lambda _: Applies.NO
        case "-d":
            network = _network(value)
            if network is not None:
                return lambda connection: _said(connection.address in network)
        case "--dport" | "--dports" | "--destination-port":
            ports = _ports(value)
            if ports is not None:
                return lambda connection: _said(any(connection.port in each for each in ports))
        case "--dst-type":
            return lambda _: _said(_LOCAL in value.split(","))
        case "--src-type":
            return lambda _: Applies.NO if value == _LOCAL else Applies.MAYBE
        case "--ctstate" | "--state":
            return lambda _: _said("NEW" in value.split(","))
        case "-i" if INSIDE.fullmatch(value):
            return lambda _: Applies.NO
    return lambda _: Applies.MAYBE


def _said(applies: bool) -> Applies:
    return Applies.YES if applies else Applies.NO


def _network(text: str) -> Network | None:
    """Return the network of `-d`, or None if its mask is not that of a network."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _ports(text: str) -> tuple[range, ...] | None:
    """Return the ranges in `80,8000:8100`, or None if it cannot be parsed."""
    found = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        try:
            found.append(range(int(first or 0), int((last or 65535) if colon else first) + 1))
        except ValueError:
            return None
    return tuple(found)
