"""The most that a plan's own tensors can take up of a memory at once, however long its tasks take.

A tensor takes its room when the task that writes it starts, and leaves it when the task that frees it ends.
Of two tensors on streams that do not wait for each other the plan does not say which comes first, so both
count: what is found is a bound for every schedule, and exact where tasks follow one another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.placement.plan import Order, Plan, Tensor

NEVER = -1


@dataclass(frozen=True, slots=True)
class _Held:
    """A tensor of one memory: what it is, its size, and the tasks that write and free it."""

    kind: str
    nbytes: int
    written_by: int
    """NEVER for one that an earlier plan wrote."""
    freed_by: int
    """NEVER for one that outlives the plan."""


def most_alive(plan: Plan, imported: Mapping[str, Tensor] | None = None) -> dict[str, Counter[str]]:
    """By memory, bytes of each kind of tensor at the moment at which all of them together may take most.

    imported: kept tensors of earlier plans that the template may import, by name.
    """
    order = Order(plan.template.tasks)
    return {memory: _most(held, order) for memory, held in _by_memory(plan, imported or {}).items()}


def _by_memory(plan: Plan, imported: Mapping[str, Tensor]) -> dict[str, list[_Held]]:
    tasks = plan.template.tasks
    freed_by = {name: index for index, task in enumerate(tasks) for name in task.frees}
    found: dict[str, list[_Held]] = defaultdict(list)
    for name in plan.template.imports:
        tensor = imported[name]
        size = plan.amount(tasks[0], tensor.nbytes)
        found[tensor.memory].append(_Held(tensor.kind, size, NEVER, freed_by[name]))
    for index, task in enumerate(tasks):
        for tensor in task.writes:
            size = plan.amount(task, tensor.nbytes)
            found[tensor.memory].append(_Held(tensor.kind, size, index, freed_by.get(tensor.name, NEVER)))
    return found


def _most(held: Sequence[_Held], order: Order) -> Counter[str]:
    """Of the moments at which a tensor of this memory is written, the fullest one."""
    written = np.array([each.written_by for each in held])
    freed = np.array([each.freed_by for each in held])
    sizes = np.array([each.nbytes for each in held], dtype=np.int64)
    moments = np.unique(written[written != NEVER])
    if not len(moments):
        moments = np.array([0])
    before = order.before(moments.tolist())
    is_gone = before[:, freed] & (freed != NEVER)
    row_of = np.searchsorted(moments, written)
    own = before[np.minimum(row_of, len(moments) - 1)]
    is_to_come = own[:, moments].T & (written != NEVER)
    alive: NDArray[np.bool_] = ~is_gone & ~is_to_come
    fullest = alive[int(np.argmax(alive @ sizes))]
    kinds: Counter[str] = Counter()
    for each, is_alive in zip(held, fullest.tolist(), strict=True):
        if is_alive:
            kinds[each.kind] += each.nbytes
    return kinds
