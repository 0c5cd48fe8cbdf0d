"""Windows: where flows crowd a link, plans go over to the task engine and back, and no tick changes."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment, Event

from simulator.placement.plan import Template
from simulator.simulation.events import DECIDE, after
from simulator.simulation.island import Island, Launch, islands_of, watched_links
from simulator.simulation.plan_book import Priced
from simulator.simulation.recursion import Schedule, critical_path
from simulator.simulation.reduced import reduce
from tests.simulation.test_recursion import Launch as MadeUp
from tests.simulation.test_recursion import Times, by_events, pipeline, plans, sharing
from tests.tiny import HandPriced, task


class Run:
    """Plans carried out in one island, each launched at its tick after all else of that tick."""

    def __init__(self, launches: list[MadeUp]) -> None:
        self.env = Environment()
        templates: Any = [(plan, reduce(plan)) for plan, _ in launches]  # type: ignore[arg-type]
        self.island = Island(self.env, templates, as_events=False, ended=lambda launch, launched: None)
        self.launches: list[Launch] = []
        self.outcomes: list[int] = [-1] * len(launches)
        self.as_events: list[bool] = []
        self.env.process(self._launcher(launches))
        self.env.run()

    def _launcher(self, launches: list[MadeUp]) -> Generator[Event, Any, None]:
        for number, (plan, at) in enumerate(launches):
            yield after(self.env, at - int(self.env.now), DECIDE)
            use: Any = SimpleNamespace(priced=plan, reduced=reduce(plan))  # type: ignore[arg-type]
            total, nothing = plan.durations.total, np.zeros((1, 0))
            priced = Priced(nothing, total[None], nothing, use.reduced)
            launch = Launch(0, number, use, (), priced, 0, at, self.env.event())
            self.launches.append(launch)
            assert launch.outcome.callbacks is not None
            launch.outcome.callbacks.append(lambda _, number=number: self._note(number))
            self.island.launch(launch)
            self.as_events.append(launch.running is not None)

    def _note(self, number: int) -> None:
        assert self.outcomes[number] == -1, "an outcome comes once"
        self.outcomes[number] = int(self.env.now)

    def times(self) -> Times:
        return [(list(timed.starts), list(timed.ends)) for timed in (launch.timed() for launch in self.launches)]


@st.composite
def crowdable(draw: st.DrawFn) -> list[MadeUp]:
    """Plans launched one after the other, often before the one before has ended, sometimes long after."""
    launches, now = list[MadeUp](), 0
    for _ in range(draw(st.integers(2, 6))):
        now += draw(st.integers(0, 30)) + draw(st.sampled_from([0, 0, 150]))
        launches.append((draw(plans(0.5)), now))
    return launches


@pytest.mark.slow
def test_windows_change_no_tick() -> None:
    """Step with windows is task: every start, end and outcome, and the tasks charged for it. The sample must
    have windows that begin while plans of R are under way, windows that end before later plans, and plans that
    R priced beside others."""
    taken_over, handed_back, beside = list[bool](), list[bool](), list[bool]()

    @settings(max_examples=350)  # so many that each kind of window comes up often enough
    @given(crowdable())
    def check(launches: list[MadeUp]) -> None:
        run = Run(launches)
        expected = by_events(launches)
        assert run.times() == expected
        outcomes = [ends[plan.template.outcome] for (plan, _), (_, ends) in zip(launches, expected, strict=True)]
        assert run.outcomes == outcomes
        adopted = sum(launch.running is not None for launch in run.launches) - run.as_events.count(True)
        assert run.island.event_steps == adopted + run.as_events.count(True)
        assert (sum(run.island.crowded.values()) > 0) == any(run.as_events)
        for launch, (plan, _), (starts, ends) in zip(run.launches, launches, expected, strict=True):
            assert launch.bones is not None
            timed = Schedule(tuple(starts), tuple(ends), None)
            chain = plan.class_of_task[critical_path(plan.template, timed, launch.bones.ranks)]
            assert launch.path().tolist() == np.bincount(chain, minlength=plan.class_count).tolist()
            beside.append(launch.passed is not None and launch.running is None)
        taken_over.append(adopted > 0)
        windows = [launch.running is not None for launch in run.launches]
        handed_back.append(any(now and not later for now, later in pairwise(windows)))

    check()
    assert taken_over.count(True) >= 25
    assert handed_back.count(True) >= 25
    assert beside.count(True) >= 25


def test_flows_that_one_stream_serves_in_turn_are_not_watched() -> None:
    """Nor are those that fit; copies on streams of their own that fill a link are."""

    def watched(*units: str, load: float = 1.0) -> frozenset[str]:
        tasks = tuple(task(unit, "transfer", [unit], writes=[f"t-{unit}"], links=["uplink"]) for unit in units)
        loads = {index: {"uplink": load} for index in range(len(units))}
        plan: Any = HandPriced(Template(tasks, outcome=0), [9, 8][: len(units)], loads=loads)
        return watched_links([(plan, reduce(plan))])

    assert watched("g0.in") == frozenset()
    assert watched("g0.in", "g1.in") == frozenset({"uplink"})
    assert watched("g0.in", "g1.in", load=0.2) == frozenset({"uplink"}), "one trails into the next step"
    assert watched_links([(pipeline(), reduce(pipeline()))]) == frozenset()  # type: ignore[arg-type, list-item]


def test_a_window_by_hand() -> None:
    """Two copies meet on the uplink in the second of three plans; the first is a pipeline whose last stage, on
    g1, runs until 115; the last is launched when all is quiet. `first` flows from 110. `work` waits for g1
    and ends at 175, when `first` has 35 of its 100 left; both flow at half speed until 245, then `second`
    has 65 left and goes on alone until 310."""
    launches = [(pipeline(), 0), (sharing(), 100), (pipeline(), 400)]
    run = Run(launches)
    assert run.island.crowded == {"uplink": 1}
    assert run.island.event_steps == 2, "the pipeline's last stage runs until 115"
    assert [launch.running is not None for launch in run.launches] == [True, True, False]
    assert run.outcomes == [115, 310, 515]
    assert run.times() == by_events(launches)


def test_a_launch_at_the_tick_of_an_end_leaves_no_error_of_rounding() -> None:
    """A flow of 3 ticks shares the uplink from 0 to 2 with one flow and from 2 to 4 with another, so it has 1
    left and ends at 5. Were it at full speed between the two, for no time at all, a last bit would make that 6."""

    def copying(name: str, ticks: int) -> HandPriced:
        one = task(name, "transfer", [f"{name}.in"], writes=[f"t-{name}"], links=["uplink"])
        return HandPriced(Template((one,), outcome=0), [ticks])

    launches = [(copying("long", 3), 0), (copying("short", 1), 0), (copying("next", 1), 2)]
    run = Run(launches)
    assert run.times() == by_events(launches) == [([0], [5]), ([0], [2]), ([2], [4])]
    assert run.island.crowded == {"uplink": 1}


def test_loops_that_cannot_meet_are_islands() -> None:
    """Islands are of loops that share a stream, or a link that they could fill together."""

    def reduced(*loads: tuple[str, float], trailing: tuple[str, ...] = ()) -> Any:
        return SimpleNamespace(peak_loads=dict(loads), trailing_links=frozenset(trailing))

    lone = [frozenset({f"gpu-{loop}"}) for loop in range(3)]
    assert islands_of([reduced(("a", 1.0)), reduced(("b", 1.0)), reduced(("c", 1.0))], lone, range(3)) == [0, 1, 2]
    assert islands_of([reduced(("a", 0.6)), reduced(("b", 1.0)), reduced(("a", 0.6))], lone, range(3)) == [0, 1, 0]
    assert islands_of([reduced(("a", 0.3)), reduced(("a", 0.3)), reduced(("a", 0.3))], lone, range(3)) == [0, 1, 2]
    assert islands_of([reduced(("a", 0.3)), reduced(("a", 0.3), trailing=("a",)), reduced()], lone, range(3)) == [0, 0, 1]
    shared = [frozenset({"x"}), frozenset({"y"}), frozenset({"x", "y"})]
    assert islands_of([reduced(), reduced(), reduced()], shared, range(3)) == [0, 0, 0]
