"""A placed model: which operators run where, and what stays in which memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product

from simulator.graph.attention import cached
from simulator.graph.bench import parameter_bytes, weight_storage
from simulator.graph.cache_apart import IN_CACHE, apart, has_cache, join_rows, of_phase, split_rows
from simulator.graph.delta import state_elements
from simulator.graph.machine import MachineGraph
from simulator.graph.operators import OperatorFactory
from simulator.graph.shape import Amount, Phase, Traits
from simulator.graph.share import ExpertSplit, Share
from simulator.graph.work import Formats, Operator, Parameter, Value, byte_amount
from simulator.placement.placement import Placement, Stage
from simulator.placement.plan import KvSlab, Resident, StateSlab, Tensor
from simulator.specs.architecture import Architecture, LinearAttention
from simulator.specs.weight_formats import WeightStorage

AT_HOME, FETCHED = "@home-of-", "#fetched"


@dataclass(frozen=True, slots=True)
class PlacedOperator:
    """An operator of one rank, and where it runs."""

    operator: Operator
    device: str
    lane: str
    """The device of the rank, whose values it reads and writes."""
    phase: Phase = "all"
    """Which chunks it is for."""
    is_of_ranks: bool = False
    """Whether the other ranks of a stage do the like."""

    @property
    def where(self) -> str:
        """The device; it tells apart what several ranks have on one that is none of theirs."""
        is_own = self.device == self.lane or not self.is_of_ranks
        return self.device if is_own else f"{self.device}.for.{self.lane}"


@dataclass(frozen=True)
class Placed:
    """A model, where it was put, and the number formats it is kept and computed in."""

    model: Architecture
    placement: Placement
    machine: MachineGraph
    formats: Formats
    loop: int = 0
    """Which of the serving loops this is, on a machine that runs several."""
    eager: bool = False
    """Whether the engine launches kernels one by one, at least in some steps."""
    is_drafter: bool = False
    """Whether it proposes tokens to another placed model, beside which it lies."""

    @property
    def host(self) -> str:
        """The memory of the host whose engine thread drives the placement: that of the first stage."""
        return self.machine.host_of(self.placement.stages[0].devices[0]).name

    @property
    def engine_unit(self) -> str:
        """The stream of the loop's own engine thread, or of the first of them."""
        return self.engine_units[0]

    @property
    def engine_units(self) -> tuple[str, ...]:
        """The streams of the loop's engine threads: one, or one for each rank with sequences of its own."""
        assert self.loop == 0 or self.rank_groups == 1, "threads of ranks are numbered as those of loops are"
        first = f"{self.host}.engine"
        numbers = range(self.loop, self.loop + self.rank_groups)
        return tuple(f"{first}-{number}" if number else first for number in numbers)

    def engine_thread(self, microbatch: int) -> str:
        """The engine thread that prepares and commits a microbatch."""
        return self.engine_units[microbatch] if self.placement.by_sequence else self.engine_unit

    def own_name(self, name: str) -> str:
        """A name of something of one step that no other loop's steps use."""
        return f"{self._mark}{name}"

    def short_name(self, name: str) -> str:
        """The name without the loop's mark."""
        return name.removeprefix(self._mark)

    @cached_property
    def _mark(self) -> str:
        return (f"loop-{self.loop}." if self.loop else "") + ("draft." if self.is_drafter else "")

    def weight_name(self, parameter: str, device: str) -> str:
        """Loops share weights, a drafter has its own."""
        return weight_name(f"draft.{parameter}" if self.is_drafter else parameter, device)

    def slab_name(self, layer: int, device: str) -> str:
        """Of what a layer keeps of sequences."""
        return f"{'draft.' if self.is_drafter else ''}{slab_name(layer, device)}"

    @property
    def rank_groups(self) -> int:
        """How many groups of sequences share no KV blocks: the ranks, where each has sequences of its own."""
        return len(self.placement.stages[0].devices) if self.placement.by_sequence else 1

    @cached_property
    def traits(self) -> Traits:
        """What decides the features of its steps."""
        of_model, aside = Traits.of(self.model), self.placement.experts_aside
        if aside is None:
            return of_model
        return replace(of_model, aside=aside.experts, popularity=aside.popularity)

    @cached_property
    def split(self) -> ExpertSplit:
        """How routed experts are shared out."""
        traits = self.traits
        return ExpertSplit(self.placement.whole_experts, traits.aside, traits.share_aside())

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

    def share(self, stage: Stage, rank: int) -> Share:
        """What a rank of a stage holds of its layers."""
        return Share() if self.placement.by_sequence else Share(rank, len(stage.devices))

    def factory(self, stage: Stage, rank: int) -> OperatorFactory:
        own = Share(rank, len(stage.devices)) if self.placement.by_sequence else None
        split = replace(self.split, own=own)
        return shared_factory(self.model, self.share(stage, rank), self.formats, split)

    def layer(self, stage: Stage, rank: int, layer: int) -> tuple[PlacedOperator, ...]:
        """The operators of one layer of a stage's rank, each where it runs. The stage begins with all
        branches added up."""
        factory, lane = self.factory(stage, rank), stage.devices[rank]
        has_branch = factory.leaves_branch(stage.first_layer, layer - stage.first_layer)
        operators = factory.layer(layer, has_branch)
        if self.placement.kv_home is not None and has_cache(operators):
            return tuple(self._with_cache_apart(factory, lane, operators))
        return tuple(self._put(operator, factory, lane) for operator in operators)

    def ends(self, stage: Stage, rank: int) -> tuple[tuple[PlacedOperator, ...], ...]:
        """What a stage does before its layers, and after them: embedding, head and sampling."""
        factory, lane, stages = self.factory(stage, rank), stage.devices[rank], self.placement.stages
        embed = factory.embed() if stage is stages[0] else ()
        has_branch = factory.leaves_branch(stage.first_layer, stage.layer_count)
        head = factory.head(has_branch) if stage is stages[-1] else ()
        parts = (embed, head)
        return tuple(tuple(self._put(operator, factory, lane) for operator in part) for part in parts)

    def sampler(self, stage: Stage, rank: int = 0) -> PlacedOperator:
        """What chooses tokens from all logits."""
        factory = self.factory(stage, rank)
        return self._put(factory.sample(), factory, stage.devices[rank])

    def whole_logits(self) -> Value:
        """The scores of the whole vocabulary, for every row."""
        return Value("logits", Amount.of(logit_rows=self.model.vocab_size))

    def _put(
        self, operator: Operator, factory: OperatorFactory, lane: str, phase: Phase = "all"
    ) -> PlacedOperator:
        """An operator where it runs: on its lane's device unless the placement says otherwise."""
        aside, is_of_ranks = self.placement.experts_aside, factory.share.degree > 1
        if operator.once and aside is not None:
            return PlacedOperator(operator, aside.device, lane, phase)
        found = (each for each in self.placement.elsewhere if each.has(operator.name, operator.layer))
        other = next(found, None)
        device = lane if other is None else other.device
        return PlacedOperator(operator, device, lane, phase, is_of_ranks)

    def _with_cache_apart(
        self, factory: OperatorFactory, lane: str, operators: Sequence[Operator]
    ) -> Iterator[PlacedOperator]:
        """A layer whose cache is in another memory. Without a device beside it, cached tokens come to the
        lane's; with one, that does the chunks of one new token, and the lane's the others."""
        home, bench = self.placement.kv_home, factory.bench
        assert home is not None
        layer = operators[0].layer
        assert layer is not None
        kept = cached(self.model.layers[layer], factory.share)
        assert kept is not None
        rotary, attention = (next(o for o in operators if o.name == name) for name in IN_CACHE)
        for operator in operators:
            if operator.name not in IN_CACHE:
                yield self._put(operator, factory, lane)
            elif home.decode_device is None:
                yield self._put(apart(operator, kept), factory, lane)
            elif operator is rotary:
                sizes = {value.role: value for each in operators for value in each.writes}
                split = split_rows(bench, layer, [sizes[role] for role in rotary.reads])
                yield self._put(split, factory, lane)
                for part in (rotary, attention):
                    beside = of_phase(part, "decode")
                    is_of_ranks = factory.share.degree > 1
                    yield PlacedOperator(beside, home.decode_device, lane, "decode", is_of_ranks)
                for part in (rotary, attention):
                    here = of_phase(apart(part, kept), "prefill")
                    yield self._put(here, factory, lane, "prefill")
                yield self._put(join_rows(bench, layer, attention.writes[0]), factory, lane)

    def is_fetched(self, placed: PlacedOperator) -> bool:
        """Whether an operator's weights come anew each step: only what the stage's own device computes."""
        return self.is_streamed(placed.operator.layer) and placed.device == placed.lane

    def home_of(self, layer: int | None) -> str:
        """The memory that keeps the weights of a streamed layer."""
        streaming = self.placement.streaming
        home = streaming.homes[layer] if streaming is not None and layer is not None else None
        assert home is not None, "only streamed layers have a home"
        return home

    def is_streamed(self, layer: int | None) -> bool:
        """Whether a layer's weights come anew each step; one that has no parts has nothing to bring."""
        streaming = self.placement.streaming
        if streaming is None or layer is None or streaming.homes[layer] is None:
            return False
        spec = self.model.layers[layer]
        return spec.attention is not None or spec.mlp is not None

    def residents(self) -> tuple[Resident, ...]:
        """Every weight that stays in memory, once for each memory that holds it."""
        found: dict[str, Resident] = {}
        for placed in self.operators():
            for parameter in placed.operator.parameters:
                size = Amount.of(one=self.parameter_bytes(parameter))
                memory = self.machine.memory_of(placed.device)
                name = self.weight_name(parameter.name, placed.where)
                if self.is_fetched(placed):
                    memory = self.home_of(placed.operator.layer)
                    name = home_name(parameter.name, placed.where)
                held = found.setdefault(name, Resident(Tensor(name, memory, size, kept=True), parameter))
                assert held.parameter == parameter, f"{name} would be two parts of one parameter"
        return tuple(found.values())

    def slabs(self) -> tuple[KvSlab, ...]:
        """The KV cache of each layer that has one, on each device that computes it."""
        slabs = (
            self._slab(lane, layer, self.share(stage, rank))
            for stage in self.placement.stages
            for layer in stage.layers
            for rank, lane in enumerate(stage.devices)
        )
        return tuple(slab for slab in slabs if slab is not None)

    def _slab(self, lane: str, layer: int, share: Share) -> KvSlab | None:
        kept = cached(self.model.layers[layer], share)
        if kept is None:
            return None
        nbytes = byte_amount(Amount.of(one=kept.elements), self.formats.kv_cache).per("one")
        return KvSlab(self.slab_name(layer, lane), self.kv_memory(layer, lane), layer, kept.heads.start,
                      kept.heads.count, kept.planes, kept.width, nbytes)  # fmt: skip

    def kv_memory(self, layer: int, lane: str) -> str:
        """The memory that keeps what a layer caches on a lane, or its states."""
        home = self.placement.kv_home
        if home is not None and not isinstance(self.model.layers[layer].attention, LinearAttention):
            return home.memory
        return self.machine.memory_of(self._attends(layer, lane))

    def _attends(self, layer: int, lane: str) -> str:
        """The device of the operators that use what the layer keeps."""
        linear = isinstance(self.model.layers[layer].attention, LinearAttention)
        name = "delta_rule" if linear else "attention"
        return next((e.device for e in self.placement.elsewhere if e.has(name, layer)), lane)

    def state_slabs(self) -> tuple[StateSlab, ...]:
        """The states of each layer of linear attention on each device that computes it."""
        slabs = []
        for stage in self.placement.stages:
            for layer, (rank, device) in product(stage.layers, enumerate(stage.devices)):
                elements = state_elements(self.model.layers[layer], self.share(stage, rank))
                nbytes = byte_amount(Amount.of(one=elements), self.formats.activations).per("one")
                memory = self.kv_memory(layer, device)
                slabs.append(StateSlab(self.slab_name(layer, device), memory, layer, elements, nbytes))
        return tuple(slab for slab in slabs if slab.elements)

    def operators(self) -> Iterator[PlacedOperator]:
        """Every operator of every rank; what is done once for all ranks is there once."""
        for stage in self.placement.stages:
            for rank in range(len(stage.devices)):
                embed, head = self.ends(stage, rank)
                layers = (placed for layer in stage.layers for placed in self.layer(stage, rank, layer))
                for placed in (*embed, *layers, *head):
                    if rank == 0 or not placed.operator.once:
                        yield placed


@lru_cache(maxsize=64)
def shared_factory(
    model: Architecture, share: Share, formats: Formats, split: ExpertSplit
) -> OperatorFactory:
    """Replicas have the same operators, wherever they run."""
    return OperatorFactory(model, share, formats, split)


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
