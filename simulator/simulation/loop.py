"""A serving loop: decide on a step, carry it out, account for it, again; sleep when there is nothing to do.

At one tick, whatever requests and clients do comes before a finished step is accounted for, and again before
the next step is decided. Loops take their turns in their own order.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from simpy import Environment, Event

from simulator.graph.shape import Chunk, StepShape
from simulator.placement.placement import Role
from simulator.placement.program import Program
from simulator.serving.actions import Completed, Move, Step, Verification
from simulator.serving.arrivals import content_of
from simulator.serving.lockstep import Lockstep
from simulator.serving.scheduler import Scheduler
from simulator.serving.speculation import Acceptance, SpeculatingScheduler, draft_passes
from simulator.simulation.clock import Ahead, Clock
from simulator.simulation.events import ACCOUNT, DECIDE, after
from simulator.simulation.front import Front
from simulator.simulation.gaps import Gaps
from simulator.simulation.lives import RequestLife
from simulator.simulation.plan_book import MOST_AHEAD

Life = Generator[Event, Any, None]
Shapes = tuple[StepShape, ...]


@dataclass(frozen=True)
class Observer:
    """What who watches a run is told: each decision with the scheduler that took it."""

    decided: Callable[[Scheduler | Lockstep, Step, int], None]
    moved: Callable[[Chunk], None] = lambda blocks: None
    """And each plan that moves KV blocks, when it is launched: which ones, and where to."""
    proposed: Callable[[tuple[Chunk, ...]], None] = lambda chunks: None
    """And each pass of a drafter."""


@dataclass
class Rounds:
    """What came of the tokens that a drafter proposed."""

    rounds: int = 0
    """Times that a sequence's proposals were verified."""
    proposed: int = 0
    accepted: int = 0
    passes: int = 0
    """Of the drafter."""

    def add(self, verified: Sequence[Verification], accepted: Sequence[int]) -> None:
        """Note a step's rounds."""
        self.rounds += len(verified)
        self.proposed += sum(each.proposed for each in verified)
        self.accepted += sum(accepted)


def _nothing_to_tell(_: ServingLoop, completed: Completed) -> None:
    assert not completed.departed, "nobody takes sequences over"


