"""The plan: what one step does on devices and links, free of clock and tensors.

A `Template` is a plan with its amounts still open: tasks in program order whose bytes and FLOPs are linear
forms of the shape of their microbatch. A `Plan` is a template with the chunks of one step. Both
interpreters read the same object: `simulation/` prices it, `execution/` carries it out.

Dependencies are never written by hand. They follow from who writes what is read; `after` adds order
without data, for a buffer that must be empty before it is refilled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.graph.shape import NOTHING, PLAIN, Amount, Chunk, Phase, StepShape, Traits, total
from simulator.graph.share import Share
from simulator.graph.work import Parameter, Visits, Work

TaskKind = Literal["compute", "transfer", "collective", "host"]
TensorKind = Literal["activations", "logits", "fetched_weights", "fetched_kv"]
T = TypeVar("T")
HostWork = Literal["gather", "launch", "commit"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Something that takes up `nbytes` of one memory while it lives."""

    name: str
    memory: str
    nbytes: Amount
    kept: bool = False
    """Outlives the plan that writes it; written again, it is a new version."""
    kind: TensorKind = "activations"
    """What it is in accounts of memory."""
    buffer: str | None = None
    """The reusable place it is written to; a second tensor may go there once the first is freed."""


@dataclass(frozen=True, slots=True)
class Launched:
    """Kernels of one operator that an eager engine launches one by one."""

    operator: str
    layer: int | None
    kernels: int


@dataclass(frozen=True, slots=True)
class Resident:
    """A weight, or a rank's part of it, that stays in one memory for as long as the model is served."""

    tensor: Tensor
    parameter: Parameter


@dataclass(frozen=True, slots=True)
class KvSlab:
    """The KV blocks of one layer in one memory: `head_count` of its KV heads from `head_start`, each with
    `planes` (keys and values, or one vector for both) of `width` numbers."""

    name: str
    memory: str
    layer: int
    head_start: int
    head_count: int
    planes: int
    width: int
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class StateSlab:
    """The states of one layer of linear attention in one memory: as many numbers for every sequence."""

    name: str
    memory: str
    layer: int
    elements: int
    bytes_per_sequence: int


@dataclass(frozen=True, slots=True)
class KvCopy:
    """Some heads of one layer's cached tokens, from one slab to another."""

    source: KvSlab
    target: KvSlab
    head_start: int
    head_count: int


@dataclass(frozen=True, slots=True)
class Task:
    """One thing a device, a link or the engine's thread does.

    A transfer copies each tensor it reads to the one it writes at the same position, or its only read to
    every write. A collective combines what it reads: `all_reduce` adds, `gather` joins.
    """

    name: str
    kind: TaskKind
    operator: str
    place: str
    """The device (or host) that computes; for a transfer the one that receives."""
    units: tuple[str, ...]
    """In-order streams held from start to end, all at once."""
    reads: tuple[str, ...]
    writes: tuple[Tensor, ...]
    microbatch: int = 0
    layer: int | None = None
    share: Share | None = None
    phase: Phase = "all"
    """Which chunks of the microbatch it is for."""
    works: tuple[Work, ...] = ()
    dense_flops: Amount = NOTHING
    visits: Visits | None = None
    """Of work that depends on the experts that tokens choose; `dense_flops` is then an expectation."""
    link_bytes: tuple[tuple[str, Amount], ...] = ()
    """Exact bytes over each directed link."""
    after: tuple[int, ...] = ()
    frees: tuple[str, ...] = ()
    kv: str | None = None
    """The slab of KV blocks or states read or written in place; streams keep its uses in order. A transfer
    copies cached tokens out of it, or new ones into it."""
    kv_copy: KvCopy | None = None
    host_work: HostWork | None = None
    launches: tuple[Launched, ...] = ()
    """What a `launch` starts, one after the other."""
    crossings: tuple[tuple[str, str], ...] = ()
    """Transitions between devices that a token's own pass makes here, as (from, to)."""


