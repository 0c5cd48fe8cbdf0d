"""A placed model: which operators run where, and what stays in which memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from simulator.graph.attention import cached
from simulator.graph.bench import parameter_bytes, weight_storage
from simulator.graph.delta import state_elements
from simulator.graph.machine import MachineGraph
from simulator.graph.operators import OperatorFactory
from simulator.graph.shape import Amount, Traits
from simulator.graph.share import Share
from simulator.graph.work import Formats, Operator, Parameter, byte_amount
from simulator.placement.placement import Placement, Stage
from simulator.placement.plan import KvSlab, Resident, StateSlab, Tensor
from simulator.specs.architecture import Architecture
from simulator.specs.weight_formats import WeightStorage

AT_HOME, FETCHED = "@home-of-", "#fetched"


@dataclass(frozen=True)
class Placed:
    """A model, where it was put, and the number formats it is kept and computed in."""

    model: Architecture
    placement: Placement
    machine: MachineGraph
    formats: Formats
    loop: int = 0
    """Which of the serving loops this is, on a machine that runs several."""

    @property
    def host(self) -> str:
        """The memory of the host whose engine thread drives the placement: that of the first stage."""
        return self.machine.host_of(self.placement.stages[0].devices[0]).name

    @property
    def engine_unit(self) -> str:
        """The stream of the loop's own engine thread."""
        return f"{self.host}.engine-{self.loop}" if self.loop else f"{self.host}.engine"

    def own_name(self, name: str) -> str:
        """A name of something of one step that no other loop's steps use."""
        return f"loop-{self.loop}.{name}" if self.loop else name

    @cached_property
    def traits(self) -> Traits:
        """What decides the features of its steps."""
        return Traits.of(self.model)

    def parameter_bytes(self, parameter: Parameter) -> int:
        """Bytes that the part of a parameter takes."""
        return parameter_bytes(self.storage, parameter)

    def why_not_cut(self) -> str | None:
        """What stops a rank from holding its share of some parameter in the format it is kept in."""
        for resident in self.residents():
            part = resident.parameter
            if part.axis is not None:
                size = part.shape[part.axis]
                reason = self.storage.why_not_cut(part.name, part.whole_shape, part.axis, part.start, size)
                if reason is not None:
                    return reason
        return None

    @cached_property
    def storage(self) -> WeightStorage:
        """How the model's parameters lie in memory."""
        return weight_storage(self.model, self.formats)

    def factory(self, stage: Stage, rank: int) -> OperatorFactory:
        return OperatorFactory(self.model, Share(rank, len(stage.devices)), self.formats)

    def is_streamed(self, layer: int | None) -> bool:
        """Whether a layer's weights come anew each step; one that has no parts has nothing to bring."""
        streaming = self.placement.streaming
        if streaming is None or layer is None or layer not in streaming.layers:
            return False
        spec = self.model.layers[layer]
        return spec.attention is not None or spec.mlp is not None

    def residents(self) -> tuple[Resident, ...]:
        """Every weight that stays in memory, once for each memory that holds it."""
        found: dict[str, Resident] = {}
        for device, operator in self.operators():
            for parameter in operator.parameters:
                size = Amount.of(one=self.parameter_bytes(parameter))
                memory, name = self.machine.memory_of(device), weight_name(parameter.name, device)
                if self.is_streamed(operator.layer) and self.placement.streaming:
                    memory, name = self.placement.streaming.home, home_name(parameter.name, device)
                found[name] = Resident(Tensor(name, memory, size, kept=True), parameter)
        return tuple(found.values())

    def slabs(self) -> tuple[KvSlab, ...]:
        """The KV cache of each layer that has one, on each device that computes it."""
        slabs = (
            self._slab(device, layer, Share(rank, len(stage.devices)))
            for stage in self.placement.stages
            for layer in stage.layers
            for rank, device in enumerate(stage.devices)
        )
        return tuple(slab for slab in slabs if slab is not None)

    def _slab(self, device: str, layer: int, share: Share) -> KvSlab | None:
        kept = cached(self.model.layers[layer], share)
        if kept is None:
            return None
        nbytes = byte_amount(Amount.of(one=kept.elements), self.formats.kv_cache).per("one")
        return KvSlab(slab_name(layer, device), self.machine.memory_of(device), layer, kept.heads.start,
                      kept.heads.count, kept.planes, kept.width, nbytes)  # fmt: skip

    def state_slabs(self) -> tuple[StateSlab, ...]:
        """The states of each layer of linear attention on each device that computes it."""
        slabs = []
        for stage in self.placement.stages:
            for layer, (rank, device) in product(stage.layers, enumerate(stage.devices)):
                elements = state_elements(self.model.layers[layer], Share(rank, len(stage.devices)))
                nbytes = byte_amount(Amount.of(one=elements), self.formats.activations).per("one")
                memory = self.machine.memory_of(device)
                slabs.append(StateSlab(slab_name(layer, device), memory, layer, elements, nbytes))
        return tuple(slab for slab in slabs if slab.elements)

    def operators(self) -> Iterator[tuple[str, Operator]]:
        """Every operator of every rank with the device it runs on."""
        stages = self.placement.stages
        for stage in stages:
            for rank, device in enumerate(stage.devices):
                factory = self.factory(stage, rank)
                if stage is stages[0]:
                    yield from ((device, operator) for operator in factory.embed())
                for layer in stage.layers:
                    yield from ((device, operator) for operator in stage_layer(factory, stage, layer))
                if stage is stages[-1]:
                    has_branch = factory.leaves_branch(stage.first_layer, stage.layer_count)
                    yield from ((device, operator) for operator in factory.head(has_branch))


def stage_layer(factory: OperatorFactory, stage: Stage, layer: int) -> tuple[Operator, ...]:
    """The operators of one layer of a stage; the stage begins with all branches added up."""
    return factory.layer(layer, factory.leaves_branch(stage.first_layer, layer - stage.first_layer))


def weight_name(parameter: str, device: str) -> str:
    return f"{parameter}@{device}"


def home_name(parameter: str, device: str) -> str:
    """A streamed weight where it is kept."""
    return f"{parameter}{AT_HOME}{device}"


def fetched_name(weight: str) -> str:
    """A weight that was fetched for one step; its name is not that of the one left for the next."""
    return f"{weight}{FETCHED}"


def same_weight(name: str) -> str:
    """The name of a weight on its device, given that of it at home, fetched or on the device."""
    return name.replace(AT_HOME, "@").removesuffix(FETCHED)


def slab_name(layer: int, device: str) -> str:
    return f"kv.{layer}@{device}"
