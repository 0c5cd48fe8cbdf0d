"""What a finished run amounts to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simulator.graph.shape import StepShape
from simulator.placement.placement import Placement
from simulator.results.records import RequestRecord, RunRecord, Span, SpeculationRecord
from simulator.simulation.clock import Recorded
from simulator.simulation.plan_book import PlanBook, busy_seconds, flops_total, link_totals, settled
from simulator.simulation.price_matrix import PARTS
from simulator.simulation.ticks import seconds, tick

if TYPE_CHECKING:
    from simulator.simulation.serve import Serving


def run_record(serving: Serving) -> RunRecord:
    """Everything measured in one run."""
    requests = tuple(sorted(serving.records, key=lambda request: request.number))
    totals = serving.summary or _totals(requests)
    busy = busy_seconds(serving.books)
    threads = {
        thread
        for program in serving.programs
        if program.host == serving.programs[0].host
        for thread in program.engine_units
    }
    clock = serving.clock
    return RunRecord(
        requests=requests,
        gaps_s=np.array(serving.gaps.ticks, dtype=np.float64) / tick(1.0),
        gap_counts=np.array(serving.gaps.counts, dtype=np.int64),
        step_count=clock.step_count,
        output_tokens=totals.output_tokens,
        start_s=totals.start_s,
        end_s=totals.end_s,
        time_s=_times(serving),
        overhead_s=_times_in_steps(serving.books)["overhead"],
        busy_s=busy,
        host_busy_s=sum(busy.get(thread, 0.0) for thread in sorted(threads))
        + seconds(serving.front.cores.busy),
        link_bytes=link_totals(serving.books),
        flops=flops_total(serving.books),
        peak_blocks_of=_peak_blocks(serving),
        preemptions=sum(loop.scheduler.preemptions for loop in serving.loops),
        prefilled_tokens=sum(loop.scheduler.prompt_tokens for loop in serving.loops),
        reused_tokens=sum(loop.scheduler.reused_tokens for loop in serving.loops),
        in_system_at_arrivals=np.array(serving.in_system_at_arrivals, dtype=np.int64),
        fidelity=serving.fidelity,
        crowded=clock.crowded,
        event_steps=clock.event_steps,
        speculation=_speculation(serving),
        spans=tuple(span for recorded in clock.recorded for span in _spans(recorded)),
        summary=serving.summary,
    )


class _Totals(NamedTuple):
    output_tokens: int
    start_s: float
    end_s: float


def _totals(requests: Sequence[RequestRecord]) -> _Totals:
    finished = [request for request in requests if request.status == "finished"]
    return _Totals(
        output_tokens=sum(request.output_tokens for request in finished),
        start_s=min((request.sent_s for request in requests), default=0.0),
        end_s=max((request.last_received_s for request in finished), default=0.0),
    )


def _peak_blocks(serving: Serving) -> dict[str, int]:
    """KV blocks that the loops of a placement held at their peaks; of replicas the most of any."""
    peaks: Counter[Placement] = Counter()
    for loop in serving.loops:
        peaks[loop.program.placement] += loop.scheduler.peak_blocks
    found: dict[str, int] = {}
    for placement, peak in peaks.items():
        found[placement.role] = max(peak, found.get(placement.role, 0))
    return found


def _speculation(serving: Serving) -> SpeculationRecord | None:
    drafters = [book.drafter for book in serving.books if book.drafter is not None]
    if not drafters:
        return None
    rounds = [loop.rounds for loop in serving.loops]
    return SpeculationRecord(
        sum(each.rounds for each in rounds), sum(each.proposed for each in rounds),
        sum(each.accepted for each in rounds), sum(each.passes for each in rounds), _times_in_steps(drafters),
    )  # fmt: skip


def _times_in_steps(books: Sequence[PlanBook]) -> dict[str, float]:
    """Request-seconds on the critical paths of steps, by part."""
    in_steps = sum((use.time_s for use in settled(books)), np.zeros(len(PARTS)))
    return dict(zip(PARTS, in_steps.tolist(), strict=True))


def _times(serving: Serving) -> dict[str, float]:
    """Request-seconds by category; waiting is what is left of the time of all that were taken up. Until a run
    is over, steps may be charged for requests whose time is not counted yet."""
    times = _times_in_steps(serving.books)
    times["compute"] += times.pop("overhead")
    times["host"] += seconds(serving.host_ticks)
    times["network"] = seconds(serving.network_ticks)
    times["waiting"] = seconds(serving.in_requests_ticks) - sum(times.values())
    return times


def _spans(recorded: Recorded) -> Iterator[Span]:
    template, timed = recorded.priced.template, recorded.timed
    for index, (task, start, end) in enumerate(zip(template.tasks, timed.starts, timed.ends, strict=True)):
        shape = recorded.shapes[task.microbatch]
        prompts, decodes = (0, 0) if template.of_drafter else _tokens(shape)
        yield Span(
            task.name, task.kind, task.operator, task.units, seconds(start), seconds(end), recorded.round,
            task.layer, task.microbatch, prompts, decodes, task.crossings,
            index == template.outcome and not template.of_drafter,
        )  # fmt: skip


def _tokens(shape: StepShape) -> tuple[int, int]:
    """Of prompts, and sequences that decode; where all tokens are scored, some may have been proposed."""
    if shape.logit_rows == shape.tokens:
        return 0, shape.sequences
    return shape.prefill_tokens, shape.decode_tokens
