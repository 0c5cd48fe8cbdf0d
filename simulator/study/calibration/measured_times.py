"""Operator time from measured tables in a run: kernels of shapes near measured ones take the time measured.

A device whose file names `tables` has them read once. For a product of the work graph, whose sides are fixed
but for the number of rows, the tables are asked for rows of 1, 2, 4 ... 32,768; what they say more or less
than the formula is a factor on it, by the seconds of its arithmetic. For attention, whose heads are fixed,
they are asked for 1, 2, 4 ... 2,048 sequences that see 1, 2, 4 ... 131,072 keys: of prompts, those without a
context. Where no row is within reach the factor is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from simulator.costs.operators import TWINS, Floats, KernelLoad, arithmetic, kernel_rates, kernel_s
from simulator.errors import InputError, Problem
from simulator.graph.machine import Correction, GridCorrection, MachineGraph
from simulator.graph.work import OperatorClass, Work
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import ITEM_BYTES, Device, Precision
from simulator.study.calibration.columns import read_columns
from simulator.study.calibration.fit import Key, predict
from simulator.study.calibration.judge import profile_numbers
from simulator.study.calibration.lookup import REACH_OCTAVES, Lookup
from simulator.study.calibration.readers import read_samples, recognises
from simulator.study.calibration.readers.operators import ANY_DEVICE
from simulator.study.calibration.samples import Heads, Part, Samples, decode_load, prefill_load
from simulator.study.calibration.silicon import silicon_tables

ROWS: Floats = np.exp2(np.arange(16, dtype=np.float64))
"""Numbers of rows that a correction is worked out for."""
SEQUENCES, KEYS = (np.exp2(np.arange(count, dtype=np.float64)) for count in (12, 18))
"""Numbers of sequences, and of keys that one sees."""
ATTENTION: Mapping[OperatorClass, tuple[str, str]] = {
    "attention_prefill": ("prefill_pairs", "prefill_span"),
    "attention_decode": ("decode_span", "decode_span"),
}
"""Features that count pairs of a query and a key, and keys."""


@dataclass(frozen=True)
class TableTimes:
    """Measured products and attention of one device, looked up by their shapes."""

    device: Device
    samples: tuple[Samples, ...]

    @cached_property
    def _lookups(self) -> dict[Key, Lookup]:
        """By class and number format, of all rows that the tables have."""
        found: dict[Key, list[tuple[Samples, Floats]]] = {}
        for each in self.samples:
            formula_s = predict(each, self.device, profile_numbers(each, self.device))
            key = (each.main.operator_class, each.main.precision)
            found.setdefault(key, []).append((each, formula_s))
        return {key: Lookup.of_all(tables) for key, tables in found.items()}

    def correction(self, work: Work) -> Correction | GridCorrection | None:
        """Of a product by a matrix, or of attention that sees all keys; other kernels are left to the
        formula."""
        kind = work.operator_class
        precision, _ = arithmetic(self.device, work.formats)
        twin = TWINS.get(precision, precision)
        lookup = self._lookups.get((kind, precision)) or self._lookups.get((kind, twin))
        if lookup is None:
            return None
        if kind in ATTENTION:
            return self._of_attention(work, lookup, precision)
        sides = _sides(work)
        return None if sides is None else self._of_product(work, sides, lookup, precision)

    def _of_attention(self, work: Work, lookup: Lookup, precision: Precision) -> GridCorrection | None:
        heads = _heads(work)
        if heads is None:
            return None
        batch, span = (each.ravel() for each in np.meshgrid(SEQUENCES, KEYS, indexing="ij"))
        of_all = Heads(*(np.full_like(batch, count) for count in heads))
        kv_cache: Precision = work.formats[0]
        if work.operator_class == "attention_decode":
            load = decode_load(batch, span, of_all, kv_cache)
        else:
            load = prefill_load(batch, span, 0 * batch, of_all, kv_cache)
        formula_s = kernel_s(load, kernel_rates(self.device, work.operator_class, work.formats))
        shape = _attention_shape(batch, of_all, span)
        part = Part(work.operator_class, precision, load)
        asked = Samples("", "", (part,), formula_s, shape, np.zeros(len(batch), np.int64))
        corrected_s, octaves = lookup.corrected(asked, formula_s)
        factors = np.where(octaves <= REACH_OCTAVES, corrected_s / formula_s, 1.0)
        rows = factors.reshape(len(SEQUENCES), len(KEYS)).tolist()
        return GridCorrection(tuple(tuple(row) for row in rows))

    def _of_product(
        self, work: Work, sides: tuple[float, float], lookup: Lookup, precision: Precision
    ) -> Correction:
        n, k = sides
        rates = kernel_rates(self.device, work.operator_class, work.formats)
        load = KernelLoad.of(2 * ROWS * n * k, _moved_bytes(work, ROWS), chain=k)
        formula_s = kernel_s(load, rates)
        shape = {"m": ROWS, "n": np.full_like(ROWS, n), "k": np.full_like(ROWS, k)}
        asked = Samples(
            "", "", (Part("matmul", precision, load),), formula_s, shape, np.zeros(len(ROWS), np.int64)
        )
        corrected_s, octaves = lookup.corrected(asked, formula_s)
        factors = np.where(octaves <= REACH_OCTAVES, corrected_s / formula_s, 1.0)
        log_s = np.log(load.flops / rates.flops_per_s)
        return Correction(tuple(log_s.tolist()), tuple(factors.tolist()))


def _sides(work: Work) -> tuple[float, float] | None:
    """Columns of the output, and what is summed over, of a product whose rows are tokens or scored rows."""
    rows = [name for name in ("tokens", "logit_rows") if work.flops.per(name)]
    if work.operator_class != "matmul" or not work.chain or len(rows) != 1:
        return None
    return work.flops.per(rows[0]) / (2 * work.chain), float(work.chain)


def _heads(work: Work) -> tuple[float, float, float] | None:
    """Heads of queries, of keys, and their width, of attention that sees all keys and has some of its own;
    None of others."""
    pairs, span = ATTENTION[work.operator_class]
    per_score = "prefill_square" if work.operator_class == "attention_prefill" else span
    heads, per_pair = work.scores.per(per_score), work.flops.per(pairs)
    if not heads or not per_pair or work.packed:
        return None
    width = per_pair / (4 * heads)
    kv_heads = work.moved_bytes.per(span) / (2 * width * ITEM_BYTES[work.formats[0]])
    is_plain = width.is_integer() and kv_heads.is_integer() and kv_heads >= 1
    return (float(heads), kv_heads, width) if is_plain else None


def _attention_shape(batch: Floats, heads: Heads, span: Floats) -> dict[str, Floats]:
    return {"batch": batch, "heads": heads.queries, "kv_heads": heads.keys, "head_dim": heads.width,
            "span": span}  # fmt: skip


def _moved_bytes(work: Work, rows: Floats) -> Floats:
    """For so many rows."""
    each = work.moved_bytes.per("tokens") + work.moved_bytes.per("logit_rows")
    return np.asarray(work.moved_bytes.per("one") + each * rows, dtype=np.float64)


def with_measured_times(graph: MachineGraph) -> MachineGraph:
    """A machine whose devices know the tables that their files name; raises InputError for one that cannot be
    read, or that has no product of its device."""
    devices = {
        name: replace(placed, times=_times(placed.device_id, placed.device))
        if placed.device.tables
        else placed
        for name, placed in graph.devices.items()
    }
    return replace(graph, devices=devices)


def _times(device_id: str, device: Device) -> TableTimes:
    place = f"hardware_profiles/devices/{device_id}.yaml"
    if device.kind == "cpu":
        advice = "a host computes with a share of several sockets, which no table is of; fit the device to it"
        raise InputError([Problem(place, key="tables", advice=advice)])
    paths: list[Path] = []
    for table in device.tables:
        paths += silicon_tables(device_id, ("vllm",), place) if table == "silicon" else [Path(table)]
    samples = _kernels(tuple(paths), device_id)
    if not samples:
        value = ", ".join(device.tables)
        advice = "no row of these tables is a product, or attention, on this device"
        raise InputError([Problem(place, key="tables", value=value, advice=advice)])
    return TableTimes(device, samples)


@lru_cache(maxsize=8)
def _kernels(paths: tuple[Path, ...], device_id: str) -> tuple[Samples, ...]:
    """Those of the tables' rows that are products or attention on a device, read once in a process."""
    found: list[Samples] = []
    for path in paths:
        columns = read_columns(path)
        if recognises(columns.names):
            samples = read_samples(columns, Catalogue()).samples
            mine = [each for each in samples if each.device in (device_id, ANY_DEVICE)]
            found += [each for each in mine if set(each.shape) == {"m", "n", "k"}]
            found += [_by_span(each) for each in mine if set(each.shape) & {"span", "context"}]
    return tuple(each for each in found if len(each))


def _by_span(samples: Samples) -> Samples:
    """Rows of attention that see all keys, prompts without a context; their shape as `_attention_shape` has
    it."""
    shape = samples.shape
    span = shape["span"] if "span" in shape else shape["context"] + shape["new"]
    is_decode = samples.main.operator_class == "attention_decode"
    sees_all = shape.get("window", span) >= span
    is_whole = sees_all & (np.full(len(span), is_decode) | (shape.get("context", 0 * span) == 0))
    heads = Heads(shape["heads"], shape["kv_heads"], shape["head_dim"])
    return replace(samples, shape=_attention_shape(shape["batch"], heads, span)).at(is_whole)
