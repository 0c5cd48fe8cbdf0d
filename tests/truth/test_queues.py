"""One engine serving one request at a time is a queue that textbooks have formulas for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from simulator.graph.work import Formats
from simulator.placement.placement import Placement, Stage
from simulator.results.records import RequestRecord, RunRecord
from simulator.serving.arrivals import Request
from simulator.simulation.serve import serve
from simulator.simulation.ticks import tick
from simulator.specs.architecture import Architecture, Attention, LayerSpec, Mlp
from tests import tiny

# Only matmuls cost time: they run in fp8 at a finite rate, everything else in bf16 at no cost to speak of.
MODEL = Architecture(
    name="linear", family="llama", hidden_size=2, vocab_size=1, max_position_embeddings=10**9,
    layers=(LayerSpec(Attention(1, 1, 2, scale=1.0), Mlp(2, "silu", gated=True)),), norm="rms", norm_eps=1e-5,
)  # fmt: skip
FLOPS_PER_TOKEN = 2 * (3 * 2 * 2 + 2 * 2 + 2 * 2 * 2 + 2 * 2)  # qkv, o, gate and up, down
FREE = 1e30
MEAN_TOKENS = 100_000


def run(prompts: NDArray[np.int64], sent_s: NDArray[np.float64], mean_service_s: float) -> RunRecord:
    """Serve one request at a time on a machine that needs `mean_service_s` for MEAN_TOKENS."""
    rate = FLOPS_PER_TOKEN * MEAN_TOKENS / mean_service_s
    gpu = tiny.device(compute={"fp8": rate, "bf16": FREE}, bandwidth=FREE)
    link = tiny.link(bandwidth=FREE, latency_s=0.0)
    graph = tiny.machine(tiny.node(gpus=[gpu], host_link=link, dram=FREE))
    program = tiny.program(Placement("one", (Stage(("gpu-0",), 0, 1),)), graph, MODEL,
                           Formats("fp8", "bf16", "bf16"))  # fmt: skip
    engine = tiny.engine(max_num_seqs=1, max_num_batched_tokens=10**8, chunked_prefill=False,
                         kv_block_tokens=1000)  # fmt: skip
    rows = [Request(i, *row, 1) for i, row in enumerate(zip(sent_s.tolist(), prompts.tolist(), strict=True))]
    return serve(program, engine, block_count=2000, make_source=tiny.source(rows))


def waits_s(record: RunRecord) -> NDArray[np.float64]:
    return np.array([request.scheduled_s - request.queued_s for request in record.requests])


def services_s(record: RunRecord) -> NDArray[np.float64]:
    return np.array([request.last_token_s - request.scheduled_s for request in record.requests])


def poisson(rate_per_s: float, count: int, seed: int) -> NDArray[np.float64]:
    return np.cumsum(np.random.default_rng((seed, 0)).exponential(1 / rate_per_s, count))


def exponential_prompts(count: int, seed: int) -> NDArray[np.int64]:
    drawn = np.random.default_rng((seed, 1)).exponential(MEAN_TOKENS, count)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


def sampling_error_s(utilization: float, mean_service_s: float, count: int) -> float:
    """Standard deviation of the mean wait of `count` successive customers of M/M/1.

    From the sum of the autocovariances of successive waits (Daley 1968, J. Austral. Math. Soc. 8, 683);
    that of M/D/1 is smaller.
    """
    rho = utilization
    variance = rho * (2 + 5 * rho - 4 * rho**2 + rho**3) / (1 - rho) ** 4 * mean_service_s**2
    return float(np.sqrt(variance / count))


def pollaczek_khinchine_s(utilization: float, mean_service_s: float, variation: float) -> float:
    """Mean wait in an M/G/1 queue; `variation` is the squared coefficient of variation of the service
    (Kleinrock 1975, vol. 1, eq. 5.70); 1 gives Kleinrock's M/M/1, 0 M/D/1."""
    return utilization * mean_service_s * (1 + variation) / (2 * (1 - utilization))


