"""Several serving loops on one clock: replicas, and loops that take turns on the same stages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import Placement, Stage, Streaming
from simulator.placement.program import Program, block_ranges, programs_of
from simulator.results.records import RunRecord
from simulator.serving.actions import Step
from simulator.serving.arrivals import Source
from simulator.serving.scheduler import Scheduler
from simulator.simulation import plan_book
from simulator.simulation.loop import Observer
from simulator.simulation.serve import Serving, serve
from tests import tiny
from tests.simulation.test_serve import BLOCKS, ETHERNET, FIDELITIES, engine, loops, requests_of, workloads

Rows = Sequence[tuple[int, int, int]]


def server(gpus: int = 4, **more: str) -> MachineGraph:
    nvlink = tiny.link("nvlink", bandwidth=1e9)
    return tiny.server(gpus, interconnect=nvlink, network=ETHERNET, **more)


def programs(graph: MachineGraph, *placements: Placement) -> tuple[Program, ...]:
    return programs_of(tiny.LLAMA, placements, graph, tiny.BF16)


def pipeline(loop_count: int, microbatches: int = 1, first_gpu: int = 0) -> Placement:
    stages = tuple(Stage((f"gpu-{first_gpu + number}",), 2 * number, 2) for number in range(2))
    return Placement("pipeline", stages, microbatches, loops=loop_count)


def streamed(gpu: int, across_steps: bool = False) -> Placement:
    streaming = Streaming(("host",) * 4, 2, across_steps)
    return Placement("streamed", (Stage((f"gpu-{gpu}",), 0, 4),), streaming=streaming)


SINGLES = tuple(tiny.single(name=f"gpu-{number}") for number in range(3))
SERVED = {
    "two replicas": programs(server(), *SINGLES[:2]),
    "three replicas": programs(server(), *SINGLES),
    "unlike replicas": programs(
        server(), SINGLES[0], Placement("tp", (Stage(("gpu-1", "gpu-2"), 0, 4),)), streamed(3, True)
    ),
    "two loops of a pipeline": programs(server(), pipeline(2)),
    "three loops with microbatches": programs(server(), pipeline(3, 2)),
    "replicas of pipelines": programs(server(), pipeline(2), pipeline(2, first_gpu=2)),
}
"""Loops whose flows never crowd a link."""

UPLINK = programs(server(kind="network-attached"), streamed(0), streamed(1, True))
"""Two replicas that fetch their layers over one uplink."""


def run(served: Sequence[Program], rows: Rows, fidelity: str = "fast", users: int | None = None,
        cores: int = 2, blocks: int = 3 * BLOCKS) -> RunRecord:  # fmt: skip
    return serve(served, engine(), blocks, tiny.source(requests_of(rows), users), fidelity, cores)


@pytest.mark.parametrize("name", SERVED)
def test_all_fidelities_give_the_same_record(name: str) -> None:
    """Every clock reading, count and attributed second of a whole run, with `==`."""
    several: list[int] = []

    @settings(max_examples=15)
    @given(rows=workloads, users=loops, cores=st.integers(1, 2))
    def check(rows: Rows, users: int | None, cores: int) -> None:
        records = [run(SERVED[name], rows, each, users, cores) for each in FIDELITIES]
        by_task, by_step, fast = map(tiny.facts, records)
        assert by_task == by_step == fast
        several.append(sum(busy > 0 for unit, busy in records[0].busy_s.items() if ".engine" in unit))

    check()
    assert max(several) == len(SERVED[name])


@pytest.mark.parametrize("kind", ["server", "network-attached"])
def test_replicas_in_step_agree_too(kind: str) -> None:
    """Equal requests that reach equal replicas at one tick, so that their steps end at the same ticks; where
    they meet on an uplink, none may go ahead because the other has just ended a step."""
    served = programs(tiny.server(2, kind=kind), *SINGLES[:2])
    for gap, output in ((0, 6), (200, 9), (1000, 4)):
        rows = requests_of([(0, 8, output)] * 6 + [(gap, 8, output)] * 2)
        by_task, by_step, fast = (
            serve(served, tiny.engine(), 100, tiny.source(rows), each) for each in FIDELITIES
        )
        assert tiny.facts(by_task) == tiny.facts(by_step) == tiny.facts(fast)
        assert bool(by_step.crowded) is (kind == "network-attached")


def test_times_charged_do_not_depend_on_how_many_steps_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of floats are taken over the same steps, whether they came one by one or as arrays."""
    monkeypatch.setattr(plan_book, "KEPT_STEPS", 7)
    rows = [(0, 20, 9), (50, 9, 9), (10, 30, 5), (1500, 12, 9)]
    for name in ("two replicas", "three loops with microbatches"):
        by_step, fast = (run(SERVED[name], rows, each) for each in ("step", "fast"))
        assert tiny.facts(by_step) == tiny.facts(fast)


