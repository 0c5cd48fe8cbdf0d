"""Every count of every operator against independent evidence, and a count that is off by one is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from simulator.graph.model_graph import model_operators
from simulator.graph.operators import OperatorFactory
from simulator.graph.shape import Amount, StepShape, Traits, total
from simulator.graph.share import Share, why_not_divisible
from simulator.graph.work import Operator, Parameter
from simulator.specs.architecture import Architecture
from simulator.specs.catalogue import Catalogue
from tests.graph.evidence import FORMATS, STEPS, Evidence, evidence_of, flaws, in_layer, operator_flaws
from tests.graph.touched import carried_out, chunks_of
from tests.placed import model

MODELS = sorted(path.stem for path in Catalogue().path("models", "tiny-llama").parent.glob("*.yaml"))
TINY = [name for name in MODELS if name.startswith("tiny-")]
NARROW = "tiny-opt with a narrow embedding"
QUICK = ["tiny-llama", "tiny-gpt-oss"]
COVERING = ["tiny-llama", "tiny-gpt2", "tiny-gptj", "tiny-gemma2", "tiny-gpt-oss", "tiny-mixtral",
            "tiny-qwen2-moe", "tiny-deepseek-v2", "tiny-deepseek-v3", "tiny-qwen3-next", "tiny-bert",
            "tiny-bloom", NARROW]  # fmt: skip
"""Between them they have every kind of operator."""
SOME_SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COVERING]


def model_of(name: str) -> Architecture:
    if name == NARROW:
        return replace(model("tiny-opt"), name=NARROW, embedding_size=48)
    return model(name)


@cache
def known(name: str) -> Evidence:
    return evidence_of(model_of(name))


# --- small models, carried out ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME_SLOW)
def test_every_count_agrees_with_what_happened(name: str) -> None:
    assert flaws(model_operators(model_of(name), FORMATS), known(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name not in COVERING])
def test_every_count_of_every_small_model_agrees(name: str) -> None:
    assert flaws(model_operators(model_of(name), FORMATS), known(name)) == []


def test_every_kind_of_operator_is_covered() -> None:
    kinds = {operator.name for name in COVERING for operator in model_operators(model_of(name), FORMATS)}
    assert kinds == {op.name for name in MODELS for op in model_operators(model(name), FORMATS)} | {
        "project_in", "project_out"
    }  # fmt: skip


def test_no_feature_of_the_steps_can_stand_for_another() -> None:
    """But for seven sums that hold in every step: tokens and chunks are of prefill or of decode, each chunk
    has one row of logits, and the keys it sees are cached ones and those of its new tokens, in each phase and
    with or without a window. No whole model computes experts aside."""
    features = known("tiny-gpt-oss").features[0].astype(float)
    assert features.shape[1] == len(StepShape._fields)
    aside = StepShape._fields.index("side_experts")
    assert not features[:, aside].any()
    assert np.linalg.matrix_rank(np.delete(features, aside, axis=1)) == features.shape[1] - 1 - 7


# --- off by one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME_SLOW)
def test_a_count_that_is_off_by_one_is_found(name: str) -> None:
    """Each coefficient of each amount of each operator, and each size of each parameter."""
    evidence, operators, tried = known(name), model_operators(model_of(name), FORMATS), 0
    for operator in distinct(operators):
        is_there = evidence.features[operator.layer].any(axis=0)
        for mutant in mutants(operator, is_there):
            assert operator_flaws(mutant, evidence), mutant
            tried += 1
    assert tried > 900


@pytest.mark.parametrize("name", SOME_SLOW)
def test_an_operator_that_is_missing_or_there_twice_is_found(name: str) -> None:
    operators = list(model_operators(model_of(name), FORMATS))
    for place, operator in enumerate(operators):
        without = operators[:place] + operators[place + 1 :]
        assert flaws(without, known(name))
        assert flaws([*without, replace(operator, name=f"another {operator.name}")], known(name))
        assert flaws([*operators, operator], known(name))


def distinct(operators: tuple[Operator, ...]) -> list[Operator]:
    """One of those that differ in nothing but the layer they belong to."""
    found: dict[Operator, Operator] = {}
    for operator in operators:
        found.setdefault(in_layer(operator, 0), operator)
    return list(found.values())


def mutants(operator: Operator, is_there: np.ndarray) -> Iterator[Operator]:
    """The operator with one count changed by one, or one parameter changed, left out or renamed.

    is_there: whether each feature is ever other than 0; what a coefficient of the others is makes no difference.
    """
    for wrong in wrong_amounts(operator.dense_flops, is_there):
        yield replace(operator, dense_flops=wrong)
    for place, work in enumerate(operator.works):
        for name in ("flops", "moved_bytes"):
            for wrong in wrong_amounts(getattr(work, name), is_there):
                yield replace(operator, works=put(operator.works, place, replace(work, **{name: wrong})))
    for place, value in enumerate(operator.writes):
        for wrong in wrong_amounts(value.elements, is_there):
            yield replace(operator, writes=put(operator.writes, place, replace(value, elements=wrong)))
    for place, parameter in enumerate(operator.parameters):
        for changed in wrong_parameters(parameter):
            yield replace(operator, parameters=put(operator.parameters, place, changed))
        yield replace(operator, parameters=operator.parameters[:place] + operator.parameters[place + 1 :])
    yield replace(operator, parameters=(*operator.parameters, Parameter("another.weight", (1,))))


def wrong_amounts(amount: Amount, is_there: np.ndarray) -> Iterator[Amount]:
    for place in np.flatnonzero(is_there):
        for step in (1, -1):
            yield Amount(put(amount.coefficients, place, amount.coefficients[place] + step))


def wrong_parameters(parameter: Parameter) -> Iterator[Parameter]:
    for axis, size in enumerate(parameter.shape):
        for step in (1, -1):
            yield replace(parameter, shape=put(parameter.shape, axis, size + step))
    if parameter.axis is not None and parameter.whole is not None:
        yield replace(parameter, start=1)
        yield replace(parameter, whole=parameter.whole + 1)
        yield replace(parameter, whole=parameter.whole - 1)
    yield replace(parameter, name=f"{parameter.name}s")


def put(row: tuple[Any, ...], place: int, value: object) -> tuple[Any, ...]:
    return (*row[:place], value, *row[place + 1 :])


# --- shards -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "degree"), [
    (name, degree) for name in (*TINY, NARROW) for degree in (2, 4)
    if why_not_divisible(model_of(name), degree) is None
])  # fmt: skip
def test_bytes_and_flops_of_every_shard_agree_with_what_it_touched(name: str, degree: int) -> None:
    whole = model_of(name)
    steps = [[(0, 0, 6)], [(0, 0, 1), (1, 0, 3)]] if whole.is_encoder else STEPS[:5]
    factories = [OperatorFactory(whole, Share(rank, degree), FORMATS) for rank in range(degree)]
    for rows, notes in zip(steps, carried_out(whole, steps, degree), strict=True):
        shape = StepShape.of(chunks_of(rows), Traits.of(whole))
        operators = {
            (rank, op.node): op for rank, factory in enumerate(factories) for op in operators_of(factory)
        }
        assert notes.keys() <= operators.keys()
        for node, touched in notes.items():
            operator = operators[node]
            router = notes.get((node[0], f"layers.{operator.layer}.router"))
            mine = shape._replace(active_experts=router.active_experts or 0) if router else shape
            assert total(work.moved_bytes for work in operator.own_works).at(mine) == touched.moved_bytes(FORMATS)
            assert operator.dense_flops.at(mine) == touched.dense_flops
            assert [value.elements.at(mine) for value in operator.writes] == touched.written


def operators_of(factory: OperatorFactory) -> Iterator[Operator]:
    count = factory.model.num_hidden_layers
    yield from factory.embed()
    for index in range(count):
        yield from factory.layer(index, factory.leaves_branch(0, index))
    yield from factory.head(factory.leaves_branch(0, count))
    if not factory.model.is_encoder:
        yield factory.sample()
