"""A serving loop: decide on a step, carry it out, account for it, again; sleep when there is nothing to do.

At one tick, whatever requests and clients do comes before a finished step is accounted for, and again before
the next step is decided. Loops take their turns in their own order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from simpy import Environment, Event

from simulator.graph.shape import Chunk, StepShape
from simulator.placement.placement import Role
from simulator.placement.program import Program
from simulator.serving.actions import Completed, Move, Step
from simulator.serving.arrivals import content_of
from simulator.serving.lockstep import Lockstep
from simulator.serving.scheduler import Scheduler
from simulator.simulation.clock import Clock
from simulator.simulation.events import ACCOUNT, DECIDE, after
from simulator.simulation.front import Front
from simulator.simulation.lives import RequestLife
from simulator.simulation.plan_book import MOST_AHEAD

Life = Generator[Event, Any, None]


@dataclass(frozen=True)
class Observer:
    """What who watches a run is told: each decision with the scheduler that took it."""

    decided: Callable[[Scheduler | Lockstep, Step, int], None]
    moved: Callable[[Chunk], None] = lambda blocks: None
    """And each plan that moves KV blocks, when it is launched: which ones, and where to."""


def _nothing_to_tell(_: ServingLoop, completed: Completed) -> None:
    assert not completed.departed, "nobody takes sequences over"


@dataclass
class Gaps:
    """Times between successive tokens at the client, in ticks, each with how many sequences shared it."""

    ticks: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, ticks: int, count: int) -> None:
        self.ticks.append(ticks)
        self.counts.append(count)


class ServingLoop:
    """One loop with its program and its scheduler."""

    def __init__(
        self, env: Environment, program: Program, scheduler: Scheduler | Lockstep, clock: Clock, front: Front,
        gaps: Gaps, left: Callable[[RequestLife], None], is_only: bool, answers_matter: bool,
        observer: Observer | None,
    ) -> None:  # fmt: skip
        """left: is told of each request that is over. is_only: whether there are no other loops;
        answers_matter: whether requests come to it because others were answered, or prefilled."""
        self.env, self.program, self.scheduler = env, program, scheduler
        self._clock, self._front, self._gaps, self._left, self._observer = clock, front, gaps, left, observer
        self.number, self._is_only, self._answers_matter = program.loop, is_only, answers_matter
        self.accounted: Callable[[ServingLoop, Completed], None] = _nothing_to_tell
        """Is told what each step brought, and when room was made without one."""
        self.lives: dict[int, RequestLife] = {}
        """Requests in the loop."""
        self._given_up: list[int] = []
        """Requests whose clients wait no more, and which the scheduler still knows."""
        self._welcomed: list[int] = []
        """Requests that were handed over since the last decision."""
        self._idle: Event | None = None
        self._previous_received = 0
        self._step_ticks = 0
        """How long the last step took."""

    def take(self, life: RequestLife) -> bool:
        """Queue a request; False if it can never be served."""
        request = life.request
        content = content_of(request) if request.prefix else None
        asked = request.number, request.prompt_tokens, request.output_tokens
        if not self.scheduler.add(*asked, request.priority, content):
            return False
        self.lives[request.number] = life
        self.wake()
        return True

    @property
    def role(self) -> Role:
        return self.program.placement.role

    def wake(self) -> None:
        """Decide again at this tick, if the loop has nothing under way."""
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None

    def welcome(self, life: RequestLife) -> None:
        """A request for which blocks were kept is there; it decodes from the next decision on."""
        self.lives[life.request.number] = life
        self._welcomed.append(life.request.number)
        self.wake()

    def give_up(self, number: int) -> None:
        """A request's client waits no more; the next decision goes without it."""
        self._given_up.append(number)
        self.wake()

    def serve(self) -> Life:
        """The loop itself, as a process."""
        while True:
            yield from self._all_else_of_this_tick(DECIDE)
            self._let_in()
            self._let_go()
            step = self.scheduler.decide()
            if step is None:
                self._idle = self.env.event()
                yield self._idle
                continue
            self._note(step, int(self.env.now))
            if step.saved or step.restored:
                yield from self._move(step)
            if self._observer is not None:
                self._observer.decided(self.scheduler, step, int(self.env.now))
            step, shapes = self._run_ahead(step, self._shapes(step))
            launch = self._clock.run(self.number, shapes)
            yield launch.outcome
            self._step_ticks = int(self.env.now) - launch.at
            yield from self._all_else_of_this_tick(ACCOUNT)
            self._clock.charge(launch, step.decode_count + len(step.prefills))
            self._account(step, self.scheduler.complete(step))

    def _let_go(self) -> None:
        """Forget those who gave up while a step was under way."""
        leaving = [number for number in self._given_up if number in self.lives]
        self._given_up = []
        for number in leaving:
            self.scheduler.abort(number)
            self.fail(self.lives.pop(number))
        if leaving:
            self.accounted(self, NOTHING_BROUGHT)

    def _let_in(self) -> None:
        """Start those that were handed over while a step was under way."""
        for number in self._welcomed:
            assert isinstance(self.scheduler, Scheduler)
            self.scheduler.start(number)
        self._welcomed = []

    def fail(self, life: RequestLife) -> None:
        """A request is over without its answer."""
        life.status = "failed"
        self._left(life)

    def _move(self, step: Step) -> Life:
        """Copy KV blocks to host memory and back, before the step that needs the room or the blocks."""
        for name, moves in (("save", step.saved), ("restore", step.restored)):
            if moves:
                blocks = _of_blocks(moves, self.scheduler.block_tokens)
                if self._observer is not None:
                    self._observer.moved(blocks)
                launch = self._clock.move(self.number, name, StepShape.of((blocks,), self.program.traits))
                yield launch.outcome
                self._clock.charge(launch, step.decode_count + len(step.prefills))

    def _run_ahead(self, step: Step, shapes: tuple[StepShape, ...]) -> tuple[Step, tuple[StepShape, ...]]:
        """Carry out at once the decode steps that nothing can touch, because the one after them is launched
        before anything else happens; the step that is then to be launched, and its shapes."""
        horizon = self._horizon()
        is_hopeless = self.env.now + self._step_ticks // 2 >= horizon
        if self._observer is not None or step.prefills or is_hopeless:
            return step, shapes
        while True:
            ahead = self._clock.ahead(self.number, shapes, self.scheduler.rounds_ahead(MOST_AHEAD))
            untouched = bisect_left(ahead.ends, horizon) if ahead is not None else 0
            if ahead is None or not untouched:
                return step, shapes
            self._clock.skip(self.number, ahead, untouched, step.decode_count)
            if self._is_only:
                for received in self._front.deliver_many(ahead.ends[:untouched], step.decode_count):
                    self._received(received, step.decode_count)
            else:
                ends = ahead.ends[:untouched]
                self._front.deliver_later(self.number, ends, step.decode_count, self._received)
            step = self.scheduler.skip(untouched)
            shapes = self._shapes(step)

    def _horizon(self) -> float:
        """Before this tick nothing can reach the loop but its own steps. Any event may be the step of a loop
        that it may meet, or one that ends a request whose client then asks for more."""
        if self._answers_matter or not self._clock.is_alone(self.number):
            return self.env.peek()
        return self._front.next_client_event()

    def _received(self, received: int, decoded: int) -> None:
        """Clients have one token each of `decoded` sequences that had one in the step before."""
        self._gaps.add(received - self._previous_received, decoded)
        self._previous_received = received

    def _all_else_of_this_tick(self, turn: int) -> Life:
        """Let everything else that happens now happen first, and loops before this one take their turn."""
        if self.env.peek() == self.env.now:
            yield after(self.env, 0, turn + self.number)

    def _note(self, step: Step, launched: int) -> None:
        """Remember which requests the step takes up for the first time, and which it preempts."""
        for piece in step.prefills:
            life = self.lives[piece.sequence]
            if life.scheduled < 0:
                life.scheduled = launched
        for number in step.preempted:
            life = self.lives[number]
            life.preemptions += 1
            if life.first_token >= 0 and life.stalled < 0:
                life.stalled = self._previous_received

    def _shapes(self, step: Step) -> tuple[StepShape, ...]:
        microbatches, traits = self.program.placement.microbatches, self.program.traits
        if step.of_ranks:
            return step.shapes_of_ranks(traits)
        if microbatches == 1:
            return (step.shape(traits),)
        return tuple(StepShape.of(part, traits) for part in self.scheduler.parts(microbatches))

    def _account(self, step: Step, completed: Completed) -> None:
        now = int(self.env.now)
        decoded = step.decode_count - len(step.returned)
        work, on_wire = self._deliver(now, decoded, completed.token_count - decoded)
        received = self._previous_received
        for number in (*step.returned, *completed.resumed):
            life = self.lives[number]
            self._gaps.add(received - life.stalled, 1)
            life.stalled = -1
        for number in completed.started:
            life = self.lives[number]
            life.first_token, life.first_received = now, received
        for number in completed.finished:
            life = self.lives.pop(number)
            if life.gave_up:
                self.fail(life)
                continue
            life.last_token, life.last_received, life.status = now, received, "finished"
            life.host_ticks += work
            life.network_ticks += on_wire + self._front.latency
            self._left(life)
        self.accounted(self, completed)

    def _deliver(self, ready: int, decoded: int, others: int = 0) -> tuple[int, int]:
        """Send a step's tokens to the clients, those of `decoded` sequences that had one in the step before
        and `others`; ticks of a core's work and on the network."""
        received, work, on_wire = self._front.deliver(self.number, ready, decoded + others)
        if decoded:
            self._received(received, decoded)
        self._previous_received = received
        return work, on_wire


def _of_blocks(moves: Sequence[Move], block_tokens: int) -> Chunk:
    """Whole KV blocks to be moved, as a chunk of nobody's."""
    sources, targets = zip(*moves, strict=True)
    return Chunk(NOBODY, len(moves) * block_tokens, 0, False, sources, targets)


NOTHING_BROUGHT = Completed((), (), (), 0)
NOBODY = -1
"""Whose blocks are moved: a plan that moves them need not know."""
