"""`list KIND --sources`: each figure of the catalogue's files, and who says so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from simulator.errors import InputError, Problem
from simulator.specs.base import KeyPath
from simulator.specs.catalogue import Catalogue, Kind
from simulator.specs.device_class import DeviceClass
from simulator.specs.hardware import Device, Host, Link
from simulator.specs.provenance import Source, SourceKind, figure_locs, source_of
from simulator.specs.quantities import UNKNOWN
from simulator.specs.yaml_file import dotted, leaves, read_document

SOURCED: Mapping[Kind, type[Device | DeviceClass | Host | Link]] = {
    "devices": Device,
    "classes": DeviceClass,
    "hosts": Host,
    "links": Link,
}
"""The kinds of file whose every figure has a source."""


@dataclass(frozen=True)
class SourcedFigure:
    """One figure of one file, with its source."""

    id: str
    """Of the file."""
    key: KeyPath
    value: str
    """As the file has it."""
    source: Source | None
    """None where nothing is claimed: a figure that is unknown may go without."""

    @property
    def kind(self) -> SourceKind | None:
        """How far to trust it; None of what is unknown, whatever its source says of that."""
        return None if self.value == UNKNOWN or self.source is None else self.source.kind

    def as_dict(self) -> dict[str, Any]:
        source = self.source
        said = (None,) * 3 if source is None else (source.ref, source.date, source.note)
        return {"id": self.id, "key": self.key, "value": self.value, "kind": self.kind} | dict(
            zip(("ref", "date", "note"), said, strict=True)
        )


def sourced(kind: Kind, ids: Sequence[str] = ()) -> tuple[SourcedFigure, ...]:
    """Every figure of the files of a kind, or of some, in file order; raises InputError."""
    if kind not in SOURCED:
        advice = f"figures of {kind} are not listed with their sources; take {', '.join(SOURCED)}"
        raise InputError([Problem("command line", key="--sources", advice=advice)])
    catalogue = Catalogue()
    return tuple(figure for name in ids or catalogue.ids(kind) for figure in _figures(kind, name, catalogue))


def tally(kind: Kind, name: str, catalogue: Catalogue) -> dict[str, int]:
    """How many figures of a file are measured, published, assumed ... and unknown; only what there is."""
    counts = Counter(figure.kind or UNKNOWN for figure in _figures(kind, name, catalogue))
    return {each: counts[each] for each in (*get_args(SourceKind), UNKNOWN) if counts[each]}


def _figures(kind: Kind, name: str, catalogue: Catalogue) -> Iterator[SourcedFigure]:
    spec = SOURCED[kind]
    record = catalogue.load(kind, name, spec).record
    document = read_document(catalogue.path(kind, name))
    for loc in figure_locs(document.data, (), unknown=True):
        value = document.at(loc)
        for place, each in leaves(value, loc) if isinstance(value, list) else [(loc, value)]:
            key = dotted(place)
            if key not in spec.without_source:
                yield SourcedFigure(name, key, _text(each), source_of(key, record.sources))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['range']}, nominal {value['nominal']}"
    return str(value) if isinstance(value, str) else json.dumps(value)
