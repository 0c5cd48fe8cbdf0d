"""Gaps between tokens: of every client they add up to the time from its first token to its last."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.placement.placement import Placement
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from simulator.study.deploy import reset
from tests.placed import deployed, stages

requests = st.lists(
    st.tuples(st.floats(0, 0.02), st.integers(1, 30), st.integers(1, 12)), min_size=2, max_size=12
)


@pytest.mark.parametrize("policy", ["continuous_batching", "prefill_first", "static_batch"])
@settings(max_examples=25)
@given(requests, st.booleans(), st.booleans(), st.integers(1, 3), st.integers(11, 40))
def test_gaps_add_up_to_the_time_of_answers(
    policy: str, rows: list[tuple[float, int, int]], chunked: bool, swap: bool, prompts: int, blocks: int
) -> None:
    changes: dict[str, Any] = {
        "policy": policy, "chunked_prefill": chunked, "preemption": "swap" if swap else "recompute",
        "max_prefills_per_step": prompts, "kv_block_tokens": 4, "max_num_batched_tokens": 40, "max_num_seqs": 5,
    }  # fmt: skip
    found = deployed(Placement("one", stages(("gpu-0", 4))))
    engine = reset(found.engine, changes, {})
    asked = [Request(number, *row) for number, row in enumerate(sorted(rows))]
    record = serve(found.programs, engine, blocks, lambda: Source(asked), host_blocks=8 if swap else 0)
    answers_s = [request.last_received_s - request.first_received_s for request in record.finished()]
    assert float((record.gaps_s * record.gap_counts).sum()) == pytest.approx(sum(answers_s), abs=1e-9)
    assert record.gap_counts.sum() == sum(request.output_tokens - 1 for request in record.finished())
    assert (record.gaps_s >= 0).all()
    assert sum(request.preemptions for request in record.requests) == record.preemptions
