"""The most that a plan's own tensors can take up of a memory at once, however long its tasks take.

A tensor takes its room when the task that writes it starts, and leaves it when the task that frees it ends.
Of two tensors on streams that do not wait for each other the plan does not say which comes first, so both
count: what is found is a bound for every schedule, and exact where tasks follow one another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.placement.plan import Order, Plan, Task, Template, Tensor

NEVER = -1


@dataclass(frozen=True, slots=True)
class _Held:
    """A tensor of one memory, and the tasks that write and free it."""

    tensor: Tensor
    task: Task
    """For whose microbatch its size is meant."""
    written_by: int
    """NEVER for one that an earlier plan wrote."""
    freed_by: int
    """NEVER for one that outlives the plan."""


@dataclass(frozen=True)
class Liveness:
    """Which tensors of a template may be alive together."""

    template: Template
    imported: Mapping[str, Tensor]
    """Kept tensors of earlier plans that the template may import, by name."""

    @cached_property
    def _held(self) -> dict[str, list[_Held]]:
        """The tensors of each memory."""
        tasks = self.template.tasks
        freed_by = {name: index for index, task in enumerate(tasks) for name in task.frees}
        found: dict[str, list[_Held]] = defaultdict(list)
        for name in self.template.imports:
            tensor = self.imported[name]
            found[tensor.memory].append(_Held(tensor, tasks[0], NEVER, freed_by[name]))
        for index, task in enumerate(tasks):
            for tensor in task.writes:
                held = _Held(tensor, task, index, freed_by.get(tensor.name, NEVER))
                found[tensor.memory].append(held)
        return found

    @cached_property
    def _alive(self) -> dict[str, NDArray[np.bool_]]:
        """By memory, a row for each moment at which something is written to it: what may be there then."""
        order = Order(self.template.tasks)
        return {memory: _alive_together(held, order) for memory, held in self._held.items()}

    def most(self, plan: Plan) -> dict[str, Counter[str]]:
        """By memory, bytes of each kind of tensor at the moment at which all together may take most."""
        found = {}
        for memory, held in self._held.items():
            sizes = [plan.amount(each.task, each.tensor.nbytes) for each in held]
            alive = self._alive[memory]
            fullest = alive[int(np.argmax(alive @ np.array(sizes, dtype=np.int64)))].tolist()
            kinds: Counter[str] = Counter()
            for each, size, is_alive in zip(held, sizes, fullest, strict=True):
                kinds[each.tensor.kind] += size * is_alive
            found[memory] = kinds
        return found


def _alive_together(held: Sequence[_Held], order: Order) -> NDArray[np.bool_]:
    written = np.array([each.written_by for each in held])
    freed = np.array([each.freed_by for each in held])
    moments = np.unique(written[written != NEVER])
    if not len(moments):
        return np.ones((1, len(held)), dtype=np.bool_)
    before = order.before(moments.tolist())
    is_gone = before[:, freed] & (freed != NEVER)
    own_moment = np.minimum(np.searchsorted(moments, written), len(moments) - 1)
    is_to_come = before[own_moment][:, moments].T & (written != NEVER)
    alive: NDArray[np.bool_] = ~is_gone & ~is_to_come
    return alive
