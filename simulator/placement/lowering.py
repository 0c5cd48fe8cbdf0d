"""Lowering: a placement becomes the template of its steps.

One pass of four nested choices (stage, layer, microbatch, rank) makes every plan; no strategy has code of
its own here. What a step always does: the engine's thread gathers token ids, they are copied to the first
stage, layers follow stage by stage, the last stage samples, ids are copied back, the thread commits them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from simulator.graph.machine import Directed
from simulator.graph.operators import IDS, TOKEN_ID_BYTES, OperatorFactory
from simulator.graph.shape import Amount
from simulator.graph.share import Share
from simulator.graph.work import Operator, Parameter, byte_amount
from simulator.placement.placed import Placed, fetched_name, home_name, slab_name, stage_layer, weight_name
from simulator.placement.placement import Stage
from simulator.placement.plan import Task, Template, Tensor, with_frees
from simulator.placement.traffic import link_bytes, ring_link_elements


def lower(placed: Placed, microbatches: int, warm: bool) -> Template:
    """The template of a step with so many microbatches; `warm` if its first streamed layers are there."""
    return _Lowering(placed, microbatches, warm).template()


class _Lowering:
    """The state of one lowering: tasks so far, and which tensor holds each value where."""

    def __init__(self, placed: Placed, microbatches: int, warm: bool) -> None:
        self.placed, self.machine, self.placement = placed, placed.machine, placed.placement
        self.microbatches, self.warm = microbatches, warm
        self.tasks: list[Task] = []
        self.values: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
        self.elements: dict[str, Tensor] = {}
        self.imports: list[str] = []
        self.last_use: dict[tuple[str, int], int] = {}
        self.fetched: dict[str, str] = {}
        self.discarded: list[str] = []

    def template(self) -> Template:
        stages = self.placement.stages
        for microbatch in range(self.microbatches):
            self._gather_ids(microbatch, stages[0])
        for stage in stages:
            self._first_fetches(stage)
        for stage, following in zip(stages, (*stages[1:], None), strict=True):
            self._stage(stage, following)
        for microbatch in range(self.microbatches):
            self._return_answer(microbatch, stages[-1])
        outcome = len(self.tasks) - 1
        for stage in stages:
            self._prefetch_next_step(stage)
        tasks = with_frees(self.tasks, self.imports, self.discarded)
        return Template(tasks, outcome, tuple(self.imports), self.microbatches, self.placed.traits)

    # -- the token loop's two ends ------------------------------------------------------------------

    def _gather_ids(self, microbatch: int, stage: Stage) -> None:
        host = self.placed.host
        ids = self._tensor(f"ids.m{microbatch}@{host}", host, IDS)
        self._add(Task(f"gather.m{microbatch}", "host", "gather", host, (self.placed.engine_unit,), (),
                       (ids,), microbatch, host_work="gather"))  # fmt: skip
        self._spread("ids", ids, host, stage.devices, microbatch)

    def _return_answer(self, microbatch: int, stage: Stage) -> None:
        host, device = self.placed.host, stage.devices[0]
        role = "embedding" if self.placed.model.is_encoder else "next_ids"
        answer = self.values[microbatch, device][role]
        arrived = self._copy(answer, role, device, (host,), microbatch)[0]
        self._add(Task(f"commit.m{microbatch}", "host", "commit", host, (self.placed.engine_unit,),
                       (arrived,), (), microbatch, host_work="commit"))  # fmt: skip

    def _move_on(self, microbatch: int, stage: Stage, following: Stage, closing: Operator | None) -> None:
        """Hand the residual stream to the next stage: rank j takes it from rank j modulo their number.
        `closing` adds an open branch first. Ranks that nobody takes it from drop what they hold."""
        count = len(stage.devices)
        sources = {rank % count for rank in range(len(following.devices))}
        for rank, device in enumerate(stage.devices):
            values = self.values[microbatch, device]
            if rank not in sources:
                self.discarded += [values["residual"]] + ([values["branch"]] if closing else [])
            elif closing is not None:
                self._compute(closing, device, microbatch)
        for rank, device in enumerate(following.devices):
            source = stage.devices[rank % count]
            residual = self.values[microbatch, source]["residual"]
            role = f"residual.{following.first_layer}"
            arrived = self._copy(residual, role, source, (device,), microbatch)[0]
            self.values[microbatch, device]["residual"] = arrived

    # -- a stage ------------------------------------------------------------------------------------

    def _stage(self, stage: Stage, following: Stage | None) -> None:
        factories = [self.placed.factory(stage, rank) for rank in range(len(stage.devices))]
        if stage is self.placement.stages[0]:
            for microbatch in range(self.microbatches):
                self._ranks(stage, [factory.embed() for factory in factories], microbatch)
        for layer, microbatch in self._order(stage):
            self._ranks(stage, [stage_layer(factory, stage, layer) for factory in factories], microbatch)
            if microbatch == self.microbatches - 1:
                self._fetch_after(stage, layer)
            if layer == stage.layers[-1]:
                self._leave(stage, following, factories, microbatch)

    def _leave(
        self, stage: Stage, following: Stage | None, factories: Sequence[OperatorFactory], microbatch: int
    ) -> None:
        """What a stage does with a microbatch that has passed its layers; before it goes on with the next."""
        if following is None:
            self._head(stage, factories, microbatch)
        else:
            is_open = factories[0].leaves_branch(stage.first_layer, stage.layer_count)
            closing = factories[0].residual_add(stage.layers[-1]) if is_open else None
            self._move_on(microbatch, stage, following, closing)

    def _order(self, stage: Stage) -> Iterator[tuple[int, int]]:
        """A streamed stage does each layer for all microbatches before the next, so that a fetched layer
        serves them all; other stages finish a microbatch first, so that the next stage can start."""
        if any(self.placed.is_streamed(layer) for layer in stage.layers):
            return ((layer, m) for layer in stage.layers for m in range(self.microbatches))
        return ((layer, m) for m in range(self.microbatches) for layer in stage.layers)

    def _head(self, stage: Stage, factories: Sequence[OperatorFactory], microbatch: int) -> None:
        """Score and sample; of an encoder, average on every rank and take the first one's answer."""
        has_branch = factories[0].leaves_branch(stage.first_layer, stage.layer_count)
        if self.placed.model.is_encoder:
            (pool,) = factories[0].head(has_branch)
            self._compute(pool, stage.devices[0], microbatch)
            self.discarded += [self.values[microbatch, device]["residual"] for device in stage.devices[1:]]
            return
        self._ranks(stage, [factory.head(has_branch) for factory in factories], microbatch)
        if len(stage.devices) > 1:
            self._gather_logits(stage, microbatch)
        self._compute(factories[0].sample(), stage.devices[0], microbatch)

    def _ranks(self, stage: Stage, shares: Sequence[Sequence[Operator]], microbatch: int) -> None:
        """The same operators on every rank, each with its share, and the reductions their summands need."""
        for operators in zip(*shares, strict=True):
            for rank, (device, operator) in enumerate(zip(stage.devices, operators, strict=True)):
                self._compute(operator, device, microbatch, rank, len(stage.devices))
            if operators[0].partial and len(stage.devices) > 1:
                self._all_reduce(operators[0], stage, microbatch)

    def _compute(
        self, operator: Operator, device: str, microbatch: int, rank: int = 0, degree: int = 1
    ) -> None:
        values, label = self.values[microbatch, device], _label(operator)
        names = (weight_name(parameter.name, device) for parameter in operator.parameters)
        weights = tuple(self.fetched.get(name, name) for name in names)
        reads = tuple(values[role] for role in operator.reads) + weights
        writes = []
        for value in operator.writes:
            size = self._size(value.elements, value.is_token_ids)
            name = f"{label}.{value.role}.m{microbatch}@{device}"
            writes.append(self._tensor(name, self.machine.memory_of(device), size))
            values[value.role] = writes[-1].name
        kv = slab_name(operator.layer, device) if operator.uses_kv and operator.layer is not None else None
        index = self._add(Task(
            f"{label}.m{microbatch}@{device}", "compute", operator.name, device, (device,), reads,
            tuple(writes), microbatch, operator.layer, Share(rank, degree), operator.works,
            operator.dense_flops, kv=kv,
        ))  # fmt: skip
        if operator.layer is not None:
            self.last_use[device, operator.layer] = index

    # -- collectives ----------------------------------------------------------------------------------

    def _all_reduce(self, operator: Operator, stage: Stage, microbatch: int) -> None:
        """Add the ranks' summands by a ring over the hidden dimension, as `ring_link_elements` counts."""
        role, label = operator.writes[0].role, _label(operator)
        reads = tuple(self.values[microbatch, device][role] for device in stage.devices)
        writes = []
        for device in stage.devices:
            name = f"{label}.reduced.m{microbatch}@{device}"
            size = self._size(operator.writes[0].elements)
            writes.append(self._tensor(name, self.machine.memory_of(device), size))
            self.values[microbatch, device][role] = writes[-1].name
        ring = list(zip(stage.devices, (*stage.devices[1:], stage.devices[0]), strict=True))
        width = operator.writes[0].elements.per("tokens")
        per_link = ring_link_elements(width, len(stage.devices))
        traffic = [
            (self._route(a, b), self._size(Amount.of(tokens=count)))
            for (a, b), count in zip(ring, per_link, strict=True)
        ]
        self._add(Task(
            f"{label}.all_reduce.m{microbatch}", "collective", "all_reduce", stage.devices[0],
            stage.devices, reads, tuple(writes), microbatch, operator.layer,
            link_bytes=link_bytes(traffic), crossings=tuple(ring),
        ))  # fmt: skip

    def _gather_logits(self, stage: Stage, microbatch: int) -> None:
        """Bring every rank's part of the logits to rank 0, in rank order."""
        root = stage.devices[0]
        reads = tuple(self.values[microbatch, device]["logits"] for device in stage.devices)
        vocabulary = self._size(Amount.of(logit_rows=self.placed.model.vocab_size))
        joined = self._tensor(f"logits.m{microbatch}@{root}", self.machine.memory_of(root), vocabulary)
        traffic = [
            (self._route(device, root), self.elements[name].nbytes)
            for device, name in zip(stage.devices[1:], reads[1:], strict=True)
        ]
        self.values[microbatch, root]["logits"] = joined.name
        self._add(Task(
            f"gather_logits.m{microbatch}", "collective", "gather_logits", root, stage.devices, reads,
            (joined,), microbatch, link_bytes=link_bytes(traffic),
            crossings=tuple((device, root) for device in stage.devices[1:]),
        ))  # fmt: skip

    # -- weight streaming -------------------------------------------------------------------------------

    def _streamed(self, stage: Stage) -> list[int]:
        return [layer for layer in stage.layers if self.placed.is_streamed(layer)]

    def _buffer_count(self) -> int:
        return self.placement.streaming.buffers if self.placement.streaming else 0

    def _first_fetches(self, stage: Stage) -> None:
        """Fill the buffers at the start of a step, unless an earlier step has."""
        for layer in self._streamed(stage)[: self._buffer_count()]:
            for rank, device in enumerate(stage.devices):
                if self.warm:
                    names = [weight_name(p.name, device) for p in self._layer_parameters(stage, rank, layer)]
                    self.imports += names
                else:
                    self._fetch(stage, rank, device, layer, after=(), kept=False)

    def _fetch_after(self, stage: Stage, layer: int) -> None:
        """Once `layer` is done, refill its buffer with the layer that comes so many buffers later."""
        streamed = self._streamed(stage)
        if layer not in streamed:
            return
        following = streamed.index(layer) + self._buffer_count()
        if following < len(streamed):
            for rank, device in enumerate(stage.devices):
                after = (self.last_use[device, layer],)
                self._fetch(stage, rank, device, streamed[following], after, kept=False)

    def _prefetch_next_step(self, stage: Stage) -> None:
        if self.placement.streaming is None or not self.placement.streaming.across_steps:
            return
        streamed, buffers = self._streamed(stage), self._buffer_count()
        for position, layer in enumerate(streamed[:buffers]):
            occupants = [other for index, other in enumerate(streamed) if index % buffers == position]
            for rank, device in enumerate(stage.devices):
                after = (self.last_use[device, occupants[-1]],)
                self._fetch(stage, rank, device, layer, after, kept=True)

    def _fetch(
        self, stage: Stage, rank: int, device: str, layer: int, after: tuple[int, ...], kept: bool
    ) -> None:
        streaming = self.placement.streaming
        assert streaming is not None
        parameters = self._layer_parameters(stage, rank, layer)
        position = self._streamed(stage).index(layer) % streaming.buffers
        sizes = [Amount.of(one=self.placed.parameter_bytes(p)) for p in parameters]
        names = [weight_name(p.name, device) for p in parameters]
        if not kept:  # a step's own copy must not share its name with the one left for the next step
            self.fetched.update({name: fetched_name(name) for name in names})
            names = [fetched_name(name) for name in names]
        memory, buffer = self.machine.memory_of(device), f"{device}.buffer-{stage.first_layer}-{position}"
        writes = tuple(
            Tensor(name, memory, size, kept, buffer) for name, size in zip(names, sizes, strict=True)
        )
        route = self.machine.route(streaming.home, self.machine.memory_of(device))
        traffic = [(route, size) for size in sizes]
        name = f"fetch.{layer}{'.next' if kept else ''}@{device}"
        self._add(Task(
            name, "transfer", "fetch", device, self._transfer_units(streaming.home, (device,)),
            tuple(home_name(p.name, device) for p in parameters), writes, layer=layer,
            link_bytes=link_bytes(traffic), after=after,
        ))  # fmt: skip

    def _layer_parameters(self, stage: Stage, rank: int, layer: int) -> list[Parameter]:
        operators = stage_layer(self.placed.factory(stage, rank), stage, layer)
        return [parameter for operator in operators for parameter in operator.parameters]

    # -- copies -------------------------------------------------------------------------------------------

    def _spread(self, role: str, tensor: Tensor, place: str, devices: Sequence[str], microbatch: int) -> None:
        """Copy a tensor to every device that has another memory, in one transfer."""
        names = self._copy(tensor.name, role, place, devices, microbatch)
        for device, name in zip(devices, names, strict=True):
            self.values[microbatch, device][role] = name

    def _copy(
        self, name: str, role: str, source: str, targets: Sequence[str], microbatch: int
    ) -> tuple[str, ...]:
        """Copy tensor `name` from `source` to each target; targets on the same memory need no copy."""
        tensor = self.elements[name]
        away = [target for target in targets if self._memory(target) != tensor.memory]
        copies = {
            target: self._tensor(f"{role}.m{microbatch}@{target}<-{source}", self._memory(target),
                                 tensor.nbytes)
            for target in away
        }  # fmt: skip
        if away:
            traffic = [(self._route(source, target), tensor.nbytes) for target in away]
            label = f"copy.{role}.m{microbatch}.{source}->{'+'.join(away)}"
            self._add(Task(
                label, "transfer", f"copy_{role.split('.')[0]}", away[0],
                self._transfer_units(source, away), (name,), tuple(copies.values()), microbatch,
                link_bytes=link_bytes(traffic), crossings=tuple((source, target) for target in away),
            ))  # fmt: skip
        return tuple(copies[target].name if target in copies else name for target in targets)

    def _transfer_units(self, source: str, targets: Sequence[str]) -> tuple[str, ...]:
        """One copy engine a device and direction; a host has as many as it needs."""
        outgoing = (f"{source}.out",) if source in self.machine.capacity_bytes and not self._is_host(source) \
            else ()  # fmt: skip
        return outgoing + tuple(f"{target}.in" for target in targets if not self._is_host(target))

    def _is_host(self, place: str) -> bool:
        return self._memory(place) in self.machine.hosts

    def _memory(self, place: str) -> str:
        """The memory of a device, or the host itself."""
        return place if place in self.machine.hosts else self.machine.memory_of(place)

    def _route(self, source: str, target: str) -> tuple[Directed, ...]:
        return self.machine.route(self._memory(source), self._memory(target))

    # -- bookkeeping --------------------------------------------------------------------------------------

    def _size(self, elements: Amount, is_token_ids: bool = False) -> Amount:
        if is_token_ids:
            return elements * TOKEN_ID_BYTES
        return byte_amount(elements, self.placed.formats.activations)

    def _tensor(self, name: str, memory: str, nbytes: Amount) -> Tensor:
        name = self.placed.own_name(name)
        self.elements[name] = Tensor(name, memory, nbytes)
        return self.elements[name]

    def _add(self, task: Task) -> int:
        self.tasks.append(replace(task, name=self.placed.own_name(task.name)) if self.placed.loop else task)
        return len(self.tasks) - 1


def _label(operator: Operator) -> str:
    return operator.name if operator.layer is None else f"{operator.layer}.{operator.name}"
