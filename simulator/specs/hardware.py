"""What one device, link or host file may say, and the machine made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator

from simulator import units
from simulator.errors import did_you_mean
from simulator.specs.base import Spec, Uncertain, context_of, existing_file, rule_broken
from simulator.specs.provenance import Figure, Sources
from simulator.specs.quantities import (
    UNKNOWN,
    Bytes,
    BytesPerSecond,
    FlopsPerSecond,
    MaybeBytesPerSecond,
    MaybeCount,
    MaybeUsd,
    MaybeWatts,
    Parts,
    PositiveShare,
    Quantity,
    Seconds,
    Share,
    WholeNumber,
)
from simulator.specs.yaml_file import Text

Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4"]

PRECISIONS: tuple[Precision, ...] = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")

ITEM_BYTES: dict[Precision, float] = {
    "fp64": 8,
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "fp4": 0.5,
    "int4": 0.5,
}
"""Bytes one number takes in memory; tf32 is stored as fp32."""

OPERATOR_CLASSES = (
    "matmul", "grouped_matmul", "attention_prefill", "attention_decode", "norm", "activation", "rotary",
    "elementwise", "quantise", "embedding", "sampling",
)  # fmt: skip
"""Kinds of kernel that reach different shares of a device's peaks."""

BROADER_CLASS = {
    "grouped_matmul": "matmul",
    "norm": "elementwise",
    "activation": "elementwise",
    "rotary": "elementwise",
    "quantise": "elementwise",
}
"""Whose figures count for a class that has none of its own."""


def _operator_class(key: str) -> str:
    """`key` if it is an operator class, optionally with a precision: `matmul.bf16`."""
    operator_class, _, precision = key.partition(".")
    if operator_class not in OPERATOR_CLASSES:
        hint = did_you_mean(operator_class, OPERATOR_CLASSES)
        raise rule_broken(f"unknown operator class; one of: {', '.join(OPERATOR_CLASSES)}{hint}")
    if "." in key and precision not in PRECISIONS:
        hint = did_you_mean(precision, PRECISIONS)
        raise rule_broken(f"unknown precision; one of: {', '.join(PRECISIONS)}{hint}")
    return key


OperatorClass = Annotated[str, AfterValidator(_operator_class)]


class Memory(Spec):
    """What a device or host can hold and how fast it reads it."""

    capacity_bytes: Annotated[Bytes, Field(alias="capacity")]
    """As the driver reports it, before any reserve of the serving engine."""
    bandwidth_bytes_per_s: Annotated[MaybeBytesPerSecond, Field(alias="bandwidth")]
    """Nominal; what kernels reach of it is in `efficiency`. May be unknown for hosts only."""
    usable_bytes: Annotated[Bytes | None, Field(alias="usable")] = None
    """What programs can allocate, where the runtime reports less than the driver."""
    cache_bytes: Annotated[Bytes | None, Field(alias="cache")] = None
    """Last-level cache between this memory and what computes; absent: none is modelled."""

    @property
    def available_bytes(self) -> float:
        """What programs can allocate."""
        return self.capacity_bytes if self.usable_bytes is None else self.usable_bytes

    @model_validator(mode="after")
    def _usable_within_capacity(self) -> Self:
        if self.available_bytes > self.capacity_bytes:
            raise rule_broken("must not exceed the capacity", "usable")
        return self


class HostMemory(Memory):
    """A host's DRAM, which its processors and every copy in or out of it share."""

    efficiency: PositiveShare = 0.8
    """Share of the bandwidth that kernels and copies reach together; the default is assumed (servers reach
    0.75 to 0.85 in STREAM)."""


def _table(name: str, info: ValidationInfo) -> str:
    """`silicon`, or the path of a table of operators."""
    return name if name == "silicon" else existing_file(name, info)


class Transition(Spec):
    """What a copy between a device's memory and another costs beyond latency and bandwidth of its way."""

    launch_s: Annotated[Seconds, Field(alias="launch")]
    """From the call that asks for a copy until the device's copy engine has begun."""
    synchronize_s: Annotated[Seconds, Field(alias="synchronize")]
    """From the end of a copy to the host until the thread that waits for it goes on."""


