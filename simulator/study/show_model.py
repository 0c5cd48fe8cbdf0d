"""`show --model`: what a model consists of, what it keeps in memory, and the work of a step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from simulator.graph.bench import parameter_bytes, weight_storage
from simulator.graph.model_graph import (
    kv_bytes_per_token,
    model_operators,
    parameters_of,
    state_bytes_per_sequence,
)
from simulator.graph.shape import StepShape
from simulator.graph.work import Formats, Operator
from simulator.specs.architecture import Architecture, Attention, Experts, LatentAttention, LayerSpec
from simulator.study.model_question import ModelQuestion, Step

ROLES = ("embedding", "positions", "attention", "mlp", "experts", "shared experts", "router", "norms", "head")
"""What a parameter is for; every one has one role."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """The work of an operator, or of several."""

    flops: int = 0
    """Under the causal mask; what a run prices."""
    dense_flops: int = 0
    """As torch's FlopCounterMode counts: attention as a full square."""
    moved_bytes: int = 0
    """Read from and written to the device's memory."""

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.flops + other.flops,
            self.dense_flops + other.dense_flops,
            self.moved_bytes + other.moved_bytes,
        )

    @property
    def intensity_flops_per_byte(self) -> float:
        """Arithmetic intensity: FLOPs for each byte moved."""
        return self.flops / self.moved_bytes if self.moved_bytes else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"intensity_flops_per_byte": self.intensity_flops_per_byte}


def amounts_of(operator: Operator, shape: StepShape) -> Amounts:
    """The work of one operator in a step."""
    return Amounts(
        sum(work.flops.at(shape) for work in operator.own_works),
        operator.dense_flops.at(shape),
        sum(work.moved_bytes.at(shape) for work in operator.own_works),
    )


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """An operator in all layers together."""

    operator: str
    times: int
    """How often it occurs in one pass."""
    work: Amounts


@dataclass(frozen=True, slots=True)
class StepSheet:
    """The work of one step."""

    step: Step
    active_experts: float
    """Expected number of experts of a layer that at least one token chose; 0 without experts."""
    rows: tuple[OperatorRow, ...]

    @property
    def total(self) -> Amounts:
        return sum((row.work for row in self.rows), Amounts())

    def shares(self, row: OperatorRow) -> tuple[float, float]:
        """Of the step's FLOPs, and of its moved bytes."""
        total = self.total
        return row.work.flops / (total.flops or 1), row.work.moved_bytes / (total.moved_bytes or 1)

    def as_dict(self) -> dict[str, Any]:
        step = self.step
        return {
            "name": step.name,
            "sequences": step.sequences,
            "context_tokens_per_sequence": step.context,
            "new_tokens_per_sequence": step.new,
            "active_experts": self.active_experts,
            **self.total.as_dict(),
            "operators": [
                {"operator": row.operator, "times": row.times, **row.work.as_dict()}
                | dict(zip(("share_of_flops", "share_of_moved_bytes"), self.shares(row), strict=True))
                for row in self.rows
            ],
        }


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """The parameters of one role and what they take."""

    role: str
    parameters: int
    weights_bytes: int
    formats: tuple[str, ...]
    """Of the matrices and vectors among them, those that take most first."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Layers of the same parts and sizes."""

    layers: tuple[int, ...]
    attention: str
    """`full`, `window 128`, `latent` ..."""
    heads: str
    feed_forward: str


@dataclass(frozen=True, slots=True)
class ModelSheet:
    """A model in figures."""

    name: str
    family: str
    formats: Formats
    parameters: int
    active_parameters: int
    """Of them those that one token's pass needs: of n experts it goes through k."""
    experts: tuple[int, int] | None
    """How many of how many experts a token goes through."""
    is_encoder: bool
    tied_head: bool
    """The head scores with the table of embeddings, which is counted once."""
    weights_bytes: int
    kv_bytes_per_token: int
    state_bytes_per_sequence: int
    """Kept of each sequence whatever its length, by linear attention."""
    layers: tuple[LayerKind, ...]
    memory: tuple[RoleMemory, ...]
    steps: tuple[StepSheet, ...]

    @property
    def layers_summary(self) -> str:
        """`24 x window 128, 24 x full`."""
        counted: Counter[str] = Counter()
        for kind in self.layers:
            counted["no attention" if kind.attention == "none" else kind.attention] += len(kind.layers)
        return ", ".join(f"{count} x {attention}" for attention, count in counted.items())

    def as_dict(self) -> dict[str, Any]:
        """One JSON document; every name carries its unit."""
        return {
            "name": self.name,
            "family": self.family,
            "is_encoder": self.is_encoder,
            "formats": asdict(self.formats),
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "weights_bytes": self.weights_bytes,
            "tied_head": self.tied_head,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "state_bytes_per_sequence": self.state_bytes_per_sequence,
            "layers_summary": self.layers_summary,
            "layers": [{"count": len(kind.layers), **asdict(kind)} for kind in self.layers],
            "memory": [asdict(row) for row in self.memory],
            "steps": [step.as_dict() for step in self.steps],
        }


