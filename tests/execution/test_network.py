"""The operators against formulas written out here, the network against Hugging Face's and hand counts."""

from dataclasses import replace
from math import erf, exp, pi, sqrt, tanh
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from simulator.execution.network import (
    Transformer,
    activate,
    add_normalise,
    attention_one,
    embed,
    learned_positions,
    linear,
    load_hugging_face_state,
    normalise,
    random_transformer,
    rotary_frequencies,
    rotate,
    sample,
    unfilled_transformer,
)
from simulator.specs.model import Architecture, RopeScaling

DATA = Path(__file__).parent / "data"

LLAMA = Architecture(
    name="tiny llama",
    family="llama",
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=40,
    vocab_size=96,
    max_position_embeddings=256,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
    gated_mlp=True,
    positions="rope",
    rope_theta=10_000.0,
    rope_scaling=None,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
)
LLAMA3_ROPE = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=8.0,
    original_max_position_embeddings=128,
)
GROUPED = replace(LLAMA, name="grouped, llama3 rope", head_dim=8, rope_scaling=LLAMA3_ROPE)
TIED = replace(
    LLAMA, name="tied, biased", qkv_bias=True, output_bias=True, mlp_bias=True, tie_word_embeddings=True
)
QWEN2 = replace(LLAMA, name="tiny qwen2", qkv_bias=True)
GPT2 = replace(
    LLAMA,
    name="tiny gpt2",
    family="gpt2",
    num_attention_heads=3,
    num_key_value_heads=3,
    head_dim=8,
    intermediate_size=96,
    max_position_embeddings=64,
    norm="layer",
    activation="gelu_new",
    gated_mlp=False,
    positions="learned",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
)
LLAMA_31_8B = replace(
    LLAMA,
    name="Llama-3.1-8B",
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=128_256,
    max_position_embeddings=131_072,
    rope_theta=500_000.0,
    rope_scaling=replace(LLAMA3_ROPE, high_freq_factor=4.0, original_max_position_embeddings=8192),
)
GPT2_SMALL = replace(
    GPT2,
    name="gpt2",
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
    intermediate_size=3072,
    vocab_size=50_257,
    max_position_embeddings=1024,
)
PUBLISHED = {
    "llama-grouped-llama3-rope": GROUPED,
    "llama-tied-biased": TIED,
    "qwen2": QWEN2,
    "gpt2": GPT2,
}
SMALL = [GROUPED, TIED, QWEN2, GPT2]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Float64, so that two formulas for the same number agree to rounding."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counted_flops(function, *arguments) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


# --- against what others computed ---------------------------------------------------------------------------


def published(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights, ids and logits as make_fixtures.py got them from Hugging Face transformers."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    ids, logits = arrays.pop("ids"), arrays.pop("logits")
    return {key.removeprefix("state/"): array for key, array in arrays.items()}, ids, logits


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_are_those_of_hugging_face(name):
    state, ids, logits = published(name)
    network = load_hugging_face_state(PUBLISHED[name], state)
    torch.testing.assert_close(network(ids), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("llama-grouped-llama3-rope", {"rope_scaling": None}),
        ("llama-grouped-llama3-rope", {"rope_theta": 20_000.0}),
        ("llama-tied-biased", {"norm_eps": 1e-2}),
        ("gpt2", {"activation": "gelu"}),
    ],
)
def test_published_logits_notice_a_wrong_field(name, wrong):
    """The fixtures would be worth little if a subtly different architecture passed too."""
    state, ids, logits = published(name)
    network = load_hugging_face_state(replace(PUBLISHED[name], **wrong), state)
    assert (network(ids) - logits).abs().max() > 1e-4


def test_published_names_without_their_prefix_are_understood():
    """The first GPT-2 checkpoints have no `transformer.` and carry their causal masks along."""
    state, ids, logits = published("gpt2")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    torch.testing.assert_close(load_hugging_face_state(GPT2, bare)(ids), logits, rtol=1e-5, atol=1e-5)


def test_a_published_bias_is_never_dropped():
    state, _, _ = published("qwen2")
    with pytest.raises(ValueError, match=r"layers.0.q_proj.bias: \(24,\), needs none"):
        load_hugging_face_state(replace(QWEN2, qkv_bias=False), state)


