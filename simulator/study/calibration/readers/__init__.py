"""Tables of measured kernels, recognised by their columns: one module for each kind of table.

A module here that calls `@reader("a column", ...)` is found by itself; adding a kind of table touches one
file.
"""

import importlib
import pkgutil

from simulator.study.calibration.readers.registry import read_samples, reader, recognises

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["read_samples", "reader", "recognises"]
