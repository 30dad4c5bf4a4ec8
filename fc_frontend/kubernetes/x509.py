"""When a certificate ends: all that is read of one (RFC 5280, section 4.1; DER, X.690)."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime

_PEM = re.compile(
    rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----", re.ASCII
)
_VERSION = 0xA0
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18
_PIVOT = 50
"""UTCTime has years of two digits: those from here on are of the 20th century."""


def not_after(pem: bytes) -> float | None:
    """When the first certificate in `pem` ends, in Unix time; None if that cannot be read."""
    match = _PEM.search(pem)
    if match is None:
        return None
    try:
        (_, certificate), *_ = _elements(base64.b64decode(match[1]))
        (_, signed), *_ = _elements(certificate)
        fields = [content for tag, content in _elements(signed) if tag != _VERSION]
        # Serial number, signature, issuer, validity.
        _, (tag, until) = _elements(fields[3])
        return _time(tag, until.decode("ascii"))
    except (ValueError, IndexError):
        return None


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element.  Raises `ValueError` or `IndexError`."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size])
            at += size
        if at + length > len(data):
            raise ValueError
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, text: str) -> float:
    if tag == _UTC_TIME:
        century = "19" if int(text[:2]) >= _PIVOT else "20"
        text = century + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
