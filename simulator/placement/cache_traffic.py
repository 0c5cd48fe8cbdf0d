"""KV blocks in another memory than that of the device which attends to them: cached tokens come before the
attention, new ones go home after it."""

from __future__ import annotations

from collections import defaultdict

from simulator.graph.attention import cached
from simulator.graph.cache_apart import CACHED_KV, NEW_KV, cached_tokens, role_in
from simulator.graph.shape import Amount
from simulator.graph.work import byte_amount
from simulator.placement.draft import Draft, kind_of
from simulator.placement.placed import PlacedOperator, slab_name
from simulator.placement.placement import KvHome, Stage
from simulator.placement.plan import Task
from simulator.placement.traffic import link_bytes
from simulator.specs.architecture import Attention


class CacheTraffic:
    """Copies of cached tokens to lanes and of new ones home. At most so many layers' cached tokens lie in a
    device at once as the placement has buffers for, and so do new ones: before more are fetched, those of the
    layer that had the buffer must have been attended to and have gone home."""

    def __init__(self, draft: Draft, home: KvHome) -> None:
        self._draft, self._home = draft, home
        self._attended: dict[str, list[int]] = defaultdict(list)
        """By lane, the tasks that have used fetched tokens, in order."""
        self._stored: dict[str, list[int]] = defaultdict(list)
        """By lane, the copies of its new tokens, in order."""
        self.stores: list[int] = []
        """Tasks that bring new tokens home; until they have ended the step is not over."""

    def before(self, placed: PlacedOperator, stage: Stage, microbatch: int) -> None:
        """Bring what the operator reads of the cache."""
        role, lane, layer = role_in(CACHED_KV, placed.phase), placed.lane, placed.operator.layer
        if role not in placed.operator.reads or layer is None:
            return
        draft, source = self._draft, self._home.memory
        nbytes = self._cached_bytes(placed, stage, layer)
        name = f"{layer}.{role}.m{microbatch}@{lane}"
        buffer = f"{lane}.kv-buffer-{len(self._attended[lane]) % self._home.buffers}"
        tensor = draft.tensor(name, placed.device, nbytes, kind_of(role), buffer)
        draft.values[microbatch, lane][role] = tensor.name
        draft.add(Task(
            f"kv_fetch.{layer}.m{microbatch}@{lane}", "transfer", "kv_fetch", placed.device,
            draft.transfer_units(source, (placed.device,)), (), (tensor,), microbatch, layer,
            phase=placed.phase, kv=slab_name(layer, lane),
            link_bytes=link_bytes([(draft.route(source, placed.device), nbytes)]),
            after=self._buffer_is_free(lane),
        ))  # fmt: skip

    def _buffer_is_free(self, lane: str) -> tuple[int, ...]:
        """The tasks that last used what the next tokens will lie in the place of."""
        uses = (self._attended[lane], self._stored[lane])
        return tuple(tasks[-self._home.buffers] for tasks in uses if len(tasks) >= self._home.buffers)

    def _cached_bytes(self, placed: PlacedOperator, stage: Stage, layer: int) -> Amount:
        spec, formats = self._draft.placed.model.layers[layer], self._draft.placed.formats
        share = self._draft.placed.share(stage, stage.devices.index(placed.lane))
        kept = cached(spec, share)
        assert kept is not None
        has_window = isinstance(spec.attention, Attention) and spec.attention.sliding_window is not None
        tokens = cached_tokens(has_window, placed.phase)
        return byte_amount(tokens * kept.elements, formats.kv_cache)

    def after(self, placed: PlacedOperator, microbatch: int, task: int) -> None:
        """Note who used what was brought; send the new tokens home once they have been attended to."""
        role, lane, layer = role_in(NEW_KV, placed.phase), placed.lane, placed.operator.layer
        if role not in placed.operator.reads or layer is None:
            return
        draft, target = self._draft, self._home.memory
        self._attended[lane].append(task)
        new = draft.values[microbatch, lane][role]
        route = draft.route(placed.device, target)
        self._stored[lane].append(draft.add(Task(
            f"kv_store.{layer}.m{microbatch}@{lane}", "transfer", "kv_store", target,
            draft.transfer_units(placed.device, (target,)), (new,), (), microbatch, layer,
            phase=placed.phase, kv=slab_name(layer, lane),
            link_bytes=link_bytes([(route, draft.tensors[new].nbytes)]), after=(task,),
        )))  # fmt: skip
        self.stores.append(self._stored[lane][-1])
