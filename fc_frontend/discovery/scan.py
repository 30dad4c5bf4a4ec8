"""Compare plain answers of cluster DNS without parsing them.

A sweep receives the same answers every second, except for TTLs that count down and the order of
records (CoreDNS's `loadbalance`).  The bytes show whether they are equal; all unusual answers are
left to dnspython.  Pure.
"""

from __future__ import annotations

from typing import Literal

RecordType = Literal["A", "AAAA", "SRV"]

ONE = b"\x00\x01"
NONE = b"\x00\x00"
LENGTHS = {"A": 4, "AAAA": 16}
"""The length of an address in bytes."""
_IN = b"\x00\x01"
_OPT = b"\x00\x00\x29"
_POINTER_TO_QUESTION = b"\xc0\x0c"
_NXDOMAIN = 3
_POINTER = 0xC0
_SOA_IN = b"\x00\x06" + _IN

AnswerFingerprint = tuple[bytes, ...] | bytes
"""The comparable content of an answer: its sorted addresses, or the form of a negative answer."""


def fingerprint(wire: bytes, section: int, rdtype: str) -> AnswerFingerprint | None:
    """Return the content of a plain answer; equal fingerprints of a question mean equal content.

    `section` is the length of the question section in bytes.  None for anything unusual
    (an error, CNAME, SRV, more sections, other compression, a cut record), which
    dnspython has to parse.
    """
    if wire[6:8] == NONE:
        return plain_absence(wire, section)
    return plain_records(wire, section, rdtype)


def plain_absence(wire: bytes, section: int) -> bytes | None:
    """Return an answer with only the zone's SOA (RFC 2308, 2.1 and 2.2), without variable parts.

    These are the SOA's TTL and serial.  None for anything else.
    """
    if (
        len(wire) < 12
        or wire[2] & 0xFA != 0x80
        or wire[3] & 0x0F not in (0, _NXDOMAIN)
        or wire[4:10] != ONE + NONE + ONE
    ):
        return None
    suffixes = _suffixes(wire, 12, 12 + section - 4)
    at = _after_name(wire, 12 + section, suffixes)
    if wire[at : at + 4] != _SOA_IN:
        return None
    start, end = at + 10, at + 10 + int.from_bytes(wire[at + 8 : at + 10], "big")
    names_end = _after_name(wire, _after_name(wire, start, suffixes), suffixes)
    if names_end != end - 20 or not _ends_plainly(wire, end):
        return None
    return wire[2 : at + 4] + wire[at + 8 : end - 20] + wire[end - 16 :]


def _suffixes(wire: bytes, start: int, end: int) -> frozenset[int]:
    """Return the offsets of the labels of the question's name, where other names may point."""
    found = []
    while start < end and 0 < wire[start] < _POINTER:
        found.append(start)
        start += 1 + wire[start]
    return frozenset(found)


def _after_name(wire: bytes, at: int, suffixes: frozenset[int]) -> int:
    """Return where the name at `at` ends (RFC 1035, 4.1.4); beyond the message if it is not plain.

    A pointer outside of the question may lead to bytes that are not compared, such as the ID.
    """
    while at < len(wire):
        length = wire[at]
        if not length:
            return at + 1
        if length >= _POINTER:
            target = int.from_bytes(wire[at : at + 2], "big") - (_POINTER << 8)
            return at + 2 if target in suffixes else len(wire)
        at += 1 + length
    return len(wire)


def plain_records(wire: bytes, section: int, rdtype: str) -> tuple[bytes, ...] | None:
    """Return the sorted data of an answer with address records of the question's own name only.

    `section` is the length of the question section in bytes.  None for anything unusual
    (an error, CNAME, SRV, more sections, other compression, a cut record), which
    dnspython has to parse.
    """
    length = LENGTHS.get(rdtype)
    if length is None or not _begins_plainly(wire):
        return None
    count = int.from_bytes(wire[6:8], "big")
    head = _POINTER_TO_QUESTION + (b"\x00\x01" if rdtype == "A" else b"\x00\x1c") + _IN
    size = b"\x00\x04" if rdtype == "A" else b"\x00\x10"
    at, step = 12 + section, 12 + length
    if count == 0 or not _ends_plainly(wire, at + count * step):
        return None
    records = []
    for start in range(at, at + count * step, step):
        if wire[start : start + 6] != head or wire[start + 10 : start + 12] != size:
            return None
        records.append(wire[start + 12 : start + step])
    records.sort()
    return tuple(records)


def _begins_plainly(wire: bytes) -> bool:
    """Return whether this is a whole answer to a query: a question, no error, no authority."""
    return (
        len(wire) >= 12
        and wire[2] & 0xFA == 0x80
        and not wire[3] & 0x0F
        and wire[4:6] == ONE
        and wire[8:10] == NONE
    )


def _ends_plainly(wire: bytes, at: int) -> bool:
    """Return whether only an OPT record without error or options may follow (RFC 6891, 6.1.2)."""
    if wire[10:12] == NONE:
        return len(wire) >= at
    return (
        wire[10:12] == ONE
        and len(wire) >= at + 11
        and wire[at : at + 3] == _OPT
        and wire[at + 5] == 0
        and wire[at + 9 : at + 11] == NONE
    )
