"""Hand-overs on the clock: prefilled requests go to loops that decode.

All that happens to them at one tick happens in a turn of its own, after steps are accounted for and before
the next ones are decided: copies that have ended first, in the order of their launches, then those for which
there is room now.
"""

from __future__ import annotations

from collections.abc import Sequence

from simpy import Environment

from simulator.graph.shape import StepShape
from simulator.placement.program import Program
from simulator.serving.actions import Completed, Handover
from simulator.serving.handovers import Handovers
from simulator.serving.routing import MakeRouter
from simulator.serving.scheduler import Scheduler
from simulator.simulation.clock import Clock
from simulator.simulation.events import HAND_OVER, after
from simulator.simulation.island import Launch
from simulator.simulation.lives import RequestLife
from simulator.simulation.loop import Observer, ServingLoop


def plan_name(target: Program) -> str:
    """Among a loop's plans, the one that hands over to `target`."""
    return f"to loop {target.loop}"


class Handing:
    """Takes requests from loops that prefill, once they have their first token, to loops that decode."""

    def __init__(
        self, env: Environment, clock: Clock, loops: Sequence[ServingLoop], make_router: MakeRouter,
        observer: Observer | None,
    ) -> None:  # fmt: skip
        self._env, self._clock, self._loops, self._observer = env, clock, loops, observer
        self._targets = [loop for loop in loops if loop.role == "decode"]
        self._router = make_router(len(self._targets))
        self._handovers = Handovers(
            {loop.number: _scheduler_of(loop) for loop in loops if loop.role == "prefill"},
            {loop.number: _scheduler_of(loop) for loop in self._targets},
        )
        self._lives: dict[int, RequestLife] = {}
        """Of requests that have left one loop and have not come to another."""
        self._ended: list[tuple[Handover, Launch]] = []
        """Hand-overs whose outcome came at this tick."""
        self._is_due = False
        for loop in loops:
            loop.accounted = self._accounted

    def could_hold(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a request could be decoded."""
        return all(_scheduler_of(loop).could_hold(prompt_tokens, output_tokens) for loop in self._targets)

    def give_up(self, number: int) -> None:
        """A client waits no more. What is being copied is copied to its end."""
        if number not in self._lives:
            return
        source = self._handovers.abort(number)
        if source is not None:
            self._loops[source].wake()
            self._loops[source].fail(self._lives.pop(number))
            self._take_a_turn()

    def _accounted(self, loop: ServingLoop, completed: Completed) -> None:
        """A loop's step is over, or it has room since somebody gave up."""
        for number in completed.departed:
            life = loop.lives.pop(number)
            if life.gave_up:
                _scheduler_of(loop).release(number)
                loop.fail(life)
                continue
            life.stalled = life.first_received
            loads = [len(each.lives) + self._handovers.load(each.number) for each in self._targets]
            chosen = self._targets[self._router.choose(life.request, loads)]
            self._lives[number] = life
            self._handovers.add(number, loop.number, chosen.number)
        if self._handovers.waiting_count:
            self._take_a_turn()

    def _take_a_turn(self) -> None:
        if not self._is_due:
            self._is_due = True
            after(self._env, 0, HAND_OVER, self._turn)

    def _turn(self) -> None:
        self._is_due = False
        ended, self._ended = self._ended, []
        for handover, launch in sorted(ended, key=lambda each: each[1].step):
            self._end(handover, launch)
        for handover in self._handovers.begin():
            self._begin(handover)

    def _begin(self, handover: Handover) -> None:
        if self._observer is not None:
            self._observer.moved(handover.chunk)
        target = self._loops[handover.target].program
        shape = StepShape.of((handover.chunk,), target.traits)
        launch = self._clock.move(handover.source, plan_name(target), shape)
        assert launch.outcome.callbacks is not None
        launch.outcome.callbacks.append(lambda _: self._outcome_is_there(handover, launch))

    def _outcome_is_there(self, handover: Handover, launch: Launch) -> None:
        self._ended.append((handover, launch))
        self._take_a_turn()

    def _end(self, handover: Handover, launch: Launch) -> None:
        self._clock.charge(launch, 1)
        self._handovers.complete(handover)
        self._loops[handover.source].wake()
        life = self._lives.pop(handover.chunk.sequence)
        target = self._loops[handover.target]
        if life.gave_up:
            target.scheduler.abort(life.request.number)
            target.fail(life)
            target.wake()
        else:
            target.welcome(life)


def _scheduler_of(loop: ServingLoop) -> Scheduler:
    assert isinstance(loop.scheduler, Scheduler), "ranks with sequences of their own hand nothing over"
    return loop.scheduler
