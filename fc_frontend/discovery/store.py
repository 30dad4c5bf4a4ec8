"""Store the last good answers on disk, for a restart, and for `check` on a host without DNS.

A file that is missing, damaged or foreign is not an error: it only means that nothing is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import astuple
from ipaddress import ip_address
from typing import Any

from fc_frontend import files
from fc_frontend.plan import slots
from fc_frontend.plan.model import Answer, Endpoint, Freshness, Kind, Standby
from fc_frontend.text import one_line

VERSION = 1
_DNS_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_MOST_BYTES = 16 * 1024 * 1024
_MOST_ENDPOINTS = 65536


def load_answers(path: str) -> dict[str, Answer]:
    """Return the stored answers by their key, all STALE; malformed ones are left out."""
    try:
        content = files.read_own(path, _MOST_BYTES)
        document = json.loads(content) if content is not None else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or document.get("version") != VERSION:
        return {}
    answers = document.get("answers")
    if not isinstance(answers, dict):
        return {}
    loaded: dict[str, Answer] = {}
    for key, entry in answers.items():
        try:
            loaded[key] = _answer(entry)
        except (KeyError, TypeError, ValueError):
            continue
    return loaded


def dump_answers(answers: Mapping[str, Answer]) -> bytes:
    """Return the answers in the format of `load_answers`.

    They are sorted, so that equal answers result in equal bytes.
    """
    return dump_written({key: write_answer(answer) for key, answer in answers.items()})


def write_answer(answer: Answer) -> str:
    """Return one answer in the format of `dump_written`."""
    return _json(
        {
            "kind": answer.kind.value,
            "reason": answer.reason,
            "slots": answer.slots,
            "by_runtime": answer.by_runtime,
            "endpoints": [
                [endpoint.address, endpoint.port, endpoint.name] for endpoint in answer.endpoints
            ],
            **({"is_h2c": True} if answer.is_h2c else {}),
            **({"standby": list(astuple(answer.standby))} if answer.standby else {}),
        }
    )


def dump_written(answers: Mapping[str, str]) -> bytes:
    """Like `dump_answers`, for answers from `write_answer`."""
    members = ",".join(f"{_json(key)}:{text}" for key, text in sorted(answers.items()))
    return f'{{"version":{VERSION},"answers":{{{members}}}}}\n'.encode()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _answer(entry: Any) -> Answer:
    """Return an answer from untrusted values.  Raises KeyError, TypeError or ValueError."""
    count = _number(entry["slots"], 0, slots.MOST)
    reason = entry["reason"]
    if not isinstance(reason, str) or len(entry["endpoints"]) > _MOST_ENDPOINTS:
        raise ValueError
    return Answer(
        kind=Kind(entry["kind"]),
        reason=one_line(reason, 300),
        endpoints=tuple(sorted({_endpoint(*fields) for fields in entry["endpoints"]})),
        freshness=Freshness.STALE,
        slots=count,
        by_runtime=entry.get("by_runtime") is True,
        is_h2c=entry.get("is_h2c") is True,
        standby=_standby(*entry["standby"]) if "standby" in entry else None,
    )


def _standby(name: Any, port: Any, address: Any) -> Standby:
    if not isinstance(name, str) or not _DNS_NAME.fullmatch(name):
        raise ValueError
    if address is not None:
        address = str(ip_address(address))
    return Standby(name, _number(port, 1, 65535), address)


def _endpoint(address: Any, port: Any, name: Any) -> Endpoint:
    if not isinstance(address, str) or "%" in address or not isinstance(name, str):
        raise TypeError
    if not all(letter.isascii() and (letter.isalnum() or letter in "-._") for letter in name):
        raise ValueError
    return Endpoint(str(ip_address(address)), _number(port, 1, 65535), name[:253])


def _number(value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError
    return value
