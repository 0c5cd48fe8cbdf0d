"""The same run read from three clocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.report.table import legend
from simulator.results.clocks import MEANINGS, latencies
from simulator.results.records import RequestRecord
from simulator.study.run import run_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"

steps = st.tuples(*[st.floats(0.0, 2.0)] * 5, st.integers(1, 9))


def request(number: int, sent_s: float, *gaps_s: float, tokens: int) -> RequestRecord:
    """Readings one after the other; both tokens reach the client a tenth of a second after their step's end."""
    queued, scheduled, first, last = (sent_s + sum(gaps_s[: upto + 1]) for upto in range(4))
    last = first if tokens == 1 else last
    return RequestRecord(number, "finished", 10, sent_s, tokens, queued, scheduled, first, last, first + 0.1, last + 0.1)


def test_readings_by_hand() -> None:
    one = request(0, 1.0, 0.5, 0.25, 2.0, 8.0, tokens=5)
    two = request(1, 2.0, 0.5, 0.25, 4.0, 8.0, tokens=1)
    at_client, at_engine, of_call = ([tuple(each) for each in latencies([one, two], clock)] for clock in MEANINGS)
    assert at_client == [pytest.approx((2.85, 2.0, 10.85)), (pytest.approx(4.85), None, pytest.approx(4.85))]
    assert at_engine == [(2.25, 2.0, 10.25), (4.25, None, 4.25)]
    assert of_call == [(2.25, 2.0, 10.25), (5.25, None, 10.25)]


@given(st.lists(steps, min_size=1, max_size=6))
def test_an_engine_sees_less_than_its_client_and_a_call_no_less_than_its_requests(rows: list[Any]) -> None:
    requests = [request(number, *row[:5], tokens=row[5]) for number, row in enumerate(rows)]
    for client, engine, call in zip(*(latencies(requests, clock) for clock in MEANINGS), strict=True):
        assert engine.ttft_s <= client.ttft_s
        assert engine.e2e_s <= client.e2e_s
        assert call.ttft_s >= engine.ttft_s - 1e-9
        assert call.e2e_s >= engine.e2e_s - 1e-9
        assert call.tpot_s == engine.tpot_s


def test_a_report_says_which_clock_each_row_is_read_from() -> None:
    """Every engine's own: a server's client, the one call of an offline benchmark."""
    few = ["workload.requests=4", "machine=epyc-9654-4x-l40s", "placements=[{strategy: single_device}]"]
    served, called, both = (
        run_scenario(SCENARIOS / "chat-on-one-node.yaml", [*few, f"engine={engine}"], workers=1)
        for engine in ("vllm", "transformers", "[vllm, transformers]")
    )
    assert legend(served)[0].endswith("from the client's sending a request to its receiving the first token.")
    assert "one call for all requests" in legend(called)[0]
    assert [run.as_dict()["metrics_clock"] for run in both.runs] == ["client", "call"]
    rows = [line.split(":")[0] for line in legend(both)[:4]]
    assert [row.split(" ")[0] for row in rows] == ["TTFT", "TPOT"] * 2
    assert ["vllm" in row for row in rows] == [True, True, False, False]
    assert ["transformers" in row for row in rows] == [False, False, True, True]
    (run,) = called.runs
    assert run.metrics is not None
    assert run.metrics.e2e_s.p50 == run.metrics.e2e_s.p99, "all answers are there when the call returns"