class ServingLoop:
    """One loop with its program and its scheduler."""

    def __init__(
        self, env: Environment, program: Program, scheduler: Scheduler | Lockstep, clock: Clock, front: Front,
        gaps: Gaps, left: Callable[[RequestLife], None], is_only: bool, answers_matter: bool,
        observer: Observer | None, decides_ahead: bool = False, acceptance: Acceptance | None = None,
    ) -> None:  # fmt: skip
        """left: is told of each request that is over. is_only: whether there are no other loops;
        answers_matter: whether requests come to it because others were answered, or prefilled.
        decides_ahead: whether each step is decided when the one before is launched, so that a request misses
        the step that follows the one it comes in. acceptance: of tokens that a drafter proposes."""
        self.env, self.program, self.scheduler = env, program, scheduler
        self._clock, self._front, self._gaps, self._left, self._observer = clock, front, gaps, left, observer
        self.number, self._is_only, self._answers_matter = program.loop, is_only, answers_matter
        self.accounted: Callable[[ServingLoop, Completed], None] = _nothing_to_tell
        """Is told what each step brought, and when room was made without one."""
        self._acceptance = acceptance
        self.rounds = Rounds()
        self.lives: dict[int, RequestLife] = {}
        """Requests in the loop."""
        self._given_up: list[tuple[int, int]] = []
        """When clients gave up waiting, and for which requests; those that the scheduler still knows."""
        self._decides_ahead, self._is_going = decides_ahead, False
        self._late: list[RequestLife] = []
        """Requests that came when the next step was decided already, in their order."""
        self._may_finish_ahead = is_only and not scheduler.moves_blocks
        """Whether what follows the end of a sequence can be decided before the clock is there."""
        self._welcomed: list[int] = []
        """Requests that were handed over since the last decision."""
        self._idle: Event | None = None
        """Happens when there is something to do."""
        self._going: Event | None = None
        """Happens when steps that were to follow one another are over, or must be looked at anew."""
        self._previous_received = 0
        """When clients had the tokens of the last step in which those that decode now took part."""
        self._apart: list[int] = []
        """Sequences that began to decode in steps of prompts alone while others waited to go on."""
        self._step_ticks = 0
        """How long the last step took."""

    def take(self, life: RequestLife) -> bool:
        """Queue a request; False if it can never be served."""
        if self._decides_ahead and self._is_going:
            self._late.append(life)
        elif not self._add(life):
            return False
        self.lives[life.request.number] = life
        self.wake()
        return True

    @property
    def role(self) -> Role:
        return self.program.placement.role

    def wake(self) -> None:
        """Decide again at this tick, if the loop has nothing under way; look at the next step anew, if it has
        gone ahead."""
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None
        if self._going is not None:
            self._going.succeed()
            self._going = None

    def welcome(self, life: RequestLife) -> None:
        """A request for which blocks were kept is there; it decodes from the next decision on."""
        self.lives[life.request.number] = life
        self._welcomed.append(life.request.number)
        self.wake()

    def give_up(self, number: int) -> None:
        """A request's client waits no more; the next decision that can know of it goes without it."""
        self._given_up.append((int(self.env.now), number))
        self.wake()

    def _add(self, life: RequestLife) -> bool:
        request = life.request
        content = content_of(request) if request.prefix else None
        asked = request.number, request.prompt_tokens, request.output_tokens
        return self.scheduler.add(*asked, request.priority, content)

    def _add_late(self, until: float) -> None:
        """Queue the requests that had come by a tick: that of the launch of the step that is over, when the
        step after it was decided; the one to be decided now is the first that they can be in."""
        due = [life for life in self._late if life.queued <= until]
        self._late = self._late[len(due) :]
        for life in due:
            if not self._add(life):
                del self.lives[life.request.number]
                life.status = "rejected"
                self._left(life)

    def serve(self) -> Life:
        """The loop itself, as a process."""
        launched: float = 0
        while True:
            if self.env.peek() == self.env.now:
                yield self._turn(DECIDE)
            known = launched if self._decides_ahead else math.inf
            self._let_in()
            self._let_go(known)
            self._add_late(known)
            step = self.scheduler.decide()
            self._is_going = step is not None
            if step is None:
                if self._late or self._given_up:
                    launched = math.inf
                    continue
                yield self._something_to_do()
                continue
            self._note(step, int(self.env.now))
            if step.saved or step.restored:
                yield from self._move(step)
            if self._acceptance is not None:
                yield from self._propose(step)
            if self._observer is not None:
                self._observer.decided(self.scheduler, step, int(self.env.now))
            shapes = self._shapes(step)
            is_mixed = step.prefills or step.verifications or self._apart
            if not (self._late or self._given_up or is_mixed) and self._observer is None:
                step, shapes = yield from self._run_ahead(step, shapes)
                self._is_going = step is not None
                if step is None:
                    yield self._something_to_do()
                    continue
            launch = self._clock.run(self.number, shapes)
            launched = launch.at
            yield launch.outcome
            self._step_ticks = int(self.env.now) - launch.at
            if self.env.peek() == self.env.now:
                yield self._turn(ACCOUNT)
            self._clock.charge(launch, step.sequence_count)
            self._account(step, self._complete(step), int(self.env.now))

    def _let_go(self, until: float) -> None:
        """Forget those whose clients had given up by a tick."""
        due = [number for when, number in self._given_up if when <= until]
        self._given_up = self._given_up[len(due) :]
        leaving = [self.lives.pop(number) for number in due if number in self.lives]
        for life in leaving:
            if life in self._late:
                self._late.remove(life)
            else:
                self.scheduler.abort(life.request.number)
            self.fail(life)
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
                self._clock.charge(launch, step.sequence_count)

    def _propose(self, step: Step) -> Life:
        """Let the drafter make its passes, one after the other, before the step that verifies them."""
        drafter, scheduler = self.program.drafter, self.scheduler
        assert drafter is not None and isinstance(scheduler, SpeculatingScheduler)
        for chunks in draft_passes(step):
            if self._observer is not None:
                self._observer.proposed(scheduler.with_blocks(chunks))
            launch = self._clock.propose(self.number, (StepShape.of(chunks, drafter.traits),))
            yield launch.outcome
            self._clock.charge(launch, step.sequence_count)
            self.rounds.passes += 1

    def _complete(self, step: Step) -> Completed:
        if self._acceptance is None:
            return self.scheduler.complete(step)
        assert isinstance(self.scheduler, SpeculatingScheduler)
        accepted = [self._acceptance.accepted(each) for each in step.verifications]
        self.rounds.add(step.verifications, accepted)
        return self.scheduler.complete(step, accepted)

    def _run_ahead(
        self, step: Step, shapes: Shapes
    ) -> Generator[Event, Any, tuple[Step | None, Shapes]]:
        """Carry out several decode steps at once; the step that is then to be launched, if any, and its
        shapes."""
        receives = self.role == "decode"  # others keep blocks here while it goes on
        if not self._is_only and not receives and self._clock.is_alone(self.number):
            return (yield from self._run_until_interrupted(step, shapes))
        return self._run_before_others(step, shapes)

    def _run_until_interrupted(
        self, step: Step, shapes: Shapes
    ) -> Generator[Event, Any, tuple[Step, Shapes]]:
        """Carry out the decode steps that are over when a request comes to this loop, or when the last one
        that was foreseen ends. What other loops do does not matter. The step under way then is to be
        launched, as of when the one before ended."""
        ahead = self._clock.ahead(self.number, shapes, self.scheduler.rounds_ahead(MOST_AHEAD))
        if ahead is None or len(ahead.ends) < 2:
            return step, shapes
        ends, tokens = ahead.ends[:-1], step.decode_count
        deliveries = self._front.deliver_later(self.number, ends, tokens, self._received)
        self._going = going = self.env.event()
        after(self.env, ahead.ends[-1] - int(self.env.now), action=lambda: self._has_gone(going))
        yield going
        over = self._with_one_decided(ahead.ends, bisect_left(ahead.ends, int(self.env.now)))
        deliveries.count = over
        self._clock.skip(self.number, ahead, over, step.decode_count)
        if not over:
            return step, shapes
        step = self.scheduler.skip(over)
        return step, self._shapes(step)

    def _has_gone(self, going: Event) -> None:
        if self._going is going:
            self.wake()

    def _with_one_decided(self, ends: Sequence[int], untouched: int) -> int:
        """How many steps are sure to be carried out, of which so many end before anything else happens: where
        steps are decided ahead, also the one that is under way then, for the one after it is decided too."""
        return min(untouched + self._decides_ahead, len(ends) - 1)

    def _run_before_others(self, step: Step, shapes: Shapes) -> tuple[Step | None, Shapes]:
        """Carry out the decode steps that nothing can touch, because the one after them is launched before
        anything else happens, or was decided before."""
        horizon, is_clients = self._horizon()
        if not is_clients and self.env.now + self._step_ticks // 2 >= horizon:
            return step, shapes
        while True:
            quiet = self.scheduler.rounds_ahead(MOST_AHEAD)
            with_end = is_clients and self._may_finish_ahead and self.scheduler.ends_after(quiet)
            ahead = self._clock.ahead(self.number, shapes, quiet + with_end)
            if ahead is None:
                return step, shapes
            untouched = bisect_left(ahead.ends, horizon)
            if untouched > quiet:
                following = self._finish_ahead(step, ahead, quiet)
                if following is None or following.prefills:
                    return following, () if following is None else self._shapes(following)
                step, shapes = following, self._shapes(following)
                continue
            ends = ahead.ends[:quiet]
            count = max(untouched, self._with_one_decided(ends, untouched)) if is_clients else untouched
            if not count:
                return step, shapes
            self._clock.skip(self.number, ahead, count, step.decode_count)
            self._deliver_ahead(ends[:count], untouched, step.decode_count)
            step = self.scheduler.skip(count)
            shapes = self._shapes(step)
            if untouched < len(ends):
                return step, shapes

    def _finish_ahead(self, step: Step, ahead: Ahead, quiet: int) -> Step | None:
        """Carry out so many decode steps and the one after, in which sequences end; the step that follows
        when that is over, if there is anything to do."""
        self._clock.skip(self.number, ahead, quiet + 1, step.decode_count)
        self._deliver_ahead(ahead.ends[:quiet], quiet, step.decode_count)
        last = self.scheduler.skip(quiet) if quiet else step
        self._account(last, self.scheduler.complete(last), ahead.ends[quiet])
        following = self.scheduler.decide()
        if following is None:
            self._clock.rest(self.number)
        else:
            self._note(following, ahead.ends[quiet])
        return following

    def _deliver_ahead(self, ends: Sequence[int], untouched: int, decoded: int) -> None:
        """Send the tokens of steps to the clients: at once those of the first, before which nothing else
        happens, if no other loop does anything either."""
        at_once = min(untouched, len(ends)) if self._is_only else 0
        if at_once:
            received = self._front.deliver_many(ends[:at_once], decoded)
            self._gaps.add_between(self._previous_received, received, decoded)
            self._previous_received = received[-1]
        if at_once < len(ends):
            self._front.deliver_later(self.number, ends[at_once:], decoded, self._received)

    def _horizon(self) -> tuple[float, bool]:
        """Before this tick nothing can reach the loop but its own steps; and whether only clients can then.
        Any event may be the step of a loop that it may meet, or one that ends a request whose client then
        asks for more."""
        if self._answers_matter or not self._clock.is_alone(self.number):
            return self.env.peek(), False
        return self._front.next_client_event(), True

    def _received(self, received: int, decoded: int) -> None:
        """Clients have one token each of `decoded` sequences that had one in the step before."""
        self._gaps.add(received - self._previous_received, decoded)
        self._previous_received = received

    def _something_to_do(self) -> Event:
        """When a request comes."""
        self._idle = self.env.event()
        return self._idle

    def _turn(self, turn: int) -> Event:
        """When everything else that happens at this tick has happened, and it is this loop's turn."""
        return after(self.env, 0, turn + self.number)

    def _note(self, step: Step, launched: int) -> None:
        """Remember which requests the step takes up for the first time, and which it preempts."""
        for piece in step.prefills:
            life = self.lives[piece.sequence]
            if life.scheduled < 0:
                life.scheduled = launched
        for number in step.preempted:
            life = self.lives[number]
            life.preemptions += 1
            if number in self._apart:
                self._apart.remove(number)
            if life.first_token >= 0 and life.stalled < 0:
                life.stalled = self._previous_received

    def _shapes(self, step: Step) -> tuple[StepShape, ...]:
        microbatches, traits = self.program.placement.microbatches, self.program.traits
        if step.of_ranks:
            return step.shapes_of_ranks(traits)
        if microbatches == 1:
            return (step.shape(traits),)
        return tuple(StepShape.of(part, traits) for part in self.scheduler.parts(microbatches))

    def _account(self, step: Step, completed: Completed, now: int) -> None:
        """Tell clients what a step that was over at a tick has brought."""
        received, work, on_wire = self._front.deliver(self.number, now, completed.token_count)
        self._note_gaps(step, completed, received)
        for number in completed.started:
            life = self.lives[number]
            life.first_token, life.first_received = now, received
        self._note_apart(step, completed, received)
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

    def _note_gaps(self, step: Step, completed: Completed, received: int) -> None:
        """Note how long clients have waited for the tokens of a step since those before."""
        advanced = step.decode_count + len(step.verifications)
        at_once = completed.token_count - advanced - len(completed.started) - len(completed.resumed)
        if at_once:  # what was accepted comes with the token before it
            self._gaps.add(0, at_once)
        apart: Sequence[int] = ()
        if self._apart and advanced:
            apart = [number for number in self._apart if number in self.lives]
        together = advanced - len(step.returned) - len(apart)
        if together:
            self._gaps.add(received - self._previous_received, together)
        for number in (*step.returned, *apart, *completed.resumed):
            life = self.lives[number]
            self._gaps.add(received - life.stalled, 1)
            life.stalled = -1

    def _note_apart(self, step: Step, completed: Completed, received: int) -> None:
        """Note since when those that decode from now on wait for their next token."""
        if step.decode_count or step.verifications:
            self._apart = []
            self._previous_received = received
            return
        ended = (*completed.finished, *completed.departed)
        begun = [number for number in (*completed.started, *completed.resumed) if number not in ended]
        if self.scheduler.decode_count == len(begun):
            self._previous_received = received
            return
        self._apart += begun
        for number in begun:
            self.lives[number].stalled = received


def _of_blocks(moves: Sequence[Move], block_tokens: int) -> Chunk:
    """Whole KV blocks to be moved, as a chunk of nobody's."""
    sources, targets = zip(*moves, strict=True)
    return Chunk(NOBODY, len(moves) * block_tokens, 0, False, sources, targets)


NOTHING_BROUGHT = Completed((), (), (), 0)
NOBODY = -1
"""Whose blocks are moved: a plan that moves them need not know."""
