"""Mixtures of experts in the format of NVIDIA's aiconfigurator: both grouped products of a layer, timed
together.

A row holds the products up and down of all chosen experts, the activation between them, and what sorts tokens
by expert and adds them up again. The two products are the parts here; the rest, small beside them, counts as
theirs.
"""

from __future__ import annotations

import numpy as np

from simulator.costs.operators import Floats, KernelLoad
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import ITEM_BYTES, Precision
from simulator.study.calibration.columns import Columns
from simulator.study.calibration.readers.aiconfigurator import milliseconds
from simulator.study.calibration.readers.registry import (
    by_value,
    counted,
    known_device,
    known_format,
    reader,
)
from simulator.study.calibration.samples import Part, Samples, TableSamples, groups

GATED_UPS = 2
"""Matrices up of each expert: all models of the tables gate."""


@reader("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
        "moe_ep_size", "distribution", "latency", "device")  # fmt: skip
def read_mixtures(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """Rows whose experts all lie on one device and are chosen evenly; which of the others are held, or read,
    the tables do not say."""
    found = TableSamples()
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    numbers = {name: columns.counts(name) for name in names}
    time_s = milliseconds(columns.positive("latency"))
    even = columns.texts("distribution") == "balanced"
    whole = numbers["moe_ep_size"] == 1
    for (system, dtype), rows in by_value(columns.texts("device"), columns.texts("moe_dtype")):
        with counted(found, len(rows)):
            device, precision = known_device(system, catalogue), known_format(dtype)
            kept = rows[even[rows] & whole[rows]]
            found.unmapped["experts chosen unevenly: which are read is not said"] += int((~even[rows]).sum())
            found.unmapped["experts on several devices"] += int((even[rows] & ~whole[rows]).sum())
            if len(kept):
                mine = {name: values[kept] for name, values in numbers.items()}
                found.samples.append(_samples(columns.path.stem, device, precision, mine, time_s[kept]))
    found.unmapped = +found.unmapped
    return found


def _samples(
    table: str, device: str, precision: Precision, numbers: dict[str, Floats], time_s: Floats
) -> Samples:
    hidden, inner = numbers["hidden_size"], numbers["inter_size"] / numbers["moe_tp_size"]
    choices = numbers["num_tokens"] * numbers["topk"]
    active = np.minimum(numbers["num_experts"], choices)
    parts = (
        Part("grouped_matmul", precision, _grouped(choices, active, hidden, GATED_UPS * inner, precision)),
        Part("grouped_matmul", precision, _grouped(choices, active, inner, hidden, precision)),
    )
    shape = {"m": choices, "experts": active, "hidden": hidden, "inner": inner}
    group = groups((hidden, inner, numbers["num_experts"], numbers["topk"]))
    return Samples(table, device, parts, time_s, shape, group)


def _grouped(choices: Floats, active: Floats, k: Floats, n: Floats, precision: Precision) -> KernelLoad:
    """Of as many rows as there are choices, by the matrices of the active experts."""
    moved = ITEM_BYTES[precision] * active * n * k + 2 * choices * (n + k)
    return KernelLoad.of(2 * choices * n * k, moved, chain=k)
