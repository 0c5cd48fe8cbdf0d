"""The operators of a transformer against formulas written out here, one number at a time."""

from dataclasses import replace
from math import erf, exp, inf, log2, pi, sqrt, tanh

import pytest
import torch
from torch import Tensor

from simulator.execution.kernels import (
    Rules,
    activate,
    attend,
    attend_absorbed,
    attend_expanded,
    attend_latent,
    embed,
    latent_keys,
    latent_queries,
    learned_positions,
    linear,
    normalise,
    pool,
    sample,
    softcap,
)
from simulator.specs.architecture import Alibi, LatentAttention, Mlp, Rope
from tests import tiny
from tests.tensors import assert_close, counted_flops, normal

PLAIN = Rules(scale=6**-0.5)
RULES = {
    "plain": PLAIN,
    "scaled": replace(PLAIN, scale=0.7),
    "both ways": replace(PLAIN, causal=False),
    "window of 1": replace(PLAIN, window=1),
    "window of 4": replace(PLAIN, window=4),
    "softcap": replace(PLAIN, softcap=0.5),
    "alibi": replace(PLAIN, alibi=Alibi(), all_heads=4),
    "alibi of a shard": replace(PLAIN, alibi=Alibi(scale=0.3), head_start=7, all_heads=11),
    "all": replace(PLAIN, window=5, softcap=2.0, alibi=Alibi(), all_heads=4),
}

# --- attention ----------------------------------------------------------------------------------------------


def slopes(heads: int) -> list[float]:
    """As in the paper's own code (Press et al. 2022, `get_slopes`)."""
    power = 2 ** int(log2(heads))
    if power == heads:
        return [2 ** (-8 / heads * (i + 1)) for i in range(heads)]
    return slopes(power) + slopes(2 * power)[::2][: heads - power]


def attention_by_hand(
    rules: Rules, q: Tensor, k: Tensor, v: Tensor, context: int, sinks: Tensor | None = None
) -> Tensor:
    """One query, one head and one visible key at a time; keys and values of the whole sequence."""
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype)
    for token in range(q.shape[0]):
        for head in range(q.shape[1]):
            group, at = head // (q.shape[1] // k.shape[1]), context + token
            scores = {}
            for key in range(k.shape[0]):
                if rules.causal and (key > at or at - key >= (rules.window or inf)):
                    continue
                score = float(q[token, head] @ k[key, group]) * rules.scale
                if rules.softcap is not None:
                    score = rules.softcap * tanh(score / rules.softcap)
                if rules.alibi is not None:
                    slope = torch.tensor(slopes(rules.all_heads))[rules.head_start + head]  # float32, as published
                    score -= float(slope) * rules.alibi.scale * (at - key)
                scores[key] = exp(score)
            total = sum(scores.values()) + (0 if sinks is None else exp(float(sinks[head])))
            out[token, head] = sum(odd / total * v[key, group] for key, odd in scores.items())
    return out


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("new", "context"), [(1, 0), (1, 9), (5, 0), (5, 9)])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_attention_is_the_sum_over_visible_keys(rules, new, context, kv_heads, has_sinks):
    q = normal(new, 4, 6, seed=1)
    k, v = normal(context + new, kv_heads, 6, seed=2), normal(context + new, kv_heads, 6, seed=3)
    sinks = normal(4, seed=4) if has_sinks and rules.alibi is None else None  # no model has both
    first = rules.first_key(context)
    expected = attention_by_hand(rules, q, k, v, context, sinks)
    assert_close(attend(rules, q, k[first:], v[first:], context, sinks), expected)


def test_attention_in_chunks_is_attention_at_once():
    q, k, v = normal(7, 4, 6, seed=1), normal(7, 2, 6, seed=2), normal(7, 2, 6, seed=3)
    for rules in (PLAIN, RULES["window of 4"], RULES["all"]):
        chunks = []
        for start, end in [(0, 3), (3, 6), (6, 7)]:
            first = rules.first_key(start)
            chunks.append(attend(rules, q[start:end], k[first:end], v[first:end], start))
        assert_close(torch.cat(chunks), attend(rules, q, k, v, 0))


