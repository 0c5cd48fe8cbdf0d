"""Clients that wait only so long, in an ordinary loop."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.placement.placement import Placement
from simulator.results.records import RunRecord
from simulator.serving.arrivals import Request, Source
from simulator.simulation.serve import serve
from tests.placed import deployed, stages

FOUND = deployed(Placement("one", stages(("gpu-0", 4))))
ASKED = [Request(number, 0.001 * number, 12, 30) for number in range(6)]


def run(timeout_s: float | None, fidelity: str = "fast", **more: Any) -> RunRecord:
    return serve(FOUND.programs, FOUND.engine, 200, lambda: Source(ASKED), fidelity, timeout_s=timeout_s, **more)


def test_who_waits_long_enough_is_answered() -> None:
    plain = run(None)
    longest = max(request.e2e_s for request in plain.requests)
    patient = run(longest + 1e-9)
    assert [r.status for r in patient.requests] == ["finished"] * 6
    assert [r.last_received_s for r in patient.requests] == [r.last_received_s for r in plain.requests]


def test_who_gives_up_has_failed_though_the_answer_was_nearly_there() -> None:
    """A moment before the step with the last token ends; once that has ended the token is on its way."""
    plain = run(None)
    first = plain.requests[0]
    in_time = run(first.last_token_s - first.sent_s + 1e-9)
    assert in_time.requests[0].status == "finished"
    too_late = run(first.last_token_s - first.sent_s - 1e-9)
    assert too_late.requests[0].status == "failed"


@pytest.mark.parametrize("timeout_s", [1e-6, 0.004, 0.01, 0.02])
def test_all_requests_are_accounted_for_at_every_fidelity(timeout_s: float) -> None:
    by_fidelity = [run(timeout_s, fidelity) for fidelity in ("fast", "step", "task")]
    for record in by_fidelity:
        assert len(record.requests) == len(ASKED)
        assert record.time_s["waiting"] >= 0
    statuses = [[request.status for request in record.requests] for record in by_fidelity]
    assert statuses[0] == statuses[1] == statuses[2]
    assert "failed" in statuses[0] or timeout_s > 0.01


def test_room_that_somebody_leaves_is_used() -> None:
    """With room for one sequence the second is served as soon as the first gives up."""
    asked = [Request(0, 0.0, 12, 30), Request(1, 0.0, 12, 2)]
    blocks = 3  # of 16 tokens: 42 tokens take them all
    alone = serve(FOUND.programs, FOUND.engine, blocks, lambda: Source(asked[:1]))
    timeout_s = alone.requests[0].e2e_s / 2
    record = serve(FOUND.programs, FOUND.engine, blocks, lambda: Source(asked), timeout_s=timeout_s)
    assert [request.status for request in record.requests] == ["failed", "finished"]
