"""Prompts on some devices, answers on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from simulator.graph.machine import MachineGraph
from simulator.graph.shape import split_evenly
from simulator.placement.placement import NotPlaceable, Placement, Role
from simulator.placement.strategies.base import (
    Strategy,
    chosen_ranks,
    label_of,
    missing_cache,
    stages_of,
)
from simulator.specs.architecture import Architecture
from simulator.specs.base import Spec


class Pool(Spec):
    """Equal replicas that do the same part of the work."""

    replicas: Annotated[int, Field(ge=1)] = 1
    """How many copies of the model there are."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """How many devices share each layer."""
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    """How many stages the layers of a copy pass through."""
    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Which ones, ranks of a stage next to each other; the machine's first that the other pool does not name
    if not given, those of `prefill` before those of `decode`."""

    @property
    def device_count(self) -> int:
        return self.replicas * self.of_a_replica

    @property
    def of_a_replica(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def label(self) -> str:
        counts = (("", self.replicas), ("tp ", self.tensor_parallel), ("pp ", self.pipeline_parallel))
        shown = [f"{name}{count}" for name, count in counts if count > 1] or ["1"]
        return label_of(" x ".join(shown), "+".join(self.devices) if self.devices else None)


class Disaggregated(Strategy):
    """One pool of devices reads prompts and chooses first tokens, the other makes the rest of the answers.
    In between, keys and values of each prompt are copied from one to the other (Zhong et al. 2024, DistServe,
    arXiv 2401.09670)."""

    strategy: Literal["disaggregated"] = "disaggregated"
    prefill: Pool = Pool()
    """What reads prompts."""
    decode: Pool = Pool()
    """What makes all tokens after the first."""

    @property
    def label(self) -> str:
        return f"{self.strategy} prefill {self.prefill.label}, decode {self.decode.label}"

    def place(self, model: Architecture, machine: MachineGraph) -> tuple[Placement, ...] | NotPlaceable:
        reason = why_not_handed_over(model) or self._why_not_two_pools(machine)
        if reason is not None:
            return NotPlaceable(reason)
        taken = frozenset((*(self.prefill.devices or ()), *(self.decode.devices or ())))
        free = [device for device in machine.accelerators() if device not in taken]
        automatic = self.prefill.device_count if self.prefill.devices is None else 0
        pools = self._replicas("prefill", self.prefill, free, model, machine), self._replicas(
            "decode", self.decode, free[automatic:], model, machine
        )
        wrong = next((pool for pool in pools if isinstance(pool, NotPlaceable)), None)
        if wrong is not None:
            return wrong
        return tuple(each for pool in pools if not isinstance(pool, NotPlaceable) for each in pool)

    def _why_not_two_pools(self, machine: MachineGraph) -> str | None:
        """What keeps the pools from having devices of their own."""
        both = set(self.prefill.devices or ()).intersection(self.decode.devices or ())
        if both:
            return f"a device is of one pool: {min(both)} is named in `prefill` and in `decode`"
        needed = self.prefill.device_count + self.decode.device_count
        available = len(machine.accelerators())
        if needed <= available:
            return None
        return f"{self.label} needs {needed} accelerators, there are {available}"

    def _replicas(
        self, role: Role, pool: Pool, free: Sequence[str], model: Architecture, machine: MachineGraph
    ) -> tuple[Placement, ...] | NotPlaceable:
        """The placements of a pool, on the devices it names, else on the first of `free`."""
        what, size = f"{role} of {self.strategy}", pool.of_a_replica
        chosen = pool.devices or tuple(free[: pool.device_count])
        ranks = chosen_ranks(what, model, machine, pool.device_count, chosen, cuts=False)
        if isinstance(ranks, NotPlaceable):
            return ranks
        if model.num_hidden_layers < pool.pipeline_parallel:
            return NotPlaceable(f"{model.num_hidden_layers} layers are too few for the "
                                f"{pool.pipeline_parallel} stages of {role}")  # fmt: skip
        placements = []
        for first in range(0, len(ranks), size):
            groups = [ranks[start : start + pool.tensor_parallel]
                      for start in range(first, first + size, pool.tensor_parallel)]  # fmt: skip
            for group in groups:
                cut = chosen_ranks(what, model, machine, len(group), group)
                if isinstance(cut, NotPlaceable):
                    return cut
            layers = split_evenly(model.num_hidden_layers, pool.pipeline_parallel)
            placements.append(Placement(self.label, stages_of(groups, layers), role=role))
        return tuple(placements)


def why_not_handed_over(model: Architecture) -> str | None:
    """What keeps a model's sequences from going on elsewhere; None if they can."""
    if model.is_encoder:
        return f"disaggregated is for models that decode; {model.name} is an encoder, which answers at once"
    if model.has_linear_attention:
        return f"states of linear attention cannot be handed over yet, and {model.name} has some"
    missing = missing_cache("disaggregated", model)
    return missing.reason if missing is not None else None
