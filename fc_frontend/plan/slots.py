"""How many servers a service gets in HAProxy.

More slots than pods cost a little memory; fewer cost the traffic of the pods after the last slot,
without any word from HAProxy.  Another number needs a reload, so growth goes in doubling steps.
"""

from __future__ import annotations

DEFAULT = 10
"""Slots of a service of which nothing is known yet."""
MOST = 20480
"""Slots of one service at most: each with checks reserves a file descriptor in HAProxy."""


def needed(pods: int) -> int:
    """The least number of slots for `pods`: a quarter more, and two at least."""
    return pods + max(2, -(-pods // 4))


def short(pods: int, slots: int) -> int:
    """Pods that have no slot, and therefore no traffic."""
    return max(0, pods - slots)


def scarce(pods: int, slots: int) -> bool:
    """True if `slots` leave less room than `needed` asks for: an alarm before traffic is lost."""
    return pods > 0 and needed(pods) > slots


def automatic(pods: int, have: int = 0, most: int = MOST) -> int:
    """The number of slots for `slots: auto`: of the series 10, 20, 40… the first that is enough.

    Never below `have`, the number that the running configuration has, so that pods that come and
    go cause no reload; give 0 where a reload happens anyway.  At most `most`.
    """
    slots = DEFAULT
    while slots < needed(pods):
        slots *= 2
    return min(max(slots, have), most)


def remedy(pods: int, most: int = MOST) -> str:
    """What gives a service enough slots for `pods`, if it may have at most `most`."""
    if needed(pods) > most:
        return f"move the service to a trusted file: in this one it gets at most {most} slots"
    return f"use slots: auto, or {automatic(pods)}"
