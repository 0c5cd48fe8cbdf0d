"""What the scheduler asks for, and what came of it."""

from __future__ import annotations

from typing import NamedTuple

from simulator.graph.shape import Chunk, StepShape, Traits

Move = tuple[int, int]
"""A KV block to read and one to write, one in the device and one in host memory."""


class Prefill(NamedTuple):
    """A piece of one sequence's prompt (or of all its tokens, after a preemption)."""

    sequence: int
    context: int
    new: int
    commits: bool
    """Whether it is the last piece, after which a token is chosen."""

    @property
    def rows(self) -> int:
        """How many are scored: the last one, also where it is not the last piece."""
        return 1


class Verification(NamedTuple):
    """A decoding sequence's round: its last token and those that a drafter proposed go through the model."""

    sequence: int
    context: int
    proposed: int
    generated: int
    """Tokens of its answer so far."""
    left: int
    """And those that are still to come."""
    lag: int
    """Of the cached tokens, those that the drafter has not seen."""

    @property
    def new(self) -> int:
        return self.proposed + 1

    @property
    def rows(self) -> int:
        return self.proposed + 1


class Step(NamedTuple):
    """One forward pass: every decoding sequence by one token, and some pieces of prefill.

    Decoding sequences are counted, not listed, so that a step costs the same however many there are;
    `Scheduler.chunks` lists them for who carries the step out. Where tokens are proposed, they are
    `verifications`, and none is counted.
    """

    decode_count: int
    decode_span: int
    """Keys that the decoding sequences attend to, their new tokens included."""
    prefills: tuple[Prefill, ...] = ()
    preempted: tuple[int, ...] = ()
    """Sequences that lost their blocks to make room for this step."""
    window_decode_span: int = 0
    """Of the keys read by decoding sequences those inside the model's sliding window; 0 without one."""
    window_growing: int = 0
    """Decoding sequences that do not fill the window yet."""
    of_ranks: tuple[Step | None, ...] = ()
    """What each rank's own sequences bring to it, where ranks have sequences of their own."""
    saved: tuple[Move, ...] = ()
    """Blocks copied to host memory before it."""
    restored: tuple[Move, ...] = ()
    """Blocks copied back from there after that, before it."""
    returned: tuple[int, ...] = ()
    """Decoding sequences whose last token was not of the step before: they had been swapped out, or another
    loop has handed them over."""
    verifications: tuple[Verification, ...] = ()

    @property
    def token_count(self) -> int:
        proposed = sum(each.new for each in self.verifications)
        return self.decode_count + proposed + sum(prefill.new for prefill in self.prefills)

    @property
    def sequence_count(self) -> int:
        """Sequences that take part."""
        return self.decode_count + len(self.verifications) + len(self.prefills)

    def pieces(self) -> tuple[Chunk, ...]:
        """Its chunks but for decoding sequences that are only counted, without blocks."""
        rounds = [Chunk(v.sequence, v.context, v.new, True, rows=v.rows) for v in self.verifications]
        return (*rounds, *(Chunk(p.sequence, p.context, p.new, p.commits) for p in self.prefills))

    def shapes_of_ranks(self, traits: Traits) -> tuple[StepShape, ...]:
        """The shape of what each rank brings, and of all of it together."""
        nothing = StepShape.of((), traits)
        return (*(nothing if own is None else own.shape(traits) for own in self.of_ranks), self.shape(traits))

    def shape(self, traits: Traits) -> StepShape:
        """The sums that decide the step's cost."""
        return StepShape.of(
            (*self.verifications, *self.prefills), traits, self.decode_count, self.decode_span,
            self.window_decode_span, self.window_growing,
        )  # fmt: skip


class Completed(NamedTuple):
    """What a finished step brought."""

    started: tuple[int, ...]
    """Sequences that got their first token."""
    resumed: tuple[int, ...]
    """Sequences that got a further token from the prefill that follows a preemption."""
    finished: tuple[int, ...]
    token_count: int
    """Tokens committed to sequences."""
    departed: tuple[int, ...] = ()
    """Sequences that go on in another loop, and keep their blocks until they are there."""


class Handover(NamedTuple):
    """Copy what a sequence has cached in one loop's KV blocks to those that another one keeps for it."""

    source: int
    target: int
    chunk: Chunk
    """All its tokens, none of them new, with both loops' blocks."""