def test_a_missing_weight_is_named():
    state, _, _ = published("qwen2")
    del state["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"layers.1.up_proj.weight: absent, needs \(40, 24\)"):
        load_hugging_face_state(QWEN2, state)


@pytest.mark.parametrize(("arch", "count"), [(LLAMA_31_8B, 8_030_261_248), (GPT2_SMALL, 124_439_808)])
def test_parameter_count_is_the_published_one(arch, count):
    assert sum(parameter.numel() for parameter in unfilled_transformer(arch).parameters()) == count


# --- FLOPs --------------------------------------------------------------------------------------------------


def forward_flops(arch: Architecture, tokens: int, logits: int) -> int:
    """Two a multiply-add; attention's rectangle in full; everything else counts nothing."""
    heads = arch.num_attention_heads + 2 * arch.num_key_value_heads
    qkv = 2 * tokens * arch.hidden_size * heads * arch.head_dim
    attention = 4 * arch.num_attention_heads * arch.head_dim * tokens**2
    output = 2 * tokens * arch.num_attention_heads * arch.head_dim * arch.hidden_size
    mlp = (3 if arch.gated_mlp else 2) * 2 * tokens * arch.hidden_size * arch.intermediate_size
    lm_head = 2 * logits * arch.hidden_size * arch.vocab_size
    return arch.num_hidden_layers * (qkv + attention + output + mlp) + lm_head


@pytest.mark.parametrize("arch", [*SMALL, LLAMA_31_8B, GPT2_SMALL], ids=lambda arch: arch.name)
def test_forward_flops_are_those_of_the_formula_on_meta(arch):
    ids = torch.empty(50, dtype=torch.int64, device="meta")
    network = unfilled_transformer(arch)
    assert counted_flops(network, ids) == forward_flops(arch, tokens=50, logits=50)
    assert counted_flops(network, ids, 1) == forward_flops(arch, tokens=50, logits=1)


@pytest.mark.parametrize("arch", SMALL, ids=lambda arch: arch.name)
def test_forward_flops_on_the_cpu_are_those_on_meta(arch):
    ids = torch.arange(17)
    on_meta = counted_flops(unfilled_transformer(arch), ids.to("meta"))
    assert counted_flops(random_transformer(arch, seed=0), ids) == on_meta


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("new", "context"), [(1, 0), (1, 9), (5, 0), (5, 9)])
def test_attention_counts_the_full_rectangle(new, context, kv_heads):
    q, k = normal(new, 4, 6), normal(context + new, kv_heads, 6)
    assert counted_flops(attention_one, q, k, k, context) == 4 * 4 * 6 * new * (context + new)


def test_rotation_and_norms_count_nothing():
    assert counted_flops(rotate, GROUPED, normal(5, 4, 8), torch.arange(5)) == 0
    assert counted_flops(normalise, LLAMA, normal(5, 24), normal(24)) == 0


# --- operators ----------------------------------------------------------------------------------------------


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor, context: int) -> Tensor:
    """One query, one head and one visible key at a time."""
    out = torch.zeros_like(q)
    heads_per_group = q.shape[1] // k.shape[1]
    for token in range(q.shape[0]):
        for head in range(q.shape[1]):
            group, visible = head // heads_per_group, context + token + 1
            scores = [float(q[token, head] @ k[key, group]) / sqrt(q.shape[2]) for key in range(visible)]
            odds = [exp(score - max(scores)) for score in scores]
            out[token, head] = sum(odd / sum(odds) * v[key, group] for key, odd in enumerate(odds))
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("new", "context"), [(1, 0), (1, 9), (5, 0), (5, 9)])
def test_attention_is_the_sum_over_visible_keys(new, context, kv_heads):
    q = normal(new, 4, 6, seed=1)
    k, v = normal(context + new, kv_heads, 6, seed=2), normal(context + new, kv_heads, 6, seed=3)
    expected = attention_by_hand(q, k, v, context)
    torch.testing.assert_close(attention_one(q, k, v, context), expected, rtol=1e-12, atol=1e-12)


