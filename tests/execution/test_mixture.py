"""Mixtures of experts against loops over tokens: each family's rule of choosing as its authors' code has it."""

from collections.abc import Callable
from math import exp
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simulator.execution.kernels import linear
from simulator.execution.mixture import NOT_CHOSEN, active_experts, experts_down, experts_up, route
from simulator.specs.architecture import Experts, Mlp, Router
from tests.tensors import assert_close, counted_flops, normal

EXPERT = Mlp(6, "silu", gated=True)
TOKENS, COUNT, CHOSEN = 40, 8, 3
CORRECTION = 0.3 * normal(COUNT, seed=9)

Row = list[float]
Weights = dict[int, float]


def softmax(scores: Weights) -> Weights:
    total = sum(exp(score) for score in scores.values())
    return {expert: exp(score) / total for expert, score in scores.items()}


def best(scores: Weights, count: int) -> list[int]:
    return sorted(scores, key=lambda expert: -scores[expert])[:count]


def mixtral(row: Row) -> Weights:
    odds = softmax(dict(enumerate(row)))
    kept = {expert: odds[expert] for expert in best(odds, CHOSEN)}
    return {expert: odd / sum(kept.values()) for expert, odd in kept.items()}


def qwen2_moe(row: Row) -> Weights:
    odds = softmax(dict(enumerate(row)))
    return {expert: odds[expert] for expert in best(odds, CHOSEN)}


def gpt_oss(row: Row) -> Weights:
    scores = dict(enumerate(row))
    return softmax({expert: scores[expert] for expert in best(scores, CHOSEN)})


