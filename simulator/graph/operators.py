"""The work graph: every operator of one forward pass, whole or as one tensor-parallel rank's share.

An operator says which parameters it reads, which values it consumes and produces, and what it costs as
amounts of the step's features. Lowering turns operators into tasks; `work_graph` joins them for people.

Two counts of arithmetic are kept. `dense_flops` is what torch's FlopCounterMode reports: every
multiply-add of a matmul as two, attention as the full square, everything else nothing. `flops` is the
work under the causal mask and is what gets priced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import networkx as nx

from simulator.graph.shape import NOTHING, Amount, split_evenly, starts_of
from simulator.specs.hardware import ITEM_BYTES, Precision
from simulator.specs.model import Architecture

TOKEN_ID_BYTES = 8
"""A token id travels as a 64-bit integer, as torch keeps it."""

OperatorClass = Literal[
    "matmul", "attention_prefill", "attention_decode", "elementwise", "embedding", "sampling"
]


@dataclass(frozen=True, slots=True)
class Formats:
    """The number format of each kind of tensor in a run."""

    weights: Precision
    activations: Precision
    kv_cache: Precision

    @property
    def matmul(self) -> tuple[Precision, ...]:
        """The formats a matmul may run in, best first: 8-bit floats multiply as they are where the
        device can, narrower and integer weights are widened to the activations' format first."""
        if self.weights in ("fp4", "int4", "int8"):
            return (self.activations,)
        return (self.weights, self.activations)


