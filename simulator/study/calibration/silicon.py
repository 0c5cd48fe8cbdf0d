"""NVIDIA's databases of measured kernels, where the package that carries them is installed (extra
`silicon`)."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from simulator.errors import InputError, Problem
from simulator.specs.catalogue import Catalogue
from simulator.study.calibration.judge import Task
from simulator.study.calibration.readers.registry import device_id

PACKAGE = "aiconfigurator_core"
SILICON_REF = "ai-dynamo/aiconfigurator, tables of the installed package aiconfigurator-core"
SILICON_TASKS: tuple[Task, ...] = ("profile", "folds")
STACKS = ("vllm", "trtllm")
"""Whose tables are read: of each the newest version."""
TABLES = ("gemm/{stack}", "attention/{stack}", "moe/{stack}")


def silicon_tables(
    device: str | None = None, stacks: tuple[str, ...] = STACKS, place: str = "command line"
) -> tuple[Path, ...]:
    """The newest tables of products, attention and experts, of one device of the catalogue or of all that it
    has.

    place: where they were asked for, for messages. Raises InputError where the package is not installed, and
    where it has no table of the device.
    """
    found = [
        table
        for system in sorted(path for path in _data(place).iterdir() if path.is_dir())
        if _is_asked_for(system.name, device)
        for table in _of_system(system, stacks)
    ]
    if not found:
        advice = f"the databases have no table of this device; they have {', '.join(silicon_devices())}"
        raise InputError([Problem(place, value=device, advice=advice)])
    return tuple(found)


def silicon_devices() -> tuple[str, ...]:
    """Ids of the devices that the databases have tables of."""
    catalogue = Catalogue()
    systems = [path for path in _data().iterdir() if path.is_dir() and _of_system(path, STACKS)]
    return tuple(sorted(name for path in systems if (name := device_id(path.name, catalogue)) is not None))


def _is_asked_for(system: str, device: str | None) -> bool:
    found = device_id(system, Catalogue())
    return found is not None and device in (None, found)


def _data(place: str = "command line") -> Path:
    """The folder of the databases, found without importing the package."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        advice = "needs the package aiconfigurator-core: install placewright[silicon]"
        raise InputError([Problem(place, key="silicon", advice=advice)])
    return Path(next(iter(spec.submodule_search_locations))) / "systems" / "data"


def _of_system(system: Path, stacks: tuple[str, ...]) -> list[Path]:
    found = []
    for pattern in TABLES:
        for stack in stacks:
            versions = sorted((system / pattern.format(stack=stack)).glob("*"), key=_version)
            found += sorted(versions[-1].glob("*_perf.parquet")) if versions else []
    return found


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", path.name))
