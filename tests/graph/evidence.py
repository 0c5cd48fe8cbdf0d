"""Independent evidence of what a model's operators are counted to do, and the checker that compares the two.

Of each operator in each step: FLOPs as torch counted them, FLOPs under explicit masks, elements of the tensors
that were really written, bytes of those that were really touched. The steps are such that no feature of a step
is 0 in all of them, so one coefficient that is wrong by one shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.execution.checkpoints import unfilled_transformer
from simulator.graph.shape import Amount, StepShape, Traits, total
from simulator.graph.work import Formats, Operator, Parameter
from simulator.specs.architecture import Architecture, Attention, LatentAttention, LayerSpec, LinearAttention
from tests.graph.touched import Rows, Touched, carried_out, chunks_of

FORMATS = Formats("fp32", "bf16", "fp8")
"""Of unlike sizes, so that none can stand for another."""

STEPS: tuple[Rows, ...] = (
    [(0, 0, 6)],
    [(0, 6, 1), (1, 0, 3)],
    [(0, 7, 5), (1, 3, 1), (2, 0, 1)],
    [(0, 12, 9), (1, 4, 4), (2, 1, 1), (3, 0, 11)],
    [(0, 21, 1), (1, 8, 1), (2, 2, 1)],
    [(2, 3, 2)],
    [(0, 22, 1)],
    [(3, 11, 13), (0, 23, 2)],
    [(2, 5, 1), (3, 24, 1)],
    [(1, 9, 7), (2, 6, 2)],
    [(1, 16, 3), (0, 25, 1), (2, 8, 4)],
    [(3, 25, 2), (1, 19, 2), (2, 12, 1)],
    [(0, 26, 17)],
    [(2, 13, 1), (1, 21, 1)],
    [(0, 43, 1), (1, 22, 8), (3, 27, 5)],
    [(0, 44, 2), (2, 14, 1), (1, 30, 1)],
    [(3, 32, 3), (1, 31, 1)],
)
WHOLE_PROMPTS: tuple[Rows, ...] = ([(0, 0, 6)], [(0, 0, 1), (1, 0, 9)], [(0, 0, 3), (1, 0, 1), (2, 0, 1)],
                                   [(0, 0, 2), (1, 0, 13)], [(0, 0, 1)], [(0, 0, 4), (1, 0, 4)])  # fmt: skip
"""Of an encoder, which takes no pieces."""


@dataclass(frozen=True)
class Evidence:
    """What really happened, by operator."""

    parameters: Mapping[str, tuple[int, ...]]
    """Of torch's module."""
    features: Mapping[int | None, np.ndarray]
    """A row for each step, of one layer: experts that were chosen differ from layer to layer."""
    counts: Mapping[str, Mapping[str, Sequence[int]]]
    """By operator and by what is counted, in each step."""
    read: Mapping[str, frozenset[str]]
    """Parameters that each operator looked at, as named within its layer."""


def evidence_of(model: Architecture) -> Evidence:
    """Carry the steps out, each operator whole."""
    steps = WHOLE_PROMPTS if model.is_encoder else STEPS
    notes = [{node: touched for (_, node), touched in step.items()} for step in carried_out(model, steps)]
    shapes = [StepShape.of(chunks_of(rows), Traits.of(model)) for rows in steps]
    features = {layer: features_of(shapes, notes, layer) for layer in (None, *range(len(model.layers)))}
    counts = {
        node: {
            "dense_flops": [step[node].dense_flops for step in notes],
            "flops": [priced_flops(model, node, rows, step[node]) for rows, step in zip(steps, notes, strict=True)],
            "moved_bytes": [step[node].moved_bytes(FORMATS) for step in notes],
            **{f"written {place}": [step[node].written[place] for step in notes]
               for place in range(len(notes[0][node].written))},
        }
        for node in notes[0]
    }  # fmt: skip
    read = {node: frozenset(touched.weights) for node, touched in notes[0].items()}
    return Evidence(module_parameters(model), features, counts, read)


def module_parameters(model: Architecture) -> dict[str, tuple[int, ...]]:
    """Of torch's module, without storage."""
    return {name: tuple(each.shape) for name, each in unfilled_transformer(model).named_parameters()}


def features_of(
    shapes: Sequence[StepShape], notes: Sequence[Mapping[str, Touched]], layer: int | None
) -> np.ndarray:
    """With the experts that were really chosen in this layer; for what has none, in any."""
    routers = [node for node in notes[0] if node.endswith(".router")]
    mine = f"layers.{layer}.router"
    node = mine if mine in routers else next(iter(routers), None)
    active = [step[node].active_experts if node else 0 for step in notes]
    return np.array([shape._replace(active_experts=number or 0) for shape, number in
                     zip(shapes, active, strict=True)], dtype=np.int64)  # fmt: skip


