"""KV blocks in host memory, attention on the accelerator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import KvHome, NotPlaceable, Placement, Stage
from simulator.placement.strategies.base import OnRanks, missing_cache
from simulator.specs.architecture import Architecture


class KvOffload(OnRanks):
    """Weights stay on the accelerator, KV blocks in the memory of its host. Each step brings a layer's cached
    tokens over before its attention, while earlier layers compute, and takes the new ones back."""

    strategy: Literal["kv_offload"] = "kv_offload"
    buffers: Annotated[int, Field(ge=1)] = 2
    """Layers whose cached tokens may lie in the accelerator at once."""

    @property
    def label(self) -> str:
        return self.labelled(f"{self.buffers} buffers" if self.buffers != 2 else None)

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        lacking = missing_cache(self.strategy, model)
        if lacking is not None:
            return lacking
        ranks = self.ranks(model, machine)
        if isinstance(ranks, NotPlaceable):
            return ranks
        home = KvHome(machine.host_of(ranks[0]).name, buffers=self.buffers)
        return Placement(self.label, (Stage(ranks, 0, model.num_hidden_layers),), kv_home=home)
