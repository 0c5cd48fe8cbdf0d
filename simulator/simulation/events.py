"""Events that simply happen after a delay, and the order of those that happen at one tick."""

from __future__ import annotations

from collections.abc import Callable

from simpy import Environment, Event

Action = Callable[[], None]

NORMAL = 1
"""SimPy's own priority: ends of tasks, clients, the network, cores."""
FLOWS = 2
"""Flows start, so that none shares a link with one that ends at the same tick."""
ACCOUNT = 3
"""Finished steps are accounted for: serving loop i goes at `ACCOUNT + i`, so that loops whose steps end at
one tick take their turns in their own order, whatever carried the steps out."""
HAND_OVER = 2**19
"""Hand-overs of sequences end, and those for which there is room now begin."""
DECIDE = 2**20
"""The next steps are decided, loop i at `DECIDE + i`: they must see all else of their tick."""
SHARES = 2**40
"""Bandwidth is shared out anew, once for all flows that started or ended at this tick, also of steps launched
at it: a speed that nobody has for any time must leave no error of rounding behind."""


def after(env: Environment, delay: int, priority: int = NORMAL, action: Action | None = None) -> Event:
    """An event `delay` ticks from now, which calls `action`; SimPy's Timeout has no priority."""
    event = Event(env)
    event._ok = True
    event._value = None
    if action is not None:
        assert event.callbacks is not None
        event.callbacks.append(lambda _: action())
    env.schedule(event, priority=priority, delay=delay)  # type: ignore[arg-type]
    return event


def happen(event: Event) -> None:
    """Let an event happen now, in the turn of the one that brings it about. Whoever waits for it is told at
    once; SimPy's `succeed` has it wait its turn."""
    event._ok = True
    event._value = None
    callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
    assert callbacks is not None
    for callback in callbacks:
        callback(event)
