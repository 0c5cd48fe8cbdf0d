"""Routed experts on the processor, everything else on the accelerator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import ExpertsAside, NotPlaceable, Placement, Stage
from simulator.placement.strategies.base import OnRanks, percent, processor_beside
from simulator.specs.architecture import Architecture, Experts
from simulator.specs.base import Spec


class Zipf(Spec):
    """Experts chosen by Zipf's law: the n-th most popular one in proportion to 1 / n^exponent."""

    zipf: Annotated[float, Field(ge=0, le=10)]
    """The exponent; 0 is evenly."""

    def chances(self, experts: Experts) -> tuple[float, ...]:
        """Of each expert, the most popular first, the probability that a token chooses it, at most 1; they
        add up to the number of experts a token chooses."""
        count, chosen = experts.num_experts, experts.num_experts_per_tok
        weights = [1 / (rank + 1) ** self.zipf for rank in range(count)]
        certain = 0
        while True:
            scale = (chosen - certain) / sum(weights[certain:]) if certain < count else 0.0
            if certain == chosen or weights[certain] * scale <= 1:
                return (*(1.0,) * certain, *(weight * scale for weight in weights[certain:]))
            certain += 1


class ExpertOffload(OnRanks):
    """The weights of a mixture's routed experts lie in host memory and the processor multiplies by them,
    while the accelerator keeps attention, shared experts and as many routed ones as it is told (the placement
    of KTransformers). Both work at once; what they make of a token is added on the accelerator."""

    strategy: Literal["expert_offload"] = "expert_offload"
    gpu_experts: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each layer's routed experts that stay on the accelerator."""
    choose: Literal["most_used", "least_used"] = "most_used"
    """Which ones those are; no matter where all are equally popular."""
    popularity: Zipf = Zipf(zipf=0.0)
    """How unevenly tokens choose experts: `{zipf: 1.0}`; evenly if not given."""

    @property
    def label(self) -> str:
        skewed = self.popularity.zipf > 0
        return self.labelled(
            f"{percent(self.gpu_experts)} on gpu", self.choose if skewed else None,
            f"zipf {self.popularity.zipf:g}" if skewed else None,
        )  # fmt: skip

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        experts = model.experts
        if experts is None:
            return NotPlaceable(f"{self.strategy} is for mixtures of experts; {model.name} has none")
        ranks = self.ranks(model, machine)
        if isinstance(ranks, NotPlaceable):
            return ranks
        cpu = processor_beside(machine, ranks[0])
        if isinstance(cpu, NotPlaceable):
            return cpu
        stages = (Stage(ranks, 0, model.num_hidden_layers),)
        kept = round(self.gpu_experts * experts.num_experts)
        if kept == experts.num_experts:
            return Placement(self.label, stages)
        if not kept and len(ranks) > 1 and experts.shared is None:
            return NotPlaceable(f"{self.strategy} of all experts leaves the ranks of tensor_parallel "
                                f"{self.tensor_parallel} nothing to add up; keep some with gpu_experts")
        numbers = range(experts.num_experts)
        aside = numbers[kept:] if self.choose == "most_used" else numbers[: experts.num_experts - kept]
        chances = self.popularity.chances(experts) if self.popularity.zipf else None
        return Placement(self.label, stages, experts_aside=ExpertsAside(cpu, tuple(aside), chances))
