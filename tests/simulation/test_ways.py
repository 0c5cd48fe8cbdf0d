"""Collectives that choose the quickest of several ways: their price, and what they take of links."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.costs.transfers import collective_s
from simulator.graph.shape import Chunk, StepShape
from simulator.placement.placement import Placement, Stage
from simulator.placement.program import programs_of
from simulator.simulation.price_matrix import PARTS
from simulator.simulation.pricing import PricedTemplate
from simulator.simulation.serve import serve
from simulator.simulation.ticks import seconds
from simulator.specs.hardware import Collective, Collectives
from tests import tiny
from tests.simulation.test_serve import BLOCKS, ETHERNET, FIDELITIES, engine, loops, requests_of, workloads

ENGINE = Collective(latency_s=1e-6, efficiency=0.2, growth=-1.0, below_bytes=1000)
SMALL = Collective(latency_s=4e-6, efficiency=0.3)
LARGE = Collective(latency_s=9e-6, hop_s=1e-7, efficiency=0.6)
CHOOSY = tiny.link("choosy", bandwidth=1e9, collective=Collectives(engine=(ENGINE,), library=(SMALL, LARGE)))
"""Of a tiny model's all-reduces, 48 bytes a token: to 20 tokens the engine's, to some 65 the small way."""

PAIR = Placement("tp", (Stage(("gpu-0", "gpu-1"), 0, 4),))
PLACED = tiny.program(PAIR, tiny.server(2, interconnect=CHOOSY, network=ETHERNET))
PRICED = PricedTemplate(PLACED.template(1), PLACED, engine())
TASKS = PRICED.template.tasks
REDUCE = next(index for index, task in enumerate(TASKS) if task.operator == "all_reduce")


def shape(tokens: int) -> tuple[StepShape]:
    return (StepShape.of([Chunk(0, 0, tokens, True)]),)


@given(tokens=st.integers(1, 400))
def test_an_all_reduce_costs_what_the_quickest_way_costs(tokens: int) -> None:
    durations = PRICED.durations(shape(tokens))
    nbytes = 2 * tiny.LLAMA.hidden_size * tokens
    found_s = seconds(int(durations.total[PRICED.class_of_task[REDUCE]]))
    assert found_s == pytest.approx(collective_s(CHOOSY, "all_reduce", 2, nbytes), abs=2e-12)


def test_every_way_is_taken_by_some_size() -> None:
    by_tokens = [collective_s(CHOOSY, "all_reduce", 2, 48 * tokens) for tokens in (10, 30, 400)]
    of_each = [
        collective_s(tiny.link(bandwidth=1e9, collective=Collectives(library=(way,))), "all_reduce", 2, 48 * n)
        for way, n in ((ENGINE.model_copy(update={"below_bytes": None}), 10), (SMALL, 30), (LARGE, 400))
    ]
    assert by_tokens == pytest.approx(of_each)


@given(tokens=st.integers(1, 400))
def test_a_lone_collective_takes_what_its_bytes_need_of_a_link(tokens: int) -> None:
    """A slow way leaves room on its links: the fastest way for large messages says how much."""
    durations = PRICED.durations(shape(tokens))
    loads, bytes_per_s = PRICED.lone_flow(REDUCE, durations)
    price_class = PRICED.class_of_task[REDUCE]
    flow_s = seconds(int(durations.total[price_class] - PRICED.latency[price_class]))
    (nbytes,) = {amount.at(shape(tokens)[0]) for _, amount in TASKS[REDUCE].link_bytes}
    share = min(1.0, nbytes / 6e8 / flow_s)
    assert loads == dict.fromkeys(PRICED.links_of_task[REDUCE], pytest.approx(share))
    assert bytes_per_s == pytest.approx(nbytes / flow_s, rel=1e-6)
    assert all(load <= PRICED.most_loads[REDUCE][link] for link, load in loads.items())


@given(tokens=st.integers(1, 400))
def test_the_parts_of_a_collective_add_up(tokens: int) -> None:
    durations = PRICED.durations(shape(tokens))
    split_s = PRICED.split_s(durations.lone_s)[PRICED.class_of_task[REDUCE]]
    total_s = seconds(int(durations.total[PRICED.class_of_task[REDUCE]]))
    assert split_s[PARTS.index("transfer")] == pytest.approx(total_s, abs=2e-12)
    assert split_s.sum() == split_s[PARTS.index("transfer")]


def test_steps_priced_together_cost_what_each_costs_alone() -> None:
    alone = [PRICED.durations(shape(tokens)).total for tokens in range(1, 200, 7)]
    features = [[*shape(tokens)[0]] for tokens in range(1, 200, 7)]
    together, _ = PRICED.durations_of_many(np.array(features, dtype=float).reshape(len(alone), -1))
    assert (together == alone).all()


FABRIC = tiny.server(4, interconnect=CHOOSY, network=ETHERNET)
SERVED = {
    "a pair": (FABRIC, (PAIR,)),
    "two pairs": (FABRIC, (PAIR, Placement("tp", (Stage(("gpu-2", "gpu-3"), 0, 4),)))),
    "two pairs of pipelines": (
        FABRIC, (Placement("both", (Stage(("gpu-0", "gpu-1"), 0, 2), Stage(("gpu-2", "gpu-3"), 2, 2)), 2, loops=2),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
def test_all_fidelities_give_the_same_record(name: str) -> None:
    graph, placements = SERVED[name]
    served = programs_of(tiny.LLAMA, placements, graph, tiny.BF16)

    @settings(max_examples=12)
    @given(rows=workloads, users=loops)
    def check(rows: list[tuple[int, int, int]], users: int | None) -> None:
        source = tiny.source(requests_of(rows), users)
        records = [serve(served, engine(), 3 * BLOCKS, source, each, 2) for each in FIDELITIES]
        assert tiny.facts(records[1]) == tiny.facts(records[0])
        assert tiny.facts(records[2]) == tiny.facts(records[0])

    check()