def test_replicas_that_meet_on_an_uplink_take_turns_in_windows() -> None:
    """Runs that are events here and there only, and their records those of `task`."""
    shares: list[float] = []

    @settings(max_examples=25)
    @given(rows=workloads, users=loops)
    def check(rows: Rows, users: int | None) -> None:
        by_task, by_step, fast = (run(UPLINK, rows, each, users) for each in FIDELITIES)
        assert tiny.facts(by_task) == tiny.facts(by_step) == tiny.facts(fast)
        assert set(by_step.crowded) <= {"host->pcie-switch"}
        shares.append(by_step.event_steps / by_step.step_count)

    check()
    assert sum(share > 0 for share in shares) >= 5
    assert sum(share < 1 for share in shares) >= 5


def test_recorded_tasks_are_those_of_the_events() -> None:
    """Also of steps that R had priced before a window took them over."""
    rows = [(0, 9, 3), (20_000, 20, 4), (1, 9, 6), (10, 30, 2)]
    spans = []
    for fidelity in FIDELITIES:
        serving = Serving(UPLINK, engine(), 60, Source(requests_of(rows)), fidelity, 2, record_steps=12)
        record = serving.run()
        spans.append(sorted(record.spans, key=lambda span: (span.step, span.start_s, span.name)))
    assert 0 < record.event_steps < record.step_count
    assert spans[0] == spans[1] == spans[2]
    assert len({span.step for span in spans[0]}) == 12


def test_a_replica_goes_ahead_of_the_others_and_deliveries_keep_their_order() -> None:
    """Long answers of replicas on lanes of their own: whole runs of steps at once in each, though the others'
    steps end meanwhile; cores still take deliveries in the order in which they are ready."""
    rows = [(0, 8 + 5 * number, 30) for number in range(6)]
    served = SERVED["three replicas"]
    serving = Serving(served, engine(), 100, Source(requests_of(rows)), "fast", 1)
    launched: list[int] = []
    run_step = serving.clock.run
    serving.clock.run = lambda loop, shapes: launched.append(loop) or run_step(loop, shapes)  # type: ignore[func-returns-value, method-assign]
    fast = serving.run()
    assert len(launched) < fast.step_count / 2
    assert tiny.facts(fast) == tiny.facts(run(served, rows, "task", cores=1, blocks=100))


def test_equal_requests_are_shared_out_evenly() -> None:
    """Six requests at once to two replicas: each serves three, and takes as long as one that is asked three."""
    rows = [(0, 12, 4)] * 6
    graph = tiny.server(2)
    bare = tiny.engine(step_s=4e-6)
    half, both = (
        serve(programs(graph, *SINGLES[:count]), bare, 50, tiny.source(requests_of(rows[: 3 * count])))
        for count in (1, 2)
    )
    assert both.end_s == half.end_s
    assert both.step_count == 2 * half.step_count
    assert both.busy_s["gpu-0"] == both.busy_s["gpu-1"] == half.busy_s["gpu-0"]
    assert both.busy_s["host.engine"] == both.busy_s["host.engine-1"]
    assert both.preemptions == half.preemptions == 0


