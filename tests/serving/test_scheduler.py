"""The scheduler against its rules: a bookkeeper that recounts everything at each step, and cases by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.graph.shape import PLAIN, Chunk, StepShape, Traits
from simulator.serving.actions import Completed, Prefill, Step
from simulator.serving.scheduler import Scheduler
from simulator.specs.engine import SchedulerSettings
from tests import tiny


@dataclass(frozen=True)
class Asked:
    """A request that is added before the step of this number is decided."""

    before_step: int
    prompt: int
    output: int


@dataclass
class Bookkeeper:
    """Follows a scheduler step by step and recounts all it claims to have counted."""

    scheduler: Scheduler
    asked: Sequence[Asked]
    traits: Traits = PLAIN
    cached: dict[int, int] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    goal: dict[int, int] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    """In the order of admission."""
    finished: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    preemptions: int = 0
    steps: list[Step] = field(default_factory=list)

    @property
    def rules(self) -> SchedulerSettings:
        return self.scheduler.settings

    def run(self) -> None:
        """Ask all requests and serve them to the end."""
        left, number = sorted(enumerate(self.asked), key=lambda row: row[1].before_step), 0
        while True:
            while left and left[0][1].before_step <= number:
                self.add(*left.pop(0))
            number += 1
            assert number < 10_000, "the scheduler never comes to an end"
            step = self.scheduler.decide()
            if step is None:
                assert not self.waiting, "nothing to do while requests wait"
                assert not self.running, "nothing to do while requests run"
                if not left:
                    return
                continue
            self.check_step(step)
            self.check_completed(step, self.scheduler.complete(step))

    def add(self, number: int, asked: Asked) -> None:
        fits = self.blocks_for(asked.prompt + asked.output) <= self.scheduler.pool.count
        if not self.rules.chunked_prefill:
            fits = fits and asked.prompt <= self.rules.max_num_batched_tokens
        assert self.scheduler.add(number, asked.prompt, asked.output) == fits
        (self.waiting if fits else self.refused).append(number)
        self.cached[number] = self.committed[number] = 0
        self.goal[number] = asked.prompt

    def blocks_for(self, tokens: int) -> int:
        return math.ceil(tokens / self.rules.kv_block_tokens)

    # -- a step as decided --------------------------------------------------------------------------------

    def check_step(self, step: Step) -> None:
        self.steps.append(step)
        preempted = self.scheduler.preemptions - self.preemptions
        self.preemptions = self.scheduler.preemptions
        self.preempt_last(preempted)
        chunks = self.scheduler.chunks()
        decodes, prefills = chunks[: step.decode_count], chunks[step.decode_count :]
        self.check_admission([chunk.sequence for chunk in prefills], preempted)
        self.check_decodes(decodes)
        self.check_prefills(prefills)
        self.check_limits(step, chunks)
        self.check_blocks(chunks)
        assert step.shape(self.traits) == StepShape.of(chunks, self.traits)
        assert step.decode_span == sum(chunk.context + chunk.new for chunk in decodes)
        assert step.token_count == sum(chunk.new for chunk in chunks)
        assert self.scheduler.running_count == len(self.running)
        assert self.scheduler.waiting_count == len(self.waiting)

    def preempt_last(self, count: int) -> None:
        """Those admitted last go back to the head of the queue and compute everything again."""
        assert not (count and self.rules.full_reservation), "what is reserved is never taken away"
        assert count < max(1, len(self.running)), "the sequence admitted first is never preempted"
        out = self.running[len(self.running) - count :]
        self.running = self.running[: len(self.running) - count]
        self.waiting = out + self.waiting
        for number in out:
            self.cached[number] = 0
            self.goal[number] = self.asked[number].prompt + self.committed[number]

    def check_admission(self, prefilled: list[int], preempted: int) -> None:
        admitted = [number for number in prefilled if number not in self.running]
        assert admitted == self.waiting[: len(admitted)], "first come first served"
        assert not (admitted and preempted), "nobody is admitted in a step that preempts"
        self.waiting = self.waiting[len(admitted) :]
        self.running += admitted

    def check_decodes(self, decodes: Sequence[Chunk]) -> None:
        """Every sequence that has all its tokens cached decodes, in the order of admission."""
        expected = [number for number in self.running if self.cached[number] >= self.goal[number]]
        assert [chunk.sequence for chunk in decodes] == expected
        for chunk in decodes:
            assert (chunk.new, chunk.commits) == (1, True)
            assert chunk.context == self.cached[chunk.sequence]

    def check_prefills(self, prefills: Sequence[Chunk]) -> None:
        for chunk in prefills:
            assert chunk.context == self.cached[chunk.sequence]
            end = chunk.context + chunk.new
            assert chunk.new > 0
            assert end <= self.goal[chunk.sequence]
            assert chunk.commits == (end == self.goal[chunk.sequence])
            if not self.rules.chunked_prefill:
                assert chunk.commits, "a prompt was cut"

    def check_limits(self, step: Step, chunks: Sequence[Chunk]) -> None:
        """A sequence that was preempted may have outgrown the token budget: if it may not be cut, it goes
        alone."""
        assert len(self.running) <= self.rules.max_num_seqs
        assert len(chunks) <= self.rules.max_num_seqs
        outgrown = (
            not self.rules.chunked_prefill
            and len(chunks) == 1
            and self.goal[chunks[0].sequence] > self.asked[chunks[0].sequence].prompt
        )
        assert step.token_count <= self.rules.max_num_batched_tokens or outgrown
        begun = [piece for piece in step.prefills if piece.context == 0]
        assert len(begun) <= (self.rules.max_prefills_per_step or len(begun))

    def check_blocks(self, chunks: Sequence[Chunk]) -> None:
        taken = [block for chunk in chunks for block in chunk.blocks]
        assert len(taken) == len(set(taken)), "two sequences write to one block"
        pool = self.scheduler.pool
        assert set(taken) <= set(range(pool.count))
        held = 0
        for number in self.running:
            chunk = next((each for each in chunks if each.sequence == number), None)
            tokens = self.cached[number] + (chunk.new if chunk else 0)
            if self.rules.full_reservation:
                tokens = self.asked[number].prompt + self.asked[number].output
            held += self.blocks_for(tokens)
            if chunk:
                assert len(chunk.blocks) == self.blocks_for(tokens)
        assert held + pool.free_count == pool.count
        assert held <= pool.peak_taken <= pool.count

    # -- a step as completed ------------------------------------------------------------------------------

    def check_completed(self, step: Step, completed: Completed) -> None:
        prefilled = {piece.sequence: piece for piece in step.prefills}
        started, resumed, finished, tokens = list[int](), list[int](), list[int](), 0
        for number in list(self.running):
            piece = prefilled.get(number)
            if piece is None and self.cached[number] < self.goal[number]:
                continue
            self.cached[number] += piece.new if piece else 1
            if piece is not None and not piece.commits:
                continue
            if piece is not None:
                (resumed if self.committed[number] else started).append(number)
            tokens += 1
            self.committed[number] += 1
            if self.committed[number] == self.asked[number].output:
                finished.append(number)
                self.running.remove(number)
        assert list(completed.started) == started
        assert list(completed.resumed) == resumed
        assert sorted(completed.finished) == sorted(finished)
        assert completed.token_count == tokens
        self.finished += finished


def bookkeeper(rows: Sequence[Asked], blocks: int, window: int | None = None, **rules: Any) -> Bookkeeper:
    scheduler = Scheduler(tiny.scheduler_settings(**rules), blocks, window)
    followed = Bookkeeper(scheduler, rows, Traits(window, num_experts=8, num_experts_per_tok=2))
    followed.run()
    return followed


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    most = draw(st.integers(1, 6))
    return {
        "max_num_seqs": most,
        "max_num_batched_tokens": draw(st.integers(most, 24)),
        "chunked_prefill": draw(st.booleans()),
        "max_prefills_per_step": draw(st.sampled_from([None, None, 1, 2])),
        "kv_block_tokens": draw(st.integers(1, 5)),
        "full_reservation": draw(st.booleans()),
    }


asked = st.builds(Asked, st.integers(0, 12), st.integers(1, 20), st.integers(1, 12))
workload = st.lists(asked, max_size=10)
windows = st.sampled_from([None, 1, 2, 5, 8, 13, 40])


@settings(max_examples=400)
@given(rules=rules(), rows=workload, blocks=st.integers(1, 30), window=windows)
def test_every_step_obeys_the_rules(
    rules: dict[str, Any], rows: list[Asked], blocks: int, window: int | None
) -> None:
    """Whatever the capacity and the workload: the bookkeeper checks each step, and in the end every request
    is finished or refused, all its tokens are there and all blocks are back."""
    followed = bookkeeper(rows, blocks, window, **rules)
    assert sorted(followed.finished + followed.refused) == list(range(len(rows)))
    assert all(followed.committed[number] == rows[number].output for number in followed.finished)
    assert all(followed.committed[number] == 0 for number in followed.refused)
    assert followed.scheduler.pool.free_count == blocks


@settings(max_examples=100)
@given(rows=st.lists(asked, min_size=3, max_size=8), spare=st.integers(0, 3), window=windows)
def test_scarce_blocks_end_no_request(rows: list[Asked], spare: int, window: int | None) -> None:
    """Hardly more blocks than the largest request needs: preemption all the time, and still an end."""
    largest = max(-(-(row.prompt + row.output) // 2) for row in rows)
    followed = bookkeeper(rows, largest + spare, window, max_num_seqs=8, kv_block_tokens=2)
    assert sorted(followed.finished) == list(range(len(rows)))


def test_the_bookkeeper_has_seen_preemption() -> None:
    """Else the tests above would prove little."""
    rows = [Asked(0, 6, 10), Asked(0, 6, 10), Asked(0, 6, 10)]
    followed = bookkeeper(rows, 9, kv_block_tokens=2)
    assert followed.preemptions > 0
    reserved = bookkeeper(rows, 9, kv_block_tokens=2, full_reservation=True)
    assert reserved.preemptions == 0


@settings(max_examples=200)
@given(rules=rules(), rows=workload, blocks=st.integers(4, 30), window=windows, data=st.data())
def test_rounds_skipped_are_rounds_carried_out(
    rules: dict[str, Any], rows: list[Asked], blocks: int, window: int | None, data: st.DataObject
) -> None:
    """A twin that completes every step sees the shapes that were foretold, and the same afterwards."""
    traits = Traits(window)
    leaping, walking = (Scheduler(tiny.scheduler_settings(**rules), blocks, window) for _ in range(2))
    for scheduler in (leaping, walking):
        for number, row in enumerate(rows):
            scheduler.add(number, row.prompt, row.output)
    while (step := leaping.decide()) is not None:
        walked, foretold = walking.decide(), step.shape(traits)
        skipped = data.draw(st.integers(0, leaping.rounds_ahead(data.draw(st.integers(1, 20)))))
        for ahead in range(skipped):
            assert walked is not None
            assert walked.shape(traits) == foretold.grown(ahead)
            assert walking.complete(walked) == Completed((), (), (), walked.decode_count)
            walked = walking.decide()
        step = leaping.skip(skipped) if skipped else step
        assert walked == step
        assert walking.chunks() == leaping.chunks()
        assert step.shape(traits) == StepShape.of(leaping.chunks(), traits)
        assert walking.complete(walked) == leaping.complete(step)
    assert walking.decide() is None


def test_steps_are_foretold_up_to_the_one_that_fills_a_window() -> None:
    """A prompt of 3 and a window of 6: decode steps read 4, 5 and 6 keys, and 6 from then on."""
    scheduler = Scheduler(tiny.scheduler_settings(kv_block_tokens=100), 1, sliding_window=6)
    scheduler.add(0, 3, 20)
    first = scheduler.decide()
    assert first is not None
    scheduler.complete(first)
    step = scheduler.decide()
    assert step is not None
    assert (step.window_decode_span, step.window_growing) == (4, 1)
    assert scheduler.rounds_ahead(100) == 2
    step = scheduler.skip(2)
    assert (step.window_decode_span, step.window_growing) == (6, 0)
    assert scheduler.rounds_ahead(100) == 16


# --- schedules by hand --------------------------------------------------------------------------------------


def played(rows: Sequence[Asked], blocks: int, **rules: Any) -> list[tuple[int, int, tuple[Any, ...]]]:
    """Each step as (sequences that decode, keys they read, prefills as (sequence, context, new, commits))."""
    steps = bookkeeper(rows, blocks, **rules).steps
    return [(step.decode_count, step.decode_span, tuple(map(plain, step.prefills))) for step in steps]


def plain(piece: Prefill) -> tuple[int, int, int, bool]:
    return (piece.sequence, piece.context, piece.new, piece.commits)


def test_chunked_prefill_by_hand() -> None:
    """Budget 8 tokens, 3 sequences at most; A: 5 + 3, B: 6 + 2, C: 2 + 2 tokens, D: 1 + 1."""
    rows = [Asked(0, 5, 3), Asked(0, 6, 2), Asked(0, 2, 2), Asked(0, 1, 1)]
    assert played(rows, 100, max_num_seqs=3, max_num_batched_tokens=8) == [
        # A whole, B gets the 3 tokens that are left
        (0, 0, ((0, 0, 5, True), (1, 0, 3, False))),
        # A decodes: its 5 keys and its new one. B's other 3 come before C's 2; D is a fourth sequence
        (1, 6, ((1, 3, 3, True), (2, 0, 2, True))),
        # A 7 keys, B 7, C 3: all three choose their last token
        (3, 17, ()),
        # now there is room for D
        (0, 0, ((3, 0, 1, True),)),
    ]


def test_whole_prefills_by_hand() -> None:
    """The same without cutting: B waits for a step in which its 6 tokens fit, and C behind it, although
    C's 2 would have fitted into the first step."""
    rows = [Asked(0, 5, 3), Asked(0, 6, 2), Asked(0, 2, 2)]
    rules = {"max_num_seqs": 3, "max_num_batched_tokens": 8, "chunked_prefill": False}
    assert played(rows, 100, **rules) == [
        (0, 0, ((0, 0, 5, True),)),
        (1, 6, ((1, 0, 6, True),)),  # A takes 1 of 8, B 6, and C's 2 no longer fit
        (2, 7 + 7, ((2, 0, 2, True),)),
        (1, 3, ()),
    ]


