"""`init device`: a data sheet in, a profile and a machine around it out."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem
from simulator.specs.base import KeyPath, LoadContext, is_identifier
from simulator.specs.catalogue import FOLDERS, SEARCH_PATH_VARIABLE, SINGULAR, Catalogue, Kind, default_roots
from simulator.specs.hardware import PRECISIONS, Device
from simulator.specs.load import try_validate
from simulator.specs.provenance import Source
from simulator.specs.yaml_file import Document, dotted, leaves
from simulator.study.data_sheet import (
    DataSheet,
    Surroundings,
    device_text,
    machine_text,
    processor_host_text,
    processor_machine_text,
)
from simulator.study.form import scalar

FIRST_SCENARIO = Path("scenarios/chat-on-one-node.yaml")

OPTIONS: Mapping[KeyPath, str] = {
    "name": "--title",
    "kind": "--kind",
    "generation": "--generation",
    "units": "--units",
    "memory.capacity": "--memory",
    "memory.bandwidth": "--bandwidth",
    "memory.usable": "--usable",
    "memory.cache": "--cache",
    **{f"compute.{precision}": f"--{precision}" for precision in PRECISIONS},
    "power.idle": "--idle",
    "power.max": "--power",
    "price.purchase": "--price",
    "ref": "--source",
    "date": "--date",
}
"""What gives each key of a file on the command line."""

_STAND_INS: Mapping[KeyPath, str] = {
    "memory.capacity": "1 PB",
    "memory.bandwidth": "1 TB/s",
    "compute.bf16": "1 TFLOP/s",
}
"""Checked in place of what is still to be filled in."""

Texts = dict[tuple[Kind, str], str]
"""What files are to hold, by their kind and id."""


@dataclass(frozen=True)
class Draft:
    """Files to write, and what to do with them."""

    machine: str
    """Id of the machine with the device in it."""
    files: tuple[tuple[Path, str], ...]
    """Where, and what."""
    missing: tuple[KeyPath, ...]
    """What is left to fill in, where < and > stand."""
    command: str
    """That runs a scenario on the machine."""

    def as_dict(self) -> dict[str, Any]:
        paths = [str(path) for path, _ in self.files]
        return {"machine": self.machine, "files": paths, "missing": [*self.missing], "command": self.command}


def init_device(
    sheet: DataSheet, around: Surroundings | None = None, out: Path = Path(), *, force: bool = False
) -> Draft:
    """A profile of the device, with a comment on each field, and a machine that holds it; writes nothing.

    A processor gets a host of its own, and takes only the network of `around`. Raises InputError where a
    figure is wrong, where `around` names nothing that exists, and, without `force`, where a file is there.
    """
    catalogue, around = Catalogue((out, *default_roots())), around or Surroundings()
    _refuse([*_wrong_figures(sheet), *_wrong_surroundings(around, catalogue)])
    machine, texts = _texts(sheet, around, catalogue)
    if not force:
        _refuse(_taken(texts, out, catalogue))
    files = tuple((_path(out, kind, name), text) for (kind, name), text in texts.items())
    return Draft(machine, files, sheet.missing, _command(machine, out))


def _refuse(problems: Iterable[Problem]) -> None:
    found = list(problems)
    if found:
        raise InputError(found)


def _texts(sheet: DataSheet, around: Surroundings, catalogue: Catalogue) -> tuple[str, Texts]:
    """Id of the machine, and all files."""
    texts: Texts = {("devices", sheet.id): device_text(sheet)}
    if sheet.kind == "cpu":
        texts["hosts", sheet.id] = processor_host_text(sheet)
        texts["machines", sheet.id] = processor_machine_text(sheet, around.network)
        return sheet.id, texts
    machine = f"{around.count}x-{sheet.id}"
    texts["machines", machine] = machine_text(sheet, around, catalogue.host(around.host).record.name)
    return machine, texts


def _path(out: Path, kind: Kind, name: str) -> Path:
    return out / FOLDERS[kind] / f"{name}.yaml"


def _command(machine: str, out: Path) -> str:
    scenario = str(FIRST_SCENARIO) if FIRST_SCENARIO.is_file() else "SCENARIO"
    run = f"placewright run {scenario} --set machine={machine}"
    is_looked_in = out.resolve() in [root.resolve() for root in default_roots()]
    return run if is_looked_in else f"{SEARCH_PATH_VARIABLE}={shlex.quote(str(out))} {run}"


def _wrong_figures(sheet: DataSheet) -> Iterator[Problem]:
    if not is_identifier(sheet.id) or scalar(sheet.id) != sheet.id:
        advice = "write a word of letters, digits, '.', '_', '+' and '-': it becomes the name of a file"
        yield Problem("command line", key="NAME", value=sheet.id, advice=advice)
    record = sheet.record({key: _STAND_INS[key] for key in sheet.missing})
    _, found = try_validate(Document("command line", record, {}), Device, LoadContext())
    _, of_source = try_validate(Document("command line", sheet.source, {}), Source, LoadContext())
    values = {dotted(loc): value for loc, value in leaves(sheet.source | record)}
    for each in (*found, *of_source):
        key = each.key or ""
        yield Problem("command line", key=OPTIONS.get(key, key), value=values.get(key), advice=each.advice)


def _wrong_surroundings(around: Surroundings, catalogue: Catalogue) -> Iterator[Problem]:
    named: tuple[tuple[Kind, str, str], ...] = (
        ("hosts", "--host", around.host),
        ("links", "--host-link", around.host_link),
        ("links", "--network", around.network),
    )
    for kind, option, name in named:
        if catalogue.find(kind, name) is None:
            yield Problem("command line", key=option, value=name, advice=catalogue.advice(kind, name))
    if catalogue.find("hosts", around.host) is not None:
        most = catalogue.host(around.host).record.max_devices
        if most is not None and around.count > most:
            advice = f"host {around.host} takes at most {most}"
            yield Problem("command line", key="--count", value=around.count, advice=advice)


def _taken(names: Iterable[tuple[Kind, str]], out: Path, catalogue: Catalogue) -> Iterator[Problem]:
    """Files that would be written over, or that a new one would hide."""
    for kind, name in names:
        target, known = _path(out, kind, name), catalogue.find(kind, name)
        if target.exists():
            yield Problem(target, advice="is there already; choose another NAME, or --force to write over it")
        elif known is not None:
            advice = f"is the {SINGULAR[kind]} of that name; choose another NAME, or --force to hide this one"
            yield Problem(known, advice=advice)
