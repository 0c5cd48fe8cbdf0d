"""The two fidelities: ways to learn when a step's outcome is there.

`step` applies the recursion R once per step. On quiet streams that is a dot product; where something of an
earlier step is still under way it is the full pass. If two flows meet on a link, R's schedule is no
certificate: the clock raises `Crowded`, and the run is done again as `task`, which runs every task on
SimPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from simpy import Environment, Event

from simulator.errors import SimulatorError
from simulator.graph.shape import StepShape
from simulator.simulation.engine import Launched, TaskEngine
from simulator.simulation.plan_book import Counts, Kept, PlanBook, Use
from simulator.simulation.pricing import Durations, PricedTemplate
from simulator.simulation.recursion import Carried, Schedule, critical_path, schedule
from simulator.simulation.ticks import LAST_LAUNCH, seconds
from simulator.units import SECONDS_PER_DAY


@dataclass(frozen=True)
class Recorded:
    """One step whose tasks are kept one by one, for timelines and for replay."""

    step: int
    priced: PricedTemplate
    shapes: tuple[StepShape, ...]
    timed: Schedule


class Crowded(Exception):
    """Two flows met on a link, so that a cheap schedule cannot be trusted."""

    def __init__(self, link: str) -> None:
        super().__init__(link)
        self.link = link


class Clock:
    """What both fidelities share: the plan book, and the recording of the first steps."""

    def __init__(self, env: Environment, book: PlanBook, record_steps: int) -> None:
        self.env, self.book, self.record_steps = env, book, record_steps
        self.step_count = 0
        self.recorded: list[Recorded] = []
        self._last: tuple[Use, tuple[StepShape, ...], Durations] | None = None
        self._path: Counts = np.zeros(0, dtype=np.int64)
        """Tasks of each class on the last step's critical path."""

    def run(self, shapes: tuple[StepShape, ...]) -> Event:
        """Launch a step now; the event it returns comes with its outcome."""
        raise AssertionError("a fidelity runs steps")

    def ends_ahead(self, shape: StepShape, most: int) -> list[int]:
        """When the next decode steps will have ended, of which the first has `shape`: those, of at most
        `most`, that may be carried out at once by `skip`. None where every step needs events."""
        return []

    def skip(self, shape: StepShape, ends: Sequence[int], active: int) -> None:
        """Carry out the first steps of `ends_ahead`; the next one is launched when the last has ended."""
        raise AssertionError("only what `ends_ahead` offers can be skipped")

    def charge(self, active: int) -> None:
        """Charge the last step's time to the `active` sequences that took part in it."""
        assert self._last is not None
        use, shapes, durations = self._last
        features = np.array(shapes, dtype=np.float64).reshape(1, -1)
        use.add(Kept(features, durations.total[None], durations.lone_s[None], self._path, active))


def _path_counts(use: Use, timed: Schedule) -> Counts:
    classes = use.priced.class_of_task[critical_path(use.priced.template, timed, use.reduced.nodes)]
    return np.bincount(classes, minlength=use.priced.class_count)