def show_model(question: ModelQuestion) -> ModelSheet:
    """Count everything that `show --model` prints."""
    model, formats = question.model, question.formats
    memory, experts = memory_by_role(model, formats), model.experts
    parameters = sum(row.parameters for row in memory)
    in_experts = sum(row.parameters for row in memory if row.role == "experts")
    chosen = (experts.num_experts_per_tok, experts.num_experts) if experts else None
    idle = in_experts - in_experts * chosen[0] // chosen[1] if chosen else 0
    operators = model_operators(model, formats)
    return ModelSheet(
        model.name, model.family, formats, parameters, parameters - idle, chosen, model.is_encoder,
        model.tie_word_embeddings and not model.is_encoder, sum(row.weights_bytes for row in memory),
        kv_bytes_per_token(model, formats), state_bytes_per_sequence(model, formats), layer_kinds(model),
        memory, tuple(_step_sheet(step, step.shape(model), operators) for step in question.steps),
    )  # fmt: skip


def _step_sheet(step: Step, shape: StepShape, operators: Iterable[Operator]) -> StepSheet:
    found: dict[str, list[Amounts]] = defaultdict(list)
    for operator in operators:
        found[operator.name].append(amounts_of(operator, shape))
    rows = (OperatorRow(name, len(works), sum(works, Amounts())) for name, works in found.items())
    return StepSheet(step, shape.active_experts, tuple(rows))


# --- memory -------------------------------------------------------------------------------------------------


def memory_by_role(model: Architecture, formats: Formats) -> tuple[RoleMemory, ...]:
    """Every parameter once, in the format it is kept in."""
    storage = weight_storage(model, formats)
    counts: Counter[str] = Counter()
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for name, parameter in parameters_of(model, formats).items():
        role = role_of(name)
        counts[role] += parameter.elements
        kept_in = storage.format_of(name, parameter.whole_shape[-1]).name
        sizes[role][kept_in] += parameter_bytes(storage, parameter)
    return tuple(
        RoleMemory(role, counts[role], found.total(), tuple(name for name, _ in found.most_common()))
        for role in ROLES
        if (found := sizes[role])
    )


def role_of(parameter: str) -> str:
    """What a parameter is for.

    >>> role_of("layers.3.attention.q_norm.weight"), role_of("layers.3.mlp.experts.up_proj.weight")
    ('norms', 'experts')
    """
    *place, module, _ = parameter.split(".")
    if module.endswith("norm"):
        return "norms"
    if not place:
        return {"embed": "embedding", "project_in": "embedding", "lm_head": "head", "project_out": "head",
                "positions": "positions", "token_types": "positions"}[module]  # fmt: skip
    if "experts" in place:
        return "experts"
    if "shared" in place or module == "shared_gate":
        return "shared experts"
    return "router" if module in ("router", "correction") else place[-1]


# --- layers -------------------------------------------------------------------------------------------------


def layer_kinds(model: Architecture) -> tuple[LayerKind, ...]:
    """Layers that are described alike, in order of their first."""
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, layer in enumerate(model.layers):
        found[attention_kind(layer), _heads(layer), _feed_forward(layer)].append(index)
    return tuple(LayerKind(tuple(layers), *text) for text, layers in found.items())


def attention_kind(layer: LayerSpec) -> str:
    """How tokens of a layer see each other."""
    attention = layer.attention
    if attention is None:
        return "none"
    if isinstance(attention, Attention):
        if attention.sliding_window:
            return f"window {attention.sliding_window:,}"
        return "full" if attention.causal else "full, both ways"
    return "latent" if isinstance(attention, LatentAttention) else "gated delta rule"


def _heads(layer: LayerSpec) -> str:
    attention = layer.attention
    if attention is None:
        return "-"
    if isinstance(attention, Attention):
        count, kv_count = attention.num_attention_heads, attention.num_key_value_heads
        shared = "" if count == kv_count else f" on {kv_count} KV head{'s' if kv_count > 1 else ''}"
        return f"{count} of {attention.head_dim}{shared}"
    if isinstance(attention, LatentAttention):
        queries = f"{attention.num_attention_heads} of {attention.qk_head_dim}"
        return f"{queries} on a vector of {attention.cached_width}"
    key_heads = f"{attention.num_key_heads} key heads of {attention.key_head_dim}"
    return f"{attention.num_value_heads} of {attention.value_head_dim} on {key_heads}"


def _feed_forward(layer: LayerSpec) -> str:
    mlp = layer.mlp
    if mlp is None:
        return "none"
    if not isinstance(mlp, Experts):
        return f"MLP of {mlp.intermediate_size:,}"
    routed = (
        f"{mlp.num_experts} experts of {mlp.expert.intermediate_size:,}, {mlp.num_experts_per_tok} a token"
    )
    return f"{routed}, and one of {mlp.shared.intermediate_size:,} for all" if mlp.shared else routed
