"""Whole runs: all fidelities say the same, and nothing is lost on the way."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import SimulatorError
from simulator.graph.machine import MachineGraph
from simulator.placement.placement import Placement, Stage, Streaming
from simulator.placement.program import Program
from simulator.results.metrics import CATEGORIES, latency_metrics
from simulator.results.records import RunRecord
from simulator.results.sketch import RELATIVE_ERROR
from simulator.results.summary import counts_of, metrics_of, prompt_tokens_of
from simulator.serving.actions import Step
from simulator.serving.arrivals import Request, Source
from simulator.serving.scheduler import Scheduler
from simulator.simulation.serve import Observer, Serving, serve
from simulator.simulation.ticks import tick
from simulator.specs.architecture import Architecture
from simulator.specs.engine import Engine
from tests import tiny

STAGES = {"receive_s": 3e-6, "tokenize_s": 2e-7, "detokenize_s": 5e-7, "send_s": 3e-7}
BLOCKS = 14
FIDELITIES = ("task", "step", "fast")
ETHERNET = tiny.link("ethernet", bandwidth=1e8, latency_s=7e-6)


def fabric() -> MachineGraph:
    return tiny.server(2, interconnect=tiny.link("nvlink", bandwidth=1e9), network=ETHERNET)


CERTIFIED: dict[str, Placement] = {
    "single": tiny.single(),
    "tensor_parallel": tiny.tensor_parallel(2),
    "layer_split": tiny.stages(),
    "pipeline": tiny.stages(microbatches=2),
    "streamed": tiny.streamed(),
    "streamed_partly": Placement(
        "partly", (Stage(("gpu-0",), 0, 4),), streaming=Streaming((None, "host", None, "host"), buffers=1)
    ),
    "streamed_across_steps": tiny.streamed(across_steps=True),
}
"""Placements whose flows never meet on a link."""


def program_of(name: str) -> Program:
    return tiny.program(CERTIFIED[name], fabric())


PROGRAMS = {name: program_of(name) for name in CERTIFIED}
OTHER_MODELS = {
    "windowed": tiny.program(tiny.single(), fabric(), tiny.WINDOWED),
    "windowed_pipeline": tiny.program(tiny.stages(microbatches=2), fabric(), tiny.WINDOWED),
    "mixture": tiny.program(tiny.tensor_parallel(2), fabric(), tiny.MIXTURE),
    "mixture_streamed": tiny.program(tiny.streamed(across_steps=True), fabric(), tiny.MIXTURE),
}
"""Models whose steps have sums of their own: keys inside a window, experts that are read."""


def engine(**changes: Any) -> Engine:
    return tiny.engine(step_s=4e-6, per_sequence_s=3e-7, stages=STAGES, **changes)


# (microseconds after the request before, prompt tokens, output tokens)
asked = st.tuples(st.integers(0, 900), st.integers(1, 30), st.integers(1, 9))
workloads = st.lists(asked, min_size=1, max_size=7)
loops = st.sampled_from([None, None, 1, 2, 3])


def requests_of(rows: Sequence[tuple[int, int, int]]) -> tuple[Request, ...]:
    sent_s = np.cumsum([row[0] for row in rows]) * 1e-6
    return tiny.requests(*((float(at), prompt, output) for at, (_, prompt, output) in zip(sent_s, rows, strict=True)))


def run(
    program: Program, rows: Sequence[tuple[int, int, int]], fidelity: str = "fast", users: int | None = None,
    cores: int = 1, blocks: int = BLOCKS, **changes: Any,
) -> RunRecord:  # fmt: skip
    make_source: Callable[[], Source] = tiny.source(requests_of(rows), users)
    return serve(program, engine(**changes), blocks, make_source, fidelity, cores)


# --- the law ------------------------------------------------------------------------------------------------


def test_spans_say_what_the_plan_says_of_their_tasks() -> None:
    program = PROGRAMS["pipeline"]
    source = Source(requests_of([(0, 20, 4), (0, 9, 6)]))
    record = Serving(program, engine(), BLOCKS, source, "step", 1, record_steps=3).run()
    for step in range(3):
        own = [span for span in record.spans if span.step == step]
        template = program.template(1 + max(span.microbatch for span in own))
        assert [(span.operator, span.layer, span.microbatch, span.crossings) for span in own] == [
            (task.operator, task.layer, task.microbatch, task.crossings) for task in template.tasks]  # fmt: skip
        assert [index for index, span in enumerate(own) if span.is_outcome] == [template.outcome]
    first = {span.microbatch: span.prefill_tokens for span in record.spans if span.step == 0}
    assert sum(first.values()) == 16, "what the token budget of a step lets through of 29"
    assert {span.decode_tokens for span in record.spans if span.step == 0} == {0}


@pytest.mark.parametrize("name", [*CERTIFIED, *OTHER_MODELS])
def test_all_fidelities_give_the_same_record(name: str) -> None:
    """Every clock reading, count and attributed second of a whole run, with `==`."""
    preempted: list[int] = []
    program = (PROGRAMS | OTHER_MODELS)[name]

    @settings(max_examples=20)
    @given(rows=workloads, users=loops, cores=st.integers(1, 2))
    def check(rows: list[tuple[int, int, int]], users: int | None, cores: int) -> None:
        by_task, by_step, fast = (run(program, rows, each, users, cores) for each in FIDELITIES)
        assert by_step.crowded == {} == fast.crowded
        assert tiny.facts(by_task) == tiny.facts(by_step) == tiny.facts(fast)
        preempted.append(by_step.preemptions)

    check()
    assert any(preempted), "workloads must reach preemption too"


def test_all_fidelities_record_the_same_tasks() -> None:
    rows = [(0, 20, 4), (50, 9, 6), (10, 30, 2)]
    for name in ("single", "pipeline", "streamed", "streamed_across_steps"):
        spans = []
        for fidelity in FIDELITIES:
            source = Source(requests_of(rows))
            record = Serving(PROGRAMS[name], engine(), BLOCKS, source, fidelity, 1, record_steps=8).run()
            spans.append(sorted(record.spans, key=lambda span: (span.step, span.start_s, span.name)))
        assert spans[0] == spans[1] == spans[2]
        assert len({span.step for span in spans[0]}) == 8


@pytest.mark.parametrize(
    "placement",
    [
        tiny.stages(streaming=Streaming(("host",) * 4, buffers=1, across_steps=True)),
        Placement("tp", (Stage(("gpu-0", "gpu-1"), 0, 4),), streaming=Streaming(("host",) * 4)),
    ],
)
def test_what_meets_on_an_uplink_is_carried_out_as_events(placement: Placement) -> None:
    """Both GPUs of a network-attached host fetch layers at once: the fetches meet on the uplink."""
    nvlink = tiny.link("nvlink", bandwidth=1e9)
    graph = tiny.server(2, kind="network-attached", network=ETHERNET, interconnect=nvlink)
    program = tiny.program(placement, graph)
    rows = [(0, 20, 4), (50, 9, 6), (10, 30, 2)]
    by_task, by_step, fast = (run(program, rows, each) for each in FIDELITIES)
    assert set(by_step.crowded) == set(fast.crowded) == {"host->pcie-switch"}
    assert by_task.crowded == {}
    assert by_task.event_steps == by_task.step_count
    assert tiny.facts(by_task) == tiny.facts(by_step) == tiny.facts(fast)
    with_own_lanes = run(tiny.program(placement, fabric()), rows, "step")
    assert (with_own_lanes.crowded, with_own_lanes.event_steps) == ({}, 0)
    assert with_own_lanes.end_s < by_task.end_s


def test_one_stage_that_streams_needs_no_tasks() -> None:
    """The second stage's activations do not cross the lanes of the first."""
    program = tiny.program(tiny.stages(streaming=Streaming(("host", "host", None, None), 1)), fabric())
    record = run(program, [(0, 20, 4), (50, 9, 6)])
    assert (record.fidelity, record.crowded, record.event_steps) == ("fast", {}, 0)


