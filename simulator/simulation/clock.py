"""The three fidelities: ways to learn when a step's outcome is there.

`task` runs every task on SimPy. `step` applies the recursion R once per step: on quiet streams that is a dot
product, where something of an earlier step is still under way the full pass. `fast` does the same, and
prices runs of pure decode as one array, cut at whatever happens next. Where R's schedule is no certificate,
`step` and `fast` go on as `task` for as long as something is under way (see `island`). All three end every
task at the same tick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from simpy import Environment, Event

from simulator.errors import SimulatorError
from simulator.graph.shape import StepShape
from simulator.simulation.engine import Launched
from simulator.simulation.island import Island, Launch, islands_of
from simulator.simulation.plan_book import PlanBook, Priced, Use
from simulator.simulation.pricing import PricedTemplate
from simulator.simulation.recursion import Schedule
from simulator.simulation.ticks import LAST_LAUNCH, seconds
from simulator.units import SECONDS_PER_DAY


@dataclass(frozen=True)
class Recorded:
    """One step whose tasks are kept one by one, for timelines and for replay."""

    step: int
    round: int
    """The first plan of its step: a drafter's first pass, where tokens are proposed, else its own number."""
    loop: int
    priced: PricedTemplate
    shapes: tuple[StepShape, ...]
    timed: Schedule


class Ahead(NamedTuple):
    """Decode steps that may be carried out at once, as far as nothing else happens before they end."""

    use: Use
    shapes: tuple[StepShape, ...]
    """Of the first."""
    priced: Priced
    row: int
    """Of the first."""
    at: int
    """When the first is launched."""
    ends: list[int]
    """When each step's outcome comes."""


