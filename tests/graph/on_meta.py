"""What torch counts on modules without storage: FLOPs by module, and the numbers that a cache really keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from simulator.execution.network import Cache, Transformer
from simulator.graph.shape import StepShape
from simulator.graph.work import Operator

META = torch.device("meta")

MODULES = {
    "qkv_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn_gate_proj": ("attention.attn_gate_proj",),
    "latent_proj": ("attention.q_a_proj", "attention.kv_a_proj"),
    "q_proj": ("attention.q_proj", "attention.q_b_proj"),
    "qkvz_proj": ("attention.qkvz_proj", "attention.ba_proj"),
    "attention": ("attention",),
    "delta_rule": ("attention",),
    "o_proj": ("attention.o_proj",),
    "up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
    "router": ("mlp.router",),
    "expert_up_proj": ("mlp",),
    "expert_down_proj": ("mlp",),
    "shared_up_proj": ("mlp.shared.gate_proj", "mlp.shared.up_proj"),
    "shared_down_proj": ("mlp.shared.down_proj",),
    "shared_gate": ("mlp.shared_gate",),
    "project_in": ("project_in",),
    "project_out": ("project_out",),
    "lm_head": ("",),
}
"""The modules whose own FLOPs, those of their parts left out, are an operator's; others have none."""


def ids(tokens: int) -> torch.Tensor:
    return torch.empty(tokens, dtype=torch.int64, device=META)


def own_flops(network: Transformer, context: int, new: int) -> Counter[str]:
    """FLOPs of one chunk, its last row scored, by the innermost module that did them."""
    cache = Cache()
    if context:
        network(ids(context), cache)
    with FlopCounterMode(display=False) as counter:
        network(ids(new), cache, logits=1)
    in_all = {
        name.removeprefix("Transformer").removeprefix("."): sum(flops.values())
        for name, flops in counter.get_flop_counts().items()
        if name != "Global"
    }
    own = Counter(in_all)
    for name, flops in in_all.items():
        if name:
            own[_parent(name, in_all)] -= flops
    assert own.total() == counter.get_total_flops()
    return own


def _parent(name: str, known: dict[str, int]) -> str:
    """The next module above that was called."""
    above = name.rpartition(".")[0]
    return above if above in known else _parent(above, known)


def flop_flaws(operators: Sequence[Operator], shape: StepShape, counted: Counter[str]) -> list[str]:
    """Groups of operators whose dense FLOPs are not those of their modules, and modules nobody speaks for."""
    planned, found = Counter[tuple[str, ...]](), []
    for operator in operators:
        prefix = "" if operator.layer is None else f"layers.{operator.layer}."
        group = tuple(prefix + name for name in MODULES.get(operator.name, ()))
        planned[group] += operator.dense_flops.at(shape)
    left = +counted
    for group, flops in planned.items():
        happened = sum(left.pop(name, 0) for name in group)
        if happened != flops:
            found.append(f"{group}: {flops} FLOPs planned, {happened} counted")
    return found + [f"{name}: {flops} FLOPs of no operator" for name, flops in left.items()]


def kept_numbers(network: Transformer, tokens: int) -> list[int]:
    """How many numbers each layer keeps after so many tokens."""
    cache = Cache()
    network(ids(tokens), cache)
    return [sum(each.numel() for each in cache.state(layer) or ()) for layer in range(len(network.layers))]
