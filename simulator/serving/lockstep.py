"""Ranks that have sequences of their own and take every step together, as data-parallel ranks do whose
experts are shared out: each decides by a scheduler and KV blocks of its own; a step is what all decided."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.graph.shape import Chunk
from simulator.serving.actions import Completed, Step
from simulator.serving.scheduler import Scheduler
from simulator.serving.sequences import Content


class Lockstep:
    """Several schedulers as one. A rank that has nothing to do takes part without tokens."""

    def __init__(self, ranks: Sequence[Scheduler]) -> None:
        self.ranks = tuple(ranks)
        self._pending: tuple[Step | None, ...] = ()

    @property
    def preemptions(self) -> int:
        return sum(rank.preemptions for rank in self.ranks)

    @property
    def peak_blocks(self) -> int:
        """The most blocks that were taken on any rank; each has as many."""
        return max(rank.peak_blocks for rank in self.ranks)

    @property
    def decode_count(self) -> int:
        """Sequences that decode, on all ranks."""
        return sum(rank.decode_count for rank in self.ranks)

    @property
    def moves_blocks(self) -> bool:
        """Whether KV blocks may have to be copied before a step."""
        return any(rank.moves_blocks for rank in self.ranks)

    @property
    def block_tokens(self) -> int:
        return self.ranks[0].block_tokens

    @property
    def prompt_tokens(self) -> int:
        return sum(rank.prompt_tokens for rank in self.ranks)

    @property
    def reused_tokens(self) -> int:
        return sum(rank.reused_tokens for rank in self.ranks)

    def add(
        self, number: int, prompt_tokens: int, output_tokens: int, priority: int = 0,
        content: Content | None = None,
    ) -> bool:  # fmt: skip
        """Queue a request on the rank with the fewest; False if no rank can ever serve it."""
        counts = [rank.waiting_count + rank.running_count for rank in self.ranks]
        rank = self.ranks[counts.index(min(counts))]
        return rank.add(number, prompt_tokens, output_tokens, priority, content)

    def abort(self, number: int) -> bool:
        """Forget a request, between two steps; False if it is on no rank."""
        return any(rank.abort(number) for rank in self.ranks)

    def decide(self) -> Step | None:
        """The next step of all ranks, or None if none has anything to do."""
        self._pending = tuple(rank.decide() for rank in self.ranks)
        return self._together() if any(self._pending) else None

    def complete(self, step: Step) -> Completed:
        """Account for the pending step on every rank that took part."""
        done = [
            rank.complete(own) for rank, own in zip(self.ranks, self._pending, strict=True) if own is not None
        ]
        self._pending = ()
        return Completed(
            tuple(number for each in done for number in each.started),
            tuple(number for each in done for number in each.resumed),
            tuple(number for each in done for number in each.finished),
            sum(each.token_count for each in done),
        )

    def rounds_ahead(self, most: int) -> int:
        """How many steps are sure to only decode the same sequences, on every rank that takes part."""
        active = [rank for rank, own in zip(self.ranks, self._pending, strict=True) if own is not None]
        return min(rank.rounds_ahead(most) for rank in active)

    def ends_after(self, rounds: int) -> bool:
        """Never said: an end on one rank is looked at when the step is over."""
        return False

    def skip(self, count: int) -> Step:
        """Go on by so many of those steps on every rank; the step that is pending then."""
        self._pending = tuple(
            None if own is None else rank.skip(count)
            for rank, own in zip(self.ranks, self._pending, strict=True)
        )
        return self._together()

    def parts(self, microbatches: int) -> tuple[tuple[Chunk, ...], ...]:
        """The pending step's chunks, rank by rank."""
        assert microbatches == len(self.ranks), "a microbatch is what one rank has"
        return tuple(
            () if own is None else rank.chunks() for rank, own in zip(self.ranks, self._pending, strict=True)
        )

    def _together(self) -> Step:
        steps = [own for own in self._pending if own is not None]
        return Step(
            sum(own.decode_count for own in steps), sum(own.decode_span for own in steps),
            tuple(piece for own in steps for piece in own.prefills),
            tuple(number for own in steps for number in own.preempted),
            sum(own.window_decode_span for own in steps), sum(own.window_growing for own in steps),
            self._pending,
        )  # fmt: skip
