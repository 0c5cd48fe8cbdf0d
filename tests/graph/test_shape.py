"""The sums of a step and the linear forms over them, against counting one pair at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulator.graph.shape import (
    FEATURE_COUNT,
    NOTHING,
    Amount,
    Chunk,
    StepShape,
    split_evenly,
    starts_of,
    total,
)

chunk = st.builds(Chunk, st.integers(0, 9), st.integers(0, 40), st.integers(1, 12), st.booleans())
chunks = st.lists(chunk, max_size=6)
amount = st.lists(st.integers(-50, 50), min_size=FEATURE_COUNT, max_size=FEATURE_COUNT).map(
    lambda numbers: Amount(tuple(numbers))
)


def counted(batch: list[Chunk]) -> StepShape:
    """Every sum by looking at each query and each key."""
    prefills = [each for each in batch if each.new > 1]
    decodes = [each for each in batch if each.new == 1]

    def pairs(each: Chunk, masked: bool) -> int:
        keys, queries = range(each.context + each.new), range(each.context, each.context + each.new)
        return sum(1 for query in queries for key in keys if key <= query or not masked)

    return StepShape(
        one=1,
        tokens=sum(len(range(each.new)) for each in batch),
        sequences=len(batch),
        logit_rows=len(batch),
        prefill_tokens=sum(each.new for each in prefills),
        prefill_pairs=sum(pairs(each, masked=True) for each in prefills),
        prefill_square=sum(pairs(each, masked=False) for each in prefills),
        prefill_span=sum(len(range(each.context + each.new)) for each in prefills),
        decode_tokens=len(decodes),
        decode_span=sum(pairs(each, masked=True) for each in decodes),
    )


@given(chunks)
def test_the_sums_are_those_counted_pair_by_pair(batch: list[Chunk]) -> None:
    assert StepShape.of(batch) == counted(batch)


@given(chunks, chunks)
def test_joined_batches_have_joined_shapes(first: list[Chunk], second: list[Chunk]) -> None:
    assert StepShape.of(first).joined(StepShape.of(second)) == StepShape.of(first + second)


@given(chunks)
def test_the_order_of_chunks_does_not_matter(batch: list[Chunk]) -> None:
    assert StepShape.of(batch[::-1]) == StepShape.of(batch)


@given(amount, chunks, chunks)
def test_amounts_are_linear_in_chunks_but_for_the_constant(
    form: Amount, first: list[Chunk], second: list[Chunk]
) -> None:
    apart = form.at(StepShape.of(first)) + form.at(StepShape.of(second))
    assert form.at(StepShape.of(first + second)) == apart - form.coefficients[0]


@given(amount, amount, st.integers(-9, 9), chunks)
def test_amounts_form_a_module(a: Amount, b: Amount, factor: int, batch: list[Chunk]) -> None:
    shape = StepShape.of(batch)
    assert (a + b).at(shape) == a.at(shape) + b.at(shape)
    assert (a * factor).at(shape) == factor * a.at(shape)
    assert a + b == b + a
    assert a + NOTHING == a
    assert (a + b) * factor == a * factor + b * factor
    assert total([a, b, a]) == a * 2 + b
    assert not NOTHING
    assert bool(a) == any(a.coefficients)


def test_names_and_positions_of_coefficients_agree() -> None:
    for position, name in enumerate(StepShape._fields):
        form, shape = Amount.of(**{name: 3}), StepShape(0)._replace(**{name: 5})
        assert form.coefficients[position] == 3
        assert form.at(shape) == 15
    assert len(StepShape._fields) == FEATURE_COUNT


@given(st.integers(0, 1000), st.integers(1, 40))
def test_even_splits_cover_everything_once(count: int, parts: int) -> None:
    sizes = split_evenly(count, parts)
    assert (len(sizes), sum(sizes)) == (parts, count)
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)
    covered = [i for start, size in zip(starts_of(sizes), sizes, strict=True) for i in range(start, start + size)]
    assert covered == list(range(count))
