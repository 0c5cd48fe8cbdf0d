"""The shape of a step and the amounts that depend on it.

A step is a list of *chunks*, one sequence's share each. What it costs depends on the chunks only through
a few integer sums, the *features*. Every amount in the program (FLOPs, bytes) is an integer linear form of
the features, an `Amount`: lowering is done once with forms, and a step is priced by a dot product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's share of a step: prefill, a piece of a prefill, or one decode token alike."""

    sequence: int
    context: int
    """Tokens of the sequence whose keys and values are already cached."""
    new: int
    """Tokens that go through the layers in this step."""
    commits: bool
    """Whether the token chosen after the last new one is kept; False for a prefill that goes on. The last
    row of every chunk is scored all the same, as serving engines do, so the plan does not depend on it."""
    blocks: tuple[int, ...] = ()
    """The KV blocks of the sequence, in order, enough for context + new tokens; empty on the clock,
    which counts blocks without naming them."""
    target_blocks: tuple[int, ...] = ()
    """Where a hand-over puts its cached tokens; a chunk handed over has no new ones."""


class StepShape(NamedTuple):
    """The sums over a step's chunks that decide what it costs. The order of the fields is the order of
    the coefficients of an `Amount`; both are linear under joining chunk lists."""

    one: int = 1
    tokens: int = 0
    sequences: int = 0
    logit_rows: int = 0
    prefill_tokens: int = 0
    """New tokens of chunks with more than one of them; the others are counted under decode."""
    prefill_pairs: int = 0
    """Query-key pairs under the causal mask: sum of new * context + new * (new + 1) / 2."""
    prefill_square: int = 0
    """Pairs without the mask, as torch counts a masked matmul: sum of new * (context + new)."""
    prefill_span: int = 0
    """Keys read: sum of context + new."""
    decode_tokens: int = 0
    decode_span: int = 0

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> StepShape:
        """Sum the features of `chunks`."""
        tokens = sequences = logit_rows = 0
        prefill_tokens = prefill_pairs = prefill_square = prefill_span = decode_tokens = decode_span = 0
        for chunk in chunks:
            span = chunk.context + chunk.new
            sequences += 1
            tokens += chunk.new
            logit_rows += 1
            if chunk.new == 1:
                decode_tokens += 1
                decode_span += span
            else:
                prefill_tokens += chunk.new
                prefill_pairs += chunk.new * chunk.context + chunk.new * (chunk.new + 1) // 2
                prefill_square += chunk.new * span
                prefill_span += span
        return cls(
            1, tokens, sequences, logit_rows, prefill_tokens, prefill_pairs, prefill_square, prefill_span,
            decode_tokens, decode_span,
        )  # fmt: skip


    def joined(self, other: StepShape) -> StepShape:
        """The shape of the two chunk lists together."""
        sums = (a + b for a, b in zip(self[1:], other[1:], strict=True))
        return StepShape(1, *sums)


FEATURE_COUNT = 10
ZERO = (0,) * FEATURE_COUNT


@dataclass(frozen=True, slots=True)
class Amount:
    """An integer linear form of a step's features: how much of something a task does.

    >>> weights, inputs = Amount.of(one=100), Amount.of(tokens=8)
    >>> (weights + inputs * 2).at(StepShape.of([Chunk(0, context=5, new=3, commits=True)]))
    148
    """

    coefficients: tuple[int, ...] = ZERO

    @classmethod
    def of(
        cls, *, one: int = 0, tokens: int = 0, sequences: int = 0, logit_rows: int = 0,
        prefill_tokens: int = 0, prefill_pairs: int = 0, prefill_square: int = 0, prefill_span: int = 0,
        decode_tokens: int = 0, decode_span: int = 0,
    ) -> Amount:  # fmt: skip
        """Name the coefficients that are not zero."""
        return cls((
            one, tokens, sequences, logit_rows, prefill_tokens, prefill_pairs, prefill_square, prefill_span,
            decode_tokens, decode_span,
        ))  # fmt: skip

    def __add__(self, other: Amount) -> Amount:
        return Amount(tuple(a + b for a, b in zip(self.coefficients, other.coefficients, strict=True)))

    def __mul__(self, factor: int) -> Amount:
        return Amount(tuple(a * factor for a in self.coefficients))

    def __bool__(self) -> bool:
        return any(self.coefficients)

    def at(self, shape: StepShape) -> int:
        """The amount for one shape, exactly."""
        return sum(a * b for a, b in zip(self.coefficients, shape, strict=True) if a)


NOTHING = Amount()


def total(amounts: Iterable[Amount]) -> Amount:
    """Add up any number of amounts."""
    result = NOTHING
    for amount in amounts:
        result += amount
    return result


def split_evenly(count: int, parts: int) -> tuple[int, ...]:
    """Sizes of `parts` contiguous shares of `count` things, the larger ones first.

    >>> split_evenly(10, 4)
    (3, 3, 2, 2)
    """
    small, larger = divmod(count, parts)
    return (small + 1,) * larger + (small,) * (parts - larger)


def starts_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where each of some contiguous shares begins."""
    starts, position = [], 0
    for size in sizes:
        starts.append(position)
        position += size
    return tuple(starts)
