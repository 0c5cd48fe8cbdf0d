"""What every strategy has in common."""

from __future__ import annotations

from difflib import get_close_matches

from simulator.graph.machine import MachineGraph
from simulator.placement.placement import NotPlaceable, Placement
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


def missing_devices(machine: MachineGraph, devices: tuple[str, ...]) -> NotPlaceable | None:
    """Say which of `devices` the machine lacks, if any, and why a CPU may be among them."""
    lacking = [device for device in devices if device not in machine.devices]
    if not lacking:
        return None
    known = list(machine.devices)
    reasons = []
    for device in lacking:
        hosts = [placed for placed in machine.hosts.values() if device.split(".")[-1] == "cpu"]
        if hosts:
            names = ", ".join(placed.host_id for placed in hosts)
            reasons.append(f"host {names} states no compute for its cores (`cpu` is unknown), "
                           f"so there is no device {device}")  # fmt: skip
            continue
        close = get_close_matches(device, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        reasons.append(f"the machine has no device '{device}', only {', '.join(known)}{hint}")
    return NotPlaceable("; ".join(reasons))
