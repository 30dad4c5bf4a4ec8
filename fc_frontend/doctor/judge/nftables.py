"""Parse the output of `nft --json list ruleset` (libnftables-json(5))."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

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
from fc_frontend.plan.untyped import as_list, as_mapping, as_text

_VERSIONS = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_TAKING = frozenset({"dnat", "redirect", "tproxy"})
_REFUSING = frozenset({"drop", "reject"})
_LIMITS = frozenset({"limit", "meter", "quota", "ct count", "queue", "synproxy", "socket"})
"""Statements after which it is not certain that the rest of the rule is reached."""
_IPTABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})
_UNKNOWN = object()
"""A value of a connection that is not known."""
_OUTSIDE = object()
"""The interface of a connection from outside: any except `lo`."""


def parse_nftables(text: str, *, with_iptables: bool) -> tuple[Table, ...]:
    """Return the tables in the output; an unknown statement may or may not apply.

    Without `with_iptables`, tables created by iptables are left out: `iptables-save` shows more
    details about them.
    """
    start = text.find("{")
    document = as_mapping(json.loads(text[start:])) if start >= 0 else {}
    chains: dict[tuple[str, str], dict[str, Chain]] = {}
    sets: dict[tuple[str, str], dict[str, list[Any]]] = {}
    rules: list[dict[str, Any]] = []
    for entry in map(as_mapping, as_list(document.get("nftables"))):
        for kind, value in entry.items():
            item = as_mapping(value)
            place = as_text(item.get("family")), as_text(item.get("table"))
            name = as_text(item.get("name"))
            if kind == "chain":
                chains.setdefault(place, {})[name] = Chain(
                    name,
                    [],
                    as_text(item.get("hook")),
                    int(item.get("prio", 0)),
                    item.get("policy") == "drop",
                )
            elif kind in ("set", "map"):
                sets.setdefault(place, {})[name] = as_list(item.get("elem"))
            elif kind == "rule":
                rules.append(item)
    for item in rules:
        place = as_text(item.get("family")), as_text(item.get("table"))
        chain = chains.get(place, {}).get(as_text(item.get("chain")))
        if chain is not None:
            statements = list(map(as_mapping, as_list(item.get("expr"))))
            effects = partial(_effects, statements, sets.get(place, {}))
            chain.rules.append(PacketRule(effects, as_text(item.get("comment"))))
    return tuple(
        Table(name, found, frozenset(_VERSIONS[family]))
        for (family, name), found in chains.items()
        if family in _VERSIONS
        and not (family != "inet" and not with_iptables and _is_of_iptables(name, found))
    )


def _is_of_iptables(name: str, chains: Mapping[str, Chain]) -> bool:
    """Return whether the chains are those of iptables-nft, with the names of iptables."""
    return name in _IPTABLES and all(each.name.isupper() for each in chains.values() if each.hook)


def _effects(
    statements: Sequence[dict[str, Any]], sets: Mapping[str, list[Any]], connection: Connection
) -> Sequence[RuleEffect]:
    is_sure = True
    for name, value in (item for statement in statements for item in statement.items()):
        fields = as_mapping(value)
        found = Applies.YES
        if name == "match":
            found = _match(fields, sets, connection)
        elif name in _TAKING:
            found = _in_maps(value, sets, connection)
        elif _is_limit(name, fields):
            found = Applies.MAYBE
        if found is Applies.NO:
            return ()
        is_sure = is_sure and found is Applies.YES
        if name == "vmap":
            by = as_text(fields.get("data")).removeprefix("@")
            return tuple(
                replace(effect, is_sure=effect.is_sure and is_sure, by=by)
                for effect in _mapped(fields, sets, connection)
            )
        if (effect := _verdict(name, value, is_sure=is_sure)) is not None:
            return (effect,)
    return ()


def _is_limit(name: str, fields: dict[str, Any]) -> bool:
    """Return whether the rest of a rule is reached only now and then, or for some sources."""
    is_counted_set = name == "set" and bool(fields.get("stmt"))
    is_match_of_iptables = name == "xt" and fields.get("type") == "match"
    return name in _LIMITS or is_counted_set or is_match_of_iptables


def _in_maps(value: Any, sets: Mapping[str, list[Any]], connection: Connection) -> Applies:
    """Return whether the maps from which `dnat` takes its target contain the connection."""
    found = Applies.YES
    for part in as_mapping(value).values():
        lookup = as_mapping(as_mapping(part).get("map"))
        key = lookup.get("key")
        if lookup and not {"numgen", "jhash", "symhash"} & set(as_mapping(key)):
            elements = _elements(lookup.get("data"), sets)
            keys = [each[0] for each in elements if isinstance(each, list) and each]
            each = _contains(_value(key, connection), keys)
            if each is Applies.NO:
                return each
            found = each if each is Applies.MAYBE else found
    return found


def _verdict(name: str, value: Any, *, is_sure: bool) -> RuleEffect | None:
    target = as_text(as_mapping(value).get("target"))
    plain = {
        "accept": Action.ACCEPT,
        "return": Action.RETURN,
        "jump": Action.JUMP,
        "goto": Action.GOTO,
    }
    if name in plain:
        return RuleEffect(plain[name], target, is_sure)
    if name == "xt":
        # A target of iptables, of which only the name is known.
        name = str(as_mapping(value).get("name")).lower()
    if name in _TAKING:
        return RuleEffect(Action.TAKE, "", is_sure)
    return RuleEffect(Action.REFUSE, "", is_sure) if name in _REFUSING else None


def _mapped(
    vmap: dict[str, Any], sets: Mapping[str, list[Any]], connection: Connection
) -> Iterator[RuleEffect]:
    """Yield the verdicts of a map that apply; with a random key, the last one certainly does."""
    key = vmap.get("key")
    elements = [each for each in _elements(vmap.get("data"), sets) if isinstance(each, list)]
    is_choice = "numgen" in as_mapping(key) or "jhash" in as_mapping(key)
    for number, (wanted, verdict) in enumerate(each for each in elements if len(each) == 2):
        found = _contains(_value(key, connection), [wanted])
        if is_choice and number == len(elements) - 1:
            found = Applies.YES
        if found is Applies.NO:
            continue
        for name, value in as_mapping(verdict).items():
            effect = _verdict(name, value, is_sure=found is Applies.YES)
            if effect is not None:
                yield effect
        if found is Applies.YES:
            return


def _match(match: dict[str, Any], sets: Mapping[str, list[Any]], connection: Connection) -> Applies:
    value = _value(match.get("left"), connection)
    operator, right = match.get("op"), match.get("right")
    if operator in ("==", "in"):
        return _contains(value, _elements(right, sets))
    if operator == "!=":
        found = _contains(value, _elements(right, sets))
        return {Applies.NO: Applies.YES, Applies.YES: Applies.NO}.get(found, found)
    return Applies.MAYBE


def _elements(right: Any, sets: Mapping[str, list[Any]]) -> list[Any]:
    """Return the values to match: the elements of a named or anonymous set, or one value."""
    if isinstance(right, str) and right.startswith("@"):
        return sets.get(right[1:], [])
    if isinstance(right, dict) and "set" in right:
        return as_list(right["set"]) or [right["set"]]
    return right if isinstance(right, list) else [right]


def _value(left: Any, connection: Connection) -> Any:
    """Evaluate an expression for a connection; return `_UNKNOWN` if that is not possible."""
    match left:
        case {"concat": list(parts)}:
            return tuple(_value(part, connection) for part in parts)
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return _in_packet(protocol, field, connection)
        case {"meta": {"key": str(key)}}:
            known = {
                "l4proto": connection.protocol,
                "nfproto": f"ipv{connection.address.version}",
                "iifname": _OUTSIDE,
                "iif": _OUTSIDE,
            }
            return known.get(key, _UNKNOWN)
        case {"ct": {"key": "state"}}:
            return "new"
        case {"ct": {"key": "status"}}:
            return "none"
        # Newer versions write a single flag without a list.
        case {"fib": {"result": "type", "flags": "daddr"}}:
            return "local"
        case {"fib": {"result": "type", "flags": flags}} if "daddr" in as_list(flags):
            return "local"
    return _UNKNOWN


def _in_packet(protocol: str, field: str, connection: Connection) -> Any:
    """Return a field of the first packet, or None if it has no such header."""
    if protocol in ("ip", "ip6"):
        if connection.address.version != (4 if protocol == "ip" else 6):
            return None
        known = {
            "daddr": connection.address,
            "protocol": connection.protocol,
            "nexthdr": connection.protocol,
        }
        return known.get(field, _UNKNOWN)
    if protocol not in ("th", connection.protocol):
        return None
    return connection.port if field == "dport" else _UNKNOWN


def _contains(value: Any, elements: Iterable[Any]) -> Applies:
    found = Applies.NO
    for element in elements:
        each = _equals(value, element)
        if each is Applies.YES:
            return each
        if each is Applies.MAYBE:
            found = each
    return found


def _equals(value: Any, element: Any) -> Applies:
    """Return whether a value equals the element of a set, or is within it."""
    if element == "*":
        # The catch-all element, which is listed last.
        return Applies.YES
    if value is None:
        return Applies.NO
    if isinstance(element, dict) and "elem" in element:  # one with a timeout or comment
        return _equals(value, as_mapping(element["elem"]).get("val"))
    if value is _OUTSIDE:
        return Applies.NO if INSIDE.fullmatch(str(element)) else Applies.MAYBE
    if isinstance(value, tuple):
        parts = as_list(as_mapping(element).get("concat"))
        if len(parts) != len(value):
            return Applies.MAYBE
        found = [_equals(*pair) for pair in zip(value, parts, strict=True)]
        if Applies.NO in found:
            return Applies.NO
        return Applies.MAYBE if Applies.MAYBE in found else Applies.YES
    if value is _UNKNOWN:
        return Applies.MAYBE
    return Applies.YES if _is_within(value, element) else Applies.NO


def _is_within(value: Any, element: Any) -> bool:
    match element:
        case {"range": [first, last]}:
            if isinstance(value, int):
                return isinstance(first, int) and isinstance(last, int) and first <= value <= last
            if not isinstance(value, IPv4Address | IPv6Address):
                return False
            try:
                low, high = ip_address(first), ip_address(last)
            except ValueError:
                return False
            same = low.version == high.version == value.version
            return same and int(low) <= int(value) <= int(high)
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            if not isinstance(value, IPv4Address | IPv6Address):
                return False
            try:
                return value in ip_network(f"{address}/{length}", strict=False)
            except ValueError:
                return False
    return str(value) == str(element)