@dataclass(frozen=True)
class Template:
    """A plan for every step of one topology: the same tasks whatever the chunks."""

    tasks: tuple[Task, ...]
    """In program order, which is a topological order and the order of every stream."""
    outcome: int
    """The task whose end lets the serving loop go on; later ones may trail."""
    imports: tuple[str, ...] = ()
    """Kept tensors that an earlier plan wrote and this one reads."""
    microbatch_count: int = 1
    joint: bool = False
    """Whether some tasks work on all microbatches together; for them these count as one more microbatch,
    and bytes over links may be forms of all shapes side by side."""
    traits: Traits = PLAIN
    """Of the model, which decide the features of a step."""
    of_drafter: bool = False
    """Whether it proposes tokens, and does not choose them."""
    is_beside_steps: bool = False
    """Whether its loop goes on meanwhile, so that it may meet steps, and others of its kind."""

    @cached_property
    def needs(self) -> tuple[tuple[int, ...], ...]:
        """For each task the earlier tasks whose data or order it waits for, ascending."""
        writer: dict[str, int] = {}
        result = []
        for index, task in enumerate(self.tasks):
            found = {writer[name] for name in task.reads if name in writer}
            result.append(tuple(sorted(found.union(task.after))))
            writer.update({tensor.name: index for tensor in task.writes})
        return tuple(result)

    @cached_property
    def previous_on_units(self) -> tuple[tuple[int, ...], ...]:
        """For each task the last earlier task on each of its streams, without repeats, ascending."""
        last: dict[str, int] = {}
        result = []
        for index, task in enumerate(self.tasks):
            result.append(tuple(sorted({last[unit] for unit in task.units if unit in last})))
            last.update(dict.fromkeys(task.units, index))
        return tuple(result)

    def shapes(self, chunks: Sequence[Iterable[Chunk]]) -> tuple[StepShape, ...]:
        """The shape of each microbatch and, if some tasks are for all of them, of all together."""
        parts = [tuple(part) for part in chunks]
        if self.joint:
            parts.append(tuple(chunk for part in parts for chunk in part))
        return tuple(StepShape.of(part, self.traits) for part in parts)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Everything the plan writes, by name."""
        return {tensor.name: tensor for task in self.tasks for tensor in task.writes}


@dataclass(frozen=True)
class Plan:
    """A template with the chunks of one step, a tuple of them for each microbatch."""

    template: Template
    chunks: tuple[tuple[Chunk, ...], ...]
    shapes: tuple[StepShape, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", self.template.shapes(self.chunks))

    def amount(self, task: Task, amount: Amount) -> int:
        """`amount` for the microbatch of `task`, or for all of them."""
        return amount.at(of_microbatch(self.shapes, task.microbatch, amount))

    def chunks_of(self, task: Task) -> tuple[Chunk, ...]:
        """The chunks that a task works on."""
        parts = (*self.chunks, tuple(chunk for part in self.chunks for chunk in part))
        return parts[task.microbatch]

    def link_bytes(self, task: Task) -> tuple[tuple[str, int], ...]:
        return tuple((link, self.amount(task, amount)) for link, amount in task.link_bytes)


def of_microbatch(rows: Sequence[Sequence[T]], microbatch: int, amount: Amount) -> Sequence[T]:
    """Of features by microbatch, those that an amount is a form of: one microbatch's, or all side by side."""
    if len(amount.coefficients) == len(rows[microbatch]):
        return rows[microbatch]
    return [feature for row in rows for feature in row]


def with_frees(
    tasks: Sequence[Task], imports: Sequence[str], discarded: Sequence[str] = ()
) -> tuple[Task, ...]:
    """Let the last task that reads a plan's own or imported tensor free it, and the task that writes a
    `discarded` one, which nobody reads. Where the last of several readers may end before others, the first
    task after it that cannot frees the tensor."""
    passing = {tensor.name for task in tasks for tensor in task.writes if not tensor.kept}.union(imports)
    users: dict[str, list[int]] = defaultdict(list)
    for index, task in enumerate(tasks):
        for name in task.reads:
            if name in passing:
                users[name].append(index)
        for tensor in task.writes:
            if tensor.name in discarded:
                users[tensor.name].append(index)
    order = Order(tasks)
    frees: dict[int, list[str]] = defaultdict(list)
    for name, indices in users.items():
        frees[order.first_after(indices)].append(name)
    return tuple(replace(task, frees=tuple(frees[index])) for index, task in enumerate(tasks))


