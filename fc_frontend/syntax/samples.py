"""Sample expressions, log formats and conditions that are harmless (manual chapters 7 and 8.2.6).

Accepted expressions depend only on the request, the response and the connection itself: on no
files, environment, other proxies' state, process-wide variables, regular expressions (a bad one
stalls all of HAProxy) or names that HAProxy would resolve.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_network

_NAME = r"[A-Za-z0-9_-]{1,64}"
_INTEGER = r"-?[0-9]{1,9}"
_TEXT = r"[A-Za-z0-9_.:/@=+*-]{1,128}"
_VARIABLE = r"(?:txn|req|res|sess)\.[A-Za-z0-9_.]{1,64}"
_CALL = re.compile(r"([a-z0-9_.]+)(?:\(([^()]*)\))?")
_COUNTERS = """
    conn_cnt conn_cur conn_rate sess_cnt sess_rate http_req_cnt http_req_rate http_err_cnt
    http_err_rate bytes_in_rate bytes_out_rate kbytes_in kbytes_out get_gpc0 gpc0_rate get_gpt0
""".split()


def _table(*rows: tuple[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(arguments) for names, arguments in rows for name in names.split()}


FETCHES = _table(
    (
        "src src_port dst dst_port path pathq url base query method req.ver res.ver status ssl_fc "
        "ssl_fc_sni ssl_fc_alpn ssl_fc_protocol req.ssl_sni req.ssl_hello_type req.ssl_ver req.len "
        "res.len req.proto_http http_first_req always_true always_false nbsrv be_conn fe_conn "
        "queue",
        "",
    ),
    (
        "hdr req.hdr req.fhdr res.hdr res.fhdr hdr_ip req.hdr_ip hdr_val req.hdr_val",
        f"{_NAME}(?:,{_INTEGER})?",
    ),
    ("hdr_cnt req.hdr_cnt res.hdr_cnt", _NAME),
    ("cook req.cook res.cook cook_cnt req.cook_cnt urlp url_param", _NAME),
    ("var", _VARIABLE),
    ("int", _INTEGER),
    ("bool", "true|false"),
    ("str", _TEXT),
    ("rand", "[0-9]{1,9}"),
    ("date", f"(?:{_INTEGER})?"),
    (" ".join(f"sc_{name}" for name in _COUNTERS), "[0-2]"),
    (" ".join(f"sc{number}_{name}" for number in range(3) for name in _COUNTERS), ""),
)
"""Fetch → pattern of its arguments."""

CRITERIA = _table(
    *((f"{name}_{how}", "") for name in ("base", "path", "url") for how in ("beg", "dir", "dom")),
    *((f"{name}_{how}", "") for name in ("base", "path", "url") for how in ("end", "len", "sub")),
    *((f"hdr_{how}", f"{_NAME}(?:,{_INTEGER})?") for how in ("beg", "dir", "dom")),
    *((f"hdr_{how}", f"{_NAME}(?:,{_INTEGER})?") for how in ("end", "len", "sub")),
    *((f"{name}_{how}", _NAME) for name in ("cook", "urlp") for how in ("beg", "dir", "dom")),
    *((f"{name}_{how}", _NAME) for name in ("cook", "urlp") for how in ("end", "len", "sub")),
    ("ssl_fc_sni_end", ""),
)
"""Criteria accepted in tests besides fetches: fetches with the comparison method in the name."""

CONVERTERS = _table(
    (
        "lower upper length hex base64 b64dec bool not neg cpl even odd sha1 htonl cut_crlf "
        "host_only port_only",
        "",
    ),
    ("field word", r"-?[0-9]{1,3},[-A-Za-z0-9_.:/@=+*;]{1,8}(?:,-?[0-9]{1,3})?"),
    ("bytes", "[0-9]{1,9}(?:,[0-9]{1,9})?"),
    ("ltrim rtrim", r"[A-Za-z0-9_.:/@=+*-]{1,16}"),
    ("url_dec", "|[01]"),
    ("add sub mul and or xor", _INTEGER),
    ("div mod", "-?[1-9][0-9]{0,8}"),
    ("crc32 djb2 sdbm", "|[01]"),
    ("sha2", "|224|256|384|512"),
    ("ipmask", "(?:[0-9]{1,2}(?:,[0-9]{1,3})?)"),
)

_METHODS = frozenset("found bool int len str beg sub dir dom end ip".split())
_COMPARES_ADDRESSES = frozenset(("src", "dst", "hdr_ip", "req.hdr_ip", "ipmask"))
_ACL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_FORMAT = re.compile(
    r"%%|%(?:\{[+-][QXE](?:,[+-][QXE])*\})?\[(?P<expression>[^\[\]\s]*)\]|(?P<bad>%)|[^%]+"
)


def is_expression(text: str) -> bool:
    """Return whether `text` is a harmless sample expression: a fetch and its converters."""
    return _calls(text, FETCHES) is not None


def is_variable(text: str) -> bool:
    """Return whether `text` is a variable that does not outlive its session."""
    return re.fullmatch(_VARIABLE, text) is not None


def is_format(text: str) -> bool:
    """Return whether `text` is a log format without aliases, only with harmless expressions."""
    return all(
        not match["bad"] and (match["expression"] is None or is_expression(match["expression"]))
        for match in _FORMAT.finditer(text)
    )


def test_end(words: Sequence[str], at: int, end: int) -> int:
    """Return the index of the first word of a test that is not harmless, else `end`.

    The test consists of the words from `at` up to `end`: a criterion, flags and patterns, as after
    `acl NAME`.
    """
    names = _calls(words[at], {**FETCHES, **CRITERIA}) if at < end else None
    if names is None:
        return at
    at += 1
    is_address = not _COMPARES_ADDRESSES.isdisjoint(names)
    has_flags = True
    while at < end:
        word = words[at]
        if not (has_flags and word.startswith("-")):
            if is_address and not _is_address(word):
                return at
        elif word == "-m":
            at += 1
            if at == end or words[at] not in _METHODS:
                return at
            is_address |= words[at] == "ip"
        elif word == "--":
            has_flags = False
        elif word not in ("-i", "-n"):
            return at
        at += 1
    return at


def condition_end(words: Sequence[str], at: int) -> int:
    """Return the index of the first word of a condition that is not harmless.

    The condition begins at `at`, after `if` or `unless`.  If all of it is harmless, return the
    number of words.
    """
    if at == len(words):
        return at
    while at < len(words):
        word = words[at].lstrip("!")
        if word == "{":
            close = next((n for n in range(at + 1, len(words)) if words[n] == "}"), None)
            if close is None:
                return at
            end = test_end(words, at + 1, close)
            if end < close:
                return end
            at = close + 1
        elif word in ("", "||") or _ACL_NAME.fullmatch(word):
            at += 1
        else:
            return at
    return at


def _calls(text: str, first: dict[str, re.Pattern[str]]) -> list[str] | None:
    """Return the names of a fetch in `first` and its converters; None if not harmless."""
    names = []
    known, at = first, 0
    while True:
        match = _CALL.match(text, at)
        arguments = known.get(match[1]) if match else None
        if match is None or arguments is None or not arguments.fullmatch(match[2] or ""):
            return None
        names.append(match[1])
        at = match.end()
        if at == len(text):
            return names
        if text[at] != ",":
            return None
        known, at = CONVERTERS, at + 1


def _is_address(text: str) -> bool:
    """Return whether `text` is an address or network; HAProxy resolves anything else as a name."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return "%" not in text