# --- simultaneous events ------------------------------------------------------------------------------------


def as_a_step_ends(fidelity: str) -> RunRecord:
    """A second request is sent at the tick at which the first one's prefill ends; without a network and
    host work, it reaches the queue at that tick."""
    program = tiny.program(tiny.single(), tiny.server(1))
    first = (0.0, 8, 3)
    alone = serve(program, tiny.engine(), BLOCKS, tiny.source(tiny.requests(first)), fidelity)
    ends_s = alone.requests[0].first_token_s
    rows = tiny.requests(first, (ends_s, 8, 1))
    record = serve(program, tiny.engine(), BLOCKS, tiny.source(rows), fidelity)
    assert record.requests[1].queued_s == ends_s
    return record


def test_a_request_that_arrives_as_a_step_ends_joins_the_next() -> None:
    """At one tick, requests that reach the queue come before the decision on the next step."""
    by_task, by_step, fast = map(as_a_step_ends, FIDELITIES)
    assert by_step.requests[1].scheduled_s == by_step.requests[1].queued_s
    assert tiny.facts(by_task) == tiny.facts(by_step) == tiny.facts(fast)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_a_client_that_answers_at_once_joins_the_next_step(fidelity: str) -> None:
    """Two users of a closed loop, without network and host work: the second's next request reaches the
    queue at the tick at which its answer was complete, before the decision on the next step."""
    program = tiny.program(tiny.single(), tiny.server(1))
    rows = tiny.requests((0.0, 8, 3), (0.0, 8, 1), (0.0, 8, 2))
    record = serve(program, tiny.engine(), BLOCKS, tiny.source(rows, 2), fidelity)
    _, second, third = record.requests
    assert third.queued_s == second.last_token_s
    assert third.scheduled_s == third.queued_s


