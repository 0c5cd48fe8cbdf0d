"""Collectives as they are really done, copy by copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from simulator.execution.stores import Stores
from simulator.graph.shape import split_evenly, starts_of
from simulator.placement.plan import Task


def _all_reduce(stores: Stores, task: Task) -> Sequence[Tensor]:
    """A ring: every rank's summand is cut into as many pieces as there are ranks; each piece goes round
    once to be added up and once to be handed out."""
    memories = [tensor.memory for tensor in task.writes]
    ranks = len(memories)
    parts = [stores.get(memory, name).clone() for memory, name in zip(memories, task.reads, strict=True)]
    sizes = split_evenly(parts[0].shape[1], ranks)
    starts = starts_of(sizes)

    def piece(rank: int, number: int) -> Tensor:
        return parts[rank].narrow(1, starts[number % ranks], sizes[number % ranks])

    for adding in (True, False):
        for step in range(ranks - 1):
            first = 0 if adding else 1
            sent = [piece(rank, rank + first - step).clone() for rank in range(ranks)]
            for rank, part in enumerate(sent):
                target = (rank + 1) % ranks
                arrived = stores.copy(part, memories[rank], memories[target])
                place = piece(target, rank + first - step)
                place.copy_(place + arrived if adding else arrived)
    return parts


def _gather_logits(stores: Stores, task: Task) -> Sequence[Tensor]:
    """Every rank's part of the vocabulary, side by side on the first."""
    machine = stores.machine
    root = machine.memory_of(task.place)
    parts = []
    for device, name in zip(task.units, task.reads, strict=True):
        memory = machine.memory_of(device)
        part = stores.get(memory, name)
        parts.append(part if memory == root else stores.copy(part, memory, root))
    return (torch.cat(parts, dim=-1),)


COLLECTIVES: Mapping[str, Callable[[Stores, Task], Sequence[Tensor]]] = {
    "all_reduce": _all_reduce,
    "gather_logits": _gather_logits,
}