def test_attention_of_head_shards_is_attention_of_all_heads():
    q, k, v = normal(7, 4, 6, seed=1), normal(7, 2, 6, seed=2), normal(7, 2, 6, seed=3)
    for rules in (PLAIN, RULES["alibi"], RULES["all"]):
        shards = [
            attend(replace(rules, head_start=2 * r), q[:, 2 * r : 2 * r + 2], k[:, r : r + 1], v[:, r : r + 1], 0)
            for r in (0, 1)
        ]
        assert_close(torch.cat(shards, dim=1), attend(rules, q, k, v, 0))


def test_attention_refuses_a_context_that_is_not_there():
    with pytest.raises(AssertionError, match="7 keys from 0 for 3 older and 5 new tokens"):
        attend(PLAIN, normal(5, 4, 6), normal(7, 2, 6), normal(7, 2, 6), context=3)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("new", "context"), [(1, 0), (1, 9), (5, 0), (5, 9)])
def test_attention_counts_the_full_rectangle(new, context, kv_heads):
    q, k = normal(new, 4, 6), normal(context + new, kv_heads, 6)
    assert counted_flops(attend, PLAIN, q, k, k, context) == 4 * 4 * 6 * new * (context + new)


# --- latent attention ---------------------------------------------------------------------------------------

LATENT = LatentAttention(
    num_attention_heads=4, q_lora_rank=None, kv_lora_rank=6, qk_nope_head_dim=5, qk_rope_head_dim=4,
    v_head_dim=3, scale=0.4, rope=Rope(10_000.0, 4, interleaved=True),
)  # fmt: skip


