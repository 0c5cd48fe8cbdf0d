"""Collectives as they are really done, copy by copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from simulator.execution.stores import Stores
from simulator.graph.shape import split_evenly, starts_of
from simulator.placement.plan import Task

Rows = list[int]
"""Tokens of each microbatch."""


def _all_reduce(stores: Stores, task: Task, _: Rows) -> Sequence[Tensor]:
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


def _gather_logits(stores: Stores, task: Task, _: Rows) -> Sequence[Tensor]:
    """Every rank's part of the vocabulary, side by side on the first."""
    machine = stores.machine
    root = machine.memory_of(task.place)
    parts = []
    for device, name in zip(task.units, task.reads, strict=True):
        memory = machine.memory_of(device)
        part = stores.get(memory, name)
        parts.append(part if memory == root else stores.copy(part, memory, root))
    return (torch.cat(parts, dim=-1),)


def _all_gather_tokens(stores: Stores, task: Task, _: Rows) -> Sequence[Tensor]:
    """Every rank's tokens on all ranks, in rank order; each piece goes round the ring, value by value."""
    ranks, memories = len(task.units), [stores.machine.memory_of(device) for device in task.units]
    results = []
    for first in range(0, len(task.reads), ranks):
        names = task.reads[first : first + ranks]
        pieces = [stores.get(memory, name) for memory, name in zip(memories, names, strict=True)]
        gathered = [list(pieces) for _ in range(ranks)]
        for start in range(ranks):
            for hop in range(ranks - 1):
                source, target = (start + hop) % ranks, (start + hop + 1) % ranks
                arrived = stores.copy(gathered[source][start], memories[source], memories[target])
                gathered[target][start] = arrived
        results += [torch.cat(rows) for rows in gathered]
    return results


def _reduce_scatter_tokens(stores: Stores, task: Task, rows: Rows) -> Sequence[Tensor]:
    """Of the sum over ranks, each rank its own tokens; a piece is added up on its way round the ring."""
    ranks, memories = len(task.units), [stores.machine.memory_of(device) for device in task.units]
    parts = [stores.get(memory, name).split(rows) for memory, name in zip(memories, task.reads, strict=True)]
    results = []
    for owner in range(ranks):
        total = parts[(owner + 1) % ranks][owner]
        for hop in range(1, ranks):
            source, target = (owner + hop) % ranks, (owner + hop + 1) % ranks
            total = parts[target][owner] + stores.copy(total, memories[source], memories[target])
        results.append(total)
    return results


COLLECTIVES: Mapping[str, Callable[[Stores, Task, Rows], Sequence[Tensor]]] = {
    "all_reduce": _all_reduce,
    "gather_logits": _gather_logits,
    "all_gather_tokens": _all_gather_tokens,
    "reduce_scatter_tokens": _reduce_scatter_tokens,
}
