"""The options of a `server` or `bind`, with their arguments (manual 5.1 and 5.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fc_frontend.syntax.words import Word

_WITHOUT_ARGUMENT = frozenset(
    """
    accept-proxy agent-check allow-0rtt backup check check-send-proxy check-ssl check-via-socks4
    defer-accept disabled enabled force-sslv3 force-tlsv10 force-tlsv11 force-tlsv12 force-tlsv13
    generate-certificates no-agent-check no-backup no-ca-names no-check no-check-send-proxy
    no-check-ssl no-send-proxy no-send-proxy-v2 no-send-proxy-v2-ssl no-send-proxy-v2-ssl-cn
    no-ssl no-ssl-reuse no-sslv3 no-strict-sni no-tfo no-tls-tickets no-tlsv10 no-tlsv11 no-tlsv12
    no-tlsv13 no-verifyhost non-stick prefer-client-ciphers send-proxy send-proxy-v2
    send-proxy-v2-ssl send-proxy-v2-ssl-cn ssl ssl-reuse stick strict-sni tfo tls-tickets
    transparent v4v6 v6only
    """.split()
)


@dataclass(frozen=True, slots=True)
class Option:
    """A keyword of a server or bind with its argument, if it takes one."""

    keyword: str
    words: tuple[Word, ...]

    @property
    def argument(self) -> str:
        """The argument's text; empty if there is none."""
        return self.words[1].text if len(self.words) > 1 else ""

    @property
    def source(self) -> str:
        """The original text, without whitespace that a declaration would lose."""
        return " ".join(word.source for word in self.words)


def options_in(words: Sequence[Word]) -> list[Option]:
    """Return the options in `words`."""
    found: list[Option] = []
    at = 0
    while at < len(words):
        taken = 1 if words[at].text in _WITHOUT_ARGUMENT else 2
        found.append(Option(words[at].text, tuple(words[at : at + taken])))
        at += taken
    return found


def effective(options: Iterable[Option], keyword: str) -> Option | None:
    """Return the last option with this keyword, which takes effect; None if there is none."""
    last = None
    for option in options:
        if option.keyword == keyword:
            last = option
    return last
