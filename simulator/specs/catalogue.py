"""Where profiles, models and scenarios' parts are found by their id."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import simulator
from simulator.errors import InputError, Problem, did_you_mean
from simulator.specs.base import Case, Spec, is_file, is_identifier, is_path
from simulator.specs.device_class import DeviceClass, with_defaults
from simulator.specs.engine import Engine
from simulator.specs.hardware import Device, Host, Link
from simulator.specs.load import Loaded, load_with_figures
from simulator.specs.workload import LengthHistogram

Kind = Literal["devices", "classes", "hosts", "links", "machines", "models", "engines", "lengths"]

FOLDERS: Mapping[Kind, str] = {
    "devices": "hardware_profiles/devices",
    "classes": "hardware_profiles/classes",
    "hosts": "hardware_profiles/hosts",
    "links": "hardware_profiles/links",
    "machines": "hardware_profiles/machines",
    "models": "models",
    "engines": "scenarios/engines",
    "lengths": "scenarios/lengths",
}

SINGULAR: Mapping[Kind, str] = {
    "devices": "device",
    "classes": "device class",
    "hosts": "host",
    "links": "link",
    "machines": "machine",
    "models": "model",
    "engines": "engine",
    "lengths": "length histogram",
}

SEARCH_PATH_VARIABLE = "PLACEWRIGHT_PATH"

T = TypeVar("T", bound=Spec)


MOST_LISTED = 20
"""More ids than that are not listed in a message."""


class Catalogue:
    """Every file that can be named by an id; a file is read once for each case."""

    def __init__(self, roots: tuple[Path, ...] | None = None) -> None:
        self.roots = default_roots() if roots is None else roots
        self._loaded: dict[tuple[Path, type[Spec], Case], Loaded[Any]] = {}
        self._devices: dict[tuple[Path, Case], Loaded[Device]] = {}

    def ids(self, kind: Kind) -> tuple[str, ...]:
        """Every id of a kind, sorted."""
        return tuple(
            sorted({path.stem for root in self.roots for path in (root / FOLDERS[kind]).glob("*.yaml")})
        )

    def find(self, kind: Kind, name: str) -> Path | None:
        """The file of an id in the first root that has one; None where no root has."""
        if not is_identifier(name):
            return None
        paths = (root / FOLDERS[kind] / f"{name}.yaml" for root in self.roots)
        return next((path for path in paths if is_file(path)), None)

    def path(self, kind: Kind, name: str) -> Path:
        """As `find`; raises InputError with the nearest id where there is none."""
        found = self.find(kind, name)
        if found is None:
            raise InputError(
                [Problem(FOLDERS[kind], key=SINGULAR[kind], value=name, advice=self.advice(kind, name))]
            )
        return found

    def advice(self, kind: Kind, name: str) -> str:
        """What to tell someone who asked for an id that does not exist."""
        known = self.ids(kind)
        hint = did_you_mean(name, known)
        listed = f"known are {', '.join(known)}" if known else f"there is no file in any {FOLDERS[kind]}/"
        listed = f"`placewright list {kind}` shows all {len(known)}" if len(known) > MOST_LISTED else listed
        return f"no such {SINGULAR[kind]}{hint or '; ' + listed}"

    def device(self, name: str, case: Case = "nominal") -> Loaded[Device]:
        """The device of an id, with what its kind and generation lend it."""
        path = self.path("devices", name)
        if (path, case) not in self._devices:
            loaded = self.load_path(path, Device, case)
            lenders = self.classes_of(loaded.record.kind, loaded.record.generation, case)
            self._devices[path, case] = Loaded(with_defaults(loaded.record, lenders), loaded.figures)
        return self._devices[path, case]

    def classes_of(
        self, kind: str, generation: str | None, case: Case = "nominal"
    ) -> tuple[tuple[str, DeviceClass], ...]:
        """The classes that lend figures to devices of a kind and generation, by id, the nearest first."""
        found: dict[str, DeviceClass] = {}
        name: str | None = kind if generation is None else f"{kind}-{generation}"
        if self._class_path(f"{name}") is None:
            name = kind
        asker: Path | None = None
        while name is not None and name not in found:
            path = self._class_path(name)
            if path is None:
                place, advice = asker or FOLDERS["classes"], self.advice("classes", name)
                raise InputError([Problem(place, key="follows", value=name, advice=advice)])
            found[name], asker = self.load_path(path, DeviceClass, case).record, path
            name = found[name].follows or (kind if name != kind else None)
        return tuple(found.items())

    def _class_path(self, name: str) -> Path | None:
        """Of a class; those that ship count where a catalogue has none of its own."""
        return self.find("classes", name) or Catalogue((shipped_root(),)).find("classes", name)

    def host(self, name: str, case: Case = "nominal") -> Loaded[Host]:
        """The host of an id."""
        return self.load("hosts", name, Host, case)

    def link(self, name: str, case: Case = "nominal") -> Loaded[Link]:
        """The link of an id."""
        return self.load("links", name, Link, case)

    def engine(self, name: str, case: Case = "nominal") -> Loaded[Engine]:
        """The serving engine of an id."""
        return self.load("engines", name, Engine, case)

    def histogram(self, ref: str) -> LengthHistogram:
        """The length histogram of an id or in a file."""
        path = Path(ref) if is_path(ref) else self.path("lengths", ref)
        return self.load_path(path, LengthHistogram).record

    def load(self, kind: Kind, name: str, spec_type: type[T], case: Case = "nominal") -> Loaded[T]:
        """The record of an id, read at most once for each case; raises InputError."""
        return self.load_path(self.path(kind, name), spec_type, case)

    def load_path(self, path: Path, spec_type: type[T], case: Case = "nominal") -> Loaded[T]:
        """The record in a file, read at most once for each case; raises InputError."""
        key = (path, spec_type, case)
        if key not in self._loaded:
            self._loaded[key] = load_with_figures(path, spec_type, case)
        return self._loaded[key]


def default_roots() -> tuple[Path, ...]:
    """$PLACEWRIGHT_PATH, the working folder, then what ships with the program."""
    listed = os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep)
    return tuple(dict.fromkeys([*(Path(each) for each in listed if each), Path.cwd(), shipped_root()]))


def shipped_root() -> Path:
    """What ships with the program."""
    package = Path(simulator.__file__).parent
    packaged = package / "_data"
    return packaged if packaged.is_dir() else package.parent
