"""What a data sheet says of a device, and the files of the catalogue that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.specs.base import KeyPath
from simulator.specs.hardware import Device
from simulator.specs.provenance import Source
from simulator.specs.quantities import UNKNOWN
from simulator.study.form import Blank, comment, form, quoted

NEEDED: Mapping[KeyPath, str] = {
    "memory.capacity": "80 GB",
    "memory.bandwidth": "3.35 TB/s",
    "compute.bf16": "989 TFLOP/s",
}
"""What a device must state, and an example; any other number format is as good as bf16."""

EXAMPLES: Mapping[KeyPath, str] = {
    **NEEDED,
    "generation": "hopper",
    "units": "132",
    "memory.usable": "79 GB",
    "memory.cache": "50 MB",
    "compute": "bf16",
    "efficiency": "matmul.bf16",
    "efficiency.*.compute": "0.8",
    "efficiency.*.memory": "0.87",
    "efficiency.*.overhead": "3.5 us",
    "efficiency.*.blend": "3.9",
    "efficiency.*.chain": "1 ns",
    "efficiency.*.chain_most": "4096",
    "efficiency.*.block": "64",
    "efficiency.*.split": "3 us",
    "efficiency.*.regroup": "5 us",
    "efficiency.*.joint": "8",
    "efficiency.*.cached": "18 GB/s",
    "tables": "[silicon]",
    "transition.launch": "6 us",
    "transition.synchronize": "10 us",
}
"""Of fields that are not given; about those of an H100."""

UNKNOWN_IF_NOT_GIVEN = ("power.idle", "power.max", "price.purchase")

OFFER = {"kind": "assumed", "ref": "placewright init", "note": "name the offer or price list here"}
"""Source of a price, which no data sheet tells."""

HOW_TO_READ = (
    "Quantities carry a unit, low..high is a range, and `unknown` is what nobody knows. "
    "docs/files.md tells more."
)


@dataclass(frozen=True)
class DataSheet:
    """What is known of a device, as it is written in files."""

    id: str
    """Name of its file."""
    kind: str = "gpu"
    title: str | None = None
    """As its maker calls it; the id if not given."""
    figures: Mapping[KeyPath, str | int] = field(default_factory=dict)
    """By key path, as `memory.bandwidth: 864 GB/s`."""
    ref: str | None = None
    """Document that the figures are from; without one they are assumed."""
    date: str | None = None
    """Of that document."""

    @property
    def name(self) -> str:
        """As files call it."""
        return self.title or self.id

    @property
    def missing(self) -> tuple[KeyPath, ...]:
        """What a device must state and this does not."""
        given = set(self.figures)
        if any(key.startswith("compute.") for key in given):
            given.add("compute.bf16")
        return tuple(key for key in NEEDED if key not in given)

    @property
    def source(self) -> dict[str, str]:
        """Of every figure, as it stands in files."""
        dated = {} if self.date is None else {"date": self.date}
        if self.ref is None:
            note = "no source given; name the data sheet here"
            return {"kind": "assumed", "ref": "placewright init", **dated, "note": note}
        return {"kind": "datasheet", "ref": self.ref, **dated}

    def record(self, more: Mapping[KeyPath, str | int] | None = None) -> dict[str, Any]:
        """The nested mapping of its file, without sources; with some more figures."""
        unknown = dict.fromkeys(UNKNOWN_IF_NOT_GIVEN, UNKNOWN)
        record: dict[str, Any] = {"name": self.name, "kind": self.kind}
        for key, value in {**unknown, **self.figures, **(more or {})}.items():
            group, _, inner = key.partition(".")
            if inner:
                record.setdefault(group, {})[inner] = value
            else:
                record[group] = value
        return record


@dataclass(frozen=True)
class Surroundings:
    """The machine that a device is put into."""

    host: str = "epyc-9654-2s"
    host_link: str = "pcie-gen5-x16"
    network: str = "eth-100"
    count: int = 1
    """How many of the device."""


def device_text(sheet: DataSheet) -> str:
    """The profile, with a comment on each field; what is missing stands between < and >."""
    blank = Blank(EXAMPLES, frozenset(sheet.missing))
    to_do = comment("Fill in what stands between < and >.") if sheet.missing else []
    fields = form(Device, sheet.record(), blank, without=("sources",))
    return _text([*comment(HOW_TO_READ), *to_do, *fields, *_source_lines(sheet)])


def _source_lines(sheet: DataSheet) -> list[str]:
    """One source for each group of figures that is there."""
    given = {key.partition(".")[0] for key in (*sheet.figures, *sheet.missing)}
    groups = [group for group in ("units", "memory", "compute", "power", "price") if group in given]
    about = (f"- {name}: {each.description}" for name, each in Source.model_fields.items())
    return [
        "",
        *comment(Device.model_fields["sources"].description or ""),
        *(line for text in about for line in comment(text)),
        "sources:",
        *(f"  {group}: {_flow(OFFER if group == 'price' else sheet.source)}" for group in groups),
    ]


def machine_text(sheet: DataSheet, around: Surroundings, host_name: str) -> str:
    """A machine of a host and some of the device."""
    return _text([
        f"name: {quoted(f'{host_name} with {around.count} x {sheet.name}')}",
        f"host: {around.host}",
        f"devices: {{{sheet.id}: {around.count}}}",
        f"host_link: {around.host_link}",
        f"network: {around.network}",
    ])  # fmt: skip


def processor_host_text(sheet: DataSheet) -> str:
    """A host of one such processor, whose DRAM is the memory of the data sheet."""
    capacity, bandwidth = (
        sheet.figures.get(key, f"<{NEEDED[key]}>") for key in ("memory.capacity", "memory.bandwidth")
    )
    reserved = {"kind": "assumed", "ref": "placewright init", "note": "a tenth of the cores serves requests"}
    cores = [f"  cores: {_flow(sheet.source)}"] if "units" in sheet.figures else []
    return _text([
        f"name: {quoted(f'Server with one {sheet.name}')}",
        "kind: server",
        f"cores: {sheet.figures.get('units', UNKNOWN)}",
        f"memory: {{capacity: {capacity}, bandwidth: {bandwidth}}}",
        f"cpu: {{device: {sheet.id}, sockets: 1, share: 0.9}}",
        "# Of the whole server, without accelerators.",
        "power: {idle: unknown, max: unknown}",
        "price: {purchase: unknown}",
        "sources:",
        *cores,
        f"  memory: {_flow(sheet.source)}",
        f"  cpu: {_flow(reserved)}",
    ])  # fmt: skip


def processor_machine_text(sheet: DataSheet, network: str) -> str:
    """A machine of that host alone."""
    return _text([
        f"name: {quoted(f'Server with one {sheet.name}, processor alone')}",
        f"host: {sheet.id}",
        f"host_link: {Surroundings.host_link}",
        f"network: {network}",
    ])  # fmt: skip


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _flow(values: Mapping[str, str]) -> str:
    plain = ("kind", "date")
    inside = (f"{key}: {value if key in plain else quoted(value)}" for key, value in values.items())
    return f"{{{', '.join(inside)}}}"
