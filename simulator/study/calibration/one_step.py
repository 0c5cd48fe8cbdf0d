"""What the clock says of one step, on a machine of the catalogue with an engine of it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import SimulatorError
from simulator.graph.shape import Chunk
from simulator.placement.placement import NotPlaceable
from simulator.placement.strategies import SingleDevice
from simulator.simulation.pricing import Durations, PricedTemplate
from simulator.simulation.recursion import Carried, schedule
from simulator.simulation.ticks import seconds
from simulator.specs.architecture import Architecture
from simulator.specs.catalogue import Catalogue
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import deploy

FP32 = PrecisionChoice(weights="fp32", activations="fp32", kv_cache="fp32")


@dataclass(frozen=True)
class OneSequence:
    """A model in fp32 on the processor of a machine, for one sequence at a time."""

    priced: PricedTemplate

    @classmethod
    def of(cls, name: str, model: Architecture, catalogue: Catalogue) -> OneSequence:
        """On the machine of an id, with the engine of the same id."""
        placed = deploy(name, model, name, FP32, SingleDevice(device="cpu"), catalogue)
        if isinstance(placed, NotPlaceable):
            raise SimulatorError(f"{model.name} cannot be placed on {name}: {placed.reason}")
        return cls(PricedTemplate(placed.program.template(1), placed.program, placed.engine))

    def step_s(self, new: int, context: int) -> float:
        """From the launch of a step until its id is there."""
        timed = schedule(self.priced, self._durations(new, context), 0, Carried())
        return seconds(timed.ends[self.priced.template.outcome])

    def layer_s(self, new: int, context: int) -> float:
        """Of the first layer's operators, one after the other."""
        totals = self._durations(new, context).total[self.priced.class_of_task].tolist()
        tasks = self.priced.template.tasks
        return sum(seconds(ticks) for task, ticks in zip(tasks, totals, strict=True) if task.layer == 0)

    @property
    def operators_a_layer(self) -> int:
        return sum(task.layer == 0 and task.kind == "compute" for task in self.priced.template.tasks)

    def _durations(self, new: int, context: int) -> Durations:
        template = self.priced.template
        return self.priced.durations(template.shapes(((Chunk(0, context, new, commits=True),),)))
