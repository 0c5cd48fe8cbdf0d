"""The network as a whole: published sizes, FLOPs by formula, and what its parts promise each other."""

from functools import cache

import pytest
import torch
from torch import Tensor

from simulator.execution.checkpoints import unfilled_transformer
from simulator.execution.network import Cache, Transformer
from simulator.execution.random_weights import random_transformer
from simulator.specs.architecture import Attention, Mlp
from simulator.specs.catalogue import Catalogue
from tests.placed import model
from tests.tensors import assert_close, counted_flops

TINY = sorted(path.stem for path in Catalogue().path("models", "tiny-llama").parent.glob("tiny-*.yaml"))
DECODERS = [name for name in TINY if not model(name).is_encoder]
DENSE = ["tiny-llama", "tiny-gpt2", "tiny-qwen2", "llama-3.1-8b", "gpt2"]
IDS = torch.tensor([5, 6, 7, 8, 200, 13, 99, 5, 5, 41, 17, 3])


@cache
def network(name: str) -> Transformer:
    """In float64, so that two ways to the same number agree to rounding."""
    return random_transformer(model(name), seed=3, dtype=torch.float64)


# --- sizes and names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("llama-3.1-8b", 8_030_261_248), ("gpt2", 124_439_808)])
def test_parameter_count_is_the_published_one(name: str, count: int):
    assert sum(parameter.numel() for parameter in unfilled_transformer(model(name)).parameters()) == count


def test_parameters_have_one_naming_for_all_families():
    attention = [f"attention.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj")]
    layer = [*attention, "attn_norm", "mlp_norm", "mlp.up_proj", "mlp.down_proj"]
    gpt2 = {f"layers.{i}.{part}.{leaf}" for i in range(4) for part in layer for leaf in ("weight", "bias")}
    llama = {f"layers.{i}.{part}.weight" for i in range(4) for part in [*layer, "mlp.gate_proj"]}
    assert set(unfilled_transformer(model("tiny-gpt2")).state_dict()) == gpt2 | {
        "embed.weight", "positions.weight", "final_norm.weight", "final_norm.bias"
    }  # fmt: skip
    assert set(unfilled_transformer(model("tiny-llama")).state_dict()) == llama | {
        "embed.weight", "final_norm.weight", "lm_head.weight"
    }  # fmt: skip


# --- FLOPs --------------------------------------------------------------------------------------------------


def forward_flops(name: str, tokens: int, logits: int) -> int:
    """Two a multiply-add; attention's rectangle in full; everything else counts nothing."""
    arch, layer = model(name), model(name).layers[0]
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, Attention)
    assert isinstance(mlp, Mlp)
    queries, keys = (
        heads * attention.head_dim for heads in (attention.num_attention_heads, attention.num_key_value_heads)
    )
    qkv = 2 * tokens * arch.hidden_size * (queries + 2 * keys)
    products = 4 * queries * tokens**2
    output = 2 * tokens * queries * arch.hidden_size
    feed_forward = (3 if mlp.gated else 2) * 2 * tokens * arch.hidden_size * mlp.intermediate_size
    lm_head = 2 * logits * arch.hidden_size * arch.vocab_size
    return arch.num_hidden_layers * (qkv + products + output + feed_forward) + lm_head


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_forward_flops_are_those_of_the_formula_on_meta(name: str):
    ids = torch.empty(50, dtype=torch.int64, device="meta")
    unfilled = unfilled_transformer(model(name))
    assert counted_flops(unfilled, ids) == forward_flops(name, tokens=50, logits=50)
    assert counted_flops(unfilled, ids, None, 1) == forward_flops(name, tokens=50, logits=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_forward_flops_on_the_cpu_are_those_on_meta(name: str):
    ids = torch.arange(17)
    on_meta = counted_flops(unfilled_transformer(model(name)), ids.to("meta"))
    assert counted_flops(network(name), ids) == on_meta


def test_the_network_needs_no_storage():
    logits = unfilled_transformer(model("llama-3.1-8b"))(
        torch.empty(2000, dtype=torch.int64, device="meta"), logits=1
    )
    assert isinstance(logits, Tensor)
    assert logits.is_meta
    assert logits.shape == (1, 128_256)


# --- laws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_generated_ids_are_the_likeliest_of_one_forward_pass(name: str):
    ids, logits = network(name).generate(IDS[:4].tolist(), 10)
    at_once = network(name)(torch.tensor([*IDS[:4].tolist(), *ids[:-1]]), logits=10)
    assert_close(logits, at_once, 1e-7)
    assert ids == logits.argmax(-1).tolist() == at_once.argmax(-1).tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_a_token_sees_nothing_of_its_future(name: str):
    assert_close(network(name)(IDS)[:7], network(name)(IDS[:7]), 1e-7)


@pytest.mark.parametrize("name", [name for name in TINY if name not in DECODERS])
def test_a_token_of_an_encoder_sees_its_future(name: str):
    assert not torch.allclose(network(name)(IDS)[0], network(name)(IDS[:7])[0])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cuts", [[1] * 12, [7, 5], [3, 1, 8]], ids=str)
def test_pieces_with_a_cache_are_the_whole(name: str, cuts: list[int]):
    cache_ = Cache()
    pieces = torch.cat([network(name)(piece, cache_) for piece in IDS.split(cuts)])
    assert cache_.tokens == len(IDS)
    assert_close(pieces, network(name)(IDS), 1e-7)
