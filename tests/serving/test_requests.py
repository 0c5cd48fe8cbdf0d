"""Requests as a table: the same as one by one, and what prompts share."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving.arrivals import Request, RequestTable, Source, generate
from simulator.specs.arrivals import BatchArrivals, ClosedArrivals, PoissonArrivals
from simulator.specs.workload import SharedPrefix, TokenRange, UniformLengths

UNIFORM = UniformLengths(prompt=TokenRange(10, 50), output=TokenRange(1, 9))
BATCH = BatchArrivals(process="batch")
SHARES = {0: 0.2, 1: 0.5, 7: 0.3}


def closed(users: int, warmup: int = 0) -> ClosedArrivals:
    return ClosedArrivals(process="closed", concurrency=users, warmup_requests=warmup)


@given(st.integers(1, 30), st.booleans(), st.booleans(), st.integers(-40, 40), st.integers(-40, 40))
def test_a_table_is_a_sequence_of_its_requests(
    count: int, ranked: bool, shared: bool, start: int, stop: int
) -> None:
    table = generate(
        PoissonArrivals(process="poisson", rate_per_s=2.0), UNIFORM, count, 7, SHARES if ranked else None,
        SharedPrefix(tokens=20, groups=3) if shared else None,
    )  # fmt: skip
    rows = list(table)
    assert rows == [table[number] for number in range(count)]
    assert [row.number for row in rows] == list(range(count))
    assert table[start:stop] == rows[start:stop]
    assert list(reversed(table)) == rows[::-1]
    assert table == tuple(rows)
    assert table.total_tokens.tolist() == [row.prompt_tokens + row.output_tokens for row in rows]
    with pytest.raises(IndexError):
        table[count]


def test_requests_are_python_numbers() -> None:
    request = generate(BATCH, UNIFORM, 3, 1, SHARES, SharedPrefix(tokens=4))[1]
    kinds = [type(value) for value in (request.number, request.prompt_tokens, request.priority, *request.prefix)]
    assert set(kinds) == {int}


def test_a_million_requests_are_columns() -> None:
    """16 bytes each, where an object of Python takes more than 100."""
    table = generate(BATCH, UNIFORM, 100_000, 1)
    columns = (table.sent_s, table.prompt_tokens, table.output_tokens)
    assert sum(column.nbytes for column in columns) == 16 * len(table)
    assert sys.getsizeof(Request(0, 0.0, 1, 1)) > 3 * 16
    source = Source(table)
    assert next(source.open_arrivals()).number == 0
    assert isinstance(table[:10], RequestTable)


# --- what prompts share -------------------------------------------------------------------------------------


def test_prompts_of_a_group_begin_alike_and_have_a_token_of_their_own() -> None:
    plain = generate(BATCH, UNIFORM, 4000, 1)
    shared = generate(BATCH, UNIFORM, 4000, 1, shared_prefix=SharedPrefix(tokens=30, groups=4))
    assert [r.prompt_tokens for r in shared] == [max(31, r.prompt_tokens) for r in plain]
    assert [r.output_tokens for r in shared] == [r.output_tokens for r in plain]
    assert {r.prefix_block_tokens for r in shared} == {30}
    groups = np.bincount([number for r in shared for number in r.prefix])
    assert groups == pytest.approx(1000, abs=4 * np.sqrt(4000 * 3 / 16))


def test_shares_of_priorities_are_those_asked_for() -> None:
    table = generate(BATCH, UNIFORM, 10_000, 1, SHARES)
    assert table.priorities is not None
    found = np.bincount(table.priorities)
    for priority, share in SHARES.items():
        assert found[priority] == pytest.approx(share * 10_000, abs=4 * np.sqrt(10_000 * share * (1 - share)))
    assert found.sum() == sum(found[priority] for priority in SHARES)


def test_no_draw_changes_another() -> None:
    """Priorities, groups and warm-up are streams of their own."""
    plain = generate(PoissonArrivals(process="poisson", rate_per_s=2.0), UNIFORM, 50, 7)
    other = generate(PoissonArrivals(process="poisson", rate_per_s=9.0), UNIFORM, 50, 7, SHARES, SharedPrefix(tokens=5))
    warmed = generate(closed(3, warmup=20), UNIFORM, 50, 7, SHARES, SharedPrefix(tokens=5))
    assert len(warmed) == 70
    lengths = [[(r.prompt_tokens, r.output_tokens) for r in table[:50]] for table in (plain, other, warmed)]
    assert lengths[0] == lengths[1] == lengths[2]
    assert [(r.priority, r.prefix) for r in other] == [(r.priority, r.prefix) for r in warmed[:50]]
    own = [(r.prompt_tokens, r.output_tokens) for r in warmed[50:]]
    assert own != lengths[2][:20]


# --- warming up ---------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_all_that_warms_up_is_answered_before_anything_else_is_sent(count: int, warmup: int, users: int) -> None:
    requests = generate(closed(users, warmup), UNIFORM, count, 1)
    source = Source(requests, users, warmup)
    under_way = [request.number for request in source.open_arrivals()]
    answered: list[int] = []
    asked = list(under_way)
    while under_way:
        assert len(under_way) <= users
        assert source.is_warming_up == any(number >= count for number in under_way)
        assert len({number >= count for number in under_way}) == 1
        answered.append(under_way.pop(0))
        following = [request.number for request in source.after_completion()]
        under_way += following
        asked += following
    assert asked == answered == [*range(count, count + warmup), *range(count)]
    assert list(source.after_completion()) == []


def test_lists_do_as_well() -> None:
    requests = [Request(number, 0.0, 5, 5) for number in range(4)]
    source = Source(requests, users=2)
    assert list(source.open_arrivals()) == requests[:2]
    assert list(source.after_completion()) == requests[2:3]
    assert all(one.number < two.number for one, two in pairwise(requests))