@pytest.mark.slow
@pytest.mark.parametrize("utilization", [0.3, 0.6])
def test_one_server_with_exponential_services_waits_as_mm1(utilization: float) -> None:
    count, service_s = 40_000, 1.0
    record = run(exponential_prompts(count, 1), poisson(utilization / service_s, count, 1), service_s)
    assert services_s(record).mean() == pytest.approx(service_s, rel=4 / np.sqrt(count))
    expected_s = utilization / (1 / service_s - utilization / service_s)  # rho / (mu - lambda)
    assert expected_s == pytest.approx(pollaczek_khinchine_s(utilization, service_s, variation=1))
    error_s = sampling_error_s(utilization, service_s, count)
    assert error_s < 0.05 * expected_s, "the sample is too small to tell anything"
    assert waits_s(record).mean() == pytest.approx(expected_s, abs=4 * error_s)


@pytest.mark.slow
@pytest.mark.parametrize("utilization", [0.3, 0.6])
def test_one_server_with_fixed_services_waits_as_md1(utilization: float) -> None:
    count, service_s = 40_000, 1.0
    record = run(np.full(count, MEAN_TOKENS), poisson(utilization / service_s, count, 2), service_s)
    assert services_s(record) == pytest.approx(service_s, rel=1e-6)
    expected_s = pollaczek_khinchine_s(utilization, service_s, variation=0)
    error_s = sampling_error_s(utilization, service_s, count)
    assert error_s < 0.1 * expected_s, "the sample is too small to tell anything"
    assert waits_s(record).mean() == pytest.approx(expected_s, abs=4 * error_s)


def test_waits_follow_lindley_to_the_tick() -> None:
    """W(n+1) = max(0, W(n) + S(n) - A(n)), for every customer of one path (Lindley 1952)."""
    count = 1000
    record = run(exponential_prompts(count, 3), poisson(0.8, count, 3), 1.0)
    served = [tick(request.last_token_s) - tick(request.scheduled_s) for request in record.requests]
    queued = [tick(request.queued_s) for request in record.requests]
    wait = 0
    for number, request in enumerate(record.requests):
        assert tick(request.scheduled_s) - queued[number] == wait
        if number + 1 < count:
            wait = max(0, wait + served[number] - (queued[number + 1] - queued[number]))


def test_services_are_linear_in_tokens() -> None:
    """The premise of the tests above."""
    record = run(np.array([1000, 2000, 50_000]), np.array([0.0, 100.0, 200.0]), 1.0)
    assert services_s(record) == pytest.approx(np.array([0.01, 0.02, 0.5]), rel=1e-4)


def in_system_integral(requests: tuple[RequestRecord, ...]) -> int:
    """Request-ticks between the first arrival and the last departure, by a sweep over the events."""
    events = [(tick(request.queued_s), 1) for request in requests]
    events += [(tick(request.last_token_s), -1) for request in requests]
    area = inside = before = 0
    for now, change in sorted(events):
        area += inside * (now - before)
        inside, before = inside + change, now
        assert inside >= 0
    assert inside == 0
    return area


def test_littles_law_holds_exactly() -> None:
    """Number in the system, averaged over time, = rate of arrivals * mean time in the system (Little
    1961); both sides times the duration are whole ticks. What arrivals saw is what the records say."""
    count = 1000
    record = run(exponential_prompts(count, 4), poisson(0.8, count, 4), 1.0)
    requests = record.requests
    sojourns = [tick(request.last_token_s) - tick(request.queued_s) for request in requests]
    assert in_system_integral(requests) == sum(sojourns)
    seen = [
        sum(1 for other in requests if other.queued_s <= request.queued_s < other.last_token_s)
        for request in requests
    ]
    assert record.in_system_at_arrivals.tolist() == seen
