"""Counts of whole published models: against torch's modules without storage, and against Hugging Face's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from simulator.execution.checkpoints import unfilled_transformer
from simulator.graph.model_graph import (
    kv_bytes_per_token,
    model_operators,
    parameter_count,
    parameters_of,
    state_bytes_per_sequence,
)
from simulator.graph.operators import OperatorFactory
from simulator.graph.shape import Chunk, StepShape, Traits, total
from simulator.graph.share import Share
from simulator.graph.work import Operator
from simulator.specs.architecture import Architecture, LatentAttention, LinearAttention
from simulator.specs.catalogue import Catalogue
from tests.graph.evidence import FORMATS, attention_flops, in_layer, module_parameters
from tests.graph.on_meta import flop_flaws, kept_numbers, own_flops
from tests.graph.touched import ITEM_BYTES
from tests.placed import model

MODELS = sorted(path.stem for path in Catalogue().path("models", "tiny-llama").parent.glob("*.yaml"))
QUICK = ("tiny-llama", "tiny-gpt-oss")
"""Kinds of parts enough for a fast look; all others are slow tests."""

PUBLISHED = [name for name in MODELS if not name.startswith("tiny-")]


def folded(whole: Architecture) -> Architecture:
    """The model with its first layer, where nothing is added to the stream yet, and one of each kind after it."""
    return replace(whole, layers=(whole.layers[0], *dict.fromkeys(whole.layers[1:])))


def layers_of(whole: Architecture) -> list[tuple[Operator, ...]]:
    factory = OperatorFactory(whole, Share(), FORMATS)
    return [factory.layer(i, factory.leaves_branch(0, i)) for i in range(whole.num_hidden_layers)]


def chunks_on_meta(whole: Architecture) -> list[tuple[int, int]]:
    """Context and new tokens: a prompt, a decoded token, a piece of a prompt, and each inside a window."""
    if whole.is_encoder:
        return [(0, 9), (0, 1), (0, 4)]
    window = whole.sliding_window
    beyond = [(window + 7, 3), (window + 7, 1), (window - 3, 5), (0, window + 2)] if window else []
    return [(0, 9), (0, 1), (13, 1), (6, 4), *beyond]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_module(name: str) -> None:
    shapes = module_parameters(model(name))
    assert {each.name: each.shape for each in parameters_of(model(name), FORMATS).values()} == shapes
    assert parameter_count(model(name), FORMATS) == sum(
        each.numel() for each in unfilled_transformer(model(name)).parameters()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_of_a_kind_do_the_same(name: str) -> None:
    """So that what holds for one of each holds for the whole model."""
    whole, few = model(name), folded(model(name))
    of_kind = dict(zip(few.layers[1:], layers_of(few)[1:], strict=True))
    first, *others = layers_of(whole)
    assert first == layers_of(few)[0]
    for spec, operators in zip(whole.layers[1:], others, strict=True):
        assert [in_layer(each, 0) for each in operators] == [in_layer(each, 0) for each in of_kind[spec]]
    ends = [[op for op in model_operators(each, FORMATS) if op.layer is None] for each in (whole, few)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS
])  # fmt: skip
def test_flops_are_those_torch_counts(name: str) -> None:
    """Of a prompt, of decoding, of a piece with context, and of sequences of unlike lengths together."""
    few = folded(model(name))
    network, operators, together = unfilled_transformer(few), model_operators(few, FORMATS), Counter[str]()
    for context, new in chunks_on_meta(few):
        counted = own_flops(network, context, new)
        assert flop_flaws(operators, shape_of(few, [(context, new)]), counted) == []
        together.update(counted)
    assert flop_flaws(operators, shape_of(few, chunks_on_meta(few)), together) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_priced_flops_are_those_under_the_mask(name: str) -> None:
    """Of attention; what knows no mask is priced as torch counts it."""
    few = folded(model(name))
    for chunk in chunks_on_meta(few):
        shape = shape_of(few, [chunk])
        for operator in model_operators(few, FORMATS):
            priced = total(work.flops for work in operator.works).at(shape)
            if operator.name == "attention":
                assert operator.layer is not None
                assert priced == attention_flops(few.layers[operator.layer], *chunk)
            else:
                assert priced == operator.dense_flops.at(shape)


def shape_of(arch: Architecture, rows: list[tuple[int, int]]) -> StepShape:
    return StepShape.of([Chunk(number, *row, True) for number, row in enumerate(rows)], Traits.of(arch))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_caches_hold_the_numbers_that_are_counted(name: str) -> None:
    """Bytes a token, and bytes a sequence where the cache does not grow."""
    whole, few = model(name), folded(model(name))
    kept = dict(zip(few.layers, zip(*(kept_numbers(unfilled_transformer(few), n) for n in (5, 8)), strict=True),
                    strict=True))  # fmt: skip
    growing = sum((kept[spec][1] - kept[spec][0]) // 3 for spec in whole.layers)
    fixed = sum(kept[spec][0] for spec in whole.layers if isinstance(spec.attention, LinearAttention))
    expected = 0 if whole.is_encoder else growing * ITEM_BYTES[FORMATS.kv_cache]
    assert kv_bytes_per_token(whole, FORMATS) == expected
    assert state_bytes_per_sequence(whole, FORMATS) == fixed * ITEM_BYTES[FORMATS.activations]


# --- as Hugging Face has them ------------------------------------------------------------------------------

HUGGING_FACE = json.loads((Path(__file__).parent / "data" / "hugging_face_counts.json").read_text())
COUNTED = sorted(HUGGING_FACE.keys() - {"left_out"})
"""What make_counts.py got from transformers; what it counts otherwise is said there."""


def test_every_published_model_is_compared_or_left_out_for_a_reason() -> None:
    assert {*COUNTED, *HUGGING_FACE["left_out"]} == {*PUBLISHED}


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_are_those_of_hugging_face(name: str) -> None:
    """In all, by group and by layer."""
    theirs, groups, layers = HUGGING_FACE[name], Counter[str](), Counter[int]()
    for parameter in parameters_of(model(name), FORMATS).values():
        groups[group_of(parameter.name)] += parameter.elements
        if parameter.name.startswith("layers.") and group_of(parameter.name) != "buffers":
            layers[int(parameter.name.split(".")[1])] += parameter.elements
    assert parameter_count(model(name), FORMATS) == theirs["parameters"] + theirs["published_buffers"]
    assert groups.pop("buffers", 0) == theirs["published_buffers"]
    assert groups == theirs["parameters_by_group"]
    assert [layers[index] for index in range(len(layers))] == theirs["parameters_by_layer"]


def group_of(name: str) -> str:
    found = {".shared": "shared_experts", ".experts.": "experts", ".router.": "router", "correction": "buffers",
             "norm.": "norms", ".attention.": "attention", ".mlp.": "mlp", "lm_head.": "head"}  # fmt: skip
    return next((group for part, group in found.items() if part in name), "embeddings")


@pytest.mark.parametrize("name", COUNTED)
def test_flops_of_a_prompt_are_those_of_hugging_face(name: str) -> None:
    """With logits of all tokens, with those of the last alone, and layer by layer."""
    theirs, whole = HUGGING_FACE[name], model(name)
    ours = flops_by_layer(whole, 0, 64)
    head, operations = ours.pop(None), theirs["prefill_64_flops_by_operation"]
    otherwise = theirs["delta_rule_flops"] + operations.get("aten.convolution", 0)
    linear = sum(isinstance(layer.attention, LinearAttention) for layer in whole.layers)
    by_layer = [
        flops - (otherwise // linear if isinstance(layer.attention, LinearAttention) else 0)
        for flops, layer in zip(theirs["prefill_64_flops_by_layer"], whole.layers, strict=True)
    ]
    assert list(ours.values()) == by_layer
    rest = theirs["prefill_64_flops"] - otherwise - ours.total()
    assert rest == (0 if whole.is_encoder else 64 * head)
    if "prefill_64_last_flops" in theirs:
        assert theirs["prefill_64_last_flops"] - otherwise == ours.total() + head


@pytest.mark.parametrize("name", [name for name in COUNTED if "decode_after_64_flops" in HUGGING_FACE[name]])
def test_flops_of_a_decoded_token_are_those_of_hugging_face(name: str) -> None:
    """Latent attention expands all keys anew there; a convolution of one token counts two."""
    whole = model(name)
    ours = flops_by_layer(whole, 64, 1).total()
    for layer in whole.layers:
        if isinstance(layer.attention, LatentAttention):
            absorbed = attention_flops(layer, 64, 1)
            ours += expanded_flops(layer.attention, 65) - absorbed
        if isinstance(layer.attention, LinearAttention):
            channels = 2 * layer.attention.key_width + layer.attention.value_width
            ours += 2 * 2 * channels * layer.attention.conv_kernel
    assert ours == HUGGING_FACE[name]["decode_after_64_flops"]


def flops_by_layer(whole: Architecture, context: int, new: int) -> Counter[int | None]:
    """Dense ones but for the delta rule, which others compute in other ways."""
    shape, found = shape_of(whole, [(context, new)]), Counter[int | None]({None: 0})
    for operator in model_operators(whole, FORMATS):
        if operator.name != "delta_rule":
            found[operator.layer] += operator.dense_flops.at(shape)
    return found


def expanded_flops(latent: LatentAttention, span: int) -> int:
    """Of one query that keys and values of all tokens are made for."""
    expanded = latent.qk_nope_head_dim + latent.v_head_dim
    per_key = latent.kv_lora_rank * expanded + expanded + latent.qk_rope_head_dim
    return 2 * latent.num_attention_heads * span * per_key