class Efficiency(Spec):
    """How close real kernels of one operator class come to a device's peaks.

    time = (compute_time ** blend + memory_time ** blend + least_time ** blend) ** (1 / blend) + overhead,
    with compute_time = flops / (peak * compute), memory_time = bytes / (bandwidth * memory), and least_time
    what one processor alone needs for its own part, however many others there are: `chain`, `block`.
    """

    compute: PositiveShare
    """Reachable share of the peak arithmetic rate."""
    memory: PositiveShare
    """Reachable share of the nominal memory bandwidth."""
    overhead_s: Annotated[Seconds, Field(alias="overhead")]
    """Time a kernel takes however small its work."""
    blend: Annotated[float, Quantity(units.NUMBER, better="high", least=1)]
    """1 adds the terms; the larger, the more they overlap."""
    chain_s: Annotated[Seconds, Field(alias="chain")] = 0.0
    """Time that one processor takes for each number it goes through in sequence: of a matmul those summed
    into one output, of a norm or another kernel by rows those of a row, of attention in prefill the keys of a
    sequence; of attention in decode too, where a head of keys has one of queries and kernels do not split."""
    chain_most: Annotated[WholeNumber, Field(ge=1, le=10**9)] | None = None
    """Longer chains are shared out among processors; absent: never."""
    block: Annotated[WholeNumber, Field(ge=0, le=10**6)] = 0
    """What is always worked on at once: of attention so many keys and queries of each sequence, of a
    quantise kernel so many numbers of each row."""
    split_s: Annotated[Seconds, Field(alias="split")] = 0.0
    """Of attention in decode: what it takes to join the parts of sequences longer than a block."""
    regroup_s: Annotated[Seconds, Field(alias="regroup")] = 0.0
    """Of attention in decode, where several heads of queries share one of keys: what it takes to bring those
    of one together, if there are several sequences and several heads of keys."""
    joint: Annotated[WholeNumber, Field(ge=0, le=4096)] = 0
    """Of attention in decode, where a batch that has prompts too is one kernel: how many rows of queries that
    works on at once, of which a decoding sequence fills one, each on a block of keys more than there are; 0
    where such a batch is two kernels."""
    cached_bytes_per_s: Annotated[BytesPerSecond | None, Field(alias="cached")] = None
    """What each of the device's `units` reads and writes in a second of what the cache holds; absent: the
    cache is no faster than the memory."""


class Power(Spec):
    """Electrical power drawn, at its two ends."""

    idle_w: Annotated[MaybeWatts, Field(alias="idle")] = None
    """Switched on and doing nothing."""
    max_w: Annotated[MaybeWatts, Field(alias="max")] = None
    """Sustained under full load."""

    @model_validator(mode="after")
    def _idle_below_max(self) -> Self:
        if self.idle_w is not None and self.max_w is not None and self.idle_w > self.max_w:
            raise rule_broken("must not exceed 'max'", "idle")
        return self


class Price(Spec):
    """What it costs to own one."""

    purchase_usd: Annotated[MaybeUsd, Field(alias="purchase")] = None
    """Once, new, one unit in the quantity a small data centre buys."""


class Device(Spec):
    """One device, as a datasheet or a measurement describes it."""

    needs_sources: ClassVar = True
    without_source: ClassVar = frozenset({"name", "kind", "generation", "tables"})

    name: str
    """As its maker calls it."""
    kind: Literal["cpu", "gpu", "accelerator"]
    """What its defaults are taken from where it has no measurements of its own."""
    generation: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")] | None = None
    """Its architecture, as `hopper`; devices of one kind and generation share defaults."""
    units: Annotated[WholeNumber, Field(ge=1, le=1_000_000)] | None = None
    """Its parallel processors: streaming multiprocessors, compute units, cores."""
    memory: Memory
    """The memory it owns and computes from."""
    compute: Annotated[dict[Precision, FlopsPerSecond], Field(min_length=1)]
    """Dense peak per number format; never the sparse figure."""
    power: Power = Power()
    """Of the device alone; its host's is in the host's file."""
    price: Price = Price()
    """Of the device alone."""
    efficiency: dict[OperatorClass, Efficiency] = Field(default_factory=dict)
    """By operator class, optionally with a precision: `matmul.bf16`, `attention_decode`."""
    tables: tuple[Annotated[str, AfterValidator(_table)], ...] = ()
    """Tables of measured kernels (docs/calibrate.md), looked for beside this file, or `silicon` for NVIDIA's
    databases where they are installed: products of shapes near measured ones take the time measured."""
    transition: Transition | None = None
    """What copies in and out cost besides; absent: assumed figures of its kind."""
    sources: Sources = Field(default_factory=dict)
    """Where each figure comes from: measured, datasheet, published, vendor-claim or assumed."""

    _lent: tuple[Mapping[str, Efficiency], ...] = PrivateAttr(default=())

    @property
    def lent(self) -> tuple[Mapping[str, Efficiency], ...]:
        """What classes lend a device that was read from a catalogue, the nearest class first; a figure of the
        device's own counts before any of these."""
        return self._lent

    def with_lent(self, lent: tuple[Mapping[str, Efficiency], ...]) -> Self:
        """The same device with other figures lent to it."""
        copied = self.model_copy()
        copied._lent = lent
        return copied

    @model_validator(mode="after")
    def _bandwidth_is_known(self) -> Self:
        if self.memory.bandwidth_bytes_per_s is None:
            raise rule_broken(
                "a device's memory bandwidth must be known; give a range if it is uncertain", "memory"
            )
        return self


