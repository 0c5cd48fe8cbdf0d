"""What operators are counted to do under the causal mask, shards against the whole, and the graph they form."""

from __future__ import annotations

from collections import Counter

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simulator.graph.attention import cached
from simulator.graph.model_graph import kv_bytes_per_token, model_operators, parameters_of, work_graph
from simulator.graph.operators import OperatorFactory
from simulator.graph.shape import Amount, Chunk, StepShape, Traits
from simulator.graph.share import Share, why_not_divisible
from simulator.graph.work import Formats, Operator, Parameter, byte_amount
from simulator.specs.architecture import Architecture, Attention
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from tests import tiny

CATALOGUE = Catalogue()
MODELS = sorted(path.stem for path in CATALOGUE.path("models", "tiny-llama").parent.glob("*.yaml"))
TINY = [name for name in MODELS if name.startswith("tiny-")]


def model_of(name: str) -> Architecture:
    return load_model(name, CATALOGUE)


def shape_of(model: Architecture, chunks: list[Chunk]) -> StepShape:
    return StepShape.of(chunks, Traits.of(model))


def dense_flops(model: Architecture, chunks: list[Chunk]) -> int:
    shape = shape_of(model, chunks)
    return sum(operator.dense_flops.at(shape) for operator in model_operators(model, tiny.BF16))


def priced_flops(operator: Operator, shape: StepShape) -> int:
    return sum(work.flops.at(shape) for work in operator.works)


def causal_flops(model: Architecture, chunks: list[Chunk]) -> int:
    shape = shape_of(model, chunks)
    return sum(priced_flops(operator, shape) for operator in model_operators(model, tiny.BF16))


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
    channels = model.num_hidden_layers * tiny.ATTENTION.num_attention_heads * tiny.ATTENTION.head_dim
    assert dense_flops(model, chunks) - causal_flops(model, chunks) == 4 * channels * hidden
    attention = [op for op in model_operators(model, tiny.BF16) if op.name == "attention"]
    shape = StepShape.of(chunks)
    assert sum(w.flops.at(shape) for op in attention for w in op.works) == 4 * channels * visible


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=4))
def test_causal_work_never_exceeds_the_dense_count(rows: list[tuple[int, int]]) -> None:
    chunks = [Chunk(number, *row, True) for number, row in enumerate(rows)]
    for model in (tiny.LLAMA, tiny.WINDOWED, tiny.MIXTURE):
        assert causal_flops(model, chunks) <= dense_flops(model, chunks)


@pytest.mark.parametrize("model", [tiny.LLAMA, tiny.WINDOWED, tiny.MIXTURE], ids=lambda model: model.name)
def test_chunks_of_a_prompt_do_the_causal_work_of_the_whole(model: Architecture) -> None:
    """However a prompt is cut into pieces, every visible pair is computed once; only the head is scored
    for each piece."""
    head = 2 * model.hidden_size * model.vocab_size
    whole = causal_flops(model, [Chunk(0, 0, 37, True)])
    for cuts in ([1, 36], [10, 10, 17], [36, 1], [1] * 37):
        starts = [sum(cuts[:i]) for i in range(len(cuts))]
        pieces = [causal_flops(model, [Chunk(0, s, n, True)]) for s, n in zip(starts, cuts, strict=True)]
        assert sum(pieces) == whole + head * (len(cuts) - 1)


# --- shards -------------------------------------------------------------------------------------------------


def rank_operators(model: Architecture, degree: int) -> list[tuple[Operator, ...]]:
    """The operators of each rank."""
    ranks = []
    for rank in range(degree):
        factory = OperatorFactory(model, Share(rank, degree), tiny.BF16)
        layers = (
            operator
            for index in range(model.num_hidden_layers)
            for operator in factory.layer(index, factory.leaves_branch(0, index))
        )
        head = factory.head(factory.leaves_branch(0, model.num_hidden_layers))
        ranks.append((*factory.embed(), *layers, *head))
    return ranks


WIDE = tiny.altered(
    tiny.LLAMA, {"num_attention_heads": 8, "num_key_value_heads": 4}, {"intermediate_size": 41}, vocab_size=101
)
EVERY_RANK_DOES_ALL = {"latent_proj", "router", "shared_gate", "project_in", "project_out"}
"""Products whose weights are not cut."""
NEVER_CUT = ("norm.", "router.", "correction.", "_a_proj.", "shared_gate.", "project_in.", "project_out.")
SHARED_OUT = [WIDE, tiny.biased(WIDE, name="biased"), *map(model_of, TINY)]


def has_copies(model: Architecture, degree: int) -> bool:
    """Whether the model cannot be cut, or ranks keep copies of key-value heads."""
    heads = [layer.attention.num_key_value_heads for layer in model.layers
             if isinstance(layer.attention, Attention)]  # fmt: skip
    return why_not_divisible(model, degree) is not None or any(count % degree for count in heads)


WITHOUT_COPIES = [
    pytest.param(model, degree, id=f"{model.name}-{degree}")
    for model in SHARED_OUT
    for degree in (1, 2, 4)
    if not has_copies(model, degree)
]
"""Ranks that keep copies of heads have tests of their own."""


