"""Lowering: a placement becomes the template of its steps.

One pass of four nested choices (stage, layer, microbatch, rank) makes every plan; no strategy has code of
its own here. What a step always does: the engine's thread gathers token ids, they are copied to the first
stage, layers follow stage by stage, the last stage samples, ids are copied back, the thread commits them.
Values move when somebody reads them elsewhere (`draft`); weights and cached tokens that live in another
memory come and go as `weight_fetches` and `cache_traffic` say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from simulator.costs.operators import is_needed
from simulator.graph.operators import IDS
from simulator.graph.shape import Amount
from simulator.graph.share import Share
from simulator.graph.work import Operator
from simulator.placement.cache_traffic import CacheTraffic
from simulator.placement.draft import Draft, kind_of, label_of
from simulator.placement.placed import Placed, PlacedOperator
from simulator.placement.placement import Stage
from simulator.placement.plan import Launched, Task, Template, with_frees
from simulator.placement.traffic import link_bytes, ring_link_elements
from simulator.placement.weight_fetches import WeightFetches


class Lowering:
    """One lowering: what is added to the draft, in which order."""

    joint = False
    """Whether some tasks work on all microbatches together."""

    def __init__(self, placed: Placed, microbatches: int, warm: bool) -> None:
        self.placed, self.placement = placed, placed.placement
        self.microbatches = microbatches
        self.draft = Draft(placed, microbatches, warm)
        streaming, home = self.placement.streaming, self.placement.kv_home
        self.weights = WeightFetches(self.draft, streaming) if streaming else None
        self.cache = CacheTraffic(self.draft, home) if home else None
        self.launches: dict[tuple[int, int], list[Launched]] = defaultdict(list)
        """What the first rank of each stage launches, by stage and microbatch."""
        self.called: dict[tuple[int, int], int] = {}
        """The last operator of each stage that a processor computes, by stage and microbatch."""
        self.launched: dict[int, list[int]] = defaultdict(list)
        """The launches of stages so far, by microbatch."""
        self.gathers: list[int] = []
        self.commits: list[int] = []

    def template(self) -> Template:
        draft, stages = self.draft, self.placement.stages
        for microbatch in range(self.microbatches):
            self._gather_ids(microbatch, stages[0])
        if self.weights:
            for stage in stages:
                self.weights.first(stage)
        for stage, following in zip(stages, (*stages[1:], None), strict=True):
            self._stage(stage, following)
        for microbatch in range(self.microbatches):
            self._return_answer(microbatch, stages[-1])
        outcome = len(draft.tasks) - 1
        if self.weights:
            for stage in stages:
                self.weights.for_next_step(stage)
        tasks = with_frees(draft.tasks, draft.imports, draft.discarded)
        return Template(tasks, outcome, tuple(draft.imports), self.microbatches, self.joint,
                        self.placed.traits, self.placed.is_drafter)  # fmt: skip

    def ranks(self, stage: Stage, microbatch: int) -> range:
        """The ranks that work on a microbatch."""
        return range(len(stage.devices))

    # -- the token loop's two ends ------------------------------------------------------------------

    def _gather_ids(self, microbatch: int, stage: Stage) -> None:
        draft, host = self.draft, self.placed.host
        ids = draft.tensor(f"ids.m{microbatch}@{host}", host, IDS)
        self.gathers.append(draft.add(Task(
            f"gather.m{microbatch}", "host", "gather", host, (self.placed.engine_thread(microbatch),), (),
            (ids,), microbatch, host_work="gather",
        )))  # fmt: skip
        ranks = self.ranks(stage, microbatch)
        places = [self.placed.ends(stage, rank)[0][0].device for rank in ranks]
        for rank, name in zip(ranks, draft.copy(ids.name, "ids", places, microbatch), strict=True):
            draft.values[microbatch, stage.devices[rank]]["ids"] = name

    def _return_answer(self, microbatch: int, stage: Stage) -> None:
        """The answer comes to the host; the last commit waits until new keys and values are at home too."""
        host, lane = self.placed.host, stage.devices[self.ranks(stage, microbatch)[0]]
        role = "embedding" if self.placed.model.is_encoder else "next_ids"
        answer = self.draft.values[microbatch, lane][role]
        arrived = self.draft.copy(answer, role, (host,), microbatch)[0]
        is_last = microbatch == self.microbatches - 1
        after = tuple(self.cache.stores) if self.cache and is_last else ()
        after += tuple(self.commits) if self.placement.by_sequence and is_last else ()
        thread = self.placed.engine_thread(microbatch)
        self.commits.append(self.draft.add(Task(
            f"commit.m{microbatch}", "host", "commit", host, (thread,), (arrived,), (), microbatch,
            host_work="commit", after=after,
        )))  # fmt: skip

    def _launches(self, last: PlacedOperator, stage: Stage, microbatch: int) -> tuple[int, ...]:
        """An eager engine launches kernel after kernel, in a thread of each stage, while the devices work;
        the `last` operator of the pass cannot start before it has been launched."""
        if not self.placed.eager:
            return ()
        self._count_launches(last, stage, microbatch)
        self._launch_stage(stage, microbatch)
        return tuple(self.launched[microbatch])

    def _launch_stage(self, stage: Stage, microbatch: int) -> None:
        """Launch what a stage has for a microbatch, after the preparation of the step and after what a
        processor computes of earlier stages: the thread that launches calls its operators, too."""
        number = self.placement.stages.index(stage)
        lane = stage.devices[self.ranks(stage, microbatch)[0]]
        together = self.launches[number, self.microbatches]  # of work on all microbatches
        calls = (self.called.get((earlier, microbatch)) for earlier in range(number))
        after = (self.gathers[microbatch], *(call for call in calls if call is not None))
        self.launched[microbatch].append(self.draft.add(Task(
            f"launch.{number}.m{microbatch}@{lane}", "host", "launch", self.placed.host,
            (f"{lane}.launch",), (), (), microbatch, after=after, host_work="launch",
            launches=(*self.launches[number, microbatch], *together),
        )))  # fmt: skip

    def _move_on(self, microbatch: int, stage: Stage, following: Stage, closing: Operator | None) -> None:
        """Hand the residual stream to the next stage: rank j takes it from rank j modulo their number.
        `closing` adds an open branch first. Ranks that nobody takes it from drop what they hold."""
        draft, count = self.draft, len(stage.devices)
        sources = {rank % count for rank in range(len(following.devices))}
        for rank, lane in enumerate(stage.devices):
            values = draft.values[microbatch, lane]
            if rank not in sources:
                draft.discarded += [values["residual"]] + ([values["branch"]] if closing else [])
            elif closing is not None:
                self.compute(PlacedOperator(closing, lane, lane), stage, microbatch)
        for rank, lane in enumerate(following.devices):
            residual = draft.values[microbatch, stage.devices[rank % count]]["residual"]
            role = f"residual.{following.first_layer}"
            arrived = draft.copy(residual, role, (lane,), microbatch)[0]
            draft.values[microbatch, lane]["residual"] = arrived

    # -- a stage ------------------------------------------------------------------------------------

    def _stage(self, stage: Stage, following: Stage | None) -> None:
        for microbatch in range(self.microbatches):
            ranks = self.ranks(stage, microbatch)
            self._ranks(stage, [self.placed.ends(stage, rank)[0] for rank in ranks], microbatch)
        self._layers(stage, following)

    def _layers(self, stage: Stage, following: Stage | None) -> None:
        """A microbatch that has passed the last layer goes on at once, before the stage turns to the next."""
        for layer, microbatch in self._order(stage):
            ranks = self.ranks(stage, microbatch)
            self._ranks(stage, [self.placed.layer(stage, rank, layer) for rank in ranks], microbatch)
            if self.weights and microbatch == self.microbatches - 1:
                self.weights.after(stage, layer)
            if layer == stage.layers[-1]:
                self._leave(stage, following, microbatch)

    def _leave(self, stage: Stage, following: Stage | None, microbatch: int) -> None:
        if following is None:
            self._head(stage, microbatch)
            return
        factory = self.placed.factory(stage, 0)
        is_open = factory.leaves_branch(stage.first_layer, stage.layer_count)
        closing = factory.residual_add(stage.layers[-1]) if is_open else None
        self._move_on(microbatch, stage, following, closing)
        if self.placed.eager:
            self._launch_stage(stage, microbatch)

    def _order(self, stage: Stage) -> Iterator[tuple[int, int]]:
        """A streamed stage does each layer for all microbatches before the next, so that a fetched layer
        serves them all; other stages finish a microbatch first, so that the next stage can start."""
        if any(self.placed.is_streamed(layer) for layer in stage.layers):
            return ((layer, m) for layer in stage.layers for m in range(self.microbatches))
        return ((layer, m) for m in range(self.microbatches) for layer in stage.layers)

    def _head(self, stage: Stage, microbatch: int) -> None:
        """Score and sample; of an encoder, average on every rank and take the first one's answer."""
        ranks = self.ranks(stage, microbatch)
        heads = [self.placed.ends(stage, rank)[1] for rank in ranks]
        if self.placed.model.is_encoder:
            (pool,) = heads[0]
            self.compute(pool, stage, microbatch, self._launches(pool, stage, microbatch))
            values = self.draft.values
            self.draft.discarded += [values[microbatch, lane]["residual"] for lane in stage.devices[1:]]
            return
        self._ranks(stage, heads, microbatch)
        if len(ranks) > 1:
            self._gather_logits(stage, microbatch)
        sampler = self.placed.sampler(stage, ranks[0])
        self.compute(sampler, stage, microbatch, self._launches(sampler, stage, microbatch))

    def _ranks(self, stage: Stage, shares: Sequence[Sequence[PlacedOperator]], microbatch: int) -> None:
        """The same operators on every rank, each with its share, and the reductions their summands need."""
        for placed in zip(*shares, strict=True):
            first = placed[0].operator
            for each in placed[:1] if first.once else placed:
                self.compute(each, stage, microbatch)
            if first.partial and len(placed) > 1:
                self._all_reduce(first, stage, microbatch)
        for share in shares[1:]:
            self._drop_unread(share, microbatch)

    def _drop_unread(self, share: Sequence[PlacedOperator], microbatch: int) -> None:
        """Drop what a later rank has made only for operators that the first one does for all, such as a
        choice of experts of which it holds none."""
        own = [placed for placed in share if not placed.operator.once]
        made = {value.role: placed.lane for placed in own for value in placed.operator.writes}
        for_all = {role for placed in share if placed.operator.once for role in placed.operator.reads}
        needed = {role for placed in own for role in placed.operator.reads}
        for role in sorted(for_all - needed):
            if role in made:
                self.draft.discarded.append(self.draft.values[microbatch, made[role]][role])

    def compute(
        self, placed: PlacedOperator, stage: Stage, microbatch: int, after: tuple[int, ...] = ()
    ) -> None:
        """Add an operator, after what it reads has come to its device."""
        draft, operator, lane, device = self.draft, placed.operator, placed.lane, placed.device
        if self.cache:
            self.cache.before(placed, stage, microbatch)
        values, label = draft.values[microbatch, lane], label_of(operator)
        names = [self.placed.weight_name(parameter.name, placed.where) for parameter in operator.parameters]
        weights = tuple(self.weights.name_of(name) for name in names) if self.weights else tuple(names)
        arrived = draft.here([values[role] for role in operator.reads], device, microbatch)
        writes = []
        for value in operator.writes:
            name = f"{label}.{value.role}.m{microbatch}@{placed.where}"
            writes.append(draft.tensor(name, device, draft.size(value), kind_of(value.role)))
            values[value.role] = writes[-1].name
        keeps = operator.uses_kv and operator.layer is not None
        phase = "" if placed.phase == "all" else f".{placed.phase}"
        share = Share() if operator.once else self.placed.share(stage, stage.devices.index(lane))
        after += self._launched_before(device, stage, microbatch)
        index = draft.add(Task(
            f"{label}{phase}.m{microbatch}@{placed.where}", "compute", operator.name, device, (device,),
            (*arrived, *weights), tuple(writes), microbatch, operator.layer, share, placed.phase,
            operator.works, operator.dense_flops, operator.visits, after=after,
            kv=self.placed.slab_name(operator.layer, lane) if keeps and operator.layer is not None else None,
        ))  # fmt: skip
        self._count_launches(placed, stage, microbatch)
        if self.placed.machine.devices[device].device.kind == "cpu":
            self.called[self.placement.stages.index(stage), microbatch] = index
        if self.cache:
            self.cache.after(placed, microbatch, index)
        if self.weights and operator.layer is not None:
            self.weights.used(lane, operator.layer, index)

    def _launched_before(self, device: str, stage: Stage, microbatch: int) -> tuple[int, ...]:
        """What the thread that calls the first operator of a stage on a processor has launched before."""
        is_first = (self.placement.stages.index(stage), microbatch) not in self.called
        is_called = self.placed.machine.devices[device].device.kind == "cpu"
        return tuple(self.launched[microbatch]) if is_called and is_first else ()

    def _count_launches(self, placed: PlacedOperator, stage: Stage, microbatch: int) -> None:
        """Ranks launch side by side, so those of the first one are counted; a processor's are plain calls. A
        collective is one kernel on each rank."""
        is_first = placed.lane == stage.devices[self.ranks(stage, microbatch)[0]]
        device = self.placed.machine.devices[placed.device].device
        if is_first and device.kind != "cpu":
            kernels = sum(is_needed(device, each) for each in placed.operator.works)
            self._launch(stage, microbatch, placed.operator.name, placed.operator.layer, kernels)

    def _launch(
        self, stage: Stage, microbatch: int, operator: str, layer: int | None, kernels: int = 1
    ) -> None:
        number = self.placement.stages.index(stage)
        self.launches[number, microbatch].append(Launched(operator, layer, kernels))

    # -- collectives ----------------------------------------------------------------------------------

    def _on_ranks(self, role: str, stage: Stage, microbatch: int) -> tuple[str, ...]:
        """A value of every rank, each on its own device."""
        values = self.draft.values
        return tuple(
            self.draft.here([values[microbatch, lane][role]], lane, microbatch)[0] for lane in stage.devices
        )

    def _all_reduce(self, operator: Operator, stage: Stage, microbatch: int) -> None:
        """Add the ranks' summands by a ring over the hidden dimension, as `ring_link_elements` counts."""
        draft, value, label = self.draft, operator.writes[0], label_of(operator)
        reads = self._on_ranks(value.role, stage, microbatch)
        writes = []
        for lane in stage.devices:
            name = f"{label}.reduced.m{microbatch}@{lane}"
            writes.append(draft.tensor(name, lane, draft.size(value)))
            draft.values[microbatch, lane][value.role] = writes[-1].name
        ring = list(zip(stage.devices, (*stage.devices[1:], stage.devices[0]), strict=True))
        per_link = ring_link_elements(value.elements.per("tokens"), len(stage.devices))
        traffic = [
            (draft.route(a, b), draft.size(replace(value, elements=Amount.of(tokens=count))))
            for (a, b), count in zip(ring, per_link, strict=True)
        ]
        self._launch(stage, microbatch, "all_reduce", operator.layer)
        draft.add(Task(
            f"{label}.all_reduce.m{microbatch}", "collective", "all_reduce", stage.devices[0],
            stage.devices, reads, tuple(writes), microbatch, operator.layer,
            link_bytes=link_bytes(traffic), crossings=tuple(ring),
        ))  # fmt: skip

    def _gather_logits(self, stage: Stage, microbatch: int) -> None:
        """Bring every rank's part of the logits to rank 0, in rank order."""
        draft, root = self.draft, stage.devices[0]
        reads = self._on_ranks("logits", stage, microbatch)
        whole = self.placed.whole_logits()
        joined = draft.tensor(f"logits.m{microbatch}@{root}", root, draft.size(whole), kind_of(whole.role))
        traffic = [
            (draft.route(lane, root), draft.tensors[name].nbytes)
            for lane, name in zip(stage.devices[1:], reads[1:], strict=True)
        ]
        draft.values[microbatch, root]["logits"] = joined.name
        self._launch(stage, microbatch, "gather_logits", None)
        draft.add(Task(
            f"gather_logits.m{microbatch}", "collective", "gather_logits", root, stage.devices, reads,
            (joined,), microbatch, link_bytes=link_bytes(traffic),
            crossings=tuple((lane, root) for lane in stage.devices[1:]),
        ))  # fmt: skip
