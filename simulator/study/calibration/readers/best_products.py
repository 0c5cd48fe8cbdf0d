"""Products measured by others than serving stacks: LLMCompass's on an A100, and the best shapes of mamf-
finder."""

from __future__ import annotations

import re

import numpy as np

from simulator.specs.catalogue import Catalogue
from simulator.study.calibration.columns import Columns
from simulator.study.calibration.readers.aiconfigurator import milliseconds
from simulator.study.calibration.readers.registry import (
    NotMapped,
    by_value,
    counted,
    known_device,
    known_format,
    reader,
)
from simulator.study.calibration.samples import Part, Samples, TableSamples, groups, matmul_load


@reader("device", "op", "M", "K", "N", "latency_ms", "throughput", "unit")
def read_llmcompass(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """Of PrincetonUniversity/LLMCompass; only its products state a time, or how fast they were."""
    found = TableSamples()
    time_s = milliseconds(columns.numbers("latency_ms", 0.0, least=0))
    for (system, operator), rows in by_value(columns.texts("device"), columns.texts("op")):
        with counted(found, len(rows)):
            device = known_device(system, catalogue)
            if not operator.startswith("matmul_"):
                raise NotMapped(f"{operator}: no time is stated, and the unit of throughput is doubtful")
            precision = known_format(operator.removeprefix("matmul_"))
            m, n, k = (columns.counts(name, rows=rows) for name in ("M", "N", "K"))
            load = matmul_load(m, n, k, precision, precision)
            measured, untimed = time_s[rows], time_s[rows] == 0
            rate = columns.positive("throughput", rows[untimed]) * 1e12
            measured[untimed] = load.flops[untimed] / rate
            parts, shape = (Part("matmul", precision, load),), {"m": m, "n": n, "k": k}
            group = groups((n, k))
            found.samples.append(Samples(columns.path.stem, device, parts, measured, shape, group))
    return found


@reader("dtype", "accelerator", "measured_matmul_tflops", "best_shape_mnk")
def read_best_shapes(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """Of stas00/ml-engineering: the product among thousands of shapes that came nearest to a device's
    peak."""
    found = TableSamples()
    rate = columns.positive("measured_matmul_tflops") * 1e12
    texts = columns.texts("best_shape_mnk").tolist()
    sides = np.array([_sides(columns, *each) for each in enumerate(texts)], dtype=np.float64)
    for (system, dtype), rows in by_value(columns.texts("accelerator"), columns.texts("dtype")):
        with counted(found, len(rows)):
            name = system.removeprefix("AMD ").removeprefix("Intel ")
            device, precision = known_device(name, catalogue), known_format(dtype.lower())
            m, n, k = sides[rows].T
            load = matmul_load(m, n, k, precision, "bf16")
            parts, shape = (Part("matmul", precision, load),), {"m": m, "n": n, "k": k}
            time_s = load.flops / rate[rows]
            found.samples.append(Samples(columns.path.stem, device, parts, time_s, shape, groups((n, k))))
    return found


def _sides(columns: Columns, number: int, text: str) -> tuple[int, int, int]:
    """M, N and K of a row, such as `1024x2048x512`."""
    found = re.fullmatch(r"([1-9]\d{0,8}) *x *([1-9]\d{0,8}) *x *([1-9]\d{0,8})", text)
    if found is None:
        columns.refuse("best_shape_mnk", number, text, "write M, N and K as in 1024x2048x512")
    m, n, k = (int(side) for side in found.groups())
    return m, n, k
