"""Consecutive layers on consecutive accelerators, all of them busy at once."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import NotPlaceable, Placement
from simulator.placement.strategies.base import MOST_LOOPS, MOST_MICROBATCHES, Strategy
from simulator.placement.strategies.layer_split import LayerSplit
from simulator.specs.architecture import Architecture


class PipelineParallel(Strategy):
    """A pipeline of stages that work on different batches at once.

    Batches overlap in two ways: `loops` serving loops take turns on the stages, each with requests, KV blocks
    and a batch of its own, as many as there are stages if not given (vLLM keeps as many batches in flight);
    and each loop may cut its batch into `microbatches`.
    """

    strategy: Literal["pipeline_parallel"] = "pipeline_parallel"
    stages: Annotated[int, Field(ge=1)] | None = None
    """How many of the machine's first accelerators are stages."""
    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The stages' devices in order, instead of `stages`."""
    layers: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """How many layers each stage computes; evenly if not given."""
    microbatches: Annotated[int, Field(ge=1, le=MOST_MICROBATCHES)] = 1
    """Into how many parts a step's batch is cut."""
    loops: Annotated[int, Field(ge=1, le=MOST_LOOPS)] | None = None
    """Batches in flight."""

    @model_validator(mode="after")
    def _stages_by_number_or_by_name(self) -> Self:
        if (self.stages is None) == (self.devices is None):
            raise ValueError("give either `stages` or `devices`")
        if self.layers is not None and len(self.layers) != self.stage_count:
            raise ValueError("`layers` needs one number for each stage")
        return self

    @property
    def stage_count(self) -> int:
        return self.stages if self.stages is not None else len(self.devices or ())

    @property
    def label(self) -> str:
        devices = self.devices or (str(self.stages),)
        parts = [f"pipeline_parallel {'+'.join(devices)}"]
        if self.layers is not None:
            parts.append("layers " + "+".join(map(str, self.layers)))
        if self.microbatches > 1:
            parts.append(f"{self.microbatches} microbatches")
        if self.loops is not None:
            parts.append(f"{self.loops} loops")
        return ", ".join(parts)

    def place(self, model: Architecture, machine: MachineGraph) -> Placement | NotPlaceable:
        available = machine.accelerators()
        devices = self.devices or available[: self.stage_count]
        if len(devices) != self.stage_count:
            return NotPlaceable(f"{self.label} needs {self.stage_count} accelerators, "
                                f"there are {len(available)}")  # fmt: skip
        if len(set(devices)) != len(devices):
            return NotPlaceable("pipeline_parallel needs different devices; one is named twice")
        placed = LayerSplit(devices=devices, layers=self.layers).place(model, machine)
        if isinstance(placed, NotPlaceable):
            return placed
        loops = self.loops if self.loops is not None else self.stage_count
        return Placement(self.label, placed.stages, self.microbatches, loops=loops)
