"""Watch the services that a reload changed, and revert one that loses all of its servers.

`haproxy -c` cannot detect that nothing listens on a port.  A watched service keeps its former
forms, to which it can be reverted.  A revert requires evidence: after an error in a file, the
service keeps the form that HAProxy runs (see `Declared`).  Pure state, without a clock of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from fc_frontend.config.running import RawDeclaration
from fc_frontend.haproxy.runtime import ServerState

WATCH_FOR = 15.0
"""Seconds after a reload in which a changed service must not lose its last server.

Three failed checks take 12 s for a pod that does not answer, and 3 s for one that refuses.
"""
MAX_LOOKS_DOWN = 2
"""Looks in a row without a server up after which a service is reverted."""
MAX_FORMER_FORMS = 8
"""Former forms kept per service.  The oldest, which is proven, is always among them."""

Former = Mapping[str, tuple[RawDeclaration, ...]]
"""Service name → the forms it had before, oldest first."""


@dataclass(frozen=True, slots=True)
class _Watched:
    former: tuple[RawDeclaration, ...]
    until: float
    looks_down: int = 0
    awaits_reload: bool = False
    """True if it was reverted and HAProxy still runs the withdrawn form."""


class Guard:
    """The watched services and the forms to which they can be reverted."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    @property
    def former(self) -> dict[str, tuple[RawDeclaration, ...]]:
        """The former forms of each watched service, oldest first."""
        return {name: watched.former for name, watched in self._watched.items()}

    def clear(self) -> None:
        """Stop watching."""
        self._watched.clear()

    def resume(self, former: Former, now: float) -> None:
        """Watch what an ended daemon was watching, for the full time again."""
        self._watched = {name: _Watched(forms, now + WATCH_FOR) for name, forms in former.items()}

    def watch(
        self,
        before: Mapping[str, RawDeclaration],
        after: Mapping[str, RawDeclaration],
        had_up: Collection[str],
        now: float,
    ) -> None:
        """Note a reload from the forms `before` to the forms `after`.

        A changed service is watched if it had a server up, or was watched already.
        """
        until = now + WATCH_FOR
        self._watched = {
            name: _Watched(forms, until)
            if (watched := self._watched.get(name)) is None
            or watched.awaits_reload
            or _is_changed(name, before, after)
            else watched
            for name, forms in former_after(self.former, before, after, had_up).items()
        }

    def look(
        self, up: Collection[str], with_pods: Collection[str], now: float
    ) -> dict[str, RawDeclaration]:
        """Return the services that lost all their servers, with the form to revert each to.

        `up` are the proxies with a server up, `with_pods` the services that DNS lists pods for.
        Such a service is reverted by one form, and remains watched while an older form is left.
        """
        lost: dict[str, RawDeclaration] = {}
        still: dict[str, _Watched] = {}
        for name, watched in self._watched.items():
            is_down = name not in up and name in with_pods
            looks_down = watched.looks_down + 1 if is_down else 0
            if watched.awaits_reload:
                still[name] = watched
            elif looks_down >= MAX_LOOKS_DOWN:
                *older, lost[name] = watched.former
                if older:
                    still[name] = _Watched(tuple(older), watched.until, awaits_reload=True)
            elif now < watched.until:
                still[name] = replace(watched, looks_down=looks_down)
        self._watched = still
        return lost


@dataclass(frozen=True, slots=True)
class Revert:
    """A service to be reverted to `form`, with the evidence."""

    service: str
    form: RawDeclaration
    evidence: str


def reverts(
    lost: Mapping[str, RawDeclaration],
    running: Collection[str],
    servers: Iterable[ServerState],
) -> tuple[Revert, ...]:
    """Return the services to revert of those that `lost` all their servers, with the evidence.

    Only services that are `running` can be reverted.  `servers` are those of HAProxy.
    """
    down = Counter(server.proxy for server in servers if server.address)
    found = []
    for name, form in lost.items():
        if name in running:
            count = down[name]
            which = "its only server failed its"
            if count != 1:
                which = f"all of its {count} servers failed their"
            found.append(Revert(name, form, f"{which} checks after the reload"))
    return tuple(found)


def former_after(
    former: Former,
    before: Mapping[str, RawDeclaration],
    after: Mapping[str, RawDeclaration],
    had_up: Collection[str],
) -> dict[str, tuple[RawDeclaration, ...]]:
    """Return the former forms of the services to watch after a reload.

    A service is never reverted to a form that had no server up.  When a service returns to a former
    form, later forms are dropped.
    """
    found: dict[str, tuple[RawDeclaration, ...]] = {}
    for name, form in after.items():
        forms = former.get(name, ())
        if _is_changed(name, before, after):
            if name in before and name in had_up:
                forms = (*forms[:1], *forms[1:][2 - MAX_FORMER_FORMS :], before[name])
            values = [one.value for one in forms]
            forms = forms[: values.index(form.value)] if form.value in values else forms
        if forms:
            found[name] = forms
    return found


def _is_changed(
    name: str, before: Mapping[str, RawDeclaration], after: Mapping[str, RawDeclaration]
) -> bool:
    form, former = after[name], before.get(name)
    return former is not form and (former is None or former.value != form.value)
