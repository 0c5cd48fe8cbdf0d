"""The requests of a run: when they arrive, how long they are, and who asks next.

Times, lengths and all else come from streams of their own of one seed, so every placement of a study is asked
the same requests, and another arrival rate changes no length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from simulator.serving.arrival_times import arrival_times
from simulator.serving.requests import Request, RequestTable
from simulator.serving.sequences import Content
from simulator.specs.arrivals import Arrivals, ClosedArrivals
from simulator.specs.quantities import MOST_TOKENS
from simulator.specs.trace import Prefixes, Trace
from simulator.specs.workload import (
    LengthHistogram,
    Lengths,
    Lognormal,
    LognormalLengths,
    SharedPrefix,
    TokenRange,
    UniformLengths,
)

__all__ = ["Request", "RequestTable", "Source", "from_trace", "generate", "users_of"]

Ints = NDArray[np.int64]

TIMES, LENGTHS, PRIORITIES, GROUPS, STATES = 0, 1, 3, 4, 5
"""Streams of a seed; `verify` draws the tokens of prompts from stream 2."""
WARMUP = 1
"""Marks the streams of requests that warm up."""


def content_of(request: Request) -> Content:
    """What a request's tokens are, as far as others share them."""
    ids, size = request.prefix, request.prefix_block_tokens
    return Content(request.number, request.prompt_tokens, ids, size)


class Source:
    """Hands out the requests of one run: those that arrive by the clock, and those that follow answers."""

    def __init__(
        self, requests: Sequence[Request], users: int | None = None, warmup: int = 0, think_s: float = 0.0
    ) -> None:
        """users: of a closed loop; None where the clock decides. warmup: how many, the last of `requests`,
        are answered before the others are sent. think_s: from an answer to what follows it."""
        assert users is not None or not warmup, "only a closed loop warms up"
        self.think_s = think_s
        self._requests, self._users = requests, users
        self._counted = len(requests) - warmup
        self._unanswered = warmup
        """Requests that warm up and have no answer yet."""
        self._following: Iterator[int] = iter(())

    @property
    def is_closed(self) -> bool:
        """Whether requests follow answers."""
        return self._users is not None

    @property
    def is_warming_up(self) -> bool:
        """Whether answers are awaited that do not count."""
        return self._unanswered > 0

    def open_arrivals(self) -> Iterator[Request]:
        """Requests in order of their time; of a closed loop the first of each user."""
        first, end = (self._counted, len(self._requests)) if self._unanswered else (0, self._counted)
        yield from self._begin(first, end)

    def after_completion(self) -> Sequence[Request]:
        """What follows an answer, or a refusal: the user's next request, if any are left; where the warm-up
        ends with it, the first of each user."""
        if self._unanswered:
            self._unanswered -= 1
            if not self._unanswered:
                return self._begin(0, self._counted)
        return [self._requests[number] for number in islice(self._following, 1)]

    def _begin(self, first: int, end: int) -> Sequence[Request]:
        """What is sent at once of these requests; the others follow answers."""
        sent = end if self._users is None else min(first + self._users, end)
        self._following = iter(range(sent, end))
        return self._requests[first:sent]


def generate(
    arrivals: Arrivals, lengths: Lengths | LengthHistogram, count: int, seed: int,
    priorities: Mapping[int, float] | None = None, shared_prefix: SharedPrefix | None = None,
) -> RequestTable:  # fmt: skip
    """Draw `count` requests, and after them those that warm a closed loop up; a seed gives the same ones."""
    draws = [_Draw(count, (seed,))]
    if isinstance(arrivals, ClosedArrivals) and arrivals.warmup_requests:
        draws.append(_Draw(arrivals.warmup_requests, (seed, WARMUP)))
    prompts, outputs = np.hstack([_lengths(lengths, draw.count, draw.stream(LENGTHS)) for draw in draws])
    sent = [arrival_times(arrivals, draw.count, draw.stream(TIMES), draw.stream(STATES)) for draw in draws]
    ranked = groups = None
    if priorities is not None:
        ranked = np.hstack([_priorities(priorities, draw.count, draw.stream(PRIORITIES)) for draw in draws])
    if shared_prefix is not None:
        prompts = np.maximum(prompts, shared_prefix.tokens + 1)
        of_each = [draw.stream(GROUPS).integers(shared_prefix.groups, size=draw.count) for draw in draws]
        groups = Prefixes.one_each(np.hstack(of_each), shared_prefix.tokens)
    return _table(np.hstack(sent), prompts, outputs, ranked, groups)


@dataclass(frozen=True, slots=True)
class _Draw:
    """So many requests, from the streams of a seed."""

    count: int
    key: tuple[int, ...]

    def stream(self, number: int) -> np.random.Generator:
        return np.random.default_rng((self.key[0], number, *self.key[1:]))


def _table(
    sent_s: NDArray[np.float64], prompts: Ints, outputs: Ints, priorities: Ints | None,
    prefixes: Prefixes | None,
) -> RequestTable:  # fmt: skip
    ranked = None if priorities is None else priorities.astype(np.int32)
    lengths = prompts.astype(np.int32), outputs.astype(np.int32)
    return RequestTable(range(len(sent_s)), sent_s, *lengths, ranked, prefixes)


def from_trace(
    trace: Trace, seed: int = 0, priorities: Mapping[int, float] | None = None
) -> RequestTable:
    """The requests of a trace, as recorded, with other priorities if they are given."""
    ranked = trace.priorities
    if priorities is not None:
        ranked = _priorities(priorities, len(trace), np.random.default_rng((seed, PRIORITIES)))
    return _table(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, ranked, trace.prefixes)


def users_of(arrivals: Arrivals) -> int | None:
    """How many users ask in turn, if it is a closed loop."""
    return arrivals.concurrency if isinstance(arrivals, ClosedArrivals) else None


def _priorities(shares: Mapping[int, float], count: int, rng: np.random.Generator) -> Ints:
    numbers = np.array(list(shares), dtype=np.int64)
    up_to = np.cumsum(list(shares.values()))[:-1]
    return numbers[np.searchsorted(up_to, rng.random(count), side="right")]


def _lengths(lengths: Lengths | LengthHistogram, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    match lengths:
        case UniformLengths():
            return _uniform(lengths.prompt, count, rng), _uniform(lengths.output, count, rng)
        case LognormalLengths():
            pair = lengths.lognormal
            return _lognormal(pair.prompt, count, rng), _lognormal(pair.output, count, rng)
        case LengthHistogram():
            return _from_histogram(lengths, count, rng)
    raise AssertionError("a histogram's file is read before lengths are drawn")


def _uniform(bounds: TokenRange, count: int, rng: np.random.Generator) -> Ints:
    return rng.integers(bounds.low, bounds.high, count, endpoint=True)


def _lognormal(shape: Lognormal, count: int, rng: np.random.Generator) -> Ints:
    drawn = rng.lognormal(np.log(shape.median), shape.sigma, count)
    return np.clip(np.rint(drawn), 1, MOST_TOKENS).astype(np.int64)


def _from_histogram(histogram: LengthHistogram, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """A cell by its share of the requests, then evenly within the cell."""
    bins = np.array(histogram.bins, dtype=np.int64)
    chosen = bins[rng.choice(len(bins), count, p=bins[:, 4] / bins[:, 4].sum())]
    prompts = rng.integers(chosen[:, 0], chosen[:, 1], endpoint=True)
    outputs = rng.integers(chosen[:, 2], chosen[:, 3], endpoint=True)
    return prompts, outputs
