"""Layers in order over several devices, of any kinds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.graph.machine import MachineGraph
from simulator.graph.shape import split_evenly, starts_of
from simulator.placement.placement import NotPlaceable, Placement, Stage
from simulator.placement.strategies.base import Strategy, missing_devices
from simulator.specs.architecture import Architecture


class LayerSplit(Strategy):
    """Consecutive layers on one device after the other; one batch passes through them all in turn.

    Either `gpu_layers`, as llama.cpp's `-ngl`: the last so many layers on the first accelerator and the
    ones before on the `cpu`. Or `devices` in order, with `layers` for each (evenly if not given).
    """

    strategy: Literal["layer_split"] = "layer_split"
    gpu_layers: Annotated[int, Field(ge=0)] | None = None
    """Layers on the first accelerator; the rest goes before them on its host's `cpu`."""
    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Devices in the order in which layers pass through them."""
    layers: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """How many layers each of `devices` computes."""

    @model_validator(mode="after")
    def _one_of_two_ways(self) -> Self:
        if (self.gpu_layers is None) == (self.devices is None):
            raise ValueError("give either `gpu_layers` or `devices`")
        if self.layers is not None and (self.devices is None or len(self.layers) != len(self.devices)):
            raise ValueError("`layers` needs one number for each of `devices`")
        return self

    @property
    def label(self) -> str:
        if self.gpu_layers is not None:
            return f"layer_split {self.gpu_layers} on gpu"
        devices = self.devices or ()
        counts = self.layers or ("evenly",) * len(devices)
        parts = (f"{device}:{count}" for device, count in zip(devices, counts, strict=True))
        return f"layer_split {' '.join(parts)}"

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        chosen = self._devices_and_counts(model, machine)
        if isinstance(chosen, NotPlaceable):
            return chosen
        devices, counts = chosen
        if sum(counts) != model.num_hidden_layers:
            return NotPlaceable(f"`layers` add up to {sum(counts)}, the model has {model.num_hidden_layers}")
        stages = tuple(
            Stage((device,), start, count)
            for device, start, count in zip(devices, starts_of(counts), counts, strict=True)
        )
        return missing_devices(machine, devices) or Placement(self.label, stages)

    def _devices_and_counts(
        self, model: Architecture, machine: MachineGraph
    ) -> tuple[tuple[str, ...], tuple[int, ...]] | NotPlaceable:
        total = model.num_hidden_layers
        if self.devices is not None:
            if len(self.devices) > total:
                return NotPlaceable(f"{len(self.devices)} devices are more than the model's {total} layers")
            return self.devices, self.layers or split_evenly(total, len(self.devices))
        assert self.gpu_layers is not None
        if self.gpu_layers > total:
            return NotPlaceable(f"gpu_layers is {self.gpu_layers}, the model has {total} layers")
        accelerators = machine.accelerators()
        if not accelerators:
            return NotPlaceable("layer_split by gpu_layers needs an accelerator, the machine has none")
        node = machine.devices[accelerators[0]].node
        cpu = f"{node}.cpu" if node else "cpu"
        pairs = ((cpu, total - self.gpu_layers), (accelerators[0], self.gpu_layers))
        kept = tuple(pair for pair in pairs if pair[1])
        return tuple(device for device, _ in kept), tuple(count for _, count in kept)
