"""Islands: serving loops whose plans may meet on a stream or a link, and the carrying out of their plans.

Loops of different islands know nothing of each other. In an island plans are priced by the recursion R as
long as its certificate holds. At the first launch whose schedule spoils it, a *window* begins: everything
under way goes over to the task engine as it stands, and launches are carried out as events until a launch
finds the engine empty. Up to that launch R's schedule is that of the events, so nothing is done twice and
nothing is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from simpy import Environment, Event

from simulator.graph.shape import StepShape
from simulator.simulation.engine import Launched, TaskEngine
from simulator.simulation.events import NORMAL
from simulator.simulation.flows import FULL
from simulator.simulation.plan_book import Counts, Use
from simulator.simulation.pricing import Durations
from simulator.simulation.recursion import Carried, Schedule, critical_path, schedule
from simulator.simulation.reduced import Reduced


@dataclass(eq=False, slots=True)
class Launch:
    """One step's plan under way, whatever carries it out."""

    loop: int
    step: int
    use: Use
    shapes: tuple[StepShape, ...]
    durations: Durations
    at: int
    outcome: Event
    drained_at: int = 0
    """When all of its tasks have ended, as far as R tells."""
    segment_ends: Sequence[int] = ()
    """By segment of the reduced template, after the launch, where R went no further than that."""
    timed: Schedule | None = None
    running: Launched | None = None
    """In the hands of the task engine."""

    def path(self) -> Counts:
        """Tasks of each class on the path that decided the outcome."""
        if self.segment_ends and self.running is None:
            return self.use.reduced.critical_counts(self.segment_ends)
        timed = self.timed if self.running is None else self.running.so_far()
        assert timed is not None
        chain = critical_path(self.use.priced.template, timed, self.use.reduced.nodes)
        return np.bincount(self.use.priced.class_of_task[chain], minlength=self.use.priced.class_count)


class _OutcomeTimer(Event):
    """The outcome of a plan as R has it; void once the engine has taken the plan over."""

    _ok = True
    _value = None

    def __init__(self, launch: Launch) -> None:
        self.callbacks = [_outcome_is_there]
        self.launch = launch


def _outcome_is_there(event: Event) -> None:
    assert isinstance(event, _OutcomeTimer)
    if event.launch.running is None:
        event.launch.outcome.succeed()


class Island:
    """What the plans of some loops share: streams, links and kept tensors."""

    def __init__(self, env: Environment, as_events: bool, ended: Callable[[Launch, Launched], None]) -> None:
        """as_events: whether every task is an event. ended: is told when the engine has carried a plan
        out."""
        self.env, self._as_events, self._ended_by_events = env, as_events, ended
        self.crowded: Counter[str] = Counter()
        """Windows that each link brought about."""
        self.event_steps = 0
        """Plans carried out as events, in whole or from some moment on."""
        self._engine = TaskEngine(env)
        self._carried = Carried()
        self._open: list[Launch] = []
        """Plans priced by R that had not ended at the last launch, in the order of their launches."""

    def is_quiet(self, at: int) -> bool:
        """Whether nothing is under way at a tick that is not before the last launch."""
        return not self._engine.plans_under_way and all(launch.drained_at <= at for launch in self._open)

    def launch(self, launch: Launch, task_by_task: bool) -> None:
        """Carry a plan out; `task_by_task` where the times of all its tasks are asked for."""
        if self._as_events or self._engine.plans_under_way:
            self._by_events(launch)
            return
        self._open = [each for each in self._open if each.drained_at > launch.at]
        if not self._open:
            self._carried = Carried()
        if not self._open and launch.use.reduced.never_crowded and not task_by_task:
            self._by_segments(launch)
        else:
            self._by_recursion(launch)

    def _by_segments(self, launch: Launch) -> None:
        reduced = launch.use.reduced
        launch.segment_ends = reduced.ends(launch.durations.total)
        launch.drained_at = launch.at + max(launch.segment_ends)
        self._promise(launch, launch.at + launch.segment_ends[reduced.outcome])

    def _by_recursion(self, launch: Launch) -> None:
        for earlier in self._open:
            self._schedule(earlier)
        crowded = self._schedule(launch).crowded_link
        if crowded is not None:
            launch.timed = None
            self._begin_window(crowded)
            self._by_events(launch)
            return
        assert launch.timed is not None
        launch.drained_at = max(launch.timed.ends)
        self._promise(launch, launch.timed.ends[launch.use.priced.template.outcome])

    def _schedule(self, launch: Launch) -> Schedule:
        if launch.timed is None:
            launch.timed = schedule(launch.use.priced, launch.durations, launch.at, self._carried)
        return launch.timed

    def _promise(self, launch: Launch, outcome_at: int) -> None:
        self._open.append(launch)
        delay = outcome_at - int(self.env.now)
        self.env.schedule(_OutcomeTimer(launch), NORMAL, delay)  # type: ignore[arg-type]

    def _begin_window(self, crowded: str) -> None:
        """Hand everything under way to the task engine, as it stands at this tick."""
        self.crowded[crowded] += 1
        for earlier in self._open:
            assert earlier.timed is not None
            earlier.running = self._engine.adopt(
                earlier.use.priced, earlier.durations, earlier.timed, earlier.outcome, self._teller(earlier)
            )
            self.event_steps += 1
        self._open = []

    def _by_events(self, launch: Launch) -> None:
        self.event_steps += 1
        running = self._engine.launch(
            launch.use.priced, launch.durations, launch.outcome, self._teller(launch)
        )
        launch.running = running

    def _teller(self, launch: Launch) -> Callable[[Launched], None]:
        return lambda launched: self._ended_by_events(launch, launched)


def islands_of(reduced: Sequence[Reduced], units: Sequence[frozenset[str]]) -> list[int]:
    """For each loop, given its reduced template and the streams its plans hold, the number of its island.

    Loops share an island if they share a stream; or a link that they could fill between them, or that one of
    them crosses in tasks that its outcome does not wait for, so that its own steps may meet there.
    """
    island = list(range(len(reduced)))
    for shared in (*_by_unit(units).values(), *_by_link(reduced).values()):
        joined = {island[loop] for loop in shared}
        island = [min(joined) if each in joined else each for each in island]
    numbers = {first: number for number, first in enumerate(sorted(set(island)))}
    return [numbers[each] for each in island]


def _by_unit(units: Sequence[frozenset[str]]) -> Mapping[str, list[int]]:
    holders: dict[str, list[int]] = {}
    for loop, held in enumerate(units):
        for unit in sorted(held):
            holders.setdefault(unit, []).append(loop)
    return holders


def _by_link(reduced: Sequence[Reduced]) -> Mapping[str, list[int]]:
    """Loops by the links on which they could slow each other."""
    crossing: dict[str, list[int]] = {}
    for loop, each in enumerate(reduced):
        for link in each.peak_loads:
            crossing.setdefault(link, []).append(loop)
    return {
        link: loops
        for link, loops in crossing.items()
        if sum(reduced[loop].peak_loads[link] for loop in loops) > FULL
        or any(link in reduced[loop].trailing_links for loop in loops)
    }
