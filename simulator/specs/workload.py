"""When requests arrive and how many tokens go in and come out, as a scenario may say it."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from simulator.specs.base import InputFile, Spec, existing_file, is_path, rule_broken
from simulator.specs.provenance import Source
from simulator.specs.quantities import MOST_TOKENS, Requests, RequestsPerSecond, Seconds


def id_or_file(ref: str, info: ValidationInfo) -> str:
    """An id as it is; a path resolved to a file that exists."""
    return existing_file(ref, info) if is_path(ref) else ref


MOST_DAYS = 30
"""Longest expected time of drawn arrivals; the simulated clock counts 64-bit picoseconds, 106 days."""


def expected_s(arrivals: Any, requests: int) -> float:
    """When the last of so many requests arrives, with room for unlucky draws."""
    match arrivals:
        case ConstantArrivals():
            return requests / arrivals.rate_per_s
        case PoissonArrivals():
            return (requests + _UNLUCKY) / arrivals.rate_per_s
        case GammaArrivals():
            return (requests + _UNLUCKY * arrivals.cv**2) / arrivals.rate_per_s
    return 0.0


_UNLUCKY = 30
"""By Bernstein's inequality a sum of n gaps of variation cv is over 3.5 (n + 30 cv^2) once in e^50 draws."""


class BatchArrivals(Spec):
    """Every request is there at the start."""

    process: Literal["batch"]


class ConstantArrivals(Spec):
    """Requests at equal distances."""

    process: Literal["constant"]
    rate_per_s: Annotated[RequestsPerSecond, Field(alias="rate")]
    """Requests per second."""


class PoissonArrivals(Spec):
    """Requests independent of one another."""

    process: Literal["poisson"]
    rate_per_s: Annotated[RequestsPerSecond, Field(alias="rate")]
    """Mean requests per second."""


class GammaArrivals(Spec):
    """Requests in bursts, or more even than Poisson: gaps between them are gamma-distributed."""

    process: Literal["gamma"]
    rate_per_s: Annotated[RequestsPerSecond, Field(alias="rate")]
    """Mean requests per second."""
    cv: Annotated[float, Field(ge=0.01, le=100)]
    """Coefficient of variation of the gaps: 1 is Poisson, more is burstier."""


class ClosedArrivals(Spec):
    """A fixed number of users, each sending a request when the last is answered."""

    process: Literal["closed"]
    concurrency: Requests
    """How many users."""


class TraceArrivals(Spec):
    """Requests as recorded, lengths included."""

    process: Literal["trace"]
    file: InputFile
    """A CSV file; see `simulator.specs.trace` for its columns."""


Arrivals = Annotated[
    BatchArrivals | ConstantArrivals | PoissonArrivals | GammaArrivals | ClosedArrivals | TraceArrivals,
    Field(discriminator="process"),
]


@dataclass(frozen=True)
class TokenRange:
    """A number of tokens, drawn evenly from `low` to `high`, both included."""

    low: int
    high: int


_TOO_MANY_TOKENS = f"must be at most {MOST_TOKENS:,} tokens"
_DIGITS = "[0-9]+(?:_[0-9]+)*"


def _token_range(raw: Any) -> TokenRange:
    if isinstance(raw, TokenRange):
        return raw
    match = re.fullmatch(rf"({_DIGITS})(?:\s*\.\.\s*({_DIGITS}))?", str(raw).strip())
    if match is None or isinstance(raw, bool | float):
        raise rule_broken("write a whole number of tokens, or a range such as 100..200")
    if max(len(match[1]), len(match[2] or "")) > len(f"{MOST_TOKENS:_}"):
        raise rule_broken(_TOO_MANY_TOKENS)
    low = int(match[1])
    high = int(match[2] or match[1])
    if high > MOST_TOKENS:
        raise rule_broken(_TOO_MANY_TOKENS)
    if not 1 <= low <= high:
        raise rule_broken("must be at least 1, and a range goes from low to high")
    return TokenRange(low, high)


TokenCount = Annotated[
    TokenRange,
    PlainValidator(_token_range),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["100..200"]}]}
    ),
]


class UniformLengths(Spec):
    """Fixed lengths, or lengths drawn evenly from a range."""

    prompt: TokenCount
    """Tokens in: `512` or `100..200`."""
    output: TokenCount
    """Tokens out."""


