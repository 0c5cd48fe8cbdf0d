"""Engines that decide each step while the one before is under way: who comes meanwhile misses a step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving.actions import Step
from simulator.serving.arrivals import Source
from simulator.simulation.loop import Observer
from simulator.simulation.serve import Serving, serve
from simulator.simulation.ticks import seconds
from tests import tiny
from tests.simulation import test_loops
from tests.simulation.test_serve import (
    BLOCKS,
    FIDELITIES,
    PROGRAMS,
    engine,
    loops,
    requests_of,
    run,
    workloads,
)

BARE = tiny.program(tiny.single(), tiny.server(1))


def step_ends(overlap: bool, *rows: tuple[float, int, int]) -> list[tuple[float, float]]:
    """When each request of an engine without host work was queued, and first computed."""
    record = serve(BARE, tiny.engine(overlap=overlap), BLOCKS, tiny.source(tiny.requests(*rows)))
    return [(request.queued_s, request.scheduled_s) for request in record.requests]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_request_enters_the_step_after_the_next(share: float) -> None:
    """It comes during the first request's prefill, step 1, or as that begins; the prefill and the decode step
    after it last as long as they do for the first request alone."""
    first = (0.0, 8, 4)
    alone = serve(BARE, tiny.engine(), BLOCKS, tiny.source(tiny.requests(first))).requests[0]
    prefill_s = alone.first_token_s
    two = serve(BARE, tiny.engine(), BLOCKS, tiny.source(tiny.requests((0.0, 8, 2)))).requests[0]
    late = (max(share * prefill_s, 1e-12), 8, 1)
    _, (_, at_once) = step_ends(False, first, late)
    _, (_, overlapped) = step_ends(True, first, late)
    assert at_once == prefill_s
    assert overlapped == two.last_token_s


def test_an_idle_engine_takes_a_request_at_once() -> None:
    """Also one that comes during the last step there would have been: none was decided after it."""
    first = (0.0, 8, 1)
    (_, began), (queued, scheduled) = step_ends(True, first, (1.0, 8, 1))
    assert (began, scheduled) == (0.0, queued)
    ends_s = serve(BARE, tiny.engine(), BLOCKS, tiny.source(tiny.requests(first))).requests[0].last_token_s
    _, (_, scheduled) = step_ends(True, first, (ends_s / 2, 8, 1))
    assert scheduled == ends_s


@pytest.mark.parametrize("name", ["single", "pipeline", "streamed_across_steps"])
def test_all_fidelities_give_the_same_record(name: str) -> None:
    @settings(max_examples=25)
    @given(rows=workloads, users=loops, cores=st.integers(1, 2))
    def check(rows: list[tuple[int, int, int]], users: int | None, cores: int) -> None:
        records = [run(PROGRAMS[name], rows, each, users, cores, overlap=True) for each in FIDELITIES]
        by_task, by_step, fast = map(tiny.facts, records)
        assert by_task == by_step == fast

    check()


@settings(max_examples=15)
@given(name=st.sampled_from(["three replicas", "two loops of a pipeline"]), rows=workloads, users=loops)
def test_several_loops_agree_too(name: str, rows: list[tuple[int, int, int]], users: int | None) -> None:
    source, served = tiny.source(requests_of(rows), users), test_loops.SERVED[name]
    records = [serve(served, engine(overlap=True), 3 * BLOCKS, source, each, 2) for each in FIDELITIES]
    by_task, by_step, fast = map(tiny.facts, records)
    assert by_task == by_step == fast


@settings(max_examples=60)
@given(rows=workloads, users=loops)
def test_no_step_takes_up_who_came_after_the_one_before_was_decided(
    rows: list[tuple[int, int, int]], users: int | None
) -> None:
    decided: list[tuple[int, Step]] = []
    observer = Observer(lambda _, step, launched: decided.append((launched, step)))
    asked = Source(requests_of(rows), users)
    serving = Serving(PROGRAMS["single"], engine(overlap=True), BLOCKS, asked, "step", 1, observer=observer)
    queued_s = {request.number: request.queued_s for request in serving.run().requests}
    for (before, _), (_, step) in pairwise(decided):
        late = [piece for piece in step.prefills if queued_s[piece.sequence] > seconds(before)]
        nothing_else = not step.decode_count and len(late) == len(step.prefills)
        assert not late or nothing_else, "but for an engine that would have stood still"


@settings(max_examples=40)
@given(rows=workloads, users=loops, blocks=st.integers(2, 20))
def test_requests_are_finished_or_rejected(
    rows: list[tuple[int, int, int]], users: int | None, blocks: int
) -> None:
    """Those too big for all blocks are refused when they are handed on, and others go on as ever."""
    record = run(PROGRAMS["single"], rows, users=users, blocks=blocks, overlap=True)
    assert len(record.requests) == len(rows)
    for request in record.requests:
        _, prompt, output = rows[request.number]
        fits = -(-(prompt + output) // 4) <= blocks
        assert (request.status == "finished") == fits
    assert record.output_tokens == sum(request.output_tokens for request in record.requests)


def test_a_client_that_answers_at_once_misses_the_next_step() -> None:
    rows = tiny.requests((0.0, 8, 4), (0.0, 8, 1), (0.0, 8, 2))
    for fidelity in FIDELITIES:
        record = serve(BARE, tiny.engine(overlap=True), BLOCKS, tiny.source(rows, 2), fidelity)
        _, second, third = record.requests
        assert third.queued_s == second.last_token_s
        assert third.scheduled_s > third.queued_s
