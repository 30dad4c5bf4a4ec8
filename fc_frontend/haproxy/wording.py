"""HAProxy's messages without the content of files that they quote.

HAProxy quotes any word that it cannot parse.  That word can come from a list, a map or a
file that a link in services.d leads to, and messages end up in logs and on pages.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from fc_frontend.syntax.keywords import PREPROCESSOR, SECTIONS

HIDDEN = "…"
_QUOTED = re.compile(r"\b[A-Za-z]+n't\b|'([^']*)'|`([^`']*)[`']|\"([^\"]*)\"|<([^<>]*)>")
_NAMES_A_SECTION = re.compile(r"' in section '[^']*' ?:\s*$")
_TOKEN = re.compile(r"\S+")
_PUNCTUATION = "'`\"<>()[]{},.;:"
_HARMLESS = re.compile(r"[A-Za-z-]+|[0-9]+|\[?haproxy\.cfg:\d+\]?")
_KEYWORDS = """
acl backlog balance bind capture compression cookie declare default-server default_backend
description disabled dispatch email-alert enabled errorfile errorfiles errorloc errorloc302
errorloc303 external-check filter force-persist fullconn group hash-balance-factor hash-type
http-after-response http-check http-error http-request http-response http-reuse
http-send-name-header id ignore-persist load-server-state-from-file log log-format log-format-sd
log-tag max-keep-alive-queue maxconn mode monitor monitor-uri option persist rate-limit redirect
retries retry-on server server-state-file-name server-template source stats stick stick-table
tcp-check tcp-request tcp-response timeout transparent unique-id-format unique-id-header
use-fcgi-app use-server use_backend user
""".split()
"""Keywords of proxies and of lists of users (manual 4.1 and 3.4)."""
_ALGORITHMS = """
first hash hdr(name) leastconn log-hash log-sticky random rdp-cookie rdp-cookie(name) roundrobin
static-rr uri url_param
""".split()
"""Algorithms of `balance` (manual 4.2), which HAProxy lists if another one is declared."""
_KNOWN = frozenset((*SECTIONS, *PREPROCESSOR, *_KEYWORDS, *_ALGORITHMS, "haproxy.cfg", ""))
_SUGGESTED = "did you mean "
"""Text before one of HAProxy's own keywords."""


def without_content(text: str, visible: Collection[str] = (), hidden: Collection[str] = ()) -> str:
    """Return the first line of a message, in which only `visible` words are quoted.

    Further lines repeat the configuration, as after "unmatched quote at position 23:".  Only if the
    first line ends with a section ("'bind :443' in section 'listen' :", if a certificate cannot be
    loaded) does the second line contain the reason.

    Words that HAProxy does not quote are kept, unless they are `hidden` and more than letters.
    """
    line, *more = text.split("\n")
    if more and _NAMES_A_SECTION.search(line):
        line = f"{line.rstrip()} {more[0].strip()}"
    known = _KNOWN.union(visible)

    def shown(match: re.Match[str]) -> str:
        word = next((group for group in match.groups() if group is not None), None)
        if word is None:  # "couldn't"
            return match[0]
        is_suggested = line.endswith(_SUGGESTED, 0, match.start())
        if is_suggested or word in visible or known.issuperset(word.split()):
            return match[0]
        return f"{match[0][0]}{HIDDEN}{match[0][-1]}"

    line = _QUOTED.sub(shown, line)
    if not hidden:
        return line

    def kept(match: re.Match[str]) -> str:
        word = match[0].strip(_PUNCTUATION)
        if word in visible or word not in hidden or _HARMLESS.fullmatch(word):
            return match[0]
        return match[0].replace(word, HIDDEN)

    return _TOKEN.sub(kept, line)


def without_lines(text: str) -> str:
    """Return a message without rendered line numbers, which change with every edit above."""
    text = re.sub(r"^parsing \[haproxy\.cfg:\d+\]\s*:\s*", "", text)
    return re.sub(r"\b(haproxy\.cfg):\d+", r"\1", text)
