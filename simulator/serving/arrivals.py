"""When requests arrive and how long they are.

Times and lengths come from streams of their own of one seed, so every placement of a study is asked the
same requests, and another arrival rate changes no length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.serving.sequences import Content
from simulator.specs.quantities import MOST_TOKENS
from simulator.specs.trace import Trace
from simulator.specs.workload import (
    Arrivals,
    BatchArrivals,
    ClosedArrivals,
    ConstantArrivals,
    GammaArrivals,
    LengthHistogram,
    Lengths,
    Lognormal,
    LognormalLengths,
    PoissonArrivals,
    TokenRange,
    UniformLengths,
)

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks; `sent_s` means nothing in a closed loop, where answers decide when to ask."""

    number: int
    sent_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    """The lowest is served first, where the engine goes by it."""
    prefix: tuple[int, ...] = ()
    """What the prompt's tokens are, as an id for each `prefix_block_tokens` of them, the last of which may be
    fewer: the same id says that these tokens and all before them are the same. None: like no other's."""
    prefix_block_tokens: int = 0


def content_of(request: Request) -> Content:
    """What a request's tokens are, as far as others share them."""
    ids, size = request.prefix, request.prefix_block_tokens
    return Content(request.number, request.prompt_tokens, ids, size)


class Source:
    """Hands out the requests of one run: those that arrive by the clock, and those that follow answers."""

    def __init__(self, requests: Sequence[Request], users: int | None = None) -> None:
        """users: of a closed loop; None where the clock decides."""
        self._requests = list(requests)
        self._users = users
        self._next = len(self._requests) if users is None else min(users, len(self._requests))

    @property
    def is_closed(self) -> bool:
        """Whether requests follow answers."""
        return self._users is not None

    def open_arrivals(self) -> Iterator[Request]:
        """Requests in order of their time; of a closed loop the first of each user."""
        first = len(self._requests) if self._users is None else self._users
        yield from self._requests[:first]

    def after_completion(self) -> Request | None:
        """The next request of the user whose last one was answered, if any are left."""
        if self._users is None or self._next >= len(self._requests):
            return None
        self._next += 1
        return self._requests[self._next - 1]


def generate(
    arrivals: Arrivals, lengths: Lengths | LengthHistogram, count: int, seed: int
) -> tuple[Request, ...]:
    """Draw `count` requests; the same seed gives the same ones."""
    times = _times(arrivals, count, np.random.default_rng((seed, 0)))
    prompts, outputs = _lengths(lengths, count, np.random.default_rng((seed, 1)))
    rows = zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return tuple(Request(number, *row) for number, row in enumerate(rows))


def from_trace(trace: Trace) -> tuple[Request, ...]:
    """The requests of a trace, as recorded."""
    rows = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    return tuple(Request(number, *row) for number, row in enumerate(rows))


def users_of(arrivals: Arrivals) -> int | None:
    """How many users ask in turn, if it is a closed loop."""
    return arrivals.concurrency if isinstance(arrivals, ClosedArrivals) else None


def _times(arrivals: Arrivals, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    match arrivals:
        case BatchArrivals() | ClosedArrivals():
            return np.zeros(count)
        case ConstantArrivals():
            return np.arange(count) / arrivals.rate_per_s
        case PoissonArrivals():
            return np.cumsum(rng.exponential(1 / arrivals.rate_per_s, count))
        case GammaArrivals():
            shape = arrivals.cv**-2
            return np.cumsum(rng.gamma(shape, 1 / (shape * arrivals.rate_per_s), count))
    raise AssertionError("a trace brings its own times")


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
