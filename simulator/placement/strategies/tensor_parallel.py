"""Every layer cut over several devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.graph.machine import MachineGraph
from simulator.graph.share import why_not_divisible
from simulator.placement.placement import NotPlaceable, Placement, Stage
from simulator.placement.strategies.base import Strategy, missing_devices
from simulator.specs.architecture import Architecture


class TensorParallel(Strategy):
    """Whole heads and MLP columns on each of `degree` devices, joined by two all-reduces a layer
    (Shoeybi et al. 2019, arXiv 1909.08053)."""

    strategy: Literal["tensor_parallel"] = "tensor_parallel"
    degree: Annotated[int, Field(ge=1)]
    """How many devices share each layer."""
    devices: tuple[str, ...] | None = None
    """Which ones; the machine's first accelerators if not given."""

    @property
    def label(self) -> str:
        where = f" {'+'.join(self.devices)}" if self.devices else ""
        return f"tensor_parallel {self.degree}{where}"

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        available = machine.accelerators()
        devices = self.devices or available[: self.degree]
        if len(devices) != self.degree:
            count = len(self.devices) if self.devices else len(available)
            return NotPlaceable(f"tensor_parallel needs {self.degree} accelerators, there are {count}")
        if len(set(devices)) != len(devices):
            return NotPlaceable("tensor_parallel needs different devices; one is named twice")
        on_cpu = [name for name in devices if name in machine.devices
                  and machine.devices[name].device.kind == "cpu"]  # fmt: skip
        if on_cpu:
            return NotPlaceable(f"tensor_parallel is for accelerators; {on_cpu[0]} is a CPU, use layer_split")
        indivisible = why_not_divisible(model, self.degree)
        if indivisible:
            return NotPlaceable(indivisible)
        stage = Stage(tuple(devices), 0, model.num_hidden_layers)
        return missing_devices(machine, devices) or Placement(self.label, (stage,))
