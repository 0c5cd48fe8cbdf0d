"""What every strategy has in common."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated

from pydantic import Field

from simulator.graph.attention import cached
from simulator.graph.machine import MachineGraph
from simulator.graph.shape import starts_of
from simulator.graph.share import Share, why_not_divisible
from simulator.placement.placement import NotPlaceable, Placement, Stage
from simulator.specs.architecture import Architecture
from simulator.specs.base import Spec


class Strategy(Spec):
    """A way to place a model on a machine, with its parameters."""

    strategy: str
    """The name a scenario calls it by."""

    @property
    def label(self) -> str:
        """How tables and figures call this placement."""
        raise AssertionError("every strategy labels itself")

    def place(
        self, model: Architecture, machine: MachineGraph
    ) -> Placement | tuple[Placement, ...] | NotPlaceable:
        """Where everything lives, of each replica if there are several; or why it cannot."""
        raise AssertionError("every strategy places")


class OnRanks(Strategy):
    """A way to place all layers on one accelerator, or on several that share each layer."""

    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """How many accelerators share each layer."""
    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Which ones; the machine's first if not given."""

    def labelled(self, *parts: str | None) -> str:
        """The strategy's name, some words that are there, and what is said of ranks."""
        degree = f"tp {self.tensor_parallel}" if self.tensor_parallel > 1 else None
        return label_of(self.strategy, *parts, degree, "+".join(self.devices) if self.devices else None)

    def ranks(self, model: Architecture, machine: MachineGraph) -> tuple[str, ...] | NotPlaceable:
        """The accelerators, all of one host, beside whose processor and memory they work."""
        ranks = chosen_ranks(self.strategy, model, machine, self.tensor_parallel, self.devices)
        return ranks if isinstance(ranks, NotPlaceable) else on_several_hosts(machine, ranks) or ranks


def label_of(*parts: str | None) -> str:
    """The words that are there, joined."""
    return " ".join(part for part in parts if part)


def percent(share: float) -> str:
    """As many digits as tell one share from another.

    >>> percent(0.5), percent(0.125)
    ('50%', '12.5%')
    """
    return f"{share * 100:g}%"


def missing_devices(machine: MachineGraph, devices: tuple[str, ...]) -> NotPlaceable | None:
    """Say which of `devices` the machine lacks, if any, and why a CPU may be among them."""
    lacking = [device for device in devices if device not in machine.devices]
    if not lacking:
        return None
    known = list(machine.devices)
    reasons = []
    for device in lacking:
        host = machine.host_without(device)
        if host is not None:
            reasons.append(f"host {host.host_id} states no compute for its cores (`cpu` is unknown), "
                           f"so there is no device {device}")  # fmt: skip
            continue
        close = get_close_matches(device, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        reasons.append(f"the machine has no device '{device}', only {', '.join(known)}{hint}")
    return NotPlaceable("; ".join(reasons))


def chosen_ranks(
    strategy: str, model: Architecture, machine: MachineGraph, degree: int,
    named: tuple[str, ...] | None = None, cuts: bool = True,
) -> tuple[str, ...] | NotPlaceable:  # fmt: skip
    """`degree` accelerators: the `named` ones, else the first. If they are to cut each layer among them
    (`cuts`), the model must allow it."""
    available = machine.accelerators()
    devices = named or available[:degree]
    if named and len(named) != degree:
        return NotPlaceable(f"{strategy} needs {degree} accelerators, `devices` names {len(named)}")
    if len(devices) != degree:
        return NotPlaceable(f"{strategy} needs {degree} accelerators, there are {len(available)}")
    if len(set(devices)) != len(devices):
        return NotPlaceable(f"{strategy} needs different devices; one is named twice")
    on_cpu = [name for name in devices if name in machine.devices
              and machine.devices[name].device.kind == "cpu"]  # fmt: skip
    if on_cpu:
        return NotPlaceable(f"{strategy} is for accelerators; {on_cpu[0]} is a CPU, use single_device or "
                            "layer_split")  # fmt: skip
    indivisible = why_not_divisible(model, degree) if cuts else None
    if indivisible:
        return NotPlaceable(indivisible)
    return missing_devices(machine, tuple(devices)) or tuple(devices)


def on_several_hosts(machine: MachineGraph, ranks: tuple[str, ...]) -> NotPlaceable | None:
    """Say so if ranks that need the memory of their host are attached to different ones."""
    hosts = dict.fromkeys(machine.host_of(rank).name for rank in ranks)
    if len(hosts) == 1:
        return None
    which, where = " and ".join(ranks), ", ".join(hosts)
    return NotPlaceable(f"{which} are attached to different hosts ({where}); ranks that share what is kept "
                        "at the host must be of one")  # fmt: skip


def missing_cache(strategy: str, model: Architecture) -> NotPlaceable | None:
    """Say so if a model keeps no keys and values that could lie somewhere."""
    if any(cached(layer, Share()) is not None for layer in model.layers):
        return None
    return NotPlaceable(f"{strategy} is about KV blocks; {model.name} keeps none")


def processor_beside(machine: MachineGraph, device: str) -> str | NotPlaceable:
    """The `cpu` device of the host that a device is attached to."""
    node = machine.devices[device].node
    cpu = f"{node}.cpu" if node else "cpu"
    return missing_devices(machine, (cpu,)) or cpu


def missing_disk(machine: MachineGraph, device: str) -> NotPlaceable | None:
    """Say so if a device's host has no storage."""
    if machine.storage_of(device) is not None:
        return None
    host = machine.host_of(device).host_id
    return NotPlaceable(f"host {host} states no `storage`, so nothing can be kept on a drive")


def evenly_spread(count: int, of: range) -> frozenset[int]:
    """So many layers out of some, as far apart as can be, the last one among them."""
    return frozenset(of[-1 - (index * len(of)) // count] for index in range(count)) if count else frozenset()


def stages_of(groups: Sequence[tuple[str, ...]], counts: Sequence[int]) -> tuple[Stage, ...]:
    """Stages on groups of devices in order, with so many layers each."""
    starts = starts_of(counts)
    return tuple(Stage(*each) for each in zip(groups, starts, counts, strict=True))
