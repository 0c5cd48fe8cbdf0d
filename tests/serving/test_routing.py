"""Rules of routing, worked by hand."""

from __future__ import annotations

import pytest

from simulator.serving.arrivals import Request
from simulator.serving.routing import ROUTERS, PrefixAware, Router, routing


def asked(*prefix: int) -> Request:
    return Request(0, 0.0, 100, 10, 0, prefix, 16)


def chosen(router: Router, loads: list[list[int]], prefixes: list[tuple[int, ...]] | None = None) -> list[int]:
    prefixes = prefixes or [()] * len(loads)
    return [router.choose(asked(*prefix), load) for load, prefix in zip(loads, prefixes, strict=True)]


def test_one_after_the_other_whatever_they_have() -> None:
    assert chosen(ROUTERS["round_robin"](3, 0), [[9, 0, 0]] * 5) == [0, 1, 2, 0, 1]


def test_the_fewest_and_of_equals_the_first() -> None:
    assert chosen(ROUTERS["least_loaded"](3, 0), [[2, 1, 1], [0, 0, 0], [5, 4, 3]]) == [1, 0, 2]


def test_of_two_loops_there_is_always_the_better_one() -> None:
    router = ROUTERS["two_choices"](2, 0)
    assert chosen(router, [[3, 1], [1, 3], [0, 9]] * 5) == [1, 0, 0] * 5


def test_two_choices_even_out_what_chance_does_not() -> None:
    """10,000 requests on 100 loops: at random the fullest has about 25 more than the mean, with two choices
    about ln ln 100 / ln 2 = 2.2 (Mitzenmacher 2001)."""
    loads = [0] * 100
    router = ROUTERS["two_choices"](100, 1)
    for _ in range(10_000):
        loads[router.choose(asked(), loads)] += 1
    assert max(loads) - 100 <= 5


def test_the_same_seed_chooses_alike() -> None:
    """Loops by their numbers, so that every placement of a study meets the same luck."""
    first, again = (routing("two_choices", 7)(9) for _ in range(2))
    loads = [[0] * 9] * 30
    assert chosen(first, loads) == chosen(again, loads)


def test_a_prefix_goes_where_it_went() -> None:
    """1 and 2 went to loop 0; of a prompt that begins with them it has two blocks, also if it is busier. What
    nobody has goes to who has the fewest."""
    router = PrefixAware(2, 0)
    loads = [[0, 0], [5, 0], [5, 0], [5, 0]]
    assert chosen(router, loads, [(1, 2), (1, 2, 3), (4,), (1, 9)]) == [0, 0, 1, 0]


def test_a_popular_prefix_is_spread_when_its_loop_is_busy() -> None:
    """With more than eight requests beyond the fewest a loop is left out; then both have the prefix."""
    router = PrefixAware(2, 0)
    assert chosen(router, [[0, 0], [8, 0], [9, 0], [3, 0]], [(1,)] * 4) == [0, 0, 1, 1]


def test_what_was_sent_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefixAware, "REMEMBERED", 2)
    router = PrefixAware(2, 0)
    loads = [[0, 0], [0, 1], [0, 1], [1, 0]]
    assert chosen(router, loads, [(1,), (2,), (3,), (1,)]) == [0, 0, 0, 1]
