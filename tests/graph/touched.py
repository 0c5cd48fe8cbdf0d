"""What each operator of a placed model really touches, element by element: a plan is carried out on tensors, and
its operators' reads and writes are counted. What an operator is said to leave alone is no number while it runs.

Kernels between which a placed operator is divided hand numbers on through memory too; what, is stated here:

    router              the scores, from the product to the choice
    project_in          its product, where positions are added to it
    latent attention    keys and values expanded for many queries; for one query a head's query and output as
                        wide as the latent vector, each written by one kernel and read by the next
    delta rule          what the convolution makes of queries, keys and values; and a sequence's state is read
                        and written once a step

Sinks are read for each chunk anew, all other weights once a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from simulator.execution import kv
from simulator.execution.call import Call, Outputs
from simulator.execution.flop_count import FlopCount
from simulator.execution.interpreter import Interpreter, Sequences
from simulator.execution.operators import OPERATORS
from simulator.execution.replay import random_model
from simulator.execution.stores import Stores
from simulator.graph.shape import Chunk
from simulator.graph.work import Formats
from simulator.placement.placement import Placement, Stage
from simulator.placement.plan import Plan
from simulator.placement.program import Program
from simulator.specs.architecture import Architecture, LatentAttention
from tests.placed import FLOAT64, machine

ITEM_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp8": 1}
ID_BYTES = 8
BLOCK_TOKENS, BLOCKS = 4, 16

Node = tuple[int, str]
"""A rank and the node of one of its operators."""
Rows = Sequence[tuple[int, int, int]]
"""The chunks of a step as (sequence, context, new)."""


@dataclass
class Touched:
    """Elements by what they are, in one operator of one step."""

    weights: Counter[str] = field(default_factory=Counter)
    """By parameter, as named within its layer."""
    activations: int = 0
    cached: int = 0
    ids: int = 0
    written: list[int] = field(default_factory=list)
    """Of each value."""
    dense_flops: int = 0
    active_experts: int | None = None
    """Chosen by somebody, if this is a router."""

    def moved_bytes(self, formats: Formats) -> int:
        """In plain formats."""
        return (
            sum(self.weights.values()) * ITEM_BYTES[formats.weights]
            + self.activations * ITEM_BYTES[formats.activations]
            + self.cached * ITEM_BYTES[formats.kv_cache]
            + self.ids * ID_BYTES
        )


def carried_out(model: Architecture, steps: Sequence[Rows], degree: int = 1) -> list[dict[Node, Touched]]:
    """What every operator of every rank touches in each step; all sequences have prompts of 64 tokens, of
    which the steps take their pieces."""
    stage = Stage(tuple(f"gpu-{rank}" for rank in range(degree)), 0, model.num_hidden_layers)
    program = Program(model, Placement("stage", (stage,)), machine(), FLOAT64)
    numbers = {number for rows in steps for number, _, _ in rows}
    ids = torch.randint(0, model.vocab_size, (len(numbers), 64), generator=torch.Generator().manual_seed(0))
    network = random_model(model, seed=1, storage=program.storage)
    sequences = Sequences({number: ids[number].tolist() for number in sorted(numbers)})
    interpreter = Interpreter(
        [program], network, sequences, Stores(program.machine), BLOCKS * len(numbers), BLOCK_TOKENS
    )
    found = []
    with torch.no_grad(), FlopCount() as counter, recording() as notes:
        for rows in steps:
            plan = Plan(program.template(1), (tuple(chunks_of(rows)),))
            for index, task in enumerate(plan.template.tasks):
                interpreter.begin(plan, index)
                flops = interpreter.end(plan, index, counter)
                if task.kind == "compute":
                    notes[-1][1].dense_flops = flops
            found.append(dict(notes))
            notes.clear()
    return found


def chunks_of(rows: Rows) -> Iterator[Chunk]:
    for number, context, new in rows:
        yield Chunk(number, context, new, False, tuple(range(number * BLOCKS, (number + 1) * BLOCKS)))


# --- counting -----------------------------------------------------------------------------------------------


class Watched(dict[str, Tensor]):
    """Weights that remember which of them were looked at."""

    def __init__(self, weights: Any) -> None:
        super().__init__(weights)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.update({name} & self.keys())
        return super().get(name, default)

    def values(self) -> Any:
        self.read.update(self)
        return super().values()


@contextmanager
def recording() -> Iterator[list[tuple[Node, Touched]]]:
    """Every operator that is called meanwhile, and what it touched."""
    notes: list[tuple[Node, Touched]] = []

    def counting_kv(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(slab: Tensor, *arguments: Any) -> Any:
            planes = function(slab, *arguments)
            moved = planes if planes is not None else arguments[1:]
            notes[-1][1].cached += sum(plane.numel() for plane in moved)
            return planes

        return call

    def counting(operator: Callable[[Call], Outputs]) -> Callable[[Call], Outputs]:
        def call(given: Call) -> Outputs:
            node = given.operator if given.layer is None else f"layers.{given.layer}.{given.operator}"
            values, weights = poisoned(given)
            notes.append(((given.share.rank, node), Touched()))
            outputs = operator(replace(given, values=values, weights=weights))
            assert not any(value.isnan().any() for value in outputs), f"{node} reads what it is said not to"
            note(notes[-1][1], given, weights, outputs)
            return outputs

        return call

    with ExitStack() as patched:
        for name in ("read", "write"):
            patched.enter_context(patch.object(kv, name, counting_kv(getattr(kv, name))))
        patched.enter_context(patch.dict(OPERATORS, {name: counting(each) for name, each in OPERATORS.items()}))
        yield notes


def poisoned(call: Call) -> tuple[list[Tensor], Watched]:
    """Values and weights, whatever the operator is said to leave alone being no numbers."""
    values, weights = list(call.values), dict(call.weights)
    if call.operator == "final_norm":
        last = torch.tensor(call.sizes).cumsum(0) - 1
        values = [spared(value, last) for value in values]
    if call.operator == "q_a_norm":
        values = [spared(values[0].T, torch.arange(len(weights["q_a_norm.weight"]))).T]
    if call.operator == "rotary" and isinstance(call.attention, LatentAttention):
        own = torch.arange(call.attention.q_lora_rank or 0, values[1].shape[1])
        values[1] = spared(values[1].T, own).T
    if call.operator == "embed":
        start, table = call.share.of(call.model.vocab_size).start, weights["embed.weight"]
        rows = (values[0] - start).unique()
        weights["embed.weight"] = spared(table, rows[(rows >= 0) & (rows < len(table))])
    if call.operator.startswith("expert_") and call.operator.endswith("_proj"):
        chosen = (values[1] != -1).any(dim=0).nonzero()[:, 0]
        weights = {name: spared(weight, chosen) for name, weight in weights.items()}
    return values, Watched(weights)


def spared(tensor: Tensor, rows: Tensor) -> Tensor:
    """These rows of a tensor; all others are no numbers."""
    kept = torch.full_like(tensor, float("nan"))
    kept[rows] = tensor[rows]
    return kept


def note(touched: Touched, call: Call, weights: Watched, outputs: Outputs) -> None:
    for value in outputs:
        touched.written.append(value.numel())
        _add(touched, value, value.numel())
    for value, elements in zip(call.values, read_elements(call), strict=True):
        _add(touched, value, elements)
    for name in sorted(weights.read):
        touched.weights[name] = weight_elements(call, name)
    touched.activations += handed_on(call, outputs)
    if call.operator == "router":
        touched.active_experts = int((outputs[0] != -1).any(dim=0).sum())


def _add(touched: Touched, value: Tensor, elements: int) -> None:
    if value.dtype == torch.int64:
        touched.ids += elements
    else:
        touched.activations += elements


def read_elements(call: Call) -> list[int]:
    """Of each value; all of it, but for what is known to be left alone."""
    tokens = sum(call.sizes)
    if call.operator == "final_norm":
        return [len(call.chunks) * value.shape[1] for value in call.values]
    if call.operator == "q_a_norm":
        return [tokens * len(call.weights["q_a_norm.weight"])]
    if call.operator == "rotary" and isinstance(call.attention, LatentAttention):
        return [call.values[0].numel(), tokens * call.attention.cached_width]
    if call.operator == "expert_up_proj":  # each token is gathered for each expert it chose
        return [call.experts.num_experts_per_tok * call.values[0].numel(), call.values[1].numel()]
    return [value.numel() for value in call.values]


def weight_elements(call: Call, name: str) -> int:
    """Of tables the rows looked up, of experts those that were chosen."""
    tokens, weight = sum(call.sizes), call.weights[name]
    if call.operator in ("embed", "project_in") and name in ("embed.weight", "positions.weight"):
        return tokens * weight.shape[1]
    if name == "token_types.weight":
        return weight.shape[1]
    if name == "sinks.weight":
        return len(call.chunks) * weight.numel()
    if call.operator.startswith("expert_"):
        active = int((call.values[1] != -1).any(dim=0).sum())
        return active * weight[0].numel()
    return weight.numel()


def handed_on(call: Call, outputs: Outputs) -> int:
    """Numbers written by one kernel of the operator and read by its next."""
    if call.operator == "router":
        return 2 * outputs[0].numel()
    if call.operator == "project_in" and call.model.positions is not None:
        return 2 * outputs[0].numel()
    if call.operator == "delta_rule":
        channels = sum(len(weight) for name, weight in call.weights.items() if "_conv." in name)
        return 2 * (sum(call.sizes) * channels + len(call.chunks) * call.cache().shape[1])
    if call.operator != "attention" or not isinstance(call.attention, LatentAttention):
        return 0
    expanded = call.weights["kv_b_proj.weight"].shape[0]
    latent = call.attention
    heads = expanded // (latent.qk_nope_head_dim + latent.v_head_dim)
    spans = [chunk.context + chunk.new for chunk in call.chunks if chunk.new > 1]
    single = len(call.chunks) - len(spans)
    return 2 * sum(spans) * expanded + 4 * single * heads * latent.kv_lora_rank
