"""The most that a plan's own tensors can take up of a memory at once, however long its tasks take.

A tensor takes its room when the task that writes it starts, and leaves it when the task that frees it ends.
Of two tensors on streams that do not wait for each other the plan does not say which comes first, so both
count: what is found is a bound for every schedule, and exact where tasks follow one another.

Two bounds are known, and the smaller one holds. What may be there whenever something is written: of other
streams this counts all that need not be gone by then, also what excludes each other. And for each stream by
itself the most that there may be of what it writes, added up: as if all were fullest together.
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
    def _alive(self) -> dict[str, tuple[list[_Moments], list[_Moments]]]:
        """By memory, what may be there together: of all its tensors, and of those of each stream."""
        order = Order(self.template.tasks)
        found = {}
        for memory, held in self._held.items():
            streams = [_Moments(_alive_together(group, order), group) for group in _by_stream(held)]
            found[memory] = ([_Moments(_alive_together(held, order), held)], streams)
        return found

    def most(self, plan: Plan) -> dict[str, Counter[str]]:
        """By memory, bytes of each kind of tensor when all together may take most."""
        found = {}
        for memory, bounds in self._alive.items():
            both = [sum((each.most(plan) for each in groups), Counter[str]()) for groups in bounds]
            found[memory] = min(both, key=Counter.total)
        return found


@dataclass(frozen=True, slots=True)
class _Moments:
    """Some tensors, and a row for each moment at which one of them is written: which may be there then."""

    alive: NDArray[np.bool_]
    held: Sequence[_Held]

    def most(self, plan: Plan) -> Counter[str]:
        """Bytes of each kind at the fullest moment."""
        sizes = [plan.amount(each.task, each.tensor.nbytes) for each in self.held]
        fullest = self.alive[int(np.argmax(self.alive @ np.array(sizes, dtype=np.int64)))].tolist()
        kinds: Counter[str] = Counter()
        for each, size, is_alive in zip(self.held, sizes, fullest, strict=True):
            kinds[each.tensor.kind] += size * is_alive
        return kinds


def _by_stream(held: Sequence[_Held]) -> list[list[_Held]]:
    """Tensors that tasks of the same streams write; those of earlier plans by themselves."""
    groups: dict[tuple[str, ...] | None, list[_Held]] = defaultdict(list)
    for each in held:
        groups[each.task.units if each.written_by != NEVER else None].append(each)
    return list(groups.values())


def _alive_together(held: Sequence[_Held], order: Order) -> NDArray[np.bool_]:
    """A row for each moment at which one of the tensors is written; one row of all if that is never."""
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
