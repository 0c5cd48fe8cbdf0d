"""Closed loops as benchmark clients run them: a warm-up that does not count, and users who think."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from simulator.results.records import RunRecord
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from simulator.simulation.ticks import tick
from tests.simulation.test_serve import BLOCKS, FIDELITIES, PROGRAMS, engine, requests_of

ROWS = [(0, 20, 4), (0, 9, 6), (0, 12, 1), (0, 30, 7), (0, 5, 5), (0, 8, 8)]


def run(requests: tuple[Request, ...], fidelity: str, users: int, warmup: int = 0, think_s: float = 0.0) -> RunRecord:
    source = Source(requests, users, warmup, think_s)
    return serve(PROGRAMS["tensor_parallel"], engine(), BLOCKS, lambda: source, fidelity)


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("users", [1, 2, 4])
def test_a_run_after_a_warm_up_is_the_run_without_it(fidelity: str, users: int) -> None:
    """Only later: every latency, count and attributed second. Nothing stays warm in an engine without caches."""
    requests = requests_of(ROWS)
    cold = run(requests, fidelity, users)
    warm = run((*requests, *(replace(r, number=r.number + len(ROWS)) for r in requests[:3])), fidelity, users, 3)
    assert [r.number for r in warm.requests] == [r.number for r in cold.requests]
    for mine, other in zip(warm.requests, cold.requests, strict=True):
        assert [mine.ttft_s, mine.e2e_s] == pytest.approx([other.ttft_s, other.e2e_s], abs=1e-11)
    assert warm.start_s > cold.end_s / 3
    assert warm.duration_s == pytest.approx(cold.duration_s, abs=1e-11)
    for name in ("gap_counts", "in_system_at_arrivals"):
        assert getattr(warm, name).tolist() == getattr(cold, name).tolist()
    assert warm.gaps_s == pytest.approx(cold.gaps_s, abs=1e-12)
    for name in ("step_count", "output_tokens", "link_bytes", "flops", "preemptions"):
        assert getattr(warm, name) == getattr(cold, name)
    for name in ("time_s", "busy_s"):
        assert getattr(warm, name) == pytest.approx(getattr(cold, name), abs=1e-11)
    assert warm.host_busy_s == pytest.approx(cold.host_busy_s)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_users_think_before_they_ask_again(fidelity: str) -> None:
    """One user: each request is sent exactly the time to think after the last answer."""
    record = run(requests_of(ROWS), fidelity, 1, think_s=2e-3)
    pauses = [tick(two.sent_s) - tick(one.last_received_s) for one, two in pairwise(record.requests)]
    assert pauses == pytest.approx([tick(2e-3)] * 5, abs=2)


@pytest.mark.parametrize("users", [1, 3])
def test_throughput_is_what_the_law_of_response_times_says(users: int) -> None:
    """Requests under way or being thought of, averaged over time, are as many as users: X (R + Z) = N (Denning and
    Buzen 1978), but for the drain, which lasts no longer than one request's time."""
    think_s, many = 1e-4, [(0, 20, 4), (0, 9, 6)] * 60
    record = run(requests_of(many), "fast", users, think_s=think_s)
    sojourns = [request.e2e_s for request in record.requests]
    longest = max(sojourns) + think_s
    throughput = len(many) / record.duration_s
    cycle_s = sum(sojourns) / len(many) + think_s
    assert throughput * cycle_s == pytest.approx(users, abs=users * (longest + think_s) / record.duration_s)
