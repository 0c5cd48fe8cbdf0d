"""The most that a plan's own tensors can take up of a memory at once, however long its tasks take.

A tensor takes its room when the task that writes it starts, and leaves it when the task that frees it ends.
The tensors of a memory are told apart by the stream that writes them. Tasks of one stream follow one another,
so what its tensors can take is known moment by moment: what it has written, less what is sure to be gone.
Streams do not wait for each other unless the plan says so; the most of each is added up. That is a bound for
every schedule, and exact where one stream writes to a memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.graph.shape import Chunk, StepShape
from simulator.placement.plan import Order, Plan, Task, Template, Tensor

START, NEVER = -1, -1


@dataclass
class _Written:
    """The tensors that one stream writes to one memory."""

    tensors: list[Tensor] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    """For whose microbatch each one's size is meant."""
    written_by: list[int] = field(default_factory=list)
    """START for one that an earlier plan wrote."""
    freed_by: list[int] = field(default_factory=list)
    """NEVER for one that outlives the plan."""

    def add(self, tensor: Tensor, task: Task, written_by: int, freed_by: int) -> None:
        self.tensors.append(tensor)
        self.tasks.append(task)
        self.written_by.append(written_by)
        self.freed_by.append(freed_by)

    def alive(self, order: Order) -> NDArray[np.bool_]:
        """A row for each moment at which the stream writes: which of its tensors may be there then."""
        written, freed = np.array(self.written_by), np.array(self.freed_by)
        moments = np.unique(written)
        tasks = moments[moments != START]
        is_gone = np.zeros((len(moments), len(freed)), dtype=np.bool_)
        if len(tasks):
            is_gone[len(moments) - len(tasks) :] = order.before(tasks.tolist())[:, freed] & (freed != NEVER)
        alive: NDArray[np.bool_] = (written[None, :] <= moments[:, None]) & ~is_gone
        return alive


@dataclass(frozen=True)
class Liveness:
    """Which tensors of a template may be alive together."""

    template: Template
    imported: Mapping[str, Tensor]
    """Kept tensors of earlier plans that the template may import, by name."""

    @cached_property
    def _streams(self) -> dict[tuple[str, str], _Written]:
        """What each stream writes to each memory. What was imported belongs to the stream that writes it
        again."""
        tasks = self.template.tasks
        freed_by = {name: index for index, task in enumerate(tasks) for name in task.frees}
        stream_of = {t.name: _stream(task, t.memory) for task in tasks for t in task.writes}
        found: defaultdict[tuple[str, str], _Written] = defaultdict(_Written)
        for name in self.template.imports:
            tensor = self.imported[name]
            found[tensor.memory, stream_of[name]].add(tensor, tasks[0], START, freed_by[name])
        for index, task in enumerate(tasks):
            for tensor in task.writes:
                freed = NEVER if tensor.kept else freed_by.get(tensor.name, NEVER)
                found[tensor.memory, stream_of[tensor.name]].add(tensor, task, index, freed)
        return dict(found)

    @cached_property
    def _alive(self) -> dict[tuple[str, str], NDArray[np.bool_]]:
        order = Order(self.template.tasks)
        return {place: written.alive(order) for place, written in self._streams.items()}

    def most(self, plan: Plan) -> dict[str, Counter[str]]:
        """By memory, bytes of each kind of tensor, those of each stream at its own fullest moment."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for place, written in self._streams.items():
            pairs = zip(written.tasks, written.tensors, strict=True)
            sizes = [plan.amount(task, tensor.nbytes) for task, tensor in pairs]
            alive = self._alive[place]
            fullest = alive[int(np.argmax(alive @ np.array(sizes, dtype=np.int64)))].tolist()
            for tensor, size, is_alive in zip(written.tensors, sizes, fullest, strict=True):
                found[place[0]][tensor.kind] += size * is_alive
        return dict(found)

    def by_microbatch(self, chunks: Sequence[Chunk]) -> dict[tuple[str, str], NDArray[np.int64]]:
        """By memory and stream, bytes at each moment (columns) of the tensors of each microbatch (rows), if
        it gets these chunks. For templates whose tasks work on one microbatch each."""
        shape = StepShape.of(chunks, self.template.traits)
        found = {}
        for place, written in self._streams.items():
            sizes = np.array([tensor.nbytes.at(shape) for tensor in written.tensors], dtype=np.int64)
            numbers, alive = np.array([task.microbatch for task in written.tasks]), self._alive[place]
            own = (numbers == microbatch for microbatch in range(self.template.microbatch_count))
            found[place] = np.stack([alive[:, mask] @ sizes[mask] for mask in own])
        return found


def _stream(task: Task, memory: str) -> str:
    """The stream that a task writes to a memory by: one of the memory's own if it holds any. A copy between
    two hosts holds none, so it waits for nobody: it is a stream by itself."""
    own = (unit for unit in task.units if unit in (memory, f"{memory}.in"))
    return next(own, task.units[0] if task.units else task.name)
