"""What HAProxy's messages quote is shown if it was declared, and hidden otherwise."""

from __future__ import annotations

import pytest

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
