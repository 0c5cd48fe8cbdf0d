"""Every layer cut over several devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import NotPlaceable, Placement, Stage
from simulator.placement.strategies.base import Strategy, chosen_ranks
from simulator.specs.architecture import Architecture


class TensorParallel(Strategy):
    """Whole heads and MLP columns on each of `degree` devices, joined by two all-reduces a layer
    (Shoeybi et al. 2019, arXiv 1909.08053)."""

    strategy: Literal["tensor_parallel"] = "tensor_parallel"
    degree: Annotated[int, Field(ge=1)]
    """How many devices share each layer."""
    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Which ones; the machine's first accelerators if not given."""

    @property
    def label(self) -> str:
        where = f" {'+'.join(self.devices)}" if self.devices else ""
        return f"tensor_parallel {self.degree}{where}"

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        ranks = chosen_ranks(self.strategy, model, machine, self.degree, self.devices)
        if isinstance(ranks, NotPlaceable):
            return ranks
        return Placement(self.label, (Stage(ranks, 0, model.num_hidden_layers),))
