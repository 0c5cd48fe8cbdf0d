"""KV blocks in host memory, and attention beside them on the processor."""

from __future__ import annotations

from typing import Literal

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import Elsewhere, KvHome, NotPlaceable, Placement, Stage
from simulator.placement.strategies.base import OnRanks, missing_cache, processor_beside
from simulator.specs.architecture import Architecture


class AttentionOffload(OnRanks):
    """Queries go to the KV blocks instead of the blocks to the queries: the processor attends where the cache
    lies, everything else stays on the accelerator. Decode reads much cache for little arithmetic, so it gains
    most (Sheng et al. 2023, arXiv 2303.06865); prompts are attended to on the accelerator unless `phases` is
    `all`, as in llama.cpp without KV offload."""

    strategy: Literal["attention_offload"] = "attention_offload"
    phases: Literal["decode", "all"] = "decode"
    """Whose attention the processor computes: that of chunks with one new token, or of all."""

    @property
    def label(self) -> str:
        return self.labelled(self.phases)

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        lacking = missing_cache(self.strategy, model)
        if lacking is not None:
            return lacking
        ranks = self.ranks(model, machine)
        if isinstance(ranks, NotPlaceable):
            return ranks
        cpu = processor_beside(machine, ranks[0])
        if isinstance(cpu, NotPlaceable):
            return cpu
        stages = (Stage(ranks, 0, model.num_hidden_layers),)
        if self.phases == "decode":
            home = KvHome(machine.memory_of(cpu), decode_device=cpu)
            return Placement(self.label, stages, kv_home=home)
        layers: frozenset[int | None] = frozenset(range(model.num_hidden_layers))
        beside = Elsewhere(cpu, frozenset({"rotary", "attention"}), layers)
        return Placement(self.label, stages, elsewhere=(beside,))
