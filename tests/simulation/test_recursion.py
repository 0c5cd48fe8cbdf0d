"""The law of the fidelities on made-up plans, and three small plans worked out by hand."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment, Event

from simulator.placement.plan import Template
from simulator.simulation.engine import Launched, TaskEngine
from simulator.simulation.recursion import Carried, Schedule, critical_path, schedule
from simulator.simulation.reduced import reduce
from tests.tiny import HandPriced, task

Launch = tuple[HandPriced, int]
Times = list[tuple[list[int], list[int]]]


def by_recursion(launches: list[Launch]) -> list[Schedule]:
    carried = Carried()
    return [schedule(plan, plan.durations, at, carried) for plan, at in launches]  # type: ignore[arg-type]


def by_events(launches: list[Launch]) -> Times:
    """Starts and ends of all tasks of some plans, launched in order, task by task on SimPy."""
    env = Environment()
    engine, launched = TaskEngine(env), list[Launched]()

    def launcher() -> Generator[Event, Any, None]:
        for plan, at in launches:
            yield env.timeout(at - env.now)
            launched.append(engine.launch(plan, plan.durations))  # type: ignore[arg-type]

    env.process(launcher())
    env.run()
    return [(each.starts, each.ends) for each in launched]


def times(schedules: list[Schedule]) -> Times:
    return [(list(each.starts), list(each.ends)) for each in schedules]


# --- by hand ------------------------------------------------------------------------------------------------


def pipeline() -> HandPriced:
    """Two stages, two microbatches; program order as lowering has it, stage by stage."""
    tasks = (
        task("s0.m0", units=["g0"], writes=["a0"]),
        task("s0.m1", units=["g0"], writes=["a1"]),
        task("copy.m0", "transfer", ["g0.out", "g1.in"], ["a0"], ["b0"], links=["g0->g1"]),
        task("copy.m1", "transfer", ["g0.out", "g1.in"], ["a1"], ["b1"], links=["g0->g1"]),
        task("s1.m0", units=["g1"], reads=["b0"], writes=["c0"]),
        task("s1.m1", units=["g1"], reads=["b1"], writes=["c1"]),
    )
    return HandPriced(Template(tasks, outcome=5), [30, 40, 15, 25, 50, 20], [0, 0, 5, 5, 0, 0])


def test_a_pipeline_of_two_microbatches_by_hand() -> None:
    expected = [
        (0, 30),  # s0.m0
        (30, 70),  # s0.m1: the same device, after m0
        (30, 45),  # copy.m0: from 30, 5 of latency and 10 of flow
        (70, 95),  # copy.m1
        (45, 95),  # s1.m0, while s0.m1 still computes
        (95, 115),  # s1.m1: its input and its device are free at the same tick
    ]
    first = (pipeline(), 0)
    starts, ends = [row[0] for row in expected], [row[1] for row in expected]
    assert times(by_recursion([first])) == [(starts, ends)] == by_events([first])
    assert by_recursion([first])[0].crowded_link is None


def test_a_second_step_of_the_pipeline_may_start_before_the_first_has_drained() -> None:
    """Launched at 80: stage 0 is free (70), the copy of m0 is not held up, stage 1 is busy until 115."""
    launches = [(pipeline(), 0), (pipeline(), 80)]
    second = [
        (80, 110),  # s0.m0
        (110, 150),  # s0.m1
        (110, 125),  # copy.m0: the copy engine is free since 95
        (150, 175),  # copy.m1
        (125, 175),  # s1.m0: after the first step's s1.m1 at 115, and its input at 125
        (175, 195),  # s1.m1
    ]
    expected = ([row[0] for row in second], [row[1] for row in second])
    assert times(by_recursion(launches))[1] == expected == by_events(launches)[1]


def streaming() -> HandPriced:
    """Four layers through two buffers: 100 ticks to fetch one, 150 to compute it."""
    tasks = (
        task("fetch.0", "transfer", ["g.in"], writes=["w0"], links=["host->g"]),
        task("fetch.1", "transfer", ["g.in"], writes=["w1"], links=["host->g"]),
        task("layer.0", units=["g"], reads=["w0"], writes=["x0"]),
        task("fetch.2", "transfer", ["g.in"], writes=["w2"], links=["host->g"], after=[2]),
        task("layer.1", units=["g"], reads=["x0", "w1"], writes=["x1"]),
        task("fetch.3", "transfer", ["g.in"], writes=["w3"], links=["host->g"], after=[4]),
        task("layer.2", units=["g"], reads=["x1", "w2"], writes=["x2"]),
        task("layer.3", units=["g"], reads=["x2", "w3"], writes=["x3"]),
    )
    return HandPriced(Template(tasks, outcome=7), [100, 100, 150, 100, 150, 100, 150, 150])


def test_streaming_through_two_buffers_by_hand() -> None:
    expected = [
        (0, 100),  # fetch.0
        (100, 200),  # fetch.1: one copy engine
        (100, 250),  # layer.0
        (250, 350),  # fetch.2: the engine is free at 200, the buffer of layer 0 at 250
        (250, 400),  # layer.1: there since 200, the device is free at 250
        (400, 500),  # fetch.3: the buffer of layer 1 is free at 400
        (400, 550),  # layer.2: there since 350
        (550, 700),  # layer.3: there since 500
    ]
    plan = (streaming(), 0)
    starts, ends = [row[0] for row in expected], [row[1] for row in expected]
    assert times(by_recursion([plan])) == [(starts, ends)] == by_events([plan])
    nodes = reduce(plan[0]).nodes  # type: ignore[arg-type]
    chain = critical_path(plan[0].template, by_recursion([plan])[0], nodes)
    assert [plan[0].template.tasks[index].name for index in chain] == [
        "fetch.0", "layer.0", "layer.1", "layer.2", "layer.3"
    ]  # fmt: skip


def sharing() -> HandPriced:
    """Two copies over one link, the second after a computation; and one over another link."""
    tasks = (
        task("first", "transfer", ["g0.in"], writes=["a"], links=["uplink"]),
        task("work", units=["g1"], writes=["b"]),
        task("second", "transfer", ["g1.in"], ["b"], ["c"], links=["uplink"]),
        task("other", "transfer", ["g2.in"], writes=["d"], links=["elsewhere"]),
    )
    return HandPriced(Template(tasks, outcome=2), [110, 60, 100, 130], [10, 0, 0, 10])


def test_two_transfers_on_one_link_by_hand() -> None:
    """`first` flows alone from 10 (its latency) to 60: 50 of its 100 are left. Then both at half speed:
    `first` ends at 60 + 2 * 50 = 160, when `second` has moved 50 and goes on alone until 210."""
    plan = (sharing(), 0)
    assert by_events([plan]) == [([0, 0, 60, 0], [160, 60, 210, 130])]
    lone = by_recursion([plan])[0]
    assert lone.ends == (110, 60, 160, 130)
    assert lone.crowded_link == "uplink", "the schedule must not pass as a certificate"


@pytest.mark.parametrize(
    ("each", "beside", "crowded", "never"), [(0.6, 0.3, None, False), (0.6, 0.5, "uplink", False), (0.3, 0.3, None, True), (1.0, 0.0, None, False)]
)
def test_loads_decide_and_not_overlaps(each: float, beside: float, crowded: str | None, never: bool) -> None:
    """Three copies overlap on a link, never all at once: the second follows the first, the third is beside
    both. With 0.3 beside 0.6 there is room; without knowing durations that is sure only if all three fit."""
    tasks = (
        task("first", "transfer", ["g0.in"], writes=["a"], links=["uplink"]),
        task("second", "transfer", ["g0.in"], writes=["b"], links=["uplink"]),
        task("beside", "transfer", ["g1.in"], writes=["c"], links=["uplink"]),
    )
    loads = {0: {"uplink": each}, 1: {"uplink": each}, 2: {"uplink": beside}}
    plan = HandPriced(Template(tasks, outcome=2), [50, 50, 70], loads=loads)
    lone = by_recursion([(plan, 0)])[0]
    assert lone.crowded_link == crowded
    assert reduce(plan).never_crowded is never  # type: ignore[arg-type]
    assert (times([lone]) == by_events([(plan, 0)])) == (crowded is None)


def test_flows_that_only_touch_are_certified() -> None:
    """The second starts at the tick at which the first ends."""
    plan = HandPriced(sharing().template, [60, 60, 100, 130], [10, 0, 0, 10])
    lone = by_recursion([(plan, 0)])[0]
    assert lone.crowded_link is None
    assert times([lone]) == by_events([(plan, 0)]) == [([0, 0, 60, 0], [60, 60, 160, 130])]


# --- the law on random plans --------------------------------------------------------------------------------

UNITS, LINKS, KEPT = ("u0", "u1", "u2"), ("l0", "l1", "l2"), ("k0", "k1", "k2")


@st.composite
def plans(draw: st.DrawFn, flow_share: float = 0.4) -> HandPriced:
    """A random plan: any units, needs, order, flows with all or part of their links, and kept tensors read from
    earlier plans."""
    count = draw(st.integers(1, 10))
    tasks, ticks, latency, kept_left = [], list[int](), list[int](), list(KEPT)
    loads = dict[int, dict[str, float]]()
    small = draw(st.sampled_from([None, None, 0.1, 0.3]))
    for index in range(count):
        earlier = list(range(index))
        reads = [f"t{i}" for i in draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True))] if earlier else []
        reads += draw(st.lists(st.sampled_from(KEPT), max_size=1))
        after = draw(st.lists(st.sampled_from(earlier), max_size=1)) if earlier else []
        kept = [kept_left.pop()] if kept_left and draw(st.integers(0, 3)) == 0 else []
        units = draw(st.lists(st.sampled_from(UNITS), max_size=2, unique=True))
        links = []
        if draw(st.floats(0, 1)) < flow_share:
            links = draw(st.lists(st.sampled_from(LINKS), min_size=1, max_size=2, unique=True))
        delay = draw(st.integers(0, 5)) if links else 0
        kind = "transfer" if links else "compute"
        tasks.append(task(f"task-{index}", kind, units, reads, [f"t{index}"], kept, links, after))
        ticks.append(delay + draw(st.integers(1, 12)))
        latency.append(delay)
        if links and small is not None:
            loads[index] = {link: small * draw(st.integers(1, 3)) for link in links}
    outcome = draw(st.integers(0, count - 1))
    return HandPriced(Template(tuple(tasks), outcome), ticks, latency, loads)


@st.composite
def programs(draw: st.DrawFn) -> list[Launch]:
    """Some plans launched one after the other, often before the one before has ended."""
    launches, now = list[Launch](), 0
    for _ in range(draw(st.integers(1, 4))):
        now += draw(st.integers(0, 40))
        launches.append((draw(plans()), now))
    return launches


@pytest.mark.slow
def test_a_certified_schedule_is_that_of_the_events() -> None:
    """The law: if in R's schedule the flows on each link always fit on it, every task starts and ends at the
    same tick in both. It would prove little if few plans with flows were certified, if all were, or if none of
    them had flows that overlap."""
    certified: list[bool] = []
    overlapping: list[bool] = []

    @settings(max_examples=180)
    @given(programs())
    def check(launches: list[Launch]) -> None:
        schedules = by_recursion(launches)
        is_certified = all(each.crowded_link is None for each in schedules)
        if is_certified:
            assert times(schedules) == by_events(launches)
            overlapping.append(any_overlap(launches, schedules))
        flows = sum(bool(each.link_bytes) for plan, _ in launches for each in plan.template.tasks)
        if flows > 1 and len(launches) > 1:
            certified.append(is_certified)

    check()
    assert certified.count(True) >= 15
    assert certified.count(False) >= 15
    assert overlapping.count(True) >= 10


def any_overlap(launches: list[Launch], schedules: list[Schedule]) -> bool:
    """Whether two flows hold a link at once."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for (plan, _), timed in zip(launches, schedules, strict=True):
        latency = plan.latency[plan.class_of_task].tolist()
        for index, each in enumerate(plan.template.tasks):
            for link, _ in each.link_bytes:
                spans.setdefault(link, []).append((timed.starts[index] + latency[index], timed.ends[index]))
    pairs = (pair for held in spans.values() for pair in combinations(held, 2))
    return any(a[0] < b[1] and b[0] < a[1] for a, b in pairs)


