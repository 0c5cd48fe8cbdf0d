"""`calibrate fit`: tables of measured kernels in, numbers for a device's profile out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError, Problem
from simulator.specs.catalogue import FOLDERS, Catalogue, default_roots
from simulator.specs.hardware import Device, Efficiency
from simulator.specs.provenance import Source
from simulator.study.calibration.columns import read_columns
from simulator.study.calibration.fit import FittedClass, Key, fit, keys_of, predict
from simulator.study.calibration.profile_text import efficiency_line, rounded, with_numbers
from simulator.study.calibration.readers import read_samples, recognises
from simulator.study.calibration.readers.operators import ANY_DEVICE
from simulator.study.calibration.samples import Samples

FEWEST_ROWS = 12
"""Fewer rows of a class than this say too little about its numbers."""


@dataclass(frozen=True)
class FittedDevice:
    """What was fitted to a device, and the profile with it."""

    device: str
    classes: tuple[FittedClass, ...]
    unused: Mapping[str, int]
    """Rows that no number was fitted to, by reason."""
    path: Path
    """Of the device's file, in a folder of profiles."""
    text: str
    """Of that file, the fitted numbers in it."""

    def as_dict(self) -> dict[str, Any]:
        classes = [
            {"class": each.key, "efficiency": efficiency_line(each.efficiency), "samples": each.samples,
             "median_error": each.median_error, "p90_error": each.p90_error}
            for each in self.classes
        ]  # fmt: skip
        return {"device": self.device, "classes": classes, "unused": dict(self.unused)}


def fit_device(
    tables: Sequence[str | Path], device: str, ref: str | None = None, date: str | None = None,
    out: str | Path = ".",
) -> FittedDevice:  # fmt: skip
    """Fit the numbers of a device's kernels to tables that have rows of it.

    ref: where the measurements come from, for `sources`; the tables' names if not given. date: of them, as
    `sources` has it. out: a folder whose profile of the device, if it has one, is the one to change. Raises
    InputError for a table that cannot be read, and where no row is of the device.
    """
    check_date(date)
    catalogue = Catalogue((Path(out), *default_roots()))
    record = catalogue.device(device).record
    unused: Counter[str] = Counter()
    samples: list[Samples] = []
    for path in map(Path, tables):
        columns = read_columns(path)
        if not recognises(columns.names):
            advice = (
                "no table of kernels is known that has these columns; see docs/calibrate.md for one to write"
            )
            raise InputError([Problem(path, 1, advice=advice)])
        found = read_samples(columns, catalogue)
        unused.update(found.unmapped)
        mine = [replace(each, device=device) for each in found.samples if each.device in (device, ANY_DEVICE)]
        unused["of another device"] += sum(map(len, found.samples)) - sum(map(len, mine))
        samples += mine
    samples = _enough(samples, unused)
    if not samples:
        where = ", ".join(str(table) for table in tables)
        raise InputError(
            [Problem("command line", key="--device", value=device, advice=_nothing(where, unused))]
        )
    classes = fitted_classes(samples, {device: record})
    default_ref = ", ".join(dict.fromkeys(Path(table).name for table in tables))
    text = with_numbers(catalogue.path("devices", device), classes, ref or default_ref, date)
    path = Path(FOLDERS["devices"]) / f"{device}.yaml"
    return FittedDevice(device, classes, dict(+unused), path, text)


def check_date(date: str | None) -> None:
    """Raises InputError where `sources` could not say when measurements were made like this."""
    try:
        Source(kind="measured", ref="checked only", date=date)
    except ValueError:
        advice = "write a date as YYYY, YYYY-MM or YYYY-MM-DD"
        raise InputError([Problem("command line", key="--date", value=date, advice=advice)]) from None


def fitted_classes(samples: Sequence[Samples], devices: Mapping[str, Device]) -> tuple[FittedClass, ...]:
    """Numbers for every class and precision in samples of one device, with their errors on all of its
    rows."""
    numbers = {key: rounded(efficiency) for key, efficiency in fit(devices, samples).items()}
    return tuple(_scored(key, numbers, samples, devices) for key in sorted(numbers))


def _scored(
    key: Key, numbers: Mapping[Key, Efficiency], samples: Sequence[Samples], devices: Mapping[str, Device]
) -> FittedClass:
    """The errors of the measurements a kernel takes part in: as the main one if there are such."""
    main = [s for s in samples if (s.main.operator_class, s.main.precision) == key]
    concerned = main or [s for s in samples if key in keys_of(s)]
    errors = np.concatenate([
        np.abs(predict(each, devices[each.device], numbers) / each.time_s - 1) for each in concerned
    ])  # fmt: skip
    note = "" if main else "with the products they belong to"
    return FittedClass(*key, numbers[key], len(errors), float(np.median(errors)),
                       float(np.quantile(errors, 0.9)), note)  # fmt: skip


def _enough(samples: Sequence[Samples], unused: Counter[str]) -> list[Samples]:
    """Samples of classes that have enough rows to fit."""
    rows: Counter[Key] = Counter()
    for each in samples:
        rows.update(dict.fromkeys(keys_of(each), len(each)))
    kept = []
    for each in samples:
        if min(rows[key] for key in keys_of(each)) >= FEWEST_ROWS:
            kept.append(each)
        else:
            name = ".".join(keys_of(each)[0])
            unused[f"{name}: fewer than {FEWEST_ROWS} rows"] += len(each)
    return kept


def _nothing(where: str, unused: Mapping[str, int]) -> str:
    reasons = "; ".join(f"{count:,} rows: {reason}" for reason, count in unused.items() if count)
    return f"no row of {where} is of this device, or enough of one class of kernels ({reasons or 'no rows'})"
