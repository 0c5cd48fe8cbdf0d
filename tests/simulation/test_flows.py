"""Links that flows share: the laws of fair speeds, and schedules by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simpy import Environment

from simulator.simulation.flows import Flow, SharedLinks, fair_speeds

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
