"""Published tables and how to predict them: one module a table, registered by the table's name.

A module here that calls `@reader("table_name")` is found by itself; adding a table touches one file.
"""

import importlib
import pkgutil

from simulator.study.measurements.registry import READERS, Job, Outcome, Pair, Reading, reader

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["READERS", "Job", "Outcome", "Pair", "Reading", "reader"]
