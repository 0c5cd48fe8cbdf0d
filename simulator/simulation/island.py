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
from simulator.simulation.events import NORMAL, happen
from simulator.simulation.flows import FULL
from simulator.simulation.plan_book import Counts, Priced, Use
from simulator.simulation.pricing import Durations, PricedTemplate
from simulator.simulation.recursion import Carried, Schedule, critical_path, schedule
from simulator.simulation.reduced import Reduced
from simulator.simulation.skeleton import Passed, Skeleton, skeleton


@dataclass(eq=False, slots=True)
class Launch:
    """One step's plan under way, whatever carries it out."""

    loop: int
    step: int
    use: Use
    shapes: tuple[StepShape, ...]
    priced: Priced
    row: int
    """Of `priced`."""
    at: int
    outcome: Event
    drained_at: int = 0
    """When all of its tasks have ended, as far as R tells."""
    bones: Skeleton | None = None
    passed: Passed | None = None
    """By segment of the skeleton, of a plan launched while others were under way."""
    found: Carried | None = None
    """What earlier plans had left to it, if anything."""
    running: Launched | None = None
    """In the hands of the task engine."""
    _durations: Durations | None = None

    @property
    def durations(self) -> Durations:
        """Its price."""
        if self._durations is None:
            self._durations = self.priced.durations(self.row)
        return self._durations

    @property
    def was_alone(self) -> bool:
        """Whether it was carried out as on quiet streams."""
        return self.passed is None and self.running is None

    @property
    def is_step(self) -> bool:
        """Whether it counts as one; the passes of a drafter do not, nor what is beside steps."""
        template = self.use.priced.template
        return not (template.of_drafter or template.is_beside_steps)

    def timed(self) -> Schedule:
        """When each task starts and ends: as R has it, or as far as the engine has come."""
        if self.running is not None:
            return self.running.so_far()
        found = Carried() if self.found is None else self.found.copy()
        return schedule(self.use.priced, self.durations, self.at, found)

    def path(self) -> Counts:
        """Tasks of each class on the path that decided the outcome."""
        assert self.bones is not None
        if self.running is not None:
            priced = self.use.priced
            chain = critical_path(priced.template, self.running.so_far(), self.bones.ranks)
            return np.bincount(priced.class_of_task[chain], minlength=priced.class_count)
        if self.passed is not None:
            return self.bones.critical_counts(self.passed)
        return self.use.reduced.critical_counts(self.priced.segment_ends[self.row].tolist())


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
        happen(event.launch.outcome)


