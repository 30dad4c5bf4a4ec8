"""Raw lines that are harmless whoever wrote them, for `untrusted.raw_lines: safe`.

This is an allow-list, applied to the words that HAProxy reads.  A line on the list affects only its
own service: it reads no file, opens no connection elsewhere, names no other section, resolves no
name, runs no program, and cannot keep HAProxy busy.  All other lines are refused, whatever their
meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from fc_frontend.syntax.samples import (
    condition_end,
    is_expression,
    is_format,
    is_variable,
    test_end,
)
from fc_frontend.syntax.words import NotWords, split

MAX_LINES = 100
"""Per service."""
MAX_LENGTH = 1000
"""Characters per line or option text."""
MAX_ENTRIES = 10 * 1024
"""Entries per stick-table."""
_RESERVED = "fc-frontend"
"""fc-frontend identifies its own configuration by words that begin with this."""

LINES = """
acl ACL TEST
backlog NUMBER
balance roundrobin|static-rr|leastconn|first|source|uri
compression algo gzip|deflate|identity
compression type MIME...
cookie TOKEN insert { dynamic / httponly / indirect / nocache / postonly / preserve / secure / \
    domain HOST / maxidle TIME / maxlife TIME }
cookie TOKEN prefix|rewrite
default-server SERVER
dynamic-cookie-key TOKEN
errorloc|errorloc302|errorloc303 STATUS URL
fullconn NUMBER
hash-type consistent|map-based [ sdbm|djb2|wt6|crc32 [ avalanche ] ]
http-after-response add-header|set-header HEADER FORMAT [ CONDITION ]
http-after-response del-header HEADER [ CONDITION ]
http-after-response set-status STATUS [ reason TEXT ] [ CONDITION ]
http-after-response SET-VAR EXPRESSION [ CONDITION ]
http-after-response UNSET-VAR [ CONDITION ]
http-check disable-on-404
http-check expect [ ! ] status STATUSES
http-check expect [ ! ] string TEXT
http-check send { meth METHOD / uri PATH / ver HTTP-VERSION / hdr HEADER FORMAT / body TEXT }
http-error status STATUS content-type MIME string|lf-string FORMAT
http-request add-header|set-header HEADER FORMAT [ CONDITION ]
http-request allow|reject [ CONDITION ]
http-request del-header HEADER [ CONDITION ]
http-request deny [ deny_status|status STATUS ] [ CONDITION ]
http-request redirect location|prefix|scheme FORMAT { code REDIRECT / drop-query / append-slash } \
    [ CONDITION ]
http-request return status STATUS content-type MIME string|lf-string FORMAT [ CONDITION ]
http-request sc-inc-gpc0(0)|sc-inc-gpc0(1)|sc-inc-gpc0(2) [ CONDITION ]
http-request set-method|set-path|set-pathq|set-query FORMAT [ CONDITION ]
http-request SET-VAR EXPRESSION [ CONDITION ]
http-request SET-VAR-FMT FORMAT [ CONDITION ]
http-request track-sc0|track-sc1|track-sc2 EXPRESSION [ CONDITION ]
http-request UNSET-VAR [ CONDITION ]
http-response add-header|set-header HEADER FORMAT [ CONDITION ]
http-response allow [ CONDITION ]
http-response del-header HEADER [ CONDITION ]
http-response deny [ deny_status|status STATUS ] [ CONDITION ]
http-response return status STATUS content-type MIME string|lf-string FORMAT [ CONDITION ]
http-response set-status STATUS [ reason TEXT ] [ CONDITION ]
http-response SET-VAR EXPRESSION [ CONDITION ]
http-response UNSET-VAR [ CONDITION ]
http-reuse never|safe|aggressive
max-keep-alive-queue NUMBER
maxconn NUMBER
monitor fail CONDITION
monitor-uri PATH
option FLAG
no option SWITCH
option forwardfor { except NETWORK / header HEADER / if-none }
option httpchk [ METHOD ] [ PATH ] [ HTTP-VERSION ]
option ldap-check|redis-check|ssl-hello-chk|tcp-check
option mysql-check [ user TOKEN ]
option pgsql-check user TOKEN
option redispatch [ SMALL ]
option smtpchk [ HELO|EHLO HOST ]
rate-limit sessions NUMBER
redirect location|prefix|scheme FORMAT { code REDIRECT / drop-query / append-slash } [ CONDITION ]
retries SMALL
retry-on EVENT...
stick match|on|store-request EXPRESSION [ CONDITION ]
stick-table type ip|ipv6|integer size ENTRIES { expire TIME / nopurge / store COUNTERS }
stick-table type string [ len LENGTH ] size ENTRIES { expire TIME / nopurge / store COUNTERS }
tcp-check expect [ ! ] string TEXT
tcp-check send TEXT
tcp-request connection|content|session accept|reject [ CONDITION ]
tcp-request connection|content|session track-sc0|track-sc1|track-sc2 EXPRESSION [ CONDITION ]
tcp-request content SET-VAR EXPRESSION [ CONDITION ]
tcp-request inspect-delay TIME
tcp-response content accept|reject|close [ CONDITION ]
tcp-response inspect-delay TIME
timeout check|client|client-fin|connect|http-keep-alive|http-request TIME
timeout queue|server|server-fin|tarpit|tunnel TIME
"""
"""Lines of `extra_config`.