Algorithm = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]

ALGORITHMS: tuple[Algorithm, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")

LinkKind = Literal["fabric", "bus"]


class Collective(Spec):
    """One way to carry a collective out; of several ways the one that is quickest for its bytes is taken.

    time = latency + hop * rounds + bytes / (bandwidth * efficiency * (ranks / 2) ** growth)

    `bytes` are what a ring would put on one direction of a link, rounds its rounds: n - 1, of an all-reduce
    2 (n - 1). Whatever the way is in truth, it is stated as a ring that takes as long.
    """

    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("all_reduce",)
    """What it can carry out."""
    latency_s: Annotated[Seconds, Field(alias="latency")]
    """With nothing to carry and no rounds, launch included."""
    hop_s: Annotated[Seconds, Field(alias="hop")] = 0.0
    """What each round of a ring adds."""
    efficiency: PositiveShare
    """Share of the link's one-direction bandwidth reached between two ranks."""
    growth: Annotated[float, Quantity(units.NUMBER, better="high", least=-4, most=4)] = 0.0
    """How that share changes with the number of ranks: by (ranks / 2) ** growth, to 1 at most."""
    below_bytes: Annotated[Bytes | None, Field(alias="below")] = None
    """Results of an all-reduce of this size or more do not go this way; absent: all sizes do."""
    most_ranks: Annotated[WholeNumber, Field(ge=2, le=1_000_000)] | None = None
    """More devices than this cannot go this way; absent: any number can."""

    def latency_of(self, rounds: int) -> float:
        """Seconds with nothing to carry."""
        return self.latency_s + self.hop_s * rounds

    def efficiency_of(self, ranks: int) -> float:
        """Share of the link's bandwidth that a large message reaches."""
        return float(min(1.0, self.efficiency * (ranks / 2) ** self.growth))


class Collectives(Spec):
    """Ways to carry collectives out, by whose they are."""

    engine: tuple[Collective, ...] = ()
    """The serving engine's own kernels, launched in a graph: quicker for small messages."""
    library: tuple[Collective, ...] = ()
    """A collective library's: NCCL, RCCL, oneCCL."""

    @model_validator(mode="after")
    def _something_takes_everything(self) -> Self:
        every = (*self.engine, *self.library)
        open_to_all = {
            algorithm
            for way in every
            if way.below_bytes is None and way.most_ranks is None
            for algorithm in way.algorithms
        }
        for algorithm in ALGORITHMS:
            if any(algorithm in way.algorithms for way in every) and algorithm not in open_to_all:
                raise rule_broken(f"some way of {algorithm} must be without 'below' and 'most_ranks'")
        return self

    def ways(self, algorithm: Algorithm, ranks: int) -> tuple[Collective, ...]:
        """All that so many ranks can choose from, the engine's first."""
        return tuple(
            way
            for way in (*self.engine, *self.library)
            if algorithm in way.algorithms and (way.most_ranks is None or ranks <= way.most_ranks)
        )


def _a_mapping(raw: Any) -> Any:
    """Refuse what such a section was once: a list of figures by number of ranks."""
    if isinstance(raw, list):
        raise rule_broken("write a mapping of 'engine' and 'library', each a list of ways")
    return raw


class Link(Spec):
    """A path between two places, with two directed halves of equal speed."""

    needs_sources: ClassVar = True
    without_source: ClassVar = frozenset({"name", "kind"})

    name: str
    """What it is and how wide: `PCIe 4.0 x16`."""
    kind: LinkKind | None = None
    """What its defaults of collectives are taken from: a scale-up `fabric` such as NVLink, a peripheral `bus`
    such as PCIe; absent (a network, drives): collectives fare as rings of plain transfers."""
    bandwidth_bytes_per_s: Annotated[BytesPerSecond, Field(alias="bandwidth")]
    """Nominal, one direction."""
    latency_s: Annotated[Seconds, Field(alias="latency")]
    """From the start of a transfer to its first byte."""
    efficiency: PositiveShare = 1.0
    """Share of the nominal bandwidth that large transfers reach."""
    pageable_efficiency: PositiveShare | None = None
    """The same for copies in and out of host memory that is not pinned: the driver moves them piece by
    piece through a pinned buffer. Absent: as others."""
    collective: Annotated[Collectives, BeforeValidator(_a_mapping)] = Collectives()
    """Of collectives run over it; absent: assumed figures of its kind."""
    sources: Sources = Field(default_factory=dict)
    """Where each figure comes from."""

    @property
    def achieved_bytes_per_s(self) -> float:
        """What large transfers reach in one direction."""
        return self.bandwidth_bytes_per_s * self.efficiency

    @model_validator(mode="after")
    def _pinned_is_no_slower(self) -> Self:
        if self.pageable_efficiency is not None and self.pageable_efficiency > self.efficiency:
            raise rule_broken("must not exceed 'efficiency'", "pageable_efficiency")
        return self


class Storage(Spec):
    """Drives of a host: a memory in which weights, or KV blocks, live while a model runs."""

    capacity_bytes: Annotated[Bytes, Field(alias="capacity")]
    """Of all drives together."""
    link: str
    """Id of a link file: what reads and writes of all drives together reach."""


class HostCpu(Spec):
    """The compute device a host offers: a share of the cores of its processors."""

    device: str
    """Id of a device file of kind `cpu`, which describes one socket."""
    sockets: Parts = 1
    """How many of them the host has."""
    share: Annotated[float, Quantity(units.SHARE, better="high", above=0, most=1)] = 1.0
    """Share of the cores that computes models; the rest serves requests."""


def _unknown_is_none(raw: Any, info: ValidationInfo) -> Any:
    """`cpu: unknown` is no device, noted as an uncertain figure."""
    if not (isinstance(raw, str) and raw == UNKNOWN):
        return raw
    context = context_of(info)
    if context is not None and isinstance(raw, Text):
        context.uncertain.append(Uncertain(raw.loc, None, None, "time"))
    return None


class Host(Spec):
    """What stands between the network and the devices."""

    needs_sources: ClassVar = True
    without_source: ClassVar = frozenset({"name", "kind", "cpu.device", "storage.link"})

    name: str
    """As its maker calls it, or what it is built from."""
    kind: Literal["server", "network-attached"]
    """An x86 server, or a host that is itself a card on the network, as NR1 is."""
    cores: MaybeCount = None
    """Cores of the whole host that can serve requests; a count or a range such as `1..64`."""
    memory: HostMemory
    """The host's DRAM."""
    storage: Storage | None = None
    """Drives that weights and KV can live on; absent: none."""
    cpu: Annotated[HostCpu | None, BeforeValidator(_unknown_is_none)] = None
    """The compute device it offers; absent or unknown: none."""
    offload_fraction: Share = 0.0
    """Share of per-request and per-step host work that fixed-function units take off the cores."""
    max_devices: Annotated[WholeNumber, Field(ge=0, le=1024)] | None = None
    """How many devices can be attached; absent: as many as a machine file says."""
    power: Power = Power()
    """Of the host without its devices."""
    price: Price = Price()
    """Of the host without its devices."""
    sources: Sources = Field(default_factory=dict)
    """Where each figure comes from."""

    @property
    def bus(self) -> Link | None:
        """The DRAM as a path that everything shares that reads or writes it, in both directions together;
        None where its bandwidth is unknown."""
        if self.memory.bandwidth_bytes_per_s is None:
            return None
        return Link(
            name="memory bus",
            bandwidth_bytes_per_s=self.memory.bandwidth_bytes_per_s,
            latency_s=0.0,
            efficiency=self.memory.efficiency,
        )


@dataclass(frozen=True)
class Node:
    """One host with everything attached to it, resolved from its files."""

    name: str
    """Empty in a machine of one node."""
    host_id: str
    host: Host
    cpu: Device | None
    """What the host's cores compute with: peaks scaled by sockets and share, the host's memory,
    no price and no power, because the host's file carries those."""
    devices: tuple[tuple[str, Device], ...]
    """Id and record of each attached device, in file order, one entry a device."""
    host_link_id: str
    host_link: Link
    interconnect_id: str | None
    interconnect: Link | None
    network: Link | None
    price_usd: float | None
    """Beyond the prices of its parts; None is unknown."""
    storage_link: Link | None = None
    """To the host's drives; None if it has none."""


@dataclass(frozen=True)
class Machine:
    """Hosts, devices and links that one run may use, resolved from their files."""

    id: str
    """Of its file; `inline` for one written into a scenario."""
    name: str
    nodes: tuple[Node, ...]
    network: Link | None
    network_id: str | None
    figures: tuple[Figure, ...]
    """Every uncertain figure of its parts, as `devices.l40s.price.purchase`."""
