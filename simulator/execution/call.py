"""What the implementation of a placed operator is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from simulator.execution import kernels
from simulator.graph.shape import Chunk
from simulator.graph.share import Share
from simulator.specs.architecture import (
    Architecture,
    Attention,
    Experts,
    LatentAttention,
    LinearAttention,
    Mlp,
)

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Call:
    """What an operator's implementation sees: values and weights of its own memory only."""

    model: Architecture
    operator: str
    layer: int | None
    share: Share
    chunks: Sequence[Chunk]
    values: Sequence[Tensor]
    weights: Mapping[str, Tensor]
    slab: Tensor | None
    """What the layer keeps of sequences in this memory: KV blocks, or states."""
    output_count: int
    slot_of: Mapping[int, int]
    """Row of each sequence in a slab of states."""
    experts_held: tuple[int, ...] | None = None
    """Which experts' matrices the weights are, in their order; None: all."""

    @cached_property
    def sizes(self) -> list[int]:
        """New tokens of each chunk."""
        return [chunk.new for chunk in self.chunks]

    def positions(self) -> Tensor:
        """Position of each new token of the batch."""
        pieces = [torch.arange(c.context, c.context + c.new) for c in self.chunks]
        return torch.cat([torch.empty(0, dtype=torch.int64), *pieces])

    def weight(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight"]

    def bias(self, name: str) -> Tensor | None:
        return self.weights.get(f"{name}.bias")

    def optional(self, name: str) -> Tensor | None:
        """A weight that some models have."""
        return self.weights.get(f"{name}.weight")

    @property
    def attention(self) -> Attention | LatentAttention | LinearAttention:
        assert self.layer is not None
        attention = self.model.layers[self.layer].attention
        assert attention is not None
        return attention

    @property
    def softmax(self) -> Attention:
        assert isinstance(self.attention, Attention)
        return self.attention

    @property
    def mlp(self) -> Mlp | Experts:
        assert self.layer is not None
        mlp = self.model.layers[self.layer].mlp
        assert mlp is not None
        return mlp

    @property
    def experts(self) -> Experts:
        assert isinstance(self.mlp, Experts)
        return self.mlp

    def cache(self) -> Tensor:
        assert self.slab is not None
        return self.slab


def side_by_side(call: Call, *names: str) -> Tensor:
    """Several projections of one input."""
    x_te = call.values[0]
    return torch.cat([kernels.linear(x_te, call.weight(n), call.bias(n)) for n in names], dim=-1)
