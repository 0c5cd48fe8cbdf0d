"""What the clock says of one step, on a machine of the catalogue with an engine of it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.costs.host import launching_s, of_prompt_s, of_visit_s
from simulator.errors import SimulatorError
from simulator.graph.operator_traits import operator_traits
from simulator.graph.shape import Chunk, StepShape
from simulator.placement.placement import NotPlaceable
from simulator.placement.plan import Launched
from simulator.placement.strategies import SingleDevice
from simulator.simulation.pricing import Durations, PricedTemplate
from simulator.simulation.recursion import Carried, schedule
from simulator.simulation.ticks import seconds
from simulator.specs.architecture import Architecture
from simulator.specs.catalogue import Catalogue
from simulator.specs.engine import Engine
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import deploy

FP32 = PrecisionChoice(weights="fp32", activations="fp32", kv_cache="fp32")


@dataclass(frozen=True)
class OneSequence:
    """A model in fp32 on one device of a machine, for one sequence at a time."""

    priced: PricedTemplate
    engine: Engine
    model: Architecture

    @classmethod
    def of(
        cls, name: str, model: Architecture, catalogue: Catalogue, on_gpu: bool = False
    ) -> OneSequence:
        """On the processor of the machine of an id, with the engine of the same id; or on its GPU, with the
        engine of that."""
        engine, device = (f"{name}-gpu", "gpu-0") if on_gpu else (name, "cpu")
        placed = deploy(name, model, engine, FP32, SingleDevice(device=device), catalogue)
        if isinstance(placed, NotPlaceable):
            raise SimulatorError(f"{model.name} cannot be placed on {name}: {placed.reason}")
        template = placed.program.template(1)
        return cls(PricedTemplate(template, placed.program, placed.engine), placed.engine, model)

    def step_s(self, new: int, context: int) -> float:
        """From the launch of a step until its id is there."""
        timed = schedule(self.priced, self._durations(new, context), 0, Carried())
        return seconds(timed.ends[self.priced.template.outcome])

    def layer_s(self, new: int, context: int) -> float:
        """Of the first layer's operators, one after the other; on a device that a host launches kernels on,
        of launching them."""
        if self.is_launched:
            active = self._shape(new, context).active_experts
            return sum(self._launch_s(each, new > 1, active) for each in self._launches)
        totals = self._durations(new, context).total[self.priced.class_of_task].tolist()
        tasks = self.priced.template.tasks
        return sum(seconds(ticks) for task, ticks in zip(tasks, totals, strict=True) if task.layer == 0)

    @property
    def _launches(self) -> list[Launched]:
        """Of the first layer; none on a processor."""
        tasks = self.priced.template.tasks
        return [each for task in tasks for each in task.launches if each.layer == 0]

    @property
    def is_launched(self) -> bool:
        """Whether it is on a device whose kernels a host launches."""
        return bool(self._launches)

    def _launch_s(self, launched: Launched, has_prompt: bool, active_experts: float) -> float:
        code, operator = self.engine.code, launched.operator
        traits = operator_traits(self.model, launched.layer, operator)
        more_s = of_prompt_s(code, operator) if has_prompt else 0.0
        more_s += of_visit_s(code, operator) * active_experts
        return launching_s(self.engine, launched.kernels, operator, traits) + more_s

    @property
    def operators_a_layer(self) -> int:
        return sum(task.layer == 0 and task.kind == "compute" for task in self.priced.template.tasks)

    def _durations(self, new: int, context: int) -> Durations:
        return self.priced.durations((self._shape(new, context),))

    def _shape(self, new: int, context: int) -> StepShape:
        (shape,) = self.priced.template.shapes(((Chunk(0, context, new, commits=True),),))
        return shape