def test_attention_in_chunks_is_attention_at_once():
    q, k, v = normal(7, 4, 6, seed=1), normal(7, 2, 6, seed=2), normal(7, 2, 6, seed=3)
    chunks = [attention_one(q[start:end], k[:end], v[:end], start) for start, end in [(0, 3), (3, 6), (6, 7)]]
    torch.testing.assert_close(torch.cat(chunks), attention_one(q, k, v, 0), rtol=1e-12, atol=1e-12)


def test_attention_of_head_shards_is_attention_of_all_heads():
    q, k, v = normal(7, 4, 6, seed=1), normal(7, 2, 6, seed=2), normal(7, 2, 6, seed=3)
    shards = [attention_one(q[:, 2 * r : 2 * r + 2], k[:, r : r + 1], v[:, r : r + 1], 0) for r in (0, 1)]
    torch.testing.assert_close(torch.cat(shards, dim=1), attention_one(q, k, v, 0), rtol=1e-12, atol=1e-12)


def test_attention_refuses_a_context_that_is_not_there():
    with pytest.raises(AssertionError, match="7 keys for 3 older and 5 new tokens"):
        attention_one(normal(5, 4, 6), normal(7, 2, 6), normal(7, 2, 6), context=3)


def test_rotation_is_a_complex_product():
    """Channels i and i + d/2 are the real and imaginary part of one number, turned together."""
    q, positions = normal(5, 4, 6), torch.tensor([0, 1, 2, 700, 8191])
    rate = 10_000.0 ** -(torch.arange(3, dtype=torch.float64) / 3)
    turn = torch.polar(torch.ones(5, 3, dtype=torch.float64), positions[:, None] * rate)
    expected = torch.complex(q[..., :3], q[..., 3:]) * turn[:, None]
    actual = rotate(LLAMA, q, positions)
    torch.testing.assert_close(actual, torch.cat((expected.real, expected.imag), -1), rtol=1e-11, atol=1e-11)


def test_rotated_products_depend_on_distance_alone():
    q, k = normal(1, 4, 8, seed=1), normal(1, 4, 8, seed=2)

    def product(query_position: int, key_position: int) -> Tensor:
        turned = (
            rotate(GROUPED, x, torch.tensor([at])) for x, at in ((q, query_position), (k, key_position))
        )
        return torch.linalg.vecdot(*turned)

    torch.testing.assert_close(product(17, 5), product(112, 100), rtol=1e-10, atol=1e-10)


def test_learned_positions_are_not_rotated():
    q = normal(5, 3, 8)
    assert rotate(GPT2, q, torch.arange(5)) is q


def llama3_frequency(frequency: float) -> float:
    """The three cases as Llama 3.1's reference code writes them, by wavelength."""
    wavelength, original = 2 * pi / frequency, 128
    if wavelength < original / 8.0:
        return frequency
    if wavelength > original / 1.0:
        return frequency / 8.0
    smooth = (original / wavelength - 1.0) / (8.0 - 1.0)
    return (1 - smooth) * frequency / 8.0 + smooth * frequency


def test_llama3_slows_the_slow_channels_only():
    plain = [10_000.0 ** -(2 * i / 64) for i in range(32)]
    scaled = rotary_frequencies(replace(GROUPED, head_dim=64), torch.float64, torch.device("cpu")).tolist()
    assert scaled == pytest.approx([llama3_frequency(frequency) for frequency in plain], rel=1e-12)
    assert [scaled[0], scaled[-1]] == pytest.approx([plain[0], plain[-1] / 8], rel=1e-12)


