"""`show`, `list` and `schema`: what the files say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from simulator.errors import InputError, Problem, did_you_mean
from simulator.graph.model_graph import kv_bytes_per_token, parameter_count
from simulator.graph.work import Formats
from simulator.placement.strategies import STRATEGIES
from simulator.specs.catalogue import SINGULAR, Catalogue, Kind
from simulator.specs.device_class import DeviceClass
from simulator.specs.machine import load_machine
from simulator.specs.model import load_model
from simulator.specs.scenario import load_scenario
from simulator.specs.schema import schemas
from simulator.specs.yaml_file import Document, Loc, dotted, plain
from simulator.units import format_bytes, format_count, format_rate, format_seconds


@dataclass(frozen=True)
class Merged:
    """One value of a merged scenario."""

    key: str
    value: str
    origin: str
    """File, line and column, or the `--set` that put it there."""


def merged(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Merged, ...]:
    """Every value of a scenario after merging, in file order; raises InputError if it cannot be used."""
    document = load_scenario(path, STRATEGIES, overrides).document
    return tuple(Merged(dotted(loc), _text(document.at(loc)), _origin(document, loc))
                 for loc in _leaves(document.data, ()))  # fmt: skip


def _leaves(data: Any, loc: Loc) -> Iterator[Loc]:
    children: Sequence[str | int] = ()
    if isinstance(data, Mapping):
        children = tuple(data)
    elif isinstance(data, list) and any(isinstance(each, Mapping | list) for each in data):
        children = range(len(data))
    if not children:
        yield loc
    for child in children:
        yield from _leaves(data[child], (*loc, child))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)


def _origin(document: Document, loc: Loc) -> str:
    mark = document.marks.get(loc)
    if mark is None:
        return str(document.path)
    return ":".join(str(part) for part in (mark.path, mark.line, mark.column) if part is not None)


@dataclass(frozen=True)
class Entry:
    """One file of the catalogue."""

    id: str
    name: str
    summary: str


def catalogued(kind: str) -> tuple[Entry, ...]:
    """Every file of a kind, sorted by id; raises InputError for an unknown kind or an unusable file."""
    if kind not in get_args(Kind):
        known = ", ".join(get_args(Kind))
        advice = f"unknown kind; one of: {known}{did_you_mean(kind, get_args(Kind))}"
        raise InputError([Problem("command line", key="KIND", value=kind, advice=advice)])
    catalogue = Catalogue()
    describe = _DESCRIBE[kind]
    return tuple(Entry(name, *describe(name, catalogue)) for name in catalogue.ids(_kind(kind)))


def _kind(name: str) -> Kind:
    return next(kind for kind in SINGULAR if kind == name)


def _device(name: str, catalogue: Catalogue) -> tuple[str, str]:
    device = catalogue.device(name).record
    memory = device.memory
    bandwidth = format_rate(memory.bandwidth_bytes_per_s or 0.0)
    return device.name, f"{device.kind}, {format_bytes(memory.capacity_bytes)}, {bandwidth}"


def _class(name: str, catalogue: Catalogue) -> tuple[str, str]:
    lent = catalogue.load("classes", name, DeviceClass).record
    follows = f", then as {lent.follows}" if lent.follows else ""
    return lent.name, f"{', '.join(lent.efficiency) or 'nothing of its own'}{follows}"


def _host(name: str, catalogue: Catalogue) -> tuple[str, str]:
    loaded = catalogue.host(name)
    host = loaded.record
    cores = "cores unknown" if host.cores is None else f"{host.cores:g} cores"
    for figure in loaded.figures:
        if figure.key_path == "cores" and figure.low is not None and figure.high is not None:
            cores = f"{figure.low:g}..{figure.high:g} cores"
    drives = f", {format_bytes(host.storage.capacity_bytes)} of drives" if host.storage else ""
    return host.name, f"{host.kind}, {cores}, {format_bytes(host.memory.capacity_bytes)}{drives}"


def _link(name: str, catalogue: Catalogue) -> tuple[str, str]:
    link = catalogue.link(name).record
    return link.name, f"{format_rate(link.bandwidth_bytes_per_s)} one way, {format_seconds(link.latency_s)}"


def _machine(name: str, catalogue: Catalogue) -> tuple[str, str]:
    machine = load_machine(name, catalogue)
    parts = []
    for node in machine.nodes:
        counts = Counter(device for device, _ in node.devices)
        devices = (f"{count} x {device}" for device, count in counts.items())
        parts.append(" + ".join((node.host_id, *devices)))
    return machine.name, "; ".join(parts)


def _model(name: str, catalogue: Catalogue) -> tuple[str, str]:
    model = load_model(name, catalogue)
    formats = Formats("bf16", "bf16", "bf16")
    parameters = format_count(parameter_count(model, formats))
    cached = format_bytes(kv_bytes_per_token(model, formats))
    kind = "encoder" if model.is_encoder else f"{cached} a token in bf16"
    layers = f"{model.num_hidden_layers} layers of {model.hidden_size}"
    return model.name, f"{model.family}, {parameters} parameters, {layers}, {kind}"


def _engine(name: str, catalogue: Catalogue) -> tuple[str, str]:
    engine = catalogue.engine(name).record
    scheduler = engine.scheduler
    return engine.name, (f"{scheduler.policy}, {scheduler.max_num_seqs} sequences, "
                         f"{scheduler.max_num_batched_tokens} tokens a step")  # fmt: skip


def _lengths(name: str, catalogue: Catalogue) -> tuple[str, str]:
    histogram = catalogue.histogram(name)
    return histogram.name, f"{sum(count for *_, count in histogram.bins):,} requests"


_DESCRIBE: Mapping[str, Callable[[str, Catalogue], tuple[str, str]]] = {
    "devices": _device,
    "classes": _class,
    "hosts": _host,
    "links": _link,
    "machines": _machine,
    "models": _model,
    "engines": _engine,
    "lengths": _lengths,
}


def schema_of(kind: str | None) -> dict[str, Any]:
    """The JSON Schema of a kind of file; of all kinds by name if none is given."""
    found = schemas(STRATEGIES)
    if kind is None:
        return found
    if kind not in found:
        advice = f"unknown kind; one of: {', '.join(found)}{did_you_mean(kind, found)}"
        raise InputError([Problem("command line", key="KIND", value=kind, advice=advice)])
    return found[kind]
