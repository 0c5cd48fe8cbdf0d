"""Measured kernels in the terms of the cost model, whatever table they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from simulator.costs.operators import Floats, KernelLoad
from simulator.graph.work import OperatorClass
from simulator.specs.hardware import ITEM_BYTES, Precision

Rows = NDArray[np.intp] | NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """One of the kernels that a measurement consists of."""

    operator_class: OperatorClass
    precision: Precision
    load: KernelLoad


@dataclass(frozen=True)
class Samples:
    """Measurements of one device that all run the same kernels: arrays with an entry for each row."""

    table: str
    """Name of its file, without suffix."""
    device: str
    """Id in the catalogue."""
    parts: tuple[Part, ...]
    time_s: Floats
    shape: Mapping[str, Floats]
    """What distinguishes rows, by name, for tables to look times up in."""
    group: NDArray[np.int64]
    """Rows of equal shape but for the number of tokens have the same number: they are left out together."""
    label: str = ""
    """Which operator of a layer, in tables of layers."""

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def what(self) -> str:
        """What it is judged with: operators of layers together, else products or attention."""
        if self.main.operator_class.startswith("attention"):
            return "attention"
        if self.main.operator_class == "grouped_matmul":
            return "experts"
        return "layer operators" if self.label else "GEMM"

    @property
    def main(self) -> Part:
        """The kernel that the measurement is about."""
        return self.parts[0]

    def at(self, rows: Rows) -> Samples:
        """Some of the rows."""
        parts = tuple(replace(part, load=part.load.at(rows)) for part in self.parts)
        shape = {name: values[rows] for name, values in self.shape.items()}
        return replace(self, parts=parts, time_s=self.time_s[rows], shape=shape, group=self.group[rows])


@dataclass
class TableSamples:
    """What a reader makes of a table."""

    samples: list[Samples] = field(default_factory=list)
    unmapped: Counter[str] = field(default_factory=Counter)
    """Rows that are no kernel of the cost model, by reason."""


def groups(columns: Iterable[Floats]) -> NDArray[np.int64]:
    """A number for each row by some columns, the same for the same values in whatever table."""
    mixed = None
    for column in columns:
        values = np.round(np.asarray(column, dtype=np.float64) * 16).astype(np.uint64)
        mixed = values if mixed is None else mixed * np.uint64(0x9E3779B97F4A7C15) + values
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    assert mixed is not None, "rows are told apart by at least one column"
    return (mixed >> np.uint64(16)).astype(np.int64)


# -- the loads of measured kernels, counted as the work graph counts them ------------------------------------


def matmul_load(
    m: Floats, n: Floats, k: Floats, weights: Precision, activations: Precision, copies: float | Floats = 1.0
) -> KernelLoad:
    """Of [m, k] by [k, n]; a benchmark that goes round `copies` sets of weights needs a cache for all."""
    weight_bytes = ITEM_BYTES[weights] * n * k
    rows_bytes = ITEM_BYTES[activations] * m * (k + n)
    return KernelLoad.of(2 * m * n * k, weight_bytes + rows_bytes, chain=k,
                         used_bytes=copies * weight_bytes + rows_bytes)  # fmt: skip


def quantise_load(m: Floats, k: Floats, to: Precision, activations: Precision) -> KernelLoad:
    """Of [m, k] activations, read and written in the narrower format."""
    per_number = ITEM_BYTES[activations] + ITEM_BYTES[to]
    moved = per_number * m * k
    return KernelLoad.of(np.zeros_like(moved), moved, block_bytes=per_number * m, used_bytes=moved)


@dataclass(frozen=True)
class Heads:
    """The attention of measured rows."""

    queries: Floats
    keys: Floats
    width: Floats


def seen_pairs(new: Floats, context: Floats, window: Floats) -> Floats:
    """Pairs of each of `new` queries and the keys it sees after `context` cached ones, the last `window` at
    most."""
    short = np.clip(window - 1 - context, 0, new)
    in_window = np.where(new > short, (new - short) * np.where(np.isfinite(window), window, 0.0), 0.0)
    pairs: Floats = short * context + short * (short + 1) / 2 + in_window
    return pairs


def prefill_load(
    batch: Floats, new: Floats, context: Floats, heads: Heads, kv_cache: Precision,
    window: float | Floats = np.inf,
) -> KernelLoad:  # fmt: skip
    """Of `batch` sequences with `new` tokens each on `context` cached ones, causal, each query seeing the
    last `window` keys; 16-bit queries."""
    per_pair = 4 * heads.queries * heads.width
    seen = np.broadcast_to(np.asarray(window, dtype=np.float64), np.shape(new))
    pairs = batch * seen_pairs(new, context, seen)
    span = np.minimum(context + new, new + seen - 1)
    kv_bytes = ITEM_BYTES[kv_cache] * 2 * heads.keys * heads.width * batch * span
    moved = kv_bytes + 4 * heads.queries * heads.width * batch * new
    return KernelLoad.of(per_pair * pairs, moved, chain=span, block_flops=per_pair * batch,
                         used_bytes=moved)  # fmt: skip


def decode_load(
    batch: Floats, span: Floats, heads: Heads, kv_cache: Precision, with_prompts: bool = False
) -> KernelLoad:
    """Of one token of each of `batch` sequences that sees `span` keys, alone or with prompts in the same
    batch; 16-bit queries."""
    per_key = ITEM_BYTES[kv_cache] * 2 * heads.keys * heads.width * batch
    moved = per_key * span + 4 * heads.queries * heads.width * batch
    flops_per_key = 4 * heads.queries * heads.width * batch
    is_shared = heads.queries > heads.keys
    return KernelLoad.of(
        flops_per_key * span, moved, chain=span, block_bytes=per_key,
        joint_flops=flops_per_key, beside_prompts=float(with_prompts),
        is_shared=np.where(is_shared, 1.0, 0.0),
        regroups=np.where(is_shared & (heads.keys > 1) & (batch > 1), 1.0, 0.0), used_bytes=per_key * span,
    )  # fmt: skip


def rows_load(rows: Floats, numbers: float | Floats, chain: float | Floats) -> KernelLoad:
    """Of a kernel that reads and writes `numbers` of 16 bits of each row together, `chain` in sequence."""
    moved = np.asarray(2.0 * rows * numbers, dtype=np.float64)
    return KernelLoad.of(np.zeros_like(moved), moved, chain=chain, used_bytes=moved)
