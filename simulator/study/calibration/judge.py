"""How well operators are predicted, by each way there is of getting their numbers.

Whatever is fitted is judged on rows it has not seen: shapes left out, a whole table left out, a whole device
left out. The numbers that profiles ship with are shown as well, on all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from simulator.costs.operators import Floats, efficiency_of
from simulator.results.accuracy import Accuracy, accuracy_of
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Device, Efficiency
from simulator.study.calibration.fit import Key, fit, keys_of, predict
from simulator.study.calibration.lookup import Lookup
from simulator.study.calibration.samples import Samples

FOLDS = 3

Way = Literal["profile", "shapes left out", "table left out", "measured table", "device left out"]
"""Where numbers come from. `profile`: as shipped. `shapes left out`: fitted to this device, three times, each
time without a third of the shapes. `table left out`: fitted to this device's other tables. `measured table`:
looked up among the other two thirds of a table's shapes. `device left out`: fitted to other devices."""

WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True)
class Judged:
    """Rows of one device and kind of operator, predicted in one way."""

    device: str
    what: str
    table: str
    way: Way
    measured_s: Floats
    predicted_s: Floats


@dataclass(frozen=True)
class OperatorScore:
    """The errors of one device and kind of operator by one way, over all tables that have such rows."""

    device: str
    what: str
    way: Way
    rows: int
    errors: Accuracy

    def as_dict(self) -> dict[str, Any]:
        return {"device": self.device, "what": self.what, "way": self.way, "rows": self.rows,
                **self.errors.as_dict()}  # fmt: skip


Task = Literal["profile", "folds", "table left out", "device left out"]
"""What is worked on at a time: both ways by folds need the same fits."""

TASKS: tuple[Task, ...] = get_args(Task)


def judge(device: str, samples: Sequence[Samples], task: Task, catalogue: Catalogue) -> list[Judged]:
    """Predict every row of a device in the ways of a task; rows that a way has no numbers for are left
    out."""
    mine = [each for each in samples if each.device == device]
    names = sorted({each.device for each in samples})
    devices = {name: catalogue.device(name).record for name in names}
    if task == "folds":
        by_formula, by_table = _by_folds(mine, devices)
        return [*_judged(by_formula, "shapes left out"), *_judged(by_table, "measured table")]
    if task == "profile":
        return _judged([(each, _by_profile(each, devices[device])) for each in mine], task)
    if task == "table left out":
        return _judged(_without_table(mine, devices), task)
    lenders = lending(device, devices)
    others = [_in_16_bits(each) for each in samples if each.device in lenders]
    return _judged(_fitted_elsewhere([_in_16_bits(each) for each in mine], others, devices), task)


Predicted = list[tuple[Samples, Floats]]
"""Samples with the seconds predicted of each row; not a number where there are none."""


def _judged(predicted: Predicted, way: Way) -> list[Judged]:
    return [
        Judged(each.device, each.what, each.table, way, each.time_s[rows], predicted_s[rows])
        for each, predicted_s in predicted
        for rows in [np.isfinite(predicted_s)]
        if rows.any()
    ]


def scores(judged: Sequence[Judged]) -> list[OperatorScore]:
    """Errors by device, kind of operator and way, in that order."""
    ways = {way: number for number, way in enumerate(WAYS)}
    keys = sorted({(each.device, each.what, each.way) for each in judged}, key=lambda k: (*k[:2], ways[k[2]]))
    found = []
    for device, what, way in keys:
        mine = [each for each in judged if (each.device, each.what, each.way) == (device, what, way)]
        measured, predicted = (np.concatenate([getattr(each, name) for each in mine])
                               for name in ("measured_s", "predicted_s"))  # fmt: skip
        found.append(OperatorScore(device, what, way, len(measured), accuracy_of(measured, predicted)))
    return found


# -- the ways ------------------------------------------------------------------------------------------------


def _by_profile(samples: Samples, device: Device) -> Floats:
    return predict(samples, device, profile_numbers(samples, device))


def profile_numbers(samples: Samples, device: Device) -> dict[Key, Efficiency]:
    """What a device's profile, with what its class lends it, says about the kernels of some samples."""
    return {key: efficiency_of(device, *key) for key in keys_of(samples)}