def test_norms_are_their_formulas():
    x, weight, bias = 3 + normal(5, 24, seed=1), normal(24, seed=2), normal(24, seed=3)
    rms = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    centred = x - x.mean(-1, keepdim=True)
    layer = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(normalise(LLAMA, x, weight), rms, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(normalise(GPT2, x, weight, bias), layer, rtol=1e-12, atol=1e-12)


def test_add_normalise_returns_the_sum_and_its_norm():
    x, update, weight, bias = normal(5, 24, seed=1), normal(5, 24, seed=2), normal(24), normal(24, seed=3)
    total, normalised = add_normalise(GPT2, x, update, weight, bias)
    assert torch.equal(total, x + update)
    assert torch.equal(normalised, normalise(GPT2, x + update, weight, bias))


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
    plain = replace(GPT2, activation=activation)
    gated = replace(LLAMA, activation=activation)
    torch.testing.assert_close(activate(plain, gate), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        activate(gated, torch.cat((gate, up), -1)), expected * up, rtol=1e-12, atol=1e-12
    )


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
    torch.testing.assert_close(torch.cat(columns, -1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows, whole, rtol=1e-12, atol=1e-12)


def test_positions_are_looked_up_not_counted():
    x, table = normal(3, 24, seed=1), normal(64, 24, seed=2)
    assert torch.equal(learned_positions(x, torch.tensor([7, 0, 63]), table), x + table[[7, 0, 63]])


def test_sample_takes_the_first_of_equals():
    assert sample(torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]])).tolist() == [1, 0]


# --- the random network -------------------------------------------------------------------------------------


def test_parameters_have_one_naming_for_all_families():
    layer = ["attn_norm", "q_proj", "k_proj", "v_proj", "o_proj", "mlp_norm", "up_proj", "down_proj"]
    gpt2 = {f"layers.{i}.{part}.{leaf}" for i in (0, 1) for part in layer for leaf in ("weight", "bias")}
    llama = {f"layers.{i}.{part}.weight" for i in (0, 1) for part in [*layer, "gate_proj"]}
    assert set(unfilled_transformer(GPT2).state_dict()) == gpt2 | {
        "embed.weight", "positions.weight", "final_norm.weight", "final_norm.bias"
    }  # fmt: skip
    assert set(unfilled_transformer(LLAMA).state_dict()) == llama | {
        "embed.weight", "final_norm.weight", "lm_head.weight"
    }  # fmt: skip


def test_random_weights_depend_on_the_seed_alone():
    first, again, other = (random_transformer(TIED, seed).state_dict() for seed in (1, 1, 2))
    narrow = random_transformer(TIED, 1, torch.bfloat16).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor.bfloat16(), narrow[name])
        assert not torch.equal(tensor, other[name])


def test_no_parameter_is_neutral():
    """A bias of zeros or a norm of ones would hide that it was forgotten."""
    for name, tensor in random_transformer(GPT2, 0).state_dict().items():
        assert tensor.std() > 0.05, name


@pytest.mark.parametrize("arch", [LLAMA, *SMALL], ids=lambda arch: arch.name)
@pytest.mark.parametrize("seed", range(5))
def test_greedy_continuations_vary(arch, seed):
    network = random_transformer(arch, seed)
    first, _ = network.generate([1, 2, 3], 24)
    second, _ = network.generate([4, 5, 6], 24)
    assert len(set(first)) >= 6
    assert first != second


@pytest.mark.parametrize("arch", SMALL, ids=lambda arch: arch.name)
def test_generated_ids_are_the_likeliest_of_one_forward_pass(arch):
    network = random_transformer(arch, seed=3, dtype=torch.float64)
    ids, logits = network.generate([5, 6, 7, 8], 10)
    at_once = network(torch.tensor([5, 6, 7, 8, *ids[:-1]]), logits=10)
    torch.testing.assert_close(logits, at_once)
    assert ids == logits.argmax(-1).tolist() == at_once.argmax(-1).tolist()


@pytest.mark.parametrize("arch", SMALL, ids=lambda arch: arch.name)
def test_a_token_sees_nothing_of_its_future(arch):
    network = random_transformer(arch, seed=3, dtype=torch.float64)
    ids = torch.arange(12)
    torch.testing.assert_close(network(ids)[:7], network(ids[:7]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logits_have_the_dtype_of_the_weights(dtype):
    for arch in SMALL:
        assert random_transformer(arch, 0, dtype)(torch.arange(5)).dtype == dtype


def test_the_network_needs_no_storage():
    logits = unfilled_transformer(LLAMA_31_8B)(torch.empty(2000, dtype=torch.int64, device="meta"), logits=1)
    assert isinstance(logits, Tensor)
    assert logits.is_meta
    assert logits.shape == (1, 128_256)


def test_no_parameter_asks_for_a_gradient():
    network: Transformer = random_transformer(LLAMA, 0)
    assert not any(parameter.requires_grad for parameter in network.parameters())
