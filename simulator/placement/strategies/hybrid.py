"""Several ways of parallelism at once, and layers that a processor takes or that are streamed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.graph.machine import MachineGraph
from simulator.graph.shape import split_evenly
from simulator.graph.share import why_not_divisible
from simulator.placement.placement import NotPlaceable, Placement, Streaming
from simulator.placement.strategies.base import (
    Strategy,
    label_of,
    on_several_hosts,
    processor_beside,
    stages_of,
)
from simulator.specs.architecture import Architecture


class Hybrid(Strategy):
    """Replicas of a pipeline of tensor-parallel stages: `data_parallel` x `pipeline_parallel` x
    `tensor_parallel` accelerators, taken in the machine's order, ranks of a stage next to each other. Before
    the first stage a processor may take `cpu_layers`; of the other layers `streamed_layers` may be kept in
    the memory of their accelerators' host and brought for each use."""

    strategy: Literal["hybrid"] = "hybrid"
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """How many accelerators share each layer of a stage."""
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    """How many stages of accelerators the layers pass through."""
    data_parallel: Annotated[int, Field(ge=1)] = 1
    """How many replicas of all that serve."""
    experts: Literal["columns", "whole"] = "columns"
    """What the ranks of a stage hold of routed experts: columns of each, or whole ones."""
    microbatches: Annotated[int, Field(ge=1)] = 1
    """Into how many parts a step's batch is cut."""
    loops: Annotated[int, Field(ge=1)] = 1
    """Batches in flight in each replica."""
    cpu_layers: Annotated[int, Field(ge=0)] = 0
    """The first so many layers, on the processor."""
    streamed_layers: Annotated[int, Field(ge=0)] = 0
    """The last so many layers, kept in host memory and copied to their accelerators at each use."""
    buffers: Annotated[int, Field(ge=1)] = 2
    """Streamed layers that fit beside each other in an accelerator."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.loops > 1 and self.streamed_layers:
            raise ValueError("`streamed_layers` needs `loops` 1: batches in flight would share the buffers")
        if self.cpu_layers and self.data_parallel > 1:
            raise ValueError("`cpu_layers` needs `data_parallel` 1: replicas would share the processor")
        return self

    @property
    def label(self) -> str:
        degrees = {"dp": self.data_parallel, "pp": self.pipeline_parallel, "tp": self.tensor_parallel}
        shown = " x ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1)
        return label_of(
            "hybrid", shown, "whole experts" if self.experts == "whole" else None,
            f"{self.microbatches} microbatches" if self.microbatches > 1 else None,
            f"{self.loops} loops" if self.loops > 1 else None,
            f"{self.cpu_layers} on cpu" if self.cpu_layers else None,
            f"{self.streamed_layers} streamed" if self.streamed_layers else None,
            f"{self.buffers} buffers" if self.buffers != 2 else None,
        )  # fmt: skip

    def place(
        self, model: Architecture, machine: MachineGraph
    ) -> Placement | tuple[Placement, ...] | NotPlaceable:
        wrong = self._why_not(model, machine)
        if wrong is not None:
            return NotPlaceable(wrong)
        size, available = self.tensor_parallel * self.pipeline_parallel, machine.accelerators()
        placed = []
        for first in range(0, size * self.data_parallel, size):
            replica = self._replica(model, machine, available[first : first + size])
            if isinstance(replica, NotPlaceable):
                return replica
            placed.append(replica)
        return placed[0] if len(placed) == 1 else tuple(placed)

    def _why_not(self, model: Architecture, machine: MachineGraph) -> str | None:
        available = len(machine.accelerators())
        needed = self.tensor_parallel * self.pipeline_parallel * self.data_parallel
        if needed > available:
            return f"{self.label} needs {needed} accelerators, there are {available}"
        left = model.num_hidden_layers - self.cpu_layers
        if left < self.pipeline_parallel:
            return f"{left} layers are too few for {self.pipeline_parallel} stages of accelerators"
        if self.streamed_layers > left:
            return f"streamed_layers is {self.streamed_layers}, the accelerators have {left} layers"
        if self.experts == "whole":
            experts = model.experts
            if experts is None:
                return f"experts `whole` is for mixtures of experts; {model.name} has none"
            if experts.num_experts < self.tensor_parallel:
                return f"{experts.num_experts} experts are too few for {self.tensor_parallel} devices"
        return why_not_divisible(model, self.tensor_parallel)

    def _replica(
        self, model: Architecture, machine: MachineGraph, devices: tuple[str, ...]
    ) -> Placement | NotPlaceable:
        degree, count = self.tensor_parallel, model.num_hidden_layers
        groups = [devices[first : first + degree] for first in range(0, len(devices), degree)]
        layers = split_evenly(count - self.cpu_layers, len(groups))
        if self.cpu_layers:
            cpu = processor_beside(machine, devices[0])
            if isinstance(cpu, NotPlaceable):
                return cpu
            groups, layers = [(cpu,), *groups], (self.cpu_layers, *layers)
        kept, stages = count - self.streamed_layers, stages_of(groups, layers)
        apart = (on_several_hosts(machine, stage.devices) for stage in stages if stage.layers[-1] >= kept)
        wrong = next((each for each in apart if each is not None), None)
        if wrong is not None:
            return wrong
        homes = tuple(machine.host_of(stage.devices[0]).name if layer >= kept else None
                      for stage in stages for layer in stage.layers)  # fmt: skip
        return Placement(
            self.label, stages, self.microbatches,
            Streaming(homes, self.buffers) if self.streamed_layers else None, self.loops,
            whole_experts=self.experts == "whole",
        )  # fmt: skip