@settings(max_examples=80)
@given(plans())
def test_sharing_only_delays_and_never_past_the_sum(plan: HandPriced) -> None:
    """Makespan with infinite links <= simulated <= sum of all tasks; each flow may be rounded up a tick."""
    lone = by_recursion([(plan, 0)])[0]
    ((starts, ends),) = by_events([(plan, 0)])
    assert all(a <= b for a, b in zip(lone.starts, starts, strict=True))
    assert all(a <= b for a, b in zip(lone.ends, ends, strict=True))
    total = sum(int(plan.durations.total[plan.class_of_task[i]]) for i in range(len(ends)))
    flows = sum(bool(each.link_bytes) for each in plan.template.tasks)
    assert max(ends) <= total + flows


@settings(max_examples=80)
@given(plans(), st.integers(0, 1000))
def test_the_reduced_template_ends_as_the_recursion_does(plan: HandPriced, launch: int) -> None:
    """On quiet streams: outcome and drain to the tick, and a certificate for all durations only where R's
    own holds."""
    timed = by_recursion([(plan, launch)])[0]
    reduced = reduce(plan)  # type: ignore[arg-type]
    ends = reduced.ends(plan.durations.total)
    assert launch + ends[reduced.outcome] == timed.ends[plan.template.outcome]
    assert launch + max(ends) == max(timed.ends)
    assert not (reduced.never_crowded and timed.crowded_link)
    assert int(reduced.critical_counts(ends) @ plan.durations.total) == ends[reduced.outcome]
    assert not reduced.drains or ends[reduced.outcome] == max(ends)


