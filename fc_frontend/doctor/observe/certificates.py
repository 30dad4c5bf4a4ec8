"""Find out who may read the certificates of frontends."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from fc_frontend.config.trusted_users import daemon_user
from fc_frontend.doctor.judge.certificates import CertificateAccess
from fc_frontend.errors import Problem
from fc_frontend.haproxy.certificates.bring import Keeper
from fc_frontend.haproxy.certificates.originals import Original, find
from fc_frontend.plan.model import FrontendSpec, Settings


def observe_certificates(
    settings: Settings, frontends: Iterable[FrontendSpec]
) -> tuple[tuple[CertificateAccess, ...], tuple[Problem, ...], str]:
    """Return the files of certificates, their problems, and the daemon's user."""
    with_tls = [each for each in frontends if each.tls is not None]
    number = daemon_user(settings.state_directory)
    name, groups = _account(number)
    keeper = Keeper()
    originals: list[Original] = []
    for frontend in with_tls:
        assert frontend.tls is not None
        originals += find(frontend.name, frontend.tls).originals
    files = tuple(
        CertificateAccess(path, _may_read(path, number, groups), keeper.is_copied(settings, each))
        for each in dict.fromkeys(originals)
        for path in filter(None, (each.chain, each.key))
    )
    return files, keeper.look(settings, with_tls).problems, name


def _account(number: int) -> tuple[str, frozenset[int]]:
    """Return name and groups of a user."""
    try:
        found = pwd.getpwuid(number)
    except KeyError:
        return str(number), frozenset()
    return found.pw_name, frozenset(os.getgrouplist(found.pw_name, found.pw_gid))


def _may_read(path: str, user: int, groups: frozenset[int]) -> bool:
    """Return whether permissions let a user read a file; symbolic links are followed."""
    if user == 0:
        return True

    def has(place: Path, bit: int) -> bool:
        status = place.stat()
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid == user:
            return bool(mode & bit << 6)
        return bool(mode & (bit << 3 if status.st_gid in groups else bit))

    try:
        # The directories on the path to a link, and on the path to its target.
        ways = {*Path(path).parents, *(real := Path(path).resolve()).parents}
        return all(has(each, 1) for each in ways) and has(real, 4)
    except OSError:
        return False
