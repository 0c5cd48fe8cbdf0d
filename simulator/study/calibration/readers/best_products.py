"""Products measured by others than serving stacks: LLMCompass's on an A100, and the best shapes of mamf-
finder."""

from __future__ import annotations

import numpy as np

from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Precision
from simulator.study.calibration.columns import Columns
from simulator.study.calibration.readers.aiconfigurator import milliseconds
from simulator.study.calibration.readers.registry import PRECISIONS, by_value, device_id, reader
from simulator.study.calibration.samples import Part, Samples, TableSamples, groups, matmul_load


@reader("device", "op", "M", "K", "N", "latency_ms", "throughput", "unit")
def read_llmcompass(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """Of PrincetonUniversity/LLMCompass; only its products state a time, or how fast they were."""
    found = TableSamples()
    time_s = milliseconds(columns.numbers("latency_ms", 0.0))
    m, n, k = (columns.numbers(name, 0.0) for name in ("M", "N", "K"))
    rate = columns.numbers("throughput", 0.0) * 1e12
    for (system, operator), rows in by_value(columns.texts("device"), columns.texts("op")):
        device = device_id(system, catalogue)
        if device is None or not operator.startswith("matmul_"):
            reason = f"{operator}: the table states no time, and its unit of throughput is doubtful"
            missing = f"device {system} is not in the catalogue"
            found.unmapped[missing if device is None else reason] += len(rows)
            continue
        precision: Precision = PRECISIONS.get(operator.removeprefix("matmul_"), "fp16")
        load = matmul_load(m[rows], n[rows], k[rows], precision, precision)
        by_rate = load.flops / np.where(rate[rows] > 0, rate[rows], 1.0)
        measured = np.where(time_s[rows] > 0, time_s[rows], by_rate)
        shape = {"m": m[rows], "n": n[rows], "k": k[rows]}
        found.samples.append(Samples(columns.path.stem, device, (Part("matmul", precision, load),), measured,
                                     shape, groups((n[rows], k[rows]))))  # fmt: skip
    return found


@reader("dtype", "accelerator", "measured_matmul_tflops", "best_shape_mnk")
def read_best_shapes(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """Of stas00/ml-engineering: the product among thousands of shapes that came nearest to a device's
    peak."""
    found = TableSamples()
    rate = columns.positive("measured_matmul_tflops") * 1e12
    sides = np.array([[float(side) for side in text.split("x")] for text in columns.texts("best_shape_mnk")])
    for (system, dtype), rows in by_value(columns.texts("accelerator"), columns.texts("dtype")):
        device = device_id(
            system.removeprefix("NVIDIA ").removeprefix("AMD ").removeprefix("Intel "), catalogue
        )
        precision = PRECISIONS.get(dtype.lower())
        if device is None or precision is None:
            reason = f"device {system}" if device is None else f"number format {dtype}"
            found.unmapped[f"{reason} is not in the catalogue"] += len(rows)
            continue
        m, n, k = sides[rows].T
        load = matmul_load(m, n, k, precision, "bf16")
        parts, shape = (Part("matmul", precision, load),), {"m": m, "n": n, "k": k}
        time_s = load.flops / rate[rows]
        found.samples.append(Samples(columns.path.stem, device, parts, time_s, shape, groups((n, k))))
    return found
