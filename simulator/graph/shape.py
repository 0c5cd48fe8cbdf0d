"""The shape of a step and the amounts that depend on it.

A step is a list of *chunks*, one sequence's share each. What it costs depends on the chunks only through
a few sums, the *features*. Every amount in the program (FLOPs, bytes) is an integer linear form of
the features, an `Amount`: lowering is done once with forms, and a step is priced by a dot product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.specs.architecture import Architecture


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
    rows: int = 1
    """How many of its last rows are scored: all of a verification of proposed tokens, of others one."""


class Share(Protocol):
    """What of a chunk decides what it costs."""

    @property
    def context(self) -> int: ...
    @property
    def new(self) -> int: ...
    @property
    def rows(self) -> int: ...


SHARE_STEPS = 256


@dataclass(frozen=True)
class Traits:
    """What of a placed model decides which sums a step's cost depends on."""

    sliding_window: int | None = None
    num_experts: int = 0
    num_experts_per_tok: int = 0
    aside: tuple[int, ...] = ()
    """Experts that are computed on another device than the rest of their layer."""
    popularity: tuple[float, ...] | None = None
    """Of each expert, the probability that a token chooses it; None: equal for all."""

    @classmethod
    def of(cls, model: Architecture) -> Traits:
        experts = model.experts
        if experts is None:
            return cls(model.sliding_window)
        return cls(model.sliding_window, experts.num_experts, experts.num_experts_per_tok)

    def active_experts(self, tokens: int) -> float:
        """Expected number of different experts of a layer that so many tokens choose, but for those computed
        aside. With equal popularity each token chooses k of n at random and on its own:
        n (1 - (1 - k/n)^tokens).

        >>> Traits(None, num_experts=8, num_experts_per_tok=2).active_experts(2)
        3.5
        """
        if self.popularity is not None:
            return self._chosen_of(self._split_popularity[0], tokens)
        return self._active_of(self.num_experts - len(self.aside), tokens)

    def side_experts(self, tokens: int) -> float:
        """The same of the experts that are computed aside."""
        if not self.aside:
            return 0
        if self.popularity is not None:
            return self._chosen_of(self._split_popularity[1], tokens)
        return self._active_of(len(self.aside), tokens)

    def share_aside(self) -> Fraction:
        """Expected share of a token's choices that are computed aside; where popularity is stated, to 1/256,
        so that parts of work are whole numbers for ranks too."""
        if not self.aside:
            return Fraction(0)
        if self.popularity is None:
            return Fraction(len(self.aside), self.num_experts)
        share = sum(self.popularity[e] for e in self.aside) / self.num_experts_per_tok
        return Fraction(round(share * SHARE_STEPS), SHARE_STEPS)

    def _active_of(self, count: int, tokens: int) -> float:
        if not count:
            return 0
        missed = 1 - self.num_experts_per_tok / self.num_experts
        return float(count * (1 - missed**tokens))

    @cached_property
    def _split_popularity(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        chances = np.array(self.popularity)
        is_aside = np.isin(np.arange(self.num_experts), self.aside)
        return chances[~is_aside], chances[is_aside]

    @staticmethod
    def _chosen_of(chances: NDArray[np.float64], tokens: int) -> float:
        return float((1 - (1 - chances) ** tokens).sum())


PLAIN = Traits()
"""Of a dense model whose attention sees everything."""


class StepShape(NamedTuple):
    """The sums over a step's chunks that decide what it costs. The order of the fields is the order of
    the coefficients of an `Amount`.

    The sums of layers with a sliding window stand beside those of full attention and are 0 for models
    without one. All are whole numbers but `active_experts` and `side_experts`, which are expectations unless
    they were recorded.
    """

    one: int = 1
    tokens: int = 0
    sequences: int = 0
    logit_rows: int = 0
    prefill_sequences: int = 0
    """Chunks with more than one new token; the others are counted under decode."""
    prefill_tokens: int = 0
    """Their new tokens."""
    prefill_pairs: int = 0
    """Query-key pairs under the causal mask: sum of new * context + new * (new + 1) / 2."""
    prefill_square: int = 0
    """Pairs without the mask, as torch counts a masked matmul: sum of new * (context + new)."""
    prefill_span: int = 0
    """Keys read: sum of context + new."""
    prefill_context: int = 0
    """Of those keys, the ones that were cached before the step."""
    decode_tokens: int = 0
    decode_span: int = 0
    decode_context: int = 0
    window_pairs: int = 0
    """As prefill_pairs, each query seeing the last `sliding_window` keys only."""
    window_square: int = 0
    """New tokens times window_span, summed."""
    window_span: int = 0
    """Keys that the chunk's queries see between them."""
    window_context: int = 0
    """Of the keys in window_span, those cached before the step."""
    window_decode_span: int = 0
    window_decode_context: int = 0
    window_growing: int = 0
    """Decoding sequences that do not fill the window yet, so that their next step reads a key more. Costs
    nothing itself."""
    active_experts: float = 0
    """Experts of a layer that at least one token chose, so that their weights are read; without those that
    are computed aside."""
    side_experts: float = 0
    """The same of experts that are computed aside, on another device than the rest of their layer."""
    has_prefill: int = 0
    """1 if there is a chunk with more than one new token."""

    @classmethod
    def of(
        cls, chunks: Iterable[Share], traits: Traits = PLAIN, decode_tokens: int = 0, decode_span: int = 0,
        window_decode_span: int = 0, window_growing: int = 0,
    ) -> StepShape:  # fmt: skip
        """Sum the features of `chunks`, and of sequences that decode whose sums are known."""
        tokens = sequences = rows = decode_tokens
        prefill_tokens = prefill_pairs = prefill_square = prefill_span = prefill_context = 0
        window_pairs = window_square = window_span = window_context = 0
        window = traits.sliding_window
        for chunk in chunks:
            new, span = chunk.new, chunk.context + chunk.new
            sequences += 1
            rows += chunk.rows
            tokens += new
            if new == 1:
                decode_tokens += 1
                decode_span += span
                if window:
                    window_decode_span += min(span, window)
                    window_growing += span < window
                continue
            prefill_tokens += new
            prefill_pairs += new * chunk.context + new * (new + 1) // 2
            prefill_square += new * span
            prefill_span += span
            prefill_context += chunk.context
            if window:
                seen = min(span, new + window - 1)
                window_pairs += _pairs_in_window(chunk.context, new, window)
                window_square += new * seen
                window_span += seen
                window_context += seen - new
        return cls._make((
            1, tokens, sequences, rows, sequences - decode_tokens, prefill_tokens, prefill_pairs,
            prefill_square, prefill_span, prefill_context, decode_tokens, decode_span,
            decode_span - decode_tokens, window_pairs, window_square, window_span, window_context,
            window_decode_span, window_decode_span - decode_tokens if window else 0, window_growing,
            traits.active_experts(tokens), traits.side_experts(tokens), int(sequences > decode_tokens),
        ))  # fmt: skip

    def grown(self, steps: int) -> StepShape:
        """The shape so many steps later, if all its sequences go on decoding and none fills its window."""
        (*first, span, context, pairs, square, keys, cached, window_span, window_context, growing, active,
         side, has_prefill) = self  # fmt: skip
        more, more_in_window = steps * self.decode_tokens, steps * growing
        return _shape_of((
            *first, span + more, context + more, pairs, square, keys, cached, window_span + more_in_window,
            window_context + more_in_window, growing, active, side, has_prefill,
        ))  # fmt: skip

    def growth(self) -> StepShape:
        """What comes to each sum in a step, if all sequences go on decoding and none fills its window."""
        more, in_window = self.decode_tokens, self.window_growing
        return _shape_of((*_NO_PREFILL, more, more, 0, 0, 0, 0, in_window, in_window, 0, 0, 0, 0))


_shape_of = StepShape._make
_NO_PREFILL = (0,) * StepShape._fields.index("decode_span")


def _pairs_in_window(context: int, new: int, window: int) -> int:
    """Pairs of `new` queries and the last `window` keys of each: the first few see less."""
    short = min(max(window - 1 - context, 0), new)
    return short * context + short * (short + 1) // 2 + (new - short) * window


FEATURE_COUNT = len(StepShape._fields)
GROWING = tuple(
    StepShape._fields.index(name)
    for name in ("decode_span", "decode_context", "window_decode_span", "window_decode_context")
)
"""The features that `StepShape.grown` changes."""
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
    def of(cls, **coefficients: int) -> Amount:
        """Name the coefficients that are not zero, as fields of `StepShape`."""
        unknown = coefficients.keys() - set(StepShape._fields)
        assert not unknown, f"no feature is called {sorted(unknown)}"
        return cls(tuple(coefficients.get(name, 0) for name in StepShape._fields))

    def __add__(self, other: Amount) -> Amount:
        return Amount(tuple(a + b for a, b in zip(self.coefficients, other.coefficients, strict=True)))

    def among(self, number: int, count: int) -> Amount:
        """The same amount of shape `number`, as a form of the features of `count` shapes side by side."""
        return Amount(ZERO * number + self.coefficients + ZERO * (count - number - 1))

    def __mul__(self, factor: int) -> Amount:
        return Amount(tuple(a * factor for a in self.coefficients))

    def __bool__(self) -> bool:
        return any(self.coefficients)

    def of_phase(self, phase: Phase) -> Amount:
        """The same amount for the chunks of one phase alone: prefill those with several new tokens, decode
        the others. What does not depend on chunks, as the weights, stays.

        >>> Amount.of(one=7, tokens=3, decode_span=5).of_phase("prefill") == Amount.of(
        ...     one=7, prefill_tokens=3
        ... )
        True
        """
        if phase == "all":
            return self
        kept = dict.fromkeys(StepShape._fields, 0)
        for name, coefficient in zip(StepShape._fields, self.coefficients, strict=True):
            target = _IN_PHASE[phase].get(name)
            if target is not None:
                kept[target] += coefficient
        return Amount(tuple(kept.values()))

    def per(self, feature: str) -> int:
        """The coefficient of one feature of `StepShape`."""
        return self.coefficients[StepShape._fields.index(feature)]

    def at(self, shape: Sequence[float]) -> int:
        """The amount for one shape, or for several side by side; exact, unless it depends on an expected
        number of active experts."""
        return round(sum(a * b for a, b in zip(self.coefficients, shape, strict=True) if a))


NOTHING = Amount()

Phase = Literal["all", "prefill", "decode"]

_OF_PREFILL = {
    "tokens": "prefill_tokens",
    "sequences": "prefill_sequences",
    "logit_rows": "prefill_sequences",
} | {name: name for name in (
    "one", "prefill_sequences", "prefill_tokens", "prefill_pairs", "prefill_square", "prefill_span",
    "prefill_context", "window_pairs", "window_square", "window_span", "window_context", "has_prefill",
)}  # fmt: skip
_OF_DECODE = dict.fromkeys(("tokens", "sequences", "logit_rows"), "decode_tokens") | {name: name for name in (
    "one", "decode_tokens", "decode_span", "decode_context", "window_decode_span", "window_decode_context",
    "window_growing",
)}  # fmt: skip
_IN_PHASE: dict[str, dict[str, str]] = {"prefill": _OF_PREFILL, "decode": _OF_DECODE}
"""Where each sum over all chunks is found in the sums over the chunks of one phase. Experts have none."""


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
