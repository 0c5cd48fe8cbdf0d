"""Requests: as many as asked, at the rate asked, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from simulator.serving.arrivals import Request, Source, generate, users_of
from simulator.specs.arrivals import (
    BatchArrivals,
    ClosedArrivals,
    ConstantArrivals,
    GammaArrivals,
    PoissonArrivals,
)
from simulator.specs.provenance import Source as Provenance
from simulator.specs.workload import (
    LengthBin,
    LengthHistogram,
    Lognormal,
    LognormalLengths,
    LognormalPair,
    TokenRange,
    UniformLengths,
)

UNIFORM = UniformLengths(prompt=TokenRange(10, 50), output=TokenRange(1, 9))


def poisson(rate: float) -> PoissonArrivals:
    return PoissonArrivals(process="poisson", rate_per_s=rate)


def gaps_s(requests: Sequence[Request]) -> NDArray[np.float64]:
    return np.diff(np.array([0.0, *(request.sent_s for request in requests)]))


def test_poisson_arrivals_have_exponential_gaps_of_the_mean_asked() -> None:
    """Mean and deviation of 20,000 gaps within 4 standard errors (1/sqrt(n), and sqrt(2/n)); gaps do not
    depend on the one before; P(gap > mean) = 1/e."""
    count, rate = 20_000, 4.0
    gaps = gaps_s(generate(poisson(rate), UNIFORM, count, seed=1)) * rate
    assert gaps.mean() == pytest.approx(1.0, abs=4 / np.sqrt(count))
    assert gaps.std() == pytest.approx(1.0, abs=4 * np.sqrt(2 / count))
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / np.sqrt(count)
    assert (gaps > 1).mean() == pytest.approx(np.exp(-1), abs=2 / np.sqrt(count))


def test_constant_arrivals_come_evenly() -> None:
    requests = generate(ConstantArrivals(process="constant", rate_per_s=4.0), UNIFORM, 5, seed=1)
    assert [request.sent_s for request in requests] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_batch_is_there_at_once() -> None:
    requests = generate(BatchArrivals(process="batch"), UNIFORM, 5, seed=1)
    assert {request.sent_s for request in requests} == {0.0}
    assert [request.number for request in requests] == [0, 1, 2, 3, 4]


def test_the_same_seed_gives_the_same_requests() -> None:
    assert generate(poisson(2.0), UNIFORM, 50, seed=7) == generate(poisson(2.0), UNIFORM, 50, seed=7)
    assert generate(poisson(2.0), UNIFORM, 50, seed=7) != generate(poisson(2.0), UNIFORM, 50, seed=8)


def test_lengths_do_not_depend_on_when_requests_arrive() -> None:
    batch = BatchArrivals(process="batch")
    lengths = [
        [(request.prompt_tokens, request.output_tokens) for request in generate(arrivals, UNIFORM, 50, seed=7)]
        for arrivals in (poisson(2.0), poisson(50.0), batch)
    ]
    assert lengths[0] == lengths[1] == lengths[2]
    times = [[r.sent_s * rate for r in generate(poisson(rate), UNIFORM, 50, 7)] for rate in (2.0, 50.0)]
    assert times[0] == pytest.approx(times[1])


def test_fewer_requests_are_the_first_of_more() -> None:
    """Of the times; a study that asks for more requests does not ask others."""
    few, many = generate(poisson(2.0), UNIFORM, 20, seed=7), generate(poisson(2.0), UNIFORM, 50, seed=7)
    assert [request.sent_s for request in few] == [request.sent_s for request in many[:20]]


def test_uniform_lengths_reach_both_bounds_evenly() -> None:
    requests = generate(poisson(1.0), UNIFORM, 9000, seed=1)
    outputs = np.bincount([request.output_tokens for request in requests], minlength=10)
    assert outputs[0] == 0
    assert outputs[1:] == pytest.approx(1000, abs=4 * np.sqrt(1000 * 8 / 9))
    prompts = {request.prompt_tokens for request in requests}
    assert (min(prompts), max(prompts)) == (10, 50)


def test_lognormal_lengths_have_the_median_asked() -> None:
    pair = LognormalPair(prompt=Lognormal(median=500, sigma=1.0), output=Lognormal(median=1, sigma=3.0))
    requests = generate(poisson(1.0), LognormalLengths(lognormal=pair), 10_000, seed=1)
    logs = np.log([request.prompt_tokens for request in requests])
    assert logs.mean() == pytest.approx(np.log(500), abs=4 / 100)
    assert logs.std() == pytest.approx(1.0, abs=4 * np.sqrt(2 / 10_000))
    assert min(request.output_tokens for request in requests) == 1


def test_lognormal_lengths_stay_within_what_a_prompt_can_be() -> None:
    """At the widest that a file may ask for, and beyond it, where a float is no 64-bit number any more."""
    for sigma in (5.0, 500.0):
        wide = Lognormal.model_construct(median=1e8, sigma=sigma)
        pair = LognormalPair(prompt=wide, output=wide)
        requests = generate(poisson(1.0), LognormalLengths(lognormal=pair), 1000, seed=1)
        prompts = [request.prompt_tokens for request in requests]
        assert (min(prompts) >= 1, max(prompts)) == (True, 10**9)


@pytest.mark.parametrize("cv", [0.01, 100.0])
@pytest.mark.parametrize("rate", [1e-6, 1e6])
def test_times_at_the_ends_of_what_a_file_may_ask_are_finite(cv: float, rate: float) -> None:
    arrivals = GammaArrivals(process="gamma", rate_per_s=rate, cv=cv)
    gaps = gaps_s(generate(arrivals, UNIFORM, 1000, seed=1))
    assert np.isfinite(gaps).all()
    assert (gaps >= 0).all()


def test_histograms_keep_prompt_and_output_together() -> None:
    bins = (LengthBin(10, 19, 100, 199, 3), LengthBin(500, 599, 1, 9, 1))
    histogram = LengthHistogram(name="two kinds", bins=bins, source=Provenance(kind="assumed", ref="test"))
    requests = generate(poisson(1.0), histogram, 4000, seed=1)
    short = [request for request in requests if request.prompt_tokens < 20]
    assert len(short) == pytest.approx(3000, abs=4 * np.sqrt(4000 * 3 / 16))
    assert all(100 <= request.output_tokens <= 199 for request in short)
    assert all(1 <= request.output_tokens <= 9 for request in requests if request.prompt_tokens >= 500)


# --- who asks next ------------------------------------------------------------------------------------------

REQUESTS = generate(BatchArrivals(process="batch"), UNIFORM, 5, seed=1)


def test_open_arrivals_do_not_wait_for_answers() -> None:
    source = Source(REQUESTS)
    assert tuple(source.open_arrivals()) == REQUESTS
    assert list(source.after_completion()) == []


def test_users_of_a_closed_loop_ask_in_turn() -> None:
    source = Source(REQUESTS, users=2)
    asked = list(source.open_arrivals())
    assert asked == list(REQUESTS[:2])
    while following := source.after_completion():
        asked += following
    assert tuple(asked) == REQUESTS


def test_more_users_than_requests_ask_once() -> None:
    source = Source(REQUESTS, users=9)
    assert tuple(source.open_arrivals()) == REQUESTS
    assert list(source.after_completion()) == []


def test_only_closed_loops_have_users() -> None:
    assert users_of(ClosedArrivals(process="closed", concurrency=3)) == 3
    assert users_of(poisson(1.0)) is None


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_the_rate_and_the_variation_asked_for(cv: float) -> None:
    """Of 20,000 gaps the mean is off by about cv / 141, the variation by a few per cent."""
    arrivals = GammaArrivals(process="gamma", rate_per_s=8.0, cv=cv)
    gaps = gaps_s(generate(arrivals, UNIFORM, 20_000, seed=3))
    assert gaps.mean() == pytest.approx(1 / 8, rel=5 * cv / 141)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)