def byte_amount(elements: Amount, precision: Precision) -> Amount:
    """Bytes of so many elements; half bytes round up, coefficient by coefficient."""
    bits = round(ITEM_BYTES[precision] * 8)
    return Amount(tuple(-(-count * bits // 8) for count in elements.coefficients))


@dataclass(frozen=True, slots=True)
class Share:
    """What one of `degree` tensor-parallel ranks holds of every layer: whole heads, columns of the MLP,
    rows of the vocabulary. Degree 1 is the whole model.

    With more ranks than KV heads, each rank keeps a copy of the one head its queries need.
    """

    rank: int
    degree: int
    head_start: int
    head_count: int
    kv_head_start: int
    kv_head_count: int
    mlp_start: int
    mlp_count: int
    vocab_start: int
    vocab_count: int

    @classmethod
    def of(cls, model: Architecture, rank: int = 0, degree: int = 1) -> Share:
        """Cut `model` for `rank` of `degree`; the caller has checked `divides`."""
        heads = model.num_attention_heads // degree
        mlp = split_evenly(model.intermediate_size, degree)
        vocab = split_evenly(model.vocab_size, degree)
        return cls(
            rank, degree,
            head_start=rank * heads, head_count=heads,
            kv_head_start=rank * model.num_key_value_heads // degree,
            kv_head_count=max(1, model.num_key_value_heads // degree),
            mlp_start=starts_of(mlp)[rank], mlp_count=mlp[rank],
            vocab_start=starts_of(vocab)[rank], vocab_count=vocab[rank],
        )  # fmt: skip


def why_not_divisible(model: Architecture, degree: int) -> str | None:
    """What stops `model` from being cut into `degree` tensor-parallel ranks, or None."""
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % degree:
        return f"{heads} attention heads cannot be shared evenly by {degree} devices"
    if kv_heads % degree and degree % kv_heads:
        return f"{kv_heads} key-value heads can be neither split nor copied evenly over {degree} devices"
    return None


@dataclass(frozen=True, slots=True)
class Parameter:
    """The part of a named parameter that an operator of one rank reads."""

    name: str
    shape: tuple[int, ...]
    """Of the part held, not of the whole parameter."""
    axis: int | None = None
    """The axis that is cut; None where the whole parameter is held."""
    start: int = 0

    @property
    def elements(self) -> int:
        result = 1
        for size in self.shape:
            result *= size
        return result


@dataclass(frozen=True, slots=True)
class Value:
    """What flows between operators: `elements` numbers known by their role."""

    role: str
    elements: Amount
    is_token_ids: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """One kernel's worth of arithmetic and memory traffic."""

    operator_class: OperatorClass
    formats: tuple[Precision, ...]
    """Acceptable number formats, best first."""
    flops: Amount
    moved_bytes: Amount


@dataclass(frozen=True, slots=True)
class Operator:
    """One node of the work graph, or one rank's share of it."""

    name: str
    layer: int | None
    reads: tuple[str, ...]
    writes: tuple[Value, ...]
    works: tuple[Work, ...]
    dense_flops: Amount = NOTHING
    parameters: tuple[Parameter, ...] = ()
    uses_kv: bool = False
    partial: bool = False
    """Each rank holds a summand of the output, which a reduction must add up."""


class OperatorFactory:
    """Builds the operators of one rank's share of a model in the given number formats."""

    def __init__(self, model: Architecture, share: Share, formats: Formats) -> None:
        self.model, self.share, self.formats = model, share, formats
        self.hidden = Amount.of(tokens=model.hidden_size)
        self.query_count = share.head_count * model.head_dim
        self.kv_count = share.kv_head_count * model.head_dim

    def embed(self) -> Operator:
        """Look token ids (and positions) up; a rank adds nothing for ids outside its rows."""
        model, share = self.model, self.share
        table = Parameter("embed.weight", (share.vocab_count, model.hidden_size), 0, share.vocab_start)
        parameters: tuple[Parameter, ...] = (table,)
        if model.positions == "learned" and share.rank == 0:
            shape = (model.max_position_embeddings, model.hidden_size)
            parameters += (Parameter("positions.weight", shape),)
        return Operator(
            "embed", None, ("ids",), (Value("residual", self.hidden),),
            (self._elementwise(self.hidden * 2, "embedding"),), parameters=parameters, partial=True,
        )  # fmt: skip

    def layer(self, index: int, has_branch: bool) -> tuple[Operator, ...]:
        """The operators of layer `index`. `has_branch`: the layer before left its MLP's output to be
        added to the residual stream by this layer's first operator."""
        return (
            self._norm("attn_norm", index, has_branch, Amount.of(tokens=1)),
            self._qkv_proj(index),
            self._rotary(index),
            self._attention(index),
            self._row_parallel("o_proj", index, "context", self.query_count, self.share.head_start
                               * self.model.head_dim, self.model.output_bias),
            self._norm("mlp_norm", index, True, Amount.of(tokens=1)),
            self._up_proj(index),
            self._activation(index),
            self._row_parallel("down_proj", index, "activated", self.share.mlp_count,
                               self.share.mlp_start, self.model.mlp_bias),
        )  # fmt: skip

    def residual_add(self, layer: int) -> Operator:
        """Fold the last branch of a stage into the residual stream, so that one tensor moves on."""
        return Operator(
            "residual_add", layer, ("residual", "branch"), (Value("residual", self.hidden),),
            (self._elementwise(self.hidden * 3),),
        )  # fmt: skip

    def head(self) -> tuple[Operator, ...]:
        """Normalise the rows whose next token is wanted and score this rank's part of the vocabulary."""
        model, share = self.model, self.share
        rows = Amount.of(logit_rows=1)
        name = "embed.weight" if model.tie_word_embeddings else "lm_head.weight"
        table = Parameter(name, (share.vocab_count, model.hidden_size), 0, share.vocab_start)
        scores = Value("logits", rows * share.vocab_count)
        return (
            self._norm("final_norm", None, True, rows),
            self._matmul("lm_head", None, "normed", rows, (table,), model.hidden_size, scores),
        )

    def sample(self) -> Operator:
        """Choose the most likely token of each row, from all its logits."""
        rows = Amount.of(logit_rows=1)
        return Operator(
            "sample", None, ("logits",), (Value("next_ids", rows, is_token_ids=True),),
            (self._elementwise(rows * self.model.vocab_size, "sampling"),),
        )  # fmt: skip

    def _norm(self, name: str, layer: int | None, has_branch: bool, rows: Amount) -> Operator:
        hidden = self.model.hidden_size
        prefix = name if layer is None else f"layers.{layer}.{name}"
        kinds = ("weight", "bias") if self.model.norm == "layer" else ("weight",)
        output: tuple[Value, ...] = (Value("normed", rows * hidden),)
        keeps_residual = has_branch and layer is not None
        if keeps_residual:
            output = (Value("residual", self.hidden), *output)
        reads = ("residual", "branch") if has_branch else ("residual",)
        return Operator(
            name, layer, reads, output,
            (self._elementwise(rows * (hidden * (len(reads) + len(output)))),),
            parameters=tuple(Parameter(f"{prefix}.{kind}", (hidden,)) for kind in kinds),
        )  # fmt: skip

    def _qkv_proj(self, layer: int) -> Operator:
        model, share = self.model, self.share
        parameters: list[Parameter] = []
        for name, count, start in (
            ("q_proj", self.query_count, share.head_start * model.head_dim),
            ("k_proj", self.kv_count, share.kv_head_start * model.head_dim),
            ("v_proj", self.kv_count, share.kv_head_start * model.head_dim),
        ):
            parameters += _column_parallel(f"layers.{layer}.{name}", count, model.hidden_size, start,
                                           model.qkv_bias)  # fmt: skip
        output = Value("qkv", Amount.of(tokens=self.query_count + 2 * self.kv_count))
        return self._matmul("qkv_proj", layer, "normed", Amount.of(tokens=1), tuple(parameters),
                            model.hidden_size, output)  # fmt: skip

    def _rotary(self, layer: int) -> Operator:
        """Rotate queries and keys by their positions and write keys and values to the cache."""
        query = Amount.of(tokens=self.query_count)
        kv = Amount.of(tokens=2 * self.kv_count)
        activations, kv_bytes = self._bytes(query * 2 + kv), byte_amount(kv, self.formats.kv_cache)
        work = Work("elementwise", (self.formats.activations,), NOTHING, activations + kv_bytes)
        return Operator("rotary", layer, ("qkv",), (Value("query", query),), (work,), uses_kv=True)

    def _attention(self, layer: int) -> Operator:
        per_pair = 4 * self.query_count
        kv = 2 * self.kv_count
        query_and_context = 2 * self.query_count
        prefill = Work(
            "attention_prefill", (self.formats.activations,), Amount.of(prefill_pairs=per_pair),
            byte_amount(Amount.of(prefill_span=kv), self.formats.kv_cache)
            + self._bytes(Amount.of(prefill_tokens=query_and_context)),
        )  # fmt: skip
        decode = Work(
            "attention_decode", (self.formats.activations,), Amount.of(decode_span=per_pair),
            byte_amount(Amount.of(decode_span=kv), self.formats.kv_cache)
            + self._bytes(Amount.of(decode_tokens=query_and_context)),
        )  # fmt: skip
        return Operator(
            "attention", layer, ("query",), (Value("context", Amount.of(tokens=self.query_count)),),
            (prefill, decode), Amount.of(prefill_square=per_pair, decode_span=per_pair), uses_kv=True,
        )  # fmt: skip

    def _up_proj(self, layer: int) -> Operator:
        model, share = self.model, self.share
        names = ("gate_proj", "up_proj") if model.gated_mlp else ("up_proj",)
        parameters: list[Parameter] = []
        for name in names:
            parameters += _column_parallel(f"layers.{layer}.{name}", share.mlp_count, model.hidden_size,
                                           share.mlp_start, model.mlp_bias)  # fmt: skip
        output = Value("expanded", Amount.of(tokens=len(names) * share.mlp_count))
        return self._matmul("up_proj", layer, "normed", Amount.of(tokens=1), tuple(parameters),
                            model.hidden_size, output)  # fmt: skip

    def _activation(self, layer: int) -> Operator:
        count = self.share.mlp_count
        moved = Amount.of(tokens=(3 if self.model.gated_mlp else 2) * count)
        return Operator(
            "activation", layer, ("expanded",), (Value("activated", Amount.of(tokens=count)),),
            (self._elementwise(moved),),
        )  # fmt: skip

    def _row_parallel(
        self, name: str, layer: int, source: str, count: int, start: int, has_bias: bool
    ) -> Operator:
        """A projection whose inputs are shared out: ranks hold summands, the first one adds the bias."""
        prefix, hidden = f"layers.{layer}.{name}", self.model.hidden_size
        parameters: tuple[Parameter, ...] = (Parameter(f"{prefix}.weight", (hidden, count), 1, start),)
        if has_bias and self.share.rank == 0:
            parameters += (Parameter(f"{prefix}.bias", (hidden,)),)
        output = Value("branch", self.hidden)
        return self._matmul(name, layer, source, Amount.of(tokens=1), parameters, count, output, True)

    def _matmul(
        self, name: str, layer: int | None, source: str, rows: Amount, parameters: tuple[Parameter, ...],
        inner: int, output: Value, partial: bool = False,
    ) -> Operator:  # fmt: skip
        """A projection of `rows` vectors of `inner` numbers by the matrices among `parameters`."""
        flops = rows * (2 * sum(p.elements for p in parameters if len(p.shape) == 2))
        weights = Amount.of(one=sum(p.elements for p in parameters))
        moved = byte_amount(weights, self.formats.weights) + self._bytes(rows * inner + output.elements)
        work = Work("matmul", self.formats.matmul, flops, moved)
        return Operator(name, layer, (source,), (output,), (work,), flops, parameters, partial=partial)

    def _elementwise(self, elements: Amount, operator_class: OperatorClass = "elementwise") -> Work:
        return Work(operator_class, (self.formats.activations,), NOTHING, self._bytes(elements))

    def _bytes(self, elements: Amount) -> Amount:
        return byte_amount(elements, self.formats.activations)


def _column_parallel(
    prefix: str, count: int, inner: int, start: int, has_bias: bool
) -> tuple[Parameter, ...]:
    """A projection whose outputs are shared out, and with them its bias."""
    weight = Parameter(f"{prefix}.weight", (count, inner), 0, start)
    return (weight, Parameter(f"{prefix}.bias", (count,), 0, start)) if has_bias else (weight,)


def model_operators(model: Architecture, formats: Formats) -> tuple[Operator, ...]:
    """Every operator of an unplaced forward pass, in program order."""
    factory = OperatorFactory(model, Share.of(model), formats)
    layers = (
        operator
        for index in range(model.num_hidden_layers)
        for operator in factory.layer(index, has_branch=index > 0)
    )
    return (factory.embed(), *layers, *factory.head(), factory.sample())


def work_graph(model: Architecture, formats: Formats) -> nx.DiGraph[str]:
    """The operators as a graph: node `layers.3.attention` carries `operator`, an edge the `role` of the
    value that flows along it, and the edge from `sample` back to `embed` closes the token loop."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    written_by: dict[str, str] = {}
    for operator in model_operators(model, formats):
        node = operator.name if operator.layer is None else f"layers.{operator.layer}.{operator.name}"
        graph.add_node(node, operator=operator)
        for role in operator.reads:
            if role in written_by:
                graph.add_edge(written_by[role], node, role=role)
        written_by.update({value.role: node for value in operator.writes})
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
    per_layer = Amount.of(one=2 * model.num_key_value_heads * model.head_dim)
    return model.num_hidden_layers * byte_amount(per_layer, formats.kv_cache).coefficients[0]
