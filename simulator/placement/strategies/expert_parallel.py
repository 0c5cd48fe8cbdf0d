"""Whole experts on each of several devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import NotPlaceable, Placement, Stage
from simulator.placement.strategies.base import Strategy, chosen_ranks, label_of
from simulator.specs.architecture import Architecture


class ExpertParallel(Strategy):
    """Each of `degree` devices holds whole routed experts.

    With attention `tensor` it holds its share of everything else: heads of the attention, columns of shared
    experts. Tokens are on every device, so none has to be sent to its experts; what the experts made of them
    is added up by the all-reduce that tensor parallelism has there anyway. With attention `data` it holds all
    of everything else, and has sequences and KV blocks of its own; at the experts the tokens of all devices
    are gathered on each, and of the sum each gets back its own (the `allgather_reducescatter` of vLLM).
    """

    strategy: Literal["expert_parallel"] = "expert_parallel"
    degree: Annotated[int, Field(ge=1)]
    """How many devices share the experts."""
    attention: Literal["tensor", "data"] = "tensor"
    """How devices share the attention: by heads, or by sequences."""
    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Which ones; the machine's first accelerators if not given."""

    @property
    def label(self) -> str:
        attention = "data-parallel attention" if self.attention == "data" else None
        where = "+".join(self.devices) if self.devices else None
        return label_of("expert_parallel", str(self.degree), attention, where)

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        experts = model.experts
        if experts is None:
            return NotPlaceable(f"{self.strategy} is for mixtures of experts; {model.name} has none")
        if experts.num_experts < self.degree:
            return NotPlaceable(f"{experts.num_experts} experts are too few for {self.degree} devices")
        is_data = self.attention == "data"
        ranks = chosen_ranks(self.strategy, model, machine, self.degree, self.devices, cuts=not is_data)
        if isinstance(ranks, NotPlaceable):
            return ranks
        stages = (Stage(ranks, 0, model.num_hidden_layers),)
        if not is_data or self.degree == 1:
            return Placement(self.label, stages, whole_experts=True)
        return Placement(self.label, stages, self.degree, whole_experts=True, by_sequence=True)