def latent_inputs(new: int, context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, what is cached, and the projection to keys and values."""
    return normal(new, 4, 9, seed=1), normal(context + new, 10, seed=2), normal(4 * 8, 6, seed=3)


@pytest.mark.parametrize(("new", "context"), [(1, 0), (1, 9), (5, 0), (5, 9)])
def test_latent_attention_is_attention_to_projected_keys(new, context):
    """Equations 9 to 14 of the paper, head by head; both forms, to rounding."""
    q, kept, kv_b = latent_inputs(new, context)
    expected = torch.empty(new, 4, 3, dtype=q.dtype)
    for head, rows in enumerate(kv_b.split(8)):
        k = torch.cat((kept[:, :6] @ rows[:5].T, kept[:, 6:]), dim=-1)
        v = kept[:, :6] @ rows[5:].T
        expected[:, head : head + 1] = attention_by_hand(
            Rules(0.4), q[:, head : head + 1], k[:, None], v[:, None], context
        )
    for form in (attend_expanded, attend_absorbed, attend_latent):
        assert_close(form(LATENT, q, kept, kv_b, context), expected, 1e-10)


@pytest.mark.parametrize("form", [attend_expanded, attend_absorbed])
def test_latent_attention_of_head_shards_is_that_of_all_heads(form):
    q, kept, kv_b = latent_inputs(5, 9)
    shards = [form(LATENT, q[:, half], kept, kv_b[8 * half.start : 8 * half.stop], 9)
              for half in (slice(0, 2), slice(2, 4))]  # fmt: skip
    assert_close(torch.cat(shards, dim=1), form(LATENT, q, kept, kv_b, 9))


def test_one_query_takes_the_absorbed_form_and_many_the_expanded():
    for new in (1, 2):
        q, kept, kv_b = latent_inputs(new, 9)
        span, rank = 9 + new, 6
        absorbed = 2 * new * 4 * (5 * rank + rank * 3) + 2 * new * 4 * span * (2 * rank + 4)
        expanded = 2 * span * rank * 4 * 8 + 2 * new * 4 * span * (5 + 4 + 3)
        counted = counted_flops(attend_latent, LATENT, q, kept, kv_b, 9)
        assert counted == (absorbed if new == 1 else expanded)


def turned(x: Tensor, position: int) -> Tensor:
    """Neighbouring channels as real and imaginary part, turned by the position."""
    rate = torch.tensor([1.0, 10_000.0 ** -(2 / 4)], dtype=torch.float64)
    turn = torch.polar(torch.ones(2, dtype=torch.float64), position * rate)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (2, 2)).contiguous()) * turn).flatten(-2)


def test_latent_keys_are_normalised_and_their_shared_part_is_turned():
    kv, weight, positions = normal(3, 10, seed=1), normal(6, seed=2), torch.tensor([0, 7, 300])
    kept = latent_keys(LATENT, kv, weight, 1e-5, positions)
    latent = kv[:, :6]
    assert_close(kept[:, :6], latent / (latent.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight)
    for row, position in enumerate(positions.tolist()):
        assert_close(kept[row, 6:], turned(kv[row, 6:], position), 1e-11)


def test_latent_queries_are_turned_in_their_last_channels():
    q, positions = normal(3, 4 * 9, seed=1), torch.tensor([0, 7, 300])
    queries = latent_queries(LATENT, q, positions)
    assert torch.equal(queries[..., :5], q.unflatten(1, (4, 9))[..., :5])
    for row, position in enumerate(positions.tolist()):
        assert_close(queries[row, :, 5:], turned(q[row].unflatten(0, (4, 9))[:, 5:], position), 1e-11)


# --- everything else ----------------------------------------------------------------------------------------


def test_norms_are_their_formulas():
    x, weight, bias = 3 + normal(5, 24, seed=1), normal(24, seed=2), normal(24, seed=3)
    rms = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    centred = x - x.mean(-1, keepdim=True)
    layer = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    assert_close(normalise(tiny.LLAMA, x, weight), rms)
    assert_close(normalise(replace(tiny.LLAMA, norm="layer"), x, weight, bias), layer)
    assert counted_flops(normalise, tiny.LLAMA, x, weight) == 0


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("silu", lambda x: x / (1 + exp(-x))),
        ("gelu", lambda x: x * (1 + erf(x / sqrt(2))) / 2),
        ("gelu_new", lambda x: x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2),
        ("relu", lambda x: max(x, 0.0)),
    ],
)
def test_activations_are_their_formulas(activation, formula):
    gate, up = normal(3, 10, seed=1), normal(3, 10, seed=2)
    expected = gate.clone().apply_(formula)
    assert_close(activate(Mlp(10, activation, gated=False), gate), expected)
    assert_close(activate(Mlp(10, activation, gated=True), torch.cat((gate, up), -1)), expected * up)


def test_the_activation_of_gpt_oss_is_clamped_and_shifted():
    """Numbers beyond the limit on both sides: the gate is cut off above only."""
    gate, up = 3 * normal(3, 10, seed=1), 3 * normal(3, 10, seed=2)
    expected = torch.empty(3, 10, dtype=torch.float64)
    for at in [(row, column) for row in range(3) for column in range(10)]:
        g, u = min(float(gate[at]), 2.0), max(-2.0, min(float(up[at]), 2.0))
        expected[at] = (u + 1) * g / (1 + exp(-1.702 * g))
    assert ((gate < -2).any(), (gate > 2).any(), (up < -2).any(), (up > 2).any()) == (True,) * 4
    assert_close(activate(Mlp(10, "gpt_oss", gated=True), torch.cat((gate, up), -1), limit=2.0), expected)


def test_a_softcap_squeezes_and_none_does_nothing():
    x = 5 * normal(9)
    assert_close(softcap(x, 3.0), x.clone().apply_(lambda each: 3 * tanh(each / 3)))
    assert softcap(x, None) is x


def test_vocabulary_shards_add_up_to_the_table():
    ids, table = torch.tensor([0, 95, 31, 32, 32]), normal(96, 24)
    shards = [embed(ids, table[first : first + 32], first_row=first) for first in (0, 32, 64)]
    assert torch.equal(embed(ids, table), table[ids])
    assert torch.equal(sum(shards[1:], start=shards[0]), table[ids])


def test_column_and_row_shards_make_up_the_whole_product():
    x, weight, bias = normal(5, 24, seed=1), normal(40, 24, seed=2), normal(40, seed=3)
    whole = x @ weight.T + bias
    columns = [linear(x, weight[half], bias[half]) for half in (slice(0, 20), slice(20, 40))]
    rows = linear(x[:, :12], weight[:, :12], bias) + linear(x[:, 12:], weight[:, 12:])
    assert_close(torch.cat(columns, -1), whole)
    assert_close(rows, whole)


def test_positions_are_looked_up_not_counted():
    x, table = normal(3, 24, seed=1), normal(66, 24, seed=2)
    found = learned_positions(x, torch.tensor([7, 0, 63]), table, offset=2)
    assert torch.equal(found, x + table[[9, 2, 65]])


def test_sample_takes_the_first_of_equals():
    assert sample(torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]])).tolist() == [1, 0]


def test_pooling_averages_each_sequence():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, -4.0]])
    assert pool(x, [2, 1]).tolist() == [[2.0, 3.0], [10.0, -4.0]]
