"""Operator time from measured tables in a run: products of shapes near measured ones take the time measured.

A device whose file names `tables` has them read once. For a product of the work graph, whose sides are fixed
but for the number of rows, the tables are asked for rows of 1, 2, 4 ... 32,768; what they say more or less
than the formula is a factor on it, by the seconds of its arithmetic. Where no row is within reach the factor
is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from simulator.costs.operators import TWINS, Floats, KernelLoad, arithmetic, kernel_rates, kernel_s
from simulator.errors import InputError, Problem
from simulator.graph.machine import Correction, MachineGraph
from simulator.graph.work import Work
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Device, Precision
from simulator.study.calibration.columns import read_columns
from simulator.study.calibration.fit import predict
from simulator.study.calibration.judge import profile_numbers
from simulator.study.calibration.lookup import REACH_OCTAVES, Lookup
from simulator.study.calibration.readers import read_samples, recognises
from simulator.study.calibration.readers.operators import ANY_DEVICE
from simulator.study.calibration.samples import Part, Samples
from simulator.study.calibration.silicon import silicon_tables

ROWS: Floats = np.exp2(np.arange(16, dtype=np.float64))
"""Numbers of rows that a correction is worked out for."""


@dataclass(frozen=True)
class TableTimes:
    """Measured products of one device, looked up by their sides."""

    device: Device
    samples: tuple[Samples, ...]

    @cached_property
    def _lookups(self) -> dict[Precision, Lookup]:
        """By number format, of all products that the tables have."""
        found: dict[Precision, list[tuple[Samples, Floats]]] = {}
        for each in self.samples:
            formula_s = predict(each, self.device, profile_numbers(each, self.device))
            found.setdefault(each.main.precision, []).append((each, formula_s))
        return {precision: Lookup.of_all(tables) for precision, tables in found.items()}

    def correction(self, work: Work) -> Correction | None:
        """Of a product by a matrix; other kernels are left to the formula."""
        sides = _sides(work)
        precision, _ = arithmetic(self.device, work.formats)
        lookup = self._lookups.get(precision) or self._lookups.get(TWINS.get(precision, precision))
        if sides is None or lookup is None:
            return None
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
    samples = _products(tuple(paths), device_id)
    if not samples:
        value, advice = ", ".join(device.tables), "no row of these tables is a product on this device"
        raise InputError([Problem(place, key="tables", value=value, advice=advice)])
    return TableTimes(device, samples)


@lru_cache(maxsize=8)
def _products(paths: tuple[Path, ...], device_id: str) -> tuple[Samples, ...]:
    """Those of the tables' rows that are products on a device, read once in a process."""
    found: list[Samples] = []
    for path in paths:
        columns = read_columns(path)
        if recognises(columns.names):
            samples = read_samples(columns, Catalogue()).samples
            mine = [each for each in samples if each.device in (device_id, ANY_DEVICE)]
            found += [each for each in mine if set(each.shape) == {"m", "n", "k"}]
    return tuple(found)
