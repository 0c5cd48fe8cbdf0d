"""Everything on one device."""

from __future__ import annotations

from typing import Literal

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import NotPlaceable, Placement, Stage
from simulator.placement.strategies.base import Strategy, missing_devices
from simulator.specs.architecture import Architecture


class SingleDevice(Strategy):
    """All layers, weights and KV blocks on one device."""

    strategy: Literal["single_device"] = "single_device"
    device: str | None = None
    """Name of the device; the machine's first accelerator, or its `cpu`, if not given."""

    @property
    def label(self) -> str:
        return "single_device" if self.device is None else f"single_device {self.device}"

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        candidates = machine.accelerators() or tuple(machine.devices)
        if self.device is None and not candidates:
            return NotPlaceable("the machine has no device that computes")
        device = self.device or candidates[0]
        stage = Stage((device,), 0, model.num_hidden_layers)
        return missing_devices(machine, (device,)) or Placement(self.label, (stage,))