class Order:
    """Which tasks are sure to have ended before others start, however long they take."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks

    @cached_property
    def _ancestors(self) -> list[int]:
        """For each task the set of those that end before it starts, as bits."""
        template = Template(tuple(self._tasks), len(self._tasks) - 1)
        found: list[int] = []
        for index in range(len(self._tasks)):
            mask = 0
            for other in (*template.needs[index], *template.previous_on_units[index]):
                mask |= found[other] | 1 << other
            found.append(mask)
        return found

    def before(self, indices: Sequence[int]) -> NDArray[np.bool_]:
        """For each of some tasks, a row that says of every task whether it ends before that one starts."""
        size = -(-len(self._tasks) // 8)
        packed = b"".join(self._ancestors[index].to_bytes(size, "little") for index in indices)
        rows = np.frombuffer(packed, dtype=np.uint8).reshape(len(indices), size)
        bits = np.unpackbits(rows, axis=1, count=len(self._tasks), bitorder="little")
        return bits.view(np.bool_)

    def first_after(self, indices: Sequence[int]) -> int:
        """The first task, from the last of some on, that ends last of all of them."""
        latest = indices[-1]
        last = set(self._tasks[latest].units)
        if all(last & set(self._tasks[index].units) for index in indices):
            return latest
        others = sum(1 << index for index in set(indices) - {latest})
        if self._ancestors[latest] & others == others:
            return latest
        wanted = others | 1 << latest
        found = (i for i in range(latest, len(self._tasks)) if self._ancestors[i] & wanted == wanted)
        first = next(found, None)
        assert first is not None, f"{self._tasks[latest].name}: nothing follows all readers of its input"
        return first


def flaws(template: Template, resident: Iterable[str]) -> list[str]:
    """Everything that makes a template unfit to run, in words; empty for a sound one.

    A sound template reads only what is resident, imported or written before and not yet freed; it writes no
    name twice, reads all it writes (or discards it on the spot), frees all it does not keep. What it does to
    KV blocks is done when the serving loop goes on: a later step may look for it from other streams.
    """
    known, found = set(resident) | set(template.imports), []
    alive, written, read = set(known), set[str](), set[str]()
    for task in template.tasks:
        found += [f"{task.name} reads {name}, which nobody wrote" for name in task.reads if name not in alive]
        read.update(task.reads)
        for tensor in task.writes:
            if tensor.name in written:
                found.append(f"{task.name} writes {tensor.name} a second time")
            written.add(tensor.name)
            alive.add(tensor.name)
        attends = any(work.operator_class.startswith("attention") for work in task.works)
        if not attends and total(work.flops for work in task.works) != task.dense_flops:
            found.append(f"{task.name} is priced for other FLOPs than it does")
        found += [f"{task.name} frees {name}, which is not there" for name in task.frees if name not in alive]
        read.update(tensor.name for tensor in task.writes if tensor.name in task.frees)
        alive.difference_update(task.frees)
    tensors = template.tensors
    found += [f"{name} is written and never read" for name in written - read if not tensors[name].kept]
    found += [f"{name} is never freed" for name in alive & written if not tensors[name].kept]
    return found + _late_for_the_next_step(template)


def _late_for_the_next_step(template: Template) -> list[str]:
    users = [index for index, task in enumerate(template.tasks) if task.kv is not None]
    if not users:
        return []
    (before,) = Order(template.tasks).before([template.outcome])
    return [f"{template.tasks[index].name} may still be busy with KV blocks when the step is over"
            for index in users if not before[index]]  # fmt: skip