# --- arithmetic under the mask ------------------------------------------------------------------------------


def priced_flops(model: Architecture, node: str, rows: Rows, touched: Touched) -> int:
    """What is left of torch's count where a mask hides keys."""
    _, index, name = node.split(".") if node.startswith("layers.") else ("", "0", node)
    if name != "attention":
        return touched.dense_flops
    return sum(attention_flops(model.layers[int(index)], context, new) for _, context, new in rows)


def attention_flops(layer: LayerSpec, context: int, new: int) -> int:
    """Products of queries with the keys they see, and of the shares with values."""
    attention = layer.attention
    assert attention is not None and not isinstance(attention, LinearAttention)
    heads = attention.num_attention_heads
    if isinstance(attention, Attention):
        return visible_pairs(attention, context, new) * heads * 4 * attention.head_dim
    expanded = attention.qk_nope_head_dim + attention.v_head_dim
    rank, rope = attention.kv_lora_rank, attention.qk_rope_head_dim
    if new == 1:
        return heads * 2 * (rank * expanded + (context + 1) * (rank + rope + rank))
    pairs = visible_pairs(attention, context, new)
    return heads * 2 * ((context + new) * rank * expanded + pairs * (expanded + rope))


def visible_pairs(attention: Attention | LatentAttention, context: int, new: int) -> int:
    """Query by query under the explicit mask."""
    query = np.arange(context, context + new)[:, None]
    key = np.arange(context + new)[None, :]
    is_seen = np.ones((new, context + new), dtype=bool)
    if isinstance(attention, LatentAttention) or attention.causal:
        is_seen &= key <= query
    if isinstance(attention, Attention) and attention.sliding_window is not None:
        is_seen &= key > query - attention.sliding_window
    return int(is_seen.sum())


# --- the checker --------------------------------------------------------------------------------------------


def flaws(operators: Sequence[Operator], evidence: Evidence) -> list[str]:
    """Everything in which operators differ from the evidence, in words."""
    nodes = [operator.node for operator in operators]
    found = [f"{node} was never carried out" for node in set(nodes) - evidence.counts.keys()]
    found += [f"{node} is not among the operators" for node in evidence.counts.keys() - set(nodes)]
    found += [f"{node} is there twice" for node in set(nodes) if nodes.count(node) > 1]
    named = {parameter.name for operator in operators for parameter in operator.parameters}
    found += [f"{name} belongs to no operator" for name in evidence.parameters.keys() - named]
    return found + [flaw for operator in operators if operator.node in evidence.counts
                    for flaw in operator_flaws(operator, evidence)]  # fmt: skip


def operator_flaws(operator: Operator, evidence: Evidence) -> list[str]:
    """Those of one operator alone."""
    amounts, expected = amounts_of(operator), evidence.counts[operator.node]
    features = evidence.features[operator.layer]
    found = [f"{operator.node}: {name} is counted {'once too often' if name in amounts else 'nowhere'}"
             for name in amounts.keys() ^ expected.keys()]  # fmt: skip
    for name in amounts.keys() & expected.keys():
        planned = features @ np.array(amounts[name].coefficients, dtype=np.int64)
        if not np.array_equal(planned, expected[name]):
            found.append(f"{operator.node}: {name} {planned.tolist()} planned, {list(expected[name])} happened")
    for parameter in operator.parameters:
        found += parameter_flaws(parameter, evidence.parameters)
    looked_at, listed = evidence.read[operator.node], {_short(each.name) for each in operator.parameters}
    return found + [f"{operator.node}: {name} is read or listed only" for name in looked_at ^ listed]


def amounts_of(operator: Operator) -> dict[str, Amount]:
    """Everything that is counted of an operator."""
    return {
        "dense_flops": operator.dense_flops,
        "flops": total(work.flops for work in operator.works),
        "moved_bytes": total(work.moved_bytes for work in operator.own_works),
        **{f"written {place}": value.elements for place, value in enumerate(operator.writes)},
    }


def parameter_flaws(parameter: Parameter, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Of a parameter that is held whole."""
    whole = shapes.get(parameter.name)
    if parameter.shape == whole == parameter.whole_shape and parameter.start == 0:
        return []
    return [f"{parameter.name}: {parameter.shape} from {parameter.start} of {parameter.whole_shape}, is {whole}"]


def in_layer(operator: Operator, layer: int) -> Operator:
    """The same operator, as it would be called in another layer."""
    if operator.layer is None:
        return operator
    old, new = f"layers.{operator.layer}.", f"layers.{layer}."
    parameters = tuple(replace(each, name=each.name.replace(old, new)) for each in operator.parameters)
    return replace(operator, layer=layer, parameters=parameters)


def _short(name: str) -> str:
    return ".".join(name.split(".")[-2:])
