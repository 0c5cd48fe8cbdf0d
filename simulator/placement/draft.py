"""A template in the making: tasks so far, which tensor holds each value, and the copies between memories.

A value is known by its role and its *lane*: the device of one rank of a stage. The tensor that holds it may
lie in any memory; whoever reads it on another device has it copied there, once for each memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from simulator.graph.cache_apart import CACHED_KV, NEW_KV
from simulator.graph.machine import Directed
from simulator.graph.operators import TOKEN_ID_BYTES
from simulator.graph.shape import Amount
from simulator.graph.work import Operator, Value, byte_amount
from simulator.placement.placed import Placed
from simulator.placement.plan import Task, Tensor, TensorKind
from simulator.placement.traffic import link_bytes


class Draft:
    """What all parts of a lowering write to."""

    def __init__(self, placed: Placed, microbatches: int, warm: bool) -> None:
        self.placed, self.machine = placed, placed.machine
        self.microbatches, self.warm = microbatches, warm
        self.tasks: list[Task] = []
        self.values: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
        """By microbatch and lane, the tensor of each role."""
        self.tensors: dict[str, Tensor] = {}
        self.imports: list[str] = []
        self.discarded: list[str] = []
        self._maker: dict[str, str] = {}
        """The device, or host, that wrote each tensor."""
        self._copies: dict[tuple[str, str], str] = {}
        """The copy of a tensor in another memory."""

    # -- tasks and tensors --------------------------------------------------------------------------------

    def add(self, task: Task) -> int:
        """The task's index."""
        self.tasks.append(replace(task, name=self.placed.own_name(task.name)))
        return len(self.tasks) - 1

    def tensor(
        self, name: str, place: str, nbytes: Amount, kind: TensorKind = "activations",
        buffer: str | None = None,
    ) -> Tensor:  # fmt: skip
        """What the device or host `place` writes; its name, and the buffer's, become the loop's own."""
        name, buffer = self.placed.own_name(name), buffer and self.placed.own_name(buffer)
        self.tensors[name] = Tensor(name, self.memory(place), nbytes, kind=kind, buffer=buffer)
        self._maker[name] = place
        return self.tensors[name]

    def size(self, value: Value) -> Amount:
        """Bytes of what flows between operators."""
        formats = self.placed.formats
        if value.is_token_ids:
            return value.elements * TOKEN_ID_BYTES
        return byte_amount(value.elements, formats.kv_cache if value.is_cached else formats.activations)

    def memory(self, place: str) -> str:
        """The memory of a device, or the host itself."""
        return self.machine.memory_of(place) if place in self.machine.devices else place

    def is_host(self, place: str) -> bool:
        return self.memory(place) in self.machine.hosts

    def route(self, source: str, target: str) -> tuple[Directed, ...]:
        return self.machine.route(self.memory(source), self.memory(target))

    # -- copies -------------------------------------------------------------------------------------------

    def here(self, names: Sequence[str], device: str, microbatch: int) -> tuple[str, ...]:
        """The tensors, or their copies, in the memory of a device; what is missing comes by one transfer from
        each memory."""
        memory = self.memory(device)
        missing: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(names):
            if self.tensors[name].memory != memory and (name, memory) not in self._copies:
                missing[self._maker[name]].append(name)
        for source, apart in missing.items():
            self._bring(apart, source, device, microbatch)
        return tuple(self._copies.get((name, memory), name) for name in names)

    def _bring(self, names: Sequence[str], source: str, device: str, microbatch: int) -> None:
        writes = []
        for name in names:
            stem, where = self.placed.short_name(name).split("@", 1)
            tensor = self.tensors[name]
            copy = self.tensor(f"{stem}@{device}<-{where}", device, tensor.nbytes, tensor.kind)
            self._copies[name, copy.memory] = copy.name
            writes.append(copy)
        traffic = [(self.route(source, device), tensor.nbytes) for tensor in writes]
        first = self.placed.short_name(names[0])
        role = first.split("@")[0].rsplit(".m", 1)[0].split(".")[-1]
        self.add(Task(
            f"copy.{first}->{device}", "transfer", f"copy_{role}", device,
            self.transfer_units(source, (device,)), tuple(names), tuple(writes), microbatch,
            link_bytes=link_bytes(traffic), crossings=((source, device),),
        ))  # fmt: skip

    def copy(self, name: str, role: str, targets: Sequence[str], microbatch: int) -> tuple[str, ...]:
        """Copy one tensor to each target by one transfer; targets on the same memory need no copy."""
        tensor, source = self.tensors[name], self._maker[name]
        away = [each for each in dict.fromkeys(targets) if self.memory(each) != tensor.memory]
        copies = {
            target: self.tensor(f"{role}.m{microbatch}@{target}<-{source}", target, tensor.nbytes)
            for target in away
        }
        if away:
            traffic = [(self.route(source, target), tensor.nbytes) for target in away]
            label = f"copy.{role}.m{microbatch}.{source}->{'+'.join(away)}"
            self.add(Task(
                label, "transfer", f"copy_{role.split('.')[0]}", away[0], self.transfer_units(source, away),
                (name,), tuple(copies.values()), microbatch, link_bytes=link_bytes(traffic),
                crossings=tuple((source, target) for target in away),
            ))  # fmt: skip
        return tuple(copies[target].name if target in copies else name for target in targets)

    def transfer_units(self, source: str, targets: Sequence[str]) -> tuple[str, ...]:
        """One copy engine a device and direction; a host or a disk has as many as it needs."""
        outgoing = () if self._has_no_engines(source) else (f"{source}.out",)
        return outgoing + tuple(f"{target}.in" for target in targets if not self._has_no_engines(target))

    def _has_no_engines(self, place: str) -> bool:
        return self.is_host(place) or place not in self.machine.devices


def kind_of(role: str) -> TensorKind:
    """What a value is in accounts of memory."""
    if role == "logits":
        return "logits"
    return "fetched_kv" if role.startswith((CACHED_KV, NEW_KV)) else "activations"


def label_of(operator: Operator) -> str:
    """An operator's name with its layer's number."""
    return operator.name if operator.layer is None else f"{operator.layer}.{operator.name}"