def test_one_prefill_a_step_by_hand() -> None:
    rows = [Asked(0, 2, 2), Asked(0, 2, 1), Asked(0, 2, 1)]
    assert played(rows, 100, max_prefills_per_step=1) == [
        (0, 0, ((0, 0, 2, True),)),
        (1, 3, ((1, 0, 2, True),)),
        (0, 0, ((2, 0, 2, True),)),
    ]


def test_preemption_by_hand() -> None:
    """5 blocks of 2 tokens; A: 4 + 4 tokens, B: 3 + 3.

    A and B take 2 blocks each. Before step 1, A's 4 cached tokens fill its blocks and it takes the fifth;
    B has room for its fourth token. Before step 2, A has room; B's 4 tokens fill its blocks and no block is
    free: B, admitted last, goes. It has chosen 2 tokens, so it must compute 3 + 2 again, in 3 blocks. A ends
    at step 3, holding 4 blocks; then B comes back and chooses its third and last token.
    """
    rows = [Asked(0, 4, 4), Asked(0, 3, 3)]
    assert played(rows, 5, kv_block_tokens=2) == [
        (0, 0, ((0, 0, 4, True), (1, 0, 3, True))),
        (2, 5 + 4, ()),
        (1, 6, ()),
        (1, 7, ()),
        (0, 0, ((1, 0, 5, True),)),
    ]


