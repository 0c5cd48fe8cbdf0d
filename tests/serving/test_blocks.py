"""The pool of KV blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving.blocks import BlockPool


def test_blocks_are_handed_out_in_order() -> None:
    pool = BlockPool(4)
    assert pool.take(3) == [0, 1, 2]
    assert pool.free_count == 1
    assert pool.take(0) == []


def test_the_block_returned_last_goes_out_first() -> None:
    pool = BlockPool(4)
    first, second = pool.take(2), pool.take(2)
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take(4) == [2, 3, 0, 1]


def test_more_than_there_are_cannot_be_taken() -> None:
    pool = BlockPool(2)
    with pytest.raises(AssertionError, match="more blocks taken than are free"):
        pool.take(3)


def test_a_block_cannot_be_returned_twice() -> None:
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.give_back(blocks)
    with pytest.raises(AssertionError, match="returned twice"):
        pool.give_back(blocks)


@given(st.lists(st.integers(0, 6), max_size=40))
def test_no_block_is_held_twice_and_all_come_back(sizes: list[int]) -> None:
    """Take what is asked; where too little is free, give the oldest back first."""
    pool, held, peak = BlockPool(8), list[list[int]](), 0
    for size in sizes:
        while pool.free_count < size:
            pool.give_back(held.pop(0))
        held.append(pool.take(size))
        taken = [block for blocks in held for block in blocks]
        assert len(taken) == len(set(taken)) == pool.count - pool.free_count
        peak = max(peak, len(taken))
    assert pool.peak_taken == peak
    for blocks in held:
        pool.give_back(blocks)
    assert sorted(pool.take(8)) == list(range(8))


def test_a_pool_costs_what_is_used_of_it() -> None:
    """A server's DRAM has hundreds of millions of blocks; a list of them would take gigabytes."""
    pool = BlockPool(10**12)
    taken = pool.take(3)
    pool.give_back(taken)
    assert pool.take(4) == [*taken, 3]
    assert pool.free_count == 10**12 - 4