@settings(max_examples=60)
@given(plans(), st.lists(st.integers(1, 40), min_size=3, max_size=3))
def test_several_steps_at_once_end_as_each_by_itself(plan: HandPriced, factors: list[int]) -> None:
    """Ends, and the tasks charged, of arrays of steps are those of the steps, with unlike prices."""
    reduced = reduce(plan)  # type: ignore[arg-type]
    total = np.array([1 + (plan.durations.total * factor) % 17 for factor in factors])
    ends = reduced.ends_of_many(total)
    assert ends.tolist() == [reduced.ends(row) for row in total]
    each = [reduced.critical_counts(reduced.ends(row)).tolist() for row in total]
    assert reduced.critical_counts_of_many(ends).tolist() == each


@settings(max_examples=80)
@given(plans(), st.integers(1, 50))
def test_the_critical_path_is_unbroken(plan: HandPriced, launch: int) -> None:
    """It begins at the launch, ends with the outcome, and each task starts when the one before ends."""
    timed = by_recursion([(plan, launch)])[0]
    chain = critical_path(plan.template, timed, reduce(plan).nodes)  # type: ignore[arg-type]
    assert chain[-1] == plan.template.outcome
    assert timed.starts[chain[0]] == launch
    assert [timed.ends[i] for i in chain[:-1]] == [timed.starts[i] for i in chain[1:]]