Words in capitals denote kinds of arguments, `[ ]` optional items, `{ / }` options in any order, and
`...` one or more of the same.
"""

SERVER = """
{ backup / check / check-send-proxy / disabled / downinter INTERVAL / error-limit SMALL /
  fall SMALL / fastinter INTERVAL / inter INTERVAL / max-reuse NUMBER / maxconn NUMBER /
  maxqueue NUMBER / minconn NUMBER / no-check / non-stick / observe layer4|layer7 /
  on-error fastinter|fail-check|sudden-death|mark-down / on-marked-down shutdown-sessions /
  on-marked-up shutdown-backup-sessions / pool-low-conn NUMBER / pool-max-conn NUMBER /
  pool-purge-delay TIME / proto h1|h2 / rise SMALL / send-proxy / send-proxy-v2 /
  slowstart TIME / tcp-ut TIME / weight WEIGHT / ws auto|h1|h2 }
"""
"""Words of `server_options`, and after `default-server`."""

BIND = """
{ alpn ALPN / backlog NUMBER / defer-accept / maxconn NUMBER / name TOKEN / proto h1|h2 /
  tcp-ut TIME / tfo }
"""
"""Words of `bind_options`."""

FLAGS = frozenset(
    """
    abortonclose allbackups checkcache clitcpka contstats dontlognull
    http-ignore-probes http-keep-alive http-no-delay http-server-close httpclose httplog
    idle-close-on-response independent-streams log-health-checks log-separate-errors logasap
    nolinger prefer-last-server redispatch srvtcpka
    tcp-smart-accept tcp-smart-connect tcpka tcplog
    """.split()
)
"""Options without arguments."""
_NOT_NEGATED = frozenset(("httplog", "tcplog", "tcpka"))

_MILLISECONDS = {"us": 0.001, "ms": 1, "": 1, "s": 1e3, "m": 60e3, "h": 3600e3, "d": 86400e3}
_TIME = re.compile(r"([0-9]{1,9})(us|ms|s|m|h|d)?")
_LONGEST = 86400e3
_LEAST_INTERVAL = 500
"""Milliseconds between checks of a server."""


def _milliseconds(text: str) -> float:
    match = _TIME.fullmatch(text)
    return int(match[1]) * _MILLISECONDS[match[2] or ""] if match else -1.0


def _pattern(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


def _variable_action(prefix: str) -> Callable[[str], bool]:
    return lambda text: (
        text.startswith(f"{prefix}(")
        and text.endswith(")")
        and is_variable(text[len(prefix) + 1 : -1])
    )


def _is_entries(text: str) -> bool:
    match = re.fullmatch(r"([1-9][0-9]{0,4})(k?)", text)
    return match is not None and int(match[1]) * (1024 if match[2] else 1) <= MAX_ENTRIES


_COUNTER = (
    "(?:gpc0|gpt0|conn_cnt|conn_cur|sess_cnt|http_req_cnt|http_err_cnt|bytes_in_cnt|bytes_out_cnt|"
    r"(?:gpc0|conn|sess|http_req|http_err|bytes_in|bytes_out)_rate\([0-9]{1,4}[smh]\))"
)

KINDS: dict[str, tuple[Callable[[str], bool], str]] = {
    "ACL": (_pattern("[A-Za-z0-9_.:-]{1,64}"), "is_api"),
    "ALPN": (
        _pattern(r"(?:h2|http/1\.1|http/1\.0)(?:,(?:h2|http/1\.1|http/1\.0))*"),
        "h2,http/1.1",
    ),
    "COUNTERS": (_pattern(f"{_COUNTER}(?:,{_COUNTER})*"), "gpc0,http_req_rate(10s)"),
    "ENTRIES": (_is_entries, "10k"),
    "EVENT": (
        _pattern(
            "none|conn-failure|empty-response|junk-response|response-timeout|0rtt-rejected|404|408|"
            "425|500|501|502|503|504|all-retryable-errors"
        ),
        "conn-failure",
    ),
    "EXPRESSION": (is_expression, "src,ipmask(24)"),
    "FLAG": (FLAGS.__contains__, "httplog"),
    "FORMAT": (is_format, "https://%[src]/a%%"),
    "HEADER": (_pattern("[A-Za-z0-9_-]{1,64}"), "X-Team"),
    "HOST": (_pattern("[A-Za-z0-9.-]{1,253}"), "a.example"),
    "HTTP-VERSION": (_pattern(r"HTTP/1\.[01]"), "HTTP/1.1"),
    "INTERVAL": (lambda text: _LEAST_INTERVAL <= _milliseconds(text) <= _LONGEST, "500ms"),
    "LENGTH": (_pattern("[1-9]|[1-5][0-9]|6[0-4]"), "64"),
    "METHOD": (_pattern("[A-Z]{3,10}"), "GET"),
    "MIME": (_pattern(r"[a-z]+/[a-z0-9.+-]{1,64}"), "text/plain"),
    "NETWORK": (_pattern(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?:/[0-9]{1,2})?"), "127.0.0.0/8"),
    "NUMBER": (_pattern("[0-9]{1,6}"), "100"),
    "PATH": (_pattern(r"/[!-~]{0,500}"), "/healthz"),
    "REDIRECT": (_pattern("30[12378]"), "301"),
    "SET-VAR": (_variable_action("set-var"), "set-var(txn.a)"),
    "SET-VAR-FMT": (_variable_action("set-var-fmt"), "set-var-fmt(txn.a)"),
    "SMALL": (_pattern("[0-9]{1,2}"), "3"),
    "STATUS": (_pattern("[1-5][0-9]{2}"), "403"),
    "STATUSES": (
        _pattern("[1-5][0-9]{2}(?:-[1-5][0-9]{2})?(?:,[1-5][0-9]{2}(?:-[1-5][0-9]{2})?)*"),
        "200-299",
    ),
    "SWITCH": ((FLAGS - _NOT_NEGATED).__contains__, "dontlognull"),
    "TEXT": (_pattern(r"[ -~]{1,500}"), "up"),
    "TIME": (lambda text: 1 <= _milliseconds(text) <= _LONGEST, "5s"),
    "TOKEN": (_pattern("[A-Za-z0-9_.-]{1,64}"), "team"),
    "UNSET-VAR": (_variable_action("unset-var"), "unset-var(txn.a)"),
    "URL": (_pattern(r"(?:https?:/)?/[!-~]{0,500}"), "https://a.example/"),
    "WEIGHT": (_pattern("[0-9]{1,2}|1[0-9]{2}|2[0-4][0-9]|25[0-6]"), "10"),
}
"""Kind of argument → a predicate for words of that kind, and an example."""


# Grammar


@dataclass(frozen=True, slots=True)
class Literal:
    """One of several literal words."""

    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Argument:
    """A word of a kind, or one or more if repeated; TEST and CONDITION match all that remain."""

    kind: str
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class Optional:
    """Items that may be omitted together."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class AnyOrder:
    """Sequences of items, each any number of times, in any order."""

    alternatives: tuple[tuple[Item, ...], ...]


