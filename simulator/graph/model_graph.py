"""A model as a whole: its operators in order, as a graph, and what they add up to."""

from __future__ import annotations

from typing import Literal

import networkx as nx

from simulator.graph.attention import cached
from simulator.graph.delta import state_elements
from simulator.graph.operators import OperatorFactory
from simulator.graph.shape import Amount
from simulator.graph.share import Share
from simulator.graph.work import Formats, Operator, Parameter, byte_amount
from simulator.specs.architecture import Architecture

WHOLE = Share()


def model_operators(model: Architecture, formats: Formats) -> tuple[Operator, ...]:
    """Every operator of an unplaced forward pass, in program order."""
    factory = OperatorFactory(model, WHOLE, formats)
    layers = (
        operator
        for index in range(model.num_hidden_layers)
        for operator in factory.layer(index, factory.leaves_branch(0, index))
    )
    head = factory.head(factory.leaves_branch(0, model.num_hidden_layers))
    end = () if model.is_encoder else (factory.sample(),)
    return (*factory.embed(), *layers, *head, *end)


Part = Literal["attention", "mlp", "experts", "shared_experts", "embed", "head"]
"""What an operator belongs to: a part of its layer, or what stands before or after the layers."""

_HEAD = ("final_norm", "project_out", "lm_head", "sample", "pool")
_MLP = ("mlp_norm", "up_proj", "activation", "down_proj", "router", "expert_add", "branch_add",
        "mlp_post_norm")  # fmt: skip


def operator_names(model: Architecture) -> tuple[tuple[int | None, str, Part], ...]:
    """Layer, name and part of every operator, in program order."""
    plain = Formats("bf16", "bf16", "bf16")
    return tuple((o.layer, o.name, _part_of(o)) for o in model_operators(model, plain))


def _part_of(operator: Operator) -> Part:
    name = operator.name
    if operator.layer is None:
        return "head" if name in _HEAD else "embed"
    if name in _MLP:
        return "mlp"
    if name.startswith("shared_"):
        return "shared_experts"
    return "experts" if name.startswith("expert_") else "attention"


def work_graph(model: Architecture, formats: Formats) -> nx.DiGraph[str]:
    """The operators as a graph: node `layers.3.attention` carries `operator`, an edge the `role` of the
    value that flows along it; an edge from `sample` back to `embed` closes a decoder's token loop."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    written_by: dict[str, str] = {}
    for operator in model_operators(model, formats):
        graph.add_node(operator.node, operator=operator)
        for role in operator.reads:
            if role in written_by:
                graph.add_edge(written_by[role], operator.node, role=role)
        written_by.update({value.role: operator.node for value in operator.writes})
    if not model.is_encoder:
        graph.add_edge("sample", "embed", role="next_ids")
    return graph


def parameters_of(model: Architecture, formats: Formats) -> dict[str, Parameter]:
    """Every parameter once, by name; a tied head adds none."""
    return {p.name: p for operator in model_operators(model, formats) for p in operator.parameters}


def parameter_count(model: Architecture, formats: Formats) -> int:
    """Parameters of the model; equal to those of the network torch builds."""
    return sum(parameter.elements for parameter in parameters_of(model, formats).values())


def kv_bytes_per_token(model: Architecture, formats: Formats) -> int:
    """Bytes that one cached token takes in all layers together."""
    kept = (cached(layer, WHOLE) for layer in model.layers)
    return sum(
        byte_amount(Amount.of(one=each.elements), formats.kv_cache).per("one") for each in kept if each
    )


def state_bytes_per_sequence(model: Architecture, formats: Formats) -> int:
    """Bytes that one sequence takes whatever its length: the states of linear attention."""
    elements = sum(state_elements(layer, WHOLE) for layer in model.layers)
    return byte_amount(Amount.of(one=elements), formats.activations).per("one")