class Clock:
    """Carries out the steps of some serving loops, each with its own book of plans."""

    def __init__(
        self, env: Environment, books: Sequence[PlanBook], fidelity: str, record_steps: int = 0
    ) -> None:
        self.env, self.books, self.fidelity, self.record_steps = env, books, fidelity, record_steps
        self.step_count = 0
        """Forward passes that were carried out."""
        self._launched = 0
        """All plans that were, moves of KV blocks among them."""
        self._recorded: dict[int, Recorded] = {}
        self._begun: dict[int, int] = {}
        """By loop, the first pass of the drafter for the step that is to come."""
        self._rounds: dict[int, int] = {}
        uses = [_uses(book) for book in books]
        numbers = _islands(uses)
        by_island: dict[int, list[Use]] = {}
        for own, number in zip(uses, numbers, strict=True):
            by_island.setdefault(number, []).extend(own)
        together = [by_island[number] for number in sorted(by_island)]
        self._islands = [
            Island(env, [(use.priced, use.reduced) for use in members], fidelity == "task", self._note_events)
            for members in together
        ]
        self._island_of = [self._islands[number] for number in numbers]
        self._launch_at: dict[int, int] = {}
        """Of loops whose steps were carried out at once, when the next one is launched, or was."""
        self._are_alone = [self._island_of.count(island) == 1 for island in self._island_of]

    def run(self, loop: int, shapes: tuple[StepShape, ...]) -> Launch:
        """Launch a step of a loop now, or when the steps before it ended that were carried out at once; its
        `outcome` is an event."""
        self.step_count += 1
        launch = self._launch(loop, *self.books[loop].next_use(shapes), shapes)
        self._begun.pop(loop, None)
        return launch

    def propose(self, loop: int, shapes: tuple[StepShape, ...]) -> Launch:
        """Launch a pass of a loop's drafter."""
        drafter = self.books[loop].drafter
        assert drafter is not None
        self._begun.setdefault(loop, self._launched)
        return self._launch(loop, *drafter.next_use(shapes), shapes)

    def move(self, loop: int, name: str, shape: StepShape) -> Launch:
        """Launch one of a loop's plans that move KV blocks."""
        use = self.books[loop].use_of_move(name)
        return self._launch(loop, use, *use.next((shape,)), (shape,))

    def _launch(
        self, loop: int, use: Use, priced: Priced, row: int, shapes: tuple[StepShape, ...]
    ) -> Launch:
        at = self._launch_at.pop(loop, int(self.env.now))
        if at > LAST_LAUNCH:
            days = seconds(LAST_LAUNCH) / SECONDS_PER_DAY
            raise SimulatorError(
                f"the run takes more than {days:.0f} simulated days, which is as far as its clock goes; "
                "ask for fewer requests, or place the model on faster devices"
            )
        launch = Launch(loop, self._launched, use, shapes, priced, row, at, Event(self.env))
        self._launched += 1
        is_recorded = launch.step < self.record_steps
        if is_recorded:
            self._rounds[launch.step] = self._begun.get(loop, launch.step)
        self._island_of[loop].launch(launch)
        if is_recorded and launch.running is None:
            self._record(launch, launch.timed())
        return launch

    def is_alone(self, loop: int) -> bool:
        """Whether no other loop's plans can meet those of a loop."""
        return self._are_alone[loop]

    def charge(self, launch: Launch, active: int) -> None:
        """Charge a step's time to the `active` sequences that took part in it."""
        path = None if launch.was_alone else launch.path()
        launch.use.add(launch.priced, launch.row, 1, active, path)

    def ahead(self, loop: int, shapes: tuple[StepShape, ...], most: int) -> Ahead | None:
        """The next decode steps of a loop, the first with `shapes`, of at most `most` as many as are priced
        already; None where every step needs events of its own. A run needs quiet streams, and a template
        that leaves them quiet when the outcome comes."""
        at = self._launch_at.get(loop, int(self.env.now))
        is_asked = self.fidelity == "fast" and most > 0 and self._launched >= self.record_steps
        if not is_asked or at > LAST_LAUNCH or not self._island_of[loop].is_quiet(at):
            return None
        use = self.books[loop].use_of(shapes)
        if not (use.reduced.never_crowded and use.reduced.drains):
            return None
        priced, row = use.forecast.upcoming(shapes)
        ends = list(accumulate(priced.outcomes[row : row + most], initial=at))
        return Ahead(use, shapes, priced, row, at, ends[1:])

    def skip(self, loop: int, ahead: Ahead, count: int, active: int) -> None:
        """Carry out the first steps of `ahead`; the next one is launched when the last of them has ended, or
        when the first would have been if there are none."""
        self._launch_at[loop] = ahead.ends[count - 1] if count else ahead.at
        if count:
            ahead.use.forecast.use(ahead.shapes, count)
            ahead.use.add(ahead.priced, ahead.row, count, active)
            self.step_count += count
            self._launched += count

    def rest(self, loop: int) -> None:
        """A loop whose steps were carried out at once has nothing to launch after them."""
        self._launch_at.pop(loop, None)

    @property
    def recorded(self) -> list[Recorded]:
        """The first steps, in the order of their launches."""
        return [self._recorded[step] for step in sorted(self._recorded)]

    @property
    def crowded(self) -> dict[str, int]:
        """How many windows each link brought about."""
        return dict(sum((island.crowded for island in self._islands), Counter[str]()))

    @property
    def event_steps(self) -> int:
        """Steps that were carried out task by task."""
        return sum(island.event_steps for island in self._islands)

    def _note_events(self, launch: Launch, launched: Launched) -> None:
        if launch.step < self.record_steps:
            self._record(launch, launched.so_far())

    def _record(self, launch: Launch, timed: Schedule) -> None:
        self._recorded[launch.step] = Recorded(
            launch.step, self._rounds[launch.step], launch.loop, launch.use.priced, launch.shapes, timed
        )


def _uses(book: PlanBook) -> list[Use]:
    """One of each kind of plan that a loop launches."""
    of_drafter = [] if book.drafter is None else [book.drafter.use(1)]
    return [book.use(book.program.placement.microbatches), *map(book.use_of_move, book.moves), *of_drafter]


def _islands(uses: Sequence[Sequence[Use]]) -> list[int]:
    """For each loop, given its plans, the number of its island."""
    every = [(loop, use) for loop, own in enumerate(uses) for use in own]
    units = [frozenset(unit for task in use.priced.template.tasks for unit in task.units) for _, use in every]
    numbers = islands_of([use.reduced for _, use in every], units, [loop for loop, _ in every])
    return [numbers[[loop for loop, _ in every].index(loop)] for loop in range(len(uses))]