def test_a_request_goes_to_the_loop_with_the_fewest() -> None:
    """A long request to the first loop, a short one to the second; the third comes when the second is done,
    the fourth while both have one: to the first of equals."""
    taken: list[tuple[int, int]] = []

    def note(scheduler: Scheduler, step: Step, _: int) -> None:
        loop = next(each.program.loop for each in serving.loops if each.scheduler is scheduler)
        taken.extend((piece.sequence, loop) for piece in step.prefills if piece.context == 0)

    rows = [(0, 8, 40), (0, 8, 1), (3000, 8, 40), (1, 8, 2)]
    source = Source(requests_of(rows))
    serving = Serving(SERVED["two replicas"], engine(), 60, source, "step", 2, observer=Observer(note))
    serving.run()
    assert sorted(taken) == [(0, 0), (1, 1), (2, 1), (3, 0)]


def test_a_stage_passes_a_microbatch_on_before_it_goes_on_with_the_next() -> None:
    """The second stage computes the first microbatch while the first stage computes the second."""
    (placed,) = programs(server(), pipeline(1, microbatches=2))
    source = Source(requests_of([(0, 8, 4)] * 2))
    recorded = Serving(placed, tiny.engine(), 60, source, "task", 1, record_steps=4).run().spans
    spans = {span.name: span for span in recorded if span.step == 3}
    assert spans["2.qkv_proj.m0@gpu-1"].start_s < spans["0.qkv_proj.m1@gpu-0"].end_s


def test_loops_keep_the_stages_of_a_pipeline_busy() -> None:
    """Steps of equal requests, with stages much longer than what lies between them: one loop uses a stage half
    of the time, two loops nearly all of it, so that twice the requests take hardly longer."""
    slow = [tiny.device(flops=1e7, bandwidth=1e7)] * 2
    graph = tiny.machine(tiny.node(gpus=slow, interconnect=tiny.link("nvlink", bandwidth=1e9)))
    rows = [(0, 8, 20)] * 8
    one, two = (
        serve(programs(graph, pipeline(count)), tiny.engine(), 100, tiny.source(requests_of(rows[: 4 * count])))
        for count in (1, 2)
    )
    assert one.step_count * 2 == two.step_count
    busy = [record.busy_s["gpu-1"] / record.end_s for record in (one, two)]
    assert busy[0] < 0.55 and busy[1] > 0.8
    assert two.end_s < 1.2 * one.end_s


def test_loops_share_out_the_blocks_of_their_placement() -> None:
    served = SERVED["replicas of pipelines"]
    assert block_ranges(served, 9) == (range(5), range(5, 9), range(5), range(5, 9))
    assert [program.engine_unit for program in served] == [
        "host.engine", "host.engine-1", "host.engine-2", "host.engine-3",
    ]  # fmt: skip


def test_names_of_loops_never_meet() -> None:
    """What one loop's step writes has a name that no other's has, as both may lie in one memory."""
    for served in SERVED.values():
        written = [set(program.template(1).tensors) for program in served]
        assert sum(map(len, written)) == len(set[str]().union(*written))


def test_replicas_on_own_lanes_do_not_see_each_other() -> None:
    """One island each, so that one's steps do not make the other's streams look busy; loops of a placement
    share one."""

    def islands(name: str) -> int:
        serving = Serving(SERVED[name], engine(), 60, Source(requests_of([(0, 8, 2)])), "fast", 2)
        return len({id(island) for island in serving.clock._island_of})

    assert [islands(name) for name in ("three replicas", "two loops of a pipeline", "replicas of pipelines")] == [3, 1, 2]
    uplink = Serving(UPLINK, engine(), 60, Source(requests_of([(0, 8, 2)])), "fast", 2)
    assert len({id(island) for island in uplink.clock._island_of}) == 1
