"""The number of servers that a service has in HAProxy.

More slots than pods cost a little memory; with fewer, the pods beyond the last slot receive no
traffic, and HAProxy reports nothing.  A change of the number needs a reload, so it doubles at each
step.
"""

from __future__ import annotations

DEFAULT = 10
"""The number of slots of a service about which nothing is known yet."""
MOST = 20480
"""The maximum number of slots of a service: each reserves a file descriptor if it has checks."""


def needed(pods: int) -> int:
    """Return the minimum number of slots for `pods`: a quarter more, and at least two."""
    return pods + max(2, -(-pods // 4))


def short(pods: int, slots: int) -> int:
    """Return the number of pods without a slot, and therefore without traffic."""
    return max(0, pods - slots)


def scarce(pods: int, slots: int) -> bool:
    """Return whether `slots` are fewer than `needed`, to warn before traffic is lost."""
    return pods > 0 and needed(pods) > slots


def automatic(pods: int, have: int = 0, most: int = MOST) -> int:
    """Return the number of slots for `slots: auto`: the first of 10, 20, 40… that is enough.

    Never below `have`, the number in the running configuration, so that changing pods
    cause no reload; pass 0 where a reload happens anyway.  At most `most`.
    """
    slots = DEFAULT
    while slots < needed(pods):
        slots *= 2
    return min(max(slots, have), most)


def remedy(pods: int, most: int = MOST) -> str:
    """Return how to give a service enough slots for `pods`, with at most `most`."""
    if needed(pods) > most:
        return f"move the service to a trusted file: in this one it gets at most {most} slots"
    return f"use slots: auto, or {automatic(pods)}"
