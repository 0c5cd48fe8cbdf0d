"""Which reader a table of kernels is for, and what readers share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Precision
from simulator.study.calibration.columns import Columns, Texts
from simulator.study.calibration.samples import TableSamples

Reader = Callable[[Columns, Catalogue], TableSamples]

_READERS: dict[frozenset[str], Reader] = {}

PRECISIONS: dict[str, Precision] = {
    "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "half": "fp16", "fp16": "fp16", "fp8": "fp8",
    "fp32": "fp32", "float32": "fp32", "int8": "int8", "nvfp4": "fp4",
}  # fmt: skip
"""Names of number formats in published tables."""

DEVICES = {
    "a100": "a100-80-sxm", "a100-sxm": "a100-80-sxm", "a100-dgx": "a100-80-sxm", "a100-pcie": "a100-80-pcie",
    "a100-sxm4-80gb": "a100-80-sxm", "a100-sxm4-40gb": "a100-40-sxm", "h100": "h100-sxm",
    "h100-dgx": "h100-sxm", "h100-80gb-hbm3": "h100-sxm",
    "h200": "h200-sxm", "gh200-sxm": "gh200", "b200": "b200-sxm",
    "b300": "b300-sxm", "b300-sxm6-ac": "b300-sxm", "gb200-sxm": "gb200", "b60": "arc-pro-b60",
    "intel-r-arc-tm-pro-b60-graphics": "arc-pro-b60", "rtx4090": "rtx-4090", "rtx3090": "rtx-3090",
    "rtx5090": "rtx-5090", "rtxpro6000": "rtx-pro-6000", "rtx-pro-6000-server": "rtx-pro-6000",
    "rtx-pro-6000-blackwell-server-edition": "rtx-pro-6000",
}  # fmt: skip
"""Names of devices in published tables that are not ids already; a bare `a100` is the 80 GB module, as its
tables' sources say or their models' sizes require."""


def reader(*columns: str) -> Callable[[Reader], Reader]:
    """Register the reader of tables that have all of `columns`; of several the one that asks for most."""

    def register(read: Reader) -> Reader:
        assert frozenset(columns) not in _READERS, f"two readers for {columns}"
        _READERS[frozenset(columns)] = read
        return read

    return register


def _reader_of(names: frozenset[str]) -> Reader | None:
    found = [(len(needed), read) for needed, read in _READERS.items() if needed <= names]
    return max(found, key=lambda each: each[0])[1] if found else None


def recognises(names: Sequence[str]) -> bool:
    """Whether there is a reader for a table with columns of these names."""
    return _reader_of(frozenset(names)) is not None


def read_samples(columns: Columns, catalogue: Catalogue) -> TableSamples:
    """The measured kernels of a table; raises InputError for a cell that cannot be read."""
    read = _reader_of(frozenset(columns.names))
    assert read is not None, "asked for a table that nobody reads"
    return read(columns, catalogue)


def device_id(name: str, catalogue: Catalogue) -> str | None:
    """The catalogue's id of a device as published tables write it, `h100_sxm` or `RTX4090`; None if
    unknown."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").removeprefix("nvidia-")
    wanted = DEVICES.get(plain, plain)
    return wanted if catalogue.find("devices", wanted) is not None else None


class NotMapped(Exception):
    """Why some rows are no kernels of the cost model."""


@contextmanager
def counted(found: TableSamples, rows: int) -> Iterator[None]:
    """Count rows by the reason, where what is done with them raises NotMapped."""
    try:
        yield
    except NotMapped as reason:
        found.unmapped[str(reason)] += rows


def known_device(name: str, catalogue: Catalogue) -> str:
    """As `device_id`; raises NotMapped where there is none."""
    found = device_id(name, catalogue)
    if found is None:
        raise NotMapped(f"device {name} is not in the catalogue")
    return found


def known_format(name: str, of: str = "") -> Precision:
    """The number format of a published name; raises NotMapped for one that has no kernels here."""
    if name not in PRECISIONS:
        raise NotMapped(f"number format {name}{of} has no kernels of its own here")
    return PRECISIONS[name]


def by_value(*columns: Texts) -> Iterator[tuple[tuple[str, ...], NDArray[np.intp]]]:
    """The rows of each distinct combination of texts, in sorted order."""
    keys = np.stack(columns, axis=1)
    for each in np.unique(keys, axis=0):
        yield tuple(str(text) for text in each), np.flatnonzero((keys == each).all(axis=1))
