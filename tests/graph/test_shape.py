"""The sums of a step and the linear forms over them, against counting one pair at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.graph.shape import (
    FEATURE_COUNT,
    NOTHING,
    Amount,
    Chunk,
    StepShape,
    Traits,
    split_evenly,
    starts_of,
    total,
)

chunk = st.builds(Chunk, st.integers(0, 9), st.integers(0, 40), st.integers(1, 12), st.booleans())
chunks = st.lists(chunk, max_size=6)
windows = st.sampled_from([None, *range(1, 20), 60])
amount = st.lists(st.integers(-50, 50), min_size=FEATURE_COUNT, max_size=FEATURE_COUNT).map(
    lambda numbers: Amount(tuple(numbers))
)


def counted(batch: Iterable[Chunk], window: int | None = None) -> StepShape:
    """Every sum by looking at each query and each key."""
    prefills = [each for each in batch if each.new > 1]
    decodes = [each for each in batch if each.new == 1]

    def pairs(each: Chunk, masked: bool = True, window: int | None = None) -> list[tuple[int, int]]:
        keys, queries = range(each.context + each.new), range(each.context, each.context + each.new)
        return [
            (query, key)
            for query in queries
            for key in keys
            if (key <= query or not masked) and (window is None or query - key < window)
        ]

    def seen(each: Chunk) -> int:
        return len({key for _, key in pairs(each, window=window)})

    def seen_of_cache(each: Chunk) -> int:
        return len({key for _, key in pairs(each, window=window) if key < each.context})

    full = StepShape(
        one=1,
        tokens=sum(len(range(each.new)) for each in batch),
        sequences=len(prefills + decodes),
        logit_rows=len(prefills + decodes),
        prefill_sequences=len(prefills),
        prefill_tokens=sum(each.new for each in prefills),
        prefill_pairs=sum(len(pairs(each)) for each in prefills),
        prefill_square=sum(len(pairs(each, masked=False)) for each in prefills),
        prefill_span=sum(len(range(each.context + each.new)) for each in prefills),
        prefill_context=sum(len(range(each.context)) for each in prefills),
        decode_tokens=len(decodes),
        decode_span=sum(len(pairs(each)) for each in decodes),
        decode_context=sum(len(range(each.context)) for each in decodes),
        has_prefill=int(bool(prefills)),
    )
    if window is None:
        return full
    return full._replace(
        window_pairs=sum(len(pairs(each, window=window)) for each in prefills),
        window_square=sum(each.new * seen(each) for each in prefills),
        window_span=sum(map(seen, prefills)),
        window_context=sum(map(seen_of_cache, prefills)),
        window_decode_span=sum(map(seen, decodes)),
        window_decode_context=sum(map(seen_of_cache, decodes)),
        window_growing=sum(seen(each) < seen(replace(each, context=each.context + 1)) for each in decodes),
    )


@given(chunks, windows)
def test_the_sums_are_those_counted_pair_by_pair(batch: list[Chunk], window: int | None) -> None:
    assert StepShape.of(batch, Traits(window)) == counted(batch, window)


@given(chunks, windows)
def test_a_window_that_holds_everything_changes_nothing(batch: list[Chunk], window: int | None) -> None:
    shape = StepShape.of(batch, Traits(10**6))
    narrow = StepShape.of(batch, Traits(window))
    in_window = ("window_pairs", "window_square", "window_span", "window_decode_span")
    in_all = ("prefill_pairs", "prefill_square", "prefill_span", "decode_span")
    for few, many in zip(in_window, in_all, strict=True):
        assert getattr(narrow, few) <= getattr(shape, few) == getattr(shape, many)


@given(chunks, st.lists(st.integers(0, 40), max_size=6), st.builds(Traits, windows, st.just(8), st.integers(1, 8)))
def test_sequences_that_decode_may_come_as_sums(batch: list[Chunk], contexts: list[int], traits: Traits) -> None:
    decoding = [Chunk(0, context, 1, True) for context in contexts]
    alone = StepShape.of(decoding, traits)
    sums = (alone.decode_tokens, alone.decode_span, alone.window_decode_span, alone.window_growing)
    assert StepShape.of(batch, traits, *sums) == StepShape.of(batch + decoding, traits)


@given(st.lists(st.integers(0, 40), max_size=6), windows, st.integers(0, 50))
def test_grown_shapes_are_those_of_later_steps(contexts: list[int], window: int | None, steps: int) -> None:
    """Until a sequence fills the window: then the sums still hold, but one sequence fewer grows."""

    def later(steps: int) -> StepShape:
        return StepShape.of([Chunk(0, context + steps, 1, True) for context in contexts], Traits(window))

    missing = [window - (context + 1) for context in contexts if window and context + 1 < window]
    allowed = min(steps, min(missing, default=steps))
    grown = later(0).grown(allowed)
    assert grown._replace(window_growing=0) == later(allowed)._replace(window_growing=0)
    assert (grown == later(allowed)) == (allowed not in missing)


# --- experts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "chosen", "tokens"),
    [(1, 1, 3), (3, 1, 4), (3, 2, 4), (4, 2, 3), (5, 2, 3), (5, 3, 3), (5, 5, 2), (6, 1, 3), (4, 3, 0)],
)
def test_active_experts_are_the_mean_over_all_choices(experts: int, chosen: int, tokens: int) -> None:
    choices = list(combinations(range(experts), chosen))
    sizes = [len(set().union(*each)) for each in product(choices, repeat=tokens)]
    expected = sum(sizes) / len(sizes)
    assert Traits(None, experts, chosen).active_experts(tokens) == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 300), st.data())
def test_more_tokens_or_choices_never_activate_fewer_experts(experts: int, data: st.DataObject) -> None:
    chosen = data.draw(st.integers(1, experts))
    tokens = data.draw(st.integers(1, 4000))
    active = Traits(None, experts, chosen).active_experts(tokens)
    assert active == pytest.approx(chosen) if tokens == 1 else active >= chosen * (1 - 1e-12)
    assert active <= min(experts, chosen * tokens) * (1 + 1e-12)
    assert active <= Traits(None, experts, chosen).active_experts(tokens + 1)
    assert active <= Traits(None, experts, min(chosen + 1, experts)).active_experts(tokens)


@pytest.mark.parametrize("aside", [(), (0,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_experts_aside_and_the_rest_are_counted_apart(aside: tuple[int, ...], tokens: int) -> None:
    choices = list(combinations(range(4), 2))
    unions = [set().union(*each) for each in product(choices, repeat=tokens)]
    traits = Traits(None, 4, 2, aside)
    mean_aside = sum(len(union & set(aside)) for union in unions) / len(unions)
    mean_rest = sum(len(union - set(aside)) for union in unions) / len(unions)
    assert traits.side_experts(tokens) == pytest.approx(mean_aside)
    assert traits.active_experts(tokens) == pytest.approx(mean_rest)
    visits = [len(set(choice) & set(aside)) / 2 for choice in choices]
    assert float(traits.share_aside()) == pytest.approx(sum(visits) / len(visits))


def test_popular_experts_are_active_more_often() -> None:
    """Tokens choose on their own, each expert with its own probability: here by enumeration for two tokens."""
    chances = (0.9, 0.6, 0.3, 0.2)
    expected = [0.0, 0.0]
    for first, second in product(product((True, False), repeat=4), repeat=2):
        weight = 1.0
        for token in (first, second):
            for chosen, chance in zip(token, chances, strict=True):
                weight *= chance if chosen else 1 - chance
        for expert in range(4):
            expected[expert == 1] += weight * (first[expert] or second[expert])
    traits = Traits(None, 4, 2, aside=(1,), popularity=chances)
    assert [traits.active_experts(2), traits.side_experts(2)] == pytest.approx(expected)
    assert float(traits.share_aside()) == pytest.approx(0.3, abs=1 / 512)


@given(chunks)
def test_a_dense_model_has_no_experts(batch: list[Chunk]) -> None:
    assert StepShape.of(batch).active_experts == 0


# --- batches and amounts ------------------------------------------------------------------------------------


@given(chunks)
def test_the_order_of_chunks_does_not_matter(batch: list[Chunk]) -> None:
    assert StepShape.of(batch[::-1]) == StepShape.of(batch)


@given(amount, chunks, chunks)
def test_amounts_are_linear_in_chunks_but_for_two_constants(
    form: Amount, first: list[Chunk], second: list[Chunk]
) -> None:
    """1, and whether there is a prefill at all."""
    shapes = StepShape.of(first), StepShape.of(second)
    apart = sum(form.at(shape) for shape in shapes) - form.per("one")
    twice = form.per("has_prefill") if all(shape.has_prefill for shape in shapes) else 0
    assert form.at(StepShape.of(first + second)) == apart - twice


@given(amount, chunks, windows)
def test_an_amount_of_a_phase_is_that_of_its_chunks_alone(
    form: Amount, batch: list[Chunk], window: int | None
) -> None:
    """Tokens of one phase say nothing of experts, so amounts of them have no phases."""
    fields = form.coefficients[: StepShape._fields.index("active_experts")]
    form, traits = Amount((*fields, 0, 0, form.per("has_prefill"))), Traits(window)
    of_phases = {
        "prefill": [each for each in batch if each.new > 1],
        "decode": [each for each in batch if each.new == 1],
    }
    shape = StepShape.of(batch, traits)
    for phase, part in of_phases.items():
        assert form.of_phase(phase).at(shape) == form.at(StepShape.of(part, traits))
    assert form.of_phase("all") == form


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
