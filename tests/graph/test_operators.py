"""The work graph against the network torch builds, and shards against the whole."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from simulator.execution.network import unfilled_transformer
from simulator.graph.operators import (
    Formats,
    OperatorFactory,
    Parameter,
    Share,
    byte_amount,
    kv_bytes_per_token,
    model_operators,
    parameter_count,
    parameters_of,
    why_not_divisible,
    work_graph,
)
from simulator.graph.shape import Amount, Chunk, StepShape
from simulator.specs.catalogue import Catalogue
from simulator.specs.architecture import Architecture
from simulator.specs.model import load_model
from tests import tiny

CATALOGUE = Catalogue()
MODELS = sorted(path.stem for path in CATALOGUE.path("models", "tiny-llama").parent.glob("*.yaml"))
SMALL = ["tiny-llama", "tiny-gpt2"]
BIASED = replace(tiny.LLAMA, qkv_bias=True, output_bias=True, mlp_bias=True, tie_word_embeddings=True)


def model_of(name: str) -> Architecture:
    return load_model(name, CATALOGUE)


def dense_flops(model: Architecture, chunks: list[Chunk]) -> int:
    shape = StepShape.of(chunks)
    return sum(operator.dense_flops.at(shape) for operator in model_operators(model, tiny.BF16))


def causal_flops(model: Architecture, chunks: list[Chunk]) -> int:
    shape = StepShape.of(chunks)
    works = (work for operator in model_operators(model, tiny.BF16) for work in operator.works)
    return sum(work.flops.at(shape) for work in works)


# --- against torch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_module(name: str) -> None:
    model = model_of(name)
    network = unfilled_transformer(model)
    assert parameter_count(model, tiny.BF16) == sum(each.numel() for each in network.parameters())
    ours = {each.name: each.shape for each in parameters_of(model, tiny.BF16).values()}
    assert ours == {key: tuple(each.shape) for key, each in network.named_parameters()}


@pytest.mark.parametrize("model", [tiny.LLAMA, BIASED, replace(BIASED, norm="layer", gated_mlp=False)])
def test_parameters_of_other_shapes_are_those_of_the_module(model: Architecture) -> None:
    network = unfilled_transformer(model)
    ours = {each.name: each.shape for each in parameters_of(model, tiny.BF16).values()}
    assert ours == {key: tuple(each.shape) for key, each in network.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tokens", [1, 2, 50, 501])
def test_dense_flops_are_those_torch_counts(name: str, tokens: int) -> None:
    model = model_of(name)
    with FlopCounterMode(display=False) as counter:
        unfilled_transformer(model)(torch.empty(tokens, dtype=torch.int64, device="meta"), logits=1)
    assert dense_flops(model, [Chunk(0, 0, tokens, True)]) == counter.get_total_flops()


@pytest.mark.parametrize("name", SMALL)
def test_dense_flops_of_a_cached_continuation_are_the_rectangle(name: str) -> None:
    """A prompt in two pieces: torch's count of the whole, but for the keys the first piece never saw."""
    model = model_of(name)
    pieces = [[Chunk(0, 0, 30, False)], [Chunk(0, 30, 20, True)]]
    head = 2 * model.hidden_size * model.vocab_size  # each piece scores its last row
    unseen = model.num_hidden_layers * 4 * model.num_attention_heads * model.head_dim * 30 * 20
    apart = sum(dense_flops(model, piece) for piece in pieces)
    assert apart == dense_flops(model, [Chunk(0, 0, 50, True)]) + head - unseen


# --- causal work --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=4))
def test_causal_flops_are_the_summed_mask(rows: list[tuple[int, int]]) -> None:
    """Everything but attention is the dense count; attention is 4 FLOPs a channel for each visible pair."""
    model = tiny.LLAMA
    chunks = [Chunk(number, context, new, True) for number, (context, new) in enumerate(rows)]
    visible = hidden = 0
    for context, new in rows:
        mask = torch.ones(new, context + new, dtype=torch.bool).tril(context)
        visible += int(mask.sum())
        hidden += int((~mask).sum())
    channels = model.num_hidden_layers * model.num_attention_heads * model.head_dim
    assert dense_flops(model, chunks) - causal_flops(model, chunks) == 4 * channels * hidden
    attention = [op for op in model_operators(model, tiny.BF16) if op.name == "attention"]
    shape = StepShape.of(chunks)
    assert sum(w.flops.at(shape) for op in attention for w in op.works) == 4 * channels * visible


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=4))
def test_causal_work_never_exceeds_the_dense_count(rows: list[tuple[int, int]]) -> None:
    chunks = [Chunk(number, *row, True) for number, row in enumerate(rows)]
    assert causal_flops(tiny.LLAMA, chunks) <= dense_flops(tiny.LLAMA, chunks)


def test_chunks_of_a_prompt_do_the_causal_work_of_the_whole() -> None:
    """However a prompt is cut into pieces, every visible pair is computed once; only the head is scored
    for each piece."""
    model = tiny.LLAMA
    head = 2 * model.hidden_size * model.vocab_size
    whole = causal_flops(model, [Chunk(0, 0, 37, True)])
    for cuts in ([1, 36], [10, 10, 17], [36, 1], [1] * 37):
        starts = [sum(cuts[:i]) for i in range(len(cuts))]
        pieces = [causal_flops(model, [Chunk(0, s, n, True)]) for s, n in zip(starts, cuts, strict=True)]
        assert sum(pieces) == whole + head * (len(cuts) - 1)