Item = Literal | Argument | Optional | AnyOrder
"""An item of the grammar."""


def parse_grammar(text: str) -> tuple[Item, ...]:
    """Parse a line of `LINES`, or `SERVER` or `BIND`, into items."""
    items, rest = _items(text.split(), ())
    assert not rest, text
    return items


def _items(words: Sequence[str], ends: tuple[str, ...]) -> tuple[tuple[Item, ...], Sequence[str]]:
    items: list[Item] = []
    while words and words[0] not in ends:
        word, words = words[0], words[1:]
        if word == "[":
            inner, words = _items(words, ("]",))
            items.append(Optional(inner))
            words = words[1:]
        elif word == "{":
            alternatives = []
            while True:
                inner, words = _items(words, ("/", "}"))
                alternatives.append(inner)
                end, words = words[0], words[1:]
                if end == "}":
                    break
            items.append(AnyOrder(tuple(alternatives)))
        elif word == "SERVER":
            items += parse_grammar(SERVER)
        elif word.removesuffix("...") in KINDS or word in ("TEST", "CONDITION"):
            items.append(Argument(word.removesuffix("..."), word.endswith("...")))
        else:
            items.append(Literal(frozenset(word.split("|"))))
    return tuple(items), words


class _Mismatch(Exception):
    """A word that does not match the grammar."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def _match(items: Sequence[Item], words: Sequence[str], at: int) -> int:
    """Match `items` against `words` from `at`; return the index of the end.  Raises _Mismatch."""
    for item in items:
        if isinstance(item, Literal):
            if at == len(words) or words[at] not in item.words:
                raise _Mismatch(at)
            at += 1
        elif isinstance(item, Argument):
            at = _argument(item, words, at)
        elif isinstance(item, Optional):
            at = _optional(item.items, words, at)
        else:
            while at < len(words):
                before = at
                for alternative in item.alternatives:
                    at = _optional(alternative, words, at)
                    if at > before:
                        break
                if at == before:
                    break
    return at


def _optional(items: Sequence[Item], words: Sequence[str], at: int) -> int:
    try:
        return _match(items, words, at)
    except _Mismatch as exc:
        if exc.at == at:
            return at
        raise


def _argument(item: Argument, words: Sequence[str], at: int) -> int:
    if item.kind == "TEST":
        end = test_end(words, at, len(words))
        if end < len(words) or end == at:
            raise _Mismatch(end)
        return end
    if item.kind == "CONDITION":
        if at == len(words) or words[at] not in ("if", "unless"):
            raise _Mismatch(at)
        end = condition_end(words, at + 1)
        if end < len(words) or end == at + 1:
            raise _Mismatch(end)
        return end
    is_fitting, _ = KINDS[item.kind]
    if at == len(words) or not is_fitting(words[at]):
        raise _Mismatch(at)
    at += 1
    while item.is_repeated and at < len(words) and is_fitting(words[at]):
        at += 1
    return at


@cache
def _lines() -> dict[str, tuple[tuple[Item, ...], ...]]:
    """Return the grammar of lines, by first word."""
    found: dict[str, tuple[tuple[Item, ...], ...]] = {}
    for line in LINES.strip().split("\n"):
        items = parse_grammar(line)
        assert isinstance(items[0], Literal)
        for word in items[0].words:
            found[word] = (*found.get(word, ()), items)
    return found


@cache
def _options(grammar: str) -> tuple[Item, ...]:
    return parse_grammar(grammar)


def refused_in_line(line: str) -> str | None:
    """Return the part of an `extra_config` line that is not harmless; None if all of it is."""
    return _refused(line, lambda words: _lines().get(words[0], ()))


def refused_in_server_options(text: str) -> str | None:
    """Return the part of `server_options` that is not harmless; None if all of it is."""
    return _refused(text, lambda _: (_options(SERVER),))


def refused_in_bind_options(text: str) -> str | None:
    """Return the part of `bind_options` that is not harmless; None if all of it is."""
    return _refused(text, lambda _: (_options(BIND),))


def _refused(
    text: str, grammars: Callable[[Sequence[str]], Sequence[Sequence[Item]]]
) -> str | None:
    """Return the first word that matches none of the grammars, as written, or another reason.

    Return None if the text is harmless.
    """
    for letter in text:
        # Escapes, variables and comments would only obscure the meaning.
        if letter in "\\$#" or not (letter == "\t" or " " <= letter <= "~"):
            return letter if letter.isprintable() else "a control character"
    if len(text) > MAX_LENGTH:
        return f"more than {MAX_LENGTH} characters"
    try:
        found = split(text).words
    except NotWords as exc:
        return str(exc)
    words = [word.text for word in found]
    if any(_RESERVED in word for word in words):
        return _RESERVED
    if not words:
        return None
    furthest = 0
    for grammar in grammars(words):
        try:
            furthest = max(furthest, _match(grammar, words, 0))
        except _Mismatch as exc:
            furthest = max(furthest, exc.at)
            continue
        if furthest == len(words) and all(words):
            return None
    return found[furthest].source if furthest < len(words) else f"{text} (incomplete)"
