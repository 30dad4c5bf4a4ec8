"""Types of field values: addresses, ports, names, times, and lines of HAProxy text.

A string that reaches haproxy.cfg may only contain characters that cannot begin a quote, comment,
escape, variable or line there.  The exceptions are fields that contain HAProxy text on purpose:
`extra_config`, `server_options`, `bind_options` and the settings' extras.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from fc_frontend.model.load_balancers import (
    AddressRange,
)
from fc_frontend.plan.address_ranges import parse_address_range
from fc_frontend.plan.addresses import (
    SAFE_PATH,
    NotAnAddress,
    parse_address,
    parse_bind,
    parse_bind_range,
    parse_nameserver,
    parse_network,
)
from fc_frontend.plan.model import (
    Address,
    Bind,
    BindRange,
    Nameserver,
    Network,
)
from fc_frontend.plan.slots import MOST as MOST_SLOTS
from fc_frontend.render.config import MARK, has_mark
from fc_frontend.syntax.routes import (
    NotARoute,
    Path,
    parse_host,
    parse_path,
)
from fc_frontend.syntax.units import Owner, UnitFault, clean_line, option_fault, raw_line_faults
from fc_frontend.syntax.words import split

_MAX_ITEMS = 1000
"""Per list.  Each item is validated separately."""


def error(message: str, remedy: str) -> PydanticCustomError:
    """Return the error for a validator to raise."""
    return PydanticCustomError("fc_frontend", "{text}", {"text": message, "remedy": remedy})


def short(value: Any) -> str:
    """Return a value as quoted in messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def matching(pattern: re.Pattern[str], what: str, remedy: str) -> Any:
    """Return a validator for strings that match `pattern` as a whole."""

    def validate(value: Any) -> str:
        if not isinstance(value, str):
            raise error(f"{short(value)} is not a string", f"put it in quotes: {remedy}")
        if not pattern.fullmatch(value):
            raise error(f"{short(value)} is not {what}", remedy)
        return value

    return BeforeValidator(validate)


def listed(value: Any) -> Any:
    """Return a list; a single string may be given instead of a list."""
    if isinstance(value, list) and len(value) > _MAX_ITEMS:
        raise error(f"more than {_MAX_ITEMS} items", "use fewer items")
    return [value] if isinstance(value, str) else value


def _path(value: Any) -> Path:
    is_exact = isinstance(value, dict)
    if isinstance(value, dict):
        if value.keys() != {"exact"}:
            raise error(f"{short(value)} is not a path", "write /prefix, or {exact: /path}")
        value = value["exact"]
    try:
        return parse_path(value, is_exact=is_exact)
    except NotARoute as exc:
        raise error(str(exc), exc.remedy) from None


RoutePath = Annotated[Path, BeforeValidator(_path)]
SafePath = Annotated[
    str,
    matching(SAFE_PATH, "a usable path", "give an absolute path of letters, digits and ._+@=~/-"),
]