# --- nothing is lost ----------------------------------------------------------------------------------------

names = st.sampled_from(["single", "pipeline", "streamed_across_steps"])
rules = st.fixed_dictionaries({
    "chunked_prefill": st.booleans(), "full_reservation": st.booleans(),
    "max_num_batched_tokens": st.integers(6, 32), "max_num_seqs": st.integers(1, 6),
})  # fmt: skip


@settings(max_examples=60)
@given(name=names, rows=workloads, users=loops, blocks=st.integers(2, 20), rules=rules)
def test_requests_and_tokens_are_conserved(
    name: str, rows: list[tuple[int, int, int]], users: int | None, blocks: int, rules: dict[str, Any]
) -> None:
    record = run(PROGRAMS[name], rows, users=users, blocks=blocks, **rules)
    assert sorted(request.number for request in record.requests) == list(range(len(rows)))
    assert {request.status for request in record.requests} <= {"finished", "rejected"}
    for request in record.requests:
        _, prompt, output = rows[request.number]
        block_count = -(-(prompt + output) // 4)
        cut = rules["chunked_prefill"] or prompt <= rules["max_num_batched_tokens"]
        assert (request.status == "finished") == (block_count <= blocks and cut)
        assert request.prompt_tokens == prompt
        assert request.output_tokens == (output if request.status == "finished" else 0)
    assert record.output_tokens == sum(request.output_tokens for request in record.requests)
    assert len(record.in_system_at_arrivals) == len(rows)
    assert record.peak_blocks <= blocks


@settings(max_examples=60)
@given(name=names, rows=workloads, users=loops, rules=rules)
def test_times_are_in_order(
    name: str, rows: list[tuple[int, int, int]], users: int | None, rules: dict[str, Any]
) -> None:
    record = run(PROGRAMS[name], rows, users=users, **rules)
    for request in record.finished():
        stamps = [request.sent_s, request.queued_s, request.scheduled_s, request.first_token_s]
        assert stamps == sorted(stamps)
        assert request.first_token_s > request.scheduled_s
        assert request.first_token_s <= request.last_token_s
        assert request.first_token_s < request.first_received_s <= request.last_received_s
        assert request.last_token_s < request.last_received_s
        assert (request.output_tokens == 1) == (request.first_token_s == request.last_token_s)
        assert request.queued_s - request.sent_s >= ETHERNET.latency_s
    assert record.end_s == max((request.last_received_s for request in record.finished()), default=0.0)
    assert record.start_s == min(request.sent_s for request in record.requests)


def finished_only(rows: list[tuple[int, int, int]]) -> bool:
    return all(-(-(prompt + output) // 4) <= BLOCKS for _, prompt, output in rows)


@settings(max_examples=60)
@given(name=names, rows=workloads, users=loops, cores=st.integers(1, 2))
def test_attributed_time_is_the_time_of_the_requests(
    name: str, rows: list[tuple[int, int, int]], users: int | None, cores: int
) -> None:
    record = run(PROGRAMS[name], rows, users=users, cores=cores)
    assert finished_only(rows)
    assert set(record.time_s) == set(CATEGORIES)
    assert all(spent >= 0 for spent in record.time_s.values())
    assert sum(record.time_s.values()) == pytest.approx(sum(request.e2e_s for request in record.finished()))
    attribution = latency_metrics(record).attribution
    assert sum(attribution.values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in attribution.values())


def test_a_lone_request_waits_for_nothing() -> None:
    """One request on one device: all its time is compute, memory, transfer, host and network."""
    record = run(PROGRAMS["single"], [(0, 20, 1)], max_num_batched_tokens=32)
    assert record.time_s["waiting"] == pytest.approx(0.0, abs=1e-11)
    wire_s = (20 * 4 + 200) / 1e8 + 2 * 7e-6
    assert record.time_s["network"] == pytest.approx(wire_s)
    host_s = 3e-6 + 20 * 2e-7 + 5e-7 + 3e-7 + 4e-6 + 3e-7
    assert record.time_s["host"] == pytest.approx(host_s)


def test_rejected_requests_cost_the_others_nothing_but_their_wait() -> None:
    """The second request is refused; what its way in took is no part of the time of the first."""
    rows = [(0, 8, 2), (10_000, 3000, 2)]
    record = run(PROGRAMS["single"], rows)
    assert [request.status for request in record.requests] == ["finished", "rejected"]
    alone = run(PROGRAMS["single"], rows[:1])
    assert record.time_s == pytest.approx(alone.time_s)


def check_gaps(record: RunRecord) -> None:
    """As many gaps as tokens after the first, and together as long as answers take from first to last."""
    assert record.gap_counts.sum() == sum(request.output_tokens - 1 for request in record.finished())
    spans_s = sum(request.last_received_s - request.first_received_s for request in record.finished())
    assert float(record.gaps_s @ record.gap_counts) == pytest.approx(spans_s)
    assert (record.gaps_s > 0).all()


@settings(max_examples=60)
@given(name=names, rows=workloads, users=loops, blocks=st.sampled_from([10, 12, 14, 100]))
def test_every_gap_between_two_tokens_is_counted(
    name: str, rows: list[tuple[int, int, int]], users: int | None, blocks: int
) -> None:
    """However often sequences are preempted."""
    record = run(PROGRAMS[name], rows, users=users, blocks=blocks)
    assert len(record.finished()) == len(rows)
    check_gaps(record)
    assert sum(request.preemptions for request in record.requests) == record.preemptions


def test_the_gap_of_a_preemption_is_counted() -> None:
    """The longest gaps of all."""
    rows = [(0, 12, 9), (0, 12, 9)]
    record = run(PROGRAMS["single"], rows, blocks=8, max_num_batched_tokens=32)
    assert record.preemptions > 0
    check_gaps(record)


def test_preemptions_are_noted_with_their_requests() -> None:
    record = run(PROGRAMS["single"], [(0, 12, 9), (0, 12, 9)], blocks=8, max_num_batched_tokens=32)
    assert record.preemptions > 0
    assert sum(request.preemptions for request in record.requests) == record.preemptions


@pytest.mark.slow
@given(name=names, rows=workloads)
@settings(max_examples=15)
def test_two_runs_are_equal(name: str, rows: list[tuple[int, int, int]]) -> None:
    first, second = (run(program_of(name), rows) for _ in range(2))
    assert tiny.facts(first) == tiny.facts(second)
    for one, other in ((first.gaps_s, second.gaps_s), (first.gap_counts, second.gap_counts)):
        assert one.tobytes() == other.tobytes()


@settings(max_examples=40)
@given(rows=workloads, users=st.integers(1, 4))
def test_a_closed_loop_has_no_more_users_than_asked(rows: list[tuple[int, int, int]], users: int) -> None:
    """Each sends its next request when the answer has arrived, at the same tick."""
    at_once = [(0, prompt, output) for _, prompt, output in rows]
    record = run(PROGRAMS["single"], at_once, users=users)
    sent = sorted(tick(request.sent_s) for request in record.requests)
    received = sorted(tick(request.last_received_s) for request in record.finished())
    for number, at in enumerate(sent):
        in_flight = number + 1 - bisect.bisect_right(received, at)
        assert in_flight <= users
    assert set(sent[users:]) <= set(received)


# --- amounts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny.LLAMA, tiny.WINDOWED, tiny.MIXTURE], ids=lambda model: model.name)
def test_counted_work_is_that_of_the_steps(model: Architecture) -> None:
    """FLOPs and bytes over links, summed step by step from the shapes that the scheduler decided."""
    shapes: list[Any] = []

    def note(scheduler: Scheduler, step: Step, _: int) -> None:
        shapes.append(step.shape(program.traits))

    program = tiny.program(CERTIFIED["layer_split"], fabric(), model)
    source = Source(requests_of([(0, 20, 4), (50, 9, 6), (10, 30, 2)]))
    record = Serving(program, engine(), BLOCKS, source, "step", 1, observer=Observer(note)).run()
    tasks = program.template(1).tasks
    flops = sum(work.flops.at(shape) for shape in shapes for each in tasks for work in each.works)
    assert record.flops == flops
    carried: dict[str, int] = {}
    for shape in shapes:
        for each in tasks:
            for name, amount in each.link_bytes:
                carried[name] = carried.get(name, 0) + amount.at(shape)
    assert record.link_bytes == carried
    assert record.step_count == len(shapes)


@settings(max_examples=30)
@given(rows=workloads)
def test_no_stream_is_busy_for_longer_than_the_run(rows: list[tuple[int, int, int]]) -> None:
    for name in ("single", "tensor_parallel", "pipeline", "streamed_across_steps"):
        record = run(PROGRAMS[name], rows)
        drained_s = record.end_s - record.start_s + 1e-3  # the last step may leave a prefetch behind
        assert all(0 <= busy <= drained_s for busy in record.busy_s.values())


def test_more_cores_shorten_only_the_wait_for_them() -> None:
    rows = [(0, 25, 3)] * 6
    one, four = run(PROGRAMS["single"], rows, cores=1), run(PROGRAMS["single"], rows, cores=4)
    queued = [[request.queued_s for request in record.requests] for record in (one, four)]
    assert all(few >= many for few, many in zip(*queued, strict=True))
    assert max(queued[0]) > max(queued[1])


def test_a_step_longer_than_the_clock_counts_is_refused_in_words() -> None:
    """A rate of the wrong magnitude ends in one message."""
    slow = tiny.server(2, host_link=tiny.link("frozen", bandwidth=1e-6))
    served = (tiny.program(tiny.tensor_parallel(), slow),)
    for fidelity in FIDELITIES:
        with pytest.raises(SimulatorError, match=r"a step takes more than 3\.34 days"):
            serve(served, engine(), BLOCKS, tiny.source(requests_of([(0, 3, 2)])), fidelity, 1)


@settings(max_examples=25)
@given(workloads, st.sampled_from(["single", "pipeline"]), loops)
def test_a_summary_says_what_all_records_say(rows: list[tuple[int, int, int]], name: str, users: int | None) -> None:
    requests = requests_of(rows)
    whole, summed = (
        serve(PROGRAMS[name], engine(), BLOCKS, lambda: Source(requests, users), keep=keep)
        for keep in ("all", "summary")
    )
    assert not summed.requests and not len(summed.gaps_s) and not len(summed.in_system_at_arrivals)
    assert counts_of(summed) == counts_of(whole)
    assert prompt_tokens_of(summed) == prompt_tokens_of(whole)
    for field in ("output_tokens", "start_s", "end_s", "step_count", "link_bytes", "preemptions", "busy_s"):
        assert getattr(summed, field) == getattr(whole, field)
    assert summed.time_s == pytest.approx(whole.time_s)
    if whole.finished():
        exact, found = metrics_of(whole), metrics_of(summed)
        for field in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            for name, value in getattr(exact, field).as_dict().items():
                error = 1e-12 if name == "mean" else 1.001 * RELATIVE_ERROR
                approximately = value if value is None else pytest.approx(value, rel=error)
                assert getattr(getattr(found, field), name) == approximately


def test_a_summary_keeps_no_request_that_is_over() -> None:
    requests = requests_of([(50, 5, 4)] * 40)
    serving = Serving(PROGRAMS["single"], engine(), BLOCKS, Source(requests), "fast", 1, keep="summary")
    serving.run()
    assert not serving.lives and not serving.records and not serving.gaps.ticks
    assert len(serving.front._client_events) < 10