def deepseek_v2(row: Row) -> Weights:
    """The two groups of four with the best expert; weights as they are, times 16."""
    odds = softmax(dict(enumerate(row)))
    groups = best({group: max(odds[2 * group], odds[2 * group + 1]) for group in range(4)}, 2)
    allowed = {expert: odd for expert, odd in odds.items() if expert // 2 in groups}
    return {expert: 16 * odds[expert] for expert in best(allowed, CHOSEN)}


def deepseek_v3(row: Row) -> Weights:
    """One group of two, judged by its best two corrected scores; weights without the correction, times 2.5."""
    odds = {expert: 1 / (1 + exp(-score)) for expert, score in enumerate(row)}
    judged = {expert: odd + float(CORRECTION[expert]) for expert, odd in odds.items()}
    halves = {half: sorted(judged[4 * half + each] for each in range(4))[-2:] for half in (0, 1)}
    (half,) = best({half: sum(scores) for half, scores in halves.items()}, 1)
    chosen = best({expert: score for expert, score in judged.items() if expert // 4 == half}, CHOSEN)
    total = sum(odds[expert] for expert in chosen)
    return {expert: 2.5 * odds[expert] / total for expert in chosen}


RULES: dict[Callable[[Row], Weights], Router] = {
    mixtral: Router("softmax", normalise=True),
    qwen2_moe: Router("softmax"),
    gpt_oss: Router("softmax_of_chosen", bias=True),
    deepseek_v2: Router("softmax", groups=4, kept_groups=2, scale=16.0),
    deepseek_v3: Router("sigmoid", normalise=True, correction=True, groups=2, kept_groups=1,
                        group_score="best_two", scale=2.5),
}  # fmt: skip


def routed(router: Router, scores: Tensor) -> Tensor:
    return route(Experts(COUNT, CHOSEN, EXPERT, router), scores, CORRECTION if router.correction else None)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_experts_are_chosen_as_the_family_does(rule: Callable[[Row], Weights]):
    scores = 2 * normal(TOKENS, COUNT, seed=1)
    found = routed(RULES[rule], scores)
    for row, weights in zip(scores.tolist(), found, strict=True):
        expected = rule(row)
        assert {expert for expert in range(COUNT) if weights[expert] >= 0} == expected.keys()
        for expert, weight in enumerate(weights.tolist()):
            assert weight == pytest.approx(expected.get(expert, NOT_CHOSEN), rel=1e-12)


def test_the_families_do_not_agree():
    """Else one rule would do for all, and the tests above would not tell. Only Mixtral's and gpt-oss's are two
    ways to say the same."""
    scores = 2 * normal(TOKENS, COUNT, seed=1)
    assert_close(routed(RULES[mixtral], scores), routed(RULES[gpt_oss], scores))
    results = [routed(router, scores) for rule, router in RULES.items() if rule is not gpt_oss]
    for number, one in enumerate(results):
        assert all(not torch.allclose(one, other) for other in results[:number])


# --- through the experts ------------------------------------------------------------------------------------

X, ROUTING = normal(TOKENS, 10, seed=2), routed(RULES[mixtral], 2 * normal(TOKENS, COUNT, seed=1))
UP, UP_BIAS = normal(COUNT, 6, 10, seed=3), normal(COUNT, 6, seed=4)
DOWN, DOWN_BIAS = normal(COUNT, 10, 6, seed=5), normal(COUNT, 10, seed=6)


def chosen_of(token: int) -> list[int]:
    return [expert for expert in range(COUNT) if ROUTING[token, expert] >= 0]


@pytest.mark.parametrize("has_bias", [False, True])
def test_each_token_goes_up_through_its_experts(has_bias: bool):
    up = experts_up(X, ROUTING, CHOSEN, UP, UP_BIAS if has_bias else None)
    for token in range(TOKENS):
        for place, expert in enumerate(chosen_of(token)):
            expected = UP[expert] @ X[token] + has_bias * UP_BIAS[expert]
            assert_close(up[token, place], expected)


@pytest.mark.parametrize("has_bias", [False, True])
def test_what_its_experts_make_of_a_token_is_weighted_and_summed(has_bias: bool):
    activated = normal(TOKENS, CHOSEN, 6, seed=7)
    down = experts_down(activated, ROUTING, DOWN, DOWN_BIAS if has_bias else None)
    for token in range(TOKENS):
        expected = torch.zeros(10, dtype=torch.float64)
        for place, expert in enumerate(chosen_of(token)):
            made = DOWN[expert] @ activated[token, place] + has_bias * DOWN_BIAS[expert]
            expected += ROUTING[token, expert] * made
        assert_close(down[token], expected)


def test_shards_of_every_expert_add_up():
    """Columns of the way up stand side by side; of the way down each rank has a summand, one of them the bias."""
    halves = (slice(0, 2), slice(2, 6))
    ups = [experts_up(X, ROUTING, CHOSEN, UP[:, half], UP_BIAS[:, half]) for half in halves]
    whole = experts_up(X, ROUTING, CHOSEN, UP, UP_BIAS)
    assert_close(torch.cat(ups, dim=-1), whole)
    first = experts_down(ups[0], ROUTING, DOWN[..., halves[0]], DOWN_BIAS)
    second = experts_down(ups[1], ROUTING, DOWN[..., halves[1]])
    assert_close(first + second, experts_down(whole, ROUTING, DOWN, DOWN_BIAS))


@given(st.lists(st.integers(0, 3), min_size=COUNT, max_size=COUNT), st.randoms(), st.booleans())
def test_what_is_held_in_several_places_adds_up_to_the_whole(owners: list[int], order: Random, has_bias: bool):
    """For any partition of the experts, empty parts among them, and in any order: a choice that is another's is
    left 0 on the way up, and the sums of all parts are the whole."""
    up_bias, down_bias = (UP_BIAS, DOWN_BIAS) if has_bias else (None, None)
    ups, sums, held_somewhere = [], [], []
    for owner in range(4):
        held = [expert for expert, mine in enumerate(owners) if mine == owner]
        order.shuffle(held)
        own = [None if each is None else each[held] for each in (UP, up_bias, DOWN, down_bias)]
        ups.append(experts_up(X, ROUTING, CHOSEN, own[0], own[1], tuple(held)))
        sums.append(experts_down(ups[-1], ROUTING, own[2], own[3], tuple(held)))
        held_somewhere += held
    assert sorted(held_somewhere) == list(range(COUNT))
    whole = experts_up(X, ROUTING, CHOSEN, UP, up_bias)
    assert_close(torch.stack(ups).sum(dim=0), whole)
    assert_close(torch.stack(sums).sum(dim=0), experts_down(whole, ROUTING, DOWN, down_bias))


@given(st.sets(st.integers(0, COUNT - 1)))
def test_the_work_of_what_is_held_is_that_of_its_choices(held: set[int]):
    own = tuple(held)
    choices = sum(expert in held for token in range(TOKENS) for expert in chosen_of(token))
    assert counted_flops(experts_up, X, ROUTING, CHOSEN, UP[list(own)], None, own) == 2 * choices * 6 * 10


@pytest.mark.parametrize("tokens", [1, 3, TOKENS])
def test_experts_that_nobody_chose_are_not_active_and_cost_nothing(tokens: int):
    assert active_experts(ROUTING[:tokens]) == len({e for token in range(tokens) for e in chosen_of(token)})
    assert counted_flops(experts_up, X[:tokens], ROUTING[:tokens], CHOSEN, UP) == 2 * tokens * CHOSEN * 6 * 10


@pytest.mark.parametrize("tokens", [1, 2, 5, 17])
def test_on_the_meta_device_the_work_is_the_same(tokens: int):
    meta = [each.to("meta") for each in (X[:tokens], ROUTING[:tokens], UP, DOWN)]
    x, routing, up, down = meta
    activated = torch.empty(tokens, CHOSEN, 6, device="meta")
    flops = 2 * tokens * CHOSEN * 6 * 10
    assert counted_flops(experts_up, x, routing, CHOSEN, up) == flops
    assert counted_flops(experts_down, activated, routing, down) == flops
    assert counted_flops(linear, x, up[0]) * CHOSEN == flops
