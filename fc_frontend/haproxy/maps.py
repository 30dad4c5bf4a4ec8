"""The maps and lists of frontends: files beside haproxy.cfg, and their content in the worker.

    haproxy.cfg ─► maps_in ─► files, before haproxy.cfg itself
                        └───► follow: differences to the worker ─► runtime API ─► read back

Maps of routes and lists of allowed addresses are derived from the text of haproxy.cfg alone.  A
worker reads the files when it starts.  If the running text differs only in maps and lists, the
worker is updated without a reload.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from fc_frontend import files
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.runtime import TIMEOUT
from fc_frontend.haproxy.socket import ask
from fc_frontend.plan.model import Settings
from fc_frontend.render.config import maps_in
from fc_frontend.syntax.routes import ALLOW_ENDING
from fc_frontend.text import whole_number

MAX_PAYLOAD = 15_000
"""Largest command with payload, in bytes: HAProxy 2.6 silently ignores 16,384 and more."""
MAX_SINGLE = 200
"""Maximum number of changes made to a map one by one; beyond it, the entire map is replaced."""
_WORDS = {"map": 3, "acl": 2}
"""Words in each line of HAProxy's output."""


class MapEntry(NamedTuple):
    """An entry of a map in the worker; `reference` identifies it in commands.

    An entry of a list has no value.
    """

    reference: str
    key: str
    value: str = ""


def write(settings: Settings, data: bytes) -> None:
    """Write the maps that the configuration `data` needs.  Raises `Unavailable`.

    They get the permissions of haproxy.cfg.  Maps of removed frontends are kept: if the reload
    fails, the worker that uses them continues to serve.
    """
    path = settings.haproxy.config_file
    wanted = maps_in(path, data.decode("utf-8", "surrogateescape"))
    if not wanted:
        return
    config = files.read(path)
    files.make_directory(next(iter(wanted)).rpartition("/")[0], mode=0o755)
    for name, text in wanted.items():
        content = text.encode()
        found = files.read(name)
        if found is None or found.data != content:
            files.replace(name, content, attributes=config.attributes if config else None)


def follow(settings: Settings, text: str) -> bool:
    """Update the maps of the worker, which runs `text` except for its routes.

    Returns whether any map changed.  Reads each map back; raises `Unavailable` if the worker does
    not have the new content.
    """
    socket, is_changed = settings.haproxy.runtime_socket, False
    for path, content in maps_in(settings.haproxy.config_file, text).items():
        wanted = parse_map(content)
        have = _entries(socket, path)
        if _is_same(have, wanted):
            continue
        is_changed = True
        _change(socket, path, have, wanted)
        if not _is_same(_entries(socket, path), wanted):
            raise Unavailable.of(
                f"HAProxy does not have what is in {path} after it was changed",
                "see whether something else changes its maps; it is tried again",
            )
    return is_changed


def parse_map(content: str) -> dict[str, str]:
    """Return the entries of a map file, by key."""
    found: dict[str, str] = {}
    for line in content.splitlines():
        key, _, value = line.partition(" ")
        found[key] = value
    return found


def _is_same(have: list[MapEntry], wanted: Mapping[str, str]) -> bool:
    return len(have) == len(wanted) and {each.key: each.value for each in have} == wanted


def _entries(socket: str, path: str) -> list[MapEntry]:
    """Return the worker's entries of a map.  Raises `Unavailable`."""
    found = []
    kind = _kind(path)
    for line in ask(socket, f"show {kind} {path}", TIMEOUT).splitlines():
        words = line.split(" ")
        if len(words) == _WORDS[kind] and words[0].startswith("0x"):
            found.append(MapEntry(*words))
        elif line:
            raise Unavailable.of(
                f"HAProxy does not show its {kind} {path}: {line[:80]!r}", "reload HAProxy"
            )
    return found


def _change(socket: str, path: str, have: list[MapEntry], wanted: Mapping[str, str]) -> None:
    """Change the worker's map to `wanted`.  No key is missing in between."""
    known = {each.key: each for each in have}
    added = [f"{key} {value}" for key, value in wanted.items() if key not in known]
    changed = [each for each in have if each.key in wanted and each.value != wanted[each.key]]
    removed = [each for each in have if each.key not in wanted]
    is_doubled = len(known) < len(have)
    if is_doubled or len(added) + len(changed) + len(removed) > MAX_SINGLE:
        _exchange(socket, path, wanted)
        return
    _add(socket, path, added)
    for each in changed:
        _do(socket, f"set map {path} #{each.reference} {wanted[each.key]}")
    for each in removed:
        _do(socket, f"del {_kind(path)} {path} #{each.reference}")


def _add(socket: str, path: str, lines: Iterable[str], version: str = "") -> None:
    """Add lines, optionally to a prepared `version` such as `@1 `."""
    if _kind(path) == "map":
        for payload in _payloads(lines):
            _do(socket, f"add map {version}{path}", payload)
        return
    # The command for lists accepts no payload.
    for line in lines:
        _do(socket, f"add acl {version}{path} {line.strip()}")


def _exchange(socket: str, path: str, wanted: Mapping[str, str]) -> None:
    """Fill a new version of a map, and commit it in one step."""
    kind = _kind(path)
    said = ask(socket, f"prepare {kind} {path}", TIMEOUT).strip()
    version = whole_number(said.rpartition(" ")[2])
    if version is None:
        raise _unexpected(f"prepare {kind} {path}", said)
    _add(socket, path, (f"{key} {value}" for key, value in wanted.items()), f"@{version} ")
    _do(socket, f"commit {kind} @{version} {path}")


def _kind(path: str) -> str:
    """Return HAProxy's term for the file: `map`, or `acl` for a list of addresses."""
    return "acl" if path.endswith(ALLOW_ENDING) else "map"


def _payloads(lines: Iterable[str]) -> Iterator[str]:
    """Yield `lines`, joined into payloads that fit into a command."""
    batch: list[str] = []
    size = 0
    for line in lines:
        length = len(line.encode()) + 1
        if batch and size + length > MAX_PAYLOAD:
            yield "\n".join(batch)
            batch, size = [], 0
        batch.append(line)
        size += length
    if batch:
        yield "\n".join(batch)


def _do(socket: str, command: str, payload: str = "") -> None:
    said = ask(socket, command, TIMEOUT, payload=payload).strip()
    if said:
        raise _unexpected(command, said)


def _unexpected(command: str, said: str) -> Unavailable:
    return Unavailable.of(f"HAProxy answers {said[:80]!r} to `{command}`", "it is tried again")