def test_both_ways_to_price_a_step_charge_the_same_tasks() -> None:
    """Where two paths decide the outcome at once, the quick way and the full one must choose the same, or
    `step` and `task` attribute time differently. Here `d` waits for `b` and for `c`, both until 4."""
    tasks = (
        task("a", units=["u"], writes=["ta"]),
        task("b", units=["v"], writes=["tb"]),
        task("c", units=["u"], writes=["tc"]),
        task("d", units=["v"], reads=["tc"], writes=["td"]),
    )
    plan = HandPriced(Template(tasks, outcome=3), [1, 4, 3, 2])
    timed = by_recursion([(plan, 0)])[0]
    assert timed.ends == (1, 4, 4, 6)
    reduced = reduce(plan)  # type: ignore[arg-type]
    counts = reduced.critical_counts(reduced.ends(plan.durations.total))
    chain = plan.class_of_task[critical_path(plan.template, timed, reduced.nodes)]
    assert counts.tolist() == np.bincount(chain, minlength=plan.class_count).tolist()


# --- carrying from plan to plan -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    launch: int
    start: int


@pytest.mark.parametrize("case", [_Case(10, 50), _Case(80, 80)])
def test_a_kept_tensor_is_waited_for_across_plans(case: _Case) -> None:
    """A prefetch of 50 ticks by one plan; the next plan's reader on another stream waits, or need not."""
    writer = HandPriced(Template((task("prefetch", units=["copy"], kept=["w"]),), 0), [50])
    reader = HandPriced(Template((task("use", units=["gpu"], reads=["w"], writes=["x"]),), 0), [5])
    launches = [(writer, 0), (reader, case.launch)]
    assert by_recursion(launches)[1].starts == (case.start,)
    assert by_events(launches)[1][0] == [case.start]


def test_a_version_written_again_is_a_new_one() -> None:
    """The second plan reads the first one's version before it writes its own; the third reads that."""
    first = HandPriced(Template((task("write", units=["a"], kept=["w"]),), 0), [50])
    again = HandPriced(
        Template((task("read", units=["b"], reads=["w"], writes=["x"]), task("write", units=["a"], kept=["w"])), 0),
        [5, 30],
    )
    launches = [(first, 0), (again, 0), (again, 0)]
    expected = [([0], [50]), ([50, 50], [55, 80]), ([80, 80], [85, 110])]
    assert times(by_recursion(launches)) == expected == by_events(launches)
