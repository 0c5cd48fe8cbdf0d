"""Runs in which tokens are proposed: the law of the fidelities, what clients receive, what is recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.placement.placement import Placement, Speculation, Stage
from simulator.placement.program import programs_of
from simulator.results.records import RunRecord
from simulator.serving.arrivals import Source
from simulator.serving.speculation import DrawnAcceptance
from simulator.simulation.serve import serve
from tests import tiny
from tests.simulation.test_law_of_placements import STAGES, rows_of

DRAFT = replace(tiny.LLAMA, name="draft", layers=tiny.LLAMA.layers[:1])
FIDELITIES = ("task", "step", "fast")


def placement(devices: tuple[str, ...] = ("gpu-0",), draft: tuple[str, ...] = ("gpu-0",), proposed: int = 3,
              acceptance: float = 0.7) -> Placement:  # fmt: skip
    speculation = Speculation(DRAFT, draft, proposed, acceptance)
    return Placement("speculative", (Stage(devices, 0, 4),), speculation=speculation)


PLACES = {
    "one device": placement(),
    "a device each": placement(draft=("gpu-1",)),
    "ranks and a processor": placement(("gpu-0", "gpu-1"), ("cpu",)),
    "ranks of both": placement(("gpu-0", "gpu-1"), ("gpu-2", "gpu-3"), proposed=5),
}


def graph() -> Any:
    return tiny.machine(tiny.node(gpus=[tiny.device()] * 4, cpu=tiny.device("cpu"), interconnect=tiny.link("nvlink")))


def run(
    where: Placement, rows: list[tuple[float, int, int]], fidelity: str, blocks: int = 9, users: int | None = None,
    timeout_s: float | None = None, record_steps: int = 0, **scheduler: Any,
) -> RunRecord:  # fmt: skip
    engine = tiny.engine(step_s=4e-6, per_sequence_s=3e-7, stages=STAGES, **scheduler)
    return serve(programs_of(tiny.LLAMA, (where,), graph(), tiny.BF16), engine, blocks,
                 tiny.source(tiny.requests(*rows), users), fidelity, 2, record_steps, timeout_s=timeout_s)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("changes", [
    {}, {"policy": "prefill_first"}, {"policy": "static_batch"}, {"prefix_caching": True},
    {"full_reservation": True, "order": "shortest_first"}, {"overlap": True}, {"chunked_prefill": False, "max_num_batched_tokens": 30},
], ids=str)  # fmt: skip
def test_all_fidelities_end_at_the_same_tick(place: str, changes: dict[str, Any]) -> None:
    for seed in range(3):
        asked = rows_of(seed)
        for more in ({"users": 2}, {"timeout_s": 2e-3}):
            by_task, by_step, fast = (run(PLACES[place], asked, each, **more, **changes) for each in FIDELITIES)
            assert tiny.facts(by_task) == tiny.facts(by_step) == tiny.facts(fast)
            assert by_task.event_steps == by_task.step_count


def test_tokens_in_are_tokens_out() -> None:
    """Each token is received once: a gap for every one after a sequence's first. Accepted ones come with the one
    before them, so no time passes between."""
    record = run(placement(), [(0.0, 9, 12), (0.0, 5, 7), (1e-3, 3, 9)], "fast", blocks=100)
    speculation = record.speculation
    assert speculation is not None
    assert record.output_tokens == 28 == 3 + speculation.rounds + speculation.accepted_tokens
    assert record.gap_counts.sum() == 28 - 3
    assert record.gap_counts[record.gaps_s == 0].sum() == speculation.accepted_tokens > 0
    assert not np.any(record.gaps_s < 0)


def test_what_is_drawn_is_drawn_by_the_seed() -> None:
    rows = [(0.0, 9, 40)]
    engine = tiny.engine()
    programs = programs_of(tiny.LLAMA, (placement(),), graph(), tiny.BF16)
    counts = [
        serve(programs, engine, 100, tiny.source(tiny.requests(*rows)), acceptance=DrawnAcceptance(0.7, seed)).step_count
        for seed in (1, 1, 2, 3)
    ]
    assert counts[0] == counts[1]
    assert len(set(counts)) > 1


def test_the_drafters_time_is_part_of_the_whole() -> None:
    record = run(placement(), [(0.0, 9, 12)], "fast", blocks=100)
    assert record.speculation is not None
    drafted, whole = record.speculation.draft_time_s, dict(record.time_s)
    assert 0 < drafted["memory"] < whole["memory"]
    assert sum(drafted.values()) < sum(whole.values())


def test_a_device_of_its_own_is_busy_with_proposals_only() -> None:
    record = run(placement(draft=("gpu-1",)), [(0.0, 9, 12)], "task", blocks=100, record_steps=1000)
    passes = [span for span in record.spans if span.name.startswith("draft.")]
    assert {span.units for span in passes if span.category == "compute"} == {("gpu-1",)}
    assert not any("gpu-1" in span.units for span in record.spans if span not in passes)
    assert record.link_bytes["host->gpu-1"] > 0


def test_what_warms_up_is_not_counted() -> None:
    """Of a closed loop that warms up: rounds, proposals and the drafter's time are those of the rest."""
    programs = programs_of(tiny.LLAMA, (placement(),), graph(), tiny.BF16)

    def record(warm_up: int, keep: Any = "all") -> RunRecord:
        requests = tiny.requests(*[(0.0, 9, 12)] * 6)
        return serve(programs, tiny.engine(), 100, lambda: Source(requests, 1, warm_up), keep=keep)

    warmed, whole = record(2), record(0)
    assert warmed.speculation is not None and whole.speculation is not None
    assert warmed.output_tokens == 4 * 12 == 4 + warmed.speculation.rounds + warmed.speculation.accepted_tokens
    assert sum(warmed.speculation.draft_time_s.values()) < sum(whole.speculation.draft_time_s.values())
    assert warmed.speculation.draft_passes < whole.speculation.draft_passes
    assert record(0, "summary").speculation == whole.speculation