class Strict(BaseModel):
    """A mapping that accepts no unknown fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True
    )


SERVICE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_ARGUMENT = r"[A-Za-z0-9._-]{1,100}"
_BALANCE = re.compile(
    r"roundrobin|static-rr|leastconn|first|source|random(?:\([1-9][0-9]?\))?|"
    rf"uri(?: (?:whole|path-only|(?:len|depth) [1-9][0-9]{{0,3}}))*|url_param {_ARGUMENT}|"
    rf"hdr\({_ARGUMENT}\)|rdp-cookie(?:\({_ARGUMENT}\))?"
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$&*+.^_|~-]{1,100}")
_MAX_HEADERS = 50
_MAX_HEADER_LENGTH = 4000

T = TypeVar("T")


def _parsed(parse: Callable[[str], T]) -> Callable[[Any], T]:
    def validate(value: Any) -> T:
        if not isinstance(value, str):
            raise error(f"{short(value)} is not a string", "put it in quotes")
        try:
            return parse(value)
        except NotAnAddress as exc:
            raise error(str(exc), exc.remedy) from None

    return validate


def _in_seconds(value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise error(f"{short(value)} is not a time", "write 200ms, 5s, 2m, 1h or 1d")
    match = _TIME.fullmatch(str(value))
    if not match:
        raise error(f"{short(value)} is not a time", "write 200ms, 5s, 2m, 1h or 1d")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not least <= seconds <= most:
        raise error(f"{value} is out of range", f"give a time from {least:g} s to {most:g} s")
    return seconds


def seconds(least: float, most: float) -> Any:
    return BeforeValidator(lambda value: _in_seconds(value, least, most))


def optional_seconds(least: float, most: float) -> Any:
    def validate(value: Any) -> float | None:
        return None if value is None else _in_seconds(value, least, most)

    return BeforeValidator(validate)


def _require_printable(text: str) -> None:
    if not text.replace("\t", "").isprintable():
        raise error(f"{short(text)} has a control character", "leave it out")


def _haproxy_lines(owner: Owner) -> Any:
    def validate(value: Any) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise error(f"{short(value)} is not a string", "write lines of HAProxy configuration")
        for index, text in enumerate(texts):
            item = None if texts is not value else index
            _require_printable(text.replace("\n", ""))
            if has_mark(text):
                raise error(f"a comment begins with `{MARK.strip()}`", "write it in another way")
            for fault in raw_line_faults(text, owner):
                raise _error_in(fault, text, item)
        lines = [line for text in texts for line in text.split("\n")]
        return tuple(clean_line(line) for line in lines if line.strip())

    return BeforeValidator(validate)


def _haproxy_words(value: Any) -> str:
    if not isinstance(value, str):
        raise error(f"{short(value)} is not a string", "write words as after HAProxy's `server`")
    # The predecessor's NixOS option usually has a line for each word.
    text = value.replace("\n", " ").strip(" \t")
    _require_printable(text)
    fault = option_fault(text)
    if fault is not None:
        raise error(fault.message, fault.remedy)
    return " ".join(word.source for word in split(text).words)


def _error_in(fault: UnitFault, text: str, item: int | None) -> PydanticCustomError:
    """Return an error for a line of `text`, which may be an item of a list."""
    has_lines = "\n" in text.strip("\n")
    where = f"line {fault.line}: " if has_lines else ""
    context = {"text": where + fault.message, "remedy": fault.remedy, "line": fault.line}
    if item is not None:
        context["item"] = item
    return PydanticCustomError("fc_frontend", "{text}", context)


def _port(value: Any) -> int | str:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value) if len(value) <= 6 else -1
    if isinstance(value, int) and not isinstance(value, bool):
        if 1 <= value <= 65535:
            return value
        raise error(f"{short(value)} is not a port", "give a number from 1 to 65535")
    if isinstance(value, str) and _PORT_NAME.fullmatch(value):
        return value
    raise error(
        f"{short(value)} is not a port",
        "give a number from 1 to 65535, or a port's name as in the Service's spec.ports",
    )


def _port_number(value: Any) -> int:
    port = _port(value)
    if isinstance(port, str):
        raise error(
            f"{short(value)} is not a number", "a port's name is known only for pod_port (SRV)"
        )
    return port


def _slots(value: Any) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SLOTS:
        return value
    raise error(f"{short(value)} is not a number of slots", f"give auto, or 1 to {MOST_SLOTS}")


def _user(value: Any) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _USER.fullmatch(text):
        raise error(f"{short(value)} is not a user", "give a user's name or number")
    return text


def switched_off(value: Any) -> Any:
    return None if value is False else value


def _balance(value: Any) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else value
    if not isinstance(text, str) or not _BALANCE.fullmatch(text):
        raise error(
            f"{short(value)} is not a balance algorithm",
            "give leastconn, roundrobin, source, first, random, uri, hdr(NAME)…; others as a line "
            "`balance …` in extra_config",
        )
    return text


def _host(value: Any) -> str:
    try:
        return parse_host(value)
    except NotARoute as exc:
        raise error(str(exc), exc.remedy) from None


def _headers(value: Any) -> tuple[tuple[str, str | None], ...]:
    remedy = "write `Name: value`, or `Name: null` to remove it"
    if not isinstance(value, dict):
        raise error(f"{short(value)} is not a mapping", remedy)
    if len(value) > _MAX_HEADERS:
        raise error(f"more than {_MAX_HEADERS} headers", "use fewer headers")
    found: dict[str, tuple[str, str | None]] = {}
    for name, text in value.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise error(f"{short(name)} is not the name of a header", remedy)
        if name.lower() in found:
            raise error(f"{name} is given twice", "keep one of the two")
        if text is not None and not isinstance(text, str):
            raise error(f"{short(text)} is not a string", f"put the value of {name} in quotes")
        if text is not None and not (text.isascii() and text.isprintable()):
            raise error(
                f"the value of {name} has characters that are not printable ASCII", "leave them out"
            )
        if text is not None and len(text) > _MAX_HEADER_LENGTH:
            raise error(
                f"the value of {name} is too long", f"use at most {_MAX_HEADER_LENGTH} characters"
            )
        found[name.lower()] = name, text
    return tuple(found.values())


def _paths(value: Any) -> Any:
    return listed([value] if isinstance(value, dict) else value)


Headers = Annotated[tuple[tuple[str, str | None], ...], BeforeValidator(_headers)]
HostName = Annotated[str, BeforeValidator(_host)]
ServiceName = Annotated[
    str, matching(DNS_LABEL, "a DNS-1123 label", "use lower-case letters, digits and inner dashes")
]
Domain = Annotated[
    str, matching(_DNS_NAME, "a domain name", "write it as cluster.local, without a final dot")
]
AccountName = Annotated[
    str, matching(_ACCOUNT, "an account's name", "give a name as in /etc/passwd or /etc/group")
]
UserName = Annotated[str, BeforeValidator(_user)]
BindAddresses = Annotated[BindRange, BeforeValidator(_parsed(parse_bind_range))]
BindAddress = Annotated[Bind, BeforeValidator(_parsed(parse_bind))]
NetworkAddress = Annotated[Network, BeforeValidator(_parsed(parse_network))]
PoolRange = Annotated[AddressRange, BeforeValidator(_parsed(parse_address_range))]
NameserverAddress = Annotated[Nameserver, BeforeValidator(_parsed(parse_nameserver))]
HostAddress = Annotated[Address, BeforeValidator(_parsed(parse_address))]
NodeAddresses = dict[
    Annotated[str, matching(SERVICE_NAME, "a node's name", "use letters, digits and inner ._-")],
    HostAddress,
]
ServiceLines = Annotated[tuple[str, ...], _haproxy_lines(Owner.SERVICE)]
GlobalLines = Annotated[tuple[str, ...], _haproxy_lines(Owner.GLOBAL)]
DefaultsLines = Annotated[tuple[str, ...], _haproxy_lines(Owner.DEFAULTS)]
Words = Annotated[str, BeforeValidator(_haproxy_words)]
Port = Annotated[int | str, BeforeValidator(_port)]
PortNumber = Annotated[int, BeforeValidator(_port_number)]
Slots = Annotated[int | None, BeforeValidator(_slots)]
Balance = Annotated[str, BeforeValidator(_balance)]
RoutePaths = Annotated[tuple[RoutePath, ...], BeforeValidator(_paths)]
