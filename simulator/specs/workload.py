"""What clients ask for, as a scenario may say it: when, how many tokens go in and out, what is shared."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Self

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

from simulator import units
from simulator.specs.arrivals import MOST_CYCLES, MOST_DAYS, Arrivals, TraceArrivals, cycles, expected_s
from simulator.specs.base import Spec, existing_file, is_path, rule_broken
from simulator.specs.provenance import Source
from simulator.specs.quantities import MOST_PRIORITY, MOST_TOKENS, Quantity, Requests, Seconds, Tokens


def id_or_file(ref: str, info: ValidationInfo) -> str:
    """An id as it is; a path resolved to a file that exists."""
    return existing_file(ref, info) if is_path(ref) else ref


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


class SharedPrefix(Spec):
    """A system prompt that all prompts of a group begin with."""

    tokens: Tokens
    """How long it is. A prompt's length includes it; one drawn shorter is made one token longer than it."""
    groups: Requests = 1
    """How many such prompts there are; each request has one of them, drawn evenly."""


_Priority = Annotated[int, Field(ge=0, le=MOST_PRIORITY)]
_RequestShare = Annotated[float, Quantity(units.SHARE, above=0, most=1)]
_ROUNDING = 1e-6


def _adds_up(shares: dict[int, float]) -> dict[int, float]:
    total = sum(shares.values())
    if abs(total - 1) > _ROUNDING:
        raise rule_broken(f"shares of requests by priority must add up to 1, not {total:g}")
    return dict(sorted(shares.items()))


Priorities = Annotated[dict[_Priority, _RequestShare], Field(min_length=1), AfterValidator(_adds_up)]


class Workload(Spec):
    """What the clients ask for."""

    arrivals: Arrivals
    """When requests arrive."""
    lengths: Lengths | None = None
    """How long prompts and answers are; a trace brings its own."""
    requests: Requests | None = None
    """How many; with a trace, the first so many, or all of them."""
    shared_prefix: SharedPrefix | None = None
    """What prompts begin with in common; a trace brings its own."""
    priorities: Priorities | None = None
    """Share of the requests by priority, as `{0: 0.2, 1: 0.8}`; the lowest is served first, where the engine
    goes by it. Without it every request has 0, or what a trace says; with it that is replaced."""
    timeout_s: Annotated[Annotated[Seconds, Field(gt=0)] | None, Field(alias="timeout")] = None
    """How long a client waits for the whole of its answer, from sending the request; then it gives up, and
    the request has failed. None: for ever."""

    @model_validator(mode="after")
    def _trace_or_lengths(self) -> Self:
        from_trace = isinstance(self.arrivals, TraceArrivals)
        if from_trace and self.lengths is not None:
            raise rule_broken("a trace brings its own lengths; leave this out", "lengths")
        if from_trace and self.shared_prefix is not None:
            advice = "a trace says in its hash_ids what prompts share; leave this out"
            raise rule_broken(advice, "shared_prefix")
        if not from_trace and self.lengths is None:
            raise rule_broken(
                "missing; say how long prompts and answers are (only a trace brings its own)", "lengths"
            )
        if not from_trace and self.requests is None:
            raise rule_broken(
                "missing; say how many requests (only a trace has an end of its own)", "requests"
            )
        return self

    @model_validator(mode="after")
    def _ends(self) -> Self:
        requests = self.requests or 0
        if expected_s(self.arrivals, requests) > MOST_DAYS * units.SECONDS_PER_DAY:
            advice = f"may take longer than {MOST_DAYS} days to arrive; ask for fewer, or at a higher rate"
            raise rule_broken(advice, "requests")
        if cycles(self.arrivals, requests) > MOST_CYCLES:
            advice = f"take more than {MOST_CYCLES:,} bursts or periods; ask for fewer, or for longer ones"
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
