"""Ranks that take every step together: each is a scheduler of its own, and nothing is lost between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulator.graph.shape import StepShape, Traits
from simulator.serving.lockstep import Lockstep
from simulator.serving.scheduler import Scheduler
from tests import tiny

SETTINGS = tiny.scheduler_settings(max_num_seqs=3, max_num_batched_tokens=8)
TRAITS = Traits(sliding_window=5, num_experts=8, num_experts_per_tok=2)

lengths = st.tuples(st.integers(1, 20), st.integers(1, 8))


def ranks(count: int, blocks: int = 7) -> Lockstep:
    return Lockstep([Scheduler(SETTINGS, blocks, TRAITS.sliding_window) for _ in range(count)])


@given(st.lists(lengths, min_size=1, max_size=9), st.integers(2, 4))
def test_every_rank_decides_as_it_would_alone(requests: list[tuple[int, int]], count: int) -> None:
    """Requests go to the rank with the fewest; from then on each rank's steps are those of a scheduler that
    has only these, and a rank with nothing to do takes part without tokens."""
    together, alone = ranks(count), [Scheduler(SETTINGS, 7, TRAITS.sliding_window) for _ in range(count)]
    for number, (prompt, output) in enumerate(requests):
        accepted = together.add(number, prompt, output)
        counts = [rank.waiting_count + rank.running_count for rank in alone]
        assert alone[counts.index(min(counts))].add(number, prompt, output) == accepted
    finished: list[int] = []
    while (step := together.decide()) is not None:
        own = [rank.decide() for rank in alone]
        assert list(step.of_ranks) == own
        assert together.parts(count) == tuple(
            () if each is None else rank.chunks() for rank, each in zip(alone, own, strict=True)
        )
        shapes = step.shapes_of_ranks(TRAITS)
        assert shapes[:-1] == tuple(StepShape.of(part, TRAITS) for part in together.parts(count))
        chunks = [chunk for part in together.parts(count) for chunk in part]
        assert shapes[-1] == StepShape.of(chunks, TRAITS)
        done = together.complete(step)
        apart = [rank.complete(each) for rank, each in zip(alone, own, strict=True) if each is not None]
        assert done.token_count == sum(each.token_count for each in apart)
        assert done.finished == tuple(number for each in apart for number in each.finished)
        finished += done.finished
    assert together.preemptions == sum(rank.preemptions for rank in alone)
    fitting = [n for n, (prompt, output) in enumerate(requests) if -(-(prompt + output) // 4) <= 7]
    assert sorted(finished) == fitting
    assert all(rank.pool.free_count == 7 for rank in together.ranks)


@given(st.lists(lengths, min_size=1, max_size=8), st.integers(2, 3))
def test_skipping_rounds_is_deciding_and_completing_them(requests: list[tuple[int, int]], count: int) -> None:
    quick, slow = ranks(count, blocks=40), ranks(count, blocks=40)
    for number, (prompt, output) in enumerate(requests):
        quick.add(number, prompt, output)
        slow.add(number, prompt, output)
    while (step := quick.decide()) is not None:
        same = slow.decide()
        assert same == step
        assert same is not None
        ahead = quick.rounds_ahead(64)
        if ahead:
            step = quick.skip(ahead)
            for _ in range(ahead):
                slow.complete(same)
                same = slow.decide()
                assert same is not None
            assert same == step
        assert quick.complete(step) == slow.complete(same)
    assert slow.decide() is None