class Lognormal(Spec):
    """A log-normal number of tokens, rounded to a whole number of at least 1."""

    median: Annotated[float, Field(ge=1, le=1e8)]
    """Tokens."""
    sigma: Annotated[float, Field(ge=0, le=5)]
    """Standard deviation of the natural logarithm."""


class LognormalPair(Spec):
    """Prompt and output, drawn independently."""

    prompt: Lognormal
    """Tokens in."""
    output: Lognormal
    """Tokens out."""


class LognormalLengths(Spec):
    """Log-normal lengths."""

    lognormal: LognormalPair
    """Of prompt and output."""


class HistogramLengths(Spec):
    """Lengths drawn from a histogram of real requests, prompt and output together."""

    histogram: Annotated[str, AfterValidator(id_or_file)]
    """Id of a file in scenarios/lengths, or a path."""


def _shape(raw: Any) -> str:
    if isinstance(raw, HistogramLengths | LognormalLengths | UniformLengths):
        return {HistogramLengths: "<histogram>", LognormalLengths: "<lognormal>"}.get(type(raw), "<uniform>")
    for shape in ("histogram", "lognormal"):
        if isinstance(raw, dict) and shape in raw:
            return f"<{shape}>"
    return "<uniform>"


Lengths = Annotated[
    Annotated[UniformLengths, Tag("<uniform>")]
    | Annotated[LognormalLengths, Tag("<lognormal>")]
    | Annotated[HistogramLengths, Tag("<histogram>")],
    Discriminator(_shape),
]


class Workload(Spec):
    """What the clients ask for."""

    arrivals: Arrivals
    """When requests arrive."""
    lengths: Lengths | None = None
    """How long prompts and answers are; a trace brings its own."""
    requests: Requests | None = None
    """How many; with a trace, the first so many, or all of them."""
    timeout_s: Annotated[Annotated[Seconds, Field(gt=0)] | None, Field(alias="timeout")] = None
    """How long a client waits for the whole of its answer, from sending the request; then it gives up, and
    the request has failed. None: for ever."""

    @model_validator(mode="after")
    def _trace_or_lengths(self) -> Self:
        from_trace = isinstance(self.arrivals, TraceArrivals)
        if from_trace and self.lengths is not None:
            raise rule_broken("a trace brings its own lengths; leave this out", "lengths")
        if not from_trace and self.lengths is None:
            raise rule_broken(
                "missing; say how long prompts and answers are (only a trace brings its own)", "lengths"
            )
        if not from_trace and self.requests is None:
            raise rule_broken(
                "missing; say how many requests (only a trace has an end of its own)", "requests"
            )
        if self.requests is not None and expected_s(self.arrivals, self.requests) > MOST_DAYS * 86400:
            advice = f"may take longer than {MOST_DAYS} days to arrive; ask for fewer, or at a higher rate"
            raise rule_broken(advice, "requests")
        return self


class LengthBin(NamedTuple):
    """How many requests had a prompt and an answer within these bounds, both included."""

    prompt_low: int
    prompt_high: int
    output_low: int
    output_high: int
    request_count: int


def _is_bound(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_TOKENS


def _length_bin(raw: Any) -> LengthBin:
    numbers = list(raw) if isinstance(raw, list | tuple) else []
    if len(numbers) == len(LengthBin._fields) and all(map(_is_bound, numbers)):
        found = LengthBin(*numbers)
        if found.prompt_low <= found.prompt_high and found.output_low <= found.output_high:
            return found
    columns = "[prompt_low, prompt_high, output_low, output_high, count]"
    raise rule_broken(f"write {columns}, whole numbers from 1 to {MOST_TOKENS:,}")


_BIN_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 5, "maxItems": 5}


class LengthHistogram(Spec):
    """Lengths of real requests, counted in cells of prompt and output."""

    without_source: ClassVar = frozenset({"name"})

    name: str
    """What was counted."""
    bins: Annotated[
        tuple[Annotated[LengthBin, PlainValidator(_length_bin), WithJsonSchema(_BIN_SCHEMA)], ...],
        Field(min_length=1),
    ]
    """Rows of prompt_low, prompt_high, output_low, output_high, count; bounds are inclusive."""
    source: Source
    """Where the requests were recorded."""
