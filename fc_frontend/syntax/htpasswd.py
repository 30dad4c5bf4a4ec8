"""Parse files of users and groups in the format of Apache and nginx, for HAProxy's userlists.

HAProxy checks passwords with crypt(3).  It silently accepts hashes that crypt(3) does not support,
with which nobody can log in.  It computes each hash once when it reads its configuration, and once
for each request with the name of a user, while all other requests of the thread wait.  Therefore,
slow hashes are refused (contrib/operations.rst, "Passwords", lists their costs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_LOGINS = 1000
"""Per file.  HAProxy searches userlists linearly."""
MAX_GROUPS = 100
MAX_COST = 5.0
"""Seconds that HAProxy may spend on all hashes of one file at each start and each check."""
_NAME = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
_SALT = r"[./A-Za-z0-9]"
_SHA = re.compile(
    rf"\$(?:5\$(?:rounds=(\d+)\$)?{_SALT}{{1,16}}\${_SALT}{{43}}|"
    rf"6\$(?:rounds=(\d+)\$)?{_SALT}{{1,16}}\${_SALT}{{86}})"
)
_BCRYPT = re.compile(rf"\$2[aby]\$(\d\d)\${_SALT}{{53}}")
_YESCRYPT = re.compile(rf"\$y\$j9T\${_SALT}{{1,86}}\${_SALT}{{43}}")
_MAX_BCRYPT = 12
_MAX_ROUNDS = 100_000
_BCRYPT_0 = 55e-6
_SHA_ROUND = 0.25e-6
_YESCRYPT_SECONDS = 0.02
"""Seconds, measured."""
_FIX = "make the entry anew with `htpasswd -B FILE USER`"
_OTHERS = (
    ("$apr1$", "an MD5 hash of Apache, which HAProxy cannot check"),
    ("{", "a hash in braces, which HAProxy cannot check"),
    ("$1$", "an MD5 hash, which is quickly broken"),
)


@dataclass(frozen=True, slots=True)
class Login:
    """A user, with the password hash and the groups of the user."""

    user: str
    hash: str = field(repr=False)
    groups: tuple[str, ...] = ()


class Flaw(NamedTuple):
    """A flaw in a line, counted from 1.  The message never quotes a hash."""

    line: int
    message: str
    remedy: str


def read_logins(text: str) -> tuple[tuple[Login, ...], tuple[Flaw, ...]]:
    """Return the users in a file of htpasswd(1), and the flaws of the file."""
    found: dict[str, Login] = {}
    flaws: list[Flaw] = []
    cost = 0.0
    for number, line in _lines(text):
        user, colon, rest = line.partition(":")
        hashed = rest.partition(":")[0]
        if not colon or not _NAME.fullmatch(user):
            flaws.append(
                Flaw(
                    number, "has no name of a user", "write USER:HASH; names have letters and ._@+-"
                )
            )
            continue
        if user in found:
            flaws.append(Flaw(number, f"names user {user} again", "keep one of the two"))
            continue
        seconds = _seconds(hashed)
        if isinstance(seconds, str):
            flaws.append(Flaw(number, f"has for user {user} {seconds}", _FIX))
            continue
        cost += seconds
        found[user] = Login(user, hashed)
    if len(found) > MAX_LOGINS:
        flaws.append(Flaw(1, f"has more than {MAX_LOGINS} users", "use fewer, or an OIDC proxy"))
    elif cost > MAX_COST:
        flaws.append(
            Flaw(
                1,
                f"takes HAProxy about {cost:.0f} s at each start, and may take {MAX_COST:g} s",
                "use hashes that cost less: `htpasswd -B -C 5`",
            )
        )
    if not found and not flaws:
        flaws.append(Flaw(1, "has no users", "add one with `htpasswd -B FILE USER`"))
    return tuple(found.values()), tuple(flaws)


def read_groups(text: str) -> tuple[Mapping[str, tuple[str, ...]], tuple[Flaw, ...]]:
    """Return the users of each group in a file with lines `GROUP: USER…`, and its flaws."""
    found: dict[str, tuple[str, ...]] = {}
    flaws: list[Flaw] = []
    for number, line in _lines(text):
        group, colon, members = line.partition(":")
        users = members.split()
        if not colon or not all(_NAME.fullmatch(name) for name in (group, *users)):
            flaws.append(Flaw(number, "is not a group", "write GROUP: USER USER"))
        else:
            found[group] = tuple(dict.fromkeys((*found.get(group, ()), *users)))
    if len(found) > MAX_GROUPS:
        flaws.append(Flaw(1, f"has more than {MAX_GROUPS} groups", "use fewer groups"))
    return found, tuple(flaws)


def with_groups(
    logins: tuple[Login, ...], groups: Mapping[str, tuple[str, ...]]
) -> tuple[Login, ...]:
    """Return the users with their groups.

    Members without a password cannot log in, and are omitted.
    """
    return tuple(
        Login(
            login.user,
            login.hash,
            tuple(sorted(group for group, members in groups.items() if login.user in members)),
        )
        for login in logins
    )


def _lines(text: str) -> list[tuple[int, str]]:
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]


def _seconds(hashed: str) -> float | str:
    """Return the approximate seconds for one check of a hash, or why the hash is refused."""
    if match := _BCRYPT.fullmatch(hashed):
        if int(match[1]) > _MAX_BCRYPT:
            return f"a bcrypt hash with cost {match[1]}, of at most {_MAX_BCRYPT}"
        return float(_BCRYPT_0 * 2 ** int(match[1]))
    if match := _SHA.fullmatch(hashed):
        rounds = match[1] or match[2] or "5000"
        if len(rounds) > 9 or int(rounds) > _MAX_ROUNDS:
            return f"a hash with more than {_MAX_ROUNDS} rounds"
        return max(int(rounds), 1000) * _SHA_ROUND
    if _YESCRYPT.fullmatch(hashed):
        return _YESCRYPT_SECONDS
    for start, what in _OTHERS:
        if hashed.startswith(start):
            return what
    return "a password or a hash that is not safe or not known"