def test_full_reservation_by_hand() -> None:
    """The same request pair: 4 + 4 tokens reserve 4 of 5 blocks, so B's 3 wait until A is done."""
    rows = [Asked(0, 4, 4), Asked(0, 3, 3)]
    assert played(rows, 5, kv_block_tokens=2, full_reservation=True) == [
        (0, 0, ((0, 0, 4, True),)),
        (1, 5, ()),
        (1, 6, ()),
        (1, 7, ()),
        (0, 0, ((1, 0, 3, True),)),
        (1, 4, ()),
        (1, 5, ()),
    ]


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    scheduler = Scheduler(tiny.scheduler_settings(kv_block_tokens=4), 3)
    assert not scheduler.add(0, prompt_tokens=9, output_tokens=4)
    assert scheduler.add(1, prompt_tokens=8, output_tokens=4)
    whole = Scheduler(tiny.scheduler_settings(chunked_prefill=False, max_num_batched_tokens=16), 100)
    assert not whole.add(0, prompt_tokens=17, output_tokens=1)
    assert whole.add(1, prompt_tokens=16, output_tokens=1)


def test_an_idle_scheduler_asks_for_nothing() -> None:
    scheduler = Scheduler(tiny.scheduler_settings(), 4)
    assert scheduler.decide() is None
    assert scheduler.decide() is None


def test_steps_are_completed_one_at_a_time() -> None:
    scheduler = Scheduler(tiny.scheduler_settings(), 4)
    scheduler.add(0, 2, 3)
    first = scheduler.decide()
    assert first is not None
    with pytest.raises(AssertionError, match="has not been completed"):
        scheduler.decide()
    scheduler.complete(first)
    with pytest.raises(AssertionError, match="only the step decided last"):
        scheduler.complete(first)


def test_a_long_run_of_decodes_keeps_its_sums() -> None:
    """A thousand rounds: the sums kept by increments are those of counting, the bookkeeper says so."""
    rows = [Asked(number * 7, 3 + number, 200 + 31 * number) for number in range(6)]
    followed = bookkeeper(rows, 400, max_num_seqs=6)
    assert len(followed.steps) > 300
    assert sorted(followed.finished) == list(range(6))
