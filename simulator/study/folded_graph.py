"""The work graph of a model, layers of the same structure folded into one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import networkx as nx

from simulator.graph.model_graph import work_graph
from simulator.graph.shape import StepShape
from simulator.graph.work import Operator
from simulator.specs.architecture import Architecture, Experts, LayerSpec, LinearAttention
from simulator.specs.hardware import BROADER_CLASS
from simulator.study.model_question import ModelQuestion, Step
from simulator.study.show_model import Amounts, amounts_of, attention_kind, layer_kinds

NodeClass = Literal["matmul", "attention", "elementwise", "embedding", "sampling"]
"""The class of an operator's first kernel, the broader one where there is; attention where one of its
kernels is."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator."""

    name: str
    node_class: NodeClass
    reads: tuple[str, ...]
    """Roles of the values it takes."""
    keeps: Literal["KV", "state"] | None
    """What it uses that stays from step to step: keys and values, or a state of fixed size."""
    work: tuple[Amounts, ...]
    """In each step of the graph."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A value that flows; None stands for what comes before or after the layer."""

    source: str | None
    target: str | None
    role: str


@dataclass(frozen=True, slots=True)
class Block:
    """Layers of the same structure, of which the last is described."""

    layers: tuple[int, ...]
    attention: str
    feed_forward: str
    nodes: tuple[Node, ...]
    """In program order."""
    edges: tuple[Edge, ...]
    differ_in_size: bool
    """Whether other layers of the block have wider or narrower parts."""


@dataclass(frozen=True, slots=True)
class FoldedGraph:
    """A model from its token ids to the next ones, or to an encoder's vector."""

    name: str
    weights: str
    steps: tuple[Step, ...]
    before: tuple[Node, ...]
    """A chain: what leads to the first layer."""
    blocks: tuple[Block, ...]
    after: tuple[Node, ...]
    """A chain: what follows the last layer."""
    output: str
    """Role of the value that the last operator writes."""
    is_loop: bool
    """Whether the output comes back in as the next step's input."""


def folded_graph(question: ModelQuestion) -> FoldedGraph:
    """Fold the work graph of a model."""
    model = question.model
    graph = work_graph(model, question.formats)
    shapes = [step.shape(model) for step in question.steps]
    outside = [operator for operator in _operators(graph) if operator.layer is None]
    nodes = tuple(_node(operator, shapes, "KV") for operator in outside)
    first = next(index for index, each in enumerate(outside) if each.name in ("final_norm", "pool"))
    return FoldedGraph(
        model.name, question.formats.weights, question.steps, nodes[:first],
        tuple(_blocks(model, graph, shapes)), nodes[first:], outside[-1].writes[0].role,
        not model.is_encoder,
    )  # fmt: skip


def _node(operator: Operator, shapes: Sequence[StepShape], kept: Literal["KV", "state"]) -> Node:
    work = tuple(amounts_of(operator, shape) for shape in shapes)
    return Node(operator.name, _class_of(operator), operator.reads, kept if operator.uses_kv else None, work)


def _class_of(operator: Operator) -> NodeClass:
    found = [work.operator_class for work in operator.works]
    if "attention_prefill" in found or "attention_decode" in found:
        return "attention"
    return cast(NodeClass, BROADER_CLASS.get(found[0], found[0]))


def _operators(graph: nx.DiGraph[str]) -> list[Operator]:
    """In program order."""
    return [graph.nodes[node]["operator"] for node in graph]


def _blocks(model: Architecture, graph: nx.DiGraph[str], shapes: Sequence[StepShape]) -> Iterator[Block]:
    place = dict(_places(graph, model.num_hidden_layers))
    within: dict[int, list[Operator]] = defaultdict(list)
    for operator in _operators(graph):
        within[place[operator.node]].append(operator)
    alike: dict[tuple[str, str, tuple[str, ...]], list[int]] = defaultdict(list)
    for index, layer in enumerate(model.layers):
        names = tuple(operator.name for operator in within[index])
        alike[attention_kind(layer), _feed_forward(layer), names].append(index)
    kinds = [set(kind.layers) for kind in layer_kinds(model)]
    for (attention, feed_forward, _), layers in alike.items():
        sizes = sum(not kind.isdisjoint(layers) for kind in kinds)
        last = layers[-1]
        is_linear = isinstance(model.layers[last].attention, LinearAttention)
        nodes = tuple(_node(each, shapes, "state" if is_linear else "KV") for each in within[last])
        edges = tuple(dict.fromkeys(_edges(graph, place, last)))
        yield Block(tuple(layers), attention, feed_forward, nodes, edges, sizes > 1)


def _places(graph: nx.DiGraph[str], layer_count: int) -> Iterator[tuple[str, int]]:
    """The layer of each node; before them -1, after them their count."""
    outside = -1
    for operator in _operators(graph):
        if operator.layer is not None:
            outside = layer_count
        yield operator.node, outside if operator.layer is None else operator.layer


def _edges(graph: nx.DiGraph[str], place: Mapping[str, int], layer: int) -> Iterator[Edge]:
    """Values that flow inside a layer, into it, out of it, and past all its operators."""
    for source, target, data in graph.edges(data=True):
        start, end = place[source], place[target]
        if layer in (start, end) or start < layer < end:
            name = _name(source) if start == layer else None
            yield Edge(name, _name(target) if end == layer else None, data["role"])


def _name(node: str) -> str:
    """`attention` for `layers.3.attention`."""
    return node.rpartition(".")[2]


def _feed_forward(layer: LayerSpec) -> str:
    mlp = layer.mlp
    if mlp is None:
        return "none"
    if not isinstance(mlp, Experts):
        return "MLP"
    shared = " and one for all" if mlp.shared else ""
    return f"{mlp.num_experts} experts, {mlp.num_experts_per_tok} a token{shared}"
