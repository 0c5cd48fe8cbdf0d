"""Tables in the program's own format (docs/calibrate.md): what `calibrate measure` writes, and anybody
may."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from simulator.costs.operators import Floats, KernelLoad
from simulator.errors import InputError, Problem, did_you_mean
from simulator.graph.work import OperatorClass
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import PRECISIONS, Precision
from simulator.study.calibration.columns import Columns
from simulator.study.calibration.readers.registry import by_value, device_id, reader
from simulator.study.calibration.samples import (
    Heads,
    Part,
    Samples,
    TableSamples,
    decode_load,
    groups,
    matmul_load,
    prefill_load,
)

ANY_DEVICE = ""
"""What rows are of in a table that has no column `device`: of the one that somebody asks about."""

BY_BYTES = ("norm", "activation", "rotary", "elementwise", "embedding", "sampling")
OPERATORS = ("matmul", "attention_prefill", "attention_decode", *BY_BYTES)
OF_LINKS = ("copy", "collective")

Pick = NDArray[np.intp]


@reader("operator", "precision", "time_us")
def read_operators(columns: Columns, catalogue: Catalogue) -> TableSamples:
    found = TableSamples()
    time_s = columns.positive("time_us") / 1e6
    operators, precisions = columns.texts("operator"), columns.texts("precision", "")
    _refuse_unknown(columns, "operator", operators, (*OPERATORS, *OF_LINKS))
    is_kernel = ~np.isin(operators, OF_LINKS)
    _refuse_unknown(columns, "precision", precisions, PRECISIONS, is_kernel)
    weights = _or_else(columns, "weights", precisions)
    kv_cache = _or_else(columns, "kv_cache", precisions)
    keys = (columns.texts("device", ANY_DEVICE), operators, precisions, weights, kv_cache)
    for (system, operator, precision, of_weights, of_cache), rows in by_value(*keys):
        if operator in OF_LINKS:
            found.unmapped[f"{operator}: a figure of a link, not of a device"] += len(rows)
            continue
        device = ANY_DEVICE if system == ANY_DEVICE else device_id(system, catalogue)
        if device is None:
            found.unmapped[f"device {system} is not in the catalogue"] += len(rows)
            continue
        formats = cast(tuple[Precision, Precision, Precision], (precision, of_weights, of_cache))
        load, shape = _load(operator, columns, rows, formats)
        part = Part(cast(OperatorClass, operator), formats[0], load)
        group = groups((shape["n"], shape["k"]) if "n" in shape else shape.values())
        found.samples.append(Samples(columns.path.stem, device, (part,), time_s[rows], shape, group))
    return found


def _refuse_unknown(
    columns: Columns,
    name: str,
    texts: np.ndarray,
    known: tuple[str, ...],
    asked: NDArray[np.bool_] | None = None,
) -> None:
    wrong = ~np.isin(texts, known) if asked is None else ~np.isin(texts, known) & asked
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        value = str(texts[first])
        advice = f"one of: {', '.join(known)}{did_you_mean(value, known)}"
        raise InputError([Problem(columns.path, columns.line(first), None, name, value, advice)])


def _or_else(columns: Columns, name: str, others: np.ndarray) -> np.ndarray:
    """A column of formats, where it is blank that of `others`."""
    texts = columns.texts(name, "")
    filled = np.where(texts == "", others, texts)
    _refuse_unknown(columns, name, filled, PRECISIONS, filled != "")
    return filled


def _load(
    operator: str, columns: Columns, rows: Pick, formats: tuple[Precision, Precision, Precision]
) -> tuple[KernelLoad, dict[str, Floats]]:
    """What the kernels of some rows do, and their shape."""

    def picked(*names: str) -> list[Floats]:
        return [columns.counts(name, rows=rows) for name in names]

    precision, weights, kv_cache = formats
    match operator:
        case "matmul":
            m, n, k = picked("m", "n", "k")
            copies = columns.counts("copies", 1.0, rows=rows)
            return matmul_load(m, n, k, weights, precision, copies), {"m": m, "n": n, "k": k}
        case "attention_prefill" | "attention_decode":
            batch, new, queries, keys, width = picked("batch", "new", "heads", "kv_heads", "head_dim")
            context = columns.counts("context", 0.0, least=0, rows=rows)
            heads = Heads(queries, keys, width)
            shape = {"batch": batch, "new": new, "context": context, "heads": queries, "kv_heads": keys,
                     "head_dim": width}  # fmt: skip
            if operator == "attention_prefill":
                return prefill_load(batch, new, context, heads, kv_cache), shape
            return decode_load(batch, context + new, heads, kv_cache), shape
    moved = columns.positive("bytes", rows)
    width = columns.counts("width", 0.0, least=0, rows=rows)
    return KernelLoad.of(0 * moved, moved, chain=width, used_bytes=moved), {"bytes": moved, "width": width}
