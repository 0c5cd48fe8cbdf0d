"""Links that flows share: the laws of fair speeds, and schedules by hand."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment

from simulator.simulation.events import FLOWS, after
from simulator.simulation.flows import FULL, Flow, SharedLinks, fair_speeds, fits

LINKS = ("a", "b", "c", "d")
TOLERANCE = 1e-9


def flow(loads: dict[str, float], ticks: int = 100, bytes_per_s: float = 1.0) -> Flow:
    return Flow(loads, ticks, bytes_per_s, 0, lambda: None)


@st.composite
def loads(draw: st.DrawFn) -> dict[str, float]:
    """What a flow takes of each of its links at its lone speed: all of the tightest one."""
    links = draw(st.lists(st.sampled_from(LINKS), min_size=1, max_size=3, unique=True))
    shares = [1.0] + [draw(st.floats(0.01, 1.0)) for _ in links[1:]]
    return dict(zip(links, shares, strict=True))


many_loads = st.lists(loads(), min_size=1, max_size=7)


def used(flows: list[Flow], speeds: list[float], link: str) -> float:
    return sum(speed * each.loads.get(link, 0.0) for each, speed in zip(flows, speeds, strict=True))


@given(many_loads)
def test_no_link_carries_more_than_it_can(each_loads: list[dict[str, float]]) -> None:
    flows = [flow(each) for each in each_loads]
    speeds = fair_speeds(flows)
    assert all(0 < speed <= 1 for speed in speeds)
    assert all(used(flows, speeds, link) <= 1 + TOLERANCE for link in LINKS)


@given(many_loads)
def test_every_flow_is_at_full_speed_or_held_back_by_a_full_link(each_loads: list[dict[str, float]]) -> None:
    """On that link nobody is faster: the definition of max-min fairness (Bertsekas and Gallager 1992,
    Data Networks, section 6.5.2)."""
    flows = [flow(each) for each in each_loads]
    speeds = fair_speeds(flows)
    for each, speed in zip(flows, speeds, strict=True):
        bottlenecks = [
            link
            for link in each.loads
            if used(flows, speeds, link) >= 1 - TOLERANCE
            and all(other <= speed + TOLERANCE for rival, other in zip(flows, speeds, strict=True)
                    if link in rival.loads)
        ]  # fmt: skip
        assert speed == 1.0 or bottlenecks


@given(many_loads, st.randoms(use_true_random=False))
def test_the_order_of_flows_does_not_matter(each_loads: list[dict[str, float]], random) -> None:  # type: ignore[no-untyped-def]
    flows = [flow(each) for each in each_loads]
    by_flow = dict(zip(map(id, flows), fair_speeds(flows), strict=True))
    shuffled = random.sample(flows, len(flows))
    assert fair_speeds(shuffled) == pytest.approx([by_flow[id(each)] for each in shuffled])


@given(loads(), st.integers(1, 8))
def test_equal_flows_get_equal_parts(one: dict[str, float], count: int) -> None:
    assert fair_speeds([flow(one) for _ in range(count)]) == pytest.approx([1 / count] * count)


def test_unequal_speeds_by_hand() -> None:
    """Three flows over a, one of them over b too, where a fourth runs: a is full at 1/3 each, then the
    fourth rises to the 2/3 that are left of b."""
    flows = [flow({"a": 1.0}), flow({"a": 1.0}), flow({"a": 1.0, "b": 1.0}), flow({"b": 1.0})]
    assert fair_speeds(flows) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])


@st.composite
def loads_that_fit(draw: st.DrawFn) -> list[dict[str, float]]:
    """Flows whose loads add up, on the fullest link, to as much as fits or less."""
    each_loads = draw(st.lists(loads(), min_size=2, max_size=7))
    fullest = max(math.fsum(each.get(link, 0.0) for each in each_loads) for link in LINKS)
    scale = draw(st.sampled_from([1.0, 0.999_999, 0.5, 0.01])) * FULL / fullest * (1 - 1e-15)
    return [{link: load * scale for link, load in each.items()} for each in each_loads]


@pytest.mark.slow
@settings(max_examples=300)
@given(loads_that_fit(), st.lists(st.floats(1e-3, 1e12), min_size=7, max_size=7))
def test_flows_that_fit_have_exactly_their_lone_speed(
    each_loads: list[dict[str, float]], bytes_per_s: list[float]
) -> None:
    """What the certificate rests on: no error of rounding slows a flow whose link has room for all."""
    assert all(fits([each[link] for each in each_loads if link in each]) for link in LINKS)
    flows = [flow(each, bytes_per_s=rate) for each, rate in zip(each_loads, bytes_per_s, strict=False)]
    assert fair_speeds(flows) == [1.0] * len(flows)


def test_two_flows_that_fill_a_link_do_not_pass_for_ones_that_fit() -> None:
    assert fits([1.0]) and fits([]) and fits([0.5, 0.4999])
    assert not fits([0.5, 0.5]) and not fits([0.7, 0.4])


# --- in time ------------------------------------------------------------------------------------------------


def ends_of(*flows: tuple[int, dict[str, float], int]) -> list[int]:
    """When flows end, given as (start, loads, lone ticks)."""
    env = Environment()
    links, ends = SharedLinks(env), [-1] * len(flows)

    def begin(number: int):  # type: ignore[no-untyped-def]
        start, each_loads, ticks = flows[number]
        yield env.timeout(start)
        links.start(each_loads, ticks, 1.0, lambda: ends.__setitem__(number, int(env.now)))

    for number in range(len(flows)):
        env.process(begin(number))
    env.run()
    return ends


@given(st.integers(0, 10**6), loads(), st.integers(1, 10**15))
def test_a_lone_flow_takes_exactly_its_lone_ticks(start: int, each: dict[str, float], ticks: int) -> None:
    assert ends_of((start, each, ticks)) == [start + ticks]


def test_two_flows_on_one_link_by_hand() -> None:
    """Lone 100 ticks each, from 0 and from 40: at 40 the first has 60 left, at half speed until 160; by
    then the second has moved 60 and has 40 left, alone: 200."""
    assert ends_of((0, {"a": 1.0}, 100), (40, {"a": 1.0}, 100)) == [160, 200]


def test_flows_that_touch_do_not_slow_each_other() -> None:
    """One starts at the tick at which the other ends; flows on other links do not matter."""
    assert ends_of((0, {"a": 1.0}, 7), (7, {"a": 1.0}, 9), (3, {"b": 1.0}, 50)) == [7, 16, 53]


def test_a_flow_slowed_through_another_link_by_hand() -> None:
    """X on a, Y on a and b, Z on b; lone 60 ticks each, all at 0: all at half speed until 120."""
    ends = ends_of((0, {"a": 1.0}, 60), (0, {"a": 1.0, "b": 1.0}, 60), (0, {"b": 1.0}, 60))
    assert ends == [120, 120, 120]


def test_flows_that_fit_beside_each_other_take_their_lone_ticks() -> None:
    """0.6 and 0.3 of a link fit. A third that wants 0.2 comes at 10: until the second has gone, at 30, the two
    smaller ones have what they want and 0.5 is left to the first, 5/6 of its speed. It then has done 10 + 20 *
    5/6 of its 60 ticks, and the rest fits again: 63 1/3, rounded up."""
    first, second, third = (0, {"a": 0.6}, 60, 0.6), (0, {"a": 0.3}, 30, 0.3), (10, {"a": 0.2}, 100, 0.2)
    assert ends_at(first, second) == [60, 30]
    assert ends_at(first, second, third) == [64, 30, 110]


def ends_at(*flows: tuple[int, dict[str, float], int, float]) -> list[int]:
    """When flows end, given as (start, loads, lone ticks, lone bytes/s)."""
    env = Environment()
    links, ends = SharedLinks(env), [-1] * len(flows)
    for number, (start, each_loads, ticks, rate) in enumerate(flows):
        done = functools.partial(lambda number: ends.__setitem__(number, int(env.now)), number)
        after(env, start, FLOWS, functools.partial(links.start, each_loads, ticks, rate, done))
    env.run()
    return ends


@given(st.permutations(range(5)))
def test_the_order_of_one_ticks_events_does_not_matter(order: list[int]) -> None:
    """Flows that start at one tick, some as others end, in any order of the events."""
    flows = [(0, {"a": 1.0}, 10, 1.0), (0, {"b": 0.5}, 10, 2.0), (10, {"a": 0.5, "b": 0.7}, 33, 1.0),
             (10, {"b": 0.9}, 21, 3.0), (10, {"a": 0.5}, 17, 2.0)]  # fmt: skip
    shuffled = ends_at(*(flows[index] for index in order))
    assert [shuffled[order.index(index)] for index in range(5)] == ends_at(*flows)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_a_shared_link_is_never_idle(ticks: list[int]) -> None:
    """Flows that start together on one link: the last ends when all their work is done, and in the order
    of their work; each end is rounded up by less than a tick."""
    ends = ends_of(*((0, {"a": 1.0}, each) for each in ticks))
    assert sum(ticks) <= max(ends) <= sum(ticks) + len(ticks)
    by_work = [end for _, end in sorted(zip(ticks, ends, strict=True))]
    assert by_work == sorted(by_work)
    left, done = sorted(ticks), 0.0
    for number, (before, now) in enumerate(itertools.pairwise([0, *left])):
        done += (now - before) * (len(left) - number)  # processor sharing, tick by tick
        assert by_work[number] == pytest.approx(done, abs=number + 1)


def test_a_flow_held_back_elsewhere_leaves_the_rest_to_others() -> None:
    """As the module says. A crosses a slow link that lets it use 0.12 of the shared one, B only the shared
    one. Equal bandwidth would be half each; A cannot use more than 0.12, so it is not slowed at all."""
    slow = flow({"slow": 1.0, "shared": 0.12}, bytes_per_s=0.12)
    quick = flow({"shared": 1.0}, bytes_per_s=1.0)
    assert fair_speeds([slow, quick]) == pytest.approx([1.0, 0.88])


def test_a_flow_that_its_own_link_hardly_holds_back_gets_half() -> None:
    """A could use 0.8 of the shared link, B all of it: half each, which is 0.625 of A's lone speed."""
    slower = flow({"slow": 1.0, "shared": 0.8}, bytes_per_s=0.8)
    quick = flow({"shared": 1.0}, bytes_per_s=1.0)
    assert fair_speeds([slower, quick]) == pytest.approx([0.625, 0.5])


def test_a_flow_of_nothing_slows_nobody_and_is_not_slowed() -> None:
    """A copy of no cached tokens still takes its latency while others share the link."""
    assert fair_speeds([flow({"a": 0.0}), flow({"a": 1.0}), flow({"a": 1.0})]) == pytest.approx([1.0, 0.5, 0.5])
    assert fair_speeds([flow({"a": 0.0})]) == [1.0]
