"""Weights that come to their device each time they are used: fetches, buffers, and what one step leaves for
the next."""

from __future__ import annotations

from simulator.graph.shape import Amount
from simulator.graph.work import Parameter
from simulator.placement.draft import Draft
from simulator.placement.placed import fetched_name, home_name, weight_name
from simulator.placement.placement import Stage, Streaming
from simulator.placement.plan import Task, Tensor
from simulator.placement.traffic import link_bytes


class WeightFetches:
    """The fetches of a step. A buffer is refilled once the layer in it has been computed."""

    def __init__(self, draft: Draft, streaming: Streaming) -> None:
        self._draft, self._placed, self._streaming = draft, draft.placed, streaming
        self._last_use: dict[tuple[str, int], int] = {}
        self._fetched: dict[str, str] = {}

    def used(self, lane: str, layer: int, task: int) -> None:
        """Note the latest task on a lane that uses a layer's weights."""
        self._last_use[lane, layer] = task

    def name_of(self, weight: str) -> str:
        """The tensor that holds a weight in this step."""
        return self._fetched.get(weight, weight)

    def first(self, stage: Stage) -> None:
        """Fill the buffers at the start of a step, unless an earlier step has."""
        for layer in self._streamed(stage)[: self._streaming.buffers]:
            for rank, lane in enumerate(stage.devices):
                if self._draft.warm:
                    names = [weight_name(p.name, lane) for p in self._parameters(stage, rank, layer)]
                    self._draft.imports += names
                else:
                    self._fetch(stage, rank, layer, after=(), kept=False)

    def after(self, stage: Stage, layer: int) -> None:
        """Once `layer` is done, refill its buffer with the layer that comes so many buffers later."""
        streamed = self._streamed(stage)
        if layer not in streamed:
            return
        following = streamed.index(layer) + self._streaming.buffers
        if following < len(streamed):
            for rank, lane in enumerate(stage.devices):
                after = (self._last_use[lane, layer],)
                self._fetch(stage, rank, streamed[following], after, kept=False)

    def for_next_step(self, stage: Stage) -> None:
        """Fill the buffers for the next step as soon as they are free."""
        if not self._streaming.across_steps:
            return
        streamed, buffers = self._streamed(stage), self._streaming.buffers
        for position, layer in enumerate(streamed[:buffers]):
            occupants = [other for index, other in enumerate(streamed) if index % buffers == position]
            for rank, lane in enumerate(stage.devices):
                after = (self._last_use[lane, occupants[-1]],)
                self._fetch(stage, rank, layer, after, kept=True)

    def _streamed(self, stage: Stage) -> list[int]:
        return [layer for layer in stage.layers if self._placed.is_streamed(layer)]

    def _parameters(self, stage: Stage, rank: int, layer: int) -> list[Parameter]:
        fetched = (p.operator for p in self._placed.layer(stage, rank, layer) if self._placed.is_fetched(p))
        return list({p.name: p for operator in fetched for p in operator.parameters}.values())

    def _fetch(self, stage: Stage, rank: int, layer: int, after: tuple[int, ...], kept: bool) -> None:
        draft, lane, home = self._draft, stage.devices[rank], self._placed.home_of(layer)
        parameters = self._parameters(stage, rank, layer)
        position = self._streamed(stage).index(layer) % self._streaming.buffers
        sizes = [Amount.of(one=self._placed.parameter_bytes(p)) for p in parameters]
        names = [weight_name(p.name, lane) for p in parameters]
        if not kept:  # a step's own copy must not share its name with the one left for the next step
            self._fetched.update({name: fetched_name(name) for name in names})
            names = [fetched_name(name) for name in names]
        memory, buffer = draft.memory(lane), f"{lane}.buffer-{stage.first_layer}-{position}"
        writes = tuple(
            Tensor(name, memory, size, kept, "fetched_weights", buffer)
            for name, size in zip(names, sizes, strict=True)
        )
        route = draft.machine.route(home, memory)
        draft.add(Task(
            f"fetch.{layer}{'.next' if kept else ''}@{lane}", "transfer", "fetch", lane,
            draft.transfer_units(home, (lane,)), tuple(home_name(p.name, lane) for p in parameters), writes,
            layer=layer, link_bytes=link_bytes([(route, size) for size in sizes]), after=after,
        ))  # fmt: skip
