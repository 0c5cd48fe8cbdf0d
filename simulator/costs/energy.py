"""Energy of devices and hosts."""

from __future__ import annotations


def energy_j(idle_w: float, max_w: float, time_s: float, busy_s: float) -> float:
    """Energy over `time_s` of something that is busy for `busy_s` of it.

    Linear between idle and maximum power. An upper bound for memory-bound phases, in which devices draw
    less than their limit.
    """
    return idle_w * time_s + (max_w - idle_w) * min(busy_s, time_s)
