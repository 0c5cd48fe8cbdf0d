"""What an operator is: the parameters it reads, the values that flow, the work it does.

Two counts of arithmetic are kept. `dense_flops` is what torch's FlopCounterMode reports: every
multiply-add of a matmul as two, attention as the full square, everything else nothing. `flops` is the
work under the causal mask and is what gets priced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from simulator.graph.shape import NOTHING, Amount, Phase
from simulator.graph.share import Part
from simulator.specs.hardware import ITEM_BYTES, Precision

OperatorClass = Literal[
    "matmul", "grouped_matmul", "attention_prefill", "attention_decode", "norm", "activation", "rotary",
    "elementwise", "quantise", "embedding", "sampling",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Formats:
    """The number format of each kind of tensor in a run."""

    weights: str
    """One of `weight_formats.WEIGHT_CHOICES`."""
    activations: Precision
    kv_cache: Precision


def byte_amount(elements: Amount, precision: Precision) -> Amount:
    """Bytes of so many elements; half bytes round up, coefficient by coefficient."""
    bits = round(ITEM_BYTES[precision] * 8)
    return Amount(tuple(-(-count * bits // 8) for count in elements.coefficients))


@dataclass(frozen=True, slots=True)
class Parameter:
    """The part of a named parameter that an operator of one rank reads."""

    name: str
    shape: tuple[int, ...]
    """Of the part held, not of the whole parameter."""
    axis: int | None = None
    """The axis that may be cut; None where the whole parameter is held."""
    start: int = 0
    whole: int | None = None
    """Size of that axis in the whole parameter."""
    experts: tuple[int, ...] | None = None
    """Of a stack with one matrix for each expert, those that are held; None: all."""
    expert_count: int = 0
    """How many the whole stack has, where not all are held."""

    @classmethod
    def cut(cls, name: str, shape: tuple[int, ...], axis: int, part: Part) -> Parameter:
        """The part of a parameter along one axis; `shape` is of what is held."""
        return cls(name, shape, axis, part.start, part.whole)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        shape = self.shape
        if self.axis is not None and self.whole is not None:
            shape = (*shape[: self.axis], self.whole, *shape[self.axis + 1 :])
        return shape if self.experts is None else (self.expert_count, *shape[1:])

    def of_experts(self, held: tuple[int, ...]) -> Parameter:
        """The same part of some experts' matrices only."""
        count = self.shape[0]
        if len(held) == count:
            return self
        return replace(self, shape=(len(held), *self.shape[1:]), experts=held, expert_count=count)

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Value:
    """What flows between operators: `elements` numbers known by their role."""

    role: str
    elements: Amount
    is_token_ids: bool = False
    is_cached: bool = False
    """Kept in the number format of the KV cache."""


@dataclass(frozen=True, slots=True)
class Work:
    """One kernel's worth of arithmetic and memory traffic."""

    operator_class: OperatorClass
    formats: tuple[Precision, ...]
    """Acceptable number formats, best first."""
    flops: Amount
    moved_bytes: Amount
    chain: int = 0
    """How many numbers one processor goes through in sequence, whatever else there is to do."""
    chains: Amount = NOTHING
    """Where the length of chains depends on the step: of all of them together."""
    chain_count: Amount = NOTHING
    """How many chains those are; the mean one counts."""
    block_flops: Amount = NOTHING
    """FLOPs that one more pair of a query and a key costs every sequence; kernels work on whole blocks."""
    block_bytes: Amount = NOTHING
    """Bytes of one more key of every sequence, or one more number of every row."""
    joint_flops: Amount = NOTHING
    """FLOPs that one more key costs the decoding sequences."""
    is_shared: bool = False
    """Of attention in decode: heads of queries share those of keys. Kernels split long sequences then; where
    none are shared, or a prompt is in the same kernel, keys form a chain."""
    regroups: bool = False
    """There are several such heads of keys, so that queries of several sequences must be regrouped."""
    is_warm: bool = False
    """Whether what it reads was written just before, so that a cache may hold it."""
    only_in: Precision | None = None
    """The kernel is needed only where products run in this format."""
    scores: Amount = NOTHING
    """Of attention, the products of a query and a key of one head, the square whole: what goes through memory
    too where attention is no fused kernel."""
    packed: Amount = NOTHING
    """Of what it reads, the numbers in formats that nothing multiplies in, such as int4: an engine unpacks
    them in the kernel itself, or in others before it."""

    def in_phase(self, phase: Phase) -> Work | None:
        """Its share for the chunks of one phase; None where that is nothing."""
        flops, moved = self.flops.of_phase(phase), self.moved_bytes.of_phase(phase)
        if not (flops or moved):
            return None
        names = ("chains", "chain_count", "block_flops", "block_bytes", "joint_flops", "scores", "packed")
        others = {name: getattr(self, name).of_phase(phase) for name in names}
        return replace(self, flops=flops, moved_bytes=moved, **others)


@dataclass(frozen=True, slots=True)
class Visits:
    """Work that depends on which experts tokens choose: so many FLOPs for each choice of one of `experts`."""

    experts: tuple[int, ...]
    flops: int


@dataclass(frozen=True, slots=True)
class Operator:
    """One node of the work graph, or one rank's share of it."""

    name: str
    layer: int | None
    reads: tuple[str, ...]
    writes: tuple[Value, ...]
    works: tuple[Work, ...]
    dense_flops: Amount = NOTHING
    parameters: tuple[Parameter, ...] = ()
    uses_kv: bool = False
    """Reads or writes in place what the layer keeps of sequences: KV blocks, or states."""
    partial: bool = False
    """Each rank holds a summand of the output, which a reduction must add up."""
    visits: Visits | None = None
    """Where only some experts are computed here: what each choice of one of them costs. The amounts are then
    expectations."""
    once: bool = False
    """Done once for all ranks, from what the first one holds."""

    def in_phase(self, phase: Phase) -> Operator:
        """Its share for the chunks of one phase."""
        if phase == "all":
            return self
        return replace(
            self,
            writes=tuple(replace(v, elements=v.elements.of_phase(phase)) for v in self.writes),
            works=tuple(work for each in self.works if (work := each.in_phase(phase))),
            dense_flops=self.dense_flops.of_phase(phase),
        )

    @property
    def own_works(self) -> tuple[Work, ...]:
        """The kernels that it needs whatever device computes it."""
        return tuple(work for work in self.works if work.only_in is None)

    @property
    def node(self) -> str:
        """Its name in the work graph."""
        return self.name if self.layer is None else f"layers.{self.layer}.{self.name}"
