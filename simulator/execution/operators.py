"""What each operator of a plan does with the tensors of its own memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simulator.execution import kv, network
from simulator.graph.operators import Share
from simulator.graph.shape import Chunk
from simulator.specs.model import Architecture


@dataclass(frozen=True, slots=True)
class Call:
    """What an operator's implementation sees: values and weights of its own memory only."""

    model: Architecture
    operator: str
    share: Share
    chunks: Sequence[Chunk]
    values: Sequence[Tensor]
    weights: Mapping[str, Tensor]
    slab: Tensor | None

    def positions(self) -> Tensor:
        """Position of each new token of the batch."""
        return torch.cat([torch.arange(c.context, c.context + c.new) for c in self.chunks])

    def weight(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight"]

    def bias(self, name: str) -> Tensor | None:
        return self.weights.get(f"{name}.bias")


def _embed(call: Call) -> Sequence[Tensor]:
    x_te = network.embed(call.values[0], call.weight("embed"), call.share.vocab_start)
    if "positions.weight" in call.weights:
        x_te = network.learned_positions(x_te, call.positions(), call.weight("positions"))
    return (x_te,)


def _norm(call: Call) -> Sequence[Tensor]:
    name = call.operator
    if len(call.values) == 1:
        return (network.normalise(call.model, call.values[0], call.weight(name), call.bias(name)),)
    x_te, update_te = call.values
    return network.add_normalise(call.model, x_te, update_te, call.weight(name), call.bias(name))


def _final_norm(call: Call) -> Sequence[Tensor]:
    """Of the last row of each chunk only."""
    last_r = torch.tensor([chunk.new for chunk in call.chunks]).cumsum(0) - 1
    x_re, update_re = (value[last_r] for value in call.values)
    weight_e, bias_e = call.weight("final_norm"), call.bias("final_norm")
    _, normed = network.add_normalise(call.model, x_re, update_re, weight_e, bias_e)
    return (normed,)


def _qkv_proj(call: Call) -> Sequence[Tensor]:
    names = ("q_proj", "k_proj", "v_proj")
    x_te = call.values[0]
    return (torch.cat([network.linear(x_te, call.weight(n), call.bias(n)) for n in names], dim=-1),)


def _rotary(call: Call) -> Sequence[Tensor]:
    """Rotate, and write keys and values to the cache."""
    share, head_dim = call.share, call.model.head_dim
    assert call.slab is not None
    counts = [share.head_count, share.kv_head_count, share.kv_head_count]
    q_thd, k_tgd, v_tgd = torch.split(_heads(call.values[0], head_dim), counts, dim=1)
    positions_t = call.positions()
    k_tgd = network.rotate(call.model, k_tgd, positions_t)
    sizes = [chunk.new for chunk in call.chunks]
    pieces = zip(call.chunks, torch.split(k_tgd, sizes), torch.split(v_tgd, sizes), strict=True)
    for chunk, k_ngd, v_ngd in pieces:
        kv.write(call.slab, chunk, k_ngd, v_ngd)
    return (network.rotate(call.model, q_thd, positions_t).flatten(1).clone(),)


def _attention(call: Call) -> Sequence[Tensor]:
    assert call.slab is not None
    q_thd = _heads(call.values[0], call.model.head_dim)
    sizes = [chunk.new for chunk in call.chunks]
    outputs = []
    for chunk, q_nhd in zip(call.chunks, torch.split(q_thd, sizes), strict=True):
        k_sgd, v_sgd = kv.read(call.slab, chunk.blocks, chunk.context + chunk.new)
        k_sgd, v_sgd = k_sgd.to(q_nhd.dtype), v_sgd.to(q_nhd.dtype)
        outputs.append(network.attention_one(q_nhd, k_sgd, v_sgd, chunk.context).flatten(1))
    return (torch.cat(outputs),)


def _project(call: Call) -> Sequence[Tensor]:
    name = call.operator
    return (network.linear(call.values[0], call.weight(name), call.bias(name)),)


def _up_proj(call: Call) -> Sequence[Tensor]:
    names = [name for name in ("gate_proj", "up_proj") if f"{name}.weight" in call.weights]
    x_te = call.values[0]
    return (torch.cat([network.linear(x_te, call.weight(n), call.bias(n)) for n in names], dim=-1),)


def _activation(call: Call) -> Sequence[Tensor]:
    return (network.activate(call.model, call.values[0]),)


def _residual_add(call: Call) -> Sequence[Tensor]:
    return (call.values[0] + call.values[1],)


def _lm_head(call: Call) -> Sequence[Tensor]:
    (table,) = call.weights.values()
    return (network.linear(call.values[0], table),)


def _sample(call: Call) -> Sequence[Tensor]:
    return (network.sample(call.values[0]),)


OPERATORS: Mapping[str, Callable[[Call], Sequence[Tensor]]] = {
    "embed": _embed,
    "attn_norm": _norm,
    "qkv_proj": _qkv_proj,
    "rotary": _rotary,
    "attention": _attention,
    "o_proj": _project,
    "mlp_norm": _norm,
    "up_proj": _up_proj,
    "activation": _activation,
    "down_proj": _project,
    "residual_add": _residual_add,
    "final_norm": _final_norm,
    "lm_head": _lm_head,
    "sample": _sample,
}


def _heads(x_te: Tensor, head_dim: int) -> Tensor:
    """Channels as heads: `[t, heads, d]`."""
    return x_te.view(x_te.shape[0], -1, head_dim)