@pytest.mark.parametrize(("model", "degree"), WITHOUT_COPIES)
def test_shards_add_up_to_the_whole(model: Architecture, degree: int) -> None:
    """Uneven columns and rows of the vocabulary included."""
    shape = shape_of(model, [Chunk(0, 3, 9, True), Chunk(1, 20, 1, True)])
    wholes = {op.node: op for op in model_operators(model, tiny.BF16)}
    for shards in zip(*rank_operators(model, degree), strict=True):
        whole = wholes[shards[0].node]
        repeated = degree if whole.name in EVERY_RANK_DOES_ALL else 1
        assert sum(op.dense_flops.at(shape) for op in shards) == repeated * whole.dense_flops.at(shape)
        assert sum(priced_flops(op, shape) for op in shards) == repeated * priced_flops(whole, shape)
        held = Counter[str]()
        for operator in shards:
            held.update({parameter.name: parameter.elements for parameter in operator.parameters})
        assert held == {
            each.name: each.elements * (degree if any(part in each.name for part in NEVER_CUT) else 1)
            for each in whole.parameters
        }


@pytest.mark.parametrize(("model", "degree"), WITHOUT_COPIES)
def test_cut_parameters_cover_every_row_once(model: Architecture, degree: int) -> None:
    parts: dict[str, list[Parameter]] = {}
    for operators in rank_operators(model, degree):
        mine = {each.name: each for operator in operators for each in operator.parameters}
        for parameter in mine.values():
            if parameter.axis is not None and ".router." not in parameter.name:
                parts.setdefault(parameter.name, []).append(parameter)
    whole = parameters_of(model, tiny.BF16)
    for name, found in parts.items():
        axis = found[0].axis
        assert axis is not None
        covered = [row for each in found for row in range(each.start, each.start + each.shape[axis])]
        assert covered == list(range(whole[name].shape[axis])), name


def test_more_ranks_than_kv_heads_copy_them() -> None:
    """8 ranks of 8 query heads over 4 KV heads: queries are shared out, each KV head is there twice."""
    whole = 2 * tiny.ATTENTION.head_dim * 4 * WIDE.hidden_size
    kept = [cached(WIDE.layers[0], Share(rank, 8)) for rank in range(8)]
    assert [each.heads.start for each in kept if each] == [0, 0, 1, 1, 2, 2, 3, 3]
    kv = 0
    for operators in rank_operators(WIDE, 8):
        projection = next(op for op in operators if op.name == "qkv_proj")
        kv += sum(p.elements for p in projection.parameters if "q_proj" not in p.name)
    assert kv == 2 * whole


@pytest.mark.parametrize(
    ("heads", "kv_heads", "degree", "fits"),
    [(8, 4, 2, True), (8, 4, 8, True), (8, 4, 3, False), (12, 4, 6, False), (12, 4, 12, True)],
)
def test_which_degrees_a_model_can_be_cut_into(heads: int, kv_heads: int, degree: int, fits: bool) -> None:
    model = tiny.altered(WIDE, {"num_attention_heads": heads, "num_key_value_heads": kv_heads})
    assert (why_not_divisible(model, degree) is None) == fits


# --- bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "nbytes"), [("fp32", 4), ("bf16", 2), ("fp8", 1)])
def test_kv_bytes_of_a_token(precision: str, nbytes: int) -> None:
    """Llama-3.1-8B: keys and values of 32 layers, 8 heads of 128 channels: 131,072 bytes in bf16."""
    formats = Formats("bf16", "bf16", precision)  # type: ignore[arg-type]
    assert kv_bytes_per_token(model_of("llama-3.1-8b"), formats) == 2 * 32 * 8 * 128 * nbytes


def test_kv_bytes_of_a_token_of_latent_attention() -> None:
    """DeepSeek-V3: 512 + 64 numbers in each of 61 layers (DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.1)."""
    assert kv_bytes_per_token(model_of("deepseek-v3"), tiny.BF16) == 61 * (512 + 64) * 2


def test_half_bytes_round_up() -> None:
    assert byte_amount(Amount.of(one=3, tokens=4), "int4") == Amount.of(one=2, tokens=2)


# --- the graph ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_work_graph_is_one_loop_over_the_tokens(name: str) -> None:
    """From the ids to the next ids, or to an encoder's vector; every operator has a part in it."""
    model = model_of(name)
    graph = work_graph(model, tiny.BF16)
    last = "pool" if model.is_encoder else "sample"
    if not model.is_encoder:
        assert graph.edges["sample", "embed"]["role"] == "next_ids"
        graph.remove_edge("sample", "embed")
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph) - {"embed"} == nx.descendants(graph, "embed")
    assert set(graph) - {last} == nx.ancestors(graph, last)
    assert len(graph) == len(model_operators(model, tiny.BF16))


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b"])
def test_a_dense_layer_is_nine_operators(name: str) -> None:
    graph = work_graph(model_of(name), tiny.BF16)
    assert len(graph) == 9 * model_of(name).num_hidden_layers + 4
