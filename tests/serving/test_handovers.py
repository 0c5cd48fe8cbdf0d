"""Sequences that are prefilled by one scheduler and decoded by another: nothing is lost, nobody waits for ever."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving.actions import Handover, Step
from simulator.serving.arrivals import Request, content_of
from simulator.serving.handovers import Handovers
from simulator.serving.scheduler import Scheduler
from tests.serving.shadow import ShadowCache
from tests.serving.test_laws import BLOCK, asked, rules
from tests.tiny import scheduler_settings


class Pools:
    """Two pools that take a step each in turn; copies take a given number of turns."""

    def __init__(self, prefill: list[Scheduler], decode: list[Scheduler], copy_turns: int, spread: int) -> None:
        self.loops = dict(enumerate([*prefill, *decode]))
        self.sources = list(range(len(prefill)))
        self.targets = list(range(len(prefill), len(self.loops)))
        self.handovers = Handovers({n: self.loops[n] for n in self.sources}, {n: self.loops[n] for n in self.targets})
        self.caches = {number: ShadowCache(BLOCK) for number in self.loops}
        self.copy_turns, self.spread = copy_turns, spread
        self.under_way: list[tuple[int, Handover]] = []
        self.arrived: dict[int, list[int]] = {number: [] for number in self.targets}
        self.tokens: dict[int, int] = {}
        self.over: list[int] = []
        self.turn = 0
        self.at: dict[int, int] = {}

    def add(self, request: Request) -> bool:
        if not all(self.loops[n].could_hold(request.prompt_tokens, request.output_tokens) for n in self.targets):
            return False
        source = self.sources[request.number % len(self.sources)]
        content = content_of(request) if request.prefix else None
        return self.loops[source].add(request.number, request.prompt_tokens, request.output_tokens, request.priority, content)

    def give_up(self, number: int) -> bool:
        """At any stage but while its blocks are being copied."""
        if self.handovers.abort(number) is not None:
            return True
        return any(loop.abort(number) for loop in self.loops.values())

    def play_turn(self, requests: dict[int, Request]) -> bool:
        """Whether anything was done."""
        self.turn += 1
        steps = {number: self._decide(number) for number in self.loops}
        begun = list(self.handovers.begin())
        for handover in begun:
            self.under_way.append((self.turn + self.copy_turns, handover))
        for number, step in steps.items():
            if step is not None:
                self._carry_out(number, step, requests)
        ended = [handover for due, handover in self.under_way if due <= self.turn]
        self.under_way = [each for each in self.under_way if each[0] > self.turn]
        for handover in ended:
            self._copy(handover, requests)
            self.handovers.complete(handover)
            self.arrived[handover.target].append(handover.chunk.sequence)
        return any(step is not None for step in steps.values()) or bool(begun or ended or self.under_way)

    def _decide(self, number: int) -> Step | None:
        for sequence in self.arrived.get(number, ()):
            self.loops[number].start(sequence)
        self.arrived[number] = []
        return self.loops[number].decide()

    def _carry_out(self, number: int, step: Step, requests: dict[int, Request]) -> None:
        loop, cache = self.loops[number], self.caches[number]
        assert loop.running_count <= loop.settings.max_num_seqs
        cache.move(step)
        for chunk in loop.chunks():
            cache.compute(chunk, requests[chunk.sequence])
            self.tokens[chunk.sequence] = self.tokens.get(chunk.sequence, 0) + chunk.commits
        if number in self.sources:
            assert not step.decode_count, "nothing decodes where prompts are read"
        done = loop.complete(step)
        self.over += done.finished
        for sequence in done.departed:
            self.handovers.add(sequence, number, self.targets[(sequence * self.spread) % len(self.targets)])

    def _copy(self, handover: Handover, requests: dict[int, Request]) -> None:
        chunk, source, target = handover.chunk, self.caches[handover.source], self.caches[handover.target]
        assert chunk.context == requests[chunk.sequence].prompt_tokens
        for position in range(chunk.context):
            offset = position % BLOCK
            found = source.device[chunk.blocks[position // BLOCK], offset]
            target.device[chunk.target_blocks[position // BLOCK], offset] = found


@st.composite
def pools(draw: Any) -> tuple[Pools, list[Request], list[int], dict[int, int]]:
    setting, requests = draw(rules()), draw(asked())
    blocks = [draw(st.integers(1, 20)), draw(st.integers(1, 30))]
    sizes = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]
    prefill = [Scheduler(setting, blocks[0], prefill_only=True) for _ in range(sizes[0])]
    decode = [Scheduler(setting, blocks[1], first_block=3) for _ in range(sizes[1])]
    before = draw(st.lists(st.integers(0, 30), min_size=len(requests), max_size=len(requests)))
    gives_up = draw(st.dictionaries(st.integers(0, len(requests) - 1), st.integers(1, 60), max_size=3))
    return Pools(prefill, decode, draw(st.integers(0, 7)), draw(st.integers(0, 1))), requests, before, gives_up


@settings(max_examples=500, deadline=None)
@given(pools())
def test_every_request_is_decoded_elsewhere_and_no_block_is_lost(drawn):
    """No deadlock and no leak in either pool, whatever their room; all that is read was written for it."""
    played, requests, before, gives_up = drawn
    by_number = {request.number: request for request in requests}
    left = sorted(zip(before, requests, strict=True), key=lambda pair: pair[0])
    rejected, aborted = [], []
    for _ in range(20_000):
        while left and left[0][0] <= played.turn:
            request = left.pop(0)[1]
            if not played.add(request):
                rejected.append(request.number)
        for number in [number for number, when in gives_up.items() if when <= played.turn]:
            if number not in {handover.chunk.sequence for _, handover in played.under_way}:
                del gives_up[number]
                if played.give_up(number):
                    for arrived in played.arrived.values():
                        if number in arrived:
                            arrived.remove(number)
                    aborted.append(number)
        if not played.play_turn(by_number) and not left:
            break
    assert sorted([*played.over, *rejected, *aborted]) == [request.number for request in requests]
    for number in played.over:
        assert played.tokens[number] == by_number[number].output_tokens
    for loop in played.loops.values():
        assert loop.pool.free_count == loop.pool.count
        assert not (loop.running_count or loop.waiting_count)
    assert played.handovers.waiting_count == 0


def prefilled(prompt: int, output: int = 5, **changes: Any) -> Scheduler:
    source = Scheduler(scheduler_settings(**changes), block_count=20, prefill_only=True)
    source.add(0, prompt, output)
    while (step := source.decide()) is not None:
        done = source.complete(step)
    assert done.departed == (0,)
    return source


def test_blocks_stay_taken_until_they_are_released():
    source = prefilled(prompt=9)
    assert source.pool.free_count == 17
    assert source.running_count == 0
    source.release(0)
    assert source.pool.free_count == 20


def test_a_single_token_is_answered_where_the_prompt_was_read():
    source = Scheduler(scheduler_settings(), block_count=20, prefill_only=True)
    source.add(0, 7, 1)
    done = source.complete(source.decide())
    assert (done.finished, done.departed) == ((0,), ())
    assert source.pool.free_count == 20


def test_prompts_need_room_to_prefill_and_whole_requests_to_decode():
    """4 tokens a block: 8 tokens fit in two blocks, 8 + 1 do not."""
    source = Scheduler(scheduler_settings(), block_count=2, prefill_only=True)
    target = Scheduler(scheduler_settings(), block_count=2)
    assert source.could_hold(8, 1_000)
    assert not source.could_hold(9, 1)
    assert target.could_hold(7, 1)
    assert not target.could_hold(8, 1)


def test_a_sequence_under_way_takes_a_place_and_cannot_be_preempted():
    target = Scheduler(scheduler_settings(max_num_seqs=2), block_count=6)
    assert target.reserve(prefilled(prompt=8).departed(0)) == (0, 1)
    other = Scheduler(scheduler_settings(), block_count=20, prefill_only=True)
    other.add(1, 8, 9)
    other.complete(other.decide())
    assert target.reserve(other.departed(1)) == (2, 3)
    third = Scheduler(scheduler_settings(), block_count=20, prefill_only=True)
    third.add(2, 4, 9)
    third.complete(third.decide())
    assert target.reserve(third.departed(2)) is None, "two places only"
    target.start(1)
    steps = [target.decide()]
    assert steps[0].returned == (1,)
    target.complete(steps[0])
    assert target.pool.free_count == 1, "its ninth token has a block"
    for _ in range(3):
        target.complete(target.decide())
    target.complete(target.decide())
    assert target.pool.free_count == 0
    target.start(0)
    step = target.decide()
    assert step.preempted == (0,), "the one that came last has no block for its ninth token"
    assert step.decode_count == 1
    assert step.returned == ()
