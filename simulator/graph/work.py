"""What an operator is: the parameters it reads, the values that flow, the work it does.

Two counts of arithmetic are kept. `dense_flops` is what torch's FlopCounterMode reports: every
multiply-add of a matmul as two, attention as the full square, everything else nothing. `flops` is the
work under the causal mask and is what gets priced.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from simulator.graph.shape import NOTHING, Amount
from simulator.graph.share import Part
from simulator.specs.hardware import ITEM_BYTES, Precision

OperatorClass = Literal[
    "matmul", "attention_prefill", "attention_decode", "elementwise", "embedding", "sampling"
]


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

    @classmethod
    def cut(cls, name: str, shape: tuple[int, ...], axis: int, part: Part) -> Parameter:
        """The part of a parameter along one axis; `shape` is of what is held."""
        return cls(name, shape, axis, part.start, part.whole)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        if self.axis is None or self.whole is None:
            return self.shape
        return (*self.shape[: self.axis], self.whole, *self.shape[self.axis + 1 :])

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Value:
    """What flows between operators: `elements` numbers known by their role."""

    role: str
    elements: Amount
    is_token_ids: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """One kernel's worth of arithmetic and memory traffic."""

    operator_class: OperatorClass
    formats: tuple[Precision, ...]
    """Acceptable number formats, best first."""
    flops: Amount
    moved_bytes: Amount


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

    @property
    def node(self) -> str:
        """Its name in the work graph."""
        return self.name if self.layer is None else f"layers.{self.layer}.{self.name}"