def _by_folds(mine: Sequence[Samples], devices: Mapping[str, Device]) -> tuple[Predicted, Predicted]:
    """Each row by what was made of the folds that it is not in: by the formula, and by a table beside it."""
    formula = [(each, np.full(len(each), np.nan)) for each in mine]
    table = [(each, np.full(len(each), np.nan)) for each in mine]
    folds = _folds(mine)
    for fold in range(FOLDS):
        kept = [each.at(its_folds != fold) for each, its_folds in zip(mine, folds, strict=True)]
        kept = [each for each in kept if len(each)]
        numbers = fit(devices, kept)
        lookups = _lookups(kept, devices, numbers)
        for (each, formula_s), (_, table_s), its_folds in zip(formula, table, folds, strict=True):
            rows = np.flatnonzero(its_folds == fold)
            lookup = lookups.get(_table_of(each))
            if not len(rows) or lookup is None:
                continue
            left_out = each.at(rows)
            formula_s[rows] = predict(left_out, devices[each.device], numbers)
            table_s[rows] = lookup.corrected(left_out, formula_s[rows])[0]
    return formula, table


_TableKey = tuple[str, str, tuple[Key, ...], tuple[str, ...]]


def _table_of(samples: Samples) -> _TableKey:
    """What rows have in common that are looked up together, as the products of a layer: file, device, kernels
    and sides."""
    return samples.table, samples.device, keys_of(samples), tuple(samples.shape)


def _lookups(
    samples: Sequence[Samples], devices: Mapping[str, Device], numbers: Mapping[Key, Efficiency]
) -> dict[_TableKey, Lookup]:
    """Of the kernels that there are numbers for."""
    found: dict[_TableKey, list[tuple[Samples, Floats]]] = {}
    for each in samples:
        if set(keys_of(each)) <= set(numbers):
            formula_s = predict(each, devices[each.device], numbers)
            found.setdefault(_table_of(each), []).append((each, formula_s))
    return {key: Lookup.of_all(tables) for key, tables in found.items()}


def _folds(mine: Sequence[Samples]) -> list[NDArray[np.intp]]:
    """The fold of each row of some samples: a shape of one kind of kernel is in one, in whatever table, and
    each has about as many shapes."""
    kinds = [(each.main.operator_class, each.main.precision) for each in mine]
    groups: dict[Key, list[NDArray[np.int64]]] = {}
    for kind, each in zip(kinds, mine, strict=True):
        groups.setdefault(kind, []).append(each.group)
    shapes = {kind: np.unique(np.concatenate(found)) for kind, found in groups.items()}
    return [np.searchsorted(shapes[kind], each.group) % FOLDS for kind, each in zip(kinds, mine, strict=True)]


def _without_table(mine: Sequence[Samples], devices: Mapping[str, Device]) -> Predicted:
    found: Predicted = []
    for table in dict.fromkeys(each.table for each in mine):
        judged = [_in_16_bits(each) for each in mine if each.table == table]
        others = [_in_16_bits(each) for each in mine if each.table != table]
        covered = [each for each in judged if _rows_of(each, others) >= LEAST_COVER * _rows_of(each, judged)]
        found += _fitted_elsewhere(covered, others, devices)
    return found


LEAST_COVER = 0.1
"""Tables with fewer rows of a kernel than this share of those judged measured something else, and a few of it
in passing."""


def _rows_of(samples: Samples, among: Sequence[Samples]) -> int:
    """Rows of the same main kernel."""
    main = samples.main.operator_class, samples.main.precision
    return sum(len(each) for each in among if (each.main.operator_class, each.main.precision) == main)


def _fitted_elsewhere(
    mine: Sequence[Samples], others: Sequence[Samples], devices: Mapping[str, Device]
) -> Predicted:
    """Rows by numbers fitted to other rows, of those kernels that both have."""
    wanted = {key for each in mine for key in keys_of(each)}
    useful = [each for each in others if set(keys_of(each)) & wanted]
    numbers = fit(devices, useful) if useful else {}
    return [
        (each, predict(each, devices[each.device], numbers))
        for each in mine
        if set(keys_of(each)) <= set(numbers)
    ]


def _in_16_bits(samples: Samples) -> Samples:
    """The same with one name for both 16-bit formats, whose figures count for each other."""
    parts = tuple(
        replace(part, precision="bf16") if part.precision == "fp16" else part for part in samples.parts
    )
    return replace(samples, parts=parts)


NVIDIA_GENERATIONS = ("turing", "ampere", "ada", "hopper", "blackwell")
"""Their libraries are the same, so they lend to each other; other makers' GPUs neither lend to them nor
take."""


def lending(device: str, devices: Mapping[str, Device]) -> set[str]:
    """The other measured devices whose figures a device would take if it had none of its own."""

    def maker(name: str) -> str:
        generation = devices[name].generation or ""
        return "nvidia" if generation.startswith(NVIDIA_GENERATIONS) else "other"

    others = {name for name in devices if name != device and devices[name].kind == devices[device].kind}
    alike = {name for name in others if maker(name) == maker(device)}
    return alike or others
