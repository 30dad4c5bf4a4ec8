"""Text that HAProxy's messages quote is shown if it was declared, and hidden otherwise."""

from __future__ import annotations

import pytest

from fc_frontend.haproxy.validate import validate
from fc_frontend.haproxy.wording import without_content


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("unknown keyword 'secret' in 'listen' section", "unknown keyword '…' in 'listen' section"),
        ("error opening file '/etc/e.http'.", "error opening file '/etc/e.http'."),
        ("'bind 127.0.0.1:80' : no file", "'bind 127.0.0.1:80' : no file"),
        ("'bind secret:80' : no file", "'…' : no file"),
        ("Couldn't open '/etc/e.http' and 'secret'", "Couldn't open '/etc/e.http' and '…'"),
        ("it isn't 'secret', it can't", "it isn't '…', it can't"),
        ("pattern file </etc/e.http> <secret>", "pattern file </etc/e.http> <…>"),
        ("only supports 'roundrobin', 'hdr(name)'", "only supports 'roundrobin', 'hdr(name)'"),
    ],
)
def test_only_what_was_declared_is_quoted(message: str, shown: str) -> None:
    assert without_content(message, {"/etc/e.http", "127.0.0.1:80"}) == shown


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        # In every version, the line follows if a word of the configuration cannot be parsed.
        (
            "parsing [haproxy.cfg:7]: unmatched quote at position 23:\n  user a password x'y",
            "parsing [haproxy.cfg:7]: unmatched quote at position 23:",
        ),
        (
            "parsing [haproxy.cfg:7]: forbidden first char in environment variable name at position"
            " 9:\n  setenv A $1secret",
            "parsing [haproxy.cfg:7]: forbidden first char in environment variable name at position"
            " 9:",
        ),
        (
            "parsing [haproxy.cfg:9] : 'bind 127.0.0.1:80' in section 'listen' :\n"
            "unable to load certificate chain from file 'secret'.\nsecret",
            "parsing [haproxy.cfg:9] : '…' in section 'listen' : "
            "unable to load certificate chain from file '…'.",
        ),
    ],
)
def test_a_second_line_is_shown_only_after_a_section(message: str, shown: str) -> None:
    assert without_content(message) == shown


@pytest.mark.parametrize(
    "password", ["it's-secret", '"secret', r"\xsecret", "${9secret}", "${secret"]
)
def test_a_password_that_cannot_be_read_is_never_shown(either_binary: str, password: str) -> None:
    text = (
        f'userlist all\n    user a insecure-password "{password}\n    user b password {password}\n'
    )
    verdict = validate(either_binary, text, timeout=20)
    assert not verdict.accepted
    assert "secret" in verdict.output
    assert verdict.alerts
    for alert in verdict.alerts:
        assert "secret" not in without_content(alert.text)
