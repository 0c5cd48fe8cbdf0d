"""Products measured by others than serving stacks: LLMCompass's on an A100, and the best shapes of mamf-
finder."""

from __future__ import annotations

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
    time_s = milliseconds(columns.numbers("latency_ms", 0.0))
    m, n, k = (columns.numbers(name, 0.0) for name in ("M", "N", "K"))
    rate = columns.numbers("throughput", 0.0) * 1e12
    for (system, operator), rows in by_value(columns.texts("device"), columns.texts("op")):
        with counted(found, len(rows)):
            device = known_device(system, catalogue)
            if not operator.startswith("matmul_"):
                raise NotMapped(f"{operator}: no time is stated, and the unit of throughput is doubtful")
            precision = known_format(operator.removeprefix("matmul_"))
            load = matmul_load(m[rows], n[rows], k[rows], precision, precision)
            by_rate = load.flops / np.where(rate[rows] > 0, rate[rows], 1.0)
            measured = np.where(time_s[rows] > 0, time_s[rows], by_rate)
            parts, shape = (Part("matmul", precision, load),), {"m": m[rows], "n": n[rows], "k": k[rows]}
            group = groups((n[rows], k[rows]))
            found.samples.append(Samples(columns.path.stem, device, parts, measured, shape, group))
    return found


@reader("dtype", "accelerator", "measured_matmul_tflops", "best_shape_mnk")
def read_best_shapes(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """Of stas00/ml-engineering: the product among thousands of shapes that came nearest to a device's
    peak."""
    found = TableSamples()
    rate = columns.positive("measured_matmul_tflops") * 1e12
    sides = np.array([[float(side) for side in text.split("x")] for text in columns.texts("best_shape_mnk")])
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
