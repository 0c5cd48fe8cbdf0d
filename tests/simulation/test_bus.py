"""A processor's kernels and the copies out of its DRAM share the memory bus."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from simulator.graph.machine import MachineGraph
from simulator.graph.shape import Amount, StepShape
from simulator.placement.placement import Placement, Stage
from simulator.placement.plan import Task, Template, Tensor
from simulator.placement.program import Program
from simulator.results.records import RunRecord
from simulator.simulation.pricing import PricedTemplate
from simulator.simulation.serve import serve
from tests import tiny
from tests.simulation.test_serve import BLOCKS, FIDELITIES, engine, requests_of, workloads

CPU = tiny.device("cpu", flops=1e9, bandwidth=2e8)
SPLIT = (Stage(("cpu",), 0, 2), Stage(("gpu-0",), 2, 2))
DECODE = (StepShape(tokens=2, sequences=2, logit_rows=2, decode_tokens=2, decode_span=20),)


def machine(bus_bytes_per_s: float | None) -> MachineGraph:
    """A processor and a GPU; with a bus between the DRAM and everything else, if its rate is given."""
    return tiny.machine(tiny.node(gpus=[tiny.device()], cpu=CPU, dram=bus_bytes_per_s, dram_share=1.0))


def program(bus_bytes_per_s: float | None, microbatches: int = 1) -> Program:
    return tiny.program(Placement("split", SPLIT, microbatches), machine(bus_bytes_per_s))


def run(served: Program, rows: list[tuple[int, int, int]], fidelity: str = "fast") -> RunRecord:
    return serve(served, engine(), BLOCKS, tiny.source(requests_of(rows)), fidelity)


def test_a_kernel_loads_the_bus_with_its_own_traffic() -> None:
    """Its bytes at the bus's rate over its own duration; all of the bus where that would be more."""
    for rate, capped in ((4e8, False), (2.5e7, True)):
        placed = program(rate)
        priced = PricedTemplate(placed.template(1), placed, engine())
        durations = priced.durations(DECODE)
        index = next(i for i, task in enumerate(priced.template.tasks) if task.operator == "up_proj")
        task, price_class = priced.template.tasks[index], priced.class_of_task[index]
        assert priced.links_of_task[index] == ("host.bus",)
        assert task.link_bytes == ()
        nbytes = sum(work.moved_bytes.at(DECODE[0]) for work in task.works)
        duration_s = durations.total[price_class] * 1e-12
        loads, bytes_per_s = priced.lone_flow(index, durations)
        share = min(1.0, nbytes / rate / duration_s)
        assert bool(share == 1.0) is capped
        assert loads == {"host.bus": pytest.approx(share)}
        assert bytes_per_s == pytest.approx(share * rate)


def test_kernels_of_a_gpu_and_machines_without_a_bus_know_no_bus() -> None:
    placed = program(4e8)
    priced = PricedTemplate(placed.template(1), placed, engine())
    tasks = zip(priced.template.tasks, priced.links_of_task, strict=True)
    by_place = {task.place: links for task, links in tasks if task.kind == "compute"}
    assert by_place == {"cpu": ("host.bus",), "gpu-0": ()}
    without = program(None)
    unchanged = PricedTemplate(without.template(1), without, engine())
    over_links = tuple(tuple(link for link, _ in task.link_bytes) for task in without.template(1).tasks)
    assert unchanged.links_of_task == over_links


def test_a_copy_of_nothing_takes_nothing_of_a_link() -> None:
    """A step without prefills copies no cached tokens of any: its flow takes a tick and slows nobody."""
    cached = Amount.of(prefill_span=8)
    copy = Task("copy", "transfer", "copy", "gpu-0", ("gpu-0.in",), (), (Tensor("x", "gpu-0", cached),),
                link_bytes=(("host->gpu-0", cached),))  # fmt: skip
    priced = PricedTemplate(Template((copy,), 0), program(None), engine())
    assert priced.lone_flow(0, priced.durations(DECODE)) == ({}, pytest.approx(0.0))


@settings(max_examples=10)
@given(rows=workloads)
def test_alone_on_the_bus_nothing_changes(rows: list[tuple[int, int, int]]) -> None:
    """One microbatch: the kernels of the processor and the copies follow one another."""
    with_bus, without = run(program(4e8), rows), run(program(None), rows)
    assert with_bus.crowded == {}
    crossed = with_bus.link_bytes["host.bus"]
    assert crossed == with_bus.link_bytes["host->gpu-0"] + with_bus.link_bytes["gpu-0->host"]
    bare = {link: count for link, count in with_bus.link_bytes.items() if link != "host.bus"}
    assert tiny.facts(replace(with_bus, link_bytes=bare)) == tiny.facts(without)


def test_a_copy_slows_the_kernel_beside_it() -> None:
    """Two microbatches: while the first's residual goes to the GPU, the processor computes the second. The
    fidelities agree, and it takes longer than where the bus is wide."""
    slower: list[bool] = []

    @settings(max_examples=15)
    @given(rows=workloads)
    def check(rows: list[tuple[int, int, int]]) -> None:
        narrow = program(2e8, microbatches=2)
        by_task, by_step, fast = (run(narrow, rows, each) for each in FIDELITIES)
        assert tiny.facts(by_task) == tiny.facts(by_step) == tiny.facts(fast)
        assert set(by_step.crowded) <= {"host.bus"}
        wide = run(program(1e12, microbatches=2), rows)
        assert wide.crowded == {}
        assert wide.end_s <= by_task.end_s
        slower.append(wide.end_s < by_task.end_s and bool(by_step.crowded))

    check()
    assert slower.count(True) >= 5