# --- shards -------------------------------------------------------------------------------------------------


def rank_factories(model: Architecture, degree: int) -> list[OperatorFactory]:
    return [OperatorFactory(model, Share.of(model, rank, degree), tiny.BF16) for rank in range(degree)]


def rank_operators(factory: OperatorFactory) -> list:  # type: ignore[type-arg]
    layers = [op for i in range(factory.model.num_hidden_layers) for op in factory.layer(i, i > 0)]
    return [factory.embed(), *layers, *factory.head()]


WIDE = replace(tiny.LLAMA, num_attention_heads=8, num_key_value_heads=4, intermediate_size=41, vocab_size=101)


@pytest.mark.parametrize("model", [WIDE, replace(WIDE, qkv_bias=True, output_bias=True, mlp_bias=True)])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_shards_add_up_to_the_whole(model: Architecture, degree: int) -> None:
    """Uneven columns and rows of the vocabulary included; norms are held by every rank."""
    shape = StepShape.of([Chunk(0, 3, 9, True), Chunk(1, 20, 1, True)])
    ranks = [rank_operators(factory) for factory in rank_factories(model, degree)]
    for shards in zip(*ranks, strict=True):
        whole = next(op for op in model_operators(model, tiny.BF16)
                     if (op.name, op.layer) == (shards[0].name, shards[0].layer))  # fmt: skip
        assert sum(op.dense_flops.at(shape) for op in shards) == whole.dense_flops.at(shape)
        held: dict[str, int] = {}
        for operator in shards:
            for parameter in operator.parameters:
                held[parameter.name] = held.get(parameter.name, 0) + parameter.elements
        copies = degree if whole.name.endswith("norm") else 1
        assert held == {each.name: copies * each.elements for each in whole.parameters}


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_cut_parameters_cover_every_row_once(degree: int) -> None:
    model = replace(WIDE, qkv_bias=True)
    parts: dict[str, list[Parameter]] = {}
    for factory in rank_factories(model, degree):
        for operator in rank_operators(factory):
            for parameter in operator.parameters:
                if parameter.axis is not None:
                    parts.setdefault(parameter.name, []).append(parameter)
    whole = parameters_of(model, tiny.BF16)
    for name, found in parts.items():
        axis = found[0].axis
        assert axis is not None
        covered = [row for each in found for row in range(each.start, each.start + each.shape[axis])]
        assert covered == list(range(whole[name].shape[axis])), name


def test_more_ranks_than_kv_heads_copy_them() -> None:
    """8 ranks of 8 query heads over 4 KV heads: queries are shared out, each KV head is there twice."""
    whole = 2 * WIDE.head_dim * WIDE.num_key_value_heads * WIDE.hidden_size
    shares = [Share.of(WIDE, rank, 8) for rank in range(8)]
    assert [share.kv_head_start for share in shares] == [0, 0, 1, 1, 2, 2, 3, 3]
    kv = 0
    for factory in rank_factories(WIDE, 8):
        projection = next(op for op in factory.layer(0, False) if op.name == "qkv_proj")
        kv += sum(p.elements for p in projection.parameters if "q_proj" not in p.name)
    assert kv == 2 * whole


@pytest.mark.parametrize(
    ("heads", "kv_heads", "degree", "fits"),
    [(8, 4, 2, True), (8, 4, 8, True), (8, 4, 3, False), (12, 4, 6, False), (12, 4, 12, True)],
)
def test_which_degrees_a_model_can_be_cut_into(heads: int, kv_heads: int, degree: int, fits: bool) -> None:
    model = replace(WIDE, num_attention_heads=heads, num_key_value_heads=kv_heads)
    assert (why_not_divisible(model, degree) is None) == fits


# --- bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "nbytes"), [("fp32", 4), ("bf16", 2), ("fp8", 1)])
def test_kv_bytes_of_a_token(precision: str, nbytes: int) -> None:
    """Llama-3.1-8B: keys and values of 32 layers, 8 heads of 128 channels: 131,072 bytes in bf16."""
    formats = Formats("bf16", "bf16", precision)  # type: ignore[arg-type]
    assert kv_bytes_per_token(model_of("llama-3.1-8b"), formats) == 2 * 32 * 8 * 128 * nbytes


def test_half_bytes_round_up() -> None:
    assert byte_amount(Amount.of(one=3, tokens=4), "int4") == Amount.of(one=2, tokens=2)


# --- the graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_work_graph_is_one_loop_over_the_tokens(name: str) -> None:
    model = model_of(name)
    graph = work_graph(model, tiny.BF16)
    assert graph.edges["sample", "embed"]["role"] == "next_ids"
    graph.remove_edge("sample", "embed")
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph) - {"embed"} == nx.descendants(graph, "embed")
    assert set(graph) - {"sample"} == nx.ancestors(graph, "sample")
    assert len(graph) == 9 * model.num_hidden_layers + 4
