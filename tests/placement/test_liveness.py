"""The bound of memory against every schedule there is, and the order of tasks against a naive closure."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.graph.shape import Amount, Chunk
from simulator.placement.liveness import Liveness
from simulator.placement.memory import split_chunks
from simulator.placement.occupancy import peak_occupancy
from simulator.placement.placement import Placement
from simulator.placement.plan import Order, Plan, Task, Template, Tensor, with_frees
from simulator.placement.program import Program
from simulator.simulation.recursion import Carried, schedule
from tests.placed import EXPERT_PLACEMENTS, FLOAT64, PLACEMENTS, machine, model, some_slow
from tests.tiny import HandPriced

UNITS, MEMORIES = ("u0", "u1", "u2"), ("m0", "m1")
ONE_CHUNK = ((Chunk(0, 0, 1, True),),)


def plan_of(tasks: list[Task]) -> Plan:
    """A plan that ends with a task after all others, which reads what nobody else has."""
    read = {name for task in tasks for name in task.reads}
    left = tuple(t.name for task in tasks for t in task.writes if t.name not in read)
    sink = Task("sink", "compute", "sink", "device", UNITS, left, (), after=tuple(range(len(tasks))))
    return Plan(Template(with_frees([*tasks, sink], ()), len(tasks)), ONE_CHUNK)


@st.composite
def tasks_of(draw: st.DrawFn, most: int = 7, streams: int = 3) -> list[Task]:
    """Tasks in program order, on some streams, each with one or two tensors of any size in any memory."""
    tasks: list[Task] = []
    for index in range(draw(st.integers(1, most))):
        names = [tensor.name for task in tasks for tensor in task.writes]
        reads = draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else []
        units = draw(st.lists(st.sampled_from(UNITS[:streams]), min_size=1, max_size=2, unique=True))
        after = draw(st.lists(st.integers(0, index - 1), max_size=1)) if index else []
        writes = tuple(
            Tensor(f"t{index}.{number}", draw(st.sampled_from(MEMORIES)), Amount.of(one=draw(st.integers(1, 9))))
            for number in range(draw(st.integers(1, 2)))
        )
        tasks.append(Task(f"task-{index}", "compute", "work", "device", tuple(units), tuple(reads), writes,
                          after=tuple(after)))  # fmt: skip
    return tasks


# --- all schedules ------------------------------------------------------------------------------------------


def predecessors(template: Template) -> list[set[int]]:
    """What must have ended before each task starts."""
    return [{*needs, *before} for needs, before in zip(template.needs, template.previous_on_units, strict=True)]


def most_of_all_schedules(plan: Plan) -> Counter[str]:
    """By memory, the most bytes in any state that some schedule reaches: which tasks have started, and which of
    them have ended. Whatever tasks take, a schedule is a way through these states, and every way is a schedule."""
    tasks, needs = plan.template.tasks, predecessors(plan.template)
    written = {t.name: (index, t) for index, task in enumerate(tasks) for t in task.writes}
    freed = {name: index for index, task in enumerate(tasks) for name in task.frees}
    most: Counter[str] = Counter()
    seen, open_states = set(), [(frozenset[int](), frozenset[int]())]
    while open_states:
        state = open_states.pop()
        if state in seen:
            continue
        seen.add(state)
        started, ended = state
        now: Counter[str] = Counter()
        for name, (writer, tensor) in written.items():
            if writer in started and freed[name] not in ended:
                now[tensor.memory] += plan.amount(tasks[writer], tensor.nbytes)
        most |= now
        open_states += [(started, ended | {index}) for index in started - ended]
        open_states += [(started | {index}, ended) for index, before in enumerate(needs)
                        if index not in started and before <= ended]  # fmt: skip
    return most


def bound_of(plan: Plan) -> Counter[str]:
    most = Liveness(plan.template, {}).most(plan)
    return +Counter({memory: kinds.total() for memory, kinds in most.items()})


def test_no_schedule_takes_more_than_the_bound() -> None:
    """It would prove little if the bound were hardly ever reached."""
    reached: list[bool] = []

    @settings(max_examples=60, deadline=None)
    @given(tasks_of())
    def check(tasks: list[Task]) -> None:
        plan = plan_of(tasks)
        exact, bound = most_of_all_schedules(plan), bound_of(plan)
        assert all(exact[memory] <= bound[memory] for memory in MEMORIES)
        reached.append(exact == bound)

    check()
    assert sum(reached) > len(reached) / 2


@settings(max_examples=40, deadline=None)
@given(tasks_of(most=9, streams=1))
def test_where_tasks_follow_one_another_the_bound_is_exact(tasks: list[Task]) -> None:
    plan = plan_of(tasks)
    assert bound_of(plan) == most_of_all_schedules(plan)


@settings(max_examples=40, deadline=None)
@given(tasks_of(most=6), st.sampled_from(UNITS))
def test_where_one_stream_writes_to_a_memory_the_bound_is_exact(tasks: list[Task], unit: str) -> None:
    """Whatever other streams do beside it, and whoever frees what it wrote."""

    def sized(task: Task, tensor: Tensor) -> Tensor:
        return replace(tensor, memory="m0" if task.units[0] == unit else "m1", nbytes=Amount.of(one=int(tensor.name[1]) + 1))

    plan = plan_of([replace(task, writes=tuple(sized(task, tensor) for tensor in task.writes)) for task in tasks])
    assert bound_of(plan)["m0"] == most_of_all_schedules(plan)["m0"]


# --- real plans at any speed --------------------------------------------------------------------------------


def steps_of(program: Program, seed: int, count: int) -> list[Plan]:
    """Steps with random chunks; of streamed weights all but the first are warm."""
    rng, streaming = np.random.default_rng(seed), program.placement.streaming
    plans = []
    for step in range(count):
        chunks = tuple(
            Chunk(number, int(rng.integers(0, 20)), int(rng.choice([1, 1, rng.integers(2, 9)])), True)
            for number in range(int(rng.integers(1, 5)))
        )
        parts = split_chunks(chunks, program.placement.microbatches)
        is_warm = step > 0 and streaming is not None and streaming.across_steps
        plans.append(Plan(program.template(len(parts), is_warm), parts))
    return plans


def occupied(plans: list[Plan], seed: int) -> dict[str, int]:
    """The peak of each memory if tasks take any time at all, some hardly any and some for ever."""
    rng, carried, at, moments = np.random.default_rng(seed), Carried(), 0, []
    for step, plan in enumerate(plans):
        ticks = [int(10 ** rng.uniform(0, 4)) for _ in plan.template.tasks]
        priced = HandPriced(replace(plan.template, tasks=tuple(
            replace(task, link_bytes=()) for task in plan.template.tasks)), ticks)  # fmt: skip
        timed = schedule(priced, priced.durations, at, carried)  # type: ignore[arg-type]
        at = timed.ends[plan.template.outcome]
        for task, (start, end) in enumerate(zip(timed.starts, timed.ends, strict=True)):
            moments += [(start, 1, step, task), (end, 0, step, task)]
    return peak_occupancy(Counter(), plans, sorted(moments))


@pytest.mark.parametrize("placement", some_slow([*PLACEMENTS, *EXPERT_PLACEMENTS]), ids=lambda placement: placement.name)
def test_steps_of_any_speed_stay_within_the_bound(placement: Placement) -> None:
    name = "tiny-mixtral" if placement in EXPERT_PLACEMENTS else "tiny-llama"
    program = Program(model(name), placement, machine(), FLOAT64)
    for seed in range(4):
        plans = steps_of(program, seed, 3)
        bound: Counter[str] = Counter()
        for plan in plans:
            imported = program.template(len(plan.chunks)).tensors
            most = Liveness(plan.template, imported).most(plan)
            bound |= Counter({memory: kinds.total() for memory, kinds in most.items()})
        for memory, peak in occupied(plans, seed).items():
            assert peak <= bound[memory], memory


# --- the order of tasks -------------------------------------------------------------------------------------


def closure(template: Template) -> list[set[int]]:
    """What ends before each task starts, by going from task to task until nothing is new."""
    needs = predecessors(template)
    found = [set(each) for each in needs]
    for each in found:
        while grown := {far for near in each for far in needs[near]} - each:
            each |= grown
    return found


@settings(deadline=None)
@given(tasks_of(most=12))
def test_before_is_the_transitive_closure(tasks: list[Task]) -> None:
    template = Template(tuple(tasks), len(tasks) - 1)
    indices = list(range(len(tasks)))
    rows, expected = Order(template.tasks).before(indices), closure(template)
    for index, other in product(indices, indices):
        assert rows[index, other] == (other in expected[index])
    assert Order(template.tasks).before([]).shape == (0, len(tasks))


@settings(deadline=None)
@given(tasks_of(most=12), st.data())
def test_the_first_after_some_is_the_earliest_that_is_sure_to_end_last(tasks: list[Task], data: st.DataObject) -> None:
    template = plan_of(tasks).template
    some = sorted(data.draw(st.sets(st.integers(0, len(tasks) - 1), min_size=1, max_size=4)))
    before = closure(template)
    expected = next(index for index in range(some[-1], len(template.tasks)) if set(some) <= before[index] | {index})
    assert Order(template.tasks).first_after(some) == expected
