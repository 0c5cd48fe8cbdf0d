"""When requests arrive, as a scenario may say it."""

from typing import Annotated, Literal

from pydantic import Field

from simulator import units
from simulator.specs.base import InputFile, Spec
from simulator.specs.quantities import Quantity, Requests, RequestsPerSecond, Tokens, WholeNumber

MOST_DAYS = 30
"""Longest expected time of drawn arrivals; the simulated clock counts 64-bit picoseconds, 106 days."""

MOST_CYCLES = 10**6
"""Most bursts, or periods, that a run may be expected to go through."""

_MOST_DURATION_S = MOST_DAYS * units.SECONDS_PER_DAY

Duration = Annotated[float, Quantity(units.DURATION, above=0, most=_MOST_DURATION_S)]
MaybeNoTime = Annotated[float, Quantity(units.DURATION, most=_MOST_DURATION_S)]
Period = Annotated[float, Quantity(units.DURATION, least=1.0, most=_MOST_DURATION_S)]


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


class OnOffArrivals(Spec):
    """Bursts: Poisson at one rate while on and at another while off, a Markov-modulated Poisson process."""

    process: Literal["on_off"]
    rate_per_s: Annotated[RequestsPerSecond, Field(alias="rate")]
    """Mean requests per second while on."""
    off_rate_per_s: Annotated[float, Quantity(units.PER_S, most=1e6), Field(alias="off_rate")] = 0.0
    """Mean requests per second while off."""
    on_s: Annotated[Duration, Field(alias="on")]
    """Mean time that a burst lasts."""
    off_s: Annotated[Duration, Field(alias="off")]
    """Mean time between bursts."""
    durations: Literal["exponential", "fixed"] = "exponential"
    """How these times vary. Exponential ones begin as they are found at any moment, on with the share of the
    time that is on; fixed ones begin with a burst."""

    @property
    def cycle_s(self) -> float:
        """Mean time of a burst and what follows it."""
        return self.on_s + self.off_s

    @property
    def mean_rate_per_s(self) -> float:
        """Over all time."""
        return (self.rate_per_s * self.on_s + self.off_rate_per_s * self.off_s) / self.cycle_s


class DiurnalArrivals(Spec):
    """Poisson at a rate that rises and falls as a sine: rate * (1 + amplitude * sin(2 pi t / period))."""

    process: Literal["diurnal"]
    rate_per_s: Annotated[RequestsPerSecond, Field(alias="rate")]
    """Mean requests per second over a period."""
    amplitude: Annotated[float, Quantity(units.SHARE, most=1)]
    """How far the rate goes above and below its mean, as a share of it: 1 is from nothing to twice."""
    period_s: Annotated[Period, Field(alias="period")] = units.SECONDS_PER_DAY
    """From one peak to the next."""
    start_s: Annotated[MaybeNoTime, Field(alias="start")] = 0.0
    """Where in the period the run begins: at 0 the rate is its mean and rises, at a quarter it is highest."""


class ClosedArrivals(Spec):
    """A fixed number of users, each sending a request when the last is answered, as benchmark clients do."""

    process: Literal["closed"]
    concurrency: Requests
    """How many users."""
    think_time_s: Annotated[MaybeNoTime, Field(alias="think_time")] = 0.0
    """From an answer to its user's next request."""
    warmup_requests: Annotated[WholeNumber, Field(ge=0, le=10**6)] = 0
    """So many requests more are answered before those asked for are sent, and count in no metric."""


class TraceArrivals(Spec):
    """Requests as recorded, lengths included."""

    process: Literal["trace"]
    file: InputFile
    """A CSV or JSONL file; see `simulator.specs.trace` for its columns."""
    hash_block: Tokens = 512
    """Tokens that each of the trace's `hash_ids` stands for."""
    rate_scale: Annotated[float, Quantity(units.NUMBER, least=1e-3, most=1e6)] = 1.0
    """How many times faster than recorded requests arrive."""
    repeat: Annotated[WholeNumber, Field(ge=1, le=10**4)] = 1
    """How often the trace is played, one time after another."""


Arrivals = Annotated[
    BatchArrivals
    | ConstantArrivals
    | PoissonArrivals
    | GammaArrivals
    | OnOffArrivals
    | DiurnalArrivals
    | ClosedArrivals
    | TraceArrivals,
    Field(discriminator="process"),
]


def expected_s(arrivals: Arrivals, requests: int) -> float:
    """When the last of so many requests arrives, with room for unlucky draws."""
    match arrivals:
        case ConstantArrivals():
            return requests / arrivals.rate_per_s
        case PoissonArrivals():
            return (requests + _UNLUCKY) / arrivals.rate_per_s
        case GammaArrivals():
            return (requests + _UNLUCKY * arrivals.cv**2) / arrivals.rate_per_s
        case OnOffArrivals():
            in_bursts_s = (requests + _UNLUCKY) / arrivals.mean_rate_per_s
            return _UNLUCKY_BURSTS * (in_bursts_s + _UNLUCKY * arrivals.cycle_s)
        case DiurnalArrivals():
            return (requests + _UNLUCKY) / arrivals.rate_per_s + arrivals.period_s
    return 0.0


_UNLUCKY = 30
"""By Bernstein's inequality a sum of n gaps of variation cv is over 3.5 (n + 30 cv^2) once in e^50 draws."""

_UNLUCKY_BURSTS = 2
"""Both the requests and the time that is on may come late."""


def cycles(arrivals: Arrivals, requests: int) -> float:
    """How many bursts, or periods, so many requests are expected to take; 0 where there are none."""
    match arrivals:
        case OnOffArrivals():
            return requests / (arrivals.mean_rate_per_s * arrivals.cycle_s)
        case DiurnalArrivals():
            return requests / (arrivals.rate_per_s * arrivals.period_s)
    return 0.0


def dispersion(arrivals: Arrivals) -> float:
    """Variance over mean of the number of requests in a long time; 1 is Poisson.

    Of gaps that are independent the square of their variation; of bursts that of a two-state
    Markov-modulated process (Fischer and Meier-Hellstern 1993, doi:10.1016/0166-5316(93)90035-S), of which
    those of fixed duration stay below. What varies as planned, by the time of day, is not counted.
    """
    match arrivals:
        case ConstantArrivals():
            return 0.0
        case GammaArrivals():
            return arrivals.cv**2
        case OnOffArrivals():
            leaving, coming = 1 / arrivals.on_s, 1 / arrivals.off_s
            apart = arrivals.rate_per_s - arrivals.off_rate_per_s
            return 1 + 2 * apart**2 * leaving * coming / ((leaving + coming) ** 3 * arrivals.mean_rate_per_s)
    return 1.0
