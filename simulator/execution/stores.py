"""The memories of a machine as dictionaries of real tensors, and the links between them as counters.

A memory knows what is reserved and what is there; everything it says of bytes comes from tensors that
were really put, copied or dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor

from simulator.graph.machine import MachineGraph


class Fault(Exception):
    """The plan asked for something that cannot be done where and when it was asked."""


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's own elements."""
    return tensor.numel() * tensor.element_size()


class Stores:
    """Every memory of a machine."""

    def __init__(self, machine: MachineGraph) -> None:
        self.machine = machine
        self._held: dict[str, dict[str, Tensor]] = {memory: {} for memory in machine.capacity_bytes}
        self._reserved: dict[str, dict[str, int]] = {memory: {} for memory in machine.capacity_bytes}
        self._buffers: dict[str, set[str]] = {}
        self._buffer_of: dict[str, str] = {}
        self.peak_bytes: Counter[str] = Counter()
        self.link_bytes: Counter[str] = Counter()

    def resident_bytes(self, memory: str) -> int:
        """What is there now, and what is promised."""
        held = sum(size_of(tensor) for tensor in self._held[memory].values())
        return held + sum(self._reserved[memory].values())

    def reserve(self, memory: str, name: str, nbytes: int, buffer: str | None = None) -> None:
        """Promise `nbytes` to a tensor that is about to be written."""
        if name in self._held[memory] or name in self._reserved[memory]:
            raise Fault(f"{name} is written to {memory} while it is still there")
        if buffer is not None:
            self._occupy(buffer, name)
        self._reserved[memory][name] = nbytes
        self._note_peak(memory)

    def _occupy(self, buffer: str, name: str) -> None:
        others = {other for other in self._buffers.get(buffer, set()) if _lot(other) != _lot(name)}
        if others:
            raise Fault(f"{name} is written to {buffer} while {sorted(others)[0]} is still in use there")
        self._buffers.setdefault(buffer, set()).add(name)
        self._buffer_of[name] = buffer

    def put(self, memory: str, name: str, tensor: Tensor) -> None:
        """Fill a reservation; the tensor must be of the size that was promised."""
        if name not in self._reserved[memory]:
            raise Fault(f"{name} comes to {memory} without having been reserved")
        promised = self._reserved[memory].pop(name)
        if size_of(tensor) != promised:
            raise Fault(f"{name} takes {size_of(tensor)} bytes in {memory}, the plan says {promised}")
        self._held[memory][name] = tensor

    def keep(self, memory: str, name: str, tensor: Tensor) -> None:
        """Put something that stays: a weight or a KV slab."""
        if name in self._held[memory]:
            raise Fault(f"{name} is kept in {memory} twice")
        self._held[memory][name] = tensor
        self._note_peak(memory)

    def get(self, memory: str, name: str) -> Tensor:
        """A tensor that is in this memory and nowhere else."""
        if name not in self._held[memory]:
            where = [other for other, held in self._held.items() if name in held]
            raise Fault(f"{name} is read in {memory}, but it is {'in ' + where[0] if where else 'nowhere'}")
        return self._held[memory][name]

    def drop(self, name: str) -> None:
        """Free a tensor, wherever it is."""
        for held in self._held.values():
            if name in held:
                del held[name]
                buffer = self._buffer_of.pop(name, None)
                if buffer is not None:
                    self._buffers[buffer].discard(name)
                return
        raise Fault(f"{name} is freed, but it is nowhere")

    def copy(self, tensor: Tensor, source: str, target: str) -> Tensor:
        """A copy of `tensor` from one memory to another, counted on every link of the way between them."""
        for directed in self.machine.route(source, target):
            self.link_bytes[directed.name] += size_of(tensor)
        return tensor.clone()

    def names(self, memory: str) -> Iterable[str]:
        return self._held[memory].keys()

    def _note_peak(self, memory: str) -> None:
        self.peak_bytes[memory] = max(self.peak_bytes[memory], self.resident_bytes(memory))


def _lot(name: str) -> str:
    """What may lie in a buffer together: all weights of one layer, or one tensor of anything else."""
    return ".".join(name.split(".")[:2]) if name.startswith("layers.") else name
