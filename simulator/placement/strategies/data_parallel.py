"""Whole copies of the model side by side."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import NotPlaceable, Placement
from simulator.placement.strategies.base import Strategy
from simulator.placement.strategies.tensor_parallel import TensorParallel
from simulator.specs.architecture import Architecture


class DataParallel(Strategy):
    """So many replicas on consecutive accelerators, each with a serving loop of its own; a request goes to
    the replica with the fewest."""

    strategy: Literal["data_parallel"] = "data_parallel"
    replicas: Annotated[int, Field(ge=1)]
    """How many copies of the model serve."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """How many devices share each layer of a replica."""

    @property
    def label(self) -> str:
        ranks = f" x tensor_parallel {self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        return f"data_parallel {self.replicas}{ranks}"

    def place(self, model: Architecture, machine: MachineGraph) -> tuple[Placement, ...] | NotPlaceable:
        available, degree = machine.accelerators(), self.tensor_parallel
        if len(available) < self.replicas * degree:
            return NotPlaceable(f"{self.label} needs {self.replicas * degree} accelerators, "
                                f"there are {len(available)}")  # fmt: skip
        placements = []
        for first in range(0, self.replicas * degree, degree):
            ranks = TensorParallel(degree=degree, devices=available[first : first + degree])
            placed = ranks.place(model, machine)
            if isinstance(placed, NotPlaceable):
                return placed
            placements.append(Placement(self.label, placed.stages))
        return tuple(placements)