class StepClock(Clock):
    """One event a step."""

    def __init__(self, env: Environment, book: PlanBook, record_steps: int = 0) -> None:
        super().__init__(env, book, record_steps)
        self._carried = Carried()
        self._drained_at = 0
        """When all that was launched so far has ended."""
        self._unapplied: tuple[Use, Durations, int] | None = None
        """The last step, if only its makespan was computed."""
        self._skipped_to = 0
        """Until when steps were carried out at once."""

    def ends_ahead(self, shape: StepShape, most: int) -> list[int]:
        """As many as are priced already, if the template is one chain, so that each step ends with its
        outcome and starts on quiet streams."""
        launch = max(int(self.env.now), self._skipped_to)
        use = self.book.use(1)
        is_chain = len(use.reduced.segments) == 1 and use.reduced.never_crowded
        is_quiet = self._drained_at <= launch <= LAST_LAUNCH
        if not (is_chain and is_quiet) or self.step_count < self.record_steps or most < 1:
            return []
        _, total, _ = use.forecast.upcoming(shape)
        makespans = total[:most] @ use.reduced.segments[0].counts
        ends: list[int] = (launch + np.cumsum(makespans)).tolist()
        return ends

    def skip(self, shape: StepShape, ends: Sequence[int], active: int) -> None:
        use, count = self.book.use(1), len(ends)
        features, total, lone_s = use.forecast.upcoming(shape)
        features, total, lone_s = features[:count], total[:count], lone_s[:count]
        path = use.reduced.segments[0].counts
        use.forecast.use(shape, count)
        use.add(Kept(features, total, lone_s, path, active))
        self.step_count += count
        self._drained_at = self._skipped_to = ends[-1]
        last = Durations(total[-1], lone_s[-1])
        self._unapplied = (use, last, ends[-1] - int(total[-1] @ path))

    def run(self, shapes: tuple[StepShape, ...]) -> Event:
        now = max(int(self.env.now), self._skipped_to)
        if now > LAST_LAUNCH:
            days = seconds(LAST_LAUNCH) / SECONDS_PER_DAY
            raise SimulatorError(
                f"the run takes more than {days:.0f} simulated days, which is as far as its clock goes; "
                "ask for fewer requests, or place the model on faster devices"
            )
        use, durations = self.book.next_use(shapes)
        self._last = (use, shapes, durations)
        quiet = use.reduced.never_crowded and self._drained_at <= now
        if quiet and self.step_count >= self.record_steps:
            outcome = self._run_quiet(use, durations, now)
        else:
            outcome = self._run_in_full(use, durations, now, shapes)
        self.step_count += 1
        return self.env.timeout(outcome - int(self.env.now))

    def _run_quiet(self, use: Use, durations: Durations, now: int) -> int:
        ends = use.reduced.ends(durations.total)
        self._path = use.reduced.critical_counts(ends)
        self._drained_at = now + max(ends)
        self._unapplied = (use, durations, now)
        return now + ends[use.reduced.outcome]

    def _run_in_full(self, use: Use, durations: Durations, now: int, shapes: tuple[StepShape, ...]) -> int:
        if self._unapplied is not None:
            before, its_durations, launched = self._unapplied
            schedule(before.priced, its_durations, launched, self._carried)
            self._unapplied = None
        timed = schedule(use.priced, durations, now, self._carried)
        if timed.crowded_link is not None:
            raise Crowded(timed.crowded_link)
        self._drained_at = max(self._drained_at, *timed.ends)
        self._path = _path_counts(use, timed)
        if self.step_count < self.record_steps:
            self.recorded.append(Recorded(self.step_count, use.priced, shapes, timed))
        return timed.ends[use.priced.template.outcome]


class TaskClock(Clock):
    """Every task an event."""

    def __init__(self, env: Environment, book: PlanBook, record_steps: int = 0) -> None:
        super().__init__(env, book, record_steps)
        self._engine = TaskEngine(env)

    def run(self, shapes: tuple[StepShape, ...]) -> Event:
        use, durations = self.book.next_use(shapes)
        self._last = (use, shapes, durations)
        launched = self._engine.launch(use.priced, durations)
        number = self.step_count
        self.step_count += 1

        def at_outcome(_: Event) -> None:
            self._path = _path_counts(use, _so_far(launched))

        def at_end(_: Event) -> None:
            timed = Schedule(tuple(launched.starts), tuple(launched.ends), None)
            self.recorded.append(Recorded(number, use.priced, shapes, timed))

        assert launched.outcome.callbacks is not None and launched.all_ended.callbacks is not None
        launched.outcome.callbacks.append(at_outcome)
        if number < self.record_steps:
            launched.all_ended.callbacks.append(at_end)
        return launched.outcome


def _so_far(launched: Launched) -> Schedule:
    return Schedule(tuple(launched.starts), tuple(launched.ends), None)