class Island:
    """What the plans of some loops share: streams, links and kept tensors."""

    def __init__(
        self, env: Environment, templates: Sequence[tuple[PricedTemplate, Reduced]], as_events: bool,
        ended: Callable[[Launch, Launched], None],
    ) -> None:  # fmt: skip
        """templates: one of each loop. as_events: whether every task is an event. ended: is told when the
        engine has carried a plan out."""
        self.env, self._as_events, self._ended_by_events = env, as_events, ended
        self._watched = watched_links(templates)
        self._links = frozenset().union(*(_links_of(priced) for priced, _ in templates))
        self._kept = frozenset(t.name for p, _ in templates for t in p.template.tensors.values() if t.kept)
        self._skeletons: dict[PricedTemplate, Skeleton] = {}
        self.crowded: Counter[str] = Counter()
        """Windows that each link brought about."""
        self.event_steps = 0
        """Plans that loops wait for, carried out as events, in whole or from some moment on, but for those of
        a drafter."""
        self._engine = TaskEngine(env)
        self._carried = Carried()
        self._open: list[Launch] = []
        """Plans priced by R that had not ended at the last launch, in the order of their launches."""

    def is_quiet(self, at: int) -> bool:
        """Whether nothing is under way at a tick that is not before the last launch."""
        return not self._engine.plans_under_way and all(launch.drained_at <= at for launch in self._open)

    def launch(self, launch: Launch) -> None:
        """Carry a plan out."""
        launch.bones = self._skeleton(launch.use)
        if self._as_events or self._engine.plans_under_way:
            self._by_events(launch)
            return
        self._open = [each for each in self._open if each.drained_at > launch.at]
        if not self._open and self._carried.free:
            self._carried = Carried()
        if self._open or not launch.use.reduced.never_crowded:
            self._beside_others(launch)
        else:
            self._alone(launch)

    def _skeleton(self, use: Use) -> Skeleton:
        if use.priced not in self._skeletons:
            assert self._links >= _links_of(use.priced), "fewer microbatches cross no other links"
            self._skeletons[use.priced] = skeleton(use.priced, use.reduced, self._watched, self._kept)
        return self._skeletons[use.priced]

    def _alone(self, launch: Launch) -> None:
        launch.drained_at = launch.at + launch.priced.drained[launch.row]
        self._promise(launch, launch.at + launch.priced.outcomes[launch.row])

    def _beside_others(self, launch: Launch) -> None:
        for earlier in self._open:
            if earlier.passed is None:
                earlier.passed = self._pass(earlier)
        passed = self._pass(launch)
        if passed.crowded_link is not None:
            self._begin_window(passed.crowded_link)
            self._by_events(launch)
            return
        launch.passed, launch.drained_at = passed, max(passed.ends)
        self._promise(launch, passed.outcome_at)

    def _pass(self, launch: Launch) -> Passed:
        """Let R bring what is carried up to the end of a plan."""
        assert launch.bones is not None
        launch.found = self._carried.copy()
        return launch.bones.schedule(launch.durations, launch.at, self._carried)

    def _promise(self, launch: Launch, outcome_at: int) -> None:
        self._open.append(launch)
        delay = outcome_at - int(self.env.now)
        self.env.schedule(_OutcomeTimer(launch), NORMAL, delay)  # type: ignore[arg-type]

    def _begin_window(self, crowded: str) -> None:
        """Hand everything under way to the task engine, as it stands at this tick."""
        self.crowded[crowded] += 1
        for earlier in self._open:
            earlier.running = self._engine.adopt(
                earlier.use.priced, earlier.durations, earlier.timed(), earlier.outcome, self._teller(earlier)
            )
            self.event_steps += earlier.is_step
        self._open = []

    def _by_events(self, launch: Launch) -> None:
        self.event_steps += launch.is_step
        running = self._engine.launch(
            launch.use.priced, launch.durations, launch.outcome, self._teller(launch)
        )
        launch.running = running

    def _teller(self, launch: Launch) -> Callable[[Launched], None]:
        return lambda launched: self._ended_by_events(launch, launched)


def _links_of(priced: PricedTemplate) -> frozenset[str]:
    return frozenset(link for links in priced.links_of_task for link in links)


def watched_links(templates: Sequence[tuple[PricedTemplate, Reduced]]) -> frozenset[str]:
    """Links on which flows of an island may slow each other, whatever their durations.

    They cannot where all flows over a link hold one stream, which serves them in turn; nor where loops
    together never take more of it than it has, and no flow trails into its loop's next step.
    """
    units: dict[str, set[str]] = {}
    for priced, _ in templates:
        for task, links in zip(priced.template.tasks, priced.links_of_task, strict=True):
            for link in links:
                units[link] = units[link].intersection(task.units) if link in units else set(task.units)
    crossing = _by_link([reduced for _, reduced in templates])
    return frozenset(link for link, held in units.items() if not held and link in crossing)


def islands_of(
    reduced: Sequence[Reduced], units: Sequence[frozenset[str]], loops: Sequence[int]
) -> list[int]:
    """For each kind of plan, given its reduced template, the streams it holds and the loop it is of, the
    number of its island.

    Plans share an island if they are of one loop; if they share a stream; or a link that they could fill
    between them, or that one of them crosses in tasks that its outcome does not wait for, so that its loop's
    own steps may meet there.
    """
    island = list(range(len(reduced)))
    of_loop: dict[int, list[int]] = {}
    for plan, loop in enumerate(loops):
        of_loop.setdefault(loop, []).append(plan)
    for shared in (*of_loop.values(), *_by_unit(units).values(), *_by_link(reduced).values()):
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
    """Loops by the links on which their flows could slow each other."""
    crossing: dict[str, list[int]] = {}
    for loop, each in enumerate(reduced):
        for link in each.peak_loads:
            crossing.setdefault(link, []).append(loop)
    return {
        link: loops
        for link, loops in crossing.items()
        if sum(reduced[loop].peak_loads[link] for loop in loops) > (FULL if len(loops) > 1 else 1.0)
        or any(link in reduced[loop].trailing_links for loop in loops)
    }
