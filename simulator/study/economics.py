"""Energy and money of one run.

A placement pays for the devices it holds. Of the host, the chassis and their power it pays the share of
the node's accelerators that it holds; the whole of it if it computes on the host's own cores, or if there
are no accelerators. What a host draws above idle the placement has caused alone, and pays in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.costs.energy import energy_j
from simulator.costs.money import capital_usd, electricity_usd
from simulator.results.records import RunRecord
from simulator.results.run_result import TOKENS_PER_PRICE, Economics
from simulator.specs.hardware import Node, Power
from simulator.specs.scenario import Cost
from simulator.study.deploy import Deployment


@dataclass(frozen=True, slots=True)
class _Part:
    """Something that is bought and draws power: how much of it the placement pays for."""

    name: str
    share: float
    price_usd: float | None
    power: Power | None
    busy_share: float


def economics(deployment: Deployment, record: RunRecord, cost: Cost, unknown_as_zero: bool) -> Economics:
    """Cost and energy of a run that produced tokens.

    unknown_as_zero: take what nobody has published as nothing, for a lower bound.
    """
    parts = list(_parts(deployment, record))
    unknown = tuple(name for part in parts for name in _unknown(part))
    time_s = record.duration_s
    drawn_j = sum(_energy_j(part, time_s) for part in parts)
    capital = sum(
        part.share * capital_usd(part.price_usd or 0.0, time_s, cost.discount_per_year, cost.life_s)
        for part in parts
    )
    known_usd = capital + electricity_usd(drawn_j, cost.electricity_usd_per_kwh, cost.pue)
    priceless = sum(part.share for part in parts if part.price_usd is None)
    tokens = record.output_tokens
    no_power = any(name.endswith(".power") for name in unknown)
    return Economics(
        energy_j_per_output_token=None if no_power and not unknown_as_zero else drawn_j / tokens,
        usd_per_million_output_tokens=None if unknown and not unknown_as_zero
        else known_usd / tokens * TOKENS_PER_PRICE,
        known_usd=known_usd,
        unknown=unknown,
        usd_per_unknown_purchase_usd=priceless
        * capital_usd(1.0, time_s, cost.discount_per_year, cost.life_s),
    )  # fmt: skip


def _parts(deployment: Deployment, record: RunRecord) -> Iterator[_Part]:
    machine = deployment.program.machine
    used = set(deployment.devices)
    for node in machine.machine.nodes:
        in_node = [placed for placed in machine.devices.values() if placed.node == node.name]
        accelerators = [placed for placed in in_node if placed.device.kind != "cpu"]
        held = [placed for placed in accelerators if placed.name in used]
        computes = any(placed.name in used for placed in in_node if placed.device.kind == "cpu")
        for placed in held:
            busy_share = record.busy_s.get(placed.name, 0.0) / record.duration_s
            price, power = placed.device.price.purchase_usd, placed.device.power
            yield _Part(f"devices.{placed.device_id}", 1.0, price, power, busy_share)
        serves = node.name == machine.hosts[deployment.program.host].node
        whole = computes or (serves and not accelerators)
        share = 1.0 if whole else len(held) / max(1, len(accelerators))
        if share:
            host, busy_share = node.host, _host_busy_share(deployment, record, node)
            yield _Part(f"hosts.{node.host_id}", share, host.price.purchase_usd, host.power, busy_share)
            yield _Part(f"machines.{machine.machine.id}", share, node.price_usd, None, 0.0)


def _host_busy_share(deployment: Deployment, record: RunRecord, node: Node) -> float:
    """How busy a node's host is: its cores with requests, and its share that computes layers."""
    program = deployment.program
    busy = 0.0
    if node.name == program.machine.hosts[program.host].node and node.host.cores:
        busy += record.host_busy_s / record.duration_s / node.host.cores
    cpu = f"{node.name}.cpu" if node.name else "cpu"
    if node.host.cpu is not None:
        busy += node.host.cpu.share * record.busy_s.get(cpu, 0.0) / record.duration_s
    return min(1.0, busy)


def _energy_j(part: _Part, time_s: float) -> float:
    if part.power is None:
        return 0.0
    idle_w, max_w = part.power.idle_w or 0.0, part.power.max_w or 0.0
    busy_s = part.busy_share * time_s
    above_idle_w = max(0.0, max_w - idle_w)
    return part.share * idle_w * time_s + energy_j(0.0, above_idle_w, time_s, busy_s)


def _unknown(part: _Part) -> Iterator[str]:
    if part.price_usd is None:
        yield f"{part.name}.price"
    if part.power is not None and (part.power.idle_w is None or part.power.max_w is None):
        yield f"{part.name}.power"
